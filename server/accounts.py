"""The accounts that calls are made with: the only module that names a carrier and a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio
from pydantic import SecretStr

from server.agent.agent import Agent
from server.carrier import Carrier, MediaStream
from server.carrier.account import AccountState, Numbers
from server.carrier.asterisk.ari import Ari
from server.carrier.asterisk.carrier import AsteriskCarrier
from server.carrier.asterisk.webhooks import AsteriskWebhooks
from server.carrier.browser.carrier import BrowserCarrier, PhonesAndPages
from server.carrier.browser.webhooks import NoWebhooks
from server.carrier.transport import Transport
from server.carrier.twilio.documents import check_sayable
from server.carrier.twilio.rest import TwilioCarrier
from server.carrier.twilio.stream import TwilioMediaStream
from server.carrier.twilio.webhooks import TwilioWebhooks
from server.carrier.webhooks import Events, Webhooks
from server.cluster.cluster import Cluster
from server.cluster.directory.meeting import shared_secret
from server.errors import ConfigurationError
from server.media.plane import Plane
from server.model import Model, ModelAccount, Reader
from server.model.gemini.endpoint import (
    DEFAULT_URL,
    ApiKey,
    Credentials,
    developer_api,
    vertex_ai,
)
from server.model.gemini.model import GeminiModel
from server.model.gemini.reader import GeminiReader
from server.model.gemini.tokens import GoogleTokens
from server.model.lasting.model import LastingModel
from server.settings.accounts import (
    Account,
    AsteriskAccount,
    DeveloperAccount,
    TwilioAccount,
    VertexAccount,
)
from server.settings.settings import Settings
from server.simulators.gemini import (
    ANSWERS,
    MODEL_SCRIPTS,
    GeminiSimulator,
    ModelScript,
    with_words,
)
from server.simulators.phone import find_script
from server.simulators.twilio import FAULTS as CARRIER_FAULTS
from server.simulators.twilio import TwilioSimulator
from server.supervision import keep_going

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SIMULATED_NUMBER = "+15005550006"
"""Twilio's own magic number that is always a valid caller (test credentials)."""


