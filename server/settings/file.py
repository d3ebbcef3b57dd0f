"""The file of settings, ``.env``: in every encoding that editors and shells write it in.

What it says is python-dotenv's to read. Here is what that does not do: other encodings than UTF-8,
one sentence with a line number for what cannot be read, and a warning where a line says less than
somebody meant.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from dotenv.main import resolve_variables
from dotenv.parser import Binding, parse_stream

from server.errors import ConfigurationError
from server.settings.text import NotText, count_lines, decode

MAX_BYTES = 1024 * 1024
MAX_ENTRIES = 2_000
"""Lines that set something; there are some hundred settings."""
_CLOSE = 0.8
"""How alike two names are, of 1, if one of them is likely to be the other misspelt."""
_VARIABLE = re.compile(r"\$\{([^}:]*)\}")


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """What a file of settings says."""

    values: Mapping[str, str | None]
    warnings: tuple[str, ...]
    """What looks like a mistake, in sentences without a value in them."""


def read_settings_file(path: Path, known: Iterable[str]) -> SettingsFile:
    """Read a file of settings.

    Args:
        path: It exists.
        known: The names there are, in lower case.

    Raises:
        ConfigurationError: It cannot be read; which line, and why.
    """
    try:
        if path.is_dir():
            raise ConfigurationError(
                f"{path} is a folder (Docker makes one where a file to mount is missing): remove "
                "it, and put a file of settings in its place"
            )
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is no file: put a file of settings in its place")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise ConfigurationError(f"{path} has more than {MAX_BYTES} bytes, so it has no settings")
    text = read_text(content, str(path))
    bindings = list(parse_stream(io.StringIO(text)))
    if len(bindings) > MAX_ENTRIES:
        raise ConfigurationError(f"{path} has more than {MAX_ENTRIES} entries: is it another file?")
    values = resolve_variables(
        [(each.key, each.value) for each in bindings if each.key is not None], override=True
    )
    return SettingsFile(values, tuple(_warnings(path, bindings, frozenset(known))))


def expanded(path: Path) -> Path:
    """The path with the home that ``~`` names; as it is where nobody has such a home."""
    with suppress(RuntimeError):
        return path.expanduser()
    return path


def is_folder(path: Path) -> bool:
    """Whether a folder is there, as far as it can be seen: not where its name is too long, or
    nobody may look.
    """
    with suppress(OSError):
        return path.is_dir()
    return False


def is_file(path: Path) -> bool:
    """Whether a file is there, as far as it can be seen."""
    with suppress(OSError):
        return path.is_file()
    return False


def read_file(path: Path, max_bytes: int, name: str | None = None) -> str:
    """The text of a file of the user's that is not too long.

    Args:
        path: The file.
        max_bytes: The longest that it may be.
        name: What errors call it; None for its path.

    Raises:
        ConfigurationError: It cannot be read, is longer, or is no text.
    """
    name = name or str(path)
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror or error}") from None
    if len(content) > max_bytes:
        raise ConfigurationError(f"{name} has more than {max_bytes} bytes")
    return read_text(content, name)


def read_text(content: bytes, name: str) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 of either order, with their mark or without.

    Args:
        content: The whole file.
        name: What errors call it.

    Raises:
        ConfigurationError: It is none of these; the message names the first line that is not.
    """
    try:
        return decode(content)
    except NotText as error:
        raise ConfigurationError(f"{name}, {error}; save the file as UTF-8") from None


def _warnings(path: Path, bindings: list[Binding], known: frozenset[str]) -> Iterable[str]:
    seen: dict[str, str | None] = {}
    for binding in bindings:
        text = binding.original.string
        # Blank lines in front belong to what they precede.
        line = binding.original.line + count_lines(text[: len(text) - len(text.lstrip())]) - 1
        where = f"{path}, line {line}"
        if binding.error:
            yield f"{where} is ignored, for it cannot be read: is a quote not closed?"
            continue
        if binding.key is None:
            continue
        name = binding.key.upper()
        if (meant := misspelt(name, known)) is not None:
            yield f"{where}: there is no setting {name}; is {meant} meant?"
        if name.lower() not in known:
            seen[binding.key] = binding.value
            continue
        yield from (f"{where}: {name} {what}" for what in _lost(binding, known, seen))
        seen[binding.key] = binding.value


def _lost(binding: Binding, known: frozenset[str], seen: Mapping[str, str | None]) -> Iterable[str]:
    """What of a value did not come through."""
    given = binding.original.string.partition("=")[2].strip()
    value = binding.value or ""
    if not given.startswith(("'", '"')):
        said = given.partition(" #")[0]
        if said != given and value:
            yield "ends at its #, which begins a comment: put the value in quotes to keep the rest"
    elif any(
        re.match(rf"(export\s+)?({'|'.join(known)})\s*=", each.strip(), re.IGNORECASE)
        for each in value.splitlines()[1:]
    ):
        yield "goes on over lines with other settings in them: is its quote not closed?"
    for variable in _VARIABLE.findall(value):
        if variable not in seen and variable not in os.environ:
            yield f"has ${{{variable}}} in it, which is not set and becomes nothing"


def misspelt(name: str, known: Iterable[str], closeness: float = _CLOSE) -> str | None:
    """The setting that a name is likely to mean, in upper case; None if it is one, or nothing's."""
    name = name.lower()
    known = list(known)
    if name in known:
        return None
    # Names of other lengths cannot be so close, and to compare them takes long.
    near = [
        one for one in known if min(len(one), len(name)) >= closeness * max(len(one), len(name))
    ]
    close = get_close_matches(name, near, n=1, cutoff=closeness)
    return close[0].upper() if close else None
