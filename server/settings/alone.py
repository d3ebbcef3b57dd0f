"""Settings of what is for show or for a test: the same, whatever this machine is set to."""

from __future__ import annotations

import os
from typing import Any

from server.settings.settings import Settings


def settings_alone(**given: Any) -> Settings:
    """Settings that depend on nothing but what is given: no account, address or key of yours.

    Raises:
        ConfigurationError: They do not fit.
    """
    names = [name for name in os.environ if name.lower() in Settings.model_fields]
    before = {name: os.environ.pop(name) for name in names}
    try:
        return Settings.load(_env_file=None, **given)
    finally:
        os.environ.update(before)
