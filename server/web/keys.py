"""The API's keys: named, kept as hashes, compared without telling anything by the time it takes.

A key is 256 random bits, so a plain SHA-256 is enough: there is no dictionary to try, and no
reason to spend a slow password hash on every request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from server.cluster.directory.meeting import shared_secret
from server.headers import Headers, lines_of, single
from server.settings.settings import Settings

READ = ";scope=read"
"""What follows the hash of a key that may only look."""
UNNAMED = "default"
"""What the key in ``API_KEY`` is called in metrics and in the queue for a line."""
_PREFIX = "offhook_"  # lets a secret scanner recognise one that was published by accident


def new_key() -> str:
    """Make a key of 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def made_key(secret: str) -> str:
    """A key that is made of a secret, and says nothing about it."""
    return _PREFIX + hashlib.sha256(secret.encode()).hexdigest()


def hash_key(key: str) -> str:
    """The form in which settings keep a key: SHA-256 in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Who may use the API.

    Args:
        hashes: SHA-256 in hex of each key, by the name of whom it was given to; and :data:`READ`
            after it if that key may only look.
        made: The key among them that was made because none is set.
    """

    def __init__(self, hashes: Mapping[str, str], *, made: str | None = None) -> None:
        self.made = made
        self._digests = {name: bytes.fromhex(of.partition(";")[0]) for name, of in hashes.items()}
        self._only_look = {name for name, of in hashes.items() if of.endswith(READ)}

    @classmethod
    def of(cls, settings: Settings) -> Keys:
        """The keys that the settings name; with an account and no key, one is made for this run."""
        hashes, made = dict(settings.api_keys), None
        if settings.api_key is not None:
            hashes[UNNAMED] = hash_key(settings.api_key.get_secret_value())
        if not hashes and settings.account is not None:
            made = made_key(shared_secret("API key"))
            hashes[UNNAMED] = hash_key(made)
        return cls(hashes, made=made)

    @property
    def any_wanted(self) -> bool:
        """Whether there is any key to show; with none, everybody is let in."""
        return bool(self._digests)

    def has(self, name: str | None) -> bool:
        """Whether there is a key of this name: another process of ours, which has seen it, says
        that it was shown."""
        return name in self._digests

    def may_only_look(self, name: str) -> bool:
        """Whether the key of this name changes nothing: it is for people who watch."""
        return name in self._only_look

    def digest(self, name: str) -> bytes | None:
        """The SHA-256 of the key of this name; None if there is none."""
        return self._digests.get(name)

    def identify(self, headers: Headers) -> str | None:
        """The name of the key that a request shows, or None if it shows none of ours.

        ``Authorization: Bearer`` counts before ``X-API-Key``; a header that is there twice shows no
        key, as a proxy may have checked the other one. Every key is compared, and each in constant
        time, so the answer's delay does not say which one was nearly right.
        """
        return self.named(_shown_key(headers))

    def named(self, key: str) -> str | None:
        """The name of this key, or None if it is none of ours."""
        if not key:
            return None  # whatever hash the settings have, it is not that of no key at all
        shown = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        found = None
        for name, digest in self._digests.items():
            if hmac.compare_digest(shown, digest):
                found = name
        return found


def _shown_key(headers: Headers) -> str:
    if len(lines_of(headers, "Authorization")) > 1:
        return ""
    scheme, _, credentials = (single(headers, "Authorization") or "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return single(headers, "X-API-Key") or ""
