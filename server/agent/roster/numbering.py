"""Gives an agent a number in its file: one line is added or changed, and all others stay."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from server.agent.roster.files import MAX_FILE_BYTES, line_of
from server.errors import ConfigurationError
from server.settings.file import expanded, read_file
from server.settings.settings import Settings

KEY = "numbers"
_LIST = re.compile(r"(?P<before>\s*numbers\s*=\s*\[)(?P<inside>[^\]#]*)(?P<after>\].*)", re.DOTALL)


def file_of(settings: Settings, agent: str) -> Path | None:
    """The TOML file that describes an agent; None for one that is described elsewhere."""
    where = settings.agents
    if where is None:
        return None
    where = expanded(where)
    for path in sorted(where.glob("*.toml")) if where.is_dir() else [where]:
        if path.suffix != ".toml":
            continue
        if tomllib.loads(read_file(path, MAX_FILE_BYTES)).get("name") == agent:
            return path
    return None


def add_number(path: Path, number: str) -> str:
    """The text of an agent's file with one number more; the file stays as it is.

    Raises:
        ConfigurationError: It is written in a way that only a person changes safely.
    """
    text = read_file(path, MAX_FILE_BYTES)
    said = tomllib.loads(text)
    lines = re.split(r"(?<=\n)", text)
    if KEY not in said:
        place = line_of(text, ["name"]) or 0
        end = "\r\n" if "\r\n" in text else "\n"
        if place and not lines[place - 1].endswith("\n"):
            lines[place - 1] += end
        lines.insert(place, f'{KEY} = ["{number}"]{end}')
    else:
        place = (line_of(text, [KEY]) or 1) - 1
        lines[place] = _longer(lines[place], number)
    changed = "".join(lines)
    given = said.get(KEY, [])
    wanted = said | {KEY: [*(given if isinstance(given, list) else [given]), number]}
    if not _is(changed, wanted):
        raise ConfigurationError(f'{path}: add "{number}" to its numbers by hand')
    return changed


def _longer(line: str, number: str) -> str:
    """A line ``numbers = […]`` with one more in it; as it is, if it is written otherwise."""
    if (found := _LIST.fullmatch(line)) is None:
        return line
    inside = found["inside"].rstrip().rstrip(",").rstrip()
    comma = ", " if inside.strip() else ""
    return f'{found["before"]}{inside}{comma}"{number}"{found["after"]}'


def _is(text: str, wanted: object) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False
