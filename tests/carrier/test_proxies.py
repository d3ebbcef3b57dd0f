"""The model and the carrier behind an HTTP proxy, over both ways a model's socket can take."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial

import hypercorn.trio
import pytest
import trio
import trustme
from quart import request
from quart_trio import QuartTrio

from codec import tls
from server.agent.agent import Agent
from server.carrier.twilio.rest import TwilioCarrier
from server.carrier.twilio.webhooks import TwilioWebhooks
from server.errors import CarrierError, ConfigurationError, ModelError
from server.hooks.hypercorn_worker import make_config
from server.media import plane as plane_module
from server.media.plane import Plane
from server.model import AgentAudio
from server.model.gemini.model import GeminiModel
from server.settings.settings import Settings
from server.simulators.gemini import GeminiSimulator
from tests.support.connect_proxy import connect_proxy

pytestmark = pytest.mark.sockets

KEY = "model-key"
HOST = "model.example"
"""Resolved by the proxy alone, so a connection past it would find nobody."""


@pytest.fixture(params=["fast", "ordinary"])
async def plane(request, nursery):
    if request.param == "ordinary":
        return None
    if not plane_module.AVAILABLE:
        pytest.skip("needs epoll")
    plane = Plane()
    await nursery.start(plane.run)
    return plane


@pytest.fixture
async def gemini(nursery):
    simulator = GeminiSimulator(api_key=KEY)
    await nursery.start(simulator.run)
    return simulator


@pytest.fixture
def authority(tmp_path, monkeypatch):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    # A proxy of the environment must not be noticed, or these connections would go nowhere.
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return authority


@asynccontextmanager
async def tls_in_front_of(port: int, authority: trustme.CA, name: str):
    """Ends TLS as ``name``; gives its port and the server names that were asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    asked: list[str | None] = []
    context.sni_callback = lambda _, server_name, __: asked.append(server_name)

    async def serve(stream: trio.SSLStream) -> None:
        async def pass_on(near, far) -> None:
            try:
                async for data in near:
                    await far.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        try:
            await stream.do_handshake()
        except trio.BrokenResourceError:
            return
        far = await trio.open_tcp_stream("127.0.0.1", port)
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, stream, far)
            await pass_on(far, stream)

    (listener,) = await trio.open_ssl_over_tcp_listeners(
        0, context, host="127.0.0.1", https_compatible=True
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield listener.transport_listener.socket.getsockname()[1], asked
        nursery.cancel_scope.cancel()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def greeting(model: GeminiModel) -> AgentAudio:
    async with model.open_connection(Agent()) as session:
        await session.send(session.text_message("Greet the caller."))
        while True:
            if isinstance(event := await session.receive(), AgentAudio):
                return event


async def test_a_conversation_through_a_proxy_is_secret_to_it(plane, gemini, authority):
    async with (
        tls_in_front_of(port_of(gemini.url), authority, HOST) as (port, asked),
        connect_proxy({HOST: port}, "user:pass word") as proxy,
    ):
        url = proxy.url.replace(" ", "%20")
        model = GeminiModel(api_key=KEY, url=f"wss://{HOST}", plane=plane, proxy=url)
        with trio.fail_after(60):
            assert (await greeting(model)).pcm

    assert proxy.asked == [f"CONNECT {HOST}:443 HTTP/1.1"]
    assert asked == [HOST]
    assert len(proxy.seen) > 1000
    assert KEY.encode() not in proxy.seen


@pytest.mark.skipif(not plane_module.AVAILABLE, reason="needs epoll")
@pytest.mark.parametrize("keys", ["kept", "written down"])
async def test_tls_is_compiled_where_it_can_be_and_keys_are_not_written_down(
    nursery, gemini, authority, monkeypatch, tmp_path, keys
):
    if keys == "written down":
        monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    sockets = []

    class Watched(Plane):
        def new_wire(self, sock, *arguments, **options):
            sockets.append(sock)
            return super().new_wire(sock, *arguments, **options)

    plane = Watched()
    await nursery.start(plane.run)
    async with (
        tls_in_front_of(port_of(gemini.url), authority, HOST) as (port, _),
        connect_proxy({HOST: port}) as proxy,
    ):
        model = GeminiModel(api_key=KEY, url=f"wss://{HOST}", plane=plane, proxy=proxy.url)
        with trio.fail_after(60):
            assert (await greeting(model)).pcm

    is_pythons = isinstance(sockets[0], ssl.SSLSocket)
    assert is_pythons is (keys == "written down" or not tls.AVAILABLE)


async def test_without_tls_it_is_a_tunnel_too(plane, gemini):
    async with connect_proxy({HOST: port_of(gemini.url)}) as proxy:
        model = GeminiModel(api_key=KEY, url=f"ws://{HOST}:8080", plane=plane, proxy=proxy.url)
        with trio.fail_after(60):
            assert (await greeting(model)).pcm

    assert proxy.asked == [f"CONNECT {HOST}:8080 HTTP/1.1"]


@pytest.mark.parametrize("fault", ["name", "authority"])
async def test_a_proxy_that_leads_elsewhere_is_found_out(plane, gemini, authority, fault):
    name = "elsewhere.example" if fault == "name" else HOST
    signed_by = authority if fault == "name" else trustme.CA()
    async with (
        tls_in_front_of(port_of(gemini.url), signed_by, name) as (port, _),
        connect_proxy({HOST: port}) as proxy,
    ):
        model = GeminiModel(api_key=KEY, url=f"wss://{HOST}", plane=plane, proxy=proxy.url)
        with trio.fail_after(60), pytest.raises(ModelError, match="certificate"):
            await greeting(model)

    assert not gemini.sessions


@pytest.mark.parametrize("fault", ["password", "host", "nobody there"])
async def test_a_proxy_that_refuses_is_a_model_that_cannot_be_reached(plane, gemini, fault):
    names = {} if fault == "host" else {HOST: port_of(gemini.url)}
    async with connect_proxy(names, "user:right") as proxy:
        url = proxy.url if fault == "host" else proxy.url.replace("right", "wrong")
        if fault == "nobody there":
            url = "http://user:wrong@127.0.0.1:1"
        model = GeminiModel(api_key=KEY, url=f"ws://{HOST}", plane=plane, proxy=url)
        with trio.fail_after(60), pytest.raises(ModelError) as failed:
            await greeting(model)

    assert failed.value.retryable
    assert "wrong" not in str(failed.value)
    assert "right" not in str(failed.value)
    assert not gemini.sessions


@pytest.fixture
async def api(nursery, authority, tmp_path):
    """A REST API that knows one account; gives its port."""
    app = QuartTrio(__name__)

    @app.post("/2010-04-01/Accounts/AC1/Calls.json")
    async def calls():
        assert request.authorization.password == "token"
        return {"sid": "CA" + "1" * 32, "status": "queued"}, 201

    identity = authority.issue_cert("api.example")
    identity.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "api.pem"))
    config = make_config(
        "127.0.0.1:0", certfile=str(tmp_path / "api.pem"), keyfile=str(tmp_path / "api.pem")
    )
    (url,) = await nursery.start(
        partial(hypercorn.trio.serve, app, config, shutdown_trigger=trio.sleep_forever)
    )
    return port_of(url)


