"""One of several processes that want the same calls; it does what it is told on stdin.

tests/cluster/test_claims.py starts it. Each command is answered by one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from server.cluster.board import Load, Member
from server.cluster.claims import Claims, Gate
from server.cluster.workers import Workers


def main(where: str, count: int) -> None:
    workers = Workers()
    workers.join(count, where=where)
    workers.report = lambda: Load(accepts=True)
    workers.publish()
    answer: object = workers.number
    while True:
        print(json.dumps(answer), flush=True)  # noqa: T201
        match sys.stdin.readline().split():
            case ["claim", calls, *gone]:
                dead = {workers.member(int(number)) for number in gone}
                workers.publish()
                answer = [workers.claim(f"CA{n}", gone=dead) for n in range(int(calls))]
            case ["take-turns", directory, rounds]:
                answer = take_turns(Path(directory), int(rounds), seed=workers.number)
            case ["join"]:
                workers.join(count, where=where)
                answer = workers.number
            case ["leave"]:
                workers.leave()
                answer = "left"
            case _:
                return


def take_turns(directory: Path, rounds: int, *, seed: int) -> dict[str, int]:
    """Claim calls, give them back or die with them, and see that nobody else has them meanwhile."""
    claims = Claims(directory / "calls", Gate(directory / "gate"))
    dead, held = directory / "dead", directory / "held"
    chance, ours = random.Random(seed), Member(seed, 1)
    turns = deaths = doubles = 0
    for _ in range(rounds):
        call_sid = f"CA{chance.randrange(4)}"
        owner = claims.make(call_sid, ours, is_there=lambda one: not (dead / str(one)).exists())
        if owner != ours:
            continue
        turns += 1
        try:
            os.close(os.open(held / call_sid, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            doubles += 1
            continue
        (held / call_sid).unlink()
        if chance.random() < 0.3:
            (dead / str(ours)).touch()
            deaths, ours = deaths + 1, Member(seed, ours.born + 1)
        else:
            claims.release(call_sid, ours)
    return {"turns": turns, "deaths": deaths, "doubles": doubles}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
