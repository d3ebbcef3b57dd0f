"""What a server says of its pauses is read from its metrics, of however many processes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.point import stalls_in
from server.metrics import Metrics, merged


def test_pauses_of_all_processes_are_added_up_by_cause():
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.stalls.stalls.labels("code").inc(3)
    metrics.stalls.seconds.labels("code").inc(0.25)
    alone = generate_latest(registry).decode()

    both = merged(registry, [merged(registry, [], worker="1").decode()], worker="0").decode()

    nothing = {"count": 0.0, "seconds": 0.0}
    rest = dict.fromkeys(("blocked", "collector", "starved"), nothing)
    assert stalls_in(alone) == rest | {"code": {"count": 3.0, "seconds": 0.25}}
    assert stalls_in(both) == rest | {"code": {"count": 6.0, "seconds": 0.5}}
    assert stalls_in("# a server of another kind\n") == {}
