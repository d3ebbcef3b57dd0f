"""What a stranger gets who says to be a node, or who stands where a node is thought to be."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import suppress
from functools import partial
from typing import Any

import httpx2
import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from server.cluster.alone import Alone
from server.cluster.directory.directory import Directory
from server.cluster.doors import BODY_TIMEOUT_S, ProvedDoor, serve_siblings
from server.cluster.passing_on import (
    CLIENT,
    FACTS,
    PASSED_ON,
    PEER,
    Hop,
    NotRead,
    PassedOn,
    WorkerLost,
    facts_of,
    read_answer,
    read_request,
    request_of,
    written_answer,
    written_request,
)
from server.cluster.peers import MAX_ANSWER_BYTES, Peers
from server.cluster.proof import MAX_SKEW_S, Prover
from server.cluster.registry import Load, Member, Seen
from server.web.elsewhere import ASKED_AT_ONCE, MAX_ASKED_FOR_CALL, Elsewhere
from tests.support.nodes import SECRET, Shared, Store, nodes_with_redis, two_nodes
from tests.support.redis_servers import redis_server, until
from tests.support.serving import CALL_SID, serving
from tests.support.wiretap import stranger, wiretap

ME, SIBLING = Member("a.0", 7), Member("a.1", 8)
KEY, SIGNATURE, NUMBER = "offhook_the-key-of-a-client", "c2lnbmF0dXJl", "+15005550105"
SECRETS = [KEY.encode(), SIGNATURE.encode(), NUMBER[1:].encode()]
SCOPE = {
    "type": "http",
    "method": "POST",
    "scheme": "https",
    "path": "/calls/CA1/hang-up",
    "raw_path": b"/calls/CA1/hang-up",
    "query_string": b"x=1",
    "headers": [
        (b"host", b"calls.example.com"),
        (b"Authorization", b"Bearer " + KEY.encode()),
        (b"x-api-key", KEY.encode()),
        (b"cookie", b"key=" + KEY.encode()),
        (b"x-twilio-signature", SIGNATURE.encode()),
        (b"X-Offhook-Facts", b"{}"),
        (b"X-Offhook-Final", b"yes"),
    ],
    "client": ("203.0.113.9", 4711),
    "server": ("192.0.2.1", 8000),
    CLIENT: "shop",
}
BODY = b"To=" + NUMBER.encode()
FACT_NAMES = sorted(facts_of(SCOPE, Hop("b")))


def asked_of(
    to: Member = ME, *, secret: str = SECRET, at: float | None = None, body: bytes = BODY
) -> tuple[bytes, bytes]:
    """What another node sends: the header, and the body."""
    content = written_request(SCOPE, body, Hop("b"))
    wall_time = time.time() if at is None else at
    return Prover([secret]).ask(to, content, wall_time=wall_time)[:2]


# -- the door ----------------------------------------------------------------------------------


class Siblings:
    """A machine's processes, and what was handed on to them."""

    def __init__(self) -> None:
        self.members = {"a.0": ME, "a.1": SIBLING}
        self.handed_on: list[tuple[int, bytes]] = []

    def member(self, name: str) -> Member | None:
        return self.members.get(name)

    def number_of(self, name: str) -> int | None:
        return {"a.0": 0, "a.1": 1}.get(name)

    def wall_time(self) -> float:
        return time.time()

    async def hand_on(self, number: int, body: bytes, facts: dict[bytes, bytes]) -> httpx2.Response:
        self.handed_on.append((number, body))
        return httpx2.Response(200, content=b"its sealed answer")


