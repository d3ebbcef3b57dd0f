"""Gemini Live on Vertex AI: where it is, who asks, and what is said otherwise there."""

from __future__ import annotations

import asyncio
import datetime
import json
import subprocess
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google import genai
from google.auth import (
    aws,
    exceptions,
    external_account_authorized_user,
    identity_pool,
    jwt,
    pluggable,
)
from google.auth.credentials import Credentials as GoogleCredentials
from google.genai import live, types
from google.oauth2 import credentials as oauth2
from structlog.testing import capture_logs
from websockets.asyncio.client import connect as asyncio_connect

from server.agent.agent import Agent
from server.agent.tool import tool
from server.errors import ConfigurationError, ModelError, ModelSetupRefused
from server.model import (
    AgentTranscript,
    CallerTranscript,
    Reconnected,
    SessionEvent,
    ToolResult,
)
from server.model.gemini.connection import GeminiConnection
from server.model.gemini.dialects import dialect_of
from server.model.gemini.endpoint import developer_api, vertex_ai
from server.model.gemini.faults import Faults
from server.model.gemini.model import GeminiModel
from server.model.gemini.protocol import GeminiProtocol
from server.model.gemini.setup import setup_message
from server.model.gemini.tokens import SCOPE, GoogleTokens
from server.model.lasting.model import LastingModel
from server.refusal import Kind
from server.settings.settings import Settings
from server.simulators.gemini import GeminiSimulator
from server.simulators.gemini.vertex import VertexSimulator
from tests.support.lasting_talks import Conversation
from tests.support.pages import page_on
from tests.support.serving import serving
from tests.support.toolboxes import Bench

PROJECT = "a-project-1"
PATIENCE_S = 60.0


class Given:
    """Credentials in a test's hand: each refresh is a new token, that lasts as long as it says."""

    def __init__(self, token: str = "token-1") -> None:
        self.token = token
        self.refusals = 0
        self.is_last = False

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def secrets(self) -> tuple[str, ...]:
        return (self.token,)

    def refused(self, headers: Mapping[str, str]) -> bool:
        assert headers == self.headers()
        self.refusals += 1
        return not self.is_last


def vertex_model(simulator: VertexSimulator, credentials, **options) -> GeminiModel:
    place = {"project": PROJECT, "location": "global"}
    place |= {name: options.pop(name) for name in tuple(place) if name in options}
    endpoint = vertex_ai(**place, url=simulator.url)
    return GeminiModel(endpoint=endpoint, credentials=credentials, **options)


@asynccontextmanager
async def vertex(**options):
    simulator = VertexSimulator(**{"project": PROJECT} | options)
    async with trio.open_nursery() as nursery:
        await nursery.start(simulator.run)
        yield simulator
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("europe-west4", "europe-west4-aiplatform.googleapis.com"),
        ("global", "aiplatform.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
    ],
)
def test_a_location_has_its_own_address_and_name(location, host):
    endpoint = vertex_ai(PROJECT, location)

    assert endpoint.url == (
        f"wss://{host}/ws/google.cloud.aiplatform.v1beta1.LlmBidiService/BidiGenerateContent"
    )
    assert endpoint.resource("gemini-3.8-live") == (
        f"projects/{PROJECT}/locations/{location}/publishers/google/models/gemini-3.8-live"
    )
    assert developer_api().resource("gemini-3.8-live") == "models/gemini-3.8-live"


def test_what_only_one_platform_knows_is_sent_to_that_one_only():
    config = types.LiveConnectConfig(
        explicit_vad_signal=True, tools=[{"function_declarations": [{"name": "look"}]}]
    )
    old = "gemini-live-2.5-flash-native-audio"
    resource = vertex_ai(PROJECT, "us-central1").resource(old)

    there, _ = setup_message(resource, config, dialect_of(old, "vertex"))
    here, dropped = setup_message(old, config)

    assert there["setup"]["explicitVadSignal"] is True
    assert there["setup"]["tools"] == [{"functionDeclarations": [{"name": "look"}]}]
    assert "explicitVadSignal" in dropped
    assert "explicitVadSignal" not in here["setup"]
    assert dialect_of("gemini-3.8-live", "vertex").history_by == "systemInstruction"


