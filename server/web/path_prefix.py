"""What stands before our paths: a proxy's prefix, and the name of a process.

A request is the same with a prefix and without it.

With ``PUBLIC_URL=https://example.com/voice`` the carrier asks for ``/voice/twiml``. Some proxies
take the prefix off again and others do not; here it is taken off where it is left, so that routes
and signatures see one path. What the carrier has signed is then the public address and that path.

Whatever is about a call comes to an address that names the call's process, ``/n/NAME/call-status``.
The name is taken off for the routes and put beside the path; the raw path, which was signed and is
passed on, keeps it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import unquote, urlsplit

from hypercorn.typing import Scope

from server.cluster.names import is_name, split

NAMED = "offhook.named"
"""In an ASGI scope: the name of the process that the path says has the call."""


def prefix_of(public_url: str | None) -> str:
    """The path in a public address, ``/voice``; empty if there is none."""
    return urlsplit(public_url or "").path.rstrip("/")


def call_path(public_url: str | None, call_sid: str) -> str:
    """Where a client finds a call."""
    return f"{prefix_of(public_url)}/calls/{call_sid}"


def without_prefix(scope: Scope, prefix: str) -> Scope:
    """A request's scope as if it had been made without a prefix.

    Args:
        scope: Of ASGI; it is not changed.
        prefix: As it stands in the public address, with its escapes.
    """
    if not prefix or scope["type"] not in ("http", "websocket"):
        return scope
    path, plain = str(scope["path"]), unquote(prefix)
    raw_path: bytes = scope.get("raw_path") or b""
    if path != plain and not path.startswith(f"{plain}/"):
        return scope
    changed: dict[str, Any] = {"path": path[len(plain) :] or "/", "root_path": ""}
    start = prefix.encode()
    if raw_path.startswith(start):
        changed["raw_path"] = raw_path[len(start) :] or b"/"
    else:  # another way to write the same; what was signed is not known then
        changed["raw_path"] = b""
    return {**scope, **changed}  # type: ignore[return-value]


def without_name(scope: Scope, paths: Collection[str]) -> Scope:
    """A request's scope as if its path named no process, and the name beside it.

    Args:
        scope: Of ASGI; it is not changed.
        paths: Those that may name one.
    """
    if scope["type"] not in ("http", "websocket") or not (named := split(str(scope["path"]))):
        return scope
    name, path = named
    if path not in paths or not is_name(name):
        return scope
    changed: dict[str, Any] = {"path": path, NAMED: name}
    if not scope.get("raw_path"):
        changed["raw_path"] = str(scope["path"]).encode()
    return {**scope, **changed}  # type: ignore[return-value]