class Door:
    """A door, the app behind it, and what whoever came has got."""

    def __init__(self, *, max_body_bytes: int = 1000) -> None:
        self.siblings = siblings = Siblings()
        self.door = ProvedDoor(
            ME,
            siblings,
            siblings,
            Prover([SECRET]),
            max_body_bytes=max_body_bytes,  # type: ignore[arg-type]
        )
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.sent: list[dict[str, Any]] = []
        self.received = 0

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def come(self, *headers: tuple[bytes, bytes], pieces: Any = (), kind: str = "http"):
        """A request comes; its body in pieces, each None a second's silence."""
        left = iter(pieces)

        async def receive() -> Any:
            self.received += 1
            await trio.lowlevel.checkpoint()
            for piece in left:
                if piece is not None:
                    return {"type": "http.request", "body": piece, "more_body": True}
                await trio.sleep(1.0)
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": kind, "method": "POST", "path": "/", "headers": [*headers]}
        assert self.door.concerns(scope)
        return await self.door.answer(self.app, scope, receive, self.send)  # type: ignore[arg-type]

    def is_refused(self) -> bool:
        """Whether nothing was done, and nothing said but that."""
        statuses = [message.get("status") for message in self.sent[:1]]
        return statuses == [403] and self.scopes == [] and self.siblings.handed_on == []


async def test_what_one_of_ours_passes_on_is_done_as_if_it_had_come_here():
    door = Door()
    peer, body = asked_of()

    is_ours = await door.come((PEER, peer), (b"authorization", b"of nobody"), pieces=[body])

    (scope,) = door.scopes
    assert is_ours
    assert door.bodies == [BODY]
    assert {name: scope[name] for name in ("method", "path", "raw_path", "query_string")} == {
        name: SCOPE[name] for name in ("method", "path", "raw_path", "query_string")
    }
    assert (scope["client"], scope["scheme"]) == (SCOPE["client"], "https")
    assert (scope[PASSED_ON], scope[CLIENT]) == (Hop("b"), "shop")
    assert dict(scope["headers"]) == {
        b"host": b"calls.example.com",
        b"x-twilio-signature": SIGNATURE.encode(),
        b"content-length": b"%d" % len(BODY),
    }


@pytest.mark.parametrize(
    "peer",
    [
        b"",
        b"x" * 70_000,
        b'{"to": "a.0", "at": 0, "nonce": "1", "facts": {}}',
        asked_of(secret="a guess of somebody")[0],
        asked_of(at=time.time() - 10 * MAX_SKEW_S)[0],
        asked_of(at=time.time() + 1000 * MAX_SKEW_S)[0],
        asked_of(Member("a.0", 6))[0],
        asked_of(Member("a.1", 7))[0],
        asked_of(Member("c", 7))[0],
        asked_of(body=bytes(1_000_000))[0],
    ],
    ids=["none", "long", "JSON", "forged", "stale", "early", "restarted", "sibling-restarted",
         "another", "huge"],
)  # fmt: skip
async def test_a_stranger_makes_us_read_nothing_and_hand_nothing_on(peer):
    door = Door()

    is_ours = await door.come((PEER, peer), pieces=[bytes(1000)] * 480)

    assert not is_ours
    assert door.is_refused()
    assert door.received == 0


async def test_a_request_with_two_headers_is_refused_without_a_look_at_it():
    peer, body = asked_of()
    other, _ = asked_of()
    for headers in (
        [(PEER, peer), (PEER, other)],
        [(PEER, other), (PEER, peer)],
        [(PEER, peer), (PEER, peer)],
    ):
        door = Door()

        assert not await door.come(*headers, pieces=[body])
        assert door.is_refused()
        assert door.received == 0


async def test_a_repeated_request_is_refused_without_a_look_at_it():
    door = Door()
    peer, body = asked_of()
    await door.come((PEER, peer), pieces=[body])
    received = door.received

    assert not await door.come((PEER, peer), pieces=[body])
    assert len(door.scopes) == 1
    assert door.received == received


async def test_a_request_that_was_used_up_with_another_body_is_not_done_later():
    door = Door()
    peer, body = asked_of()

    assert not await door.come((PEER, peer), pieces=[body[:-1], bytes([body[-1] ^ 1])])
    assert not await door.come((PEER, peer), pieces=[body])
    assert door.is_refused()


