"""Who keeps the event loop: which steps of it are late, by whose fault, and where they stood."""
