"""For web pages that call: a call and its single-use ticket, and another when its line is lost."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from quart import Quart, g, request
from quart_schema import document_response, validate_request

from server.carrier import BROWSER
from server.carrier.webhooks import ConnectStream, Reply, SayAndEndCall
from server.dialogue.endings import EndReason
from server.errors import CallRefused
from server.headers import single
from server.service import Service
from server.web.api import Answer, ErrorBody, error_body, invalid, refusal
from server.web.browser.words import (
    RESUME,
    START,
    BrowserCallGoesOn,
    BrowserCallMade,
    CallFromBrowser,
    ResumeFromBrowser,
)
from server.web.calls_api import NoSuchAgent, make_known, may_fail, who_speaks
from server.web.cross_origin import parts_of
from server.web.elsewhere import Elsewhere
from server.web.media_door import PAGES
from server.web.path_prefix import call_path, prefix_of


def add_page_calls(app: Quart, service: Service, elsewhere: Elsewhere) -> None:
    """Add the routes for web pages that call."""

    @app.post(START)
    @validate_request(CallFromBrowser)
    @document_response(BrowserCallMade, 201)
    @may_fail(400, 401, 409, 413, 422, 429, 503)
    async def call_from_browser(data: CallFromBrowser) -> Any:
        """Have an agent ready for a web page, which opens a WebSocket with the ticket."""
        if data.events_url is not None and (wrong := service.events.url_problem(data.events_url)):
            return invalid({"events_url": wrong}).response()
        answer, _ = await elsewhere.new_call(lambda: begin(data))
        return answer.response()

    async def begin(data: CallFromBrowser) -> tuple[Answer, bool]:
        pages = service.accounts.pages
        expires_s = service.settings.browser_ticket_ttl_s
        call_sid = pages.new_call_sid()
        try:
            agent = await who_speaks(service, data, "inbound")
            reply = await service.calls.answer(
                call_sid,
                BROWSER,
                agent,
                client=g.client,
                max_duration_s=data.max_duration_s,
                metadata=data.metadata,
                answer_timeout_s=expires_s,
                wide=data.quality == "wide",
            )
        except NoSuchAgent as error:
            return invalid({error.field: str(error)}), False
        except CallRefused as refused:
            service.metrics.calls_refused.labels(refused.reason).inc()
            return refusal(refused), False
        assert isinstance(reply, ConnectStream)  # of a name that nobody has had before
        comes_back_s = 0.0
        if (call := service.calls.register.get_live(call_sid)) is not None:
            comes_back_s = call.conversation.options.comes_back_s
        await make_known(service, call_sid)
        made = BrowserCallMade(
            call_sid=call_sid,
            url=stream_url(),
            ticket=reply.ticket,
            expires_s=expires_s,
            key=pages.key_of(call_sid),
            comes_back_s=comes_back_s,
            quality=data.quality,
            carrier=pages.name,
        )
        location = call_path(service.settings.public_url, call_sid)
        headers = {"Location": location, "Cache-Control": "no-store"}
        return Answer(made.model_dump(), 201, headers), True

    @app.post(RESUME)
    @validate_request(ResumeFromBrowser)
    @document_response(BrowserCallGoesOn)
    @document_response(ErrorBody, 403)
    @may_fail(400, 413, 422, 503)
    async def resume_from_browser(data: ResumeFromBrowser) -> Any:
        """Give a page whose stream is lost another ticket, if its call goes on; or end the call.

        It shows its call's own key, and needs none of the API's.
        """
        if not service.accounts.pages.is_key_of(data.call_sid, data.key):
            service.metrics.strangers_refused.labels("page-key").inc()
            return error_body("forbidden", "this is not the key of this call"), 403
        theirs, is_orphan = await elsewhere.in_progress(data.call_sid)
        if theirs is not None:
            return theirs
        call = service.calls.register.get_live(data.call_sid)
        if data.hang_up and call is not None:
            call.end(EndReason.CALLER_HUNG_UP)
            service.accounts.pages.hung_up(data.call_sid)
            return BrowserCallGoesOn(over=True).model_dump(), 200, {"Cache-Control": "no-store"}
        reply = await service.calls.resume(
            data.call_sid, service.agent, is_orphan=is_orphan, by_caller=True
        )
        return _written(reply).model_dump(), 200, {"Cache-Control": "no-store"}

    def _written(reply: Reply) -> BrowserCallGoesOn:
        match reply:
            case ConnectStream(ticket):
                return BrowserCallGoesOn(over=False, url=stream_url(), ticket=ticket)
            case SayAndEndCall(text, language):
                return BrowserCallGoesOn(over=True, say=text, language=language)
            case _:
                return BrowserCallGoesOn(over=True)

    def stream_url() -> str:
        """Where the page at hand opens its stream: at this server as the page has reached it."""
        settings = service.settings
        path = f"{service.cluster.path}{PAGES}"
        if settings.streams_at is not None:
            return f"{settings.streams_at.rstrip('/')}{path}"
        # It is empty of a name that is none by the rules, such as one with an underscore.
        host = request.host or single(request.headers, "Host") or ""
        public = urlsplit(settings.public_url or "")
        scheme, netloc = public.scheme or request.scheme, public.netloc or host
        page = parts_of(single(request.headers, "Origin") or "")
        # What a proxy in front speaks is the page's own scheme; https is not left for less.
        is_here = bool(page.netloc) and page.netloc == host
        if is_here and (host != public.netloc or page.scheme == "https"):
            scheme, netloc = page.scheme, host
        scheme = "wss" if scheme == "https" else "ws"
        return f"{scheme}://{netloc}{prefix_of(settings.public_url)}{path}"
