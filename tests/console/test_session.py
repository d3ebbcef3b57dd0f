"""Who gets into the console, with what, and what a page of somebody else's can do with that."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from werkzeug.datastructures import Headers

from server.app import OffhookApp, create_app
from server.console.pages import FILES
from server.console.session import COOKIE, SECURE_COOKIE, SESSION_S, TOKEN_HEADER, Sessions
from server.settings.settings import Settings
from server.web.http_request import HttpRequest
from server.web.keys import READ, Keys, hash_key
from server.web.static.files import HERE
from tests.support.access import SIMULATED

SECRET = "s" * 32
KEYS = Keys({"shop": hash_key("one"), "watcher": hash_key("two") + READ})
ALL_BYTES = 150_000
NUMBER = {"destination_number": "+15005550105"}


# -- sessions, without a server -----------------------------------------------------------------


def test_a_cookie_is_known_again_by_every_process_with_the_secret():
    cookie = Sessions(KEYS, [SECRET]).begin("shop")

    found = Sessions(KEYS, ["new" * 12, SECRET]).find(cookie)
    assert found is not None
    assert found.name == "shop"
    assert found == Sessions(KEYS, [SECRET]).find(cookie)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("shop", "watcher"),
        lambda text: text[:-1] + ("0" if text[-1] != "0" else "1"),
        lambda text: re.sub(r"\.(\d+)\.", ".999999999999.", text),
        lambda text: text + "\n",
        lambda text: text.upper(),
        lambda text: "",
        lambda text: "shop" + "." * 10_000,
    ],
)
def test_a_cookie_that_was_changed_is_nobodys(change):
    sessions = Sessions(KEYS, [SECRET])

    assert sessions.find(change(sessions.begin("shop"))) is None


def test_a_session_ends_with_its_time_its_key_and_its_secret():
    now = 1_000_000.0
    cookie = Sessions(KEYS, [SECRET], lambda: now).begin("shop")
    replaced = Keys({"shop": hash_key("another")})

    assert Sessions(KEYS, [SECRET], lambda: now + SESSION_S - 1).find(cookie) is not None
    assert Sessions(KEYS, [SECRET], lambda: now + SESSION_S + 1).find(cookie) is None
    assert Sessions(replaced, [SECRET], lambda: now).find(cookie) is None
    assert Sessions(Keys({}), [SECRET], lambda: now).find(cookie) is None
    assert Sessions(KEYS, ["t" * 32], lambda: now).find(cookie) is None


def test_no_two_sessions_are_the_same_and_each_has_a_token_of_its_own():
    sessions = Sessions(KEYS, [SECRET])
    cookies = {sessions.begin("shop") for _ in range(20)}

    tokens = {found.token for each in cookies if (found := sessions.find(each)) is not None}
    assert len(cookies) == len(tokens) == 20
    assert not any(token in cookie for token in tokens for cookie in cookies)


# -- on the whole app ---------------------------------------------------------------------------


@asynccontextmanager
async def running(**settings: object) -> AsyncGenerator[OffhookApp]:
    keys = {"shop": hash_key("one"), "watcher": hash_key("two") + READ}
    given = SIMULATED | {"api_keys": keys} | settings
    app = create_app(Settings.load(_env_file=None, **given))
    async with app.test_app():
        yield app


async def sign_in(client, key: str = "one", **headers: str):
    return await client.post("/console/session", json={"key": key}, headers=headers)


@pytest.mark.sockets
async def test_a_key_is_changed_for_a_cookie_that_no_script_reads():
    async with running() as app:
        client = app.test_client()
        before = await client.get("/calls")
        answer = await sign_in(client)
        cookie = answer.headers["Set-Cookie"]
        body = await answer.get_json()
        after = await client.get("/calls")

    assert (before.status_code, answer.status_code, after.status_code) == (401, 200, 200)
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert "one" not in cookie.partition("=")[2]
    assert body["name"] == "shop"
    assert body["may_change"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert after.headers["Cache-Control"] == "no-store"


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"key": "three"}, 401),
        ({"key": hash_key("one")}, 401),
        ({"key": ""}, 422),
        ({"key": 1}, 422),
        ({"key": "x" * 1_000}, 422),
        ({}, 422),
        (["one"], 422),
    ],
)
async def test_what_is_no_key_opens_nothing(body, status):
    async with running() as app:
        client = app.test_client()
        answer = await client.post("/console/session", json=body)
        after = await client.get("/calls")

    assert answer.status_code == status
    assert "Set-Cookie" not in answer.headers
    assert after.status_code == 401


@pytest.mark.sockets
async def test_a_form_of_another_site_signs_nobody_in():
    async with running() as app:
        client = app.test_client()
        form = await client.post("/console/session", form={"key": "one"})
        other = await sign_in(client, origin="https://evil.example")
        sandbox = await sign_in(client, origin="null")
        no_address = await sign_in(client, origin="http://[")
        sibling = await sign_in(client, **{"Sec-Fetch-Site": "same-site"})
        ours = await sign_in(client, origin="http://localhost")

    assert form.status_code in (415, 422)
    refused = (other, sandbox, no_address, sibling)
    assert [each.status_code for each in refused] == [403] * 4
    assert ours.status_code == 200


@pytest.mark.sockets
async def test_a_session_changes_nothing_without_the_token_that_only_our_page_reads():
    async with running() as app:
        client = app.test_client()
        token = (await (await sign_in(client)).get_json())["token"]
        answers = [
            await client.post("/make-call", json=NUMBER, headers=headers)
            for headers in (
                {},
                {TOKEN_HEADER: "0" * 32},
                {TOKEN_HEADER: token, "Origin": "https://evil.example"},
                {TOKEN_HEADER: token, "Sec-Fetch-Site": "cross-site"},
                {TOKEN_HEADER: token, "Origin": "http://localhost"},
            )
        ]
        bodies = [await answer.get_json() for answer in answers]
        await client.post(f"/calls/{bodies[-1]['call_sid']}/hang-up", headers={TOKEN_HEADER: token})
        told = await (await client.get("/console/session")).get_json()

    assert [answer.status_code for answer in answers] == [403, 403, 403, 403, 201]
    assert {body["error"] for body in bodies[:-1]} == {"forged"}
    assert told["token"] == token


@pytest.mark.sockets
async def test_a_page_of_another_site_reads_nothing_by_a_session():
    async with running(allowed_origins="*") as app:
        client = app.test_client()
        await sign_in(client)
        headers = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        answers = [
            await client.get(path, headers=headers)
            for path in ("/calls", "/console/session", "/calls.csv", "/events")
        ]

    assert [answer.status_code for answer in answers] == [403] * 4
    assert not any("Access-Control-Allow-Credentials" in each.headers for each in answers)


@pytest.mark.sockets
async def test_a_stolen_key_that_may_only_look_places_and_ends_no_call():
    async with running() as app:
        client, header = app.test_client(), {"X-API-Key": "two"}
        by_session = app.test_client()
        token = (await (await sign_in(by_session, "two")).get_json())["token"]
        shown = [await client.get(path, headers=header) for path in ("/calls", "/metrics")]
        posts = {
            "/".join("CA1" if part.startswith("<") else part for part in rule.rule.split("/"))
            for rule in app.url_map.iter_rules()
            if "POST" in rule.methods and not rule.websocket
        } - {"/twiml", "/resume", "/call-status", "/transfer-status", "/amd-status"}
        posts -= {"/console/session", "/calls/browser/resume"}  # which want a key in their body
        refused = {path: await client.post(path, json=NUMBER, headers=header) for path in posts}
        session = await by_session.post("/drain", headers={TOKEN_HEADER: token})
        rung = len(app.service.accounts.simulated_twilio.calls)

    assert [answer.status_code for answer in shown] == [200, 200]
    assert len(posts) >= 6
    assert {path: answer.status_code for path, answer in refused.items()} == dict.fromkeys(
        posts, 403
    )
    assert session.status_code == 403
    assert rung == 0


@pytest.mark.sockets
async def test_nothing_that_a_visitor_brings_along_becomes_their_session():
    async with running() as app:
        client = app.test_client()
        mine = (await sign_in(app.test_client())).headers["Set-Cookie"].split("=")[1].split(";")[0]
        client.set_cookie("localhost", COOKIE, "fixed")
        first = (await sign_in(client)).headers["Set-Cookie"].split("=")[1].split(";")[0]
        second = (await sign_in(client)).headers["Set-Cookie"].split("=")[1].split(";")[0]

    assert len({mine, first, second, "fixed"}) == 4


@pytest.mark.sockets
async def test_no_cookie_goes_through_a_parser_whose_time_grows_with_the_square(monkeypatch):
    def parsed(request):
        raise AssertionError("werkzeug has parsed cookies")

    monkeypatch.setattr(HttpRequest, "cookies", property(parsed))
    hostile = {"Cookie": f"{COOKIE}=" + " " * 8_170 + "x y"}
    async with running() as app, running(api_keys={}) as open_app:
        unknown = await app.test_client().get("/calls", headers=hostile)
        told = await open_app.test_client().get("/console/session", headers=hostile)
        client = app.test_client()
        await sign_in(client)
        known = await client.get("/calls")

    assert [answer.status_code for answer in (unknown, told, known)] == [401, 200, 200]


@pytest.mark.sockets
async def test_signing_out_has_the_browser_forget():
    async with running() as app:
        client = app.test_client()
        await sign_in(client)
        out = await client.delete("/console/session")
        after = await client.get("/calls")
        told = await (await client.get("/console/session")).get_json()

    assert out.status_code == 200
    assert "Max-Age=0" in out.headers["Set-Cookie"]
    assert after.status_code == 401
    assert (told["signed_in"], told["token"]) == (False, "")


@pytest.mark.sockets
async def test_by_https_the_cookie_is_this_hosts_alone():
    async with running(public_url="https://calls.example.com") as app:
        client = app.test_client()
        answer = await sign_in(client, host="calls.example.com")
        cookie = answer.headers["Set-Cookie"]

    assert cookie.startswith(f"{SECURE_COOKIE}=")
    assert "Secure" in cookie


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("peer", "said", "is_secure"),
    [
        ("10.0.0.7", ["https"], True),
        ("10.0.0.7", ["http, HTTPS"], True),
        ("10.0.0.7", ["https", "http"], False),  # the proxy's own word comes last
        ("10.0.0.7", ["wss"], False),
        ("10.0.0.7", [], False),
        ("192.0.2.1", ["https"], False),
        ("nobody", ["https"], False),
    ],
)
async def test_a_proxy_that_is_trusted_is_believed_how_the_page_was_asked_for(
    peer, said, is_secure
):
    async with running(trusted_proxies="10.0.0.0/8") as app:
        client = app.test_client()
        headers = Headers([("X-Forwarded-Proto", word) for word in said])
        answer = await client.post(
            "/console/session",
            json={"key": "one"},
            headers=headers,
            scope_base={"client": (peer, 50_000)},
        )
        cookie = answer.headers["Set-Cookie"]
        name = cookie.partition("=")[0]
        shown = {"Cookie": cookie.partition(";")[0]}
        found = await app.test_client().get(
            "/calls", headers=Headers([*headers, *shown.items()]),
            scope_base={"client": (peer, 50_000)},
        )  # fmt: skip

    assert name == (SECURE_COOKIE if is_secure else COOKIE)
    assert ("Secure" in cookie.split("; ")) is is_secure
    assert found.status_code == 200


@pytest.mark.sockets
async def test_where_no_key_is_wanted_nobody_signs_in():
    async with running(api_keys={}) as app:
        told = await (await app.test_client().get("/console/session")).get_json()

    assert (told["signed_in"], told["needs_key"], told["may_change"]) == (True, False, True)


def test_no_balancer_that_hides_what_nodes_say_takes_away_what_the_page_says():
    scripts = [path.read_text() for path in (*FILES.glob("*.js"), *HERE.glob("*.js"))]

    assert sum(f'"{TOKEN_HEADER}"' in text for text in scripts) == 1
    assert not any("x-offhook-" in text.lower() for text in scripts)


# -- files --------------------------------------------------------------------------------------

PAGE_FILES = sorted(path.name for path in FILES.iterdir())


@pytest.mark.sockets
@pytest.mark.parametrize(
    "path", ["/console", *(f"/static/console/{n}" for n in PAGE_FILES if ".html" not in n)]
)
async def test_the_page_takes_nothing_from_elsewhere_and_has_no_script_in_it(path):
    async with running() as app:
        answer = await app.test_client().get(path)
        text = (await answer.get_data()).decode()

    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-cache"
    elsewhere = set(re.findall(r"https?://[^\s'\"`]+", text))
    assert elsewhere <= {"http://www.w3.org/2000/svg"}
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text) == []
    assert re.findall(r"\sstyle=|\son[a-z]+=\"|<style|<script(?![^>]* src=)", text) == []


@pytest.mark.sockets
@pytest.mark.parametrize(
    "name",
    [
        *("../pages.py", "..%2fpages.py", "%2e%2e/pages.py", "....//pages.py", "..\\pages.py"),
        *("console.html", "", ".", "%00app.js", "/etc/passwd", "nothing.js", "session.py"),
    ],
)
async def test_no_other_file_is_given_out(name):
    async with running() as app:
        answer = await app.test_client().get(f"/static/console/{name}")

    assert answer.status_code in (308, 404)


def test_all_that_the_console_is_made_of_is_small():
    phone = (HERE / "phone.js", HERE / "phone-line.js")
    sizes = [path.stat().st_size for path in (*FILES.iterdir(), *phone)]

    assert sum(sizes) < ALL_BYTES
