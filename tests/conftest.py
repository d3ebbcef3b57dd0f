"""What every test shares."""

from __future__ import annotations

import os

# No test leaves a database where it is run: those that want a file name one.
os.environ.setdefault("DATABASE_URL", "sqlite://")
