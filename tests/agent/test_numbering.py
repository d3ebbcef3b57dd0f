"""An agent's file gets a number, and nothing else of it changes."""

from __future__ import annotations

import tomllib

import pytest

from server.agent.roster.files import MAX_FILE_BYTES
from server.agent.roster.numbering import add_number, file_of
from server.errors import ConfigurationError
from server.settings.settings import Settings

NUMBER = "+584125550001"


def written(tmp_path, text: str) -> str:
    path = tmp_path / "desk.toml"
    path.write_bytes(text.encode())
    return add_number(path, NUMBER)


NAME, VOICE, ADDED = 'name = "desk"', 'voice = "Kore"', 'numbers = ["+584125550001"]'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{NAME}  # us\n{VOICE}\n", f"{NAME}  # us\n{ADDED}\n{VOICE}\n"),
        (NAME, f"{NAME}\n{ADDED}\n"),
        (f"{NAME}\r\n{VOICE}\r\n", f"{NAME}\r\n{ADDED}\r\n{VOICE}\r\n"),
        (f"numbers = []  # none yet\n{NAME}\n", f"{ADDED}  # none yet\n{NAME}\n"),
        (
            f'{NAME}\nnumbers = ["*",]\n[variables]\nnumbers = "x"\n',
            f'{NAME}\nnumbers = ["*", "+584125550001"]\n[variables]\nnumbers = "x"\n',
        ),
    ],
)
def test_one_line_is_added_or_changed(tmp_path, before, after):
    assert written(tmp_path, before) == after


@pytest.mark.parametrize(
    "text",
    [
        'name = "desk"\nnumbers = "*"\n',
        'name = "desk"\nnumbers = [\n  "*",\n]\n',
        'name = "desk"\nnumbers = ["*"] # ["a"]\n[variables]\nx = """\nnumbers = []\n"""\n',
        '[variables]\nnumbers = "[]"\n',
    ],
)
def test_the_rest_is_never_changed(tmp_path, text):
    try:
        changed = tomllib.loads(written(tmp_path, text))
    except ConfigurationError as error:
        assert "by hand" in str(error)  # noqa: PT017
    else:
        before = tomllib.loads(text)
        assert changed.pop("numbers")[-1] == NUMBER
        assert changed == {key: value for key, value in before.items() if key != "numbers"}


def test_a_file_that_is_too_long_is_refused_and_not_cut(tmp_path):
    with pytest.raises(ConfigurationError, match="has more than 524288 bytes"):
        written(tmp_path, f"{NAME}\n" + "#\n" * (MAX_FILE_BYTES // 2))


def test_an_agents_file_is_found_by_its_name(tmp_path):
    (tmp_path / "a.toml").write_text('name = "one"\n')
    (tmp_path / "b.toml").write_text('name = "two"\n')

    folder = Settings(_env_file=None, agents=tmp_path)
    file = Settings(_env_file=None, agents=tmp_path / "a.toml")

    assert file_of(folder, "two") == tmp_path / "b.toml"
    assert file_of(folder, "three") is None
    assert file_of(file, "one") == tmp_path / "a.toml"
    assert file_of(file, "two") is None
    assert file_of(Settings(_env_file=None), "one") is None
