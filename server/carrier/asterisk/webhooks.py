"""Asterisk's side of HTTP: it posts nothing, and its media sockets may show who they are."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from werkzeug.datastructures import MultiDict

from server.carrier.webhooks import Document, Reply, Report, Webhooks
from server.errors import CarrierProtocolError
from server.headers import Headers, single


class AsteriskWebhooks(Webhooks):
    """A :class:`server.carrier.webhooks.Webhooks` without any: its news are events.

    Args:
        authorization: What a media socket's ``Authorization`` is, if ``websocket_client.conf`` has
            the same user and secret as ARI.
    """

    paths: tuple[str, ...] = ()
    signature_headers: tuple[str, ...] = ("authorization",)

    def __init__(self, authorization: str) -> None:
        self._authorization = authorization.encode()

    def is_signed(self, headers: Headers) -> bool:
        """False: it sends no requests but upgrades."""
        return False

    def verify(self, target: str, headers: Headers, form: Mapping[str, str] | None) -> bool:
        """False: whatever it is, it is not Asterisk's."""
        return False

    def verify_upgrade(self, target: str, headers: Headers) -> bool:
        """True if a media socket shows the user and the secret."""
        shown = single(headers, "Authorization") or ""
        return hmac.compare_digest(shown.encode(), self._authorization)

    def check(self, fields: MultiDict[str, str]) -> None:
        """Check nothing: there are no fields."""

    def read(self, path: str, fields: Mapping[str, str]) -> Report:
        """There is nothing to read.

        Raises:
            CarrierProtocolError: Always.
        """
        raise CarrierProtocolError("Asterisk has no webhooks")

    def write(self, reply: Reply) -> Document:
        """Write nothing: nobody reads it."""
        return Document("", "text/plain")
