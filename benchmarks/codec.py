"""What does one 20 ms chunk cost, how late does it come out, and what is done to the sound?

Every resampler people use for telephony from Python, side by side in one run, in both directions:
the caller's 8 kHz mu-law to the 16 kHz PCM a model hears, and the agent's 24 kHz PCM to 8 kHz
mu-law. Times are CPU time of the thread, in interleaved rounds; sound is measured from outside,
through 16-bit samples.

Figures, in the JSON under ``directions``, direction and peer: ``us_per_chunk`` (median),
``times_offhook``, ``delay_ms_1khz`` (group delay), ``delay_ms_worst`` (of 300-3400 Hz),
``late_ms_mean`` and ``late_ms_max`` (audio withheld plus delay, after each chunk),
``loss_ms_per_s``, ``ripple_db`` (300-3400 Hz, peak to peak), ``stop_db`` (the loudest image or
alias from 4.2 kHz on, below the tone it comes from), ``stop_db_telephone`` (the same from 4.6 kHz,
where speech of 300-3400 Hz has its own), ``chunking_lsb`` (chunked against one-shot), ``pesq``,
``stoi``, ``instructions``, ``allocations``.
What could not be measured is null, as are tones through a stream that loses samples.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import random
import statistics
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.progress import Progress
from rich.table import Table

import codec
from benchmarks import cost, plots, speech
from benchmarks.options import Options, machine, machine_line
from benchmarks.peers.codecs import AGENT, CALLER, DIRECTIONS, Direction, Peer, find_peers

PACKAGES = (
    "offhook", "numpy", "scipy", "soxr", "pipecat-ai", "av", "samplerate", "audioop-lts",
    "pesq", "pystoi",
)  # fmt: skip
ROUNDS, QUICK_ROUNDS = 25, 11
TONE_STEP_HZ, QUICK_TONE_STEP_HZ = 50, 200
DELAY_TONES_HZ = (300, 430, 560, *range(700, 3200, 250), 3300, 3400)
# Counting takes seconds of valgrind each, and a minute where numpy has to be imported in it.
COUNTED, QUICK_COUNTED = ("offhook", "offhook_baseline", "audioop"), ("offhook",)

# What the codec has to reach: see "the table" below. The ITU-T reference code (G.191) encodes all
# 65,536 samples, and decodes all codes, to bytes with these hashes.
G191_ENCODED = "90c29de505fb68e766118303bd552a16005dcf810873698bee1d8f3b247ce28c"
G191_DECODED = "3dab54339e520bb2c924826e3b72a917a2b612e9fd12fc867500f1d983a75827"

Figures = dict[str, Any]


def run(options: Options) -> Figures:
    """Measure, print and return everything."""
    console = options.console
    peers, absent = find_peers()
    measure = _measure_module()
    facts = machine(PACKAGES)
    console.print(f"[bold]codec[/bold]: {machine_line(facts)}")
    console.print(f"speech: {len(speech.speech()) / 2 / speech.RATE_HZ:.1f} s of two voices")
    if absent:
        console.print(f"absent: {', '.join(absent)} (pip install 'offhook\\[bench]' has most)")
    if measure is None:
        console.print("absent: numpy, so only costs are measured")
    if not cost.has_valgrind():
        console.print("absent: valgrind, so nothing is counted")

    figures: dict[str, dict[str, Figures]] = {way.name: {} for way in DIRECTIONS}
    late_ms: dict[str, dict[str, list[float]]] = {way.name: {} for way in DIRECTIONS}
    responses: dict[str, dict[str, Any]] = {way.name: {} for way in DIRECTIONS}
    counted = [key for key in (QUICK_COUNTED if options.quick else COUNTED)
               if cost.has_valgrind() and key in {peer.key for peer in peers}]  # fmt: skip
    with Progress(console=console, transient=True) as progress:
        rounds = QUICK_ROUNDS if options.quick else ROUNDS
        task = progress.add_task(
            "time", total=2 * (rounds + (len(peers) if measure else 0) + 3 * len(counted))
        )
        for way in DIRECTIONS:
            progress.update(task, description=f"{way.name}: time")
            clocks = {peer.key: timed(peer, way) for peer in peers}
            for _ in range(rounds):
                for one in clocks.values():
                    one.run_round()
                progress.advance(task)
            for peer in peers:
                figures[way.name][peer.key] = {
                    "us_per_chunk": clocks[peer.key].median_us(),
                    "times_offhook": clocks["offhook"].times_cheaper_than(clocks[peer.key]),
                }
            for peer in peers if measure else ():
                progress.update(task, description=f"{way.name}: {peer.label}")
                step_hz = QUICK_TONE_STEP_HZ if options.quick else TONE_STEP_HZ
                sound, late, response = _sound(measure, peer, way, step_hz)
                figures[way.name][peer.key] |= sound
                late_ms[way.name][peer.label] = late
                responses[way.name][peer.label] = response
                progress.advance(task)
            for key in counted:
                progress.update(task, description=f"{way.name}: count {key}")
                figures[way.name][key] |= {
                    "instructions": cost.instructions_per_chunk(key, way.name),
                    "allocations": cost.allocations_per_chunk(key, way.name),
                }
                progress.advance(task, 3)

    contract = _contract()
    for way in DIRECTIONS:
        for table in _tables(way, peers, figures[way.name]):
            console.print(table)
    goals = _goals(figures, contract, facts)
    console.print(_goal_table(goals))
    if options.plots is not None:
        _plot(options, measure, peers, figures, late_ms, responses)
    return {
        "machine": facts,
        "directions": figures,
        "contract": contract,
        "goals": [{"goal": goal, "direction": way, "bound": bound, "measured": found, "met": met}
                  for goal, way, bound, found, met in goals],
        "absent": absent,
    }  # fmt: skip


def _measure_module() -> ModuleType | None:
    if importlib.util.find_spec("numpy") is None:
        return None
    return importlib.import_module("benchmarks.measure")


# ---- Measuring one peer ----


def _chunks(way: Direction) -> list[bytes]:
    """20 ms chunks of the speech set, as they come in at this end."""
    pcm = speech.speech()
    if way is AGENT:
        size = 2 * way.input_rate_hz // 50
    else:
        pcm = codec.encode_mulaw(codec.Resampler(speech.RATE_HZ, 8000).resample(pcm))
        size = way.input_rate_hz // 50
    return [pcm[at : at + size] for at in range(0, len(pcm) - size + 1, size)]


def timed(peer: Peer, way: Direction) -> cost.Timed:
    """One peer on the speech set, ready for its rounds."""
    peer.prepare()
    return cost.Timed(peer.open_converter(way), _chunks(way), peer.prepare)


def _sound(
    measure: Any, peer: Peer, way: Direction, step_hz: int
) -> tuple[Figures, list[float], Any]:
    peer.prepare()
    opened = peer.open_resampler
    loss = measure.drift_s(measure.lateness_s(opened, way, 0.0))
    # A stream that loses samples has no delay, and turns a tone into something else.
    steady = loss < 1e-3
    delay_s = measure.group_delay_s(opened, way, 1000) if steady else 0.0
    worst_s = max(measure.group_delay_s(opened, way, hz) for hz in DELAY_TONES_HZ)
    late_ms = [1e3 * late for late in measure.lateness_s(opened, way, delay_s)]
    response = measure.response(opened, way, step_hz)
    figures = {
        "delay_ms_1khz": 1e3 * delay_s if steady else None,
        "delay_ms_worst": 1e3 * worst_s if steady else None,
        "late_ms_mean": statistics.fmean(late_ms),
        "late_ms_max": max(late_ms),
        "loss_ms_per_s": 1e3 * loss if not steady else 0.0,
        "ripple_db": response.ripple_db() if steady else None,
        "stop_db": response.stop_db() if steady else None,
        "stop_db_telephone": response.stop_db(4600) if steady else None,
        "chunking_lsb": measure.chunking_error(opened, way),
        **measure.speech_scores(opened, way),
    }
    return figures, late_ms, response if steady else None


def _contract() -> Figures:
    """What is promised exactly, checked exactly."""
    sizes = random.Random(3)
    decoder, encoder = codec.MulawDecoder(16000), codec.MulawEncoder(24000)
    withheld = carry = 0
    for _ in range(2000):
        samples = sizes.randrange(700)
        withheld += abs(len(decoder.decode(bytes(samples))) // 2 - 2 * samples)
        withheld += abs(len(encoder.encode(bytes(2 * samples))) - (carry + samples) // 3)
        carry = (carry + samples) % 3
    every_sample = array("h", range(-32768, 32768))
    encoded = hashlib.sha256(codec.encode_mulaw(every_sample)).hexdigest()
    decoded = hashlib.sha256(codec.decode_mulaw(bytes(range(256)))).hexdigest()
    return {
        "withheld_samples": withheld,
        "g711_encode_is_g191": encoded == G191_ENCODED,
        "g711_decode_is_g191": decoded == G191_DECODED,
        "state_bytes_caller": sys.getsizeof(decoder),
        "state_bytes_agent": sys.getsizeof(encoder),
    }


# ---- Tables ----


def _tables(way: Direction, peers: list[Peer], figures: dict[str, Figures]) -> Iterator[Table]:
    path = "8 kHz mu-law to 16 kHz PCM" if way is CALLER else "24 kHz PCM to 8 kHz mu-law"
    columns = {
        "cost and delay": (
            ("us", "us_per_chunk", 2),
            ("x ours", "times_offhook", 1),
            ("mallocs", "allocations", 0),
            ("instr.", "instructions", 0),
            ("delay ms", "delay_ms_1khz", 2),
            ("late ms", "late_ms_mean", 2),
            ("at most", "late_ms_max", 2),
        ),
        "sound": (
            ("ripple dB", "ripple_db", 3),
            ("stop dB", "stop_db", 1),
            ("cut LSB", "chunking_lsb", 0),
            ("lost ms/s", "loss_ms_per_s", 1),
            ("PESQ", "pesq", 3),
            ("STOI", "stoi", 3),
        ),
    }
    if all("ripple_db" not in row for row in figures.values()):
        del columns["sound"]
    for what, shown in columns.items():
        table = Table(title=f"{way.name}, {path}: {what}", title_justify="left")
        table.add_column("20 ms chunks", no_wrap=True)
        for heading, _, _ in shown:
            table.add_column(heading, justify="right", no_wrap=True)
        for peer in peers:
            row = figures[peer.key]
            table.add_row(
                peer.label,
                *[_number(row.get(key), digits) for _, key, digits in shown],
                style="bold" if peer.key.startswith("offhook") else None,
            )
        yield table


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: no minus zero


def _goals(
    figures: dict[str, dict[str, Figures]], contract: Figures, facts: Figures
) -> list[tuple[str, str, str, str, bool | None]]:
    """The table the codec was built to: goal, direction, bound, measured, met (None: unknown)."""
    rows: list[tuple[str, str, str, str, bool | None]] = []

    def at_most(goal: str, way: str, bound: float, found: float | None, unit: str, d: int) -> None:
        met = None if found is None else found <= bound
        rows.append((goal, way, f"<= {bound} {unit}", f"{_number(found, d)} {unit}", met))

    def at_least(goal: str, way: str, bound: float, found: float | None, unit: str, d: int) -> None:
        met = None if found is None else found >= bound
        rows.append((goal, way, f">= {bound} {unit}", f"{_number(found, d)} {unit}", met))

    def ratio(way: str, key: str) -> float | None:
        return figures[way].get(key, {}).get("times_offhook")

    bounds = {"caller": (0.55, 0.95, 4, 8), "agent": (0.90, 1.7, 6, 7)}
    framework = "pipecat" if "pipecat" in figures["caller"] else "soxr_vhq"
    for way, (fast_us, plain_us, seed, soxr) in bounds.items():
        ours = figures[way]["offhook"]
        plain = figures[way].get("offhook_baseline", ours)
        vhq = figures[way].get("soxr_vhq", {})
        at_most("CPU, best kernels", way, fast_us, ours["us_per_chunk"], "us", 3)
        at_most("CPU, plain build", way, plain_us, plain["us_per_chunk"], "us", 3)
        at_least("cheaper than audioop", way, seed, ratio(way, "audioop"), "x", 1)
        at_least(f"cheaper than soxr VHQ ({framework})", way, soxr, ratio(way, framework), "x", 1)
        at_most("group delay at 1 kHz", way, 0.30, ours.get("delay_ms_1khz"), "ms", 3)
        at_most("group delay, worst 300-3400 Hz", way, 1.1, ours.get("delay_ms_worst"), "ms", 3)
        at_most("ripple 300-3400 Hz", way, 0.05, ours.get("ripple_db"), "dB", 3)
        at_least("stop band from 4.2 kHz", way, 86, ours.get("stop_db"), "dB", 1)
        if ours.get("pesq") is not None and vhq.get("pesq") is not None:
            less = ours["pesq"] - vhq["pesq"]
            at_least("PESQ against soxr VHQ", way, -0.02 if way == "caller" else 0, less, "", 3)
        at_most("chunked against one-shot", way, 0, ours.get("chunking_lsb"), "LSB", 0)
        at_most("memory of a stream", way, 1024, contract[f"state_bytes_{way}"], "bytes", 0)
        allocations = ours.get("allocations")
        allocations = None if allocations is None else round(allocations, 1)
        at_most("allocations a chunk", way, 1, allocations, "", 0)
    at_most("samples withheld", "both", 0, contract["withheld_samples"], "", 0)
    for goal, key, count in (
        ("G.711 decode as ITU-T G.191", "g711_decode_is_g191", "256/256"),
        ("G.711 encode as ITU-T G.191", "g711_encode_is_g191", "65536/65536"),
    ):
        rows.append((goal, "both", count, count if contract[key] else "differs", contract[key]))
    return rows


def _goal_table(goals: list[tuple[str, str, str, str, bool | None]]) -> Table:
    table = Table(title="goals", title_justify="left")
    for heading in ("goal", "direction", "bound", "measured", "met"):
        table.add_column(heading)
    for goal, way, bound, found, met in goals:
        verdict = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "unknown"}[met]
        table.add_row(goal, way, bound, found, verdict)
    return table


# ---- Plots ----

# Enough of them to see each kind, few enough to tell the lines apart.
PLOTTED = ("offhook", "audioop_state", "soxr_vhq", "pyav", "speexdsp_q3", "samplerate_sinc_fastest",
           "scipy_resample_poly")  # fmt: skip
PLOTTED_LATE = ("offhook", "audioop", "soxr_mq", "soxr_vhq", "pyav", "speexdsp_q3",
                "samplerate_sinc_medium", "samplerate_sinc_best")  # fmt: skip
SWEPT = ("offhook", "audioop_state", "soxr_vhq")


def _plot(
    options: Options,
    measure: Any,
    peers: list[Peer],
    figures: dict[str, dict[str, Figures]],
    late_ms: dict[str, dict[str, list[float]]],
    responses: dict[str, dict[str, Any]],
) -> None:
    directory = options.plots
    assert directory is not None
    if not plots.have_matplotlib():
        options.console.print("absent: matplotlib, so no plots")
        return
    _plot_cost(directory / "cost.png", peers, figures)
    if measure is not None:
        shown = {peer.label for peer in peers if peer.key in PLOTTED}
        timely = {peer.label for peer in peers if peer.key in PLOTTED_LATE}
        _plot_responses(directory / "response.png", responses, shown)
        _plot_sweep(directory / "sweep.png", measure, peers)
        for way in DIRECTIONS:
            plots.latency_cdf(
                {
                    label: late
                    for label, late in late_ms[way.name].items()
                    if label in timely and _drawable(late)
                },
                directory / f"lateness-{way.name}.png",
                f"{way.name}: how late the newest sound in the output is, after each 20 ms chunk",
            )
    options.console.print(f"plots: {directory}")


def _drawable(late: list[float]) -> bool:
    """On a logarithmic axis, only what is late at all."""
    return min(late) > 0.01 and not math.isclose(min(late), 0)


def _plot_cost(path: Path, peers: list[Peer], figures: dict[str, dict[str, Figures]]) -> None:
    drawing, (both,) = plots.figure(1, 2, (11, 6))
    for axes, way in zip(both, DIRECTIONS, strict=True):
        values = {peer.label: figures[way.name][peer.key]["us_per_chunk"] for peer in peers}
        plots.bars(values, axes, "microseconds of CPU per 20 ms chunk", way.name)
    plots.save(drawing, path)


def _plot_responses(path: Path, responses: dict[str, dict[str, Any]], shown: set[str]) -> None:
    drawing, both = plots.figure(2, 1, (9, 8))
    for (axes,), way in zip(both, DIRECTIONS, strict=True):
        kept = {label: found for label, found in responses[way.name].items()
                if found is not None and label in shown}  # fmt: skip
        colour = plots.colours(list(kept))
        for label, found in kept.items():
            axes.plot(
                found.frequencies_hz / 1000,
                found.gains_db,
                label=label,
                color=colour[label],
                linewidth=2.4 if label.startswith("offhook") else 1.1,
                zorder=3 if label.startswith("offhook") else 2,
            )
        end_khz = 8 if way is CALLER else 12
        axes.axvspan(4, end_khz, color=plots.SHADE, alpha=0.5, zorder=0)
        kind = "images: not in the caller's voice" if way is CALLER else "aliases: fold into speech"
        axes.text(4.1, 3, kind, fontsize=8, va="bottom")
        axes.set(xlim=(0, end_khz), ylim=(-145, 12), ylabel="dB", xlabel="kHz", title=way.name)
        axes.grid(alpha=0.25)
    drawing.legend(
        *axes.get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center"
    )
    plots.save(drawing, path)


def _plot_sweep(path: Path, measure: Any, peers: list[Peer]) -> None:
    """Spectrograms of a tone rising from 0 to 12 kHz. Right is a line up to 4 kHz, then nothing."""
    chosen = [peer for peer in peers if peer.key in SWEPT]
    drawing, (row,) = plots.figure(1, len(chosen), (3.6 * len(chosen), 3.6))
    for axes, peer in zip(row, chosen, strict=True):
        peer.prepare()
        out = measure.resampled(peer.open_resampler, AGENT, measure.sweep(AGENT.input_rate_hz))
        *_, image = axes.specgram(
            out / 32768.0, NFFT=256, noverlap=192, Fs=AGENT.output_rate_hz, cmap="magma"
        )
        image.set_clim(-140, -30)
        axes.set(title=peer.label, xlabel="s: 0 to 12 kHz in 3 s", ylim=(0, 4000))
        axes.title.set_fontsize(9)
    row[0].set_ylabel("Hz at 8 kHz")
    plots.save(drawing, path)
