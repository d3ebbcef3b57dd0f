"""Sealing: what a registry keeps of calls is encrypted, and only the secret can change it.

What is sealed is tied to one call, so that the state of another cannot be put in its place.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.errors import ServerError

_VERSION = b"\x01"
"""AES-256-GCM with a nonce by chance: 2**32 states under one secret are far from repeating one."""
_NONCE_BYTES, _TAG_BYTES = 12, 16
_PURPOSE = b"offhook: state of calls, 1"
"""The same secret proves nodes to each other; a key that is derived for one use is of no other."""


class CannotUnseal(ServerError):
    """This was sealed with another secret, for another call, or has been changed since."""


def seal(state: bytes, call_sid: str, cluster_secrets: Sequence[str]) -> bytes:
    """Encrypt what another process needs to go on with a call, with the first of the secrets."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = _cipher(cluster_secrets[0]).encrypt(nonce, state, _VERSION + call_sid.encode())
    return _VERSION + nonce + sealed


def unseal(sealed: bytes, call_sid: str, cluster_secrets: Sequence[str]) -> bytes:
    """Decrypt what was sealed for this call with any of the secrets.

    Raises:
        CannotUnseal: None of them is its secret, or it is not what was sealed for this call.
    """
    if sealed[:1] != _VERSION:
        raise CannotUnseal("state of a call that was sealed in a way this version does not know")
    if len(sealed) < len(_VERSION) + _NONCE_BYTES + _TAG_BYTES:
        raise CannotUnseal("state of a call that is too short to have been sealed")
    nonce, content = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    for secret in cluster_secrets:
        try:
            return _cipher(secret).decrypt(nonce, content, _VERSION + call_sid.encode())
        except InvalidTag:
            continue
    raise CannotUnseal(
        "state of a call that was sealed with another CLUSTER_SECRET, or changed since: every node "
        "needs the same one (while it is replaced, the new and the old with a comma between)"
    )


@lru_cache(maxsize=8)
def _cipher(secret: str) -> AESGCM:
    return AESGCM(hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256))
