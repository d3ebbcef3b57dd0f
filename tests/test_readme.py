"""The README can be read at one sitting, its agent runs, and the Spanish one is the same page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGLISH, SPANISH = ((ROOT / name).read_text() for name in ("README.md", "README.es.md"))
BLOCKS = re.compile(r"(?s)```(.*?)\n(.*?)```")
HEADINGS = {
    "Offhook": "Offhook",
    "Hear it": "Escúchalo",
    "Talk to it": "Háblale",
    "Your own agent": "Tu propio agente",
    "A real number": "Un número de verdad",
    "Deploy": "Ponlo en marcha",
    "Why it is fast": "Por qué es rápido",
    "Limits": "Límites",
    "Where to read on": "Dónde seguir leyendo",
}
"""In the order of use. Whoever adds one to either page adds it to both, and here."""


def headings(page: str) -> list[str]:
    return re.findall(r"(?m)^#+ (.+)$", BLOCKS.sub("", page))


def test_the_headings_are_in_the_order_of_use_in_both_languages():
    assert headings(ENGLISH) == list(HEADINGS)
    assert headings(SPANISH) == list(HEADINGS.values())


def test_what_is_typed_shown_and_linked_is_the_same_in_both():
    other_page = ("README.md", "README.es.md")

    assert BLOCKS.findall(SPANISH) == BLOCKS.findall(ENGLISH)
    for pattern in (r"\]\(([^)]+)\)", r"!\[[^\]]*\]\(([^)]+)\)", r"\b[A-Z]+_[A-Z_]+\b"):
        english, spanish = (re.findall(pattern, page) for page in (ENGLISH, SPANISH))
        assert [one for one in spanish if one not in other_page] == [
            one for one in english if one not in other_page
        ]
    numbers = re.compile(r"\d+(?:\.\d+)?")
    tables = [re.findall(r"(?m)^\|.*$", page) for page in (ENGLISH, SPANISH)]
    assert [numbers.findall(row) for row in tables[1]] == [
        numbers.findall(row) for row in tables[0]
    ]


ACTIVATED = ". .venv/bin/activate\n"
"""From there on, commands are found as they are typed."""
BARE = re.compile(r"(?m)(?:^|`|&& )(?:[A-Z_]+=\S+ )?(?:offhook|pip|python) ")
SERVES = re.compile(r"(?m)^(?:offhook (?:serve|dev)|python -m server)$")
"""What does not return."""


@pytest.mark.parametrize("page", [ENGLISH, SPANISH], ids=["English", "Spanish"])
def test_what_is_typed_is_found_where_it_is_typed(page):
    before, _, after = page.partition(ACTIVATED)

    assert BARE.findall(before) == []
    assert len(BARE.findall(after)) >= 8
    assert ".venv/bin/" not in after


@pytest.mark.parametrize("page", [ENGLISH, SPANISH], ids=["English", "Spanish"])
def test_nothing_is_to_be_typed_behind_what_does_not_return(page):
    served = [SERVES.split(text) for _, text in BLOCKS.findall(page) if SERVES.search(text)]

    assert served
    assert [rest.strip() for _, *rests in served for rest in rests] == [""] * len(served)


@pytest.mark.parametrize("page", [ENGLISH, SPANISH], ids=["English", "Spanish"])
def test_it_can_be_read_at_one_sitting(page):
    assert len(page) < 9_000


@pytest.mark.slow
def test_the_agent_of_the_page_passes_the_test_of_the_page(tmp_path):
    for language, text in BLOCKS.findall(ENGLISH):
        if language.startswith("python "):
            (tmp_path / language.removeprefix("python ")).write_text(text)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_agents.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr
