"""What clients of the HTTP API send and get: models and field-level errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from quart import current_app

from server.agent.agent import Agent
from server.carrier import MAX_CALL_SID_CHARS
from server.dialogue.endings import EndReason
from server.errors import CallRefused
from server.logs import masked
from server.records.waveform import MAX_POINTS
from server.records.words import Cursor, Wanted
from server.settings.events import MAX_URL_CHARS
from server.settings.numbers import e164


def _cursor(text: str | None) -> str | None:
    if text is not None:
        Cursor.parse(text)
    return text


MAKE_CALL = "/make-call"
MAX_PROMPT_CHARS = 32_000
MAX_GREETING_CHARS = 4_000
MAX_ASKED_S = 1e9
DAY_S = 86_400.0
MAX_METADATA = 32
MAX_METADATA_CHARS = 1_000
"""Of a name, and of what it stands for."""
MAX_MEMBERS = 2 * MAX_METADATA
"""Of an object that is looked at member by member: whoever says a little too much is told what."""
MAX_FIELDS_TOLD = 32
"""Of those that are wrong; there are hardly as many that could be."""
_MAX_NAME_CHARS = 100
"""Of a name that somebody else has made up, where they are told about it."""
FAILURES = tuple(reason.value for reason in EndReason if reason.is_failure)
_Fact = Annotated[str, Field(max_length=MAX_METADATA_CHARS)]


class MakeCall(BaseModel):
    """What ``POST /make-call`` takes: a number, and what is different about this call's agent."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    destination_number: Annotated[
        str,
        Field(description="E.164, such as +584125551234", max_length=40, examples=["+15005550006"]),
        AfterValidator(e164),  # behind the bound: it walks what it is given
    ]
    prompt: Annotated[str | None, Field(max_length=MAX_PROMPT_CHARS)] = None
    greeting: Annotated[str | None, Field(max_length=MAX_GREETING_CHARS)] = None
    voice: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    language: Annotated[str | None, Field(max_length=35, pattern=r"^[A-Za-z]{2,3}(-\w+)*$")] = None
    metadata: Annotated[dict[_Fact, _Fact] | None, Field(max_length=MAX_METADATA)] = None
    max_duration_s: Annotated[float | None, Field(gt=0, le=14_400)] = None
    agent: Annotated[str | None, Field(max_length=64, description="Who speaks, by name")] = None
    variables: Annotated[
        dict[_Fact, _Fact] | None,
        Field(max_length=MAX_METADATA, description="What {{name}} stands for in the agent's texts"),
    ] = None
    events_url: Annotated[str | None, Field(max_length=MAX_URL_CHARS)] = None
    """Who is told of this call, in the place of ``EVENTS_URL``."""

    def as_content(self) -> bytes:
        """The request as an ``Idempotency-Key`` stands for it; what has come since is left out."""
        since = {
            name for name in ("agent", "variables", "events_url") if getattr(self, name) is None
        }
        return self.model_dump_json(exclude=since).encode()

    def of_this_call(self, agent: Agent) -> Agent:
        """The agent with this call's differences."""

        names = ("prompt", "greeting", "voice", "language", "events_url")
        own = {name: getattr(self, name) for name in names}
        if self.greeting is not None:
            own |= {"greeting_text": "", "greeting_audio": b""}
        return replace(agent, **{name: value for name, value in own.items() if value is not None})


class CallMade(BaseModel):
    """The answer to an accepted ``POST /make-call``."""

    call_sid: str
    status: str
    carrier: str


class Draw(BaseModel):
    """What ``GET /calls/{call_sid}/waveform`` takes."""

    points: Annotated[int, Field(ge=1, le=MAX_POINTS)] = 2_000
    part: Annotated[int, Field(ge=1, le=99)] = 1


class Waveform(BaseModel):
    """A recording as it is drawn, in the form of audiowaveform's version 2."""

    version: int
    channels: int
    sample_rate: int
    samples_per_pixel: int
    bits: int
    length: int
    data: list[int]


def _asked_number(text: str | None) -> str | None:
    """A number in a query, where a plus that is not escaped is a space."""
    return None if text is None else e164(f"+{text.strip().removeprefix('+')}")


