"""Draw the pictures of the README: ``python -m benchmarks.pictures docs/images``.

One simulated call is placed for them, so what they show has happened on this machine; the ladder is
drawn from the settings. Plain SVG, a few kilobytes each, nothing to install.
"""

from __future__ import annotations

import array
import sys
import tempfile
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import httpx2
import trio

from benchmarks.plots import OURS
from server import logs
from server.app import create_app
from server.demo.embedded import embedded_settings
from server.dialogue.remedies import LADDER, Rung
from server.serving.listening import listen
from server.serving.single import serve
from server.settings.settings import Settings

CALLER, INK, FAINT = "#2563eb", "#1f2937", "#9ca3af"
WIDTH = 900
COLUMNS = 450
"""Of a waveform: each is the extremes of so many samples."""
TIME_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Call:
    """What a call left behind.

    Attributes:
        record: As ``GET /calls/{call_sid}`` shows it.
        events: What happened at the phone, in seconds since its stream began.
        said: The callee's samples, 8 kHz.
        heard: The agent's as they were heard there.
    """

    record: Mapping[str, Any]
    events: Sequence[tuple[float, str]]
    said: Sequence[int]
    heard: Sequence[int]

    def moment(self, what: str) -> float:
        """When something is first in the record's timeline, in seconds since the call began."""
        return next(one["at_s"] for one in self.record["timeline"] if one["what"] == what)

    def event(self, beginning: str) -> float:
        return next(at_s for at_s, what in self.events if what.startswith(beginning))


async def place_call(directory: Path) -> Call:
    """Serve on the simulators, and place the call of ``--script interrupts``."""
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    settings = embedded_settings(url, recordings_dir=directory, simulated_callee="interrupts")
    app = create_app(settings)
    stop = trio.Event()
    with trio.fail_after(TIME_LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, app, listener, stop=stop))
            async with httpx2.AsyncClient(base_url=url, trust_env=False, verify=False) as http:
                wanted = {"destination_number": "+15005550006"}
                call_sid = (await http.post("/make-call", json=wanted)).json()["call_sid"]
                simulated = app.service.accounts.simulated_twilio
                assert simulated is not None
                phone = simulated.calls[call_sid]
                await phone.wait_ended()
                record = (await http.get(f"/calls/{call_sid}")).json()
            stop.set()
    assert phone.recording_path is not None
    with wave.open(str(phone.recording_path)) as file:
        samples = array.array("h", file.readframes(file.getnframes()))
    return Call(record, tuple(phone.phones[0].events), samples[::2], samples[1::2])


# -- SVG -------------------------------------------------------------------------------------