async def test_a_replay_after_a_restart_is_for_nobody():
    peer, body = asked_of()
    before, after = Door(), Door()
    after.door._me = after.siblings.members["a.0"] = Member("a.0", ME.born + 1)

    assert await before.come((PEER, peer), pieces=[body])
    assert not await after.come((PEER, peer), pieces=[body])
    assert after.is_refused()
    assert after.received == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda body: [body[:-1]],
        lambda body: [body, b"?"],
        lambda body: [asked_of()[1]],
        lambda body: [bytes([body[0] ^ 1]), body[1:]],
        lambda body: [],
    ],
)
async def test_a_body_that_is_not_the_one_is_neither_done_nor_handed_on(change):
    for to in (ME, SIBLING):
        door = Door()
        peer, body = asked_of(to)

        assert not await door.come((PEER, peer), pieces=change(body))
        assert door.is_refused()


async def test_no_more_of_a_body_is_read_than_it_was_proved_to_have():
    door = Door()
    peer, body = asked_of()

    assert not await door.come((PEER, peer), pieces=[body, *[bytes(1000)] * 480])
    assert door.is_refused()
    assert door.received == 2


async def test_a_body_that_does_not_come_is_not_waited_for(autojump_clock):
    door = Door()
    peer, body = asked_of()
    began_at = trio.current_time()

    pieces = [piece for byte in body for piece in (bytes([byte]), None)]
    assert not await door.come((PEER, peer), pieces=pieces)
    assert door.is_refused()
    assert trio.current_time() - began_at == BODY_TIMEOUT_S


async def test_nothing_comes_in_by_an_upgrade():
    door = Door()

    assert not await door.come((PEER, asked_of()[0]), kind="websocket")
    assert [message["type"] for message in door.sent] == ["websocket.close"]
    assert door.scopes == []


async def test_what_is_for_a_sibling_is_checked_and_handed_on_as_it_is():
    door = Door()
    peer, body = asked_of(SIBLING)

    assert await door.come((PEER, peer), pieces=[body])
    assert door.siblings.handed_on == [(1, body)]
    assert door.sent[1]["body"] == b"its sealed answer"
    assert door.scopes == []


@pytest.mark.sockets
async def test_what_is_for_a_sibling_is_read_and_answered_by_it_alone(
    nursery, tmp_path, monkeypatch, no_certificates_in_the_loop
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = (Directory.join(2, where="offhook-meeting", node="a") for _ in range(2))
    door, behind = Door(), Door()
    peers = Peers(Alone(first.me), first, None)
    door.door = ProvedDoor(first.me, peers, first, Prover([SECRET]), max_body_bytes=1000)
    behind.door = ProvedDoor(second.me, peers, second, Prover([SECRET]), max_body_bytes=1000)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await behind.door.answer(behind.app, scope, receive, send)

    async def take(*_: Any) -> None:
        """No media socket comes."""

    serving = partial(serve_siblings, second, serve, take, max_message_bytes=64 * 1024)
    await nursery.start(serving)
    content = written_request(SCOPE, BODY, Hop("b"))
    peer, body, asked = Prover([SECRET]).ask(second.me, content, wall_time=time.time())

    assert await door.come((PEER, peer), pieces=[body])
    answer = read_answer(asked.unseal_answer(door.sent[1]["body"]))
    await peers.aclose()
    nursery.cancel_scope.cancel("the test is over")
    for directory in (second, first):
        directory.leave()

    assert (answer.status_code, answer.content) == (201, b"done")
    assert (door.scopes, behind.bodies) == ([], [BODY])
    assert behind.scopes[0][CLIENT] == "shop"


async def test_on_one_machine_the_key_stays_where_it_was_shown_too():
    facts = {FACTS: json.dumps(facts_of(SCOPE, Hop("0"))).encode()}
    request = request_of(SCOPE, BODY, facts)
    door = Door()

    scope = {**SCOPE, CLIENT: None, "headers": [(n.lower(), v) for n, v in request.headers.raw]}
    await PassedOn(door.app)(scope, _whole(BODY), door.send)  # type: ignore[arg-type]

    assert KEY.encode() not in b"".join(value for _, value in request.headers.raw)
    assert (door.scopes[0][CLIENT], door.scopes[0][PASSED_ON]) == ("shop", Hop("0"))


def _whole(body: bytes) -> Any:
    async def receive() -> Any:
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


ODD: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary()
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(FACT_NAMES), inner),
    max_leaves=5,
)  # fmt: skip


