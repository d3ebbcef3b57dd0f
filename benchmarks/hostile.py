"""What does an attacker get, and what do the calls that are going on notice of it?

A server in a process of its own carries calls that talk all the time; every frame and chunk of them
is recognised where it arrives, as in ``python -m benchmarks calls``. They are measured quiet, then
under an attack, and so on in turns, three times for each attack. The attacker is a process of its
own on the generator's core, at the lowest priority; it asks 127.0.0.1 only, and its sockets, its
rate and its time are bounded (``benchmarks/load/attacker.py``). The server has its ordinary
settings and limits, and records every call.

An attack holds no call up if the 99th percentile of either direction stays within twice what it is
in the quiet, or under 1 ms: a twentieth of a frame, and about what one preemption costs on a shared
machine. The median of the rounds counts. A round in which other programs kept the server from its
core (Linux tells how long a thread waits for one), or the generator from its own, says nothing and
is repeated, a few times; its audio is counted all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import secrets
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from rich import box
from rich.table import Table
from twilio.request_validator import RequestValidator
from websockets.sync.client import connect

from benchmarks import processes
from benchmarks.load.attacker import Means, start
from benchmarks.options import Options, machine, machine_line
from benchmarks.point import KINDS, OFFHOOK, ORDINARY, Held, PointFailed, ServerKind, run_point
from benchmarks.processes import idle_load, resident_kib

if sys.platform != "win32":
    import resource

CALLS = 20
WINDOW_S = 4.0
QUICK_WINDOW_S = 1.0
ROUNDS = 3
SETTLE_S = 0.5
"""Into the attack when its window opens, so that the window is all attack."""
FLOOR_MS = 1.0
MAX_WAIT = 0.005
"""Half of what moves a 99th percentile: the share of a window that others may keep the core."""
MAX_LATE_MS = 0.3
"""The 99th percentile of how late the generator may be."""
IDLE = 0.1
"""A core busier than this before we begin is somebody else's."""
TIMEOUT_S = 1_800.0
TICKET_TTL_S = 20.0
MORE_DESCRIPTORS = 250
"""What the server may open beyond what it has open, while more sockets than that come."""
RECOVERY_S = 30.0
"""How long records may take to be written when the database is back."""
SHORT_CALLS = 5
PACKAGES = ("hypercorn", "quart-trio", "trio", "websockets", "picows")
WAYS = {"caller to model": "caller_to_model_ms", "agent to caller": "agent_to_caller_ms"}
NUMBER = re.compile(r"^offhook_(\w+?)(?:_total)?(?:\{[^}]*\})? ([0-9.e+]+)$", re.M)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("hostile")
    own.add_argument("--calls", type=int, default=CALLS, help=f"that talk (default: {CALLS})")
    own.add_argument(
        "--attacks",
        type=lambda words: words.split(","),
        default=list(ATTACKS),
        metavar="NAME,NAME…",
        help=f"which (default: {','.join(ATTACKS)})",
    )
    own.add_argument("--rounds", type=int, help=f"quiet and attacked, for each (default: {ROUNDS})")
    own.add_argument("--ordinary", action="store_true", help="without the media plane")
    own.add_argument(
        "--realtime",
        action="store_true",
        help="prefer server and generator to other programs (SCHED_RR), for a machine that is "
        "not idle; the attacker is not preferred",
    )


# --- What an attacker has in hand -----------------------------------------------------------------


