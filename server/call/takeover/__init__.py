"""A call that outlives its process: what the next one needs, and how it goes on from there."""
