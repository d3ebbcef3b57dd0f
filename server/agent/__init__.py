"""Who speaks: what the model is told, and the functions that it may call."""
