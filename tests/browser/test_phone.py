"""The page's telephone in a real Chromium, whose microphone is a recording, against a server."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import trio

from benchmarks.microphone import speech_file
from tests.support.browser import with_a_made_up_phone
from tests.support.chromium import WAIT_MS, chromium, needs_chromium
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
SPEECH = Path(str(files("server").joinpath("speech")))
WATCH = """() => {
  globalThis.seen = {states: [], heard: [], played: [], said: []};
  const add = () => {
    const phone = globalThis.phone;
    if (!phone || phone.watched) return;
    phone.watched = true;
    phone.addEventListener("state", ({detail}) => seen.states.push([detail.state, detail.reason]));
    phone.addEventListener("level", ({detail}) => {
      seen.heard.push(detail.heard);
      seen.played.push(detail.played);
    });
    phone.addEventListener("say", ({detail}) => seen.said.push(detail.text));
  };
  setInterval(add, 1);
}"""
LATE = """async () => {
  const { Phone } = await import("./static/phone.js");
  const states = [];
  const late = (globalThis.late = { states, sid: "", given: false });
  const phone = new Phone({
    ask: async (wishes) => {
      const answer = await fetch("calls/browser", {
        method: "POST", body: JSON.stringify(wishes),
        headers: { "Content-Type": "application/json" },
      });
      const call = await answer.json();
      late.sid = call.call_sid;
      phone.hangUp();
      return call;
    },
  });
  phone.addEventListener("state", ({ detail }) => states.push(detail.state));
  await phone.prepare();
  late.given = true;
}"""
STALL = """() => {
  // The first socket brings what it was given so slowly that it goes on after it was closed.
  const { prototype } = WebSocket;
  const { send, close } = prototype;
  let first, last;
  prototype.send = function (text) {
    if (this === (first ??= this)) last = text;
    send.call(this, text);
  };
  prototype.close = function (...given) {
    if (this === first) setInterval(() => this.readyState === 1 && send.call(this, last), 20);
    else close.apply(this, given);
  };
  Object.defineProperty(prototype, "bufferedAmount", { get() {
    return this === first ? 1e9 : 0;
  } });
}"""
CATCH_UP = """() => {
  // A page that stood still has much to send when it goes on, and nothing a moment later.
  globalThis.asked = 0;
  Object.defineProperty(WebSocket.prototype, "bufferedAmount", { get: () => (asked++ ? 0 : 1e9) });
}"""
SILENCE = """(how) => {
  // The first socket that is opened is as good as one whose other end is frozen, or cut off.
  const { WebSocket: Real } = globalThis;
  globalThis.opened = 0;
  const hung = { readyState: 0, bufferedAmount: 0, send() {}, close() {} };
  globalThis.WebSocket = class extends Real {
    constructor(...given) {
      if (++opened === 1 && how === "never opens") return hung;
      super(...given);
      this.isFirst = opened === 1;
    }
    set onmessage(take) {
      super.onmessage = (message) => {
        const { event } = JSON.parse(message.data);
        if (this.isFirst && this.isCut) return;
        if (how === "says nothing of itself" && event === "alive") return;
        take(message);
        if (this.isFirst && event === "alive" && how === "falls silent") this.isCut = true;
      };
    }
  };
}"""
COUNT_SOCKETS = """() => {
  globalThis.sockets = 0;
  globalThis.WebSocket = class extends WebSocket {
    constructor(...given) {
      super(...given);
      globalThis.sockets += 1;
    }
  };
}"""
BREAK_SOUND = """(when) => {
  // What plays the sound does not load: before or after there is a microphone, or it never says.
  globalThis.tracks = [];
  const { mediaDevices } = navigator;
  const ask = mediaDevices.getUserMedia.bind(mediaDevices);
  const granted = new Promise((grant) => { globalThis.grant = grant; });
  const given = new Promise((give) => {
    mediaDevices.getUserMedia = async (wishes) => {
      if (when === "before") await granted;
      const microphone = await ask(wishes);
      tracks.push(...microphone.getTracks());
      give();
      return microphone;
    };
  });
  AudioWorklet.prototype.addModule = async () => {
    if (when !== "before") await given;
    if (when === "never") await new Promise(() => {});
    throw new Error("it does not load");
  };
}"""
LOUD = 0.05
MOST_ASKED = 60
CAME_BACK = """() => phone.state === "talking"
  && seen.states.some(([state]) => state === "reconnecting")"""
GREETED = f"() => seen.played.some((peak) => peak > {LOUD})"


@pytest.fixture
def talking_microphone(tmp_path):
    """Somebody who says something every four seconds, whoever is speaking."""
    words = SPEECH / "caller-interrupt.wav"
    return speech_file(tmp_path / "talking.wav", speech=words, before_s=2.5, after_s=1.0)


def open_phone(browser, url: str):
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def note(said):
        if said.type == "error" and not said.location["url"].endswith("/favicon.ico"):
            wrong.append(said.text)

    page.on("console", note)
    page.goto(f"{url}/phone")
    page.evaluate(WATCH)
    return page, wrong


async def test_a_page_hears_the_greeting_and_hangs_up(silent_microphone):
    def at_the_page(url):
        with chromium(microphone=silent_microphone) as browser:
            page, wrong = open_phone(browser, url)
            page.click("#call")
            page.wait_for_function(GREETED)
            call_sid = page.evaluate("phone.callSid")
            page.click("#call")
            page.wait_for_function("() => phone.state === 'over'")
            return call_sid, page.evaluate("seen.states"), wrong

    async with serving() as server:
        call_sid, states, wrong = await trio.to_thread.run_sync(at_the_page, server.url)
        call = server.service.calls.register.get(call_sid)
        await call.finished.wait()
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    assert wrong == []
    assert [state for state, _ in states][-3:] == ["connecting", "talking", "over"]
    assert states[-1] == ["over", "hung-up"]
    assert (record["reason"], record["status"]) == ("caller-hung-up", "completed")
    assert record["agent_heard_s"] > 0


def wait_recorded(page, call_sid: str, is_there) -> dict:
    """The call's record as soon as it is as wanted; asked for whenever a second has been played."""
    for _ in range(MOST_ASKED):
        ask = "(sid) => fetch(`calls/${sid}`).then((answer) => answer.json())"
        record = page.evaluate(ask, call_sid)
        if is_there(record):
            return record
        assert record["state"] != "ended", record["reason"]
        played = page.evaluate("seen.played.length")
        page.wait_for_function("(count) => seen.played.length > count + 50", arg=played)
    raise AssertionError(record)