def test_transcripts_beside_the_content_are_read_too():
    protocol = GeminiProtocol()
    message = {"inputTranscription": {"text": "hello"}, "outputTranscription": {"text": "hi"}}

    events = protocol.receive(json.dumps(message), 0.0)

    assert [type(event) for event in events] == [CallerTranscript, AgentTranscript]


class Calling:
    """A socket whose service calls one function again and again, and gives its calls no ids."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send(self, message: bytes, *, text: bool) -> None:
        self.sent.append(json.loads(message))

    async def recv(self, *, decode: bool) -> bytes:
        return b'{"toolCall":{"functionCalls":[{"name":"dial","args":{"who":"Ann"}}]}}'

    async def aclose(self, code: int, reason: str) -> None:
        pass


def calling(first_turn: int = 1) -> GeminiConnection:
    dialect = dialect_of("gemini-3.8-live", "vertex")
    return GeminiConnection(Calling(), dialect, Faults(tuple, "vertex"), first_turn)


async def test_a_call_without_an_id_is_another_one_on_every_connection(nursery, autojump_clock):
    dialled = []

    @tool
    async def dial(who: str) -> str:
        """Dial somebody."""
        dialled.append(who)
        return "dialled"

    at_work = Bench([dial], timeout_s=10.0)
    nursery.start_soon(at_work.box.run, at_work.answer)
    for connection in (calling(), calling(first_turn=7)):
        for _ in range(2):
            at_work.box.request((await connection.receive()).calls)
            await trio.sleep(1.0)

    assert dialled == ["Ann"] * 4
    assert len(set(at_work.ids)) == 4


async def test_an_answer_has_no_id_that_the_service_has_not_given(autojump_clock):
    connection = calling()
    (made_up,) = (await connection.receive()).calls
    results = ToolResult(made_up.id, "dial", {"output": 1}), ToolResult("c1", "look", {"output": 2})

    told = json.loads(connection.tool_results_message(results))

    assert told["toolResponse"]["functionResponses"] == [
        {"name": "dial", "response": {"output": 1}},
        {"id": "c1", "name": "look", "response": {"output": 2}},
    ]


@pytest.mark.sockets
async def test_a_session_on_vertex_ai_begins_with_a_token_and_the_models_whole_name():
    async with vertex() as simulator:
        simulator.tokens.add("token-1")
        async with vertex_model(simulator, Given()).open_connection(Agent()):
            setup = simulator.sessions[0].setup

    assert setup["model"].startswith(f"projects/{PROJECT}/locations/global/")


@pytest.mark.sockets
async def test_a_token_that_is_not_good_is_not_told_and_another_is_asked_for():
    async with vertex() as simulator:
        given = Given("ya29.secret-of-ours")
        with pytest.raises(ModelError) as refused:
            async with vertex_model(simulator, given).open_connection(Agent()):
                pass

    assert given.refusals == 1
    assert (refused.value.retryable, refused.value.refusal) == (True, None)
    assert "secret" not in str(refused.value)
    assert "401" in str(refused.value)


@pytest.mark.sockets
async def test_a_token_that_no_other_could_replace_is_refused_for_good():
    async with vertex() as simulator:
        given = Given()
        given.is_last = True
        with pytest.raises(ModelSetupRefused) as refused:
            async with vertex_model(simulator, given).open_connection(Agent()):
                pass

    assert refused.value.refusal is Kind.KEY


@pytest.mark.sockets
@pytest.mark.parametrize(
    "wrong",
    [
        {"project": "another-project"},
        {"location": "eu"},
        {"model": "gemini-live-2.5-flash-native-audio"},
    ],
)
async def test_what_is_not_there_is_refused_at_set_up(wrong):
    async with vertex() as simulator:
        simulator.tokens.add("token-1")
        with pytest.raises(ModelSetupRefused):
            async with vertex_model(simulator, Given(), **wrong).open_connection(Agent()):
                pass


# -- tokens --------------------------------------------------------------------------------


class Fetched(GoogleCredentials):
    """google-auth's credentials, whose tokens a test makes."""

    def __init__(self, fetch: Callable[[int], float]) -> None:
        super().__init__()
        self.fetches = 0
        self._fetch = fetch

    def refresh(self, request: Any) -> None:
        self.fetches += 1
        lasts_s = self._fetch(self.fetches)
        self.token = f"token-{self.fetches}"
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        self.expiry = now + datetime.timedelta(seconds=lasts_s)


