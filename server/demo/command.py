"""``python -m server demo``: everything embedded, one call through the real API, shown live.

The server, a small Twilio and a small Gemini Live run in this process on free ports of the
loopback interface and speak their real protocols to each other. The call is placed with
``POST /make-call`` like any other; the exit status says whether it went as its script demands.
``--script all`` gives every script a server of its own and runs them side by side.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import trio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server import logs
from server.agent.greeting import read_greeting
from server.app import OffhookApp, create_app
from server.call.call import Call
from server.demo.checks import Outcome
from server.demo.embedded import embedded_settings
from server.demo.scripts import DEMO_SCRIPTS, DemoScript
from server.errors import ConfigurationError, innermost
from server.serving.listening import listen
from server.serving.single import serve
from server.settings.file import is_folder
from server.simulators.clock import PatientClock
from server.simulators.twilio import SimulatedCall

DESTINATION = "+15005550006"
TIME_LIMIT_S = 30.0
POLL_S = 0.05
ALL = "all"
WORTH_TELLING_S = 1.0


def run_demo(script: str, out: Path | None = None, say: Path | None = None) -> int:
    """Run one script, or ``"all"`` of them; the value is the process's exit status.

    Args:
        script: Its name.
        out: Where the recording is to be, instead of in a folder of its own.
        say: A recording of what the callee says, in the place of every sentence of theirs.

    Raises:
        ConfigurationError: The settings that scripts leave alone do not fit, or a file does not.
    """
    console = Console()
    if say is not None and script == ALL:
        raise ConfigurationError("--say is for the callee of one script, not of all")
    if out is not None and script == ALL:
        raise ConfigurationError("--out is for the recording of one script, not of all")
    if out is not None and not is_folder(out.absolute().parent):
        raise ConfigurationError(f"--out {out}: there is no folder {out.absolute().parent}")
    if script != ALL and script not in DEMO_SCRIPTS:
        known = ", ".join((*DEMO_SCRIPTS, ALL))
        console.print(f"no such script: {script}; there are {known}", style="red")
        return 2
    speech = None if say is None else _read_speech(say)
    # The display is the log here; only what goes wrong is shown beside it.
    logs.configure(level="ERROR")
    directory = Path(tempfile.mkdtemp(prefix="offhook-demo-"))
    # Every end of these calls is in this process: what is late is late at all of them.
    clock = PatientClock()
    wrong: list[BaseException] = []
    try:
        if script == ALL:
            passed = trio.run(_run_all, console, directory, clock=clock)
        else:
            run = partial(
                _run_one, console, DEMO_SCRIPTS[script], directory, out=out, speech=speech
            )
            passed = trio.run(run, clock=clock)
    except* ConfigurationError as errors:
        wrong += errors.exceptions
    if wrong:
        # Every script has the same settings beside its own, so each has the same to say.
        raise ConfigurationError(str(innermost(wrong[0])))
    if clock.withheld_s > WORTH_TELLING_S:
        console.print(f"the machine was busy: {clock.withheld_s:.1f} s were not counted")
    return 0 if passed else 1


def _read_speech(path: Path) -> bytes:
    """Read a recording as a telephone carries it."""
    try:
        return read_greeting(path)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("GREETING_WAV", "--say", 1)) from None


async def _run_all(console: Console, directory: Path) -> bool:
    """Run every script side by side; each timeline is shown as its call ends."""
    passed: dict[str, bool] = {}

    async def run(name: str) -> None:
        page = Console(file=io.StringIO(), width=console.width, force_terminal=console.is_terminal)
        page.rule(name)
        try:
            passed[name] = await _run_one(
                page, DEMO_SCRIPTS[name], directory / name, shows_figures=False
            )
        finally:
            console.file.write(page.file.getvalue())  # type: ignore[attr-defined]
            console.file.flush()

    async with trio.open_nursery() as nursery:
        for name in DEMO_SCRIPTS:
            nursery.start_soon(run, name)
    console.rule(ALL)
    for name in DEMO_SCRIPTS:
        console.print(f"[green]yes[/] {name}" if passed[name] else f"[red]NO [/] {name}")
    return all(passed.values())


async def _run_one(
    console: Console,
    script: DemoScript,
    directory: Path,
    *,
    out: Path | None = None,
    speech: bytes | None = None,
    shows_figures: bool = True,
) -> bool:
    """Serve, place one call, show it, judge it.

    Args:
        console: Where it is shown.
        script: What happens, and what has to come of it.
        directory: For the recording.
        out: Where the recording is put instead.
        speech: What the callee says instead, mu-law at 8 kHz.
        shows_figures: Whether to show how long things took, which says something about this
            server only if nothing else has its thread.
    """
    began = time.perf_counter()
    listener = listen("127.0.0.1", 0)
    public_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with ExitStack() as stack:
        stack.callback(listener.close)
        settings = embedded_settings(public_url, recordings_dir=directory, **script.settings)
        app = create_app(settings)
        stack.pop_all()  # from here on whoever serves closes it
    stop = trio.Event()
    outcome: Outcome | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, listener, stop=stop))
        console.print(
            f"[bold]offhook[/] on {public_url}, with the [bold]simulated[/] carrier and model: "
            "no account, no phone, no cost"
        )
        with trio.move_on_after(TIME_LIMIT_S):
            simulated = app.service.accounts.simulated_twilio
            if speech is not None and simulated is not None:
                simulated.account.people.speak(speech)
            outcome = await _place_and_watch(console, app, public_url)
        stop.set()
    if outcome is None:
        console.print(f"the call did not end within {TIME_LIMIT_S:.0f} s", style="red")
        return False
    if shows_figures:
        _print_transcript(console, outcome)
        _print_figures(console, outcome)
    passed = _print_checks(console, script, outcome)
    recording = outcome.phone.recording_path
    if recording is not None:
        if out is not None:
            recording = Path(shutil.move(recording, out))
        console.print(f"listen: [bold]{recording}[/] (left: caller, right: agent)")
    console.print(f"done in {time.perf_counter() - began:.0f} s", style="dim")
    return passed


async def _place_and_watch(console: Console, app: OffhookApp, public_url: str) -> Outcome | None:
    # Plain HTTP, to ourselves: no certificates to read.
    async with httpx2.AsyncClient(base_url=public_url, trust_env=False, verify=False) as client:
        console.print(f"POST /make-call {{'destination_number': '{DESTINATION}'}}", style="dim")
        answer = await client.post("/make-call", json={"destination_number": DESTINATION})
        if answer.status_code != 201:
            console.print(f"/make-call answered {answer.status_code}: {answer.text}", style="red")
            return None
        call_sid = answer.json()["call_sid"]
        call = app.service.calls.register.get_live(call_sid)
        assert call is not None
        assert app.service.accounts.simulated_twilio is not None
        phone = app.service.accounts.simulated_twilio.calls[call_sid]
        await _show_live(console, call, phone)
        await phone.wait_ended()
        record = (await client.get(f"/calls/{call_sid}")).json()
    assert app.service.accounts.simulated_gemini is not None
    return Outcome(
        record, phone, tuple(app.service.accounts.simulated_gemini.sessions), app.service.metrics
    )


async def _show_live(console: Console, call: Call, phone: SimulatedCall) -> None:
    """Print what happens on both ends as it happens, until both have ended."""
    shown = 0
    while True:
        over = call.is_over and phone.ended_at is not None
        events = sorted(_events(call, phone))
        # What is younger than a poll may still be overtaken by the other end's report.
        settled = trio.current_time() - (0.0 if over else POLL_S)
        for at, who, what in events[shown:]:
            if at > settled:
                break
            began_at = call.conversation.notes.began_at
            colour = "cyan" if who == "phone" else "green"
            console.print(f"{at - began_at:7.2f} s  [{colour}]{who:8}[/] {escape(what)}")
            shown += 1
        if over:
            return
        await trio.sleep(POLL_S)


def _events(call: Call, phone: SimulatedCall) -> Iterator[tuple[float, str, str]]:
    notes = call.conversation.notes
    for at_s, what, facts in notes.timeline:
        details = ", ".join(f"{name} {value}" for name, value in facts.items())
        yield notes.began_at + at_s, "offhook", f"{what} ({details})" if details else what
    for at_s, what in phone.timeline:
        yield phone.created_at + at_s, "phone", what
    for stream in phone.phones:
        for at_s, what in stream.events:
            yield (stream.started_at or 0.0) + at_s, "phone", what


def _print_transcript(console: Console, outcome: Outcome) -> None:
    """Print what was said as it was heard; what nobody heard of the agent is struck through."""
    for turn in outcome.record["transcript"] or ():
        unheard = f" [strike dim]{escape(turn['unheard'])}[/]" if turn.get("unheard") else ""
        console.print(
            f"{turn['at_s']:7.2f} s  [bold]{turn['speaker']:8}[/] {escape(turn['text'])}{unheard}"
        )


def _print_figures(console: Console, outcome: Outcome) -> None:
    timings = outcome.record["timings"]
    table = Table(
        "figure", "p50", "p99", title="What it took, in milliseconds", title_justify="left"
    )

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    first = timings["answer_to_first_audio_ms"]
    table.add_row("answer to first agent audio sent", figure(first), "")
    for title, name in (
        ("interrupted received to clear sent", "interrupt_to_clear"),
        ("caller chunk, carrier to model", "caller_to_model"),
        ("agent chunk, model to carrier", "model_to_caller"),
    ):
        table.add_row(title, figure(timings[name]["p50_ms"]), figure(timings[name]["p99_ms"]))
    console.print(table)
    console.print(
        f"the caller heard {outcome.record['agent_heard_s']:.2f} s of the agent; "
        f"{timings['caller_audio_s']:.2f} s of caller audio reached the model, "
        f"{timings['caller_audio_lost_s']:.2f} s were lost"
    )


def _print_checks(console: Console, script: DemoScript, outcome: Outcome) -> bool:
    passed = True
    for title, check in script.checks:
        good = check(outcome)
        passed = passed and good
        console.print(f"[green]yes[/] {title}" if good else f"[red]NO [/] {title}")
    return passed


if __name__ == "__main__":
    sys.exit(run_demo("interrupts"))
