"""Settings: typed, with the unit in each name, from the environment and ``.env``.

None of the keys of a carrier and a model set: the embedded simulators run. Some but not all: the
server refuses to start and names what is missing. Never a silent mixture.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    IPvAnyNetwork,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticUseDefault
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    SettingsConfigDict,
)

from server.errors import ConfigurationError
from server.settings import accounts, cluster, events
from server.settings import values as values
from server.settings.accounts import (
    Account,
    AsteriskAccount,
    DeveloperAccount,
    TwilioAccount,
    VertexAccount,
)
from server.settings.file import misspelt, read_settings_file
from server.settings.kinds import (
    BuiltIn,
    ClusterSecret,
    EventsSecret,
    KeyHash,
    KeyName,
    Model,
    Number,
    Origin,
    OwnNumber,
    PbxName,
    Prefix,
    Proxy,
    RegistryUrl,
    Secret,
    SocketUrl,
    TargetName,
    level_name,
    pairs,
    words,
)

MOST = 1_000_000_000
"""No number of seconds or things is larger: 31 years, and more than any machine has."""


class Settings(BaseSettings):
    """Everything that can be set; each has a default that works."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, allow_inf_nan=False
    )
    _warnings: tuple[str, ...] = PrivateAttr(())

    # The accounts: all of a carrier's and the model's, or none.
    carrier: Literal["twilio", "asterisk"] = "twilio"
    """Whose telephone lines: Twilio's, or those of a PBX of your own (``docs/asterisk.md``)."""
    twilio_account_sid: Annotated[str, AfterValidator(values.account_sid)] | None = None
    twilio_auth_token: Secret | None = None
    twilio_phone_number: OwnNumber | None = None
    gemini_api_key: Secret | None = None
    twilio_api_key_sid: Annotated[str, AfterValidator(values.api_key_sid)] | None = None
    twilio_api_key_secret: Annotated[Secret | None, Field(repr=False)] = None
    """An API key for the REST API in the token's place; webhooks are signed with the token even so.
    """

    twilio_shared_keys: Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(pairs)] = {}
    """Secrets by key id of Twilio's newer webhook signatures, for accounts that use them."""

    asterisk_url: Annotated[str, AfterValidator(values.web_url)] | None = None
    """Asterisk's HTTP server, ``http://pbx:8088``; ARI's user and secret beside it."""
    asterisk_user: Annotated[str, AfterValidator(accounts.pbx_name)] | None = None
    asterisk_secret: Secret | None = None
    asterisk_number: OwnNumber | None = None
    """The number that calls come from; None for the trunk's own."""
    asterisk_dial: Annotated[str, AfterValidator(accounts.dial_string)] = "PJSIP/{number}@trunk"
    asterisk_app: PbxName = "offhook"
    """What the dialplan's ``Stasis`` names; ``-`` and the process's name follow where there are
    several."""
    asterisk_client: PbxName = "offhook"
    """The connection of ``websocket_client.conf`` that leads here."""
    asterisk_law: Literal["ulaw", "alaw"] = "ulaw"
    """G.711's law between Asterisk and here: the trunk's own saves a conversion there."""
    asterisk_transfer_context: PbxName = "offhook-transfer"
    asterisk_apology: Annotated[str, AfterValidator(accounts.sound)] = "sound:offhook-apology"
    """A recording on the PBX that is played where a call has failed, as it cannot speak."""

    public_url: Annotated[str, AfterValidator(values.public_url)] | None = None
    """Where the carrier reaches this server, with the path that a proxy puts before ours if there
    is one; its signatures are checked against it."""
    host: Annotated[str, AfterValidator(values.listening_host)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Where ``python -m server`` listens; under hypercorn its own ``bind`` counts."""

    gemini_model: Model = "gemini-3.8-live"
    gemini_voice: str | None = None
    vertex_project: Annotated[str, AfterValidator(accounts.project)] | None = None
    """The project whose models on Vertex AI talk, in the place of ``gemini_api_key``
    (``docs/vertex.md``)."""
    vertex_location: Annotated[str, AfterValidator(accounts.location)] = "global"
    google_application_credentials: Path | None = None
    """A service account's file, or another that Google's libraries read; None for the credentials
    that the machine itself has."""
    gemini_url: SocketUrl | None = None
    """Base address of the Live API, ``ws://127.0.0.1:…`` for a local double."""
    fallback_gemini_model: Model | None = None
    """Where a call goes on when the model fails for good; what is left out is as above."""
    fallback_gemini_api_key: Secret | None = None
    fallback_gemini_url: SocketUrl | None = None
    fallback_vertex_project: Annotated[str, AfterValidator(accounts.project)] | None = None
    fallback_vertex_location: Annotated[str, AfterValidator(accounts.location)] | None = None
    twilio_api_url: Annotated[str, AfterValidator(values.web_url)] | None = None
    """Base address of Twilio's REST API, for a regional edge or a local double."""
    gemini_proxy: Proxy | None = None
    twilio_proxy: Proxy | None = None
    """HTTP proxies on the way to the model and to Twilio's REST API; those that the environment
    names (``HTTPS_PROXY``) are not used."""

    agent_prompt: str | None = None
    agent_greeting: str | None = None
    agent_language: str | None = None
    agents: Path | None = None
    """More agents than the one that these settings describe: a folder with a TOML file for each, or
    a file."""
    agents_route_timeout_s: Annotated[float, Field(gt=0, le=10)] = 2.0
    """How long the agents' own ``route`` may take to say who answers; meanwhile it rings, and the
    carrier waits for fifteen seconds."""
    agents_watch: bool | None = None
    """Read agents again as soon as their files change; None for wherever calls are simulated."""

    api_key: Secret | None = None
    """What clients of the API show; with a real account and none set, one is made at start."""
    api_keys: Annotated[dict[KeyName, KeyHash], NoDecode, BeforeValidator(pairs)] = {}
    """More keys, each with the name of whom it was given to and its SHA-256 in hex:
    ``python -m server new-key NAME`` makes one; with ``;scope=read`` after it, it may only look."""
    public_metrics: bool = False
    """``/metrics`` without a key, where the API needs one."""
    public_docs: bool = False
    """``/openapi.json`` without a key, where the API needs one; ``/docs`` asks its reader."""
    allowed_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(words)] = ()
    """Web pages of these origins may use the API from a browser; ``*`` for all. None by default."""
    allowed_prefixes: Annotated[tuple[Prefix, ...], NoDecode, BeforeValidator(words)] = ()
    """Only numbers that begin so may be dialled; empty for all. With a real account, costly ranges
    (premium-rate, satellite …) are refused unless a prefix names the range itself."""
    max_calls: Annotated[int, Field(ge=1, le=MOST)] = 100
    max_model_sessions: Annotated[int, Field(ge=1, le=MOST)] | None = None
    """Sessions the Gemini account may have open at once; None for no limit beside the calls'."""
    calls_per_s: Annotated[float, Field(ge=0.001, le=MOST)] | None = None
    """Dials a second towards the carrier; None for 1, Twilio's own default, and without a limit in
    a simulation."""
    max_dial_wait_s: Annotated[float, Field(ge=0, le=55)] = 20.0
    """How long a request may wait for its turn to be dialled; beyond that it is refused at once.
    A request has to be answered within a minute."""
    max_waiting_calls: Annotated[int, Field(ge=1, le=MOST)] = 100
    max_loop_lag_s: Annotated[float, Field(gt=0, le=MOST)] = 0.05
    """An event loop that is later than this (median of two seconds) takes no more calls."""
    watch_loop: bool = False
    """A thread sees where the event loop stands when it stands still; Linux only. It costs some
    hundredths of what calls cost."""
    quota_pause_s: Annotated[float, Field(ge=0, le=MOST)] = 60.0
    """After the model's service has refused the account (quota, credits, key …) no call is taken
    until it takes a session again: it is tried after so long, then less and less often; 0 for no
    pauses."""
    idempotency_ttl_s: Annotated[float, Field(gt=0, le=MOST)] = 86_400.0
    """How long the answer to an Idempotency-Key is given again."""
    max_call_duration_s: Annotated[float, Field(gt=0, le=values.LONGEST_CALL_S)] = 3_600.0
    ring_timeout_s: Annotated[int, Field(ge=5, le=600)] = 60
    prewarm: bool = True
    """Open the model session and make the greeting while the phone rings."""

    media_path: Literal["fast", "ordinary"] = "fast"
    """The media plane where the machine has one (Linux), or every socket through hypercorn."""
    outcome_model: Model = "gemini-flash-latest"
    """The text model that reads the transcript of a call whose agent has left its outcome open."""
    outcome_timeout_s: Annotated[float, Field(ge=0, le=300)] = 20.0
    """How long that may take, after the call; 0: transcripts are not read."""
    tools: Annotated[tuple[str, ...], NoDecode, BeforeValidator(words)] = ()
    """Modules whose functions with ``@tool`` above them the agent may call."""
    built_in_tools: Annotated[tuple[BuiltIn, ...], NoDecode, BeforeValidator(words)] = (
        "hang_up",
        "transfer",
        "send_dtmf",
    )
    """Which of our own it may call; ``transfer`` needs ``transfer_targets``; ``none`` for none."""
    mcp_servers: SecretStr | None = None
    """MCP servers whose tools the agent may call: JSON, or the path of a file with it."""
    mcp_connect_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 10.0
    tool_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 10.0
    """The caller hears nothing while the model waits for a function."""
    transfer_targets: Annotated[dict[TargetName, Number], NoDecode, BeforeValidator(pairs)] = {}
    """Where callers may be transferred to, by the name the agent knows: ``sales=+15005550123``."""
    transfer_ring_timeout_s: Annotated[float, Field(ge=5, le=600)] = 30.0
    dtmf_pause_s: Annotated[float, Field(ge=0, le=MOST)] = 1.5
    """Keys the caller presses with no longer pause between them are told to the agent in one."""

    voicemail: Literal["ignore", "hang-up", "leave-message"] = "ignore"
    """What to do when an answering machine picks up; other than ``ignore``, the carrier charges
    for listening to every outbound call."""
    voicemail_message: str | None = None
    """What the agent leaves there, word for word; empty for words of its own."""
    voicemail_timeout_s: Annotated[float, Field(gt=0, le=300)] = 60.0

    lead_s: Annotated[float, Field(gt=0, le=300)] = 30.0
    """How far ahead of the caller's ear agent audio is sent; the carrier buffers ten minutes."""
    mark_every_s: Annotated[float, Field(gt=0, le=MOST)] = 1.0

    greeting_when: Literal["at-once", "after-caller"] = "at-once"
    """The agent is talking when the phone leaves the hook, or lets the caller say a first word."""
    greeting_text: str | None = None
    """What the agent says first, word for word; with a recording, the words that are in it."""
    greeting_wav: Path | None = None
    """A recorded greeting in place of the model's."""
    thinking_sound: Path | None = None
    """A sound of your own for when the caller has waited for an answer, or a function, for 0.8 s:
    over and over, 18 dB under the agent."""
    greeting_deadline_s: Annotated[float, Field(ge=0, le=MOST)] = 3.0
    """How long an agent that speaks after the caller waits for their first word."""
    greeting_protect_s: Annotated[float, Field(ge=0, le=MOST)] = 2.0
    """For so long after its first sound a "hello?" does not interrupt the greeting; 0: it does."""
    greeting_hello_s: Annotated[float, Field(gt=0, le=MOST)] = 1.5
    """Speech that goes on for longer is no mere hello, and interrupts."""
    greeting_retry_s: Annotated[float, Field(gt=0, le=MOST)] = 3.0
    """Silence after which the greeting is asked for once more."""

    barge_in: Literal["model", "local", "both"] = "both"
    """Whose word counts when the caller speaks over the agent: the model's, our own ear's, or both:
    our ear holds the agent at once, and it goes on if the model does not call it an interruption.
    """
    barge_in_confirm_s: Annotated[float, Field(gt=0, le=MOST)] = 0.2
    """Voice that makes an interruption certain, if only our own ear decides."""
    barge_in_hint: bool = False
    """Tell the model how much of its turn was heard before it was interrupted."""
    voice_judge: Literal["auto", "off"] = "auto"
    """Tell voices from noise by a model, where ``offhook[ear]`` is installed."""
    carrier_noise_filter: bool = False
    """Ask Twilio to filter noise out of calls (``<MediaFilter>``), which its documents do not say
    anything about yet: neither whether an account may, nor what it costs."""
    turn_end: Literal["service", "local"] = "service"
    """Who tells where a caller's turns begin and end: the model's service, or our own ear, which
    then decides about interruptions, too. Only models that are known to bear it are told so; put it
    to ``local`` only with a ``voice_judge``."""
    speech_end_s: Annotated[float, Field(ge=0.1, le=MOST)] = 0.5
    """Silence after which we take a caller's turn for over (the model has its own opinion)."""
    reply_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 6.0
    """A caller's turn without audible agent audio for this long is a fault of the model's: it is
    nudged by text, then reconnected, given a fresh session, replaced; at last an apology is spoken
    and the call ended."""
    short_answer_timeout_s: Annotated[float, Field(ge=0, le=MOST)] = 1.2
    """The model is nudged so soon if it gives no sign that it has heard a short word ("yes") in a
    silence of the agent's, where a model tells voices from noise (``voice_judge``); 0 for as late
    as after any other turn."""
    rung_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 4.0
    """How long each of these may take to bring audible audio."""
    thinking_timeout_s: Annotated[float, Field(gt=0, le=300)] = 30.0
    """How long a model that says it is still at work on its answer may leave the caller in
    silence; then it counts as one that does not answer."""
    stall_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 2.0
    """How long the caller may hear nothing in the middle of an agent turn."""
    apology: str | None = None
    """What the carrier says at last; None for our own words in the agent's language. It must fit
    into a document of 4,000 characters."""
    silence_timeout_s: Annotated[float, Field(ge=0, le=MOST)] = 15.0
    """How long a caller may say nothing until the agent asks whether they are there; 0 for ever."""
    silence_prompts: Annotated[int, Field(ge=0, le=MOST)] = 2
    """How often it asks before it says goodbye and hangs up."""
    wrap_up_s: Annotated[float, Field(ge=0, le=MOST)] = 30.0
    """How long before a call's longest duration the agent is told to bring it to an end."""
    media_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 4.0
    """The carrier sends a frame every 20 ms; without any for this long the line is lost."""
    line_lost_timeout_s: Annotated[float, Field(ge=0, le=MOST)] = 5.0
    """How long a call whose line is lost waits for another stream; 0 ends it at once."""
    max_strangers_per_address: Annotated[int, Field(ge=1, le=MOST)] = 100
    """Media sockets without the carrier's signature that may wait to show a ticket; the oldest one
    of an address makes room."""
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(words)] = ()
    """Addresses or networks of the proxies in front, whose ``X-Forwarded-For`` is believed, and for
    the console's cookie ``X-Forwarded-Proto``."""
    strict_stream_signature: bool = False
    """Refuse media sockets whose upgrade Twilio has not signed; whether it always does is not
    documented, so the ticket alone decides by default."""
    body_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 10.0
    """A request's body must be complete within this time."""
    start_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 10.0
    """A media socket must say which call it belongs to within this time."""
    ticket_ttl_s: Annotated[float, Field(gt=0, le=MOST)] = 900.0
    browser_ticket_ttl_s: Annotated[float, Field(ge=1, le=600)] = 60.0
    """How long a web page's ticket waits for its stream, and a model's session for it."""
    model_connect_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 10.0
    model_connection_age_s: Annotated[float, Field(gt=0, le=MOST)] = 540.0
    """A connection this old is replaced in the next silence; Google ends them after 10 minutes."""
    model_reconnect_budget_s: Annotated[float, Field(gt=0, le=MOST)] = 30.0
    """How long a call goes on trying to reach its model."""
    carrier_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 10.0
    callback_wait_s: Annotated[float, Field(ge=0, le=MOST)] = 10.0
    """The carrier is asked how a dialled call stands if it has said nothing for so long, and then
    ever more seldom; 0: never."""
    close_timeout_s: Annotated[float, Field(gt=0, le=MOST)] = 3.0
    """How long the clean-up of a call may take."""
    farewell_timeout_s: Annotated[float, Field(ge=0, le=MOST)] = 10.0
    """How long a call that has to end may take to say goodbye."""
    drain_timeout_s: Annotated[float, Field(ge=0, le=MOST)] = 600.0
    recent_calls: Annotated[int, Field(ge=0, le=MOST)] = 200
    """Ended calls that stay in memory, where the carrier's late callbacks still find them."""

    database_url: SecretStr = SecretStr("sqlite:///offhook.db")
    """Where records are kept: SQLAlchemy's URL. ``sqlite://`` keeps them in memory only."""
    unsaved_dir: Path | None = None
    """Where files are put with records that the database did not take until the server stopped;
    None for SQLite's own folder, or where the server is started."""
    retention_days: Annotated[float, Field(ge=0, le=36_500)] = 30.0
    """Older records and recordings are deleted; 0 keeps them for ever."""
    transcripts: bool = True
    """Whether records say what was said, or only who spoke and when."""
    record_numbers: Literal["masked", "full"] = "masked"
    """How much of the other party's number a record has. Logs never have all of it."""
    max_call_cost_usd: Annotated[float, Field(gt=0, le=MOST)] | None = None
    """A call that comes to cost this much is wrapped up, as far as its cost is known."""
    carrier_minute_usd: Annotated[float, Field(ge=0, le=MOST)] | None = None
    """Your price of a minute, media stream included; None for the tables of list prices."""
    recordings_dir: Path | None = None

    events_url: Annotated[str, Field(max_length=events.MAX_URL_CHARS)] | None = None
    """Who is told of every call that names no other receiver."""
    events_secret: Annotated[tuple[EventsSecret, ...], NoDecode, BeforeValidator(words)] = ()
    """What events are signed with, ``whsec_…``; with several, there is a signature by each."""
    events_allow_private: bool = False
    """Receivers may be in a private network, and without TLS."""
    events_turns: bool = False
    """Receivers are told of each turn as soon as it was heard, too."""
    event_handlers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(words)] = ()
    """Modules whose functions with ``@on`` above them are called when something happens."""

    registry_url: RegistryUrl | None = None
    """Where the nodes of a server on many machines meet: Redis or Valkey, as
    ``redis://host:6379/0``; None for a server on one machine."""
    node: Annotated[str, AfterValidator(cluster.node_name)] | None = None
    """What this machine is called in the addresses of its calls; None for its own name's first
    part."""
    node_url: Annotated[str, AfterValidator(values.node_url)] | None = None
    """Where other nodes reach this one, as ``http://10.0.0.3:8000``."""
    stream_url: Annotated[str, AfterValidator(cluster.stream_url)] | None = None
    """Where the carrier opens media streams, if not at ``PUBLIC_URL``, as
    ``wss://{node}.calls.example.com``: every node has a name of its own."""
    cluster_secret: Annotated[tuple[ClusterSecret, ...], NoDecode, BeforeValidator(words)] = ()
    """Proves nodes to each other and encrypts what the registry keeps of calls; the first one is
    used, and those after it are still understood."""
    registry_timeout_s: Annotated[float, Field(ge=0.05, le=10)] = 0.5
    """How long anything may wait for the registry; then it is away, and the server does without."""
    lease_s: Annotated[float, Field(ge=1, le=60)] = 3.0
    """A node of which nothing was heard for so long may be gone."""

    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(level_name)
    ] = "INFO"
    log_json: bool | None = None
    traces: bool = False
    """Send a trace of every call (``pip install offhook[otel]``); where to, OpenTelemetry's own
    variables say: ``OTEL_EXPORTER_OTLP_ENDPOINT`` and so on, in the environment itself."""

    # What the embedded simulators do; without meaning on a real account.
    simulated_callee: str = "talks"
    simulated_model: str = "answers"
    simulated_model_script: Path | None = None
    """What the simulated model says and calls, turn by turn: a TOML file (``docs/builders.md``)."""
    simulated_carrier: str = "healthy"
    simulated_ring_s: Annotated[float, Field(ge=0, le=MOST)] | None = None
    """How long simulated phones ring; None for what their script says."""

    def __init__(self, _env_file: str | os.PathLike[str] | None = ".env", **given: Any) -> None:
        """Read the environment, and what it does not say from a file.

        Raises:
            ValidationError: A value is wrong.
            ConfigurationError: The file cannot be read.
        """
        names = frozenset(type(self).model_fields)
        said = {name.lower() for name, value in os.environ.items() if value}
        doubts: list[str] = []
        if _env_file is not None and os.path.lexists(path := Path(_env_file).expanduser()):
            file = read_settings_file(path, names)
            given = {
                name.lower(): value
                for name, value in file.values.items()
                if value and name.lower() in names - said
            } | given
            doubts += file.warnings
        for name in os.environ:  # of many programs: only what can hardly be anything else
            if (meant := misspelt(name, names, closeness=0.92)) is not None:
                doubts.append(f"there is no setting {name}; is {meant} meant?")
        super().__init__(_env_file=None, **given)
        self._warnings = (*doubts, *self._doubts())

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, given: Any, info: ValidationInfo) -> Any:
        """Text without what copying puts around it; words of a list in any case."""
        if not isinstance(given, str):
            return given
        if given and not (given := given.strip().strip("\ufeff\u200b\u200e\u200f\u2060").strip()):
            raise PydanticUseDefault
        if any("\ud800" <= character <= "\udfff" for character in given):
            raise ValueError("has bytes in it that are not UTF-8")
        if "\0" in given:
            raise ValueError("has a NUL character in it")
        field = cls.model_fields[info.field_name or ""]
        if get_origin(field.annotation) is Literal:
            known = {word.casefold(): word for word in get_args(field.annotation)}
            return known.get(given.casefold().replace("_", "-"), given)
        return given

    @property
    def account(self) -> Account | None:
        """The real accounts, or None: then the embedded simulators run."""
        carrier = self._asterisk() if self.carrier == "asterisk" else self._twilio()
        url = self.public_url
        if url is None and not isinstance(carrier, TwilioAccount):  # reached, and calls, at home
            host = f"[{self.host}]" if ":" in self.host else self.host
            url = f"http://{host}:{self.port}"
        is_alone = carrier is None and self.carrier == "twilio"
        model = self._model()
        if (carrier is None and not is_alone) or model is None or url is None:
            return None
        return Account(carrier, model, url)

    def _model(self) -> DeveloperAccount | VertexAccount | None:
        if self.vertex_project is not None:
            return VertexAccount(self.vertex_project, self.vertex_location)
        if self.gemini_api_key is not None:
            return DeveloperAccount(self.gemini_api_key.get_secret_value())
        return None

    def _twilio(self) -> TwilioAccount | None:
        sid, token, number = (
            self.twilio_account_sid,
            self.twilio_auth_token,
            self.twilio_phone_number,
        )
        if sid is None or token is None or number is None:
            return None
        key_sid, secret = self.twilio_api_key_sid, self.twilio_api_key_secret
        api_key = None
        if key_sid is not None and secret is not None:
            api_key = (key_sid, secret.get_secret_value())
        return TwilioAccount(sid, token.get_secret_value(), number, api_key)

    def _asterisk(self) -> AsteriskAccount | None:
        url, user, secret = self.asterisk_url, self.asterisk_user, self.asterisk_secret
        if url is None or user is None or secret is None:
            return None
        return AsteriskAccount(
            url=url.rstrip("/"),
            user=user,
            secret=secret.get_secret_value(),
            number=self.asterisk_number or "",
            dial=self.asterisk_dial,
            app=self.asterisk_app,
            client=self.asterisk_client,
            law=self.asterisk_law,
            transfer_context=self.asterisk_transfer_context,
            apology=self.asterisk_apology,
        )

    @property
    def node_name(self) -> str:
        """What this machine is called among the nodes.

        Raises:
            ConfigurationError: Its host name cannot be in an address.
        """
        try:
            return self.node or cluster.node_name(cluster.this_host())
        except ValueError as error:
            raise ConfigurationError(f"NODE not set, and this machine's name {error}") from None

    @property
    def streams_at(self) -> str | None:
        """Where the media streams of this machine's calls go; None for the public address."""
        if self.stream_url is None or cluster.NODE_FIELD not in self.stream_url:
            return self.stream_url
        return self.stream_url.replace(cluster.NODE_FIELD, self.node_name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks like a mistake, in sentences without a value in them."""
        return self._warnings

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read the environment and ``.env``.

        Raises:
            ConfigurationError: Something is missing or wrong; the message names every variable.
        """
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            problems = {
                str(issue["loc"][0]).upper(): values.in_words(issue) for issue in error.errors()
            }
            said = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
            raise ConfigurationError(f"wrong settings: {said}") from None
        given = {name for name in accounts.NAMES if getattr(settings, name) is not None}
        accounts.check_accounts(
            settings.carrier, given, settings.public_url, settings.twilio_api_url
        )
        settings._check_fallback()
        settings._check_cluster()
        settings._check_events()
        return settings

    def _check_fallback(self) -> None:
        if self.fallback_gemini_api_key is not None and self.fallback_vertex_project is not None:
            raise ConfigurationError(
                "FALLBACK_GEMINI_API_KEY and FALLBACK_VERTEX_PROJECT are both set: there is one "
                "fallback"
            )
        if self.fallback_vertex_location is not None and self.fallback_vertex_project is None:
            raise ConfigurationError("FALLBACK_VERTEX_LOCATION needs FALLBACK_VERTEX_PROJECT")

    def _check_cluster(self) -> None:
        """A registry is of use only with what all of its nodes share."""
        if self.registry_url is None:
            return
        _ = self.node_name
        missing = cluster.missing(
            self.database_url.get_secret_value(),
            has_account=self.account is not None,
            has_key=self.api_key is not None or bool(self.api_keys),
            has_secret=bool(self.cluster_secret),
        )
        if missing:
            raise ConfigurationError(f"REGISTRY_URL needs {'; and '.join(missing)}")

    def _check_events(self) -> None:
        if self.events_url is None:
            return
        if not self.events_secret:
            raise ConfigurationError(f"EVENTS_URL needs EVENTS_SECRET: {events.SECRET_WANTED}")
        try:
            events.check_url(self.events_url, allow_private=self.events_allow_private)
        except ValueError as error:
            raise ConfigurationError(f"EVENTS_URL {error}") from None

    def _doubts(self) -> list[str]:
        """What may not work; a model of another name than Google's is at an address of its own."""
        doubts = [] if self.registry_url is None else cluster.doubts(self.node_url, self.host)
        if self.turn_end == "local" and self.voice_judge == "off":
            doubts.append("TURN_END is local and VOICE_JUDGE off: any noise is a caller's turn")
        if self.vertex_project is not None and (
            self.vertex_location in accounts.SEVERAL_REGIONS
            and self.gemini_model.startswith(accounts.REGIONAL_MODELS)
        ):
            doubts.append("VERTEX_LOCATION has to be a region, for this model is in no other place")
        return doubts + [
            f"{name.upper()} {doubt}"
            for name, url in (
                ("gemini_model", self.gemini_url),
                ("fallback_gemini_model", self.fallback_gemini_url),
            )
            if (model := getattr(self, name)) is not None
            and url is None
            and (doubt := values.doubts_of_model(model)) is not None
        ]