@pytest.fixture
def at_once(monkeypatch):
    """Threads have done what they are to do at once: the mock clock would not wait for them."""

    async def run_sync(function, *arguments, **options):
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr("trio.to_thread.run_sync", run_sync)


def tokens_of(credentials: GoogleCredentials) -> GoogleTokens:
    return GoogleTokens(None, load=lambda: credentials)


async def test_there_is_a_token_before_anybody_needs_one(nursery):
    tokens = tokens_of(Fetched(lambda number: 3_600.0))

    await nursery.start(tokens.run)

    assert tokens.headers() == {"Authorization": "Bearer token-1"}


async def test_a_token_is_replaced_ahead_of_its_end(nursery, autojump_clock, at_once):
    fetched = Fetched(lambda number: 3_600.0)
    await nursery.start(tokens_of(fetched).run)

    await trio.sleep(3_200.0)
    before = fetched.fetches
    await trio.sleep(200.0)

    assert (before, fetched.fetches) == (1, 2)


async def test_a_token_that_was_refused_is_replaced_but_not_more_than_once_a_second(
    nursery, autojump_clock, at_once
):
    fetched = Fetched(lambda number: 3_600.0)
    tokens = tokens_of(fetched)
    await nursery.start(tokens.run)
    for _ in range(100):
        tokens.refused(tokens.headers())
        await trio.sleep(0.1)

    assert 5 <= fetched.fetches <= 12


async def test_a_token_that_is_refused_while_another_is_fetched_is_not_replaced_twice(
    nursery, autojump_clock, at_once
):
    def fetch(number: int) -> float:
        if number == 2:
            tokens.refused(tokens.headers())  # in the place of a connection that comes late
        return 3_600.0

    fetched = Fetched(fetch)
    tokens = tokens_of(fetched)
    await nursery.start(tokens.run)
    tokens.refused(tokens.headers())
    await trio.sleep(300.0)

    assert fetched.fetches == 2
    assert tokens.headers() == {"Authorization": "Bearer token-2"}


async def test_a_refused_token_may_be_replaced_once_and_then_the_account_is_to_blame(
    nursery, autojump_clock, at_once
):
    tokens = tokens_of(Fetched(lambda number: 3_600.0))
    await nursery.start(tokens.run)
    first = tokens.headers()

    at_first = [tokens.refused(first), tokens.refused(first)]
    await trio.sleep(2.0)
    late, second = tokens.refused(first), tokens.refused(tokens.headers())

    assert at_first == [True, True]
    assert (late, second) == (True, False)


class TheSame(Fetched):
    """Credentials whose token is the same as long as it lasts, as a metadata server's is."""

    def refresh(self, request: Any) -> None:
        super().refresh(request)
        self.token = "token-1"


async def test_a_refused_token_that_comes_again_has_replaced_itself(
    nursery, autojump_clock, at_once
):
    tokens = tokens_of(TheSame(lambda number: 3_600.0))
    await nursery.start(tokens.run)
    token = tokens.headers()

    at_first = tokens.refused(token)
    await trio.sleep(2.0)
    again = tokens.refused(token)
    await trio.sleep(2.0)
    for_good = tokens.refused(token)

    assert [at_first, again, for_good] == [True, False, False]