def call_by_click(page) -> str:
    page.click("#call")
    page.wait_for_function("() => globalThis.phone?.state === 'talking'")
    return page.evaluate("phone.callSid")


@pytest.mark.parametrize("quality", ["telephone", "wide"])
async def test_an_agent_that_is_interrupted_falls_silent_on_the_page(talking_microphone, quality):
    def at_the_page(url):
        with chromium(microphone=talking_microphone) as browser:
            page, wrong = open_phone(browser, url)
            page.select_option("#quality", quality)
            call_sid = call_by_click(page)

            def is_there(record):
                cut = any(line["what"] == "barge-in" for line in record["timeline"])
                heard = any(turn["speaker"] == "caller" for turn in record["transcript"])
                seen = page.evaluate("seen") if cut and heard else {"heard": []}
                # Who begins in a pause of the agent's is tried again, four seconds later.
                return any(falls_silent(seen, at) for at in range(len(seen["heard"])))

            record = wait_recorded(page, call_sid, is_there)
            page.click("#call")
            return record, wrong

    async with serving() as server:
        record, wrong = await trio.to_thread.run_sync(at_the_page, server.url)

    assert wrong == []
    assert any(turn.get("unheard") for turn in record["transcript"] if turn["speaker"] == "agent")


def falls_silent(seen: dict, at: int) -> bool:
    """Whether the caller begins to speak in this frame, over the agent, who soon stops for long."""
    heard, played = seen["heard"][at - 1 : at + 1], seen["played"]
    if at < 10 or not heard[0] <= LOUD < heard[1] or max(played[at - 10 : at]) <= LOUD:
        return False
    return any(max(played[on : on + 30], default=1.0) < LOUD for on in range(at, at + 50))


async def test_a_call_that_the_server_ends_is_over_on_the_page(silent_microphone):
    def at_the_page(url):
        with chromium(microphone=silent_microphone) as browser:
            page, wrong = open_phone(browser, url)
            call_sid = call_by_click(page)
            page.evaluate("(sid) => fetch(`calls/${sid}/hang-up`, {method: 'POST'})", call_sid)
            page.wait_for_function("() => phone.state === 'over'")
            return page.evaluate("seen.states"), wrong

    async with serving() as server:
        states, wrong = await trio.to_thread.run_sync(at_the_page, server.url)

    assert wrong == []
    assert states[-1] == ["over", "over"]


