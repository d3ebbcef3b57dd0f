"""The settings: what they are, where they are read from, how their values are checked."""