class Accounts:
    """The carrier and the model: those of the settings' account, or, without one, the simulators.

    Args:
        settings: The process's.
        cluster: The other processes of this server, which have the same simulated account.
        plane: The media plane, which the model's connections are on; None if there is none.

    Attributes:
        carrier: Places calls; there once :meth:`open` has returned, like all of these.
        webhooks: What the carrier asks and reports over HTTP.
        webhook_paths: Where they are, which is known from the start.
        new_stream: Makes a media stream of a media socket's transport.
        pages: The carrier of calls from web pages, which there is beside every other.
        events: What carriers tell otherwise than by posting it.
        model: Opens sessions.
        model_accounts: The models behind it, each with its key: the one that calls begin with, and
            the fallback.
        describe: Says how the carrier's account stands; None for a carrier without one.
        numbers: The carrier's numbers; None where they are not set at the carrier.
        model_platform: Whose model it is: ``developer`` or ``vertex``.
        reader: Reads what was said in calls; None where calls are simulated.
        own_number: The number that calls come from; empty if the carrier knows.
        carrier_account: The carrier's name of the account.
        has_price_table: Whether the tables of list prices are the carrier's.
        public_url: Where the carrier reaches this server.
        simulated_twilio: The simulator that stands for Twilio, if one does.
        simulated_gemini: The one that stands for Gemini Live.
    """

    new_stream: Callable[[Transport], MediaStream] = TwilioMediaStream
    webhook_paths = TwilioWebhooks.paths
    carrier: Carrier
    pages: BrowserCarrier
    webhooks: Webhooks
    events: tuple[Events, ...]
    model: Model
    model_accounts: tuple[ModelAccount, ...]
    describe: Callable[[], Awaitable[AccountState]] | None = None
    numbers: Numbers | None = None
    own_number: str
    carrier_account = ""
    model_platform = "developer"
    has_price_table = True
    public_url: str
    reader: Reader | None = None
    simulated_twilio: TwilioSimulator | None = None
    simulated_gemini: GeminiSimulator | None = None

    def __init__(self, settings: Settings, cluster: Cluster, plane: Plane | None) -> None:
        self._model_scripts = _read_scripts(settings)
        if settings.apology is not None:
            check_sayable(settings.apology, "APOLOGY")
        self._settings = settings
        self._tokens: GoogleTokens | None = None
        keys = [secret.get_secret_value() for secret in settings.cluster_secret]
        self.pages = BrowserCarrier(keys or [shared_secret("calls from pages")])
        self.events = (self.pages,)
        self._cluster = cluster
        self._plane = plane
        account = settings.account
        if account is not None and isinstance(account.carrier, AsteriskAccount):
            self.webhook_paths = AsteriskWebhooks.paths
        elif account is not None and account.carrier is None:
            self.webhook_paths = NoWebhooks.paths
        self._knows_address = settings.public_url is not None or account is not None

    @property
    def are_simulated(self) -> bool:
        """True if no account is set, so that the simulators are used."""
        return self._settings.account is None

    def check_agent(self, agent: Agent) -> None:
        """Check that calls can be made with an agent.

        Raises:
            ConfigurationError: They cannot; the setting is named.
        """
        if agent.apology:
            check_sayable(agent.apology, "APOLOGY")

    async def open(self, nursery: trio.Nursery, *, is_to_serve: bool = True) -> None:
        """Make the carrier and the model; simulators run in the nursery.

        Args:
            nursery: What the accounts need runs in it.
            is_to_serve: Whether there have to be credentials of the model that calls begin with;
                else whoever asks that model is told what is wrong with them.

        Raises:
            ConfigurationError: The accounts cannot be used, or to serve with them is of no use.
        """
        account = self._settings.account
        if account is None:
            await self._simulate(nursery)
        else:
            self._use(account)
        if account is None or account.carrier is not None:
            self.carrier = PhonesAndPages(self.carrier, self.pages)
        if self._tokens is not None:
            is_needed = is_to_serve and self.model_platform == "vertex"
            run = partial(self._tokens.run, is_needed=is_needed)
            await nursery.start(keep_going, "google tokens", run)

    @property
    def carrier_names(self) -> list[str]:
        """All carriers whose calls are taken, that for telephones first."""
        return list(dict.fromkeys((self.carrier.name, self.pages.name)))

    def note_address(self, scheme: str, server: tuple[str, int | None] | None) -> None:
        """Learn from a request where this server listens, if only simulators need to know.

        hypercorn does not tell an app its address, and ``-b`` on its command line changes it. A
        real carrier is only ever told ``PUBLIC_URL``.
        """
        if self._knows_address or server is None or not server[1]:
            return
        # Once: whoever reaches the server by another of its addresses is not to change what the
        # streams of calls are signed for.
        self._knows_address = True
        host, port = server
        url = local_url("127.0.0.1" if host in ("0.0.0.0", "::") else host, port, scheme)
        if url != self.public_url:
            self.public_url = url
            self._reach_at(url)
            self._set_simulated_number()

    # -- which -----------------------------------------------------------------------------

    async def _simulate(self, nursery: trio.Nursery) -> None:
        """Start a small Twilio and a small Gemini Live on loopback, and use those."""
        settings = self._settings
        # Another process may be asked to look at a webhook's signature.
        account_sid = f"AC{shared_secret('simulated account')}"
        auth_token = shared_secret("simulated token")
        api_key = shared_secret("simulated key")
        twilio = self.simulated_twilio = TwilioSimulator(
            account_sid=account_sid,
            auth_token=auth_token,
            phone_number=SIMULATED_NUMBER,
            script=settings.simulated_callee,
            faults=CARRIER_FAULTS[settings.simulated_carrier],
            ring_s=settings.simulated_ring_s,
            recordings_dir=settings.recordings_dir,
        )
        script, after_resume = self._model_scripts
        gemini = self.simulated_gemini = GeminiSimulator(
            api_key=api_key, script=script, script_after_resume=after_resume
        )
        await nursery.start(twilio.run)
        await nursery.start(gemini.run)
        self._use_twilio(
            TwilioAccount(account_sid, auth_token, SIMULATED_NUMBER),
            public_url=settings.public_url or local_url(settings.host, settings.port),
            api_url=twilio.api_url,
            name="simulator",
        )
        self._use_gemini(DeveloperAccount(api_key), gemini.url)
        self._set_simulated_number()

    def _set_simulated_number(self) -> None:
        """Have the simulated account's number ask this server, wherever it is."""
        if self.simulated_twilio is not None and self.numbers is not None:
            number = self.simulated_twilio.account.numbers.get(SIMULATED_NUMBER)
            number.voice_url = self.numbers.ours.voice_url
            number.status_url = self.numbers.ours.status_url

    def _use(self, account: Account) -> None:
        match account.carrier:
            case TwilioAccount() as twilio:
                self._use_twilio(
                    twilio,
                    public_url=account.public_url,
                    api_url=self._settings.twilio_api_url,
                    name="twilio",
                    proxy=_text(self._settings.twilio_proxy),
                )
            case AsteriskAccount() as asterisk:
                self._use_asterisk(asterisk, account.public_url)
            case None:
                self.carrier, self.webhooks = self.pages, NoWebhooks()
                self.public_url, self.own_number = account.public_url, ""
                self.has_price_table = False
        self._use_gemini(account.model, self._settings.gemini_url)
        self.reader = self._reader(account.model)

    def _use_asterisk(self, account: AsteriskAccount, public_url: str) -> None:
        settings, cluster = self._settings, self._cluster
        process = cluster.me.name if cluster.are_several else ""
        ari = Ari(account.url, account.user, account.secret, timeout_s=settings.carrier_timeout_s)
        carrier = AsteriskCarrier(
            ari,
            app=account.app,
            client=account.client,
            number=account.number,
            dial=account.dial,
            law=account.law,
            transfer_context=account.transfer_context,
            apology=account.apology,
            ring_timeout_s=settings.ring_timeout_s,
            process=process,
            is_there=partial(cluster.is_heard_of, within_s=settings.lease_s),
        )
        self.carrier, self.events = carrier, (*self.events, carrier)
        self.describe = carrier.describe
        self.new_stream = carrier.new_stream
        self.webhooks = AsteriskWebhooks(ari.authorization)
        self.public_url = public_url
        self.own_number, self.carrier_account = account.number, account.url
        self.has_price_table = False

    def _use_twilio(
        self,
        account: TwilioAccount,
        *,
        public_url: str,
        api_url: str | None,
        name: str,
        proxy: str | None = None,
    ) -> None:
        settings = self._settings
        shared_keys = settings.twilio_shared_keys
        self.public_url = public_url
        self.own_number, self.carrier_account = account.phone_number, account.account_sid
        webhooks = TwilioWebhooks(
            account.account_sid,
            account.auth_token,
            public_url,
            shared_keys={key: one.get_secret_value() for key, one in shared_keys.items()},
            at=self._cluster.path,
            streams_at=settings.streams_at,
            filters_noise=settings.carrier_noise_filter,
        )
        self.webhooks, self._reach_at = webhooks, webhooks.reach_at
        carrier = self.carrier = TwilioCarrier(
            account_sid=account.account_sid,
            auth_token=account.auth_token,
            phone_number=account.phone_number,
            webhooks=webhooks,
            api_url=api_url,
            name=name,
            ring_timeout_s=settings.ring_timeout_s,
            request_timeout_s=settings.carrier_timeout_s,
            proxy=proxy,
            api_key=account.api_key,
        )
        self.numbers, self.describe = carrier.numbers, carrier.numbers.describe

    def _use_gemini(self, account: DeveloperAccount | VertexAccount, url: str | None) -> None:
        settings = self._settings
        self.model_platform = "vertex" if isinstance(account, VertexAccount) else "developer"
        main = self._gemini(account, settings.gemini_model, url)
        other, fallback = self._other(), None
        if other is not None or settings.fallback_gemini_model or settings.fallback_gemini_url:
            there = other is None or type(other) is type(account)
            fallback = self._gemini(
                other or account,
                settings.fallback_gemini_model or settings.gemini_model,
                settings.fallback_gemini_url or (url if there else None),
                is_fallback=other is not None,
            )
        self.model_accounts = (main,) if fallback is None else (main, fallback)
        self.model = LastingModel(
            main,
            fallback=fallback,
            connection_age_s=settings.model_connection_age_s,
            reconnect_budget_s=settings.model_reconnect_budget_s,
        )

    def _other(self) -> DeveloperAccount | VertexAccount | None:
        """The account of the fallback, if it has another one."""
        settings = self._settings
        if (key := _text(settings.fallback_gemini_api_key)) is not None:
            return DeveloperAccount(key)
        if settings.fallback_vertex_project is not None:
            location = settings.fallback_vertex_location or settings.vertex_location
            return VertexAccount(settings.fallback_vertex_project, location)
        return None

    def _gemini(
        self,
        account: DeveloperAccount | VertexAccount,
        model: str,
        url: str | None,
        *,
        is_fallback: bool = False,
    ) -> GeminiModel:
        prefix = "FALLBACK_" if is_fallback else ""
        credentials: Credentials
        match account:
            case VertexAccount(project, location):
                endpoint = vertex_ai(project, location, url)
                key_name = f"{prefix}VERTEX_PROJECT"
                credentials = self._google_tokens(key_name)
            case DeveloperAccount(api_key):
                endpoint = developer_api(url or DEFAULT_URL)
                key_name = f"{prefix}GEMINI_API_KEY"
                credentials = ApiKey(api_key)
        return GeminiModel(
            model=model,
            key_name=key_name,
            endpoint=endpoint,
            credentials=credentials,
            connect_timeout_s=self._settings.model_connect_timeout_s,
            plane=self._plane,
            proxy=_text(self._settings.gemini_proxy) if self._settings.account else None,
        )

    def _google_tokens(self, name: str) -> GoogleTokens:
        """The tokens of this machine's account, one keeper for all projects."""
        if self._tokens is None:
            file, proxy = (
                self._settings.google_application_credentials,
                _text(self._settings.gemini_proxy),
            )
            self._tokens = GoogleTokens(file, name=name, proxy=proxy)
        return self._tokens

    def _reader(self, account: DeveloperAccount | VertexAccount) -> GeminiReader:
        settings = self._settings
        url = None if settings.gemini_url is None else settings.gemini_url.replace("ws", "http", 1)
        kept = vertex = None
        if isinstance(account, VertexAccount):
            kept = self._google_tokens("VERTEX_PROJECT")
            vertex = account.project, account.location
        return GeminiReader(
            api_key=account.api_key if isinstance(account, DeveloperAccount) else None,
            vertex=vertex,
            tokens=kept,
            model=settings.outcome_model,
            url=url,
            timeout_s=settings.outcome_timeout_s,
            proxy=_text(settings.gemini_proxy),
        )