class WhichCalls(BaseModel):
    """Which calls a list has: those for which all of this is true."""

    day: date | None = None
    """Began on this day of UTC."""
    since: datetime | None = None
    """Began then or later; without a time zone, of UTC."""
    until: datetime | None = None
    """Began before that."""
    number: Annotated[str | None, Field(max_length=40), AfterValidator(_asked_number)] = None
    """The other party's; where records have masked numbers, every one that looks the same then."""
    direction: Literal["inbound", "outbound"] | None = None
    agent: Annotated[str | None, Field(max_length=64)] = None
    """Who spoke, by name."""
    state: Annotated[str | None, Field(max_length=16)] = None
    status: Annotated[str | None, Field(max_length=16)] = None
    reason: Annotated[str | None, Field(max_length=64)] = None
    outcome: Literal["complete", "incomplete"] | None = None
    """Whether its agent knows all that it was to find out; neither is one that wants nothing."""
    min_duration_s: Annotated[float | None, Field(ge=0, le=MAX_ASKED_S)] = None
    max_duration_s: Annotated[float | None, Field(ge=0, le=MAX_ASKED_S)] = None
    min_cost_usd: Annotated[float | None, Field(ge=0, le=MAX_ASKED_S)] = None
    """Is known to have cost so much; live calls are left out."""
    max_cost_usd: Annotated[float | None, Field(ge=0, le=MAX_ASKED_S)] = None
    trouble: bool = False
    """Only calls that reached nobody, failed, or were mended: the model did not answer or had to be
    reached again, the line was lost and came back, the recording stopped."""

    @property
    def wanted(self) -> Wanted:
        """The same, as records are asked."""
        since = [_seconds(self.since)] if self.since else []
        until = [_seconds(self.until)] if self.until else []
        if self.day is not None:
            begin = _seconds(datetime.combine(self.day, time.min))
            since.append(begin)
            until.append(begin + DAY_S)
        numbers = (self.number, masked(self.number)) if self.number else ()
        exact: dict[str, tuple[str | bool, ...]] = {
            name: (value,)
            for name in ("direction", "agent", "state", "status", "reason")
            if (value := getattr(self, name)) is not None
        }
        if self.outcome is not None:
            exact["outcome_complete"] = (self.outcome == "complete",)
        return Wanted(
            since=max(since, default=None),
            until=min(until, default=None),
            min_duration_s=self.min_duration_s,
            max_duration_s=self.max_duration_s,
            min_cost_usd=self.min_cost_usd,
            max_cost_usd=self.max_cost_usd,
            one_of=exact | ({"number": numbers} if numbers else {}),
            troubles=FAILURES if self.trouble else (),
        )


