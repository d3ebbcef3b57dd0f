"""What the carrier posts to us: proved to be its own, and read; and where it went astray.

A webhook that the carrier has signed, but that came to a path which is none of ours or was signed
for another address, is refused like a forged one. In the log it is told apart: somebody has made a
mistake that callers notice, and can mend it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

import structlog
import trio
from quart import Quart, Response, request
from quart_schema import hide
from werkzeug.datastructures import MultiDict

from server.carrier import (
    NOT_REACHED,
    MachineVerdict,
    ResumeRequest,
    StatusUpdate,
    TransferUpdate,
    VoiceRequest,
)
from server.carrier.webhooks import EndCall, Reply
from server.cluster.registry import RegistryAway
from server.errors import CarrierProtocolError, ServerError
from server.logs import Sparing
from server.pace import Pace
from server.records.database.tables import FIRST_GENERATION
from server.service import Service
from server.switchboard.rescue import CallLost
from server.web.api import error_body
from server.web.elsewhere import Elsewhere
from server.web.http_request import content_of, target_of
from server.web.path_prefix import NAMED
from server.web.static.files import FRONT

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FORM_TYPE = "application/x-www-form-urlencoded"
MAX_ASTRAY_BYTES = 8 * 1024
"""Nobody looks where a longer one was meant to go; the carrier's have one kilobyte or two."""
MAX_FIELDS = 200
"""A carrier's have some forty; what one costs to read and to sort is not told by its length."""
REPORT_TIMEOUT_S = 5.0
"""For another process of this server to take what the carrier reports: it may be stopped, and the
call another's by now; the carrier waits for fifteen seconds."""
MAX_LOOKS_PER_S = 10
"""To find out what a wrong signature was made for takes many tries, and anybody may ask for it."""
ADVICE = "make PUBLIC_URL and the address in the carrier's settings the same"


