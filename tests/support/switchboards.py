"""The calls of a server without its HTTP."""

from __future__ import annotations

from dataclasses import fields

from prometheus_client import CollectorRegistry

from server.call.options import CallOptions
from server.metrics import Metrics
from server.switchboard.admission import Admission, Limits
from server.switchboard.calls import Calls
from server.switchboard.making import CallMaker
from tests.support.fakes import MemoryCarrier, MemoryMedia, MemoryModel

NUMBER = "+15005550006"


def make_calls(**settings) -> Calls:
    metrics = Metrics(CollectorRegistry())
    limits = Limits(**settings.pop("limits", {}))
    model = settings.pop("model", None) or MemoryModel()
    options = settings.pop("options", CallOptions())
    of_maker = {each.name for each in fields(CallMaker)} & settings.keys()
    own = {name: settings.pop(name) for name in of_maker}
    return Calls(
        carrier=settings.pop("carrier", None) or MemoryCarrier(),
        maker=CallMaker(model, metrics, options, **own),
        admission=Admission(limits, metrics),
        **settings,
    )


def started(calls: Calls, media: MemoryMedia, call_sid: str = "CA1") -> None:
    media.event(media.start(call_sid, calls.carrier.ticket))


async def serve_stream(calls: Calls, media: MemoryMedia, address: str = "") -> None:
    """What the door does with a media socket: find its call, and serve it until it is over."""
    if (claim := await calls.claim(media, address)) is not None:
        await claim.call.serve(media, claim.started)
