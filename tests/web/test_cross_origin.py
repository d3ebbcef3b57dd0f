"""Browsers on other origins: off by default, exact origins, no credentials, the API alone."""

from __future__ import annotations

import pytest

from server.app import create_app
from server.errors import ConfigurationError
from server.settings.settings import Settings
from server.web.cross_origin import is_own_name
from tests.support.access import SIMULATED

ORIGIN = "https://app.example.com"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


def client(**settings):
    given = {"api_key": "secret", "database_url": "sqlite://"} | settings
    return create_app(Settings.load(_env_file=None, **given)).test_client()


def cross_origin(response) -> dict[str, str]:
    return {
        name: value
        for name, value in response.headers.items()
        if name.lower().startswith("access-control-")
    }


@pytest.mark.parametrize("path", ["/make-call", "/calls", "/twiml", "/healthz", "/nothing"])
async def test_without_the_setting_nothing_is_allowed(path):
    browser = client()

    preflight = await browser.options(path, headers=PREFLIGHT)
    plain = await browser.get(path, headers={"Origin": ORIGIN})

    assert cross_origin(preflight) == cross_origin(plain) == {}
    assert "Origin" not in preflight.headers.get("Vary", "")


async def test_a_preflight_needs_no_key():
    response = await client(allowed_origins=ORIGIN).options("/make-call", headers=PREFLIGHT)

    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Allow-Methods"] == "POST"
    allowed = response.headers["Access-Control-Allow-Headers"]
    assert {"Authorization", "Content-Type", "Idempotency-Key", "X-API-Key"} <= set(
        allowed.split(", ")
    )
    assert response.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/calls", "GET"), ("/calls/CA1", "GET"), ("/calls/CA1/hang-up", "POST"), ("/drain", "POST")],
)
async def test_a_preflight_names_what_the_route_takes(path, methods):
    response = await client(allowed_origins=ORIGIN).options(path, headers=PREFLIGHT)

    assert response.headers["Access-Control-Allow-Methods"] == methods


async def test_an_answer_may_be_read_by_the_origin_whatever_it_is():
    browser = client(allowed_origins=f"https://other.example,{ORIGIN}")

    for key, status in (("wrong", 401), ("secret", 400)):
        headers = {"Origin": ORIGIN, "X-API-Key": key}
        response = await browser.post("/make-call", headers=headers, data=b"{")

        assert response.status_code == status
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
        assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com.evil.example",
        "https://evil-app.example.com",
        "https://sub.app.example.com",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com/",
        "HTTPS://APP.EXAMPLE.COM",
        "null",
        "",
        "*",
    ],
)
async def test_an_origin_that_is_not_exactly_named_is_told_nothing(origin):
    browser = client(allowed_origins=ORIGIN)

    preflight = await browser.options("/make-call", headers=PREFLIGHT | {"Origin": origin})
    plain = await browser.post("/make-call", headers={"Origin": origin})

    assert preflight.status_code == 403
    assert cross_origin(preflight) == cross_origin(plain) == {}
    assert plain.headers["Vary"] == preflight.headers["Vary"] == "Origin"


async def test_a_star_is_for_all_and_says_so():
    browser = client(allowed_origins="*")

    preflight = await browser.options("/make-call", headers=PREFLIGHT | {"Origin": "null"})
    without = await browser.post("/make-call")

    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in preflight.headers
    assert "Vary" not in preflight.headers
    assert cross_origin(without) == {}


@pytest.mark.parametrize(
    "path",
    ["/twiml", "/call-status", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/x"],
)
async def test_what_is_not_the_api_is_no_pages_business(path):
    browser = client(allowed_origins="*")

    preflight = await browser.options(path, headers=PREFLIGHT)
    plain = await browser.get(path, headers={"Origin": ORIGIN})

    assert cross_origin(preflight) == cross_origin(plain) == {}


async def test_options_that_are_no_preflight_need_a_key():
    response = await client(allowed_origins=ORIGIN).options(
        "/make-call", headers={"Origin": ORIGIN}
    )

    assert response.status_code == 401


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("HTTPS://App.Example.com/", ("https://app.example.com",)),
        ("https://a.example:443, http://b.example:80", ("https://a.example", "http://b.example")),
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("http://[::1]:3000", ("http://[::1]:3000",)),
        ("*", ("*",)),
        ("", ()),
    ],
)
def test_origins_are_written_as_browsers_do(given, wanted):
    assert Settings.load(_env_file=None, allowed_origins=given).allowed_origins == wanted