@dataclass
class Scene:
    """The server that is attacked, and what was prepared of its calls."""

    held: Held
    expired: list[tuple[str, str]] = field(default_factory=list)
    """Tickets that nobody used, and are old enough by the time of the attack."""
    begun_at: float = field(default_factory=time.monotonic)

    def webhook(self, path: str, **form: str) -> tuple[str, str, str]:
        """A request as the carrier sends it: path, signature, form."""
        validator = RequestValidator(self.held.keys.auth_token)
        signature = validator.compute_signature(self.held.url + path, form)
        return path, signature, urlencode(form)

    def ring(self) -> tuple[str, str]:
        """A call comes in: its ticket and its sid."""
        call_sid = f"CA{secrets.token_hex(16)}"
        path, signature, form = self.webhook(
            "/twiml", CallSid=call_sid, From="+12025550199", CallStatus="ringing"
        )
        answer = self.held.client.post(
            path,
            content=form,
            headers={
                "X-Twilio-Signature": signature,
                "Content-Type": "application/x-www-form-urlencoded",
            },
        )
        found = re.search(r'name="ticket" value="([^"]+)"', answer.text)
        if found is None:
            raise PointFailed(f"a call was not let ring: {answer.status_code} {answer.text[:200]}")
        return found[1], call_sid

    def used_ticket(self) -> tuple[str, str]:
        """A ticket whose call has been and gone."""
        ticket, call_sid = self.ring()
        with connect(self.held.url.replace("http", "ws", 1) + "/stream", proxy=None) as socket:
            socket.send(start(ticket, call_sid).decode())
            socket.send(json.dumps({"event": "stop", "streamSid": "MZ" + call_sid[2:]}))
        return ticket, call_sid

    def numbers(self) -> dict[str, float]:
        """The server's own count of everything, labels added up."""
        found: dict[str, float] = {}
        for name, value in NUMBER.findall(self.held.client.get("/metrics").text):
            found[name] = found.get(name, 0.0) + float(value)
        return found


def _webhooks(scene: Scene) -> dict[str, Any]:
    talking = scene.held.call_sids
    ended = scene.used_ticket()[1]
    captured = []
    for call_sid in (*talking[:4], ended):
        facts = {"CallSid": call_sid, "From": "+12025550199", "CallStatus": "ringing"}
        captured.append(scene.webhook("/twiml", **facts))
        captured.append(scene.webhook("/call-status", **facts, SequenceNumber="0"))
    return {"webhooks": captured}


def _tickets(scene: Scene) -> dict[str, Any]:
    guessed = [(secrets.token_urlsafe(16), call_sid) for call_sid in scene.held.call_sids]
    stolen = [(scene.ring()[0], call_sid) for call_sid in scene.held.call_sids[:3]]
    used = [scene.used_ticket()]
    time.sleep(max(0.0, scene.begun_at + TICKET_TTL_S - time.monotonic()))
    return {"tickets": [*scene.expired, *used, *stolen, *guessed]}


def _merged(scene: Scene) -> dict[str, Any]:
    """One webhook of a call that is over, with ever more of its fields put into ``CallSid``.

    What the carrier signs is every name and value in their order, with nothing between them.
    """
    call_sid = scene.used_ticket()[1]
    form = {
        "CallSid": call_sid,
        "CallStatus": "ringing",
        "Called": "+15005550006",
        "Caller": "+12025550199",
        "CallerCity": "WASHINGTON",
        "CallerCountry": "US",
        "Direction": "inbound",
        "From": "+12025550199",
        "FromCountry": "US",
        "To": "+15005550006",
        "ToCountry": "US",
    }
    names = sorted(form)
    merged = []
    for path in ("/twiml", "/call-status", "/amd-status", "/transfer-status"):
        _, signature, _ = scene.webhook(path, **form)
        for upto in range(2, len(names) + 1):
            swallowed = "".join(name + form[name] for name in names[1:upto])
            rest = {name: form[name] for name in names[upto:]}
            changed = {"CallSid": call_sid + swallowed, **rest}
            assert scene.webhook(path, **changed)[1] == signature, "it was to sign alike"
            merged.append((path, signature, urlencode(changed)))
    return {"webhooks": merged}


def _ringing(scene: Scene) -> dict[str, Any]:
    return {"tickets": [scene.ring() for _ in range(SHORT_CALLS)], "key": scene.held.keys.api_key}


def _nothing(scene: Scene) -> dict[str, Any]:
    return {}


# --- What else may fail ---------------------------------------------------------------------------


@contextmanager
def _undisturbed(scene: Scene, came_of_it: dict[str, Any]) -> Generator[None]:
    yield


@contextmanager
def _locked_database(scene: Scene, came_of_it: dict[str, Any]) -> Generator[None]:
    """Somebody else holds the database's lock, and gives it back at the end."""
    path = scene.held.directory / "offhook.db"
    other = sqlite3.connect(path, isolation_level=None, timeout=RECOVERY_S)
    try:
        other.execute("BEGIN EXCLUSIVE")
        yield
        came_of_it["waited"] = int(scene.numbers()["records_unsaved"])
        other.execute("ROLLBACK")
    finally:
        other.close()
    _wait_written(scene, came_of_it)


