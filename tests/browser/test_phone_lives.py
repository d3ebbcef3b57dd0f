"""One telephone of a page, call after call: what was begun for one has no say in the next."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.chromium import WAIT_MS, chromium, needs_chromium
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
HARNESS = """async () => {
  const { Phone } = await import("./static/phone.js");
  const seen = (globalThis.seen = {
    states: [], reasons: [], problems: [], levels: 0, asked: [], given: [], starts: [], sockets: 0,
    contexts: [], tracks: [], begun: [],
  });
  // What is held has been done, and nobody learns of it before it is let go.
  const held = (globalThis.held = {});
  globalThis.hold = (object, name, isHeld = () => true) => {
    const real = object[name];
    held[name] = [];
    object[name] = async function (...given) {
      const result = await real.apply(this, given);
      if (isHeld(...given)) await new Promise((go) => held[name].push(go));
      return result;
    };
  };
  globalThis.begin = (what) => {
    const one = { isOver: false, error: null };
    seen.begun.push(one);
    const fail = (error) => { one.error = error.message; };
    phone[what]().catch(fail).then(() => { one.isOver = true; });
  };
  globalThis.isAnother = (_, { body }) => !JSON.parse(body).hang_up; // is asked for, and no end

  const { fetch: ask, WebSocket: Socket, AudioContext: Context } = globalThis;
  globalThis.fetch = async (...given) => {
    const answer = await ask(...given);
    const text = await answer.text();
    const told = JSON.parse(text);
    seen.given.push([told.call_sid ?? JSON.parse(given[1].body).call_sid, told.ticket]);
    return new Response(text, answer);
  };
  globalThis.WebSocket = class extends Socket {
    constructor(...given) {
      super(...given);
      seen.sockets += 1;
    }
    send(text) {
      const { event, start } = JSON.parse(text);
      if (event === "start") seen.starts.push([start.callSid, start.customParameters.ticket]);
      super.send(text);
    }
  };
  globalThis.AudioContext = class extends Context {
    constructor(...given) {
      super(...given);
      seen.contexts.push(this);
    }
  };
  const { mediaDevices } = navigator;
  const listen = mediaDevices.getUserMedia.bind(mediaDevices);
  mediaDevices.getUserMedia = async (wishes) => {
    const microphone = await listen(wishes);
    seen.tracks.push(...microphone.getTracks());
    return microphone;
  };
  globalThis.newCall = async (wishes) => {
    seen.asked.push(wishes);
    const headers = { "Content-Type": "application/json" };
    const call = { method: "POST", headers, body: JSON.stringify(wishes) };
    return (await fetch("calls/browser", call)).json();
  };
  const phone = (globalThis.phone = new Phone({ ask: (wishes) => newCall(wishes) }));
  phone.addEventListener("state", ({ detail: { state, reason } }) => {
    seen.states.push(state);
    if (reason) seen.reasons.push(reason);
  });
  phone.addEventListener("problem", ({ detail }) => seen.problems.push(detail.message));
  phone.addEventListener("level", () => { seen.levels += 1; });
}"""
SLEPT_MS = 59_000
"""An agent waits for a minute, and for a call that is made anew two seconds before."""
HOLD_RESUME = "() => hold(globalThis, 'fetch', isAnother)"
LOSE = "() => dispatchEvent(new Event('offline'))"
SILENT = """(how) => {
  AudioContext.prototype.resume = async () => {
    if (how === "refused") throw new Error("no loudspeaker");
    await new Promise(() => {});  // as where nobody has clicked
  };
  const later = setTimeout;
  globalThis.setTimeout = (done, ms, ...facts) => later(done, ms === 10_000 ? 0 : ms, ...facts);
}"""
SOON_TOO_OLD = """() => {
  const ask = newCall;
  newCall = async (...facts) => ({ ...(await ask(...facts)), expires_s: 2 });
  performance.now = Date.now = () => 0;  // no time passes
}"""
INTERRUPT = """(how) => {
  const [context] = seen.contexts;
  if (how === "for a while") {
    context.resume = async () => {
      globalThis.isRefused = true;
      throw new Error("interrupted");
    };
  }
  return context.suspend().then(() => { seen.levels = 0; });
}"""
COME_BACK = """() => {
  delete seen.contexts[0].resume;
  document.dispatchEvent(new Event("visibilitychange"));
}"""
PERMISSION = """(state) => {
  // Where it is granted, an agent is asked for at once, else when there is a microphone.
  navigator.permissions.query = async () => ({ state });
}"""
SHIFT = """(ms) => {
  const now = Date.now.bind(Date);
  Date.now = () => now() + ms; // as after a sleep, while which the other clock stands
}"""
HANG = """() => {
  // The first socket that is opened never says anything.
  const { WebSocket: Real } = globalThis;
  let hung = null;
  globalThis.WebSocket = class extends Real {
    constructor(...given) {
      if (!hung) return (globalThis.hung = hung = { readyState: 0, send() {}, close() {} });
      super(...given);
    }
  };
}"""


@contextmanager
def telephone(url: str, microphone: Path) -> Generator[Any]:
    """A page with one telephone, which says what it does."""
    wrong: list[str] = []
    with chromium(microphone=microphone) as browser:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{url}/phone")
        page.evaluate(HARNESS)
        yield page
    assert wrong == []


async def at_a_page(
    microphone: Path, act: Callable[[Any], Any], **settings: Any
) -> tuple[Any, dict[str, Any]]:
    """Have a function act at such a page; what it returns, and all records by ``call_sid``."""

    def run() -> Any:
        with telephone(server.url, microphone) as page:
            return act(page)

    async with serving(**settings) as server:
        found = await trio.to_thread.run_sync(run)
        register = server.service.calls.register
        with trio.fail_after(WAIT_MS / 1_000):
            for call_sid in list(register.live):
                await register.get(call_sid).finished.wait()
        calls = (await server.http.get("/calls")).json()["calls"]
    return found, {call["call_sid"]: call for call in calls}


def until_state(page: Any, state: str) -> None:
    page.wait_for_function("(state) => phone.state === state", arg=state)


def until_held(page: Any, name: str, count: int) -> None:
    given = [name, count]
    page.wait_for_function("([name, count]) => held[name]?.length === count", arg=given)


def until_over(page: Any, nth: int) -> None:
    """Wait until what was begun as the nth has returned, or failed."""
    page.wait_for_function("(nth) => seen.begun[nth].isOver", arg=nth)


async def test_a_call_that_was_hung_up_while_it_was_asked_for_does_not_begin_later(
    silent_microphone,
):
    def act(page):
        page.evaluate("() => { hold(globalThis, 'newCall'); begin('call'); }")
        until_held(page, "newCall", 1)
        page.evaluate("() => { phone.hangUp(); begin('prepare'); }")
        until_held(page, "newCall", 2)
        page.evaluate("held.newCall[1]()")
        until_state(page, "ready")
        page.evaluate("held.newCall[0]()")
        until_over(page, 0)
        found = page.evaluate("[phone.state, seen.sockets]")
        page.evaluate("phone.hangUp()")
        return found

    found, records = await at_a_page(silent_microphone, act)

    assert found == ["ready", 0]
    assert [record["reason"] for record in records.values()] == ["caller-hung-up"] * 2


async def test_a_page_that_came_back_too_late_for_its_call_leaves_the_next_one_alone(
    silent_microphone,
):
    def act(page):
        page.evaluate("begin('call')")
        until_state(page, "talking")
        page.evaluate(HOLD_RESUME)
        page.evaluate(LOSE)
        until_held(page, "fetch", 1)
        page.evaluate("phone.hangUp()")
        page.evaluate("begin('call')")
        until_held(page, "fetch", 2)  # the call that is asked for
        page.evaluate("held.fetch[1]()")
        until_state(page, "talking")
        page.evaluate(LOSE)
        until_held(page, "fetch", 3)
        page.evaluate("() => { held.fetch[0](); held.fetch[2](); }")
        until_state(page, "talking")
        levels = page.evaluate("seen.levels")
        page.wait_for_function("(count) => seen.levels > count + 50", arg=levels)
        found = page.evaluate("[phone.state, seen]")
        page.evaluate("phone.hangUp()")
        return found

    (state, seen), records = await at_a_page(silent_microphone, act)

    assert state == "talking"
    assert len(seen["starts"]) == 3
    assert [each for each in seen["starts"] if each not in seen["given"]] == []
    assert [record["reason"] for record in records.values()] == ["caller-hung-up"] * 2


async def test_one_ticket_opens_one_stream_however_late_a_browser_has_its_sound(silent_microphone):
    def act(page):
        page.evaluate("() => { hold(AudioContext.prototype, 'resume'); begin('call'); }")
        until_held(page, "resume", 1)
        page.evaluate("() => { phone.hangUp(); begin('call'); }")
        until_held(page, "resume", 2)
        page.evaluate("() => held.resume.forEach((go) => go())")
        until_state(page, "talking")
        sockets = page.evaluate("seen.sockets")
        page.evaluate("phone.hangUp()")
        return sockets

    sockets, records = await at_a_page(silent_microphone, act)

    assert sockets == 1
    assert [record["reason"] for record in records.values()] == ["caller-hung-up"] * 2


async def test_a_stream_that_opens_after_it_was_given_up_is_no_line(silent_microphone):
    def act(page):
        page.evaluate(HANG)
        page.evaluate("begin('call')")
        until_state(page, "connecting")
        page.evaluate(HOLD_RESUME)
        page.wait_for_function("() => globalThis.hung?.onopen")
        page.evaluate(LOSE)
        until_held(page, "fetch", 1)
        page.evaluate("hung.onopen()")
        state = page.evaluate("phone.state")
        page.evaluate("held.fetch[0]()")
        until_state(page, "talking")
        page.evaluate("phone.hangUp()")
        return state

    state, records = await at_a_page(silent_microphone, act)

    assert state == "reconnecting"
    assert [record["reason"] for record in records.values()] == ["caller-hung-up"]


@pytest.mark.parametrize("at", ["at once", "preparing", "ready", "connecting"])
async def test_who_hangs_up_as_soon_as_a_call_begins_has_no_microphone_on(silent_microphone, at):
    def act(page):
        hang_up = "({ detail }) => { if (detail.state === at) phone.hangUp(); }"
        page.evaluate(f"(at) => phone.addEventListener('state', {hang_up})", at)
        page.evaluate("begin('call')")
        if at == "at once":
            page.evaluate("() => { phone.hangUp(); begin('call'); phone.hangUp(); }")
            until_over(page, 1)
        until_over(page, 0)
        live = "seen.tracks.filter((track) => track.readyState === 'live').length"
        return page.evaluate(f"[phone.state, seen.begun[0].error, {live}, seen.sockets]")

    found, records = await at_a_page(silent_microphone, act)

    assert found == ["over", None, 0, 0]
    assert {record["reason"] for record in records.values()} <= {"caller-hung-up"}


@pytest.mark.parametrize(
    ("how", "why"),
    [("refused", "no loudspeaker"), ("left open", "the browser does not begin the sound")],
)
async def test_a_call_whose_sound_does_not_begin_is_over_and_says_why(silent_microphone, how, why):
    def act(page):
        page.evaluate(SILENT, how)
        page.evaluate("begin('call')")
        until_over(page, 0)
        tracks = "seen.tracks.map((track) => track.readyState)"
        return page.evaluate(f"[phone.state, {tracks}, seen]")

    (state, tracks, seen), records = await at_a_page(silent_microphone, act)

    assert (state, seen["reasons"], tracks) == ("over", ["failed"], ["ended"])
    assert (seen["problems"], seen["begun"][0]["error"]) == ([why], why)
    assert [record["reason"] for record in records.values()] == ["caller-hung-up"]


@pytest.mark.parametrize("how", ["for a moment", "for a while"])
async def test_a_page_whose_sound_was_taken_away_during_its_call_is_heard_again(
    silent_microphone, how
):
    def act(page):
        page.evaluate("begin('call')")
        until_state(page, "talking")
        page.evaluate(INTERRUPT, how)
        if how == "for a while":
            page.wait_for_function("() => globalThis.isRefused")
            page.evaluate(COME_BACK)
        page.wait_for_function("() => seen.levels > 50")
        page.evaluate("phone.hangUp()")
        return page.evaluate("seen.states")

    states, records = await at_a_page(silent_microphone, act)

    assert states == ["preparing", "ready", "connecting", "talking", "over"]
    assert [record["reason"] for record in records.values()] == ["caller-hung-up"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": "busy", "message": "all lines are busy"}, "all lines are busy"),
        (None, "the server gave no call"),
    ],
)
@pytest.mark.parametrize("permission", ["granted", "prompt"])
async def test_a_page_that_is_given_no_call_says_what_it_was_told(
    silent_microphone, answer, why, permission
):
    def act(page):
        page.evaluate(PERMISSION, permission)
        page.evaluate("(answer) => { newCall = async () => answer; begin('call'); }", answer)
        until_over(page, 0)
        tracks = "seen.tracks.map((track) => track.readyState)"
        return page.evaluate(f"[{tracks}, seen]")

    (tracks, seen), _ = await at_a_page(silent_microphone, act)

    assert seen["states"] == ["preparing", "over"]
    assert (seen["reasons"], tracks) == (["failed"], ["ended"])
    assert (seen["problems"], seen["begun"][0]["error"]) == ([why], why)
    assert (seen["sockets"], seen["given"]) == (0, [])


@pytest.mark.parametrize("when", ["before there is a microphone", "when all is ready"])
async def test_a_page_that_slept_asks_for_another_agent_before_it_calls(silent_microphone, when):
    def act(page):
        page.evaluate(PERMISSION, "granted")
        if when == "when all is ready":
            page.evaluate("begin('prepare')")
            until_state(page, "ready")
            page.evaluate(SHIFT, SLEPT_MS)
            page.evaluate("begin('call')")
        else:
            page.evaluate("() => { hold(navigator.mediaDevices, 'getUserMedia'); begin('call'); }")
            until_held(page, "getUserMedia", 1)
            page.wait_for_function("() => seen.asked.length === 1")
            page.evaluate(SHIFT, SLEPT_MS)
            page.evaluate("held.getUserMedia[0]()")
        until_state(page, "talking")
        seen = page.evaluate("seen")
        page.evaluate("phone.hangUp()")
        return seen

    seen, records = await at_a_page(silent_microphone, act)

    assert (len(seen["asked"]), len(seen["tracks"])) == (2, 1)
    assert seen["starts"][0] == next(each for each in seen["given"][::-1] if each[1])
    assert [record["reason"] for record in records.values()] == ["caller-hung-up"] * 2


async def test_a_page_asks_once_for_an_agent_that_waits_two_seconds_only(silent_microphone):
    def act(page):
        page.evaluate(SOON_TOO_OLD)
        page.evaluate("begin('call')")
        until_state(page, "talking")
        asked = page.evaluate("seen.asked.length")
        page.evaluate("phone.hangUp()")
        return asked

    asked, _ = await at_a_page(silent_microphone, act)

    assert asked == 1
