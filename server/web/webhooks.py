"""What the carrier posts to us: proved to be its own, and read; and where it went astray.

A webhook that the carrier has signed, but that came to a path which is none of ours or was signed
for another address, is refused like a forged one. In the log it is told apart: somebody has made a
mistake that callers notice, and can mend it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import structlog
import trio
from quart import request
from werkzeug.datastructures import MultiDict

from server.errors import CarrierProtocolError, ServerError
from server.headers import single
from server.logs import Sparing
from server.pace import Pace
from server.web.api import error_body

if TYPE_CHECKING:
    from server.app import OffhookApp

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SIGNATURE_HEADER = "X-Twilio-Signature"
FORM_TYPE = "application/x-www-form-urlencoded"
MAX_ASTRAY_BYTES = 8 * 1024
"""Nobody looks where a longer one was meant to go; the carrier's have one kilobyte or two."""
MAX_FIELDS = 200
"""Twilio's have some forty; what each costs to read and to sort does not depend on its length."""
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


def target_of(scope: Mapping[str, Any]) -> str:
    """Path and query exactly as requested: what the carrier has signed."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


async def _fields() -> MultiDict[str, str]:
    """The fields of the request at hand: of its form, or of its query if it is a GET.

    The carrier posts ``application/x-www-form-urlencoded``. A form of another kind has none: its
    fields need not even have names. One of more fields than any webhook has is not read.
    """
    is_post = request.method == "POST"
    if is_post and request.mimetype != FORM_TYPE:
        return MultiDict()
    content = cast(bytes, await request.get_data()) if is_post else request.query_string
    if content.count(b"&") >= MAX_FIELDS:
        return MultiDict()
    return await request.form if is_post else request.args


class Webhooks:
    """Reads the requests at hand that say they are the carrier's.

    Args:
        app: Whose webhooks they are; refusals are answered there from now on.
    """

    def __init__(self, app: OffhookApp) -> None:
        self._app = app
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
        app = self._app
        await request.get_data()  # kept, for another process may have to read it, too
        is_post = request.method == "POST"
        is_signed = single(request.headers, SIGNATURE_HEADER) is not None
        fields = await _fields() if is_signed else MultiDict()
        form = fields if is_post else None
        target = target_of(request.scope)
        if not app.verifier.verify_signature(target, request.headers, form):
            app.metrics.strangers_refused.labels("webhook-signature").inc()
            self._tell_unsigned(target, form, len(await request.get_data()))
            raise WebhookRefused("not signed by the carrier", status=403, kind="forbidden")
        app.carrier.check_fields(fields.items(multi=True))
        if not app.carrier.is_ours(fields):
            self._foreign.log(
                trio.current_time(),
                logger.warning,
                "webhook refused: it is about a call of another account, and TWILIO_ACCOUNT_SID"
                " is this one's",
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
        if request.url_rule is not None or request.method not in ("GET", "POST"):
            return None
        length = request.content_length or 0
        target = target_of(request.scope)
        if single(request.headers, SIGNATURE_HEADER) is None:
            return None
        if length + len(target) > MAX_ASTRAY_BYTES:
            return None
        if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
            return None
        if not self._looks.allows(trio.current_time()):
            return None
        is_post = request.method == "POST"
        fields = await _fields()
        form = fields if is_post else None
        signed_for = self._app.verifier.signed_for(target, request.headers, form)
        if signed_for is None:
            return None
        expected = self._app.public_url.rstrip("/") + _path_for(fields)
        self._app.metrics.strangers_refused.labels("webhook-path").inc()
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
            signed_for = self._app.verifier.signed_for(target, request.headers, form)
        if signed_for is None:
            message = "webhook refused: wrong or missing signature"
            self._forged.log(now, logger.warning, message, path=request.path)
        else:
            self._elsewhere.log(
                now,
                logger.warning,
                "webhook refused: it is signed by the carrier, but for another address",
                signed_for=signed_for[:300],
                expected=self._app.public_url.rstrip("/") + request.path,
                advice=ADVICE,
            )


def _path_for(fields: Mapping[str, str]) -> str:
    """The webhook that was probably meant, by what it says."""
    if "DialCallStatus" in fields or "ParentCallSid" in fields:
        return "/transfer-status"
    if "MachineDetectionDuration" in fields:
        return "/amd-status"
    if "CallbackSource" in fields or "SequenceNumber" in fields or "CallDuration" in fields:
        return "/call-status"
    return "/twiml"