@contextmanager
def _full_disk(scene: Scene, came_of_it: dict[str, Any]) -> Generator[None]:
    """No file of the server's can grow by a byte, which any user may ask of their own process.

    The system's answer is another (EFBIG) than a full disk's (ENOSPC), but it comes from the same
    write, for recordings, database and log alike.
    """
    pid, limit = scene.held.pid, resource.RLIMIT_FSIZE
    was = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (0, was[1]))
    try:
        yield
        numbers = scene.numbers()
        came_of_it["recordings stopped"] = int(numbers["recordings_stopped"])
        came_of_it["waited"] = int(numbers["records_unsaved"])
    finally:
        resource.prlimit(pid, limit, was)
    _wait_written(scene, came_of_it)


def _wait_written(scene: Scene, came_of_it: dict[str, Any]) -> None:
    deadline = time.monotonic() + RECOVERY_S
    while (numbers := scene.numbers())["records_unsaved"] and time.monotonic() < deadline:
        time.sleep(0.2)
    came_of_it["lost"] = int(numbers["records_unsaved"])


@contextmanager
def _few_descriptors(scene: Scene, came_of_it: dict[str, Any]) -> Generator[None]:
    """The server may open fewer descriptors than the attacker has sockets."""
    pid, limit = scene.held.pid, resource.RLIMIT_NOFILE
    was = resource.prlimit(pid, limit)
    now_open = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, limit, (now_open + MORE_DESCRIPTORS, was[1]))
    try:
        yield
        answer = scene.held.client.get("/healthz", timeout=RECOVERY_S)
        came_of_it["afterwards"] = answer.status_code
    finally:
        resource.prlimit(pid, limit, was)


@contextmanager
def _counting_calls(scene: Scene, came_of_it: dict[str, Any]) -> Generator[None]:
    """How many calls there are that were not there before."""
    before = scene.held.client.get("/readyz").json()
    yield
    after = scene.held.client.get("/readyz").json()
    more = sum(after[name] - before[name] for name in ("live_calls", "waiting_calls"))
    came_of_it["calls opened"] = came_of_it.get("calls opened", 0) + more


