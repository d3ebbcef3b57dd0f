"""Proof between machines: that a request is another process's of ours, and that the answer is.

An address of a machine that is gone may be somebody else's within seconds, an address in the
registry may have been written by anybody who can write there, and a request that says it was passed
on is believed. So of a request nothing can be read on its way, or at an address that is not the
right one: it is sealed (AES-GCM) with a key that is made of a secret that only our processes have,
and of a number that is used once; and so is the answer, which nobody else can have made. To ask
for a proof first would be less: whoever is at the address could hand the question on to the right
one, and read what it is trusted with then.

What a stranger sends is refused by its one header, before a byte of the body is read: an HMAC over
whom it is for (name and birth, so that one of before a restart is for nobody), when it was sent,
the number, and how long the body is, and its SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.cluster.registry import Member

MAX_SKEW_S = 30.0
"""How old a request may be, or seem to be, as the clocks of machines are not quite alike."""
MAX_NONCES = 200_000
"""Kept for twice that long: some 3,000 requests a second and process."""
MAX_PEER_BYTES = 512
_VERSION = b"2"
_PEER = re.compile(
    rb"(?P<said>(?P<version>[0-9]{1,4}) (?P<to>[A-Za-z0-9][A-Za-z0-9.-]{0,68}@[0-9]{1,20})"
    rb" (?P<at_ms>[0-9]{1,15}) (?P<nonce>[0-9a-f]{32}) (?P<length>[0-9]{1,9})"
    rb" (?P<digest>[0-9a-f]{64})) (?P<proof>[0-9a-f]{64})"
)
_NONCE_BYTES, _TAG_BYTES = 16, 16
_ASKED = bytes(12)
"""AES-GCM's own number of a request, whose key is for it and its answers alone."""
_ANSWER_NUMBER_BYTES = len(_ASKED)


class NotProved(Exception):
    """Somebody else has sent this; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request between machines, by its header.

    Attributes:
        to: The process that is asked, ``NAME@BORN``.
        nonce: The number used once.
        length: Of the sealed body.
        digest: Its SHA-256.
    """

    to: str
    nonce: bytes
    length: int
    digest: bytes
    _key: bytes = field(repr=False)

    def unseal(self, body: bytes) -> bytes:
        """What was asked.

        Raises:
            NotProved: The body is another one.
        """
        return _unsealed(self._key, _ASKED, body)

    def seal_answer(self, answer: bytes) -> bytes:
        """An answer that only who has asked can read, and only who was asked can have made."""
        number = secrets.token_bytes(_ANSWER_NUMBER_BYTES)
        return number + AESGCM(self._key).encrypt(number, answer, b"answer")

    def unseal_answer(self, sealed: bytes) -> bytes:
        """An answer to this request.

        Raises:
            NotProved: It is not that of a process of ours that has read the request.
        """
        number, content = sealed[:_ANSWER_NUMBER_BYTES], sealed[_ANSWER_NUMBER_BYTES:]
        return _unsealed(self._key, number, content, b"answer")


def _unsealed(key: bytes, number: bytes, content: bytes, purpose: bytes = b"request") -> bytes:
    if len(number) != _ANSWER_NUMBER_BYTES or len(content) < _TAG_BYTES:
        raise NotProved("too short")
    try:
        return AESGCM(key).decrypt(number, content, purpose)
    except InvalidTag:
        raise NotProved("sealed by somebody else") from None


@dataclass(frozen=True, slots=True)
class _Keys:
    """What is made of one secret: a key for each use, for the secret has others, too."""

    proves: bytes
    seals: bytes
    vouches: bytes

    @classmethod
    def of(cls, secret: str) -> _Keys:
        uses = (b"proves requests", b"seals requests", b"vouches for addresses")
        made = (hmac.digest(secret.encode(), b"offhook 2: " + use, "sha256") for use in uses)
        return cls(*made)


