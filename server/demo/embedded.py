"""Settings of a server for show: everything in it is simulated, and nothing of it stays."""

from __future__ import annotations

from typing import Any

from server.settings.settings import Settings

ELSEWHERE = (
    *("carrier", "twilio_", "asterisk_", "gemini_", "vertex_", "google_", "fallback_"),
    *("registry_url", "node", "stream_url", "cluster_secret", "events_", "event_handlers"),
    *("traces", "unsaved_dir", "api_key", "allowed_prefixes"),
)
"""How the settings begin that lead to real accounts, to other machines, or past whoever watches:
what the environment says of these is for another server."""


def embedded_settings(public_url: str, **own: Any) -> Settings:
    """The settings of a server whose carrier and model are the embedded ones.

    Args:
        public_url: Where it listens.
        own: What else is different.

    Raises:
        ConfigurationError: The settings that are left alone do not fit.
    """
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
        if name.startswith(ELSEWHERE)
    }
    return Settings.load(
        **{
            "_env_file": None,
            **defaults,
            "public_url": public_url,
            "database_url": "sqlite://",  # in memory
            "drain_timeout_s": 0.0,
            "voice_judge": "off",  # a detector alone is the same everywhere
            **own,
        }
    )
