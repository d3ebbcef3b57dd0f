"""The Compose file and its image: what they say is what the server understands."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.ports import free_ports
from server.cluster.registry import Load
from server.settings.file import read_settings_file
from server.settings.settings import Settings
from tests.deploy.haproxy import CONFIGURATIONS
from tests.deploy.programs import find, run
from tests.deploy.settings import CLUSTER, KNOWN
from tests.support.redis_servers import (
    IGNORES_UNCLOSED,
    PATIENCE_S,
    RedisServer,
    member,
    redis_server,
    until,
)
from tests.support.required import is_required

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
NODES = ("node-0", "node-1")
PASSWORD = "0123456789abcdef"
OF_COMPOSE = {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}
"""What the file with the secrets has for Compose itself."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def services(compose) -> dict[str, Any]:
    return compose["services"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, a continued one in one line."""
    text = (COMPOSE / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    return [(word, rest.strip()) for word, _, rest in (one.partition(" ") for one in lines) if word]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def example() -> dict[str, str]:
    return dict(read_settings_file(COMPOSE / ".env.example", frozenset()).values)


@pytest.mark.parametrize("node", NODES)
def test_every_name_that_a_node_is_told_is_a_setting(services, node):
    assert services[node]["environment"].keys() - KNOWN == set()


def test_every_name_in_the_example_is_a_setting_or_composes_own():
    assert example().keys() - KNOWN == OF_COMPOSE


def test_what_compose_fills_in_is_in_the_example():
    text = (COMPOSE / "compose.yaml").read_text()

    assert set(re.findall(r"\$\{(\w+)", text)) <= example().keys()


def test_what_a_server_on_many_machines_needs_is_all_there(services):
    told = services["node-0"]["environment"].keys() | example().keys()

    assert told >= (CLUSTER - {"LEASE_S"}) | {"API_KEY", "DATABASE_URL"}


def test_the_example_has_no_secret_in_it():
    filled = {name for name, value in example().items() if value}

    assert filled == {"PUBLIC_URL", "MAX_CALLS"}


def test_the_nodes_settings_are_ones_that_a_server_starts_with(services, monkeypatch):
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    told = {
        name.lower(): str(value)
        for name, value in services["node-0"]["environment"].items()
        if name.lower() in Settings.model_fields and name not in CLUSTER
    }

    settings = Settings(_env_file=None, **told)

    assert settings.drain_timeout_s == 600
    assert settings.database_url.get_secret_value().startswith("postgresql://")


@pytest.mark.parametrize("node", NODES)
def test_a_node_is_not_killed_before_its_calls_have_said_goodbye(services, node):
    told = services[node]["environment"]

    grace_s = int(services[node]["stop_grace_period"].removesuffix("s"))
    assert grace_s == 50 + int(told["DRAIN_TIMEOUT_S"]) + int(told["FAREWELL_TIMEOUT_S"])


def test_what_calls_need_is_stopped_after_the_nodes_that_let_them_end(services):
    """Compose stops whatever depends on another before that."""
    for node in NODES:
        assert services[node]["depends_on"].keys() == {"haproxy", "postgres", "redis"}
    for name in ("haproxy", "postgres", "redis"):
        assert "depends_on" not in services[name]


def test_the_balancer_outlives_the_streams_that_go_through_it(services):
    assert services["haproxy"]["stop_grace_period"] == services["node-0"]["stop_grace_period"]


def test_the_balancer_knows_the_nodes_by_the_addresses_and_names_that_they_have(services):
    text = (CONFIGURATIONS / "haproxy.cfg").read_text()
    balancer = services["haproxy"]["environment"]

    for number, node in enumerate(NODES):
        address = services[node]["networks"]["calls"]["ipv4_address"]
        told = services[node]["environment"]
        assert balancer[f"NODE_{number}"] == f"{address}:{told['PORT']}"
        assert told["NODE_URL"] == f"http://{address}:{told['PORT']}"
        assert f'server {told["NODE"]} "${{NODE_{number}-' in text
    assert set(re.findall(r"\$\{(\w+)-", text)) == balancer.keys()


def test_a_configuration_of_the_balancers_that_is_replaced_is_there_when_it_is_read_again(services):
    """Of a mounted file that is replaced, the old one stays; of a folder it does not."""
    mounts = dict(mount.split(":")[:2] for mount in services["haproxy"]["volumes"])

    assert mounts["../haproxy"] == "/usr/local/etc/haproxy"  # whose haproxy.cfg its image reads
    assert (CONFIGURATIONS / "haproxy.cfg").is_file()
    assert not any(mount.endswith(".cfg") for mount in mounts)


def test_a_new_balancer_does_not_wait_until_the_streams_of_the_one_before_have_ended():
    page = (ROOT / "docs" / "scaling.md").read_text()

    commands = re.findall(r"`(docker compose up [^`]* haproxy)`", page)
    assert commands
    assert all("--timeout 1 " in command for command in commands)


def test_a_client_is_known_by_the_address_that_the_balancer_tells(services):
    balancer = services["haproxy"]["networks"]["calls"]["ipv4_address"]

    assert services["node-0"]["environment"]["TRUSTED_PROXIES"] == balancer


def test_the_files_that_compose_names_are_there_or_the_users_to_make(compose):
    node = compose["x-node"]
    mounts = [mount.split(":")[0] for mount in compose["services"]["haproxy"]["volumes"]]

    assert (COMPOSE / node["build"]["context"] / node["build"]["dockerfile"]).exists()
    assert [mount for mount in mounts if not (COMPOSE / mount).exists()] == ["./certs"]
    assert (COMPOSE / f"{node['env_file']}.example").exists()


def test_nothing_but_the_balancer_is_open_to_others(services):
    assert [name for name, service in services.items() if "ports" in service] == ["haproxy"]


def test_stores_are_in_a_network_that_leads_nowhere(compose, services):
    assert compose["networks"]["stores"]["internal"] is True
    assert services["redis"]["networks"] == services["postgres"]["networks"] == ["stores"]
    assert "stores" not in services["haproxy"]["networks"]
    assert services["node-0"]["networks"].keys() == {"calls", "stores"}


def test_no_password_is_in_the_file_and_nothing_starts_without_one():
    text = (COMPOSE / "compose.yaml").read_text()

    assert set(re.findall(r"\$\{\w+(\W.)", text)) == {":?"}
    passwords = re.findall(r"://\w+:([^@]+)@|PASSWORD: (.*)|>(.+) ~|AUTH: (.*)", text)
    assert len(passwords) == 5
    assert "API_KEY: ${API_KEY:?" in text
    assert all(re.match(r"\$\{|\$\$", "".join(found)) for found in passwords)


@pytest.mark.parametrize("name", ["node-0", "node-1", "haproxy", "redis", "postgres"])
def test_a_service_has_no_more_rights_than_it_needs(services, name):
    service = services[name]

    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert "/tmp" in service["tmpfs"]
    assert service.get("user", "by its image") != "0"


@pytest.mark.parametrize("folder", ["compose", "single"])
def test_compose_writes_no_file_into_a_service_that_is_read_only(folder):
    """It refuses to make such a container, whatever a look at the configuration says."""
    file = yaml.safe_load((COMPOSE.parent / folder / "compose.yaml").read_text())

    for service in file["services"].values():
        for kind in ("configs", "secrets"):
            for one in service.get(kind, ()):
                source = one if isinstance(one, str) else one["source"]
                assert not service["read_only"] or "file" in file[kind][source]


class Guarded(RedisServer):
    """Redis as Compose starts it, but for where it is, asked by the nodes' user.

    Args:
        directory: As for the others.
        service: What Compose is told of it.
        port: Where it listens on the loopback.
    """

    def __init__(self, directory: Path, service: dict[str, Any], port: int) -> None:
        super().__init__(directory, port=port)
        self._service = service

    def command(self) -> list[str]:
        """What starts it, with its password in the environment."""
        (password,) = self._service["environment"]
        shell, option, script = self._service["command"]
        script = script.replace("$$", "$").replace("redis-server", self.binary)
        place = f"port {self.port}\nbind 127.0.0.1\nunixsocket {self.socket}\ndir {self.directory}"
        script = script.replace("\nEND\n", f'\n{place}\nsave ""\nEND\n')
        return ["env", f"{password}={PASSWORD}", shell, option, script]

    def ask(self, *words: str, user: tuple[str, ...] = ("offhook", PASSWORD)) -> bytes:
        with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answers:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.socket))
            for command in (("AUTH", *user), words)[not user :]:
                client.sendall(" ".join(command).encode() + b"\r\n")
                answer = answers.readline()
            return answer


@pytest.fixture
def guarded(services) -> Generator[Guarded]:
    service, port = services["redis"], free_ports(1)[0]
    with redis_server(lambda directory: Guarded(directory, service, port)) as server:
        yield server


def test_the_registry_never_forgets_a_call_to_make_room(services):
    assert "maxmemory-policy noeviction" in services["redis"]["command"][-1].splitlines()


@pytest.mark.sockets
@IGNORES_UNCLOSED[0]
@IGNORES_UNCLOSED[1]
async def test_the_nodes_user_of_redis_may_do_all_that_a_registry_does(guarded, services):
    url = re.sub(r"\$\{[^}]+\}", PASSWORD, services["node-0"]["environment"]["REGISTRY_URL"])
    url = url.replace("redis:6379", f"127.0.0.1:{guarded.port}")

    async with member(url, "n0") as first, member(url, "n1") as second:
        claimed = await first.claim("CA1")
        first.keep("CA1", claimed.generation, b"its state")
        first.publish(Load(live=1))
        await until(lambda: "n0" in second.others())
        turn = await first.dial_turn("AC1", 100.0, 10.0)
        begun = await first.begin_request("client", "key", b"fingerprint")
        await until(partial(second.calls_of, first.me))
        seized = await second.seize("CA1", claimed)

    assert claimed.generation == 1
    assert turn is not None
    assert begun is None
    assert seized is not None
    assert seized.state == b"its state"


@pytest.mark.sockets
@pytest.mark.parametrize(
    "words",
    [
        ("CONFIG", "GET", "dir"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("GET", "others"),
        ("ACL", "LIST"),
        ("REPLICAOF", "192.0.2.1", "6379"),
        ("PUBLISH", "all", "something"),
    ],
    ids=" ".join,
)
def test_the_nodes_user_of_redis_may_do_nothing_else_and_nobody_without_the_password(
    guarded, words
):
    assert guarded.ask(*words).startswith(b"-NOPERM")
    assert guarded.ask(*words, user=()).startswith(b"-NOAUTH")
    assert guarded.ask("PING", user=("offhook", "guessed")).startswith(b"-NOAUTH")


def test_the_image_that_runs_has_no_compiler_and_asks_no_index():
    build, runs = stages()
    commands = " ".join(rest for word, rest in runs if word == "RUN")

    assert "gcc" in " ".join(rest for _, rest in build)
    assert re.findall(r"apt-get|gcc|build-essential|setup\.py", commands) == []
    assert "--no-index" in commands


HADOLINT = find("hadolint")


@pytest.mark.skipif(
    HADOLINT is None and not is_required("hadolint"),
    reason="hadolint (offhook[deploy]) is not here",
)
def test_hadolint_has_nothing_to_say_of_the_image():
    done = run(HADOLINT, str(COMPOSE / "Dockerfile"))

    assert done.returncode == 0, done.stdout


def test_the_image_is_built_with_tls_to_the_model_in_c_and_runs_with_its_library():
    build, runs = stages()

    assert "libssl-dev" in " ".join(rest for _, rest in build).split()
    # Python's own ssl is linked to it there: a slim image has libssl, whatever is not installed.
    assert [rest for word, rest in (build[0], runs[0]) if word == "FROM"] == [
        "python:3.13-slim AS build",
        "python:3.13-slim",
    ]


def test_the_image_runs_as_nobody_in_particular():
    users = [rest for word, rest in stages()[-1] if word == "USER"]

    assert users == ["10001:10001"]


def test_a_signal_reaches_the_server_and_no_shell():
    last = dict(stages()[-1])

    assert yaml.safe_load(last["ENTRYPOINT"]) == ["python", "-m", "server"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "CMD" not in last


def test_the_image_is_healthy_while_it_serves():
    health = dict(stages()[-1])["HEALTHCHECK"]
    command = yaml.safe_load(health[health.index("CMD") + 4 :])

    compile(command[2], "HEALTHCHECK", "exec")
    assert "/healthz" in command[2]
    assert command[:2] == ["python", "-c"]


def test_the_images_environment_is_of_settings_and_pythons_own():
    told = shlex.split(dict(stages()[-1])["ENV"])

    names = {word.split("=")[0] for word in told}
    assert {name for name in names if not name.startswith("PYTHON")} <= KNOWN


def test_what_the_image_is_built_from_is_there_and_not_left_out():
    left_in = {
        line[1:]
        for line in (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    copied = {
        source for word, rest in stages()[0] if word == "COPY" for source in rest.split()[:-1]
    }
    assert copied == left_in
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_has_the_packages_for_a_shared_registry_and_database():
    built = " ".join(rest for _, rest in stages()[0])

    extras = set(re.search(r"\.\[([a-z,]+)\]", built)[1].split(","))
    assert extras >= {"postgres", "redis"}
