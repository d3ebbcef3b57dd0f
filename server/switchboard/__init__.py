"""Which calls there are, and whether another may begin."""