def carrier(proxy: str) -> TwilioCarrier:
    return TwilioCarrier(
        account_sid="AC1",
        auth_token="token",
        phone_number="+15005550006",
        webhooks=TwilioWebhooks("AC1", "token", "https://phone.example"),
        api_url="https://api.example",
        request_timeout_s=5.0,
        proxy=proxy,
    )


async def test_a_call_is_placed_through_a_proxy(api):
    async with connect_proxy({"api.example": api}, "user:right") as proxy:
        async with carrier(proxy.url) as twilio:
            placed = await twilio.place_call("+15005550101", ticket="t", max_duration_s=60)
        async with carrier(proxy.url.replace("right", "wrong")) as twilio:
            with pytest.raises(CarrierError) as refused:
                await twilio.place_call("+15005550101", ticket="t", max_duration_s=60)

    assert placed.call_sid == "CA" + "1" * 32
    assert proxy.asked[0] == "CONNECT api.example:443 HTTP/1.1"
    assert b"token" not in proxy.seen
    assert not refused.value.outcome_unknown  # it never came as far as Twilio
    assert "wrong" not in str(refused.value)


@pytest.mark.parametrize("name", ["gemini_proxy", "twilio_proxy"])
@pytest.mark.parametrize(
    "wrong",
    [
        "proxy.example:3128",
        "https://proxy.example",
        "socks5://proxy.example",
        "http://secret@proxy.example",
        "http://proxy.example/path",
        "http://user:secret@proxy.example:port",
    ],
)
def test_a_wrong_address_of_a_proxy_is_a_wrong_setting(name, wrong):
    with pytest.raises(ConfigurationError, match=name.upper()) as error:
        Settings.load(_env_file=None, **{name: wrong})

    assert "secret" not in str(error.value)


def test_a_proxys_password_is_not_shown():
    settings = Settings.load(_env_file=None, gemini_proxy="http://user:hunter2@proxy.example:3128")

    assert "hunter2" not in repr(settings)
