"""The server, with little patience for its database while it stops.

``python -m tests.support.short_flush`` is ``python -m server`` that gives a database which does not
come back one second instead of ten.
"""

from __future__ import annotations

import sys

from server.commands.line import main
from server.records import store

if __name__ == "__main__":
    store.FLUSH_TIMEOUT_S = 1.0
    sys.exit(main())
