"""A call's life: it rings, is answered, follows its documents, ends and is reported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trio

from server.carrier import CallStatus
from server.simulators.phone import two_channel_wav
from server.simulators.twilio.call import EndCall, MachineDetection, SimulatedCall
from server.simulators.twilio.documents import DocumentFollower, parse_twiml, redirect_to
from server.simulators.twilio.faults import Faults
from server.simulators.twilio.people import People
from server.simulators.twilio.reports import StatusReports
from server.simulators.twilio.webhooks import Webhooks

AMD_AFTER_BEEP_S = 0.4
"""How long after the beep the verdict comes."""


@dataclass(frozen=True, slots=True)
class CallLife:
    """Leads one call from ringing to its recording."""

    call: SimulatedCall
    webhooks: Webhooks
    people: People
    faults: Faults
    dial_s: float
    """How long the two sides of a ``<Dial>`` talk."""
    recordings_dir: Path | None
    """Where the recording is written; None writes none."""

    async def live(self) -> None:
        """Lead the call to its end, and report and record it."""
        call = self.call
        reports = StatusReports(call, self.webhooks, self.faults)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reports.post)
            with reports:
                final = await (
                    self._take_in(reports)
                    if call.direction == "inbound"
                    else self._ring_out(reports)
                )
                call.ended_at = trio.current_time()
                reports.report(final, "completed")
        await self._record()
        call.finish()

    async def _ring_out(self, reports: StatusReports) -> CallStatus:
        call, request = self.call, self.call.request
        reports.report(CallStatus.INITIATED, "initiated")
        reports.report(CallStatus.RINGING, "ringing")
        rings_s = self.people.ring_s(call.script)
        await call.pause(min(rings_s, request.ring_timeout_s))
        if call.is_to_end:
            return CallStatus.CANCELED
        if rings_s > request.ring_timeout_s:
            return CallStatus.NO_ANSWER
        if call.script.outcome is not CallStatus.IN_PROGRESS:
            return call.script.outcome
        call.answered_at = trio.current_time()
        reports.report(CallStatus.IN_PROGRESS, "answered")
        if request.twiml:
            await self._talk(request.twiml, "", reports)
        else:
            assert request.voice_url is not None  # who places a call gives one of the two
            await self._talk(redirect_to(request.voice_url), request.voice_url, reports)
        return CallStatus.COMPLETED

    async def _take_in(self, reports: StatusReports) -> CallStatus:
        call, voice_url = self.call, self.call.request.voice_url
        assert voice_url is not None  # a number that is called has one
        call.set_status(CallStatus.RINGING)
        document = await self.webhooks.fetch(call, voice_url)
        if document is None:
            return CallStatus.FAILED
        verbs = parse_twiml(document)
        if verbs and verbs[0].tag == "Reject":
            call.note("rejected")
            busy = verbs[0].get("reason") == "busy"
            return CallStatus.BUSY if busy else CallStatus.NO_ANSWER
        if call.is_to_end:
            return CallStatus.CANCELED
        call.answered_at = trio.current_time()
        call.set_status(CallStatus.IN_PROGRESS)
        await self._talk(document, voice_url, reports)
        return CallStatus.COMPLETED

    async def _talk(self, document: str, base_url: str, reports: StatusReports) -> None:
        """Follow the call's documents, in its time limit and while its callee is judged."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time_limit)
            if self.call.request.detection is not None:
                nursery.start_soon(self._detect_machine, self.call.request.detection)
            follower = DocumentFollower(
                self.call, self.webhooks, self.people, self.faults, reports, self.dial_s
            )
            await follower.follow(document, base_url)
            nursery.cancel_scope.cancel()

    async def _keep_time_limit(self) -> None:
        await self.call.wait_time_limit()
        self.call.note("time limit")
        self.call.order(EndCall())

    async def _detect_machine(self, detection: MachineDetection) -> None:
        """Asynchronous answering machine detection: one verdict, while the call goes on."""
        call, script, began = self.call, self.call.script, trio.current_time()
        verdict = "unknown"
        with trio.move_on_after(detection.timeout_s):
            if detection.mode == "Enable" and script.answered_by.startswith("machine"):
                await trio.sleep(3.0)
                verdict = "machine_start"
            elif script.verdict_s is not None:
                await trio.sleep(script.verdict_s)
                verdict = script.answered_by
            else:
                phone = await call.wait_stream()
                await phone.beeped.wait()
                await trio.sleep(AMD_AFTER_BEEP_S)
                verdict = script.answered_by
        call.answered_by = verdict
        call.note(f"machine detection says: {verdict}")
        took_ms = round((trio.current_time() - began) * 1000)
        fields = {
            "CallSid": call.call_sid,
            "AccountSid": call.account_sid,
            "AnsweredBy": verdict,
            "MachineDetectionDuration": str(took_ms),
        }
        await self.webhooks.post(call, detection.url, fields)

    async def _record(self) -> None:
        call = self.call
        if self.recordings_dir is None or not call.phones:
            return
        path = self.recordings_dir / f"{call.call_sid}-phone.wav"
        await trio.Path(self.recordings_dir).mkdir(parents=True, exist_ok=True)
        await trio.Path(path).write_bytes(two_channel_wav(call.said, call.heard))
        call.recording_path = path
