"""``python -m server --workers 2`` whose processes share a secret that the test knows, too."""

from __future__ import annotations

import sys

from server.cluster.directory.meeting import share
from server.commands.line import main

SECRET = b"known to the test"

if __name__ == "__main__":
    share(SECRET)
    sys.exit(main(["--workers", "2"]))