def svg(height: int, *parts: str) -> str:
    """A picture of these parts, on white: pages may be dark."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, *, fill: str = INK, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{fill}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" '
        f'fill="{fill}"/>'
    )


def upright(x: float, top: float, bottom: float, colour: str = INK) -> str:
    return (
        f'<path d="M{x:.1f} {top:.0f}V{bottom:.0f}" stroke="{colour}" stroke-dasharray="4 3" '
        'fill="none"/>'
    )


def lane(samples: Sequence[int], left: float, width: float, middle: float, fill: str) -> str:
    """A waveform: the extremes of each column, around a line, 36 units high at most."""
    loudest = max(1, max(samples), -min(samples))
    each = len(samples) / COLUMNS
    columns = [
        samples[round(number * each) : max(round(number * each) + 1, round((number + 1) * each))]
        for number in range(COLUMNS)
    ]
    step = width / COLUMNS
    lines = "".join(
        f"M{left + number * step:.0f} {middle - 36 * max(column) / loudest:.0f}"
        f"V{middle - 36 * min(column) / loudest:.0f}"
        for number, column in enumerate(columns)
        if max(column) - min(column) > loudest / 50
    )
    return (
        f'<path d="M{left:.0f} {middle:.0f}h{width:.0f}" stroke="#e5e7eb"/>'
        f'<path d="{lines}" stroke="{fill}" stroke-width="1.6" fill="none"/>'
    )


# -- the pictures ----------------------------------------------------------------------------


def draw_waveform(call: Call) -> str:
    """Both sides of the call, with what the interruption did."""
    left, width = 70.0, WIDTH - 90.0
    length_s = len(call.said) / 8000
    at = [left + width * second / length_s for second in range(int(length_s) + 1)]
    scale = width / length_s
    interrupts = left + scale * call.event("the callee says: interrupt")
    clears = call.event("the server clears")
    cut = left + scale * clears
    spent_ms = 1000 * (clears - call.event("the callee says: interrupt"))
    first_ms = call.record["timings"]["answer_to_first_audio_ms"]
    return svg(
        300,
        text(12, 104, "caller", fill=CALLER),
        text(12, 204, "agent", fill=OURS),
        lane(call.said, left, width, 100, CALLER),
        lane(call.heard, left, width, 200, OURS),
        upright(left, 40, 240),
        text(left + 4, 34, f"answered; the first word leaves {first_ms:.0f} ms later"),
        upright(interrupts, 56, 240, CALLER),
        text(interrupts + 4, 56, f"interrupted: cleared after {spent_ms:.0f} ms", fill=CALLER),
        *(_after_the_cut(call, cut, scale, left)),
        *(text(x, 262, f"{second} s", fill=FAINT, anchor="middle") for second, x in enumerate(at)),
        text(
            left,
            288,
            "One call of python -m server demo, as it was heard at the phone.",
            fill=FAINT,
        ),
    )


def _after_the_cut(call: Call, cut: float, scale: float, left: float) -> Iterator[str]:
    again = left + scale * next(
        at_s for at_s, what in call.events if what == "the agent is heard" and at_s > 1.0
    )
    yield upright(again, 150, 240, OURS)
    yield text(again + 4, 158, "it answers what was said", fill=OURS)
    yield text(cut + 14, 232, "silent", fill=FAINT)


def draw_first_word(call: Call) -> str:
    """What is done while the phone rings, and what is left to do when it is answered."""
    left, right = 190.0, WIDTH - 150.0
    begin = call.moment("initiated")
    answered = call.moment("answered")
    scale = (right - left) / (answered - begin)
    ready, turn = call.moment("model ready"), call.moment("agent turn")
    first_ms = call.record["timings"]["answer_to_first_audio_ms"]

    def x(at_s: float) -> float:
        return left + scale * (at_s - begin)

    def row(number: int, who: str, since: float, until: float, words: str, fill: str) -> str:
        y = 44 + 40 * number
        return (
            text(left - 12, y + 16, who, anchor="end")
            + box(x(since), y, max(2.0, x(until) - x(since)), 24, fill)
            + text(min(x(until) + 8, right + 8), y + 16, words)
        )

    def seconds(at_s: float) -> str:
        return f"{at_s - begin:.2f} s"

    return svg(
        260,
        row(0, "the phone", begin, answered, f"rings {seconds(answered)}", "#dbeafe"),
        row(1, "the model's session", begin, ready, f"opens: ready after {seconds(ready)}", OURS),
        row(2, "the greeting", ready, turn, f"made: whole after {seconds(turn)}", OURS),
        row(3, "held for the ear", turn, answered, "", "#fde68a"),
        upright(x(answered), 30, 216),
        text(x(answered) + 6, 180, "answered:"),
        text(x(answered) + 6, 198, f"first word {first_ms:.0f} ms later", fill=OURS),
        text(
            left - 12,
            244,
            "Ring, answer, first word: what happens while it rings need not happen after.",
            fill=FAINT,
        ),
    )


WORDS = {
    Rung.NUDGE: "asked again, by text",
    Rung.RESUME: "the same session, over a new connection",
    Rung.FRESH: "a new session that knows what was said",
    Rung.FALLBACK: "another model, key or region, if there is one",
    Rung.APOLOGY: "the carrier speaks in its stead",
}


def draw_ladder(reply_timeout_s: float, rung_timeout_s: float) -> str:
    """What is done about a model that says nothing, and when."""
    steps: list[str] = []
    for number, rung in enumerate(LADDER):
        x, y = 60 + 88 * number, 216 - 38 * number
        after_s = reply_timeout_s + rung_timeout_s * number
        fill = OURS if rung is LADDER[-1] else f"#fdba74{'55778899'[2 * number : 2 * number + 2]}"
        steps += [
            box(x, y, 82, 254 - y, fill),
            text(
                x + 41,
                y + 22,
                str(rung),
                anchor="middle",
                fill="#fff" if rung is LADDER[-1] else INK,
            ),
            text(x + 41, 270, f"{after_s:g} s", fill=FAINT, anchor="middle"),
            text(530, 84 + 26 * number, f"{rung}: {WORDS[rung]}"),
        ]
    return svg(
        300,
        text(
            60, 34, "The caller has asked, and the model says nothing, however healthy its socket."
        ),
        *steps,
        text(
            60,
            292,
            "REPLY_TIMEOUT_S, then RUNG_TIMEOUT_S a rung; as soon as it speaks, all is well.",
            fill=FAINT,
        ),
    )


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m benchmarks.pictures FOLDER", file=sys.stderr)
        return 2
    logs.configure(level="ERROR")
    with tempfile.TemporaryDirectory(prefix="offhook-pictures-") as directory:
        call = trio.run(place_call, Path(directory))
    settings = Settings(_env_file=None)
    pictures = {
        "demo-waveform.svg": draw_waveform(call),
        "first-word.svg": draw_first_word(call),
        "ladder.svg": draw_ladder(settings.reply_timeout_s, settings.rung_timeout_s),
    }
    for name, picture in pictures.items():
        (Path(arguments[0]) / name).write_text(picture)
        print(f"{name}: {len(picture) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