@given(st.binary(max_size=200) | ODD.map(msgspec.msgpack.encode))
def test_what_is_no_request_and_no_answer_is_told_in_words(content):
    for read in (read_request, read_answer):
        with pytest.raises(NotRead):
            read(content)


@given(st.fixed_dictionaries(dict.fromkeys(FACT_NAMES, ODD)), st.binary(max_size=20))
def test_facts_of_another_version_are_taken_or_refused_and_nothing_else(facts, target):
    content = msgspec.msgpack.encode(("GET", target, [], facts, b""))

    with suppress(NotRead):
        assert isinstance(read_request(content)[0][PASSED_ON], Hop)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"retry-after", b"1"), (b"retry-after", b"9")],
        [(b"location", b"/"), (b"location", b"/")],
        [(b"set-cookie", b"a=b")],
        [(b"Retry-After", b"1")],
    ],
)
def test_an_answer_that_says_something_twice_or_what_is_not_said_is_no_answer(headers):
    content = msgspec.msgpack.encode((200, headers, b""))

    with pytest.raises(NotRead):
        read_answer(content)


def test_of_an_answer_only_what_goes_on_to_clients_goes_on():
    headers = [(b"set-cookie", b"a=b"), (b"retry-after", b"1"), (b"x-offhook-lost", b"reached")]

    answer = read_answer(written_answer(503, headers, b"no"))

    assert answer.headers.raw == [*httpx2.Headers(headers[1:]).raw, (b"Content-Length", b"2")]


# -- at a node's address -----------------------------------------------------------------------


def plain(content: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(content), *headers]
    return b"\r\n".join([*lines, b"", content])


ANSWERS = {
    "of its own": plain(b'{"call_sid": "CA1"}', b"X-Offhook-Final: yes", b"X-Offhook-Proof: 00"),
    "as if it were gone": plain(b"", b"X-Offhook-Lost: not reached", b"X-Offhook-Lost: reached"),
    "that asks for the key": plain(b"", b"WWW-Authenticate: Bearer").replace(b"200", b"401"),
    "elsewhere": plain(b"", b"Location: http://127.0.0.1:1/").replace(b"200", b"307"),
    "to go on": b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + plain(b""),
    "of too much": plain(bytes(MAX_ANSWER_BYTES + 1)),
    "of no end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nokok\r\n",
    "that is none": b"\x00\xff\r\n\r\n",
}


@pytest.mark.sockets
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_who_answers_at_a_nodes_address_learns_no_secret_and_is_not_believed(
    answer, no_certificates_in_the_loop
):
    store = Store()
    peers = Peers(Shared(store, Member("b", 1)), None, Prover([SECRET]))
    async with stranger(answer) as there:
        store.seen["a.0"] = Seen(ME, Load(accepts=True), 0.0, there.url)
        with pytest.raises(WorkerLost):
            await peers.ask("a.0", SCOPE, BODY, Hop("b"), timeout_s=60.0)
        await peers.aclose()

    assert there.connections == 1
    assert b"X-Offhook-Peer: 2 a.0@7 " in there.heard or b"x-offhook-peer: 2 a.0@7 " in there.heard
    assert [secret for secret in SECRETS if secret in there.heard] == []


@pytest.mark.sockets
async def test_who_says_nothing_at_a_nodes_address_is_left_in_time():
    store = Store()
    peers = Peers(Shared(store, Member("b", 1)), None, Prover([SECRET]))
    async with stranger() as there:
        store.seen["a.0"] = Seen(ME, Load(accepts=True), 0.0, there.url)
        with pytest.raises(WorkerLost) as lost:
            await peers.ask("a.0", SCOPE, BODY, Hop("b"), timeout_s=0.5)
        await peers.aclose()

    assert lost.value.reached
    assert [secret for secret in SECRETS if secret in there.heard] == []


