"""Several processes of one server: what they agree on, and calls that come to the wrong one."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio
from prometheus_client import CollectorRegistry
from trio.testing import wait_all_tasks_blocked

from benchmarks.processes import family
from server.agent.agent import Agent
from server.carrier import CallStatus
from server.cluster.alone import Alone
from server.cluster.cluster import Cluster
from server.cluster.directory.meeting import AVAILABLE
from server.cluster.passing_on import PASSED_ON, Hop
from server.cluster.registry import Holding, Load
from server.dialogue.endings import EndReason
from server.errors import ConfigurationError
from server.metrics import Metrics, merged
from tests.support.pages import page_on
from tests.support.processes import (
    NEVER_HANGS_UP,
    PATIENCE_S,
    TWO_PROCESSES,
    ServerProcess,
    server_process,
    stopped_in_mid_call,
)
from tests.support.switchboards import make_calls

pytestmark = [
    pytest.mark.skipif(not AVAILABLE, reason="needs Unix sockets"),
    pytest.mark.sockets,
    pytest.mark.slow,
]

HANGS_UP = "+15005550103"


@pytest.fixture
def meeting(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(
        "server.cluster.directory.meeting.MAX_PATH_BYTES", 190
    )  # no socket is made here
    return "offhook-here"


@pytest.fixture
def three(meeting):
    clusters = [Cluster() for _ in range(3)]
    with ExitStack() as stack:
        for each in clusters:
            each.join(3, where=meeting)
            stack.callback(each.leave)
            each.report = lambda: Load(accepts=True)
            each.publish()
        yield clusters


# -- what they agree on --------------------------------------------------------------------


def test_each_takes_a_place_and_gives_it_back(meeting, tmp_path):
    first, second, late = Cluster(), Cluster(), Cluster()
    first.join(2, where=meeting)
    second.join(2, where=meeting)
    with pytest.raises(ConfigurationError, match="2 processes"):
        late.join(2, where=meeting)
    first.leave()
    late.join(2, where=meeting)

    assert [each.me.name for each in (first, second, late)] == ["0", "1", "0"]
    assert stat.S_IMODE((tmp_path / meeting).stat().st_mode) == 0o700
    second.leave()
    late.leave()
    assert not (tmp_path / meeting).exists()


def test_a_directory_that_others_can_look_into_is_refused(meeting, tmp_path):
    (tmp_path / meeting).mkdir(mode=0o755)

    with pytest.raises(ConfigurationError, match="private"):
        Cluster().join(2, where=meeting)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_is_said_and_ends_nobody_without_a_word(meeting, tmp_path):
    (tmp_path / meeting).mkdir(mode=0o700)
    (tmp_path / meeting / "board").symlink_to("/dev/full")

    with pytest.raises(ConfigurationError, match="cannot be used: No space left"):
        Cluster().join(2, where=meeting)


def test_the_users_own_place_for_what_runs_is_preferred(meeting, tmp_path, monkeypatch):
    own, alien = tmp_path / "own", tmp_path / "alien"
    own.mkdir(mode=0o700)
    alien.mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(own)
    found = []
    for each in (own, alien, tmp_path / "link", tmp_path / "none"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(each))
        cluster = Cluster()
        cluster.join(2, where=meeting)
        found.append([where.name for where in (own, tmp_path) if (where / meeting).exists()])
        cluster.leave()

    assert found == [["own"], *[[tmp_path.name]] * 3]


def test_a_directory_too_deep_for_unix_sockets_is_a_wrong_setting(meeting, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("deep" * 60)))

    with pytest.raises(ConfigurationError, match="TMPDIR"):
        Cluster().join(2, where=meeting)


def test_a_pause_that_one_has_told_is_everybodys_until_that_one_ends_it(three):
    first, second, third = (each.registry for each in three)
    first.tell_pause("model-quota", 600.0)
    heard = [registry.pause() for registry in (first, second, third)]
    second.tell_pause("model-quota", 0.0)  # which it has not told
    still = third.pause()
    first.tell_pause("model-quota", 0.0)

    assert [said and said[0] for said in heard] == [None, "model-quota", "model-quota"]
    assert still is not None
    assert [registry.pause() for registry in (first, second, third)] == [None, None, None]


def test_of_two_pauses_the_longer_counts(three):
    first, second, third = (each.registry for each in three)
    first.tell_pause("model-quota", 600.0)
    second.tell_pause("model-credits", 60.0)
    shorter = third.pause()
    second.tell_pause("model-credits", 900.0)
    longer = third.pause()

    assert shorter is not None
    assert longer is not None
    assert [shorter[0], longer[0]] == ["model-quota", "model-credits"]


async def test_one_process_alone_shares_nothing(meeting, tmp_path):
    alone = Cluster()
    alone.join(1, where=meeting)

    assert not alone.are_several
    assert alone.path == ""
    assert alone.new_calls.choose() == alone.me.name == "0"
    assert await alone.registry.claim("CA1") == Holding(alone.me, 1)
    assert await alone.registry.owner("CA1") == Holding(alone.me, 1)
    assert list(tmp_path.iterdir()) == []


def test_one_that_may_be_taken_over_takes_a_place_and_keeps_nothing_for_others(meeting):
    alone = Cluster()
    with ExitStack() as stack:
        alone.join(1, places=4, where=meeting)
        stack.callback(alone.leave)

        assert alone.are_several
        assert not alone.has_others
        assert alone.path == "/n/0"
        assert alone.siblings() == []
        assert alone.of_key("client", "key") == alone.new_calls.choose() == "0"


def test_a_process_that_new_calls_would_not_find_takes_no_place(meeting):
    with ExitStack() as stack:
        for known in (2, 2, None):
            each = Cluster()
            if known is None:
                with pytest.raises(ConfigurationError, match="still has calls"):
                    each.join(1, places=4, where=meeting, known=2)
            each.join(1, places=4, where=meeting, known=known)
            stack.callback(each.leave)

        assert each.path == "/n/2"


def test_a_process_of_a_machine_among_others_has_its_place_in_its_name(meeting):
    old, new = (Cluster(node="a", secrets=["s" * 32], make_registry=Alone) for _ in range(2))
    with ExitStack() as stack:
        for each in (old, new):
            each.join(1, places=4, where=meeting)
            stack.callback(each.leave)

        assert (old.path, new.path) == ("/n/a.0", "/n/a.1")
        assert (old.registry.me, new.registry.me) == (old.me, new.me)
        assert old.has_others
        assert new.name_of_number(3) == "a.3"


def test_a_server_that_takes_over_is_chosen_from_the_moment_it_steps_in(meeting):
    with ExitStack() as stack:
        old, *new = clusters = [Cluster() for _ in range(3)]
        for each, count in zip(clusters, (1, 2, 2), strict=True):
            each.stands_aside = each is not old
            each.join(count, places=4, where=meeting, speaks_for_all=each is not new[1])
            stack.callback(each.leave)
            each.report = lambda: Load(accepts=True)
            each.publish()
        keys = [f"key {number}" for number in range(50)]
        before = {each.new_calls.choose() for each in clusters}
        keys_before = {each.of_key("client", key) for each in clusters for key in keys}
        for each in clusters:
            each.stands_aside = each is old
            each.publish()
        after = {each.new_calls.choose() for each in clusters}
        keys_after = {each.of_key("client", key) for each in clusters for key in keys}

        assert [each.me.name for each in clusters] == ["0", "1", "2"]
        assert [each.speaks_for_all for each in clusters] == [True, True, False]
        assert before == keys_before == {"0"}
        assert after == {"1", "2"}
        assert keys_after == {"1", "2"}
        assert old.live_elsewhere == 0
        assert old.accepts_elsewhere


def test_a_key_stays_with_its_process_whoever_else_comes_or_goes(three, meeting):
    first, second, third = three
    keys = [f"key {number}" for number in range(200)]

    before = {key: first.of_key("client", key) for key in keys}
    third.stands_aside = True
    third.publish()
    without = {key: second.of_key("client", key) for key in keys}
    third.stands_aside = False
    third.publish()

    assert set(before.values()) == {"0", "1", "2"}
    assert set(without.values()) == {"0", "1"}
    assert all(without[key] == name for key, name in before.items() if name != "2")
    assert {key: third.of_key("client", key) for key in keys} == before


async def test_the_first_claim_decides_whose_a_call_is(three):
    first, second, third = (each.registry for each in three)

    assert await first.owner("CA1") is None
    assert await first.claim("CA1", third.me) == Holding(third.me, 1)
    assert await second.claim("CA1") == Holding(third.me, 1)
    assert await third.owner("CA1") == Holding(third.me, 1)
    third.release("CA1", 1)
    assert await first.owner("CA1") is None
    odd = "../../etc/passwd\0" + "x" * 1000
    assert await second.claim(odd) == await first.owner(odd) == Holding(second.me, 1)


async def test_a_call_that_is_over_stays_with_its_process_while_that_one_remembers_it(
    autojump_clock, nursery, three
):
    first, second, _ = three
    calls = make_calls(recent_calls=0, cluster=second)
    await nursery.start(calls.run)
    await calls.answer("CA7", "+15005550006", Agent())
    call = calls.register.get("CA7")
    call.end(EndReason.HUNG_UP)
    await call.finished.wait()
    await wait_all_tasks_blocked()

    # Another process would take a captured webhook for a new call.
    assert calls.register.get("CA7") is None
    assert await first.registry.owner("CA7") == Holding(second.me, 1)


async def test_what_a_process_had_is_nobodys_when_another_takes_its_place(three, meeting):
    first, second, _ = three
    second.hold("CA1", 1)
    first.hold("CA2", 1)
    second.leave()
    second.join(3, where=meeting)

    assert second.me.name == "1"
    assert await first.registry.owner("CA1") is None
    assert await first.registry.owner("CA2") == Holding(first.me, 1)


def test_a_burst_of_new_calls_is_spread_evenly_before_any_of_them_has_begun(three):
    chosen = []
    for asked in [*three] * 10:
        name = asked.new_calls.choose()
        number = asked.sibling_number(name)
        chosen.append(number)
        if name == asked.me.name:
            asked.new_calls.take({})
        else:
            asked._directory.board.give(number)

    assert [chosen.count(number) for number in range(3)] == [10, 10, 10]


def test_a_call_counts_once_on_its_way_in_hand_and_running(three):
    first, second, third = three

    def burdens():
        board = third._directory.board
        return [board.candidate(number, str(number)).calls for number in range(3)]

    first._directory.board.give(1)
    assert burdens() == [0, 1, 0]
    second.new_calls.take({PASSED_ON: Hop("0", given=True)})
    assert burdens() == [0, 1, 0]
    second.report = lambda: Load(accepts=True, live=1, running=1)
    second.new_calls.answered()
    assert burdens() == [0, 1, 0]
    first._directory.board.give(2)
    first._directory.board.take_back(2)
    assert burdens() == [0, 1, 0]


def test_a_new_call_goes_where_it_is_dialled_soonest_and_where_calls_are_taken(three):
    first, second, third = three
    first.report = lambda: Load(accepts=True, dials_in_s=5.0, dial_every_s=10.0)
    second.report = lambda: Load(accepts=True, running=7)
    third.report = lambda: Load(accepts=False, draining=True)
    for each in three:
        each.publish()

    assert [each.new_calls.choose() for each in three] == ["1", "1", "1"]
    assert first.new_calls.choose(frozenset({"1"})) == "0"
    second.leave()
    assert first.new_calls.choose() == "0"
    first.report = Load  # takes none either, and is asked: its own refusal says why
    assert first.new_calls.choose() == "0"


def test_a_dial_that_is_hardly_later_does_not_outweigh_the_calls(three):
    first, second, third = three
    for each, running in [(first, 3), (second, 2), (third, 4)]:
        each.report = partial(Load, accepts=True, running=running, dial_every_s=0.003)
        each.publish()
    third._directory.board.give(1)
    second.report = partial(Load, accepts=True, running=1, dials_in_s=0.02, dial_every_s=0.003)
    second.publish()

    assert [each.new_calls.choose() for each in three] == ["1", "1", "1"]


def test_metrics_of_several_processes_stand_side_by_side():
    registries = [Metrics(CollectorRegistry()) for _ in range(2)]
    for number, metrics in enumerate(registries):
        metrics.dials.labels("accepted").inc(number + 1)
    theirs = merged(registries[1].registry, [], worker="1").decode()

    text = merged(registries[0].registry, [theirs], worker="0").decode()

    assert re.findall(r'offhook_dials_total{outcome="accepted",worker="(.)"} (.*)', text) == [
        ("0", "1.0"),
        ("1", "2.0"),
    ]
    assert text.count("# TYPE offhook_dials_total counter") == 1


# -- whole servers -------------------------------------------------------------------------


def samples(text: str, name: str) -> dict[str, float]:
    """Of each process."""
    found: dict[str, float] = {}
    for labels, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.M):
        worker = re.search(r'worker="(\d+)"', labels)[1]
        found[worker] = found.get(worker, 0.0) + float(value)
    return found


PATIENT = {"media_timeout_s": 60, "line_lost_timeout_s": 60}
"""The telephones are the test's own, which may be held up."""


