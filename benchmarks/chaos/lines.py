"""A process of ours that answers lines of JSON with lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from typing import Any


class LineFailed(Exception):
    """It has ended, or did not understand what it was told."""


class LineProcess:
    """What is asked of such a process, from any thread, one question at a time."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process
        self._turn = threading.Lock()

    def ask(self, do: str, **facts: Any) -> dict[str, Any]:
        """Tell it to do something; what it says to that.

        Raises:
            LineFailed: See there.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self._turn:
            try:
                self.process.stdin.write(json.dumps({"do": do, **facts}).encode() + b"\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except OSError as error:
                raise LineFailed(f"{self.name} has ended: {error}") from error
        if not line:
            raise LineFailed(f"{self.name} has ended without a word; its own are above")
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise LineFailed(f"{self.name}, told to {do}: {answer['error']}")
        return answer


def answers_only() -> int:
    """Our standard output for answers, and for nothing else: what is printed from now on goes to
    standard error, whoever prints it.

    Returns:
        Its descriptor, which is the caller's.
    """
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers
