"""What may be said of events: where they are sent, and what they are signed with."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from urllib.parse import urlsplit

PREFIX = "whsec_"
SECRET_BYTES = range(24, 65)
"""How long a secret may be (Standard Webhooks, "Signature scheme")."""
SECRET_WANTED = "must be whsec_ and 24 to 64 random bytes in base64"
MAX_URL_CHARS = 2_000
_INSIDE = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24")))
"""Addresses by which clouds serve what is secret, and which look public: Azure's, and Oracle's."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def read_secret(text: str) -> bytes:
    """Read the key of ``whsec_…``.

    Raises:
        ValueError: It is none.
    """
    wanted = SECRET_WANTED
    if not text.startswith(PREFIX):
        raise ValueError(wanted)
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(wanted) from None
    if len(key) not in SECRET_BYTES:
        raise ValueError(wanted)
    return key


def secret_text(text: str) -> str:
    """Check a secret, and leave it as it is.

    Raises:
        ValueError: It is none.
    """
    read_secret(text)
    return text


def check_url(url: str, *, allow_private: bool) -> str:
    """Check the address of a receiver, as far as that goes without asking for it.

    Args:
        url: The address.
        allow_private: Also one in our own network, and without TLS.

    Raises:
        ValueError: It cannot be one.
    """
    schemes = ("https", "http") if allow_private else ("https",)
    wanted = f"must be like {schemes[0]}://host/path"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(wanted) from None
    if parts.scheme not in schemes or not host or parts.fragment or not url.isascii():
        raise ValueError(wanted)
    if len(url) > MAX_URL_CHARS or any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError(f"must be at most {MAX_URL_CHARS} characters without spaces")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not have a password in it: events are signed")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return url
    if not allow_private and not is_public(address):
        raise ValueError("must not be in a private network (EVENTS_ALLOW_PRIVATE)")
    return url


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether this is somebody on the internet, also behind the ways to write IPv4 as IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
        if address.teredo is not None or address.is_site_local:
            return False
    if address.is_multicast or any(address in network for network in _INSIDE):
        return False
    return address.is_global
