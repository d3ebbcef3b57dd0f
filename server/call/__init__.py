"""One call: its life, its loops, and its parts that wait."""
