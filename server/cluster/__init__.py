"""Several processes as one server: who has which call."""
