"""Everything that reaches into trio, hypercorn, Quart or quart-trio; each has its contract test."""
