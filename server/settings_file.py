"""The file of settings, ``.env``: in every encoding that editors and shells write it in.

What it says is python-dotenv's to read. Here is what that does not do: other encodings than UTF-8,
one sentence with a line number for what cannot be read, and a warning where a line says less than
somebody meant.
"""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from dotenv.main import resolve_variables
from dotenv.parser import Binding, parse_stream

from server.errors import ConfigurationError

MAX_BYTES = 1024 * 1024
# The longest first: the mark of UTF-16 LE is the beginning of that of UTF-32 LE.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
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
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise ConfigurationError(f"{path} has more than {MAX_BYTES} bytes, so it has no settings")
    text = decode(content, str(path))
    bindings = list(parse_stream(io.StringIO(text)))
    values = resolve_variables(
        [(each.key, each.value) for each in bindings if each.key is not None], override=True
    )
    return SettingsFile(values, tuple(_warnings(path, bindings, frozenset(known))))


def decode(content: bytes, name: str) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 of either order, with their mark or without.

    Args:
        content: The whole file.
        name: What errors call it.

    Raises:
        ConfigurationError: It is none of these; the message names the first line that is not.
    """
    encoding, mark = "utf-8", b""
    for each, its_encoding in _MARKS:
        if content.startswith(each):
            encoding, mark = its_encoding, each
            break
    else:
        encoding = _without_mark(content)
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = _lines(content[len(mark) :][: error.start].decode(encoding, "replace"))
        raise ConfigurationError(
            f"{name}, line {line}: this is not {encoding.upper()} text; save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = _lines(text[: text.index("\0")])
        raise ConfigurationError(f"{name}, line {line}: a NUL character; save the file as UTF-8")
    return text


def _lines(before: str) -> int:
    return len(re.findall(r"\r\n|\n|\r", before)) + 1


def _without_mark(content: bytes) -> str:
    """Guess: a file of settings begins with ASCII, so of its first bytes others are zero."""
    match [byte != 0 for byte in content[:4]]:
        case [True, False, False, False]:
            return "utf-32-le"
        case [False, False, False, True]:
            return "utf-32-be"
        case [True, False, True, False] | [True, False]:
            return "utf-16-le"
        case [False, True, False, True] | [False, True]:
            return "utf-16-be"
    return "utf-8"


def _warnings(path: Path, bindings: list[Binding], known: frozenset[str]) -> Iterable[str]:
    seen: dict[str, str | None] = {}
    for binding in bindings:
        text = binding.original.string
        # Blank lines in front belong to what they precede.
        line = binding.original.line + _lines(text[: len(text) - len(text.lstrip())]) - 1
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
