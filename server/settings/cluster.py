"""What a server of many nodes is told: where its registry is, and who this node is."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from server.settings import values

_PORTS = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_SCHEME = re.compile(r"redis(s?)(?:\+(sentinel|cluster))?")
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9_.-]+))(?::(\d{1,5}))?")
_NODE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PREFIX = re.compile(r"[A-Za-z0-9:._-]{1,64}")
_WANTED = (
    "must be redis://host:6379/0, rediss:// for TLS, redis+sentinel://host,host,host/name, "
    "redis+cluster://host,host or unix:///path"
)
_OPTIONS = {"ca", "db", "prefix", "sentinel_username", "sentinel_password"}
MIN_SECRET_CHARS = 32
MAX_DB = 1_000_000


@dataclass(frozen=True, slots=True)
class RegistryAddress:
    """Where Redis or Valkey is, and how it is talked to."""

    kind: Literal["server", "sentinel", "cluster", "unix"]
    hosts: tuple[tuple[str, int], ...] = ()
    """Sentinels, or nodes of a cluster; of a server, one."""
    path: str = ""
    """Of a Unix socket."""
    name: str = ""
    """What the sentinels call the primary."""
    db: int = 0
    tls: bool = False
    ca: str | None = None
    """A file with the certificates to trust; None for the system's."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    prefix: str = "offhook:"
    """What every key begins with; servers that share a database have one each."""


def registry_address(url: str) -> RegistryAddress:
    """Read the address of a registry.

    ``redis://[user:password@]host[:port][/db]``, ``rediss://`` the same with TLS;
    ``redis+sentinel://[user:password@]host[:port],host[:port]/NAME[/db]`` with the user and
    password of Redis itself (``?sentinel_password=`` has the sentinels'); ``redis+cluster://`` and
    one or more nodes; each with ``rediss`` for TLS; ``unix:///path``. Options:
    ``?prefix=offhook:``, ``?ca=/file`` (certificates to trust), ``?db=0``.

    Raises:
        ValueError: What is wrong with it, without a word of it that may be a secret.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError(_WANTED) from None
    if parts.fragment or (unknown := options.keys() - _OPTIONS):
        names = ", ".join(sorted(_OPTIONS))
        what = "a fragment" if parts.fragment else f"{len(unknown)} options that are unknown"
        raise ValueError(f"has {what}: its options are {names}")
    if not _PREFIX.fullmatch(prefix := options.get("prefix", "offhook:")):
        raise ValueError("has a prefix that is not up to 64 letters, digits, :, ., _ and -")
    if parts.scheme == "unix":
        if parts.netloc or not parts.path:
            raise ValueError(_WANTED)
        return RegistryAddress(
            "unix", path=unquote(parts.path), db=_db(options.get("db", "0")), prefix=prefix
        )
    scheme = _SCHEME.fullmatch(parts.scheme)
    if scheme is None or not parts.netloc:
        raise ValueError(_WANTED)
    kind = _kind(scheme[2])
    user, _, hosts = parts.netloc.rpartition("@")
    username, _, password = user.partition(":")
    name, db = _name_and_db(kind, parts.path, options)
    return RegistryAddress(
        kind,
        _hosts(hosts, kind),
        name=name,
        db=db,
        tls=bool(scheme[1]),
        ca=options.get("ca"),
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        prefix=prefix,
    )


def _kind(word: str | None) -> Literal["server", "sentinel", "cluster"]:
    match word:
        case "sentinel":
            return "sentinel"
        case "cluster":
            return "cluster"
    return "server"


def _hosts(text: str, kind: str) -> tuple[tuple[str, int], ...]:
    hosts = []
    for word in text.split(","):
        found = _HOST.fullmatch(word)
        port = int(found[3] or _PORTS[kind]) if found else 0
        if found is None or not 0 < port <= 65535:
            raise ValueError("has a host or a port that is none: host:port is wanted")
        hosts.append((found[1] or found[2], port))
    if kind == "server" and len(hosts) > 1:
        raise ValueError("has several hosts, which redis+sentinel:// and redis+cluster:// may have")
    return tuple(hosts)


def _name_and_db(kind: str, path: str, options: Mapping[str, str]) -> tuple[str, int]:
    words = [unquote(word) for word in path.split("/") if word]
    name = ""
    if kind == "sentinel":
        if not words:
            raise ValueError("must end in what the sentinels call the primary, as in /mymaster")
        name, *words = words
    if "db" in options:
        words.append(options["db"])
    if len(words) > 1 or (words and kind == "cluster"):
        raise ValueError("has more after its hosts than there is: /0 for a database")
    return name, _db(words[0]) if words else 0


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= MAX_DB):
        raise ValueError("has a database that is not a number")
    return int(text)


NODE_FIELD = "{node}"


def registry_url(url: str) -> str:
    """The address of a registry, checked."""
    registry_address(url)
    return url


def node_name(name: str) -> str:
    """What a node is called in the addresses of its calls.

    Raises:
        ValueError: It cannot be.
    """
    if not _NODE.fullmatch(name):
        raise ValueError("must be up to 63 of a-z, 0-9 and -, with no - at either end")
    return name


def stream_url(template: str) -> str:
    """Where a carrier opens media streams, with ``{node}`` for this machine's name.

    Raises:
        ValueError: It is not such an address.
    """
    parts = urlsplit(template.replace(NODE_FIELD, "node"))
    is_plain = parts.scheme == "ws" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if not (parts.scheme == "wss" or is_plain) or not parts.hostname or "{" in parts.netloc:
        raise ValueError(
            "must be wss://host, where {node} may stand for this machine's name, as in "
            "wss://{node}.calls.example.com"
        )
    _ = parts.port  # a ValueError of its own
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must end with the host: the path of a stream is not to be chosen")
    return template.rstrip("/")


def this_host() -> str:
    """The first label of this machine's name, in small letters."""
    return socket.gethostname().partition(".")[0].lower()


def cluster_secret(secret: str) -> str:
    """A secret that is long enough not to be guessed.

    Raises:
        ValueError: It is too short.
    """
    if len(secret) < MIN_SECRET_CHARS:
        raise ValueError(
            f"must have at least {MIN_SECRET_CHARS} characters, and one has {len(secret)}: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
        )
    return secret


def missing(database_url: str, *, has_account: bool, has_key: bool, has_secret: bool) -> list[str]:
    """What a server with a registry needs and has not, in words."""
    is_shared = database_url.startswith(("postgresql:", "postgresql+"))
    needs = (
        (
            "real accounts, or doubles at TWILIO_API_URL and GEMINI_URL: simulators are each "
            "node's own",
            has_account,
        ),
        ("API_KEY or API_KEYS: no key can be made for all nodes", has_key),
        ("CLUSTER_SECRET, the same on every node: it encrypts the state of calls", has_secret),
        (
            "a DATABASE_URL of PostgreSQL, the same on every node: their records are one server's",
            is_shared,
        ),
    )
    return [what for what, is_there in needs if not is_there]


def doubts(node_url: str | None, host: str) -> list[str]:
    """Why other nodes may not reach this one, in words.

    Args:
        node_url: Where they are told to.
        host: Where it listens.
    """
    if node_url is None:
        return ["NODE_URL is not set: other nodes cannot reach this one"]
    if values.is_loopback(node_url) or not values.is_loopback(f"//{_in_url(host)}"):
        return []
    return [
        f"HOST is {host}: other nodes cannot reach this one at NODE_URL; 0.0.0.0 is all addresses "
        "of this machine (the hypercorn command listens where its bind says)"
    ]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
