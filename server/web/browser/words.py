"""What pages that call send and get, and where: models, as :mod:`server.web.api` has the others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.carrier import BROWSER
from server.web.api import MakeCall

START = "/calls/browser"
RESUME = "/calls/browser/resume"


class CallFromBrowser(MakeCall):
    """What ``POST /calls/browser`` takes: all that ``/make-call`` does, but a number."""

    destination_number: Literal["browser"] = BROWSER  # type: ignore[assignment]
    quality: Literal["telephone", "wide"] = "telephone"
    """Mu-law at 8 kHz, or 16 kHz to the model and 24 kHz from it."""


class BrowserCallMade(BaseModel):
    """What a page needs to begin its call, and to go on with it."""

    call_sid: str
    url: str
    """Where its WebSocket leads."""
    ticket: str
    """What that shows at its start: once, within ``expires_s``."""
    expires_s: float
    key: str
    """What the page shows to be given another ticket, or to hang up without a stream."""
    comes_back_s: float
    """How long the call may be there for the page after its line was lost; 0 if not at all."""
    quality: str
    carrier: str


class ResumeFromBrowser(BaseModel):
    """What a page says that has no stream: its line was lost, or it has not called yet."""

    model_config = ConfigDict(extra="forbid")

    call_sid: Annotated[str, Field(max_length=64)]
    key: Annotated[str, Field(max_length=128)]
    hang_up: bool = False
    """Whether the call is to end, rather than to go on."""


class BrowserCallGoesOn(BaseModel):
    """How a call goes on whose stream is lost."""

    over: bool
    url: str | None = None
    ticket: str | None = None
    say: str | None = None
    """The last words of a call that has failed."""
    language: str | None = None
