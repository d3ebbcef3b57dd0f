"""What the protocols of all carriers' media streams do alike, whatever their messages look like."""

from __future__ import annotations

import msgspec
import structlog

from server.carrier import StreamCounts
from server.errors import CarrierProtocolError

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_MALFORMED = 50
"""So many unreadable messages on one stream, a second's worth, and it is no carrier's stream."""
# What msgspec raises for text that is no such message: not JSON or not the fields wanted, lone
# surrogates, nested too deep.
UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


class StreamProtocol:
    """One media stream without a socket.

    What can be ignored is ignored and counted, so that one bad message never ends a call.

    Attributes:
        stream_sid: The carrier's name for the stream; empty before it has started.
        counts: What has been seen so far.
    """

    malformed_line = "malformed carrier message ignored"
    """What the log says of the first message that cannot be read."""

    def __init__(self) -> None:
        self.stream_sid = ""
        self.counts = StreamCounts()
        self._malformed_told = False

    def _ignore_malformed(self, cause: str) -> None:
        self.counts.malformed += 1
        # Before its start it may be anybody's, who is to write nothing into the log.
        if self.stream_sid and not self._malformed_told:
            self._malformed_told = True
            logger.warning(self.malformed_line, cause=cause)
        if self.counts.malformed >= MAX_MALFORMED:
            raise CarrierProtocolError(
                f"{self.counts.malformed} malformed messages, the last one {cause}",
                stream_sid=self.stream_sid or None,
            )
