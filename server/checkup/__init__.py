"""Whether what the settings name is there: each account, number and address is asked once.

``findings`` says what follows from an answer, and waits for nothing; ``asking`` asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """How something stands."""

    OK = "ok"
    DOUBT = "doubt"
    """Calls can be made, but something may not be as it was meant."""
    FAILED = "failed"
    """What is configured does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing; no key and no number in full is in it."""

    subject: str
    """``"model gemini-3.8-live"``, ``"number +58…0001"``."""
    state: State
    found: str
    todo: str = ""
    """What to do about it; empty if nothing."""
    was_asked: bool = True
    """Whether it was tried at all; it is worth asking again soon if not."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "subject": self.subject,
            "state": self.state.value,
            "found": self.found,
            "todo": self.todo,
        }


def all_is_well(findings: list[Finding]) -> bool:
    """Whether nothing that is configured fails; doubts are none of that."""
    return all(finding.state is not State.FAILED for finding in findings)