async def test_a_refused_token_in_whose_place_none_is_given_is_the_accounts_fault(
    nursery, autojump_clock, at_once
):
    def fetch(number: int) -> float:
        if number > 1:
            raise exceptions.RefreshError("invalid_grant")
        return 3_600.0

    tokens = tokens_of(Fetched(fetch))
    await nursery.start(tokens.run)
    token = tokens.headers()

    at_first = tokens.refused(token)
    await trio.sleep(2.0)

    assert [at_first, tokens.refused(token)] == [True, False]


async def test_an_hour_later_a_refused_token_may_be_replaced_again(
    nursery, autojump_clock, at_once
):
    tokens = tokens_of(Fetched(lambda number: 3_600.0))
    await nursery.start(tokens.run)
    tokens.refused(tokens.headers())
    await trio.sleep(3_700.0)

    assert tokens.refused(tokens.headers())


async def test_a_service_that_is_away_is_asked_again_and_the_token_is_used_meanwhile(
    nursery, autojump_clock, at_once
):
    def fetch(number: int) -> float:
        if 1 < number < 5:
            raise exceptions.TransportError("away")
        return 3_600.0

    fetched = Fetched(fetch)
    tokens = tokens_of(fetched)
    await nursery.start(tokens.run)
    tokens.refused(tokens.headers())
    await trio.sleep(1.5)
    meanwhile = tokens.headers()
    await trio.sleep(300.0)

    assert meanwhile == {"Authorization": "Bearer token-1"}
    assert tokens.headers() == {"Authorization": "Bearer token-5"}


async def test_credentials_that_are_refused_while_the_server_runs_are_the_accounts_fault(
    nursery, autojump_clock, at_once
):
    failures = [exceptions.RefreshError("invalid_grant"), exceptions.TransportError("away")]

    def fetch(number: int) -> float:
        if number > 1 and failures:
            raise failures[0]
        return 3_600.0 if number > 1 else -1.0

    tokens = tokens_of(Fetched(fetch))
    await nursery.start(tokens.run)
    await trio.sleep(10.0)
    with pytest.raises(ModelSetupRefused) as refused:
        tokens.headers()
    failures.pop(0)
    await trio.sleep(100.0)
    with pytest.raises(ModelError) as away:
        tokens.headers()
    failures.pop(0)
    await trio.sleep(100.0)

    assert (refused.value.refusal, refused.value.retryable) == (Kind.KEY, False)
    assert (away.value.refusal, away.value.retryable) == (None, True)
    assert tokens.headers()


async def test_a_token_that_has_ended_is_not_shown(nursery):
    tokens = tokens_of(Fetched(lambda number: -1.0))
    await nursery.start(tokens.run)

    with pytest.raises(ModelError) as error:
        tokens.headers()

    assert error.value.retryable


@pytest.mark.parametrize("loads", [False, True], ids=["loading", "fetching"])
@pytest.mark.parametrize(
    "error", [subprocess.TimeoutExpired("give-token", 30.0), json.JSONDecodeError("no", "", 0)]
)
async def test_what_google_auth_lets_out_of_others_keeps_no_server_from_starting_and_is_tried_again(
    nursery, autojump_clock, at_once, error, loads
):
    failures = [error]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    def fetch(number: int) -> float:
        fail_once()
        return 3_600.0

    def load() -> GoogleCredentials:
        if not loads:
            fail_once()
        return Fetched(fetch)

    tokens = GoogleTokens(None, load=load)
    with capture_logs() as logs:
        await nursery.start(tokens.run)
        with pytest.raises(ModelError) as none_yet:
            tokens.headers()
        await trio.sleep(60.0)

    assert none_yet.value.retryable
    assert tokens.headers()
    assert [line["error"] for line in logs if "no access token" in line["event"]] == [
        type(error).__name__
    ]


