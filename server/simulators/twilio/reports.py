"""Status callbacks: how a call and its streams get on, told to the server if it asked to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime

import trio

from server.carrier import CallStatus
from server.simulators.twilio.call import SimulatedCall
from server.simulators.twilio.faults import Faults
from server.simulators.twilio.webhooks import Webhooks, call_fields

_SIP_CODES = {
    CallStatus.COMPLETED: "200",
    CallStatus.BUSY: "486",
    CallStatus.NO_ANSWER: "487",
    CallStatus.CANCELED: "487",
    CallStatus.FAILED: "404",
}


@dataclass(frozen=True, slots=True)
class _Report:
    """A status, and when the call had it."""

    status: CallStatus
    happened_at: float
    timestamp: str


@dataclass(frozen=True, slots=True)
class _StreamReport:
    """What has happened to a media stream, and who wants to know."""

    url: str
    fields: Mapping[str, str]


class StatusReports:
    """Changes one call's status and has the server told, if it asked to be."""

    def __init__(self, call: SimulatedCall, webhooks: Webhooks, faults: Faults) -> None:
        self._call = call
        self._webhooks = webhooks
        self._faults = faults
        # Unbounded: a slow webhook delays the reports after it, never the call.
        self._to_reports, self._reports = trio.open_memory_channel[_Report | _StreamReport](
            math.inf
        )

    def report(self, status: CallStatus, event: str) -> None:
        """The call has come to ``status``, which is told to those who asked for ``event``."""
        self._call.set_status(status)
        request = self._call.request
        if request.status_url and event in request.status_events:
            timestamp = format_datetime(datetime.now(UTC))
            self._to_reports.send_nowait(_Report(status, trio.current_time(), timestamp))

    def report_stream(self, url: str, stream_sid: str, event: str, error: str = "") -> None:
        """A media stream has begun or is over, which is told to an address, if there is one.

        Args:
            url: The ``statusCallback`` of the ``<Stream>``, or "".
            stream_sid: Which stream.
            event: ``stream-started``, ``stream-stopped`` or ``stream-error``.
            error: What was wrong, if anything.
        """
        if not url:
            return
        fields = {
            "AccountSid": self._call.account_sid,
            "CallSid": self._call.call_sid,
            "StreamSid": stream_sid,
            "StreamEvent": event,
            "Timestamp": datetime.now(UTC).isoformat(),
        }
        if error:
            fields["StreamError"] = error
        self._to_reports.send_nowait(_StreamReport(url, fields))

    def __enter__(self) -> StatusReports:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing more to report."""
        self._to_reports.close()

    async def post(self) -> None:
        """Post status callbacks one after the other, in order, until there are no more."""
        posted: list[tuple[CallStatus, dict[str, str]]] = []
        async for report in self._reports:
            if not self._faults.callbacks:
                continue
            if isinstance(report, _StreamReport):
                await self._webhooks.post(self._call, report.url, report.fields)
                continue
            await trio.sleep_until(report.happened_at + self._faults.callback_delay_s)
            fields = self._fields(report, number=len(posted))
            posted.append((report.status, fields))
            for _ in range(self._faults.callback_copies):
                await self._post(report.status, fields)
        if self._faults.callback_copies > 1:
            for status, fields in reversed(posted):
                await self._post(status, fields)

    def _fields(self, report: _Report, *, number: int) -> dict[str, str]:
        fields = {
            **call_fields(self._call),
            "CallStatus": report.status.value,
            "SequenceNumber": str(number),
            "Timestamp": report.timestamp,
            "CallbackSource": "call-progress-events",
        }
        if report.status.is_final:
            duration_s = math.ceil(self._call.duration_s)
            fields["CallDuration"] = str(duration_s)
            fields["Duration"] = str(math.ceil(duration_s / 60))
            fields["SipResponseCode"] = _SIP_CODES[report.status]
        return fields

    async def _post(self, status: CallStatus, fields: Mapping[str, str]) -> None:
        status_url = self._call.request.status_url
        assert status_url is not None  # otherwise nothing is reported
        answer = await self._webhooks.post(self._call, status_url, fields)
        self._call.reports.append((status, answer.status_code if answer is not None else None))
