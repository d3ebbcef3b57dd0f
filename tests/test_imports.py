"""The rooms of the house and the arrows between them, read from the imports themselves.

``python -m tests.test_imports`` prints the picture of them for docs/design.md.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("server/**/*.py"), *ROOT.glob("codec/*.py"), *ROOT.glob("codec/*.pyx")])

ROOMS = (
    ("server.__main__", "server.asgi"),
    ("server.commands",),
    ("server.demo", "server.testing"),
    ("server.serving",),
    ("server.app",),
    ("server.console",),
    ("server.web",),
    ("server.service", "server.checkup"),
    ("server.accounts",),
    ("server.switchboard",),
    ("server.call",),
    ("server.simulators",),
    ("server.model",),
    ("server.dialogue",),
    ("server.agent",),
    ("server.events",),
    ("server.records",),
    ("server.carrier",),
    ("server.media",),
    ("server.cluster",),
    ("server.hooks",),
    ("server.voice", "server.stalls"),
    ("server.settings",),
    ("server.metrics", "server.garbage", "server.supervision"),
    ("server.errors",),
    (
        "server.headers",
        "server.headroom",
        "server.logs",
        "server.pace",
        "server.refusal",
        "server.signal",
    ),
    ("codec",),
)
"""Top to bottom. A room uses what stands below it and what is in it, and nothing else."""
OUTER_ROOMS = ("server.carrier", "server.model")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_LINES, MAX_METHODS, MAX_ATTRIBUTES = 600, 30, 25
MAX_FILES = 15
"""In one room; one that has more has a second noun in it."""

FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
NO_ROOM = {"server"}
"""No more than a version and a docstring."""
PAGE = ROOT / "docs" / "design.md"
PICTURE = "```rooms\n", "```\n"


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


def others_of(name: str) -> set[str]:
    """The modules of other rooms that a module uses."""
    return {used for used in USED[name] if used not in NO_ROOM and room_of(used) != room_of(name)}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - NO_ROOM))
def test_a_room_uses_what_stands_below_it(name):
    floor = FLOOR[room_of(name)]

    assert {used for used in others_of(name) if FLOOR[room_of(used)] <= floor} == set()


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
    assert circles() == []


def test_a_carrier_and_a_model_never_use_each_other():
    def kin(name: str) -> str:
        return ".".join(name.split(".")[:3])

    theirs = {name for name in MODULES if room_of_or_none(name) in OUTER_ROOMS}
    concrete = {name for name in theirs if name.count(".") > 2}

    for name in concrete:
        strangers = {used for used in USED[name] & concrete if kin(used) != kin(name)}
        assert strangers == set(), name
    assert {kin(name) for name in concrete} >= {"server.carrier.twilio", "server.model.gemini"}


def room_of_or_none(name: str) -> str | None:
    return None if name in NO_ROOM else room_of(name)


def test_only_the_accounts_name_a_carrier_and_a_model():
    concrete = ("server.carrier.twilio", "server.model.gemini", "server.model.lasting")
    namers = {
        name
        for name in MODULES
        if any(used.startswith(concrete) for used in USED[name])
        and not name.startswith(("server.carrier", "server.model", "server.simulators"))
    }

    assert namers == {"server.accounts"}


def test_no_carrier_and_no_model_needs_linux():
    used, linux_only = reached(), {f"server.media.{name}" for name in ("plane", "relay", "wire")}

    for name in MODULES:
        if name.startswith(("server.carrier", "server.model")):
            assert not used[name] & linux_only, name


def test_nothing_that_decides_can_wait():
    deciding = {name for name in MODULES.keys() - NO_ROOM if room_of(name) == "server.dialogue"}

    for name in deciding:
        for node in ast.walk(ast.parse(MODULES[name].read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name == "trio" for alias in node.names), f"{name} can wait"
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "trio", f"{name} can wait"
            assert not isinstance(node, ast.AsyncFunctionDef), f"{name} waits"
    assert len(deciding) > 5


def test_no_room_has_too_many_files():
    folders = {path.parent for path in FILES if path.suffix == ".py"}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}

    assert {name: count for name, count in counts.items() if count > MAX_FILES} == {}


def assigned(node: ast.ClassDef) -> set[str]:
    """The attributes that a class's methods give themselves."""
    targets: list[ast.expr] = []
    for one in ast.walk(node):
        if isinstance(one, ast.Assign):
            targets += one.targets
        elif isinstance(one, ast.AnnAssign):
            targets.append(one.target)
    flat = [part for target in targets for part in ast.walk(target)]
    return {
        part.attr
        for part in flat
        if isinstance(part, ast.Attribute)
        and isinstance(part.ctx, ast.Store)
        and isinstance(part.value, ast.Name)
        and part.value.id == "self"
    }


def test_no_file_and_no_class_is_too_large_to_hold():
    large = []
    for path in FILES:
        if path.suffix != ".py":
            continue
        text = path.read_text()
        if text.count("\n") > MAX_LINES:
            large.append(str(path.relative_to(ROOT)))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                methods = [one for one in node.body if isinstance(one, FUNCTIONS)]
                if len(methods) > MAX_METHODS or len(assigned(node)) > MAX_ATTRIBUTES:
                    large.append(node.name)

    assert large == []


def picture() -> str:
    """The rooms from top to bottom, and after each one's name the rooms that it uses."""
    width = max(len(short(room)) for room in FLOOR)
    lines = []
    for room in FLOOR:
        used = {
            room_of(one)
            for name in MODULES.keys() - NO_ROOM
            if room_of(name) == room
            for one in others_of(name)
        }
        below = sorted(map(short, used), key=[short(one) for one in FLOOR].index)
        lines.append(f"{short(room):{width}} ──▶ {' '.join(below)}" if below else short(room))
    return "\n".join(lines) + "\n"


def short(room: str) -> str:
    return room.removeprefix("server.")


def test_the_picture_of_the_rooms_is_what_the_imports_are():
    begin, end = PICTURE
    _, _, rest = PAGE.read_text().partition(begin)
    drawn, _, _ = rest.partition(end)

    assert drawn == picture(), "python -m tests.test_imports prints it"


def test_the_design_says_of_every_room_what_lives_there():
    _, _, rest = PAGE.read_text().partition("| Room | What lives there |")
    told, _, _ = rest.partition("A seam is")

    rooms = {short(room) for room in FLOOR}
    assert {room for room in rooms if f"`{room}`" not in told and f"`{room}/`" not in told} == set()


if __name__ == "__main__":
    print(picture(), end="")  # noqa: T201
