"""One of several processes that want the same calls; it does what it is told on stdin.

tests/cluster/test_claims.py starts it. Each command is answered by one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Container
from pathlib import Path

import trio

from server.cluster.cluster import Cluster
from server.cluster.directory.claims import Claims, Gate
from server.cluster.registry import Holding, Load, Member


def main(where: str, count: int) -> None:
    cluster = Cluster()
    cluster.join(count, where=where)
    cluster.report = lambda: Load(accepts=True)
    cluster.publish()
    answer: object = int(cluster.me.name)
    while True:
        print(json.dumps(answer), flush=True)  # noqa: T201
        match sys.stdin.readline().split():
            case ["claim", calls, *gone]:
                dead = {cluster.member(name) for name in gone}
                cluster.publish()
                answer = trio.run(claim, cluster, int(calls), dead)
            case ["take-turns", directory, rounds]:
                answer = take_turns(Path(directory), int(rounds), seed=int(cluster.me.name))
            case ["join"]:
                cluster.join(count, where=where)
                answer = int(cluster.me.name)
            case ["leave"]:
                cluster.leave()
                answer = "left"
            case _:
                return


async def claim(cluster: Cluster, calls: int, dead: Container[Member | None]) -> list[int | None]:
    """Claim so many calls, and take over those of the dead: whose each is."""
    owners = []
    for number in range(calls):
        holding = await cluster.registry.claim(f"CA{number}")
        while holding.member in dead:
            await cluster.registry.seize(f"CA{number}", holding)
            holding = await cluster.registry.claim(f"CA{number}")
        owners.append(cluster.sibling_number(holding.member.name))
    return owners


def take_turns(directory: Path, rounds: int, *, seed: int) -> dict[str, int]:
    """Claim calls, give them back or die with them, and see that nobody else has them meanwhile."""
    claims = Claims(directory, Gate(directory / "gate"), "a secret")
    dead, held = directory / "dead", directory / "held"
    chance, ours = random.Random(seed), Member(str(seed), 1)
    turns = deaths = doubles = 0
    for _ in range(rounds):
        call_sid = f"CA{chance.randrange(4)}"
        holding = claims.make(call_sid, ours)
        if (dead / str(holding.member)).exists():
            if (seized := claims.seize(call_sid, holding, ours)) is None:
                continue
            holding = Holding(ours, seized.generation)
        if holding.member != ours:
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
            deaths, ours = deaths + 1, Member(str(seed), ours.born + 1)
        else:
            claims.release(call_sid, holding)
    return {"turns": turns, "deaths": deaths, "doubles": doubles}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