@pytest.mark.parametrize(
    "given",
    [
        "app.example.com",
        "https://*.example.com",
        "https://a.example/x",
        "null",
        "https://a:b",
        "**",
    ],
)
def test_what_is_no_origin_is_refused(given):
    with pytest.raises(ConfigurationError, match="ALLOWED_ORIGINS"):
        Settings.load(_env_file=None, allowed_origins=given)


# -- where no key is wanted ---------------------------------------------------------------------

CHANGES = ("/make-call", "/drain", "/check", "/calls/browser", "/calls/CA1/hang-up")


@pytest.mark.sockets
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:1", "http://[", "null"]
)
async def test_where_no_key_is_wanted_no_other_sites_page_changes_anything(origin):
    app = create_app(Settings.load(_env_file=None, **SIMULATED, database_url="sqlite://"))
    async with app.test_app():
        browser = app.test_client()
        headers = {"Origin": origin, "Content-Type": "text/plain"}
        answers = {path: await browser.post(path, headers=headers, data="{}") for path in CHANGES}
        said = await answers["/drain"].get_json()
        read = await browser.get("/calls", headers=headers)
        draining = app.service.calls.draining

    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(
        CHANGES, 403
    )
    assert said["error"] == "forged"
    assert "ALLOWED_ORIGINS" in said["message"]
    assert read.status_code == 200
    assert not draining


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("headers", "settings"),
    [
        ({}, {}),
        ({"Origin": "http://localhost"}, {}),
        ({"Origin": "https://calls.example.com"}, {"public_url": "https://calls.example.com"}),
        ({"Origin": ORIGIN}, {"allowed_origins": ORIGIN}),
    ],
)
async def test_where_no_key_is_wanted_our_own_pages_and_those_allowed_do(headers, settings):
    given = SIMULATED | {"database_url": "sqlite://", **settings}
    app = create_app(Settings.load(_env_file=None, **given))
    async with app.test_app():
        answer = await app.test_client().post("/drain", headers=headers)
        draining = app.service.calls.draining

    assert answer.status_code in (200, 202)
    assert draining


@pytest.mark.sockets
async def test_where_no_key_is_wanted_a_site_that_says_it_is_here_reads_and_changes_nothing():
    app = create_app(Settings.load(_env_file=None, **SIMULATED, database_url="sqlite://"))
    async with app.test_app():
        browser = app.test_client()
        headers = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
        read = await browser.get("/calls", headers={"Host": headers["Host"]})
        changed = await browser.post("/drain", headers=headers)
        said = await read.get_json()
        probed = await browser.get("/healthz", headers=headers)
        draining = app.service.calls.draining

    assert (read.status_code, changed.status_code, probed.status_code) == (403, 403, 200)
    assert said["error"] == "forged"
    assert "PUBLIC_URL" in said["message"]
    assert not draining


@pytest.mark.sockets
async def test_the_name_that_a_server_listens_at_is_its_own_however_often_it_is_called():
    given = SIMULATED | {"database_url": "sqlite://", "host": "Box.example.com"}
    app = create_app(Settings.load(_env_file=None, **given))
    async with app.test_app():
        client, named = app.test_client(), {"Host": "box.example.com:8000"}
        served_at = {"scope_base": {"server": ("10.0.0.5", 8000)}}
        answers = [await client.get("/calls", headers=named, **served_at) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("192.168.1.7", True),
        ("offhook:8000", True),  # another container's name for this one
        ("macbook.local:8000", True),
        ("host.docker.internal:8000", True),
        ("nas.lan:8000", True),
        ("LOCALHOST.:8000", True),
        ("[::ffff:127.0.0.1]:8000", True),
        ("CALLS.example.com", True),
        ("calls.example.com.:443", True),
        ("app.example.com", True),
        ("evil.example", False),
        ("evil.calls.example.com", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("local.evil.example:8000", False),
        ("nas.lan.evil.example", False),
        ("evil.notlocal", False),
        ("0x7f.0.0.1", False),
        ("127.0.0.01", False),
        ("calls.example.com@evil.example", False),
        ("evil.example.", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_a_name_is_this_servers_own_if_no_site_can_have_it(host, is_own):
    headers = {"Host": host} if host else {}

    assert is_own_name(headers, "https://calls.example.com", [ORIGIN, "*"]) is is_own


def test_two_names_at_once_are_nobodys():
    class Twice(dict):
        def items(self):
            return [("Host", "localhost"), ("host", "evil.example")]

    assert not is_own_name(Twice(), "https://calls.example.com", [])