def local_url(host: str, port: int | None, scheme: str = "http") -> str:
    """The URL of a server at a name or an address, which may be one of IPv6."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _read_scripts(settings: Settings) -> tuple[ModelScript, ModelScript]:
    """What the simulated model does, and what it does once it was resumed.

    Raises:
        ConfigurationError: There is no such script of a simulator's, or it cannot be read.
    """
    try:
        find_script(settings.simulated_callee)
    except ValueError as error:
        raise ConfigurationError(f"SIMULATED_CALLEE: {error}") from None
    if settings.simulated_model not in MODEL_SCRIPTS:
        known = ", ".join(MODEL_SCRIPTS)
        raise ConfigurationError(f"SIMULATED_MODEL: there is no such script; there are {known}")
    if settings.simulated_carrier not in CARRIER_FAULTS:
        known = ", ".join(CARRIER_FAULTS)
        raise ConfigurationError(f"SIMULATED_CARRIER: there is no such script; there are {known}")
    script, path = MODEL_SCRIPTS[settings.simulated_model], settings.simulated_model_script
    if path is None:
        return script, ANSWERS
    try:
        return with_words(script, path), with_words(ANSWERS, path)
    except ConfigurationError as error:
        raise ConfigurationError(f"SIMULATED_MODEL_SCRIPT: {error}") from None
