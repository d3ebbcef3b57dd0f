"""Helm, as it is in a package of Python's, in a process of its own.

It is a library written in Go, with threads and signal handlers that no test here asked for.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.required import is_required

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "offhook"
HAS_HELM = all(importlib.util.find_spec(name) for name in ("helm_python", "kubernetes_validate"))
needs_helm = pytest.mark.skipif(
    not HAS_HELM and not is_required("helm"),
    reason="Helm is not here: pip install 'offhook[deploy]'",
)
NAMESPACE = "voice"


class HelmRefuses(Exception):
    """Values that the chart cannot be rendered with, in Helm's words."""


def render(values: dict[str, Any], name: str = "offhook") -> list[dict[str, Any]]:
    """Every manifest of a release, parsed.

    Raises:
        HelmRefuses: It cannot be.
    """
    answer = json.loads(_ask(json.dumps({"values": values, "name": name})))
    if "refused" in answer:
        raise HelmRefuses(answer["refused"])
    return [
        document
        for path, text in answer["files"].items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def lint(values: dict[str, Any]) -> list[Any]:
    """What Helm has to say of the chart."""
    found: list[Any] = json.loads(_ask(json.dumps({"values": values, "name": None})))["said"]
    return found


@cache
def _ask(question: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.deploy.helm"],
        input=question,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=ROOT,
    )
    return done.stdout


def _answer(values: dict[str, Any], name: str | None) -> dict[str, Any]:
    from helm_python import chart
    from helm_python.errors import HelmError

    if name is None:
        found = chart.lint(str(CHART), values, strict=True)
        return {"said": found["errors"] + found["messages"]}
    try:
        files = chart.Chart.load(str(CHART)).render(values, name=name, namespace=NAMESPACE)
    except HelmError as error:
        return {"refused": str(error)}
    return {"files": files}


if __name__ == "__main__":
    json.dump(_answer(**json.load(sys.stdin)), sys.stdout)