async def new_connection(server: ServerProcess, method: str, path: str, **request):
    """A request on a connection of its own, which any process may accept."""
    async with httpx2.AsyncClient(
        base_url=server.http.base_url,
        headers=server.http.headers,
        trust_env=False,
        verify=False,  # to read all the certificates there are holds up the telephones of the test
        timeout=PATIENCE_S,
    ) as http:
        return await http.request(method, path, **request)


@pytest.mark.parametrize(
    ("command", "media_path"),
    [
        ("python -m server --workers", "fast"),
        ("hypercorn -w", "fast"),
        ("python -m server --workers", "ordinary"),
    ],
)
async def test_calls_are_spread_and_meet_their_streams_and_webhooks(tmp_path, command, media_path):
    outbound, inbound, records = [], [], []
    async with server_process(tmp_path, command, media_path=media_path, calls_per_s=1000) as server:
        await server.both_ready()
        url = str(server.http.base_url).rstrip("/")

        async def call() -> None:
            answer = await new_connection(
                server, "POST", "/make-call", json={"destination_number": HANGS_UP}
            )
            assert answer.status_code == 201, answer.text
            outbound.append(server.twilio.calls[answer.json()["call_sid"]])

        async with trio.open_nursery() as callers:
            for _ in range(6):
                callers.start_soon(call)
        for _ in range(6):
            inbound.append(
                server.twilio.dial_in(
                    f"{url}/twiml",
                    from_number="+15005550199",
                    script="hangs-up",
                    status_url=f"{url}/call-status",
                )
            )
        for phone in (*outbound, *inbound):
            await phone.wait_ended()
            answer = await new_connection(server, "GET", f"/calls/{phone.call_sid}")
            records.append(answer.json())
        metrics = (await server.http.get("/metrics")).text
        listed = (await server.http.get("/calls")).json()

    assert {record["reason"] for record in records} == {"caller-hung-up"}
    assert {record["status"] for record in records} == {"completed"}  # the last webhook came, too
    # How much depends on how busy the machine is, for the time of several processes is the world's.
    assert all(record["agent_heard_s"] > 0 for record in records)
    assert all(record["timings"]["caller_audio_s"] > 0 for record in records)
    assert sum(record["timings"]["caller_audio_lost_s"] for record in records) == 0
    failures = samples(metrics, "offhook_record_failures_total")  # both write one database
    assert list(failures.values()) == [0, 0]
    streams = samples(metrics, "offhook_media_path_streams_total")
    assert sum(streams.values()) == 12
    assert min(streams.values()) >= 5  # two processes may look at the same moment
    passed_on = re.findall(r'offhook_passed_on_total{what="(.*?)".*} (.*)', metrics)
    assert {"stream", "request", "new-call"} <= {what for what, count in passed_on if float(count)}
    assert {row["call_sid"] for row in listed["calls"]} == {each["call_sid"] for each in records}


