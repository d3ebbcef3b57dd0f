"""Settings of a server for show: everything in it is simulated, and nothing of it stays."""

from __future__ import annotations

from typing import Any

from server.settings.alone import settings_alone
from server.settings.settings import Settings


def embedded_settings(public_url: str, **own: Any) -> Settings:
    """The settings of a server whose carrier and model are the embedded ones.

    Args:
        public_url: Where it listens.
        own: What else is different.

    Raises:
        ConfigurationError: They do not fit.
    """
    return settings_alone(
        **{
            "public_url": public_url,
            "database_url": "sqlite://",  # in memory
            "drain_timeout_s": 0.0,
            "voice_judge": "off",  # a detector alone is the same everywhere
            **own,
        }
    )
