"""What has to hold, whatever happens: judged when a run is over, from what was seen of it.

Nothing here waits or asks anybody: everything is a function of what it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.chaos.calls import CALLER, CallSeen
from benchmarks.chaos.faults import Excuse
from benchmarks.chaos.numbered import FRAME_S
from benchmarks.chaos.world import Record
from benchmarks.weighing import Weighed, growth

PROBE_TIMEOUT_S = 2.0
TAIL_FRAMES = 25
"""Of the caller's last words, half a second may be under way when they hang up."""
WRITTEN_S = 5.0
"""How long a record may be on its way: that of a call which ended so long before its process was
killed may be gone with it."""
MORE_DESCRIPTORS = 12
MORE_THREADS = 8
"""Of each worker: connections to the database and threads that are kept for a while."""
MORE_MEMORY = 0.5
MORE_MEMORY_BYTES = 64 * 2**20
"""Memory may grow by half, or by so much: a short run has pools and caches to fill."""

SURE_S = 1.0
"""How long a call has to be there before a look that the server must know of it."""
UNASKED = "error 11205: /resume"
"""What the carrier notes of a call that it does not know how to go on with."""

INVARIANTS = {
    "calls live": "no call ended but by its own fault",
    "calls begin": "no call refused but where it may be",
    "audio whole": "no frame lost but what the network lost",
    "audio own": "nothing heard twice, nothing of somebody else's",
    "records": "every record written once",
    "webhooks": "every webhook answered",
    "alive": "/healthz answers in time",
    "ready": "/readyz says yes while calls can be served",
    "not ready": "/readyz says no while they cannot",
    "no leak": "nothing is left when all calls are over",
    "flat": "memory does not grow after the first five minutes of ten or more",
    "log": "no traceback in the log",
    "up": "the server runs to the end, and stops when told",
}


YOUNG_S = 1.0
"""Of a call that has begun so short a time ago a process that is killed may have kept nothing."""


@dataclass(frozen=True, slots=True)
class Done:
    """A fault as it happened, by the monotonic clock."""

    name: str
    began: float
    ended: float
    excuse: Excuse
    facts: Mapping[str, object] = field(default_factory=dict)
    may_end: int = 0
    """How many calls it may end."""

    def covers(self, since: float, until: float) -> bool:
        """Whether this is (partly) while it lasts or shortly after."""
        return self.began <= until and since <= self.ended + self.excuse.grace_s


@dataclass(frozen=True, slots=True)
class Look:
    """What the probes said at one moment."""

    at: float
    healthy_s: float | None
    """How long ``/healthz`` took; None if it did not answer in time."""
    ready: int | None
    """The status of ``/readyz``; None likewise."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What the server's processes hold."""

    descriptors: int
    threads: int
    rss_bytes: int
    workers: int = 1


@dataclass(slots=True)
class Seen:
    """All that is known of a run."""

    began: float = 0.0
    ended: float = 0.0
    faults: list[Done] = field(default_factory=list)
    calls: list[CallSeen] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    weighed: list[Weighed] = field(default_factory=list)
    """Its memory while calls were made, every few seconds."""
    records: Sequence[Record] = ()
    before: Held | None = None
    after: Held | None = None
    max_calls: int | None = None
    """How many the server was told to take at the most."""
    left_calls: int = 0
    """Calls that the server still counts when the carrier has none."""
    drained: Look | None = None
    """The probes when the server has been told to drain."""
    tracebacks: list[str] = field(default_factory=list)
    status: int | None = None
    """The server's exit status; None if it had to be killed."""
    died: float | None = None
    """When it ended by itself."""


@dataclass(frozen=True, slots=True)
class Broken:
    """One time that an invariant did not hold."""

    invariant: str
    at: float
    what: str
    call_sid: str = ""