@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_pages_meet_their_calls_whichever_process_they_reach(tmp_path, media_path):
    calls, reasons = [], []
    async with server_process(
        tmp_path, "python -m server --workers", media_path=media_path, **PATIENT
    ) as server:
        await server.both_ready()

        async def call() -> None:
            answer = await new_connection(server, "POST", "/calls/browser", json={})
            assert answer.status_code == 201, answer.text
            made = answer.json()
            calls.append(made)
            async with page_on(made) as page:
                await page.wait(lambda: page.told("media"))
            shown = {"call_sid": made["call_sid"], "key": made["key"]}
            again = await new_connection(server, "POST", "/calls/browser/resume", json=shown)
            goes_on = again.json()
            async with page_on(made, ticket=goes_on["ticket"], url=goes_on["url"]) as page:
                await page.wait(lambda: page.told("media"))
                await page.send("stop")
                await page.over.wait()
            record = await new_connection(server, "GET", f"/calls/{made['call_sid']}")
            reasons.append(record.json()["reason"])

        async with trio.open_nursery() as callers:
            for _ in range(6):
                callers.start_soon(call)

    assert {re.search("/n/[01]/", made["url"])[0] for made in calls} == {"/n/0/", "/n/1/"}
    assert reasons == ["caller-hung-up"] * 6


