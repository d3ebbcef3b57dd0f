"""How the app is served by a program of our own: in one process, or in several with a parent."""