async def test_a_page_whose_network_is_gone_for_a_moment_goes_on_with_its_call(silent_microphone):
    def at_the_page(url):
        with chromium(microphone=silent_microphone) as browser:
            page, _ = open_phone(browser, url)
            call_sid = call_by_click(page)
            page.wait_for_function(GREETED)
            page.context.set_offline(True)
            page.wait_for_function("() => phone.state === 'reconnecting'")
            page.evaluate("for (let i = 0; i < 3; i++) dispatchEvent(new Event('offline'))")
            page.evaluate(COUNT_SOCKETS)
            page.context.set_offline(False)
            page.wait_for_function("() => phone.state === 'talking'")
            page.evaluate("seen.played.length = 0")
            page.wait_for_function(GREETED)
            page.click("#call")
            page.wait_for_function("() => phone.state === 'over'")
            return call_sid, page.evaluate("seen.states"), page.evaluate("sockets")

    async with serving() as server:
        call_sid, states, sockets = await trio.to_thread.run_sync(at_the_page, server.url)
        await server.service.calls.register.get(call_sid).finished.wait()
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    assert states[-1] == ["over", "hung-up"]
    assert sockets == 1
    noted = [line["what"] for line in record["timeline"]]
    assert noted.index("line lost") < noted.index("line back")
    assert record["reason"] == "caller-hung-up"


@pytest.mark.parametrize("quality", ["telephone", "wide"])
async def test_a_page_that_cannot_get_rid_of_what_is_said_takes_another_line(
    silent_microphone, quality
):
    def at_the_page(url):
        with chromium(microphone=silent_microphone) as browser:
            page, wrong = open_phone(browser, url)
            page.select_option("#quality", quality)
            call_sid = call_by_click(page)
            page.wait_for_function(GREETED)
            page.evaluate(STALL)
            page.wait_for_function(CAME_BACK)
            page.evaluate("seen.played.length = 0")
            page.wait_for_function(GREETED)
            page.click("#call")
            page.wait_for_function("() => phone.state === 'over'")
            return call_sid, [state for state, _ in page.evaluate("seen.states")], wrong

    async with serving() as server:
        call_sid, states, wrong = await trio.to_thread.run_sync(at_the_page, server.url)
        await server.service.calls.register.get(call_sid).finished.wait()
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    assert wrong == []
    assert states[-4:] == ["talking", "reconnecting", "talking", "over"]
    assert record["reason"] == "caller-hung-up"


async def test_a_page_that_stood_still_keeps_its_line(silent_microphone):
    def at_the_page(url):
        with chromium(microphone=silent_microphone) as browser:
            page, wrong = open_phone(browser, url)
            call_by_click(page)
            page.evaluate(CATCH_UP)
            page.wait_for_function("() => asked > 2")
            page.click("#call")
            page.wait_for_function("() => phone.state === 'over'")
            return [state for state, _ in page.evaluate("seen.states")], wrong

    async with serving() as server:
        states, wrong = await trio.to_thread.run_sync(at_the_page, server.url)

    assert wrong == []
    assert "reconnecting" not in states


async def test_an_agent_that_nobody_calls_after_all_is_given_back_in_every_state(silent_microphone):
    def at_the_page(url):
        with chromium(microphone=silent_microphone) as browser:
            page, wrong = open_phone(browser, url)
            page.click("#ready")
            page.wait_for_function("() => globalThis.phone?.state === 'ready'")
            sids = [page.evaluate("phone.callSid")]
            page.evaluate("phone.hangUp()")
            page.click("#ready")
            page.wait_for_function("() => phone.state === 'ready'")
            sids.append(page.evaluate("phone.callSid"))
            page.evaluate("() => { phone.call(); phone.hangUp(); }")  # before there is a socket
            page.click("#ready")
            page.wait_for_function("() => phone.state === 'ready'")
            sids.append(page.evaluate("phone.callSid"))
            page.goto("about:blank")
            return sids, wrong

    async with serving() as server:
        sids, wrong = await trio.to_thread.run_sync(at_the_page, server.url)
        with trio.fail_after(WAIT_MS / 1_000):
            for sid in sids:
                await server.service.calls.register.get(sid).finished.wait()
        records = [(await server.http.get(f"/calls/{sid}")).json() for sid in sids]

    assert wrong == []
    assert len(set(sids)) == 3
    assert [record["reason"] for record in records] == ["caller-hung-up"] * 3