def _seconds(moment: datetime) -> float:
    """Seconds since 1970; a moment without a time zone is of UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class ListCalls(WhichCalls):
    """What ``GET /calls`` takes."""

    limit: Annotated[int, Field(ge=1, le=1_000)] = 100
    before: Annotated[
        str | None, Field(max_length=MAX_CALL_SID_CHARS + 40), AfterValidator(_cursor)
    ] = None
    """``next`` of the page before."""

    @property
    def cursor(self) -> Cursor | None:
        """Where the page begins."""
        return None if self.before is None else Cursor.parse(self.before)


class ErrorBody(BaseModel):
    """Every error of the API has this shape; some have more facts."""

    model_config = ConfigDict(extra="allow")

    error: str
    """A stable word for programs."""
    message: str
    """A sentence for people."""
    fields: dict[str, str] | None = None
    """What is wrong, by the path of the field."""


class CallRecord(BaseModel):
    """One call, live or ended; ``GET /calls/{call_sid}`` shows more of it than a list does."""

    model_config = ConfigDict(extra="allow")

    call_sid: str
    direction: Literal["inbound", "outbound"]
    state: str
    status: str
    reason: str | None
    duration_s: float
    agent: str
    outcome_complete: bool | None = None
    had_trouble: bool | None = None


class AgentShown(BaseModel):
    """An agent, as far as whoever places calls has to know it."""

    name: str
    numbers: list[str]
    """Whose callers it answers."""
    language: str | None
    voice: str | None
    model: str
    tools: list[str]
    variables: list[str]
    """What a call has to say, or may."""
    outcome: dict[str, Any] | None
    """JSON Schema of what its calls are to bring."""


class AgentList(BaseModel):
    """All agents there are."""

    agents: list[AgentShown]


class AgentsRead(BaseModel):
    """The names of the agents that there are from now on."""

    agents: list[str]


class CallList(BaseModel):
    """A page of calls, newest first."""

    calls: list[CallRecord]
    next: str | None
    complete: bool


class Drain(BaseModel):
    """The answer to ``POST /drain``."""

    draining: bool
    live_calls: int


class Ready(BaseModel):
    """Whether the next call would be taken, and why not."""

    model_config = ConfigDict(extra="allow")

    ready: bool
    reason: str | None
    simulated: bool
    live_calls: int
    waiting_calls: int


class MakeCallHeaders(BaseModel):
    """What a request for a call may say beside its body."""

    idempotency_key: Annotated[str | None, Field(max_length=255)] = None
    """A request with a key and body of before is answered as then, and rings no second phone."""
    traceparent: str | None = None
    """W3C Trace Context: the call's trace belongs to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer of the API."""

    body: Mapping[str, Any]
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The answer as it is stored for its ``Idempotency-Key``."""
        return {"body": dict(self.body), "status": self.status, "headers": dict(self.headers)}

    def response(self, **headers: str) -> Any:
        """The answer as a route gives it back, with more headers.

        It is written here: for a dictionary the framework would look at what dictionaries are, for
        each answer anew.
        """
        response = current_app.json.response(dict(self.body))
        response.status_code = self.status
        response.headers.update({**self.headers, **headers})
        return response


def refusal(refused: CallRefused) -> Answer:
    """The answer to whoever asked for a call that is not taken."""
    facts = {} if refused.position is None else {"position": refused.position}
    return Answer(
        error_body(refused.reason, str(refused), **facts),
        refused.status,
        retry_after(refused.retry_after_s),
    )


def retry_after(wait_s: float | None) -> dict[str, str]:
    """The header that says when to come back; none if that is not known."""
    return {} if wait_s is None else {"Retry-After": str(max(1, math.ceil(wait_s)))}


def error_body(error: str, message: str, **facts: Any) -> dict[str, Any]:
    """Every error of the API has this shape."""
    return {"error": error, "message": message, **facts}


def invalid(fields: Mapping[str, str], status: int = 422) -> Answer:
    """The answer to a request with wrong fields, by their paths."""
    return Answer(error_body("invalid", "the request is not valid", fields=fields), status)


_NO_TEXT = "has half of a surrogate pair in it, which is no character"


def _text(part: object) -> str:
    """A part of a field's path; a name that is no text, or a long one, is shown as far as it is."""
    return str(part)[:_MAX_NAME_CHARS].encode("utf-8", "replace").decode()


def has_too_many_members(body: Mapping[str, Any]) -> bool:
    """Whether a request, or an object in it, has more members than are looked at one by one.

    Each that is unknown or wrong is a complaint of its own: a thousand are 20 ms of everybody's
    time. Deeper than this no model of ours looks.
    """
    objects = [body, *(value for value in body.values() if isinstance(value, dict))]
    return any(len(each) > MAX_MEMBERS for each in objects)


def field_errors(error: Exception | None) -> dict[str, str]:
    """Field path to what is wrong with it; the whole body is ``""``, as where too much is wrong."""
    if not isinstance(error, ValidationError):
        return {"": "must be a JSON object sent as application/json"}
    if error.error_count() > MAX_FIELDS_TOLD:
        return {"": f"has {error.error_count()} mistakes, more than are told one by one"}
    return {
        ".".join(_text(part) for part in issue["loc"]): _NO_TEXT
        if issue["type"] == "string_unicode"
        else issue["msg"].removeprefix("Value error, ")
        for issue in error.errors(include_url=False, include_context=False, include_input=False)
    }