@pytest.mark.sockets
@pytest.mark.parametrize("shown", ["Authorization", "X-API-Key"])
async def test_the_key_stays_at_the_node_that_it_was_shown_to_and_its_name_goes_on(
    monkeypatch, shown
):
    store = Store()
    headers = {shown: f"Bearer {KEY}" if shown == "Authorization" else KEY}
    async with two_nodes(monkeypatch, store, api_key=KEY) as (first, second):
        first.http.headers.update(headers)
        call_sid = (await first.make_call("5550105")).json()["call_sid"]
        async with wiretap(first.url) as tapped:
            me = store.seen["a"].member
            first.service.cluster.registry.address = tapped.url  # type: ignore[attr-defined]
            first.service.cluster.publish()
            record = await second.http.get(f"/calls/{call_sid}", headers=headers)
            without = await second.http.get(f"/calls/{call_sid}")
            heard, connections = bytes(tapped.heard), tapped.connections
        await first.http.post(f"/calls/{call_sid}/hang-up")

    assert me.name == "a"
    assert (record.status_code, record.json()["call_sid"]) == (200, call_sid)
    assert without.status_code == 401
    assert connections == 1
    assert b"x-offhook-peer" in heard.lower()
    assert [it for it in (KEY, call_sid, "5550105", SECRET) if it.encode() in heard] == []


@pytest.mark.sockets
async def test_a_node_believes_the_name_of_a_key_only_if_it_has_one_of_that_name(monkeypatch):
    store = Store()
    headers = {"X-API-Key": KEY}
    async with two_nodes(monkeypatch, store, api_key=KEY) as (first, second):
        call_sid = (await first.http.post(
            "/make-call", json={"destination_number": NUMBER}, headers=headers
        )).json()["call_sid"]  # fmt: skip
        monkeypatch.setattr(first.app.keys, "_digests", {"another": bytes(32)})
        refused = await second.http.get(f"/calls/{call_sid}", headers=headers)
        monkeypatch.undo()
        await first.http.post(f"/calls/{call_sid}/hang-up", headers=headers)

    assert refused.status_code == 401


@pytest.mark.sockets
async def test_a_list_of_calls_does_without_the_part_that_a_node_refuses_to_say(monkeypatch):
    headers = {"X-API-Key": KEY}
    async with two_nodes(monkeypatch, Store(), api_key=KEY) as (first, second):
        second.http.headers.update(headers)
        call_sid = (await second.make_call("5550105")).json()["call_sid"]
        whole = await second.http.get("/calls")
        monkeypatch.setattr(first.app.keys, "_digests", {"another": bytes(32)})
        part = await second.http.get("/calls")
        await second.http.post(f"/calls/{call_sid}/hang-up")

    assert [answer.status_code for answer in (whole, part)] == [200, 200]
    assert [call["call_sid"] for call in part.json()["calls"]] == [call_sid]
    assert [answer.json()["complete"] for answer in (whole, part)] == [True, False]


@pytest.mark.sockets
async def test_processes_that_refuse_to_drain_or_to_say_their_figures_are_left_out(monkeypatch):
    async def everyone(self: Elsewhere) -> list[httpx2.Response]:
        return [
            httpx2.Response(401, json={"error": "unauthorized", "message": "show the API key"}),
            httpx2.Response(202, json={"draining": True, "live_calls": 3}),
        ]

    monkeypatch.setattr(Elsewhere, "everyone", everyone)
    async with serving() as server:
        monkeypatch.setattr(type(server.service.cluster), "has_others", True)
        figures = await server.http.get("/metrics")
        drained = await server.http.post("/drain")

    assert figures.status_code == 200
    assert (drained.status_code, drained.json()["live_calls"]) == (202, 3)


