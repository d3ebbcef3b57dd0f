"""What the pages for people say of the files that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.dialogue.endings import EndReason
from server.settings.settings import Settings
from server.web.api import MakeCall, WhichCalls
from tests.support.required import is_required

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NAMED = re.compile(r"`((?:server|codec|benchmarks|tests|deploy|docs)/[\w./-]*)`")
QUOTED = re.compile(r"`([^`\n]+)`")
CAPITALS = re.compile(r"(?<![\w*])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w*])")
NO_SETTINGS = {
    *("HTTPS_PROXY", "SSL_CERT_DIR", "SSL_CERT_FILE", "XDG_RUNTIME_DIR"),  # others' variables
    *("DEFER_TASKRUN", "SCHED_BATCH", "SINGLE_ISSUER", "SO_BUSY_POLL", "TCP_USER_TIMEOUT"),  # Linux
    *("ASTERISK_ROOT", "FROM_DID", "PJSIP_HEADER"),  # for Asterisk
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_SERVICE_NAME"),
    *("DEMO_SCRIPTS", "IN_PROGRESS", "SSL_CTX"),  # of our code, Gemini's messages and OpenSSL
}
LINKED = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_are_there(page):
    text = page.read_text()
    named = {ROOT / name for name in NAMED.findall(text)}
    linked = {page.parent / name for name in LINKED.findall(text)}

    assert {str(path.relative_to(ROOT)) for path in named if not path.exists()} == set()
    assert {str(path) for path in linked if not path.exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_settings_that_a_page_names_are_there(page):
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    named = {name for quoted in QUOTED.findall(text) for name in CAPITALS.findall(quoted)}

    assert named - NO_SETTINGS - {name.upper() for name in Settings.model_fields} == set()


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", "docs", "server"])
def test_where_servers_meet_is_told_with_both_of_its_variables(path):
    files = [ROOT / path] if (ROOT / path).is_file() else sorted((ROOT / path).rglob("*.[mp][dy]"))
    halves = [
        str(file.relative_to(ROOT))
        for file in files
        for part in file.read_text().split("\n\n")
        if "TMPDIR" in part and "XDG_RUNTIME_DIR" not in part
    ]

    assert halves == []


def test_nothing_is_excepted_that_no_page_names_or_that_is_a_setting():
    text = "".join(page.read_text() for page in PAGES)

    assert {name for name in NO_SETTINGS if name not in text} == set()
    assert NO_SETTINGS & {name.upper() for name in Settings.model_fields} == set()


@pytest.mark.parametrize(
    ("page", "begin", "model"),
    [
        ("calls.md", "| `POST /make-call`", MakeCall),
        ("design.md", "| `POST /make-call`", MakeCall),
        ("design.md", "| `GET /calls?", WhichCalls),
        ("running.md", "- `day=", WhichCalls),
    ],
)
def test_a_page_that_tells_what_a_request_takes_tells_all_of_it(page, begin, model):
    _, found, rest = (ROOT / "docs" / page).read_text().partition(f"\n{begin}")
    told = re.findall(r"\w+", begin + re.split(r"\n[-|\n]", rest)[0])

    assert found
    assert model.model_fields.keys() - set(told) == set()


def test_every_reason_that_a_call_ends_for_is_explained():
    _, found, rest = (ROOT / "docs" / "calls.md").read_text().partition("\n| `reason` |")
    rows = re.findall(r"(?m)^\| (`.+?) \|", rest.partition("\n\n")[0])

    assert found
    assert sorted(re.findall(r"`([^`]+)`", " ".join(rows))) == sorted(EndReason)


def test_the_files_of_rooms_that_the_design_names_are_there():
    design = (ROOT / "docs" / "design.md").read_text()
    named = set(re.findall(r"(?<![\w/.])(\w+(?:/\w+)+\.py)\b", design))

    missing = {
        name for name in named if not ((ROOT / "server" / name).exists() or (ROOT / name).exists())
    }
    assert len(named) > 10
    assert missing == set()


def test_what_the_run_of_everything_provides_is_what_tests_may_not_do_without(monkeypatch):
    run = (ROOT / ".ci" / "run").read_text()
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    provided = set(re.findall(r"(?m)^  '([A-Z]+) |export REQUIRE_(\w+)=1", run))

    names = {name.lower() for pair in provided for name in pair if name}
    assert names == set(re.findall(r"is_required\(\"(\w+)\"\)", tests))
    assert names >= {"postgresql", "redis", "haproxy", "helm"}
    monkeypatch.delenv("REQUIRE_HELM", raising=False)
    assert not is_required("helm")
    monkeypatch.setenv("REQUIRE_HELM", "1")
    assert is_required("helm")
