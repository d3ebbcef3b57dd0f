"""Gemini Live: its protocol and its connections."""
