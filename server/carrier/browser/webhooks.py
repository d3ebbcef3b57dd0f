"""What comes to a server that only pages call: no carrier posts anything to it."""

from __future__ import annotations

from collections.abc import Mapping

from werkzeug.datastructures import MultiDict

from server.carrier.webhooks import Document, Reply, Report, Webhooks
from server.errors import CarrierProtocolError
from server.headers import Headers


class NoWebhooks(Webhooks):
    """A :class:`server.carrier.webhooks.Webhooks` that are nobody's."""

    paths: tuple[str, ...] = ()
    signature_headers: tuple[str, ...] = ()

    def is_signed(self, headers: Headers) -> bool:
        """False: there is nobody who could have signed it."""
        return False

    def verify(self, target: str, headers: Headers, form: Mapping[str, str] | None) -> bool:
        """False: whatever it is, it is no carrier's."""
        return False

    def check(self, fields: MultiDict[str, str]) -> None:
        """Check nothing: there are no fields."""

    def read(self, path: str, fields: Mapping[str, str]) -> Report:
        """There is nothing to read.

        Raises:
            CarrierProtocolError: Always.
        """
        raise CarrierProtocolError("pages have no webhooks")

    def write(self, reply: Reply) -> Document:
        """Write nothing: nobody reads it."""
        return Document("", "text/plain")
