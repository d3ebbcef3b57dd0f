"""A web page as a telephone: its messages, its streams, and what a carrier does for it."""