async def test_an_agent_that_was_asked_for_is_given_back_if_it_comes_too_late(silent_microphone):
    def at_the_page(url):
        with chromium(microphone=silent_microphone) as browser:
            page, wrong = open_phone(browser, url)
            page.evaluate(LATE)
            page.wait_for_function("() => globalThis.late.given")
            return page.evaluate("late"), wrong

    async with serving() as server:
        late, wrong = await trio.to_thread.run_sync(at_the_page, server.url)
        with trio.fail_after(WAIT_MS / 1_000):
            await server.service.calls.register.get(late["sid"]).finished.wait()
        record = (await server.http.get(f"/calls/{late['sid']}")).json()

    assert wrong == []
    assert late["states"] == ["preparing", "over"]
    assert record["reason"] == "caller-hung-up"


async def test_keys_and_mute_reach_the_agent(talking_microphone):
    def at_the_page(url):
        with chromium(microphone=talking_microphone) as browser:
            page, wrong = open_phone(browser, url)
            call_sid = call_by_click(page)
            page.click("#mute")
            page.wait_for_function("() => phone.muted")
            page.evaluate("seen.heard.length = 0")
            page.click("#keys >> text=5")
            digit = wait_recorded(
                page,
                call_sid,
                lambda record: any(one["what"] == "digit" for one in record["timeline"]),
            )
            page.wait_for_function("() => seen.heard.length > 250")
            heard = page.evaluate("Math.max(...seen.heard.slice(5))")
            page.click("#call")
            return digit, heard, wrong

    async with serving() as server:
        _, heard, wrong = await trio.to_thread.run_sync(at_the_page, server.url)

    assert wrong == []
    assert heard == 0


async def test_the_page_says_of_a_new_call_that_it_is_not_muted():
    def at_the_page(url):
        with chromium() as browser:
            page = browser.new_page()
            with_a_made_up_phone(page)
            page.goto(f"{url}/phone")
            seen = []
            for _ in range(2):
                call_by_click(page)
                seen.append(page.get_attribute("#mute", "aria-pressed"))
                page.click("#mute")
                seen.append(page.get_attribute("#mute", "aria-pressed"))
                page.click("#call")
            return seen

    async with serving() as server:
        seen = await trio.to_thread.run_sync(at_the_page, server.url)

    assert seen == ["false", "true"] * 2


@pytest.mark.parametrize("when", ["before", "after", "never"])
async def test_a_microphone_is_off_after_a_page_could_not_load_its_sound(talking_microphone, when):
    def at_the_page(url):
        with chromium(microphone=talking_microphone) as browser:
            page, _ = open_phone(browser, url)
            page.evaluate(BREAK_SOUND, when)
            page.click("#call")
            if when == "never":
                page.wait_for_function("() => tracks.length > 0")
                page.evaluate("phone.hangUp()")
            page.wait_for_function("() => globalThis.phone?.state === 'over'")
            page.evaluate("grant()")
            page.wait_for_function("() => tracks.some((track) => track.readyState === 'ended')")
            return page.evaluate("tracks.map((track) => track.readyState)")

    async with serving() as server:
        states = await trio.to_thread.run_sync(at_the_page, server.url)

    assert states == ["ended"]


@pytest.mark.parametrize("how", ["never opens", "falls silent"])
async def test_a_page_that_hears_nothing_of_its_server_takes_another_line(talking_microphone, how):
    def at_the_page(url):
        with chromium(microphone=talking_microphone) as browser:
            page, wrong = open_phone(browser, url)
            page.evaluate(SILENCE, how)
            page.click("#call")
            page.wait_for_function("() => seen.states.some(([state]) => state === 'reconnecting')")
            page.wait_for_function("() => phone.state === 'talking'")
            page.evaluate("seen.played.length = 0")
            page.wait_for_function(GREETED)
            call_sid = page.evaluate("phone.callSid")
            page.click("#call")
            page.wait_for_function("() => phone.state === 'over'")
            return call_sid, page.evaluate("opened"), wrong

    async with serving() as server:
        call_sid, opened, wrong = await trio.to_thread.run_sync(at_the_page, server.url)
        await server.service.calls.register.get(call_sid).finished.wait()
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    assert wrong == []
    assert opened == 2
    assert record["reason"] == "caller-hung-up"


async def test_a_page_whose_server_never_says_that_it_is_there_keeps_its_line(talking_microphone):
    def at_the_page(url):
        with chromium(microphone=talking_microphone) as browser:
            page, _ = open_phone(browser, url)
            page.evaluate(SILENCE, "says nothing of itself")
            call_by_click(page)
            page.wait_for_function("() => seen.heard.length > 400")
            return page.evaluate("phone.state"), page.evaluate("opened")

    async with serving() as server:
        assert await trio.to_thread.run_sync(at_the_page, server.url) == ("talking", 1)
