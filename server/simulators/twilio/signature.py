"""How Twilio signs what it sends ("Webhooks Security")."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping, Sequence


def sign(url: str, auth_token: str, fields: Mapping[str, Sequence[str]] | None = None) -> str:
    """Make the ``X-Twilio-Signature`` of a request.

    Args:
        url: As it was configured; a fragment is not sent and not signed.
        auth_token: The account's secret.
        fields: The form of a POST, every value of every name; None for a GET or an upgrade.
    """
    text = url.partition("#")[0] + "".join(
        name + value
        for name, values in sorted((fields or {}).items())
        for value in sorted(set(values))
    )
    digest = hmac.digest(auth_token.encode(), text.encode(), "sha1")
    return base64.b64encode(digest).decode()