class WebhookRefused(ServerError):
    """A request to a webhook that is not the carrier's, or that says nothing which can be done.

    Attributes:
        status: The HTTP status it is answered with.
        kind: A short stable word for it.
    """

    def __init__(self, message: str, *, status: int, kind: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


def _fields(content: bytes) -> MultiDict[str, str]:
    """The fields of the request at hand: of its form, or of its query if it is a GET.

    The carrier posts ``application/x-www-form-urlencoded``. A form of another kind has none: its
    fields need not even have names. One of more fields than any webhook has is not read, nor is
    what is no text.

    Args:
        content: The request's body.
    """
    is_post = request.method == "POST"
    if is_post and request.mimetype != FORM_TYPE:
        return MultiDict()
    if not is_post:
        content = request.query_string
    if content.count(b"&") >= MAX_FIELDS:
        return MultiDict()
    if not is_post:
        return request.args
    try:
        return MultiDict(parse_qsl(content.decode(), keep_blank_values=True))
    except UnicodeDecodeError:
        return MultiDict()


class Reader:
    """Reads the requests at hand that say they are the carrier's.

    Args:
        app: Where refusals are answered from now on.
        service: Whose webhooks they are.
    """

    def __init__(self, app: Quart, service: Service) -> None:
        self._service = service
        self._forged = Sparing()
        self._elsewhere = Sparing()
        self._astray = Sparing()
        self._foreign = Sparing()
        self._nonsense = Sparing()
        self._looks = Pace(MAX_LOOKS_PER_S, MAX_LOOKS_PER_S)

        @app.errorhandler(WebhookRefused)
        async def refuse(refusal: WebhookRefused) -> Any:
            return error_body(refusal.kind, str(refusal)), refusal.status

        @app.errorhandler(CarrierProtocolError)
        async def refuse_nonsense(error: CarrierProtocolError) -> Any:
            # What it says stays out of the log; the carrier's debugger shows our answer.
            self._nonsense.log(
                trio.current_time(),
                logger.warning,
                "webhook refused: it is signed by the carrier, but cannot be read",
                path=request.path,
            )
            return error_body("bad-request", error.reason), 400

    async def read(self) -> dict[str, str]:
        """The fields of the request at hand: of its form, or of its query if it is a GET.

        Raises:
            WebhookRefused: The carrier has not signed it, or it is about another account.
            CarrierProtocolError: It is signed, but its fields are not those that were signed.
        """
        webhooks = self._service.accounts.webhooks
        content = await content_of(request)  # kept, for another process may have to read it, too
        is_post = request.method == "POST"
        is_signed = webhooks.is_signed(request.headers)
        fields = _fields(content) if is_signed else MultiDict()
        form = fields if is_post else None
        target = target_of(request.scope)
        if not webhooks.verify(target, request.headers, form):
            self._service.metrics.strangers_refused.labels("webhook-signature").inc()
            self._tell_unsigned(target, form, len(content))
            raise WebhookRefused("not signed by the carrier", status=403, kind="forbidden")
        webhooks.check(fields)
        if not webhooks.is_ours(fields):
            self._foreign.log(
                trio.current_time(),
                logger.warning,
                "webhook refused: it is about a call of another account than the settings name",
                path=request.path,
            )
            message = "this server answers for another account"
            raise WebhookRefused(message, status=403, kind="forbidden")
        return fields.to_dict()

    async def find_astray(self) -> Any:
        """Refuse, and tell of, what the carrier has signed and sent to a path that has no route.

        Returns:
            The answer; None for all other requests.
        """
        rule = request.url_rule
        if (rule is not None and rule.rule != FRONT) or request.method not in ("GET", "POST"):
            return None
        length = request.content_length or 0
        target = target_of(request.scope)
        webhooks = self._service.accounts.webhooks
        if not webhooks.is_signed(request.headers):
            return None
        if length + len(target) > MAX_ASTRAY_BYTES:
            return None
        if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
            return None
        if not self._looks.allows(trio.current_time()):
            return None
        is_post = request.method == "POST"
        fields = _fields(await content_of(request) if is_post else b"")
        form = fields if is_post else None
        signed_for = webhooks.signed_for(target, request.headers, form)
        if signed_for is None:
            return None
        expected = self._service.accounts.public_url.rstrip("/") + webhooks.path_for(fields)
        self._service.metrics.strangers_refused.labels("webhook-path").inc()
        self._astray.log(
            trio.current_time(),
            logger.warning,
            "webhook refused: it is signed by the carrier, but there is none at this path",
            signed_for=signed_for[:300],
            expected=expected,
            advice=ADVICE,
        )
        return error_body("not-found", "there is no webhook at this path"), 404

    def _tell_unsigned(self, target: str, form: Mapping[str, str] | None, body_bytes: int) -> None:
        """Log a webhook whose signature is wrong, and whether it is right for another address."""
        now, signed_for = trio.current_time(), None
        is_short = body_bytes + len(target) <= MAX_ASTRAY_BYTES
        if is_short and self._looks.allows(now):
            signed_for = self._service.accounts.webhooks.signed_for(target, request.headers, form)
        if signed_for is None:
            message = "webhook refused: wrong or missing signature"
            self._forged.log(now, logger.warning, message, path=request.path)
        else:
            self._elsewhere.log(
                now,
                logger.warning,
                "webhook refused: it is signed by the carrier, but for another address",
                signed_for=signed_for[:300],
                expected=self._service.accounts.public_url.rstrip("/") + target.partition("?")[0],
                advice=ADVICE,
            )


def add_webhooks(app: Quart, service: Service, elsewhere: Elsewhere) -> None:
    """Add the carrier's webhooks at the paths that it brings, and tell of those that went astray.

    Each is answered by the process that has the call it is about.
    """
    reader = Reader(app, service)
    app.before_request(reader.find_astray)

    @hide
    async def answer() -> Any:
        fields = await reader.read()
        assert request.url_rule is not None
        match service.accounts.webhooks.read(request.url_rule.rule, fields):
            case VoiceRequest() as asked:
                return await go_on(asked) if not asked.begins else await begin(asked)
            case ResumeRequest() as asked:
                return await resume(asked)
            case StatusUpdate() as update:
                return await tell_status(update)
            case MachineVerdict() as verdict:
                return await tell_machine(verdict)
            case TransferUpdate() as transfer:
                return await tell_transfer(transfer)

    for path in service.accounts.webhook_paths:
        app.add_url_rule(path, path, answer, methods=["GET", "POST"])

    def document(reply: Reply) -> Response:
        written = service.accounts.webhooks.write(reply)
        return Response(written.text, content_type=written.content_type)

    async def go_on(asked: VoiceRequest) -> Any:
        if (theirs := await elsewhere.owner(asked.call_sid)) is not None:
            return theirs
        return document(await service.calls.go_on(asked, service.agent))

    async def resume(asked: ResumeRequest) -> Any:
        theirs, is_orphan = await elsewhere.in_progress(asked.call_sid)
        if theirs is not None:
            return theirs
        resumed = service.calls.resume(asked.call_sid, service.agent, is_orphan=is_orphan)
        return document(await resumed)

    async def has_ended_here(call_sid: str) -> bool:
        """Whether a call has ended here of which no more is remembered, and is no other's since."""
        register, cluster = service.calls.register, service.cluster
        if register.get(call_sid) is not None or not register.has_ended(call_sid):
            return False
        with suppress(RegistryAway):
            holding = await cluster.registry.owner(call_sid)
            return holding is None or holding.member == cluster.me
        return True

    async def begin(asked: VoiceRequest) -> Any:
        call_sid, calls = asked.call_sid, service.calls
        if elsewhere.may_be_asked and await has_ended_here(call_sid):
            # To claim it would make it ours anew, and nothing would end it.
            return document(calls.register.end_of(call_sid))
        try:
            generation = await elsewhere.for_named_call(call_sid)
        except CallLost as lost:
            is_orphan = not lost.has_ended
            return document(await calls.resume(call_sid, service.agent, is_orphan=is_orphan))
        if isinstance(generation, Response):
            return generation
        call = calls.register.get_live(call_sid)
        if call is not None and call.conversation.is_lost and generation > FIRST_GENERATION:
            # It had begun in another process, which is gone.
            return document(await calls.resume(call_sid, service.agent))
        service.cluster.new_calls.take(request.scope)
        try:
            if await calls.register.was_over(call_sid, generation):
                # Whoever asks has kept a request of the carrier's from before we began.
                service.cluster.release(call_sid, generation)
                reply: Reply = EndCall()
            else:
                reply = await service.begin_call(asked, generation=generation)
        except BaseException:
            # Whoever has asked is gone, as a rule. Should somebody ask again, it begins then.
            if calls.register.get(call_sid) is None:
                service.cluster.release(call_sid, generation, has_begun=False)
            raise
        finally:
            service.cluster.new_calls.answered()
        return document(reply)

    async def tell_status(update: StatusUpdate) -> Any:
        theirs, holding = await elsewhere.look_up(update.call_sid, timeout_s=REPORT_TIMEOUT_S)
        if theirs is not None:
            return theirs
        is_anybodys = holding is not None or service.calls.register.get(update.call_sid) is not None
        if not is_anybodys and NAMED not in request.scope:
            # It can overtake the answer to a dial request, and any process may have made that.
            await elsewhere.everyone()
        service.calls.update_status(update)
        return "", 204

    async def tell_machine(verdict: MachineVerdict) -> Any:
        theirs = await elsewhere.owner(verdict.call_sid, timeout_s=REPORT_TIMEOUT_S)
        if theirs is not None:
            return theirs
        service.calls.update_machine(verdict)
        return "", 204

    async def tell_transfer(update: TransferUpdate) -> Any:
        theirs, is_orphan = await elsewhere.in_progress(update.call_sid)
        if theirs is not None:
            return theirs
        if is_orphan and update.wants_document and update.status in NOT_REACHED:
            return document(
                await service.calls.resume(update.call_sid, service.agent, is_orphan=True)
            )
        reply = await service.calls.update_transfer(update, service.agent)
        return document(reply) if update.wants_document else ("", 204)
