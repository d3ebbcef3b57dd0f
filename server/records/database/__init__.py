"""The database that records are kept in: its tables, the way to it, and what is asked of it."""