Fault = Callable[[Scene, dict[str, Any]], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Attack:
    """One line of the table."""

    title: str
    attack: str = ""
    """What the attacker does, if that is not the line's own name."""
    prepare: Callable[[Scene], dict[str, Any]] = _nothing
    fault: Fault = _undisturbed
    rounds: int | None = None
    """Some can be done only once."""


ATTACKS = {
    "never-start": Attack("200 media sockets that never start, reopened 50/s"),
    "slow-heads": Attack("200 request heads, a byte a second each"),
    "slow-bodies": Attack("200 request bodies, a byte a second each"),
    "forged-webhooks": Attack("forged webhook signatures, 50/s"),
    "replayed-webhooks": Attack("captured webhooks replayed, 50/s", prepare=_webhooks),
    "tickets": Attack("guessed, used, stolen, expired tickets, 20/s", prepare=_tickets),
    "oversized": Attack("1 MiB messages on /stream, 10/s"),
    "half-sent": Attack("half handshakes and frames, 20/s"),
    "malformed": Attack("malformed frames and messages, 20/s"),
    "wrong-keys": Attack("wrong API keys, 50/s"),
    "upgrades": Attack("200 upgrades answered 400, left open"),
    "prefaces": Attack("200 HTTP/2 prefaces and halves, left open; 400 resets/s"),
    "descriptors": Attack("320 silent sockets, 250 descriptors", fault=_few_descriptors),
    "pings": Attack("80 media sockets that ping and do not read, 45 Mbit/s"),
    "ignored": Attack("8 media sockets whose messages are ignored, 45 Mbit/s"),
    "killers": Attack("what has once ended a server, 20/s"),
    "costly": Attack("64 KiB that are dear to read, 20/s"),
    "webhooks-merged": Attack(
        "a captured webhook, its fields merged, 50/s", "replayed-webhooks", _merged, _counting_calls
    ),
    "deaf-phones": Attack("5 phones that talk and do not read", prepare=_ringing, rounds=1),
    "locked-database": Attack(
        "the database is locked, calls end", "short-calls", _ringing, _locked_database
    ),
    "full-disk": Attack(
        "the disk is full under every recording", "short-calls", _ringing, _full_disk, rounds=1
    ),
}


# --- Measuring ------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of one attack, round by round."""

    name: str
    quiet: list[dict[str, Any]] = field(default_factory=list)
    attacked: list[dict[str, Any]] = field(default_factory=list)
    got: list[dict[str, Any]] = field(default_factory=list)
    came_of_it: dict[str, Any] = field(default_factory=dict)
    grown_kib: int = 0
    """The most memory beyond what there was before."""
    kept_kib: int = 0
    """What of it was still there when every socket was closed."""
    lost_ms: float = 0.0
    doubled_ms: float = 0.0
    calls_lost: int = 0
    repeated: int = 0
    """Rounds that other programs have disturbed, and that do not count."""
    is_disturbed: bool = False
    """Rounds that do count were, too."""

    @staticmethod
    def p99_ms(windows: Sequence[dict[str, Any]], way: str) -> float:
        """Median of the rounds' 99th percentiles."""
        found = [window[way]["p99"] for window in windows]
        return statistics.median(float("inf") if p99 is None else p99 for p99 in found)

    def as_dict(self) -> dict[str, Any]:
        """The figures other tools read."""
        return {
            "attack": self.name,
            "quiet_p99_ms": {name: self.p99_ms(self.quiet, way) for name, way in WAYS.items()},
            "attacked_p99_ms": {
                name: self.p99_ms(self.attacked, way) for name, way in WAYS.items()
            },
            "rounds": [
                {name: [quiet[way]["p99"], attacked[way]["p99"]] for name, way in WAYS.items()}
                | {"server_core": [quiet["server_core"], attacked["server_core"]]}
                | {"generator_late_ms": attacked["generator_late_ms"]}
                for quiet, attacked in zip(self.quiet, self.attacked, strict=True)
            ],
            "got": self.got,
            "came_of_it": self.came_of_it,
            "grown_kib": self.grown_kib,
            "kept_kib": self.kept_kib,
            "lost_ms": self.lost_ms,
            "doubled_ms": self.doubled_ms,
            "calls_lost": self.calls_lost,
            "repeated": self.repeated,
            "is_disturbed": self.is_disturbed,
        }


def holds(outcome: Outcome) -> bool:
    """Whether the good calls have not noticed."""
    return not outcome.lost_ms + outcome.doubled_ms + outcome.calls_lost and all(
        outcome.p99_ms(outcome.attacked, way)
        <= max(2 * outcome.p99_ms(outcome.quiet, way), FLOOR_MS)
        for way in WAYS.values()
    )


def run(options: Options) -> dict[str, object]:
    """Measure every attack, and print the table."""
    console, chosen = options.console, options.arguments
    facts = machine(PACKAGES)
    console.print(machine_line(facts), highlight=False)
    unknown = set(chosen.attacks) - set(ATTACKS)
    if unknown:
        raise SystemExit(f"no such attack: {', '.join(sorted(unknown))}")
    busy = idle_load()
    if busy > IDLE:
        console.print(
            f"[yellow]this machine is not idle[/]: a core is {busy:.0%} busy before we begin"
        )
    kind = ORDINARY if chosen.ordinary else OFFHOOK
    with console.status("") as status:
        outcomes, facts_of_all = measure(
            kind,
            chosen.attacks,
            calls=chosen.calls,
            window_s=QUICK_WINDOW_S if options.quick else WINDOW_S,
            rounds=chosen.rounds or (1 if options.quick else ROUNDS),
            realtime=chosen.realtime,
            tell=status.update,
        )
    console.print(gains_table(outcomes))
    console.print(calls_table(outcomes, chosen.calls, kind))
    console.print(f"yes: within twice the quiet, or {FLOOR_MS:g} ms, and no audio lost or doubled")
    for outcome in outcomes:
        if outcome.is_disturbed or outcome.repeated:
            console.print(
                f"{outcome.name}: {outcome.repeated} rounds repeated: other programs had the cores"
                + (", [yellow]and those that count are disturbed, too[/]" * outcome.is_disturbed)
            )
    console.print(
        f"memory of the server: {facts_of_all['before_kib'] / 1024:.1f} MiB before the first "
        f"attack, {facts_of_all['after_kib'] / 1024:.1f} MiB after the last"
    )
    return {
        "versions": facts["versions"],
        "server": kind.name,
        "calls": chosen.calls,
        "busy_before": round(busy, 3),
        "attacks": [outcome.as_dict() | {"holds": holds(outcome)} for outcome in outcomes],
        **facts_of_all,
    }


def measure(
    kind: ServerKind,
    names: Sequence[str],
    *,
    calls: int,
    window_s: float,
    rounds: int,
    realtime: bool = False,
    warm_s: float = 5.0,
    repeats: bool = True,
    tell: Callable[[str], object] = lambda what: None,
) -> tuple[list[Outcome], dict[str, int]]:
    """Attack one server in each of these ways; also its memory before and after all of it.

    Args:
        kind: The server.
        names: Which attacks.
        calls: How many talk.
        window_s: How long they are measured, quiet and attacked.
        rounds: How often, for each attack.
        realtime: Prefer server and generator to other programs.
        warm_s: How long the calls talk before the first attack.
        repeats: Whether rounds that other programs have disturbed are repeated.
        tell: Is told what is being done.
    """
    outcomes: list[Outcome] = []
    memory: dict[str, int] = {}

    def attack_all(held: Held) -> None:
        scene = Scene(held)
        if "tickets" in names:
            scene.expired.append(scene.ring())
        memory["before_kib"] = resident_kib(held.pid)
        for name in names:
            outcome = Outcome(name)
            outcomes.append(outcome)
            wanted = min(rounds, ATTACKS[name].rounds or rounds)
            while len(outcome.attacked) < wanted:
                tell(f"{name}, round {len(outcome.attacked) + 1}")
                may_repeat = outcome.repeated < (ATTACKS[name].rounds is None and repeats) * rounds
                _attack(scene, name, window_s, outcome, may_repeat=may_repeat)
        memory["after_kib"] = resident_kib(held.pid)

    tell("calls are set up")
    run_point(
        KINDS[kind.name],
        calls,
        window_s=window_s,
        warm_s=warm_s,
        realtime=realtime,
        hold=attack_all,
        timeout_s=TIMEOUT_S,
        settings={
            "MAX_CALLS": str(calls + 100),
            "RECORDINGS_DIR": "recordings",
            "TICKET_TTL_S": f"{TICKET_TTL_S:g}",
            # A connection that is replaced in time would look like one that was lost.
            "MODEL_CONNECTION_AGE_S": f"{2 * TIMEOUT_S:g}",
        },
    )
    return outcomes, memory


def _attack(
    scene: Scene, name: str, window_s: float, outcome: Outcome, *, may_repeat: bool
) -> None:
    """One round: quiet, then attacked, then until the attacker has lost its last socket."""
    held, attack = scene.held, ATTACKS[name]
    means = Means(
        attack=attack.attack or name,
        port=urlsplit(held.url).port or 0,
        seconds=window_s + SETTLE_S,
        **attack.prepare(scene),
    )
    with processes.running(
        "benchmarks.load.attacker",
        cores=held.cores,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as attacker:
        assert attacker.stdin is not None
        assert attacker.stdout is not None

        def told() -> dict[str, Any]:
            line = attacker.stdout.readline()  # type: ignore[union-attr]
            if not line:
                raise PointFailed("the attacker ended without a word; its own are above")
            found: dict[str, Any] = json.loads(line)
            return found

        def say(what: object) -> None:
            attacker.stdin.write(json.dumps(what).encode() + b"\n")  # type: ignore[union-attr]
            attacker.stdin.flush()  # type: ignore[union-attr]

        say(asdict(means))
        told()
        before = watched_window(held, window_s)
        with _memory(held.pid) as memory, attack.fault(scene, outcome.came_of_it):
            say("go")
            time.sleep(SETTLE_S)
            during = watched_window(held, window_s)
            got = told()
    # The audio of the whole attack, its last sockets included.
    after = held.measure(0.1)
    outcome.got.append(got)
    disturbed = any(
        window["kept_waiting"] > MAX_WAIT or window["generator_late_ms"]["p99"] > MAX_LATE_MS
        for window in (before, during)
    )
    if disturbed and may_repeat:
        outcome.repeated += 1
    else:
        outcome.quiet.append(before)
        outcome.attacked.append(during)
        outcome.is_disturbed |= disturbed
    outcome.grown_kib = max(outcome.grown_kib, max(memory) - memory[0])
    outcome.kept_kib = max(outcome.kept_kib, resident_kib(held.pid) - memory[0])
    outcome.lost_ms += after["lost_ms"] - before["lost_ms"]
    outcome.doubled_ms += after["doubled_ms"] - before["doubled_ms"]
    outcome.calls_lost += after["calls_lost"] - before["calls_lost"]


def watched_window(held: Held, window_s: float) -> dict[str, Any]:
    """The calls for so long, and the share of it that others kept the server from its core."""
    began, waited_s = time.monotonic(), _waited_s(held.pid)
    window = held.measure(window_s)
    window["kept_waiting"] = max(0.0, _waited_s(held.pid) - waited_s) / (time.monotonic() - began)
    return window


def _waited_s(pid: int) -> float:
    """How long the main thread has waited for a core that its own process's threads did not use."""
    try:
        main = Path(f"/proc/{pid}/schedstat").read_text().split()
    except OSError:
        return 0.0  # not Linux
    threads_s = sum(processes.cpu_s(pid).values())
    return int(main[1]) / 1e9 - (threads_s - int(main[0]) / 1e9)


@contextmanager
def _memory(pid: int) -> Generator[list[int]]:
    """Memory of a process while the block runs, a few times a second."""
    seen = [resident_kib(pid)]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(OSError):
                seen.append(resident_kib(pid))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


# --- What is shown --------------------------------------------------------------------------------


def gains_table(outcomes: Sequence[Outcome]) -> Table:
    """What the attacker got."""
    shown = Table(title="what the attacker gets", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    shown.add_column("attack", max_width=34)
    shown.add_column("how it ended", max_width=36)
    shown.add_column("lived, s\np50 / max", justify="right", no_wrap=True)
    shown.add_column("at\nonce", justify="right")
    shown.add_column("still\nopen", justify="right")
    shown.add_column("memory, KiB\nmost / kept", justify="right", no_wrap=True)
    for outcome in outcomes:
        endings: dict[str, int] = {}
        for got in outcome.got:
            for ending, count in got["endings"].items():
                endings[ending] = endings.get(ending, 0) + count
        words = [f"{count} x {ending}" for ending, count in endings.items() if ending != "left"]
        words += [f"{what} {count}" for what, count in outcome.came_of_it.items()]
        lives = [got["lives_s"] for got in outcome.got if got["lives_s"]]
        shown.add_row(
            ATTACKS[outcome.name].title,
            ", ".join(words),
            f"{statistics.median(life['p50'] for life in lives):.1f} / "
            f"{max(life['max'] for life in lives):.1f}"
            if lives
            else "-",
            str(max(got["most_open"] for got in outcome.got)),
            str(sum(got["still_open"] for got in outcome.got)),
            f"{outcome.grown_kib} / {outcome.kept_kib}",
        )
    return shown


def calls_table(outcomes: Sequence[Outcome], calls: int, kind: ServerKind) -> Table:
    """What the good calls noticed."""
    shown = Table(
        title=f"what {calls} calls notice, {kind.name}: p99 in ms, quiet / attacked",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    shown.add_column("attack", max_width=46)
    for heading in ("server's core", *WAYS, "lost, doubled, ms", ""):
        shown.add_column(heading, justify="right", no_wrap=True)
    for outcome in outcomes:
        core = [
            statistics.median(window["server_core"] for window in windows)
            for windows in (outcome.quiet, outcome.attacked)
        ]
        shown.add_row(
            ATTACKS[outcome.name].title,
            f"{core[0]:.0%} / {core[1]:.0%}",
            *(
                f"{outcome.p99_ms(outcome.quiet, way):.2f} / "
                f"{outcome.p99_ms(outcome.attacked, way):.2f}"
                for way in WAYS.values()
            ),
            f"{outcome.lost_ms:.0f}, {outcome.doubled_ms:.0f}"
            + (f", {outcome.calls_lost} calls" if outcome.calls_lost else ""),
            "[green]yes[/]" if holds(outcome) else "[red]no[/]",
        )
    return shown
