"""The agents of a server: described in files, loaded together, and chosen for each call."""
