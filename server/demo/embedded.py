"""Settings of a server for show: everything in it is simulated, and nothing of it stays."""

from __future__ import annotations

from typing import Any

from server.settings.settings import Settings


def embedded_settings(public_url: str, **own: Any) -> Settings:
    """The settings of a server whose carrier and model are the embedded ones.

    Args:
        public_url: Where it listens.
        own: What else is different.

    Raises:
        ConfigurationError: The settings that are left alone do not fit.
    """
    return Settings.load(
        **{
            "_env_file": None,
            "twilio_account_sid": None,
            "twilio_auth_token": None,
            "twilio_api_key_sid": None,
            "twilio_api_key_secret": None,
            "twilio_phone_number": None,
            "gemini_api_key": None,
            "api_key": None,
            "api_keys": {},
            "allowed_prefixes": (),
            "public_url": public_url,
            "database_url": "sqlite://",  # in memory
            "drain_timeout_s": 0.0,
            "voice_judge": "off",  # a detector alone is the same everywhere
            **own,
        }
    )
