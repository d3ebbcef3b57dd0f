"""The console: calls seen, heard and steered in a browser, over the API and one live channel."""
