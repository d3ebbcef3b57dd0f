"""A server behind a proxy with a path of its own in front: taken off again, or left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from twilio.request_validator import RequestValidator

from server.app import create_app
from server.carrier.twilio.signature import WebhookVerifier
from server.errors import ConfigurationError
from server.serving.listening import listen
from server.settings.settings import Settings
from server.settings.values import OWN_PATHS, WEBHOOK_PATHS, public_url
from server.web.path_prefix import NAMED, prefix_of, without_name, without_prefix
from tests.support.serving import serving

pytestmark = pytest.mark.sockets

ROOT = Path(__file__).parents[2]
SHOWN = re.compile(r"PUBLIC_URL=(https?://[^\s`,]+)")
PREFIX = "/voice/phone%20line"
ASTERISK = {
    "carrier": "asterisk",
    "asterisk_url": "http://127.0.0.1:8088",
    "asterisk_user": "offhook",
    "asterisk_secret": "sesame",
    "gemini_api_key": "key",
}
WITH = PREFIX
WITHOUT = ""


def scope(path: str, raw_path: bytes | None = None, **more):
    given = {"type": "http", "path": path, "root_path": "", **more}
    return given if raw_path is None else given | {"raw_path": raw_path}


@pytest.mark.parametrize(
    ("prefix", "path", "raw_path", "wanted"),
    [
        ("", "/twiml", b"/twiml", ("/twiml", b"/twiml")),
        ("/p", "/p/twiml", b"/p/twiml", ("/twiml", b"/twiml")),
        ("/p", "/twiml", b"/twiml", ("/twiml", b"/twiml")),
        ("/p", "/p", b"/p", ("/", b"/")),
        ("/p", "/p/", b"/p/", ("/", b"/")),
        ("/p", "/pother/twiml", b"/pother/twiml", ("/pother/twiml", b"/pother/twiml")),
        ("/p", "/p/p/twiml", b"/p/p/twiml", ("/p/twiml", b"/p/twiml")),
        ("/p/q", "/p/twiml", b"/p/twiml", ("/p/twiml", b"/p/twiml")),
        ("/p%20q", "/p q/twiml", b"/p%20q/twiml", ("/twiml", b"/twiml")),
        ("/p", "/p/a b", b"/p/a%20b", ("/a b", b"/a%20b")),
        ("/~p", "/~p/twiml", b"/%7Ep/twiml", ("/twiml", b"")),
    ],
)
def test_a_prefix_is_taken_off_once(prefix, path, raw_path, wanted):
    given = scope(path, raw_path)

    found = without_prefix(given, prefix)

    assert (found["path"], found["raw_path"]) == wanted
    assert given == scope(path, raw_path)


PATHS = ("/stream", "/call-status")


def test_a_name_is_taken_off_for_the_routes_and_left_where_it_was_signed():
    given = scope("/n/offhook-3.1/call-status", b"/n/offhook-3.1/call-status")

    found = without_name(given, PATHS)

    assert (found["path"], found[NAMED]) == ("/call-status", "offhook-3.1")
    assert found["raw_path"] == b"/n/offhook-3.1/call-status"
    assert NAMED not in given


def test_a_name_stands_below_a_prefix():
    given = scope("/p/n/a/stream", b"/p/n/a/stream", type="websocket")

    found = without_name(without_prefix(given, "/p"), PATHS)

    assert (found["path"], found[NAMED], found["raw_path"]) == ("/stream", "a", b"/n/a/stream")


@pytest.mark.parametrize(
    "path",
    ["/stream", "/n/a", "/n/a/calls", "/n/a/make-call", "/n/../stream", "/n/a/n/b/stream"],
)
def test_no_other_path_names_anybody(path):
    given = scope(path, path.encode())

    assert without_name(given, PATHS) is given


def test_a_server_without_a_raw_path_is_no_fault():
    assert without_prefix(scope("/p/twiml"), "/p")["path"] == "/twiml"


def test_the_servers_own_life_has_no_path():
    lifespan = {"type": "lifespan"}

    assert without_prefix(lifespan, "/p") is lifespan


@pytest.mark.parametrize(
    ("url", "wanted"),
    [(None, ""), ("https://a.example", ""), ("https://a.example/", ""), ("https://a/b/c", "/b/c")],
)
def test_the_prefix_is_the_path_of_the_public_address(url, wanted):
    assert prefix_of(url) == wanted


@pytest.mark.parametrize("accounts", [{}, ASTERISK], ids=["twilio", "asterisk"])
def test_every_path_of_ours_is_known_for_one_as_a_prefix(accounts):
    app = create_app(Settings.load(_env_file=None, **accounts))
    first = {rule.rule.removeprefix("/").partition("/")[0] for rule in app.url_map.iter_rules()}
    beside = {"n"}  # before a process's name, which is taken off for the routes
    if accounts:
        beside |= {path.removeprefix("/") for path in WEBHOOK_PATHS}

    assert (first - {""}) | beside == OWN_PATHS


@pytest.mark.parametrize(
    "path", ["/calls", "/docs/x", "/metrics", "/n", "/n/a", "/phone", "/%70hone/x", "/resume/x"]
)
def test_a_prefix_that_could_be_a_path_of_ours_is_refused(path):
    with pytest.raises(ConfigurationError, match=r"PUBLIC_URL.*begins like one of this server"):
        Settings.load(_env_file=None, public_url=f"https://a.example{path}")


def test_the_prefixes_that_the_documentation_shows_are_taken():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    shown = [url for page in pages for url in SHOWN.findall(page.read_text())]

    assert len(shown) > 1
    assert [public_url(url) for url in shown] == shown


@pytest.mark.parametrize("arrives", [WITH, WITHOUT], ids=["left", "taken off"])
async def test_webhooks_are_signed_over_the_public_address(arrives):
    settings = {
        "twilio_account_sid": "AC" + "0" * 32,
        "twilio_auth_token": "the-token",
        "twilio_phone_number": "+15005550006",
        "gemini_api_key": "k",
        "twilio_api_url": "http://127.0.0.1:9",  # nobody listens there
        "gemini_url": "ws://127.0.0.1:9",
        "public_url": f"https://phone.example.com{PREFIX}",
        "api_key": "secret",
        "database_url": "sqlite://",
    }
    form = {"CallSid": "CA" + "1" * 32}
    validator = RequestValidator("the-token")

    answers = []
    app = create_app(Settings.load(_env_file=None, **settings))
    async with app.test_app():
        for signed in (f"https://phone.example.com{PREFIX}", "https://phone.example.com"):
            signature = validator.compute_signature(f"{signed}/call-status", form)
            answers.append(
                await app.test_client().post(
                    f"{arrives}/call-status", form=form, headers={"X-Twilio-Signature": signature}
                )
            )

    # The first one is Twilio's, and has no status in it.
    assert [answer.status_code for answer in answers] == [400, 403]


def test_an_upgrade_is_signed_over_the_public_address():
    verifier = WebhookVerifier("the-token", f"https://phone.example.com{PREFIX}")
    signature = RequestValidator("the-token").compute_signature(
        f"wss://phone.example.com{PREFIX}/stream", {}
    )

    assert verifier.verify_upgrade("/stream", {"x-twilio-signature": signature})
    assert not verifier.verify_upgrade("/stream/1", {"x-twilio-signature": signature})


@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_a_call_goes_through_a_proxy_that_leaves_the_prefix(
    media_path, monkeypatch, fast_clock
):
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/voice/line"
    monkeypatch.setattr("tests.support.serving.listen", lambda host, port: listener)

    async with serving(simulated_ring_s=0.1, media_path=media_path, public_url=url) as server:
        answers = [
            await server.http.post(
                f"{prefix}/make-call", json={"destination_number": "+15005550103"}
            )
            for prefix in ("/voice/line", "")
        ]
        page = await server.http.post("/calls/browser", json={})
        records = [await server.finished(answer.json()["call_sid"]) for answer in answers]
        assert server.service.accounts.webhooks.stream_url.endswith("/voice/line/stream")

    places = [(answer.headers["Location"], answer.json()["call_sid"]) for answer in answers]
    page_at = page.headers["Location"], page.json()["call_sid"]
    assert all(place == f"/voice/line/calls/{sid}" for place, sid in [*places, page_at])
    assert [record["reason"] for record in records] == ["caller-hung-up"] * 2
    assert all(record["status"] == "completed" for record in records)