@pytest.mark.sockets
async def test_what_was_heard_on_the_way_does_nothing_when_it_is_sent_again(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        call_sid = (await first.make_call("5550105")).json()["call_sid"]
        async with wiretap(first.url) as tapped:
            first.service.cluster.registry.address = tapped.url  # type: ignore[attr-defined]
            first.service.cluster.publish()
            hung_up = await second.http.post(f"/calls/{call_sid}/hang-up")
            request = bytes(tapped.heard).partition(b"HTTP/1.1 200")[0]
        answers = []
        host, _, port = first.url.removeprefix("http://").partition(":")
        for asked in (request, request.replace(b"POST / ", b"POST /make-call ")):
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(asked)
                answers.append((await stream.receive_some()).partition(b"\r\n")[0])

    assert hung_up.status_code == 200
    assert [answer.split()[1] for answer in answers] == [b"403", b"403"]


@pytest.mark.sockets
async def test_a_stranger_at_the_public_address_is_refused_before_its_body_comes(monkeypatch):
    forged = asked_of(Member("a", 1), secret="a guess of somebody")[0]
    async with two_nodes(monkeypatch, Store()) as (first, _):
        host, _, port = first.url.removeprefix("http://").partition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(
                b"POST /make-call HTTP/1.1\r\nHost: x\r\nContent-Length: 480000\r\n"
                b"X-Offhook-Peer: " + forged + b"\r\n\r\n"
            )
            with trio.fail_after(60):
                answer = await stream.receive_some()
        counted = first.service.metrics.strangers_refused.labels("peer")._value
        await until(lambda: counted.get() == 1)

    assert answer.startswith(b"HTTP/1.1 403")


# -- a registry that strangers write in --------------------------------------------------------


@pytest.mark.sockets
async def test_a_registry_that_names_a_strangers_address_gives_it_nothing(monkeypatch):
    with redis_server() as redis:
        async with (
            stranger(plain(b"{}")) as there,
            nodes_with_redis(monkeypatch, redis, ("a", "b"), api_key=KEY) as (first, second),
        ):
            headers, key = {"X-API-Key": KEY}, "offhook:{nodes}"
            real, cluster = str(first.service.cluster.me), second.service.cluster
            # What the first has said of itself, in others' names, and with another address.
            genuine = redis.ask("HGET", key, real).split(b"\r\n")[1].decode()
            at_ms, _, beat = genuine.partition(" ")
            false = json.dumps([there.url, *json.loads(beat)[1:]])
            redis.ask("HSET", key, "evil@1", genuine, "worse@1", f"{at_ms} {false}")
            redis.ask("HSET", key, "a@1", f"{at_ms} {false}")
            redis.ask("HSET", "offhook:{" + CALL_SID + "}", "n", "worse@1", "g", "1")
            seen_at = cluster.registry._members._heard_at  # type: ignore[attr-defined]
            await until(lambda: cluster.registry._members._heard_at > seen_at)  # type: ignore[attr-defined]
            names = set(cluster.registry.others())
            answer = await second.http.get(f"/calls/{CALL_SID}", headers=headers)

    assert names == {"a"}
    assert answer.status_code in (404, 503)
    assert there.connections == 0


# -- how many are asked --------------------------------------------------------------------------


@pytest.mark.sockets
async def test_however_many_there_are_few_are_asked_for_a_call_and_fewer_at_once(monkeypatch):
    store = Store()
    asked: list[str] = []
    now, most = 0, 0

    async def ask(name: str, *_: Any, **__: Any) -> httpx2.Response:
        nonlocal now, most
        asked.append(name)
        now, most = now + 1, max(most, now + 1)
        await trio.testing.wait_all_tasks_blocked()
        now -= 1
        return httpx2.Response(404)

    async with two_nodes(monkeypatch, store) as (first, _):
        for number in range(300):
            member = Member(f"n{number}", 1)
            store.seen[member.name] = Seen(member, Load(), float(number), "http://127.0.0.1:1")
        store.is_away = True
        monkeypatch.setattr(first.service.cluster.peers, "ask", ask)
        answer = await first.http.get(f"/calls/{CALL_SID}")

    assert answer.status_code == 503
    assert len(asked) == len({*asked}) == MAX_ASKED_FOR_CALL
    assert "n0" in asked
    assert "n299" not in asked
    assert most == ASKED_AT_ONCE
