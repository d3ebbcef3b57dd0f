"""The files that ``AGENTS`` names: read whole, or refused with the line that is wrong.

A folder has one TOML file for each agent, and perhaps an ``agents.py`` with agents in Python and a
``route`` that chooses among all of them. Either may also stand alone.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from server.agent.agent import DEFAULT_NAME, Agent
from server.agent.loading import agent_of
from server.agent.roster import written
from server.agent.roster.agents import ANY_NUMBER, Agents
from server.agent.roster.described import Misdescribed, check_inbound, described
from server.errors import ConfigurationError
from server.logs.authors import watched
from server.settings.file import expanded, read_file, read_text
from server.settings.settings import Settings

MODULE = "agents.py"
MODULE_NAME = "offhook_agents"
"""What the user's module is called among Python's."""
MAX_AGENTS = 1_000
MAX_FILE_BYTES = 512 * 1024
MAX_TOLD = 20
"""Of what is wrong: whoever mends it asks again."""
MAX_CANDIDATES = 20
"""Lines that may be the one with a key, of which it is looked whether they are."""

Check = Callable[[Agent], None]
"""Raises ConfigurationError if calls cannot be made with an agent."""


def no_check(agent: Agent) -> None:
    """Take every agent."""


def read_agents(settings: Settings, check: Check = no_check) -> Agents:
    """The agents that the settings name, and the one that they describe.

    Args:
        settings: The process's.
        check: Told of each agent; refuses it by a ConfigurationError.

    Raises:
        ConfigurationError: What is wrong, with files and lines.
    """
    default = agent_of(settings)
    if settings.agents is None:
        return Agents({DEFAULT_NAME: default})
    files, module = _files_of(settings.agents)
    reading = _Reading(settings, check)
    for path in files:
        reading.read_toml(path)
    route, wanted = None, None
    if module is not None:
        route, wanted = reading.read_module(module)
    for where, agent in reading.found:
        if route is None:
            reading.note(where, partial(check_inbound, agent))
    if reading.problems:
        raise ConfigurationError("AGENTS: " + "; ".join(reading.problems[:MAX_TOLD]))
    agents = {DEFAULT_NAME: default} | {agent.name: agent for _, agent in reading.found}
    anybody = next((a.name for a in agents.values() if ANY_NUMBER in a.numbers), DEFAULT_NAME)
    if wanted is not None and wanted not in agents:
        raise ConfigurationError(f"AGENTS: {module}: DEFAULT is {wanted!r}, which is no agent")
    return Agents(agents, route, wanted or anybody)


def _files_of(path: Path) -> tuple[list[Path], Path | None]:
    """The TOML files there are, and the module."""
    path = expanded(path)
    try:
        return _files_at(path)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigurationError(f"AGENTS: {path} cannot be read: {reason}") from None


def _files_at(path: Path) -> tuple[list[Path], Path | None]:
    if path.is_dir():
        files = sorted(path.glob("*.toml"))
        module = path / MODULE if (path / MODULE).is_file() else None
        if len(files) > MAX_AGENTS:
            raise ConfigurationError(f"AGENTS: {path} has more than {MAX_AGENTS} files")
        if not files and module is None:
            raise ConfigurationError(f"AGENTS: {path} has neither a .toml file nor {MODULE}")
        return files, module
    if not path.is_file():
        raise ConfigurationError(f"AGENTS: {path} is not there: name a folder, or a file")
    return ([], path) if path.suffix == ".py" else ([path], None)


Where = Callable[[Sequence[str]], str]
"""Names the place of a key."""


class _Reading:
    """What has been found, and what was wrong with it, in all files."""

    def __init__(self, settings: Settings, check: Check) -> None:
        self.found: list[tuple[Where, Agent]] = []
        self.problems: list[str] = []
        self._settings = settings
        self._check = check
        self._places: dict[tuple[str, str], Where] = {}  # of names and numbers that are taken

    def read_toml(self, path: Path) -> None:
        """Read one agent."""
        try:
            text = read_file(path, MAX_FILE_BYTES)
            said = tomllib.loads(text)
        except ConfigurationError as error:
            self.problems.append(str(error))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            self.problems.append(_broken(path, error))
        else:

            def where(keys: Sequence[str]) -> str:
                line = line_of(text, _written(said, keys))
                return f"{path}, line {line}" if line else str(path)

            self._add(where, said, path.parent)

    def read_module(self, path: Path) -> tuple[Any, str | None]:
        """Read agents in Python; returns the route, and who answers when that fails."""
        try:
            module = _import(path)
        # Whatever a module of the user's may do when it is imported.
        except (Exception, SystemExit) as error:
            line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, path)
            self.problems.append(f"{path}, line {line}: {type(error).__name__}: {error}")
            return None, None
        seen: set[int] = set()
        for one in vars(module).values():
            if isinstance(one, written.Agent) and id(one) not in seen:
                seen.add(id(one))
                self._add(_at(f"{path}, line {one.line}"), one.said, path.parent)
        route = getattr(module, "route", None)
        if route is not None and not inspect.iscoroutinefunction(route):
            self.problems.append(f"{path}: route must be an async function that takes the call")
        wanted = getattr(module, "DEFAULT", None)
        asked = None if route is None else watched(route, "route")
        return asked, getattr(wanted, "name", wanted)

    def note(self, where: Where, check: Callable[[], object]) -> bool:
        """Check something, and write down what is wrong; whether nothing is."""
        try:
            check()
        except Misdescribed as error:
            for keys, text in error.problems[:MAX_TOLD]:
                self.problems.append(f"{where(keys)}: {'.'.join(keys)} {text}")
            return False
        return True

    def _add(self, where: Where, said: Any, folder: Path) -> None:
        agents: list[Agent] = []

        def describe() -> None:
            agent = described(said, self._settings, folder)
            try:
                self._check(agent)
            except ConfigurationError as error:
                key, _, text = str(error).partition(" ")
                raise Misdescribed([((key.rstrip(":").lower(),), text)]) from None
            self._take("name", agent.name, where)
            for number in agent.numbers:
                self._take("numbers", number, where)
            agents.append(agent)

        if self.note(where, describe):
            self.found.append((where, agents[0]))

    def _take(self, key: str, value: str, where: Where) -> None:
        """Let nobody else have a name or a number."""
        if (before := self._places.setdefault((key, value), where)) is not where:
            raise Misdescribed([((key,), f"has {value}, as {before([key])} has")])


def _at(place: str) -> Where:
    return lambda keys: place


def _broken(path: Path, error: Exception) -> str:
    """What is wrong with a file that is no TOML, and in which line."""
    words = str(error)
    at = re.search(r"\s*\(at (?:line (\d+), column \d+|end of document)\)$", words)
    said = words[: at.start()] if at else words or type(error).__name__
    line = f", line {at[1]}" if at and at[1] else ""
    return f"{path}{line}: {said}, so it is no TOML"


def _import(path: Path) -> ModuleType:
    """Run a module of the user's, afresh: what is there of it goes on to be used by live calls."""
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(MODULE_NAME)
    sys.modules[MODULE_NAME] = module
    try:
        # Not by the loader, which may take a cached file of the same second for this one.
        source = read_text(path.read_bytes(), str(path))
        code = compile(source, str(path), "exec", dont_inherit=True)  # no __future__ of ours
        exec(code, module.__dict__)
    except BaseException:
        if before is None:
            del sys.modules[MODULE_NAME]
        else:
            sys.modules[MODULE_NAME] = before
        raise
    return module