def judge(seen: Seen) -> list[Broken]:
    """Everything that did not hold, in the order in which it happened."""
    return sorted(
        (
            *_calls_live(seen),
            *_calls_begin(seen),
            *_audio(seen),
            *_records(seen),
            *_webhooks(seen),
            *_probes(seen),
            *_leaks(seen),
            *_growth(seen),
            *_log(seen),
            *_up(seen),
        ),
        key=lambda broken: broken.at,
    )


def _during(seen: Seen, since: float, until: float) -> list[Done]:
    return [fault for fault in seen.faults if fault.covers(since, until)]


def _was_served(call: CallSeen) -> bool:
    return bool(call.streams)


def _was_given_up(call: CallSeen) -> bool:
    """Whether the carrier asked how the call goes on, and reached nobody."""
    return any(UNASKED in note for _, note in call.notes)


def _calls_live(seen: Seen) -> Iterator[Broken]:
    left = {id(fault): fault.may_end for fault in seen.faults}
    for call in seen.calls:
        if not _was_served(call) or call.hung_up:
            continue
        for fault in _during(seen, call.ended, call.ended):
            if fault.excuse.ends in ("unasked", "young") and _was_given_up(call):
                break
            if fault.excuse.ends == "young" and call.began >= fault.began - YOUNG_S:
                break
            if left[id(fault)] > 0:
                left[id(fault)] -= 1
                break
        else:
            how = "; ".join(call.streams)
            yield Broken("calls live", call.ended, f"it ended: {how}", call.call_sid)


def _calls_begin(seen: Seen) -> Iterator[Broken]:
    for call in seen.calls:
        if _was_served(call):
            continue
        faults = _during(seen, call.began, call.ended)
        if not any(fault.excuse.is_unready or fault.excuse.is_deaf for fault in faults):
            what = "; ".join(note for _, note in call.notes[-4:])
            yield Broken("calls begin", call.ended, f"it never began: {what}", call.call_sid)


def _audio(seen: Seen) -> Iterator[Broken]:
    for call in seen.calls:
        for loss in call.losses:
            faults = _during(seen, loss.since, loss.until)
            if not any(loss.way in fault.excuse.loses for fault in faults):
                lost_ms = round(1000 * FRAME_S * loss.frames)
                what = f"{lost_ms} ms of the {loss.way} did not arrive"
                yield Broken("audio whole", loss.until, what, call.call_sid)
        near_end = _during(seen, call.ended - FRAME_S * call.caller_tail - 1.0, call.ended)
        if (
            call.caller_tail > TAIL_FRAMES
            and _was_served(call)
            # Who hangs up on a server that is held up is not listened to any more.
            and not any(CALLER in fault.excuse.loses or fault.excuse.is_deaf for fault in near_end)
        ):
            lost_ms = round(1000 * FRAME_S * call.caller_tail)
            what = f"the caller's last {lost_ms} ms did not arrive"
            yield Broken("audio whole", call.ended, what, call.call_sid)
        if call.doubled or call.strange:
            what = (
                f"{call.doubled} frames heard twice, {call.strange_up} of the caller's and "
                f"{call.strange_down} of the agent's of nobody's or another's"
            )
            faults = _during(seen, call.began, call.ended)
            # Where a connection broke, what was not certainly heard is sent again.
            if call.strange > 2 or not any(fault.excuse.loses for fault in faults):
                yield Broken("audio own", call.ended, what, call.call_sid)


def _records(seen: Seen) -> Iterator[Broken]:
    counts = Counter(record.call_sid for record in seen.records)
    ended_at = {call.call_sid: call.ended for call in seen.calls}
    for call in seen.calls:
        near = _during(seen, call.began, call.ended + WRITTEN_S)
        was_killed = any(fault.excuse.ends == "young" for fault in near)
        if not counts[call.call_sid] and _was_served(call) and not was_killed:
            yield Broken("records", call.ended, "there is none", call.call_sid)
    for sid, count in counts.items():
        if sid not in ended_at:
            yield Broken("records", seen.ended, "it is of a call that never was", sid)
        elif count > 1:
            yield Broken("records", ended_at[sid], f"there are {count}", sid)
    for record in seen.records:
        if record.call_sid in ended_at and (record.state != "ended" or not record.reason):
            what = f"it says {record.state}, {record.reason}"
            yield Broken("records", ended_at[record.call_sid], what, record.call_sid)