class Prover:
    """Proves what goes from one process to another, and checks it; no clock.

    Args:
        cluster_secrets: What only the processes of this server know: the first proves, any is
            believed, so that a secret can be changed on one machine after the other.
    """

    def __init__(self, cluster_secrets: Sequence[str]) -> None:
        self._keys = [_Keys.of(secret) for secret in cluster_secrets]
        self._used: OrderedDict[bytes, float] = OrderedDict()

    # -- requests ----------------------------------------------------------------------------

    def ask(self, to: Member, content: bytes, *, wall_time: float) -> tuple[bytes, bytes, Asked]:
        """Seal a request, and prove it.

        Args:
            to: Who is asked.
            content: All that is asked.
            wall_time: The time as all machines have it.

        Returns:
            The header, the body, and what unseals the answer.
        """
        nonce, keys = secrets.token_bytes(_NONCE_BYTES), self._keys[0]
        key = hmac.digest(keys.seals, nonce, "sha256")
        body = AESGCM(key).encrypt(_ASKED, content, b"request")
        digest = hashlib.sha256(body)
        said = b"%s %s %d %s %d %s" % (
            _VERSION,
            str(to).encode(),
            int(wall_time * 1000),
            nonce.hex().encode(),
            len(body),
            digest.hexdigest().encode(),
        )
        peer = said + b" " + hmac.digest(keys.proves, said, "sha256").hex().encode()
        return peer, body, Asked(str(to), nonce, len(body), digest.digest(), key)

    def check(self, peer: bytes, *, wall_time: float, now: float) -> Asked:
        """Check the header of a request that says it is another process's; each is good once.

        Whether it is for this process is left to whoever asks.

        Args:
            peer: The header.
            wall_time: The time as all machines have it.
            now: ``time.monotonic()``, which nobody sets: what was used is forgotten by that.

        Raises:
            NotProved: It is a stranger's, too old, or a repeated one.
        """
        found = _PEER.fullmatch(peer) if len(peer) <= MAX_PEER_BYTES else None
        if found is None:
            raise NotProved("unreadable")
        if found["version"] != _VERSION:
            raise NotProved("of another version of this server: it is to be the same on all nodes")
        said, proof = found["said"], bytes.fromhex(found["proof"].decode())
        # All are compared: which one it was, and that it was none, takes as long.
        fitting = [
            keys
            for keys in self._keys
            if hmac.compare_digest(proof, hmac.digest(keys.proves, said, "sha256"))
        ]
        if not fitting:
            raise NotProved("wrong proof")
        if not abs(wall_time - int(found["at_ms"]) / 1000) <= MAX_SKEW_S:
            raise NotProved("too old, or the clocks of the machines differ")
        nonce = bytes.fromhex(found["nonce"].decode())
        self._use(nonce, now)
        return Asked(
            to=found["to"].decode(),
            nonce=nonce,
            length=int(found["length"]),
            digest=bytes.fromhex(found["digest"].decode()),
            _key=hmac.digest(fitting[0].seals, nonce, "sha256"),
        )

    def _use(self, nonce: bytes, now: float) -> None:
        used = self._used
        while used and next(iter(used.values())) < now - 2 * MAX_SKEW_S:
            used.popitem(last=False)
        if nonce in used:
            raise NotProved("repeated")
        if len(used) >= MAX_NONCES:
            raise NotProved("too many at once")
        used[nonce] = now

    # -- addresses ---------------------------------------------------------------------------

    def vouch(self, member: str, address: str) -> str:
        """What shows to the others that a member is reached at an address."""
        return _vouched(self._keys[0].vouches, member, address)

    def is_vouched(self, member: str, address: str, shown: str) -> bool:
        """Whether a process of ours has said that this member is reached at this address."""
        return any(
            hmac.compare_digest(_vouched(keys.vouches, member, address).encode(), shown.encode())
            for keys in self._keys
        )


@lru_cache(maxsize=4096)  # every beat of every member is looked at, and says the same
def _vouched(key: bytes, member: str, address: str) -> str:
    return hmac.digest(key, f"{member}\n{address}".encode(), "sha256").hex()