def _line_in(error: BaseException, path: Path) -> int | None:
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def line_of(text: str, keys: Sequence[str]) -> int | None:
    """The line, counted from 1, where a key of a TOML text stands; of its table if it is not there.

    It is the first line with the key's name before which the text is whole and does not have the
    key, and which, with those that belong to it, brings it: so said by the parser itself.

    Args:
        text: It is whole.
        keys: From the outermost; they are names, all of them.
    """
    lines = re.split(r"(?<=\n)", text)
    for length in range(len(keys), 0, -1):
        wanted = keys[:length]
        name = re.compile(rf"(?<![\w-]){re.escape(wanted[-1])}(?![\w-])")
        candidates = [number for number, line in enumerate(lines) if name.search(line)]
        for number in candidates[:MAX_CANDIDATES]:
            before = _parsed(lines[:number])
            if before is None or _has(before, wanted):
                continue
            wholes = (_parsed(lines[:end]) for end in _ends(number, len(lines)))
            after = next((whole for whole in wholes if whole is not None), None)
            if after is not None and _has(after, wanted):
                return number + 1
    return None


def _written(value: Any, keys: Sequence[str]) -> list[str]:
    """The keys as far as they stand in the text: how-manieth of a list something is does not."""
    for at, key in enumerate(keys):
        if isinstance(value, list):
            return list(keys[:at])
        value = value.get(key) if isinstance(value, dict) else None
    return list(keys)


def _ends(number: int, count: int) -> Iterable[int]:
    """Where the lines that belong to one may end: soon, or with the whole text."""
    yield from range(number + 1, min(number + 4, count) + 1)
    yield count


def _parsed(lines: Sequence[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("".join(lines))
    except (tomllib.TOMLDecodeError, RecursionError):
        return None


def _has(value: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return False
    return True