async def test_the_api_is_one_whichever_process_answers(tmp_path):
    async with server_process(
        tmp_path, "python -m server --workers", max_calls=3, calls_per_s=1000, **PATIENT
    ) as server:
        await server.both_ready()
        body = {"destination_number": NEVER_HANGS_UP}
        answers = []

        async def call(key: str) -> None:
            answers.append(
                await new_connection(
                    server, "POST", "/make-call", json=body, headers={"Idempotency-Key": key}
                )
            )

        # Each of three keys four times at once, and four times again.
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(12):
                    nursery.start_soon(call, f"key {number % 3}")
        placed = {answer.json()["call_sid"] for answer in answers if answer.status_code == 201}
        others = {answer.status_code for answer in answers} - {201}
        full = await new_connection(server, "POST", "/make-call", json=body)
        ready = [await new_connection(server, "GET", "/readyz") for _ in range(4)]
        states = [
            (await new_connection(server, "GET", f"/calls/{call_sid}")).json()["state"]
            for call_sid in [*placed] * 4
        ]
        pages = []
        for _ in range(4):
            first = (await new_connection(server, "GET", "/calls?limit=2")).json()
            rest = (
                await new_connection(server, "GET", "/calls", params={"before": first["next"]})
            ).json()
            pages.append({row["call_sid"] for row in first["calls"] + rest["calls"]})
        hung_up = await new_connection(server, "POST", f"/calls/{sorted(placed)[0]}/hang-up")
        unknown = [
            await new_connection(server, method, f"/calls/{path}")
            for method, path in [("GET", "CA0"), ("POST", "CA0/hang-up"), ("GET", "..%2fboard")]
        ]
        drained = await new_connection(server, "POST", "/drain")
        refused = [await new_connection(server, "POST", "/make-call", json=body) for _ in range(4)]

    assert len(placed) == len(server.twilio.calls) == 3
    assert others <= {409}  # the first one with this key was still being worked on
    assert (full.status_code, full.json()["error"]) == (503, "full")
    assert {(each.status_code, each.json()["live_calls"]) for each in ready} == {(503, 3)}
    assert states == ["live"] * 12
    assert pages == [placed] * 4
    assert hung_up.json()["reason"] == "hung-up"
    assert [each.status_code for each in unknown] == [404, 404, 404]
    assert drained.json() == {"draining": True, "live_calls": 2}
    assert {each.json()["error"] for each in refused} == {"draining"}


