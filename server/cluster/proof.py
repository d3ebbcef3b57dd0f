"""Proof between machines: that a request is another process's of ours, and that the answer is.

An address of a machine that is gone may be somebody else's within seconds, and a request that says
it was passed on is believed. So both carry an HMAC with a secret that only our processes have: over
what is asked, of whom, when, and a number used once; and over the answer together with that number.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.cluster.names import is_name
from server.cluster.passing_on import FINAL, LOST, PASSED_BACK

MAX_SKEW_S = 30.0
"""How far the clocks of two machines may be apart, the time on the way included."""
MAX_NONCES = 200_000
"""Kept for twice that long: some 3,000 requests a second and process."""
MAX_PEER_BYTES = 4096
_NONCE_BYTES = 16
_ANSWER_HEADERS = tuple(sorted(name.lower() for name in (*PASSED_BACK, FINAL, LOST)))


class NotProved(Exception):
    """Somebody else has sent this; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request between machines that is proved."""

    to: str
    """The name of the process that is asked."""
    nonce: str
    facts: Mapping[str, Any]


class Prover:
    """Proves what goes from one process to another, and checks it; no clock.

    Args:
        secrets: What only the processes of this server know: the first proves, any is believed, so
            that a secret can be changed on one machine after the other.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        # Keys of their own: the same secrets are used for other things, too.
        self._keys = [
            hmac.digest(secret.encode(), b"offhook between processes", "sha256")
            for secret in secrets
        ]
        self._used: OrderedDict[str, float] = OrderedDict()

    def ask(
        self,
        to: str,
        method: str,
        target: bytes,
        body: bytes,
        facts: Mapping[str, Any],
        *,
        wall_time: float,
    ) -> tuple[bytes, bytes, str]:
        """Prove a request.

        Args:
            to: Who is asked.
            method: The request's.
            target: The request's path and query.
            body: The request's.
            facts: What goes along with it.
            wall_time: ``time.time()``.

        Returns:
            The header that says all this, the one that proves it, and the number used once.
        """
        nonce = secrets.token_hex(_NONCE_BYTES)
        peer = json.dumps({"to": to, "at": wall_time, "nonce": nonce, "facts": facts}).encode()
        return peer, self._proofs(*_of_request(peer, method, target, body))[0], nonce

    def check_request(
        self,
        peer: bytes,
        proof: bytes,
        method: str,
        target: bytes,
        body: bytes,
        *,
        me: str,
        wall_time: float,
    ) -> Asked:
        """Check a request that says it is another process's; each is good once.

        Raises:
            NotProved: It is a stranger's, one for another process, too old, or a repeated one.
        """
        if not self._is_proved(proof, *_of_request(peer, method, target, body)):
            raise NotProved("wrong proof")
        try:
            said = json.loads(peer)
            asked = Asked(str(said["to"]), str(said["nonce"]), dict(said["facts"]))
            at = float(said["at"])
        except (ValueError, KeyError, TypeError):
            raise NotProved("unreadable") from None
        if asked.to != me:
            raise NotProved("for another process")
        if not abs(wall_time - at) <= MAX_SKEW_S:
            raise NotProved("too old, or the clocks of the machines differ")
        self._use(asked.nonce, wall_time)
        return asked

    def _use(self, nonce: str, wall_time: float) -> None:
        used = self._used
        while used and (next(iter(used.values())) < wall_time - 2 * MAX_SKEW_S):
            used.popitem(last=False)
        if nonce in used:
            raise NotProved("repeated")
        if len(used) >= MAX_NONCES:
            raise NotProved("too many at once")
        used[nonce] = wall_time

    def prove_answer(
        self, nonce: str, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> bytes:
        """What proves an answer to the request with this number."""
        return self._proofs(*_of_answer(nonce, status, headers, body))[0]

    def is_answer(
        self,
        nonce: str,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        proof: bytes,
    ) -> bool:
        """Whether an answer is that of the process which was asked."""
        return self._is_proved(proof, *_of_answer(nonce, status, headers, body))

    def _is_proved(self, proof: bytes, *parts: bytes) -> bool:
        # All are compared: which one it was, and that it was none, takes as long.
        return True in [hmac.compare_digest(proof, each) for each in self._proofs(*parts)]

    def _proofs(self, *parts: bytes) -> list[bytes]:
        """What proves this, with each of the secrets."""
        # Each part of one length, so that none can end where another begins.
        whole = b"".join(hashlib.sha256(part).digest() for part in parts)
        return [hmac.new(key, whole, "sha256").hexdigest().encode() for key in self._keys]


def _of_request(peer: bytes, method: str, target: bytes, body: bytes) -> tuple[bytes, ...]:
    return b"request", method.encode(), target, peer, body


def _of_answer(
    nonce: str, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> tuple[bytes, ...]:
    said = {name.decode("latin-1").lower(): value for name, value in headers}
    parts = [said.get(name, b"") for name in _ANSWER_HEADERS]
    return b"answer", nonce.encode(), str(status).encode(), *parts, body


def receiver(peer: bytes) -> str | None:
    """Whom a request between machines is for, as it says itself; None if it says no such thing."""
    if len(peer) > MAX_PEER_BYTES:
        return None
    try:
        to = str(json.loads(peer)["to"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return to if is_name(to) else None
