"""Settings of a server with keys."""

from __future__ import annotations

ACCOUNT = {
    "twilio_account_sid": "AC" + "0" * 32,
    "twilio_auth_token": "token",
    "twilio_phone_number": "+15005550006",
    "gemini_api_key": "key",
    "public_url": "https://phone.example.com",
    "twilio_api_url": "http://127.0.0.1:9",  # nobody listens there
    "gemini_url": "ws://127.0.0.1:9",
}
SIMULATED = dict.fromkeys(ACCOUNT)