def _webhooks(seen: Seen) -> Iterator[Broken]:
    for call in seen.calls:
        if call.unanswered:
            faults = _during(seen, call.began, call.ended + 20.0)
            if not any(fault.excuse.is_deaf or fault.excuse.loses for fault in faults):
                what = f"{call.unanswered} were not answered"
                yield Broken("webhooks", call.ended, what, call.call_sid)


def _probes(seen: Seen) -> Iterator[Broken]:
    for look in seen.looks:
        faults = _during(seen, look.at - PROBE_TIMEOUT_S, look.at + PROBE_TIMEOUT_S)
        if any(fault.excuse.is_deaf for fault in faults):
            continue
        if look.healthy_s is None:
            yield Broken("alive", look.at, f"no answer within {PROBE_TIMEOUT_S:g} s")
        if look.ready != 200 and not any(fault.excuse.is_unready for fault in faults):
            said = "nothing" if look.ready is None else f"{look.ready} {look.reason}"
            yield Broken("ready", look.at, f"it said {said}")
        if look.ready == 200 and seen.max_calls is not None:
            count = _surely_live(seen, look)
            if count >= seen.max_calls:
                what = f"it said 200 with {count} calls of {seen.max_calls}"
                yield Broken("not ready", look.at, what)
    if seen.drained is not None and seen.drained.ready != 503:
        yield Broken("not ready", seen.drained.at, f"draining, it said {seen.drained.ready}")


def _surely_live(seen: Seen, look: Look) -> int:
    """How many calls were served before, during and after a look."""
    return sum(
        _was_served(call)
        and (call.answered or call.began) + SURE_S <= look.at
        and look.at + 2 * PROBE_TIMEOUT_S <= call.ended
        for call in seen.calls
    )


def _leaks(seen: Seen) -> Iterator[Broken]:
    if seen.left_calls:
        yield Broken("no leak", seen.ended, f"{seen.left_calls} calls that nobody has")
    before, after = seen.before, seen.after
    if before is None or after is None:
        return
    if after.descriptors > before.descriptors + MORE_DESCRIPTORS * after.workers:
        what = f"{before.descriptors} descriptors before, {after.descriptors} after"
        yield Broken("no leak", seen.ended, what)
    if after.threads > before.threads + MORE_THREADS * after.workers:
        yield Broken("no leak", seen.ended, f"{before.threads} threads, then {after.threads}")
    grown = after.rss_bytes - before.rss_bytes
    if grown > max(MORE_MEMORY_BYTES, MORE_MEMORY * before.rss_bytes):
        yield Broken("no leak", seen.ended, f"{grown / 2**20:.0f} MiB more than before")


def _growth(seen: Seen) -> Iterator[Broken]:
    if what := growth(seen.weighed, seen.began):
        yield Broken("flat", seen.ended, what)


def _log(seen: Seen) -> Iterator[Broken]:
    for traceback in seen.tracebacks:
        yield Broken("log", seen.ended, traceback)


def _up(seen: Seen) -> Iterator[Broken]:
    if seen.died is not None:
        yield Broken("up", seen.died, f"the server ended by itself, with status {seen.status}")
    elif seen.status is None:
        yield Broken("up", seen.ended, "it did not end when told, and was killed")
    elif seen.status != 0:
        yield Broken("up", seen.ended, f"it ended with status {seen.status}")


def fault_at(faults: Sequence[Done], at: float) -> str:
    """Under which faults something happened, for a table."""
    names = sorted({fault.name for fault in faults if fault.covers(at, at)})
    return ", ".join(names) or "none"
