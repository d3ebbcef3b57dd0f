"""The API does what it says of itself, whatever it is sent: schemathesis against a real server."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import Phase, given, settings

from tests.fuzz_server import api_server
from tests.support.inputs import inputs

pytestmark = pytest.mark.sockets

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

SHOWN = {"X-API-Key": "sesame"}


@pytest.fixture(scope="module")
def server_url(tmp_path_factory) -> Generator[str]:
    """A server in a process of its own, where no phone is ever answered."""
    log = tmp_path_factory.mktemp("server") / "log"
    with api_server(log) as (url, _):
        yield url
    assert "by a bug of ours" not in log.read_text()


@pytest.mark.slow
def test_every_route_answers_as_described_whatever_it_is_sent(server_url):
    schema = schemathesis.openapi.from_url(f"{server_url}/openapi.json", headers=SHOWN)
    asked = set()
    for found in schema.exclude(path="/drain").get_all_operations():  # draining is for good
        operation = found.ok()
        asked.add(operation.path)
        for mode in schemathesis.GenerationMode:  # as described, and as not
            hold = given(operation.as_strategy(generation_mode=mode))(_answers_as_described)
            settings(max_examples=inputs(10), phases=[Phase.generate])(hold)()

    assert {"/make-call", "/calls", "/calls/{call_sid}", "/readyz"} <= asked


def _answers_as_described(case: Any) -> None:
    answer = case.call(headers=SHOWN)

    assert answer.status_code not in (500, 501)
    described = case.operation.definition.raw["responses"]
    assert not described or str(answer.status_code) in described, answer.text
    conforms = [checks.content_type_conformance, checks.response_schema_conformance]
    case.validate_response(answer, checks=conforms)
