"""The rooms of the house and the arrows between them, read from the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("server/**/*.py"), *ROOT.glob("codec/*.py"), *ROOT.glob("codec/*.pyx")])

ROOMS = (
    ("server.__main__", "server.asgi"),
    ("server.demo",),
    ("server.serving",),
    ("server.app",),
    ("server.web",),
    ("server.service", "server.accounts"),
    ("server.switchboard",),
    ("server.call",),
    ("server.simulators",),
    ("server.model",),
    ("server.dialogue",),
    ("server.agent",),
    ("server.records",),
    ("server.carrier",),
    ("server.media",),
    ("server.cluster",),
    ("server.hooks",),
    ("server.settings",),
    ("server.metrics", "server.logs", "server.garbage", "server.supervision", "server.sockets"),
    ("server.errors",),
    ("server.headers", "server.numbers", "server.text"),
    ("codec",),
)
"""Top to bottom. A room uses what stands below it and what is in it, and nothing else."""

NOT_YET = {
    ("server.agent.phrases", "server.dialogue.turns"),
    ("server.agent.tools", "server.model"),
    ("server.dialogue.endings", "server.model.refusals"),
    ("server.errors", "server.model.refusals"),
    ("server.records.traces", "server.call.call"),
    ("server.web.routes", "server.app"),
    ("server.web.webhooks", "server.app"),
}
"""Arrows that still point up."""
CIRCLES_YET = [
    ["server.agent.agent", "server.agent.tools", "server.model"],
    ["server.app", "server.web.routes", "server.web.webhooks"],
    [
        "server.call.call",
        "server.call.farewell",
        "server.call.handover",
        "server.call.machine",
        "server.call.watch",
    ],
]
"""Modules that still import each other."""

FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
NO_ROOM = {"server"}
"""No more than a version and a docstring."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Every module of ours that a file imports, be it for its types alone."""
    if path.suffix == ".pyx":
        lines = path.read_text().splitlines()
        words = [
            line.split() for line in lines if line.startswith(("import ", "from ", "cimport "))
        ]
        return {word[1] for word in words if word[1].startswith(("server", "codec"))}
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & MODULES.keys()
            found |= modules
            if names - modules:
                found.add(node.module)
    return {name for name in found if name.split(".")[0] in ("server", "codec")}


def room_of(module: str) -> str:
    """The room that a module is in, or is itself."""
    while module not in FLOOR:
        module, dot, _ = module.rpartition(".")
        assert dot, "a module that is in no room: put it into one, or a new room into the table"
    return module


USED = {name: imports(path) for name, path in MODULES.items()}


def upward(name: str) -> set[tuple[str, str]]:
    """The arrows of a module that do not point down, nor stay in its room."""
    room = room_of(name)
    others = {used for used in USED[name] if used not in NO_ROOM and room_of(used) != room}
    return {(name, used) for used in others if FLOOR[room_of(used)] <= FLOOR[room]}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - NO_ROOM))
def test_a_room_uses_what_stands_below_it(name):
    assert upward(name) <= NOT_YET


def test_no_arrow_is_excused_that_points_down():
    assert set().union(*map(upward, MODULES.keys() - NO_ROOM)) >= NOT_YET


def reached() -> dict[str, set[str]]:
    """What each module imports, by however many steps."""
    reached = {name: set(used & MODULES.keys()) for name, used in USED.items()}
    for middle in MODULES:
        for name in MODULES:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    return reached


def circles() -> list[list[str]]:
    """The modules that import each other, by however many steps."""
    used = reached()
    rings = {
        tuple(sorted(other for other in used[name] if name in used[other])) for name in MODULES
    }
    return sorted(list(ring) for ring in rings if len(ring) > 1)


def test_there_are_no_circles():
    assert circles() == CIRCLES_YET


def test_no_carrier_and_no_model_needs_linux():
    used = reached()

    for name in MODULES:
        if name.startswith(("server.carrier", "server.model")):
            assert not used[name] & {"server.media.plane", "server.media.relay"}, name


def test_nothing_that_decides_can_wait():
    deciding = {name for name in MODULES.keys() - NO_ROOM if room_of(name) == "server.dialogue"}

    for name in deciding:
        for node in ast.walk(ast.parse(MODULES[name].read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name == "trio" for alias in node.names), f"{name} can wait"
            assert not isinstance(node, ast.AsyncFunctionDef), f"{name} waits"
    assert len(deciding) > 5
