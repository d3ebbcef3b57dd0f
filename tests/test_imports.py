"""The arrows of the design, read from the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("server/**/*.py"), *ROOT.glob("codec/*.py"), *ROOT.glob("codec/*.pyx")])

LEAVES = {"server.errors", "server.settings", "server.metrics", "server.logs", "server.transcript"}
LEAVES_MAY_USE = {"server.errors", "codec", "codec.latency"}
SETTINGS = {"server.setting_values", "server.settings_file", "server.numbers", "server.text"}
"""What settings are made of, and nothing else of ours."""
CONCRETE = {
    "server.carrier.twilio",
    "server.carrier.simulator",
    "server.model.gemini",
    "server.model.lasting",
    "server.model.simulator",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module of ours that a file imports at run time."""
    if path.suffix == ".pyx":
        lines = path.read_text().splitlines()
        words = [
            line.split() for line in lines if line.startswith(("import ", "from ", "cimport "))
        ]
        return {word[1] for word in words if word[1].startswith(("server", "codec"))}
    found: set[str] = set()
    for node in _at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("server", "codec")}


def _at_run_time(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _at_run_time(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_the_right_way(path):
    name, used = module_name(path), imports(path)

    if name.startswith("codec"):
        assert not any(module.startswith("server") for module in used), "codec imports server"
    if name in LEAVES:
        parts = SETTINGS if name == "server.settings" else set()
        used = {module for module in used if not any(module.startswith(part) for part in parts)}
        assert used - LEAVES_MAY_USE <= {"server"} | {
            f"server.errors.{n}" for n in ("ConfigurationError", "ServerError")
        }, f"{name} must import nothing of ours"
    if name in SETTINGS:
        assert all(module.startswith(("server.errors", "server.text")) for module in used)
    if name in ("server.carrier", "server.model"):
        assert not used & CONCRETE, "an interface imports an implementation"
    if name.startswith("server.carrier"):
        assert not any(module.startswith("server.model") for module in used)
    if name.startswith("server.model"):
        assert not any(module.startswith("server.carrier") for module in used)
    if name in ("server.call", "server.calls", "server.playout", "server.routes", "server.agent"):
        assert not used & CONCRETE, "only app.py names concrete classes"
