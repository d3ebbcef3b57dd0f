"""The dashboard and the alert rules speak of metrics and labels that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from server.app import create_app
from server.metrics import NO_ROOM, CountedInC, Metrics, RecordFailure, RegistryMetrics
from server.settings.settings import Settings
from tests.deploy.programs import find
from tests.support.access import SIMULATED
from tests.support.required import is_required

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMTOOL = find("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None and not is_required("promtool"),
    reason="promtool (Debian's prometheus package) is not here",
)
SELECTOR = re.compile(r"(offhook_\w+)(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\bby \(([^)]*)\)")
FROM_PROMETHEUS = {"job", "instance"}


def known_metrics() -> dict[str, set[str]]:
    """Every name that a scrape can show, with the labels it has."""
    metrics, registry = Metrics(CollectorRegistry()), RegistryMetrics(CollectorRegistry())
    known: dict[str, set[str]] = {}
    records = metrics.records, metrics.records.events
    parts = metrics.streams, metrics.capacity, metrics.stalls, metrics.agents
    groups = (metrics, *records, *parts, registry)
    for metric in (one for group in groups for one in vars(group).values()):
        if isinstance(metric, MetricWrapperBase | CountedInC):
            labels = set(metric._labelnames)
            name = metric._name
            match "histogram" if isinstance(metric, CountedInC) else metric._type:
                case "counter":
                    known[f"{name}_total"] = labels
                case "histogram":
                    known[f"{name}_bucket"] = labels | {"le"}
                    known[f"{name}_sum"] = known[f"{name}_count"] = labels
                case _:
                    known[name] = labels
    return known


def dashboard() -> dict:
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text())


def panels() -> list[dict]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def assert_known(expression: str) -> None:
    known = known_metrics()
    labels: set[str] = set()
    for name, selector in SELECTOR.findall(expression):
        assert name in known, f"no such metric: {name}"
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert asked <= known[name] | FROM_PROMETHEUS, f"{name} has no label {asked - known[name]}"
        labels |= known[name]
    for group in GROUPING.findall(expression):
        assert set(group.replace(" ", "").split(",")) <= labels | FROM_PROMETHEUS, group


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_asks_for_metrics_that_exist(panel):
    assert panel["targets"]
    for target in panel["targets"]:
        assert_known(target["expr"])
        legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        grouped = {name for group in GROUPING.findall(target["expr"]) for name in group.split(", ")}
        assert legend <= grouped


def test_the_dashboard_has_the_shape_that_grafana_loads():
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    boxes = [panel["gridPos"] for panel in board["panels"]]

    assert {"title", "uid", "schemaVersion", "templating", "time", "panels"} <= set(board)
    assert len(ids) == len(set(ids))
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    cells = [
        (x, y)
        for box in boxes
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(board))) <= variables


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_exist_and_says_what_to_do(rule):
    assert_known(rule["expr"])
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


SEEN_LATE = {"offhook_watchdog_total"}
"""Counted by what alerts ask of, in too many series, and the first of each is no alert's matter."""


def counted() -> list[tuple[str, str]]:
    """What alerts ask of by how much it has grown: a counter, and which of its series."""
    growth = re.compile(r"(?:increase|rate)\((\w+_total)(?:\{(.*?)\})?\[")
    return sorted({one for rule in rules() for one in growth.findall(rule["expr"])})


@pytest.mark.sockets
async def test_what_alerts_count_is_there_before_the_first_of_it():
    """Prometheus takes a series that begins with one for news, and not for an increase."""
    registry = CollectorRegistry()
    RegistryMetrics(registry)
    app = create_app(Settings.load(_env_file=None, **SIMULATED))
    async with app.test_app():
        text = generate_latest(registry) + generate_latest(app.service.metrics.registry)
    shown = re.findall(r"(?m)^(\w+_total)(?:\{(.*)\})? \S+$", text.decode())

    missing = [
        (name, wanted)
        for name, wanted in counted()
        if name not in SEEN_LATE
        and not any(name == one and is_among(labels, wanted) for one, labels in shown)
    ]
    assert counted()
    assert missing == []


def is_among(labels: str, wanted: str) -> bool:
    """Whether a series with these labels is what a selector asks for."""
    has = dict(re.findall(r'(\w+)="(.*?)"', labels))
    return all(
        re.fullmatch(value if sign == "=~" else re.escape(value), has.get(label, ""))
        for label, sign, value in re.findall(r'(\w+)(=~?)"(.*?)"', wanted)
    )


def test_every_refusal_that_an_alert_names_is_counted_from_the_start():
    [named] = {selector for name, selector in counted() if name == "offhook_calls_refused_total"}

    assert named == f'reason=~"{"|".join(NO_ROOM)}"'


def test_every_failure_of_records_is_counted_from_the_start():
    files = (DEPLOY.parent / "server" / "records").rglob("*.py")
    text = "\n".join(file.read_text() for file in files)

    named = re.findall(r'(?:_failed\(|failures\.labels\()"([a-z-]+)"', text)
    assert set(named) == set(get_args(RecordFailure))


def promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_accepts_the_alert_rules():
    promtool("check", "rules", str(DEPLOY / "alerts.yml"))


SERIES = [
    ('offhook_calls_ended_total{instance="a",reason="caller-hung-up"}', "0+9x30"),
    ('offhook_calls_ended_total{instance="a",reason="model-lost"}', "0+1x30"),
    ('offhook_calls_ended_total{instance="b",reason="caller-hung-up"}', "0+99x30"),
    ('offhook_calls_ended_total{instance="b",reason="model-lost"}', "0+1x30"),
]


def test_whoever_has_many_machines_is_told_of_their_registry():
    asked = " ".join(rule["expr"] for rule in rules())
    shown = json.dumps(dashboard())

    for name in ("offhook_registry_away", "offhook_registry_unsaid", "offhook_registry_changes"):
        assert name in asked
        assert name in shown


@needs_promtool
def test_the_alert_for_failing_calls_fires_where_they_fail(tmp_path):
    test = {
        "rule_files": [str(DEPLOY / "alerts.yml")],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": values} for s, values in SERIES],
                "alert_rule_test": [
                    {
                        "eval_time": "25m",
                        "alertname": "OffhookCallsFail",
                        "exp_alerts": [
                            {
                                "exp_labels": {"severity": "page", "instance": "a"},
                                "exp_annotations": {
                                    "summary": "10% of the calls on a fail",
                                    "description": rules()[1]["annotations"]["description"],
                                },
                            }
                        ],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))

    promtool("test", "rules", str(tmp_path / "test.yml"))