async def test_a_service_that_is_away_at_the_start_keeps_no_server_from_starting(nursery):
    def away(number: int) -> float:
        raise exceptions.TransportError("away")

    tokens = tokens_of(Fetched(away))
    await nursery.start(tokens.run)

    with pytest.raises(ModelError):
        tokens.headers()


@pytest.mark.parametrize(
    "error", [exceptions.DefaultCredentialsError("none"), exceptions.RefreshError("invalid_grant")]
)
async def test_no_credentials_or_wrong_ones_are_a_wrong_setting(error):
    def wrong(number: int) -> float:
        raise error

    with pytest.raises(ConfigurationError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        await tokens_of(Fetched(wrong)).run()


async def test_credentials_that_only_a_fallback_needs_keep_no_server_from_starting(nursery):
    def wrong(number: int) -> float:
        raise exceptions.RefreshError("invalid_grant")

    tokens = tokens_of(Fetched(wrong))
    await nursery.start(partial(tokens.run, is_needed=False))

    with pytest.raises(ModelError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        tokens.headers()


@asynccontextmanager
async def lasting_session(tokens: GoogleTokens, simulator: VertexSimulator):
    """A session that goes on over connections, in memory, and the events it tells."""
    events: list[SessionEvent] = []
    service = vertex_model(simulator, tokens, connect=simulator.connect)
    session = LastingModel(service).new_session(Agent(), Conversation(), events.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        await nursery.start(tokens.run)
        nursery.start_soon(session.run)
        await session.wait_ready()
        yield events
        nursery.cancel_scope.cancel()


async def test_a_call_is_rotated_over_the_end_of_its_token(autojump_clock, at_once):
    simulator = VertexSimulator(project=PROJECT)

    def fetch(number: int) -> float:
        simulator.tokens = {f"token-{number}"}  # and none of those before
        return 3_600.0

    async with lasting_session(tokens_of(Fetched(fetch)), simulator) as events:
        await trio.sleep(4_000.0)

    reasons = [event.reason for event in events if isinstance(event, Reconnected)]
    assert len(reasons) >= 6
    assert set(reasons) == {"age"}


async def test_a_token_that_is_refused_in_mid_call_is_replaced_and_the_call_goes_on(
    autojump_clock, at_once
):
    simulator = VertexSimulator(project=PROJECT)

    def fetch(number: int) -> float:
        simulator.tokens.add(f"token-{number}")
        return 3_600.0

    fetched = Fetched(fetch)
    async with lasting_session(tokens_of(fetched), simulator) as events:
        simulator.tokens.clear()
        await simulator.sessions[0].cut()
        await trio.sleep(20.0)

    reconnects = [event for event in events if isinstance(event, Reconnected)]
    assert [event.reason for event in reconnects] == ["closed-1006"]
    assert fetched.fetches == 2


EXTERNAL = {
    "type": "external_account",
    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/a",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_url": "https://sts.googleapis.com/v1/token",
}


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (EXTERNAL | {"credential_source": {"file": "/token"}}, identity_pool.Credentials),
        (
            EXTERNAL | {"credential_source": {"executable": {"command": "/bin/token"}}},
            pluggable.Credentials,
        ),
        (
            EXTERNAL
            | {
                "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
                "credential_source": {
                    "environment_id": "aws1",
                    "regional_cred_verification_url": "https://sts.{region}.amazonaws.com",
                },
            },
            aws.Credentials,
        ),
        (
            {
                "type": "external_account_authorized_user",
                "audience": "//iam.googleapis.com/locations/global/workforcePools/a/providers/b",
                "refresh_token": "refresh",
                "token_url": "https://sts.googleapis.com/v1/oauthtoken",
                "client_id": "id",
                "client_secret": "secret",
            },
            external_account_authorized_user.Credentials,
        ),
        (
            {
                "type": "authorized_user",
                "refresh_token": "refresh",
                "client_id": "id",
                "client_secret": "secret",
            },
            oauth2.Credentials,
        ),
    ],
)
def test_every_kind_of_credentials_file_is_read(facts, kind, tmp_path):
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(facts))

    credentials = GoogleTokens(file)._find()

    assert isinstance(credentials, kind)
    assert credentials.scopes == [SCOPE]


