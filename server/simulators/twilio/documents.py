"""A call's documents followed verb by verb, as long as the call lasts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

import trio
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from server.carrier import CallStatus
from server.simulators.phone import SimulatedPhone, StreamEnd, new_sid
from server.simulators.twilio.call import SimulatedCall
from server.simulators.twilio.faults import Faults
from server.simulators.twilio.people import People
from server.simulators.twilio.reports import StatusReports
from server.simulators.twilio.socket import open_websocket
from server.simulators.twilio.webhooks import Webhooks, call_fields

ABRUPT = 1006
"""The close code of a connection that went without one (RFC 6455 section 7.1.5)."""


class _Leave(Exception):
    """Leave the document: the call is over, or goes on with another one."""


class DocumentFollower:
    """Does what one call's documents say.

    Args:
        call: The call, which has been answered.
        webhooks: Asked for further documents, and told how a ``<Dial>`` ends.
        people: Whom a ``<Dial>`` may reach.
        faults: Whether streams break off, and what becomes of their calls.
        reports: Has the server told how its streams are getting on, if it asked to be.
        dial_s: How long the two sides of a ``<Dial>`` talk.
    """

    def __init__(
        self,
        call: SimulatedCall,
        webhooks: Webhooks,
        people: People,
        faults: Faults,
        reports: StatusReports,
        dial_s: float,
    ) -> None:
        self._call = call
        self._webhooks = webhooks
        self._people = people
        self._faults = faults
        self._reports = reports
        self._dial_s = dial_s
        self._was_away = False  # on a <Dial> since the last stream

    async def follow(self, document: str, base_url: str) -> None:
        """Follow a document and those that REST sends after it, until the call is over."""
        call = self._call
        while True:
            with suppress(_Leave):
                await self._follow_verbs(document, base_url)
            order = call.take_document()
            if order is None:
                break
            call.note("redirected over REST")
            document, base_url = order.document, order.base_url

    async def _follow_verbs(self, document: str, base_url: str) -> None:
        """Do one document's verbs in order.

        Raises:
            _Leave: Something in it, or told over REST, ends it early.
        """
        call = self._call
        verbs = parse_twiml(document)
        if verbs is None:
            call.note("error 12100: document parse failure")
            return
        for verb in verbs:
            if call.is_ordered:
                raise _Leave
            match verb.tag:
                case "Connect":
                    await self._connect(verb)
                case "Start" if (found := verb.find("MediaFilter")) is not None:
                    call.note(f"filters {found.get('filterType')}")
                case "Say":
                    text = "".join(verb.itertext()).strip()
                    call.note(f"says: {text}")
                    await call.pause(0.06 * len(text))  # About 150 words a minute.
                case "Play":
                    call.note(f"plays: {(verb.text or '').strip()}")
                    await call.pause(1.0)
                case "Pause":
                    await call.pause(float(verb.get("length") or 1))
                case "Hangup" | "Reject":
                    call.note("hangs up")
                    raise _Leave
                case "Redirect":
                    url = urljoin(base_url, (verb.text or "").strip())
                    await self._go_to(url, {})
                case "Dial":
                    await self._dial(verb, base_url)
                case unknown:
                    call.note(f"warning 12200: verb {unknown} is not simulated")

    async def _go_to(self, url: str, more: Mapping[str, str]) -> None:
        """Fetch another document and follow it instead of the rest of this one."""
        document: str | None = None
        async with trio.open_nursery() as nursery:
            if not self._faults.updates_wait:
                nursery.start_soon(self._cancel_when_ordered, nursery.cancel_scope)
            document = await self._webhooks.fetch(self._call, url, more)
            nursery.cancel_scope.cancel("it is here")
        if document is not None:
            await self._follow_verbs(document, url)
        raise _Leave

    async def _cancel_when_ordered(self, scope: trio.CancelScope) -> None:
        await self._call.wait_ordered()
        scope.cancel("told over REST")

    async def _connect(self, verb: ElementTree.Element) -> None:
        call = self._call
        stream = verb.find("Stream")
        url = stream.get("url", "") if stream is not None else ""
        if stream is None or urlsplit(url).scheme not in ("ws", "wss") or urlsplit(url).query:
            call.note("error 31920: no stream with a wss address without a query")
            return
        parameters = {
            parameter.get("name", ""): parameter.get("value", "")
            for parameter in stream.findall("Parameter")
        }
        before = call.phones[-1] if call.phones else None
        was_away, self._was_away = self._was_away, False
        stays = not was_away and before is not None and before.end is StreamEnd.STOPPED
        if before is not None and (stays or before.end is StreamEnd.CLOSED):
            phone = before.on_another_stream(parameters)
        else:
            phone = SimulatedPhone(
                call.script,
                call_sid=call.call_sid,
                account_sid=call.account_sid,
                parameters=parameters,
            )
        is_cut = before is None and self._faults.cut_after_s is not None
        tell = partial(
            self._reports.report_stream, stream.get("statusCallback", ""), phone.stream_sid
        )
        try:
            async with open_websocket(url, self._webhooks.sign_upgrade(url)) as transport:
                call.add_phone(phone, url)
                tell("stream-started")
                async with trio.open_nursery() as nursery:
                    if is_cut:
                        nursery.start_soon(self._cut, phone)
                    end = await phone.run(transport)
                    nursery.cancel_scope.cancel("the stream is over")
                closed = transport.closed_by_peer
        except InvalidHandshake as error:
            call.note(f"error 31920: the handshake failed: {error}")
            tell("stream-error", "31920: the handshake failed")
            return
        except (OSError, ConnectionClosed, InvalidURI, TimeoutError) as error:
            call.note(f"error 31901: the server was not reached: {error}")
            tell("stream-error", "31901: the server was not reached")
            return
        is_abrupt = closed is None or closed[0] == ABRUPT
        if end is StreamEnd.CLOSED and is_abrupt:
            call.note("error 31903: the stream broke off")
            tell("stream-error", "31903: the stream broke off")
        else:
            tell("stream-stopped")
            call.note(f"stream {end}" + (f" {closed}" if end is StreamEnd.CLOSED else ""))
        if end is not StreamEnd.CLOSED or (is_abrupt and self._faults.abrupt_end_ends_call):
            raise _Leave
        if is_cut and not self._faults.comes_back:
            call.note("the server is not reached any more")
            await call.pause(math.inf)

    async def _cut(self, phone: SimulatedPhone) -> None:
        """Break the stream off while the agent speaks."""
        assert self._faults.cut_after_s is not None
        await phone.sounded.wait()
        await trio.sleep(self._faults.cut_after_s)
        await phone.cut()

    async def _dial(self, verb: ElementTree.Element, base_url: str) -> None:
        """Call somebody else and let the two talk for a while."""
        call = self._call
        number = "".join(verb.itertext()).strip()
        other = self._people.at(number)
        call.note(f"dials {number}")
        self._was_away = True
        rings_s = self._people.ring_s(other)
        ring_timeout_s = float(verb.get("timeout") or 30)
        await call.pause(min(rings_s, ring_timeout_s))
        outcome = other.outcome if rings_s <= ring_timeout_s else CallStatus.NO_ANSWER
        duration_s = 0.0
        if outcome is CallStatus.IN_PROGRESS and not call.is_ordered:
            call.note("bridged")
            await self._report_answer(verb)
            outcome, duration_s = CallStatus.COMPLETED, self._dial_s
            await call.pause(duration_s)
        if call.is_ordered:
            raise _Leave
        call.note(f"dialled: {outcome}")
        if action := verb.get("action"):
            more = {
                "DialCallStatus": outcome.value,
                "DialCallSid": new_sid("CA"),
                "DialCallDuration": str(math.ceil(duration_s)),
            }
            await self._go_to(urljoin(base_url, action), more)

    async def _report_answer(self, dial: ElementTree.Element) -> None:
        """Tell whoever asked to be told that the other number has answered."""
        call = self._call
        number = dial.find("Number")
        if number is None or "answered" not in number.get("statusCallbackEvent", "").split():
            return
        if url := number.get("statusCallback"):
            leg = {
                "CallSid": new_sid("CA"),
                "ParentCallSid": call.call_sid,
                "To": "".join(number.itertext()).strip(),
                "Direction": "outbound-dial",
                "CallStatus": CallStatus.IN_PROGRESS.value,
            }
            await self._webhooks.post(call, url, call_fields(call) | leg)


def parse_twiml(document: str) -> list[ElementTree.Element] | None:
    """The verbs of a document, or None if it is none."""
    try:
        root = ElementTree.fromstring(document)
    except ElementTree.ParseError:
        return None
    return list(root) if root.tag == "Response" else None


def redirect_to(url: str) -> str:
    """A document that only says where the real one is."""
    response = ElementTree.Element("Response")
    ElementTree.SubElement(response, "Redirect").text = url
    return ElementTree.tostring(response, encoding="unicode")