@pytest.mark.parametrize("command", list(TWO_PROCESSES))
async def test_stopped_processes_say_goodbye_and_hang_up(tmp_path, command):
    async with trio.open_nursery() as nursery:
        for name, whole_group in [("master", False), ("group", True)]:
            (tmp_path / name).mkdir()
            nursery.start_soon(
                partial(stopped_in_mid_call, tmp_path / name, command, whole_group=whole_group)
            )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("command", list(TWO_PROCESSES))
async def test_a_process_that_is_killed_is_replaced_and_its_calls_go_on_in_the_other(
    tmp_path, command
):
    async with server_process(tmp_path, command, calls_per_s=1000) as server:
        await server.both_ready()
        phones = [await server.talking_call() for _ in range(2)]
        served = samples(
            (await server.http.get("/metrics")).text, "offhook_media_path_streams_total"
        )
        victim = server.workers()[0]
        os.kill(victim, signal.SIGKILL)
        moved = trio.Event()

        async def wait_one_moved(phone) -> None:
            await phone.wait_streams(2)
            moved.set()

        async with trio.open_nursery() as nursery:
            for phone in phones:
                nursery.start_soon(wait_one_moved, phone)
            await moved.wait()
            nursery.cancel_scope.cancel()
        await server.both_ready()  # another is in its place, and takes the next call
        phone = await server.talking_call()
        again = samples(
            (await server.http.get("/metrics")).text, "offhook_media_path_streams_total"
        )
        records = [
            (await new_connection(server, "GET", f"/calls/{each.call_sid}")).json()
            for each in phones
        ]

    assert served == {"0": 1, "1": 1}
    assert sorted(again.values()) == [1, 2]  # the new one's, and those of the other
    assert victim not in family(server.process.pid) or sys.platform != "linux"
    assert [record["state"] for record in records] == ["live", "live"]
    assert sorted(len(each.phones) for each in phones) == [1, 2]
    assert phone.status is not CallStatus.FAILED
