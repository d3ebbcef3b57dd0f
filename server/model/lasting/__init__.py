"""One session of as many connections as a call needs."""
