"""HAProxy with our configurations, in front of small servers: who is asked, and who instead."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Generator
from contextlib import contextmanager

import httpx2
import pytest
import trustme

from server.console.session import TOKEN_HEADER
from server.web.keys import hash_key
from tests.deploy.haproxy import (
    CONFIGURATIONS,
    HAPROXY,
    PATIENCE_S,
    Balancer,
    Node,
    environment_of,
    haproxy,
    needs_haproxy,
    nodes,
    read_exactly,
    read_head,
)
from tests.support.serving import serving

pytestmark = [needs_haproxy, pytest.mark.sockets]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def two() -> Generator[dict[str, Node]]:
    with nodes() as made:
        yield made


def addresses(two: dict[str, Node]) -> dict[str, str]:
    return {"NODE_0": two["n0"].address, "NODE_1": two["n1"].address}


@pytest.fixture
def balancer(two, authority) -> Generator[Balancer]:
    with haproxy(CONFIGURATIONS / "haproxy.cfg", addresses(two), authority) as (running, _):
        yield running


@pytest.mark.parametrize("file", sorted(CONFIGURATIONS.glob("*.cfg")), ids=lambda file: file.name)
def test_haproxy_accepts_the_configuration_without_a_warning(file, authority, tmp_path):
    servers = {"NODE_0": "192.0.2.10:8000", "NODE_1": "192.0.2.11:8000"}

    done = subprocess.run(
        [HAPROXY, "-c", "-f", str(file)],
        env=environment_of(tmp_path, authority, servers) | {"LISTEN": "127.0.0.1:443"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr


@pytest.mark.parametrize(
    ("path", "node"),
    [
        ("/n/n0/call-status", "n0"),
        ("/n/n1/call-status", "n1"),
        ("/n/n1.3/transfer-status", "n1"),
    ],
)
def test_a_request_goes_to_the_node_that_its_path_names(balancer, path, node):
    answer = balancer.ask("POST", path)

    assert answer.json() == {"node": node, "path": path, "for": "127.0.0.1"}


@pytest.mark.parametrize("file", ["haproxy.cfg", "l4-node.cfg"])
def test_what_a_client_says_of_whom_it_speaks_for_is_not_passed_on(two, authority, file):
    told = {"X-Forwarded-For": "198.51.100.7"}

    with haproxy(CONFIGURATIONS / file, addresses(two), authority) as (running, _):
        # The one behind a layer 4 balancer wants to be told by that who asks.
        said = "" if file == "haproxy.cfg" else "PROXY TCP4 127.0.0.1 127.0.0.1 1 443\r\n"
        with running.connection(said.encode()) as secure:
            lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
            secure.sendall(f"GET /twiml HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode())
            head = read_head(secure)
            answer = json.loads(read_exactly(secure, int(head.split(b"length: ")[1].split()[0])))

    assert answer["for"] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/twiml", "/calls?limit=3", "/n/n10/call-status", "/n/n9/x"])
def test_a_request_that_names_none_of_them_is_anybodys(balancer, path):
    answer = balancer.ask("GET", path)

    assert answer.status_code == 200
    assert answer.json()["path"] == path


@pytest.mark.parametrize(
    ("path", "node"),
    [
        ("/n/n0/stream", b"n0"),
        ("/n/n1/stream", b"n1"),
        ("/n/n1.0/stream", b"n1"),
        ("/n/n1/stream/browser", b"n1"),
    ],
)
def test_a_stream_goes_to_the_node_that_its_path_names_and_both_ways(balancer, path, node):
    with balancer.stream(path) as stream:
        head = read_head(stream)
        name = read_exactly(stream, 2)
        stream.sendall(b"a frame")

        assert head.startswith(b"HTTP/1.1 101")
        assert (name, read_exactly(stream, 7)) == (node, b"a frame")


def test_a_stream_of_no_node_that_there_is_is_refused(balancer, two):
    statuses = {
        path: balancer.status_of_stream(path)
        for path in ("/n/n7/stream", "/stream", "/n/n00/stream", "/n/n7/stream/browser")
    }

    assert set(statuses.values()) == {503}
    assert two["n0"].asked + two["n1"].asked == []


def test_a_stream_of_a_dead_node_is_refused_before_and_after_its_death_is_known(balancer, two):
    two["n0"].close()

    before = [balancer.status_of_stream("/n/n0/stream") for _ in range(3)]
    balancer.wait_for("streams/n0", "DOWN")
    after = [balancer.status_of_stream("/n/n0.1/stream") for _ in range(3)]

    assert before + after == [503] * 6
    assert two["n1"].asked == []


def test_a_request_for_a_dead_node_is_answered_by_a_living_one(balancer, two):
    two["n0"].close()

    before = balancer.ask("POST", "/n/n0/call-status").json()
    balancer.wait_for("requests/n0", "DOWN")
    after = balancer.ask("POST", "/n/n0/call-status").json()

    assert (before["node"], after["node"]) == ("n1", "n1")
    assert before["path"] == "/n/n0/call-status"  # as it was signed


def test_a_resume_is_asked_again_elsewhere_when_a_node_dies_with_it(balancer, two):
    two["n0"].fails.add("/resume")

    answers = [balancer.ask("POST", "/resume") for _ in range(4)]

    assert [answer.json()["node"] for answer in answers] == ["n1"] * 4
    assert two["n0"].asked  # it had its chance


def test_a_resume_is_asked_again_elsewhere_when_a_node_is_silent(balancer, two):
    two["n0"].hangs.add("/resume")

    answers = [balancer.ask("POST", "/resume") for _ in range(2)]

    assert [answer.json()["node"] for answer in answers] == ["n1"] * 2


def test_a_webhook_that_a_node_dies_with_is_told_to_another(balancer, two):
    two["n0"].fails.add("/n/n0/call-status")

    answer = balancer.ask("POST", "/n/n0/call-status")

    assert answer.json()["node"] == "n1"


def test_a_clients_post_that_a_node_may_have_read_is_never_sent_twice(balancer, two):
    for node in two.values():
        node.fails.add("/make-call")

    answer = balancer.ask("POST", "/make-call")

    assert answer.status_code == 502
    assert two["n0"].asked + two["n1"].asked == ["POST /make-call"]


def test_a_clients_post_that_no_node_has_read_goes_to_one_that_is_there(balancer, two):
    two["n0"].close()

    answers = [balancer.ask("POST", "/make-call") for _ in range(2)]

    assert [answer.json()["node"] for answer in answers] == ["n1"] * 2


METRICS = (
    *(
        "/metrics",
        "//metrics",
        "/metrics/",
        "/metrics;a",
        "/metrics?a",
        "/./metrics",
        "/x/../metrics",
    ),
    *("/%6Detrics", "/m%65tric%73", "/%2Fmetrics", "/metrics%00", "/metrics%zz", "/METRICS"),
    *("/phone/metrics", "/n/n0/metrics", "/n/n0/stream/..%2f..%2F..%2Fmetrics"),
    "http://calls.example.com/%6Detrics",
)


def test_what_one_node_counts_is_not_shown_to_the_public_however_it_is_asked_for(balancer, two):
    statuses = {path: balancer.status_of(path) for path in METRICS}

    assert set(statuses.values()) <= {400, 404}, statuses
    assert two["n0"].asked + two["n1"].asked == []


def test_nobody_outside_can_say_what_only_nodes_say_to_each_other(balancer, two):
    balancer.ask("POST", "/n/n0/call-status", **{"X-Offhook-Peer": "n1", "X-OFFHOOK-NEWER": "1"})

    assert two["n0"].asked
    assert [name for name in two["n0"].headers if name.startswith("x-offhook-")] == []


@pytest.mark.parametrize("file", ["haproxy.cfg", "l4-node.cfg"])
async def test_whoever_signs_in_to_the_console_behind_it_changes_something(authority, file):
    public = "https://calls.example.com"
    async with serving(public_url=public, api_keys={"ana": hash_key("one")}) as server:
        node = server.url.removeprefix("http://")
        servers = {"NODE_0": node, "NODE_1": node, "BALANCERS": "192.0.2.5"}
        with haproxy(CONFIGURATIONS / file, servers, authority) as (balancer, _):
            as_browsers_do = {"Host": "calls.example.com", "Origin": public}
            async with httpx2.AsyncClient(
                base_url=balancer.url, verify=False, trust_env=False, timeout=PATIENCE_S
            ) as http:
                signed_in = await http.post(
                    "/console/session", json={"key": "one"}, headers=as_browsers_do
                )
                as_browsers_do["Cookie"] = signed_in.headers["Set-Cookie"].partition(";")[0]
                token = {TOKEN_HEADER: signed_in.json()["token"]}
                forged = await http.post("/drain", headers=as_browsers_do)
                done = await http.post("/drain", headers=as_browsers_do | token)

        assert (signed_in.status_code, forged.status_code, done.status_code) == (200, 403, 202)
        assert server.service.calls.draining


@pytest.fixture
def layer_4(two, authority) -> Generator[Balancer]:
    """The balancer that reads only names, and one beside each node that ends TLS."""
    beside = CONFIGURATIONS / "l4-node.cfg"
    with (
        haproxy(beside, {"NODE_0": two["n0"].address}, authority) as (_, first),
        haproxy(beside, {"NODE_0": two["n1"].address}, authority) as (_, second),
        haproxy(CONFIGURATIONS / "l4.cfg", {"NODE_0": first, "NODE_1": second}, authority) as (
            running,
            _,
        ),
    ):
        yield running


@pytest.mark.parametrize("node", ["n0", "n1"])
def test_on_layer_4_the_host_name_says_whose_a_stream_is(layer_4, node):
    with layer_4.stream(f"/n/{node}/stream", f"{node}.calls.example.com") as stream:
        head = read_head(stream)

        assert head.startswith(b"HTTP/1.1 101")
        assert read_exactly(stream, 2) == node.encode()


def test_on_layer_4_the_name_of_all_is_answered_by_anybody_who_is_told_the_clients_address(
    layer_4,
):
    answer = layer_4.ask("POST", "/resume").json()

    assert (answer["path"], answer["for"]) == ("/resume", "127.0.0.1")


PROXIED = b"PROXY TCP4 203.0.113.9 127.0.0.1 40000 443\r\n"


@contextmanager
def beside_a_node(two, authority, balancers: str) -> Generator[Balancer]:
    servers = {"NODE_0": two["n0"].address, "BALANCERS": balancers}
    with haproxy(CONFIGURATIONS / "l4-node.cfg", servers, authority) as (running, _):
        yield running


def test_beside_a_node_the_balancer_says_whose_a_connection_is(two, authority):
    with (
        beside_a_node(two, authority, "192.0.2.0/24 127.0.0.1") as running,
        running.connection(PROXIED) as secure,
    ):
        secure.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: secure.recv(4096), b""))

    assert b'"for": "203.0.113.9"' in answer


def test_beside_a_node_nobody_but_the_balancer_says_whose_a_connection_is(two, authority):
    with beside_a_node(two, authority, "192.0.2.5") as running:
        with pytest.raises((ssl.SSLError, ConnectionError)), running.connection(PROXIED):
            pass
        answer = running.ask("GET", "/readyz").json()

    assert answer["for"] == "127.0.0.1"
    assert two["n0"].asked == ["GET /readyz"]


def test_beside_a_node_what_it_counts_is_not_shown_to_the_public_either(two, authority):
    with beside_a_node(two, authority, "192.0.2.5") as running:
        statuses = {path: running.status_of(path) for path in METRICS}

    assert set(statuses.values()) <= {400, 404}, statuses
    assert two["n0"].asked == []
