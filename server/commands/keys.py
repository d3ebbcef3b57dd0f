"""``offhook new-key``: an API key for somebody, and what the server has to know of it."""

from __future__ import annotations

import re

from server.errors import ConfigurationError
from server.settings.values import KEY_NAME
from server.web.keys import hash_key, new_key


def show_new_key(name: str) -> int:
    """Print a key and its line for ``API_KEYS``; the value is the exit status.

    Raises:
        ConfigurationError: Nobody can be called that.
    """
    if re.fullmatch(KEY_NAME, name) is None:
        raise ConfigurationError(f"{name!r} must be lower-case letters, digits, - and _")
    key = new_key()
    print(f"key (shown only now, give it to {name}): {key}")  # noqa: T201
    print(f"add to API_KEYS, comma between keys:      {name}:{hash_key(key)}")  # noqa: T201
    return 0
