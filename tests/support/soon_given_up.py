"""The ``hypercorn`` command, with keepers of which none replaces a worker that died soon twice."""

from __future__ import annotations

import sys

from hypercorn.__main__ import main

from server import supervision

supervision.MAX_SOON_DEATHS = 1  # in each process that is spawned, too

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