class TokenService:
    """Google's token service on this machine, which checks whose assertion it is given."""

    def __init__(self) -> None:
        key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
        self.private_pem = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, no_password
        ).decode()
        public_pem = key.public_key().public_bytes(
            pem, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                assertion = parse_qs(body)["assertion"][0]
                asked.append(dict(jwt.decode(assertion, verify=False)))
                _, _, signed, signature = jwt._unverified_decode(assertion)
                from google.auth.crypt import RSAVerifier

                good = RSAVerifier.from_string(public_pem).verify(signed, signature)
                answer = {"access_token": f"ya29.{len(asked)}", "expires_in": 3_600}
                content = json.dumps(answer if good else {"error": "invalid_grant"}).encode()
                self.send_response(200 if good else 400)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/token"
        self.thread = Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def account_file(self, path) -> str:
        facts = {
            "type": "service_account",
            "client_email": "offhook@a-project-1.iam.gserviceaccount.com",
            "private_key": self.private_pem,
            "private_key_id": "1",
            "project_id": PROJECT,
            "token_uri": self.url,
        }
        path.write_text(json.dumps(facts))
        return str(path)


@pytest.mark.sockets
async def test_a_service_accounts_file_is_all_that_a_call_on_vertex_ai_needs(tmp_path):
    with TokenService() as service:
        async with vertex() as simulator:
            simulator.tokens.add("ya29.1")
            settings = {
                "vertex_project": PROJECT,
                "google_application_credentials": service.account_file(tmp_path / "account.json"),
                "gemini_url": simulator.url,
                "public_url": None,
                "api_key": "sesame",
            }
            async with serving(**settings) as server:
                server.http.headers["Authorization"] = "Bearer sesame"
                ready = (await server.http.get("/readyz")).json()
                call = (await server.http.post("/calls/browser", json={})).json()
                async with page_on(call) as page:
                    await page.wait(lambda: page.told("media"))
                    await page.send("stop")

    assert (ready["carriers"], ready["model_platform"]) == (["browser"], "vertex")
    assert [asked["scope"] for asked in service.asked] == [SCOPE]
    assert service.asked[0]["iss"] == "offhook@a-project-1.iam.gserviceaccount.com"


async def hear_a_call(settings: Mapping[str, Any]) -> None:
    """Have a page call a server of these settings, and hang up once it is spoken to."""
    async with serving(**settings, api_key="sesame") as server:
        server.http.headers["Authorization"] = "Bearer sesame"
        call = (await server.http.post("/calls/browser", json={})).json()
        async with page_on(call) as page:
            await page.wait(lambda: page.told("media"))
            await page.send("stop")


@pytest.mark.sockets
@pytest.mark.parametrize("main", ["vertex", "developer"])
async def test_each_platform_is_the_others_fallback(main, tmp_path, nursery):
    other = GeminiSimulator(api_key="key")
    await nursery.start(other.run)
    with TokenService() as service:
        async with vertex() as simulator:
            simulator.tokens.add("ya29.1")
            file = service.account_file(tmp_path / "account.json")
            if main == "vertex":
                simulator.tokens.clear()  # which refuses every token
                settings = {
                    "vertex_project": PROJECT,
                    "gemini_url": simulator.url,
                    "fallback_gemini_api_key": "key",
                    "fallback_gemini_url": other.url,
                }
            else:
                settings = {
                    "gemini_api_key": "a key that is wrong",
                    "gemini_url": other.url,
                    "fallback_vertex_project": PROJECT,
                    "fallback_gemini_url": simulator.url,
                }
            settings |= {"google_application_credentials": file, "public_url": None}
            await hear_a_call(settings)
            taken = [len(one.sessions) for one in (simulator, other)]

    assert taken[0 if main == "developer" else 1] == 1


@pytest.mark.sockets
async def test_a_fallback_without_credentials_is_missed_only_when_it_is_needed(tmp_path, nursery):
    main = GeminiSimulator(api_key="key")
    await nursery.start(main.run)
    settings = {
        "gemini_api_key": "key",
        "gemini_url": main.url,
        "fallback_vertex_project": PROJECT,
        "google_application_credentials": str(tmp_path / "not-there.json"),
        "public_url": None,
    }
    await hear_a_call(settings)

    assert len(main.sessions) == 1


@pytest.mark.sockets
async def test_a_token_that_is_refused_in_a_call_is_replaced_and_the_call_goes_on(tmp_path):
    with TokenService() as service:
        async with vertex() as simulator:
            simulator.tokens.add("ya29.2")  # and not the first one any more
            settings = {
                "vertex_project": PROJECT,
                "google_application_credentials": service.account_file(tmp_path / "account.json"),
                "gemini_url": simulator.url,
                "public_url": None,
            }
            await hear_a_call(settings)

    assert len(service.asked) == 2


def test_two_model_accounts_at_once_are_a_wrong_setting():
    both = {"gemini_api_key": "key", "vertex_project": PROJECT}
    with pytest.raises(ConfigurationError, match="both set"):
        Settings.load(_env_file=None, **both)
    two = {"gemini_api_key": "key", "fallback_gemini_api_key": "another"}
    two["fallback_vertex_project"] = PROJECT
    with pytest.raises(ConfigurationError, match="both set"):
        Settings.load(_env_file=None, **two)
    with pytest.raises(ConfigurationError, match="project's id"):
        Settings.load(_env_file=None, vertex_project="My Project")


def run_official_client(url: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Have the official SDK greet the caller, in Vertex mode; it knows only wss, we serve ws."""

    def connect_plainly(uri: str, **options: Any) -> Any:
        options.pop("ssl", None)
        return asyncio_connect(uri.replace("wss://", "ws://"), proxy=None, **options)

    monkeypatch.setattr(live, "ws_connect", connect_plainly)

    async def main() -> bytes:
        client = genai.Client(
            vertexai=True,
            project=PROJECT,
            location="global",
            credentials=oauth2.Credentials("token-1"),
            http_options=types.HttpOptions(
                base_url=url.replace("ws://", "http://"), api_version="v1beta1"
            ),
        )
        config = types.LiveConnectConfig(
            response_modalities=[types.Modality.AUDIO],
            system_instruction="Be brief.",
            explicit_vad_signal=True,
            tools=[{"function_declarations": [{"name": "hang_up"}]}],
        )
        async with client.aio.live.connect(model="gemini-3.8-live", config=config) as session:
            await session.send_realtime_input(text="Greet the caller.")
            return b"".join([message.data or b"" async for message in session.receive()])

    return asyncio.run(main())


@pytest.mark.slow
@pytest.mark.sockets
async def test_the_official_client_and_ours_ask_the_same_address_for_the_same_model(monkeypatch):
    async with vertex() as simulator:
        simulator.tokens.add("token-1")
        heard = await trio.to_thread.run_sync(run_official_client, simulator.url, monkeypatch)
        async with vertex_model(simulator, Given()).open_connection(Agent()):
            pass
        theirs, ours = (session.setup for session in simulator.sessions)

    assert heard == simulator.greeting.pcm
    assert theirs["model"] == ours["model"]
    assert simulator.sessions[0].mistakes == []


def test_a_model_that_is_in_regions_only_is_a_doubt_elsewhere():
    old = {"vertex_project": PROJECT, "gemini_model": "gemini-live-2.5-flash-native-audio"}

    somewhere = Settings.load(_env_file=None, **old, vertex_location="europe-west4")
    nowhere = Settings.load(_env_file=None, **old)

    assert any("has to be a region" in one for one in nowhere.warnings)
    assert not any("has to be a region" in one for one in somewhere.warnings)
