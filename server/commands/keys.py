"""``offhook new-key``: an API key for somebody, and what the server has to know of it."""

from __future__ import annotations

import re

from server.errors import ConfigurationError
from server.settings.values import KEY_NAME
from server.web.keys import READ, hash_key, new_key


def show_new_key(name: str, *, may_only_look: bool = False) -> int:
    """Print a key and its line for ``API_KEYS``; the value is the exit status.

    Args:
        name: Whom it is for.
        may_only_look: Whether it changes nothing: places no call and ends none.

    Raises:
        ConfigurationError: Nobody can be called that.
    """
    if re.fullmatch(KEY_NAME, name) is None:
        raise ConfigurationError(f"{name!r} must be lower-case letters, digits, - and _")
    key = new_key()
    print(f"key (shown only now, give it to {name}): {key}")  # noqa: T201
    scope = READ if may_only_look else ""
    print(f"add to API_KEYS, comma between keys:      {name}:{hash_key(key)}{scope}")  # noqa: T201
    return 0
