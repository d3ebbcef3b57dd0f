"""Sealing: what a registry keeps of calls is encrypted, and only the secret can change it.

What is sealed is tied to one call, so that the state of another cannot be put in its place.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from functools import lru_cache

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.errors import ServerError

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LIVE, ENDED = b"\x01", b"\x02"
"""The first byte: the state of a call that goes on, or what is left of one that has ended. Either
is AES-256-GCM with a nonce by chance: 2**32 states under one secret are far from repeating one."""
_NONCE_BYTES, _TAG_BYTES = 12, 16
_PURPOSE = b"offhook: state of calls, 1"
"""The same secret proves nodes to each other; a key that is derived for one use is of no other."""


class CannotUnseal(ServerError):
    """This was sealed with another secret, for another call, or has been changed since."""


def seal(
    state: bytes, call_sid: str, cluster_secrets: Sequence[str], *, has_ended: bool = False
) -> bytes:
    """Encrypt what another process needs of a call, with the first of the secrets.

    Args:
        state: To go on with it; or, if it has ended, what is left of it.
        call_sid: The call.
        cluster_secrets: With the first, it is sealed.
        has_ended: Whether the call has.
    """
    kind, nonce = ENDED if has_ended else LIVE, secrets.token_bytes(_NONCE_BYTES)
    return (
        kind + nonce + _cipher(cluster_secrets[0]).encrypt(nonce, state, kind + call_sid.encode())
    )


def has_ended(sealed: bytes) -> bool:
    """Whether this is kept of a call that has ended; empty, there is nothing left of it."""
    return not sealed or sealed[:1] == ENDED


def unseal(sealed: bytes, call_sid: str, cluster_secrets: Sequence[str]) -> bytes:
    """Decrypt what was sealed for this call with any of the secrets.

    Raises:
        CannotUnseal: None of them is its secret, or it is not what was sealed for this call.
    """
    kind = sealed[:1]
    if kind not in (LIVE, ENDED):
        raise CannotUnseal("state of a call that was sealed in a way this version does not know")
    if len(sealed) < 1 + _NONCE_BYTES + _TAG_BYTES:
        raise CannotUnseal("state of a call that is too short to have been sealed")
    nonce, content = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    for secret in cluster_secrets:
        try:
            return _cipher(secret).decrypt(nonce, content, kind + call_sid.encode())
        except InvalidTag:
            continue
    raise CannotUnseal(
        "state of a call that was sealed with another CLUSTER_SECRET, or changed since: every node "
        "needs the same one (it is replaced by old,new on every node, then new,old, then new)"
    )


def unsealed(sealed: bytes, call_sid: str, cluster_secrets: Sequence[str]) -> bytes:
    """What was kept of a call that is taken over; empty if there is nothing, or nothing of use."""
    if not sealed:
        return b""
    try:
        return unseal(sealed, call_sid, cluster_secrets)
    except CannotUnseal as error:
        logger.error("a call is taken over without its state", reason=str(error))  # noqa: TRY400
        return b""


@lru_cache(maxsize=8)
def _cipher(secret: str) -> AESGCM:
    return AESGCM(hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256))
