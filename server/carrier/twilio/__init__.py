"""Twilio: its messages, its REST API, its webhooks."""
