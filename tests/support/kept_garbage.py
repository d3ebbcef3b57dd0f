"""The server, with Python's collector told to keep what it finds.

``python -m tests.support.kept_garbage`` is ``python -m server`` in which nothing is collected. On a
first SIGUSR1 what start-up and first uses have left is thrown away; on each further one
``garbage.json`` says which rings of objects have been left since. A ring is what reference counts
cannot free; what only hangs on one is counted with it.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.commands.line import main

REPORT = Path("garbage.json")


def rings(objects: list[Any]) -> list[list[Any]]:
    """The groups of objects that lead back to themselves: Tarjan's, without recursion."""
    mine = {id(each): number for number, each in enumerate(objects)}
    low, at = [0] * len(objects), [0] * len(objects)
    on_path = [False] * len(objects)
    path: list[int] = []
    found: list[list[Any]] = []
    count = 0
    for start in range(len(objects)):
        if at[start]:
            continue
        stack = [(start, iter(_led_to(objects[start], mine)))]
        count += 1
        at[start] = low[start] = count
        path.append(start)
        on_path[start] = True
        while stack:
            here, others = stack[-1]
            for other in others:
                if not at[other]:
                    count += 1
                    at[other] = low[other] = count
                    path.append(other)
                    on_path[other] = True
                    stack.append((other, iter(_led_to(objects[other], mine))))
                    break
                if on_path[other]:
                    low[here] = min(low[here], at[other])
            else:
                stack.pop()
                if stack:
                    low[stack[-1][0]] = min(low[stack[-1][0]], low[here])
                if low[here] == at[here]:
                    ring = []
                    while True:
                        last = path.pop()
                        on_path[last] = False
                        ring.append(objects[last])
                        if last == here:
                            break
                    if len(ring) > 1 or here in _led_to(objects[here], mine):
                        found.append(ring)
    return found


@contextmanager
def garbage_kept() -> Generator[list[list[str]]]:
    """Within the block nothing is collected; after it the list has the rings that were left.

    Only of what was made there: who holds what was made before may let go of it meanwhile.
    """
    left: list[list[str]] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield left
        gc.collect()
        left += [sorted(map(name_of, ring)) for ring in rings(gc.garbage)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


def _led_to(each: Any, mine: dict[int, int]) -> list[int]:
    return [mine[id(other)] for other in gc.get_referents(each) if id(other) in mine]


def name_of(each: Any) -> str:
    """What an object is, as far as that tells where it was made."""
    kind = type(each)
    name = f"{kind.__module__}.{kind.__qualname__}"
    code = getattr(each, "f_code", None) or getattr(each, "cr_code", None)
    code = code or getattr(each, "__code__", None) or getattr(each, "gi_code", None)
    code = code or getattr(each, "ag_code", None)
    if code is not None:
        return f"{kind.__name__} {code.co_qualname} ({Path(code.co_filename).name})"
    if kind.__name__ in ("method", "builtin_function_or_method"):
        return f"{kind.__name__} {each.__qualname__}"
    if kind is dict:
        return "dict of " + ",".join(sorted(map(str, list(each)[:4])))
    if isinstance(each, BaseException):
        return f"{name}({str(each)[:60]})"
    return name


def _told(ring: Iterable[Any]) -> list[str]:
    counted = Counter(map(name_of, ring))
    return [f"{count} x {name}" for name, count in sorted(counted.items())]


def _answer(number: int, frame: object) -> None:
    told = _tell() if gc.get_debug() else {"objects": 0, "rings": []}
    gc.set_debug(0)
    gc.garbage.clear()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    part = REPORT.with_suffix(".part")
    part.write_text(json.dumps(told))
    part.rename(REPORT)


def _tell() -> dict[str, Any]:
    gc.collect()
    counted = Counter(json.dumps(_told(ring)) for ring in rings(gc.garbage))
    told: dict[str, Any] = {
        "objects": len(gc.garbage),
        "rings": [{"times": times, "of": json.loads(of)} for of, times in counted.most_common()],
    }
    return told


if __name__ == "__main__":
    gc.disable()
    signal.signal(signal.SIGUSR1, _answer)
    sys.exit(main())
