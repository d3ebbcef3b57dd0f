"""What is kept of calls, for whoever comes later: exports, and events that nobody has taken."""
