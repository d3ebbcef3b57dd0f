"""Calls from web pages: who gets one, what its ticket and its key are good for, how it goes on."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus

from server.settings.settings import Settings
from server.simulators.gemini import GeminiSimulator
from server.simulators.gemini.speech import GREETING, load_agent_speech
from tests.carrier.test_browser_protocol import tone
from tests.support.pages import PATIENCE_S, Page, open_stream, page_on
from tests.support.serving import closing_of, serving

pytestmark = pytest.mark.sockets


async def made(server, **body) -> dict:
    answer = await server.http.post("/calls/browser", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def ended(server, call_sid: str) -> dict:
    with trio.fail_after(PATIENCE_S):
        await server.service.calls.register.get(call_sid).finished.wait()
    return (await server.http.get(f"/calls/{call_sid}")).json()


@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
@pytest.mark.parametrize("quality", ["telephone", "wide"])
async def test_a_page_hears_its_agent_and_hangs_up(quality, media_path):
    async with serving(media_path=media_path) as server:
        call = await made(server, quality=quality, metadata={"shop": "7"})
        async with page_on(call) as page:
            await page.wait(lambda: page.told("mark"))
            await page.send("stop")
            record = await ended(server, call["call_sid"])

    assert (record["direction"], record["number"]) == ("inbound", "browser")
    assert (record["reason"], record["status"]) == ("caller-hung-up", "completed")
    assert record["metadata"] == {"shop": "7"}
    assert record["cost"]["carrier_usd"] == 0.0


@pytest.mark.slow
async def test_a_wide_call_loses_nothing_on_the_way_from_the_model():
    greeting = load_agent_speech(*GREETING).pcm
    async with serving() as server:
        call = await made(server, quality="wide")
        async with page_on(call) as page:
            await page.wait(lambda: len(page.heard) >= len(greeting) - 48)
            heard = bytes(page.heard)

    assert heard[: len(greeting)] == greeting[: len(heard)]


@pytest.mark.slow
async def test_a_wide_call_loses_nothing_on_the_way_to_the_model():
    high = tone(6_000, 16_000, 0.02)
    async with serving(agent_greeting=None, greeting_protect_s=0.0, barge_in="model") as server:
        call = await made(server, quality="wide")
        async with page_on(call) as page:
            await page.wait(lambda: page.told("media"))
            for _ in range(5):
                await page.say(high)
            heard = server.gemini.sessions[0].heard
            marked = len(page.told("mark"))
            await page.wait(lambda: high in bytes(heard) or len(page.told("mark")) > marked + 2)
            is_whole = high in bytes(heard)

    assert is_whole


async def test_an_agent_is_asked_for_by_name_and_with_what_it_needs():
    async with serving() as server:
        unknown = await server.http.post("/calls/browser", json={"agent": "nobody"})
        number = await server.http.post(
            "/calls/browser", json={"destination_number": "+15005550101"}
        )
        nothing = await server.http.post("/calls/browser", content="[]")

    assert (unknown.status_code, unknown.json()["fields"]) == (
        422,
        {"agent": "there is no agent of this name"},
    )
    assert number.status_code == 422
    assert nothing.status_code == 400


async def test_a_stranger_gets_no_call_and_no_ticket_but_the_page():
    async with serving(api_key="sesame") as server:
        call = await server.http.post("/calls/browser", json={})
        page = await server.http.get("/phone")
        key = {"Authorization": "Bearer sesame"}
        mine = (await server.http.post("/calls/browser", json={}, headers=key)).json()
        body = {"call_sid": mine["call_sid"], "key": "0" * 64}
        wrong = await server.http.post("/calls/browser/resume", json=body)
        sessions = len(server.service.calls.register.live)

    assert (call.status_code, page.status_code, wrong.status_code) == (401, 200, 403)
    assert sessions == 1


@pytest.mark.slow
async def test_a_ticket_is_good_once_and_for_its_own_call_only():
    async with serving() as server:
        first, second = await made(server), await made(server)
        async with page_on(first) as page:
            await page.wait(lambda: page.told("media"))
            async with page_on(first) as again:
                await again.over.wait()
            async with page_on(first, ticket=second["ticket"]) as other:
                await other.over.wait()
            codes = [each.socket.close_code for each in (again, other)]
            lives = not page.over.is_set()

    assert codes == [1008, 1008]
    assert lives


async def test_a_ticket_that_nobody_uses_ends_its_call():
    async with serving(browser_ticket_ttl_s=1.0) as server:
        call = await made(server)
        record = await ended(server, call["call_sid"])
        async with page_on(call) as late:
            await late.over.wait()

    assert (record["reason"], record["status"]) == ("no-answer", "no-answer")
    assert late.socket.close_code == 1008


async def test_pages_of_other_origins_open_no_stream_unless_they_are_allowed():
    async with serving(allowed_origins="https://shop.example.com") as server:
        call = await made(server)
        with pytest.raises(InvalidStatus) as refused:
            async with open_stream(call["url"], "https://evil.example.com"):
                pass
        async with open_stream(call["url"], "https://shop.example.com") as allowed:
            await allowed.send("{}")
        async with open_stream(call["url"], server.url) as own:
            await own.send("{}")

    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    ("public_url", "headers", "at"),
    [
        ("https://a.example", {}, "wss://a.example"),
        (
            "https://a.example",
            {"Host": "b.example", "Origin": "http://b.example"},
            "ws://b.example",
        ),
        ("https://a.example", {"Origin": "http://["}, "wss://a.example"),
        ("https://a.example", {"Host": "my_box:8000"}, "wss://a.example"),
        (None, {"Host": "my_box:8000"}, "ws://my_box:8000"),
        (None, {"Host": "b.example", "Origin": "https://b.example"}, "wss://b.example"),
        (None, {"Host": "b.example", "Origin": "http://b.example"}, "ws://b.example"),
        (
            "http://b.example",
            {"Host": "b.example", "Origin": "https://b.example"},
            "wss://b.example",
        ),
        (
            "https://b.example",
            {"Host": "b.example", "Origin": "http://b.example"},
            "wss://b.example",
        ),
    ],
)
async def test_a_page_is_told_where_it_has_reached_the_server_and_a_stranger_whatever_they_write(
    public_url, headers, at
):
    async with serving(public_url=public_url, api_key="sesame") as server:
        shown = {"X-API-Key": "sesame", **headers}
        answer = await server.http.post("/calls/browser", json={}, headers=shown)

    assert answer.status_code == 201, answer.text
    assert answer.json()["url"].startswith(f"{at}/")


async def test_a_page_whose_line_is_lost_is_given_another_ticket():
    async with serving() as server:
        call = await made(server)
        shown = {"call_sid": call["call_sid"], "key": call["key"]}
        async with page_on(call) as page:
            await page.wait(lambda: page.told("media"))
        goes_on = (await server.http.post("/calls/browser/resume", json=shown)).json()
        async with page_on(call, ticket=goes_on["ticket"], url=goes_on["url"]) as back:
            await back.wait(lambda: back.told("media"))
            await back.send("stop")
            record = await ended(server, call["call_sid"])
        over = (await server.http.post("/calls/browser/resume", json=shown)).json()

    assert "line back" in [line["what"] for line in record["timeline"]]
    assert record["reason"] == "caller-hung-up"
    assert (goes_on["over"], over["over"], over["ticket"]) == (False, True, None)


@pytest.mark.parametrize("quality", ["telephone", "wide"])
async def test_a_page_that_gives_up_a_slow_line_goes_on_though_it_is_still_heard(quality):
    async with serving() as server:
        call = await made(server, quality=quality)
        shown = {"call_sid": call["call_sid"], "key": call["key"]}
        async with page_on(call) as slow:
            await slow.wait(lambda: slow.told("media"))
            goes_on = (await server.http.post("/calls/browser/resume", json=shown)).json()
            async with page_on(call, ticket=goes_on["ticket"], url=goes_on["url"]) as back:
                await back.wait(lambda: back.told("media"))
                with trio.fail_after(PATIENCE_S):
                    await slow.over.wait()
                await back.send("stop")
                record = await ended(server, call["call_sid"])

    assert record["reason"] == "caller-hung-up"
    assert "line back" in [line["what"] for line in record["timeline"]]


@pytest.mark.parametrize("has_stream", [False, True])
async def test_a_page_hangs_up_by_its_calls_key(has_stream):
    async with serving() as server:
        call = await made(server)
        shown = {"call_sid": call["call_sid"], "key": call["key"], "hang_up": True}
        stranger = await server.http.post("/calls/browser/resume", json=shown | {"key": "0" * 64})
        async with page_on(call) if has_stream else trio.open_nursery() as page:
            if has_stream:
                await page.wait(lambda: page.told("media"))
            progress = server.service.calls.register.get_live(call["call_sid"]).progress
            over = (await server.http.post("/calls/browser/resume", json=shown)).json()
            with trio.fail_after(PATIENCE_S):
                await progress.settled.wait()
            record = await ended(server, call["call_sid"])
            kept = len(server.service.accounts.pages._streams)
        again = (await server.http.post("/calls/browser/resume", json=shown)).json()

    assert stranger.status_code == 403
    assert (over["over"], again["over"]) == (True, True)
    assert (record["reason"], record["status"]) == ("caller-hung-up", "completed")
    assert kept == 0


async def test_a_page_is_told_how_long_its_call_waits_when_the_line_is_lost():
    async with serving(media_timeout_s=3.0, line_lost_timeout_s=8.0) as server:
        waits = await made(server)
    async with serving(line_lost_timeout_s=0.0) as server:
        does_not = await made(server)

    assert (waits["comes_back_s"], does_not["comes_back_s"]) == (11.0, 0.0)


async def test_a_call_that_we_end_closes_the_pages_socket_as_over():
    async with serving() as server:
        call = await made(server)
        async with page_on(call) as page:
            await page.wait(lambda: page.told("media"))
            await server.http.post(f"/calls/{call['call_sid']}/hang-up")
            with trio.fail_after(PATIENCE_S):
                await page.over.wait()

    assert page.socket.close_code == 1000


async def test_a_page_whose_model_fails_is_told_so_in_words():
    async with serving(simulated_model="bad-setup", apology="We are sorry.") as server:
        call = await made(server)
        async with page_on(call) as page:
            with trio.fail_after(PATIENCE_S):
                await page.over.wait()
            said = page.told("say")

    assert [each["say"]["text"] for each in said] == ["We are sorry."]


async def test_with_a_model_alone_only_pages_are_served():
    gemini = GeminiSimulator(api_key="key")
    async with trio.open_nursery() as nursery:
        await nursery.start(gemini.run)
        account = {"gemini_api_key": "key", "gemini_url": gemini.url, "public_url": None}
        async with serving(**account, api_key="sesame") as server:
            server.http.headers["Authorization"] = "Bearer sesame"
            ready = (await server.http.get("/readyz")).json()
            call = await made(server)
            async with page_on(call) as page:
                await page.wait(lambda: page.told("media"))
                await page.send("stop")
                record = await ended(server, call["call_sid"])
            dialled = await server.make_call()
        nursery.cancel_scope.cancel()

    assert (ready["carrier"], ready["carriers"]) == ("browser", ["browser"])
    assert ready["simulated"] is False
    assert record["reason"] == "caller-hung-up"
    assert dialled.status_code == 502
    assert "no telephone is connected" in dialled.json()["message"]


def test_a_model_without_a_carrier_is_an_account_and_half_a_carrier_is_none():
    settings = Settings.load(_env_file=None, gemini_api_key="key")

    assert settings.account is not None
    assert settings.account.carrier is None


@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_a_page_that_floods_its_stream_loses_it(media_path):
    async with serving(media_path=media_path) as server:
        call = await made(server)
        async with open_stream(call["url"]) as socket:
            page = Page(socket, call, is_wide=False)
            await page.start(call["ticket"])
            await socket.recv()  # the greeting: whoever takes the audio has it now
            with suppress(ConnectionClosed):
                for _ in range(25):
                    await page.say(b"\x7f" * 6_400)
            code, _ = await closing_of(socket)
        record = await ended(server, call["call_sid"])

    assert code == 1008
    assert record["reason"] == "carrier-protocol-error"


@pytest.mark.slow
@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
@pytest.mark.parametrize("quality", ["telephone", "wide"])
async def test_a_page_is_told_again_and_again_that_its_call_is_served(quality, media_path):
    async with serving(media_path=media_path) as server:
        call = await made(server, quality=quality)
        async with page_on(call) as page:
            await page.wait(lambda: len(page.told("alive")) >= 2)

    assert page.told("alive")[0] == {"event": "alive", "streamSid": page.stream_sid}
