"""What runs under valgrind: ``python -m benchmarks.counted KEY DIRECTION CHUNKS``."""

from __future__ import annotations

import itertools
import sys

from benchmarks.peers.codecs import CALLER, DIRECTIONS, find_peer, finish

WARM_UP_CHUNKS = 20


def main(key: str, direction_name: str, chunks: int) -> None:
    direction = next(way for way in DIRECTIONS if way.name == direction_name)
    peer = find_peer(key)
    peer.prepare()
    convert = peer.open_converter(direction)
    size = direction.input_rate_hz // 50 * (1 if direction is CALLER else 2)
    payload = bytes(i * 37 % 256 for i in range(size))
    for chunk in itertools.repeat(payload, WARM_UP_CHUNKS + chunks):
        converted = convert(chunk)
        if not isinstance(converted, bytes):
            finish(converted)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
