"""By which certificates the simulator knows the server that it calls back."""

from __future__ import annotations

import ssl
from functools import cache

import httpx2


@cache
def client_context(*, is_here: bool) -> ssl.SSLContext:
    """What a server's certificate is verified by.

    A server on this machine need not have one that anybody vouches for: it is our own. To read
    all the certificates there are takes as long as a call.
    """
    if not is_here:
        return httpx2.create_ssl_context(trust_env=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
