"""What the settings are called where a server is deployed."""

from __future__ import annotations

from server.settings.settings import Settings

SETTINGS = {name.upper() for name in Settings.model_fields}
CLUSTER = {"REGISTRY_URL", "NODE", "NODE_URL", "CLUSTER_SECRET", "LEASE_S"}
"""Of a server on many machines."""
NOT_OURS = {"TMPDIR"}
"""Python's own."""
KNOWN = SETTINGS | CLUSTER | NOT_OURS
