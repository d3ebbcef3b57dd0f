"""A small Twilio, a small Gemini Live and a telephone, for demonstrations and tests."""
