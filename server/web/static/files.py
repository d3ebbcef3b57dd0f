"""Gives out the files beside this one: nothing in them is secret, and nothing comes from elsewhere.

They are read once, so that no request can name a file that was not there. A page says nothing of
the server that gives it out; what it shows it asks the API for, with the reader's own key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quart import Quart, Response, redirect, request
from quart_schema import hide

from server.headers import Headers, listed
from server.settings.cluster import NODE_FIELD

HERE = Path(__file__).parent
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGES = {"/docs": "docs.html", "/phone": "phone.html"}
"""A page's path, and its file."""
FRONT = "/"
PATHS = frozenset({FRONT, *PAGES})
BELOW = "/static/"
"""What these paths and those below this one answer is for everybody."""
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_][A-Za-z0-9._-]*(:\d+)?")


def stream_source(stream_url: str | None) -> str:
    """Where else pages may open their calls' streams, as a policy names it; empty if nowhere.

    A call may be any machine's, whichever has given out the page: where ``{node}`` stands for the
    machine's name, what is below the rest of the host is allowed.
    """
    at = urlsplit(stream_url or "")
    _, node, rest = at.netloc.rpartition(NODE_FIELD)
    host = f"*.{rest.partition('.')[2]}" if node else at.netloc
    return f"{at.scheme}://{host}" if _HOST.fullmatch(host) else ""


def page_headers(stream_url: str | None) -> dict[str, str]:
    """What every file is given out with.

    Args:
        stream_url: Where media streams go, with ``{node}`` for a machine's name; None for the
            public address.
    """
    connect = f"connect-src 'self' {stream_source(stream_url)}".strip()
    policy = (
        "default-src 'none'",
        *(f"{what}-src 'self'" for what in ("script", "style", "img", "media")),
        connect,
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }


class StaticFile:
    """A file as it is given out, with a tag that changes when it does."""

    def __init__(self, path: Path, headers: dict[str, str]) -> None:
        self._headers = headers
        self.data = path.read_bytes()
        self.tag = sha256(self.data).hexdigest()[:32]
        self.kind = f"{TYPES[path.suffix]}; charset=utf-8"

    def is_known(self, headers: Headers) -> bool:
        """Whether who asks has it already (RFC 9110 section 13.1.2).

        This takes time in proportion to what was sent. werkzeug's ``request.if_none_match`` took
        the square of it in some of its versions: a third of a second for 8 KB of spaces.

        Args:
            headers: The request's.
        """
        tags = listed(headers, "If-None-Match")
        return "*" in tags or any(tag.removeprefix("W/") == f'"{self.tag}"' for tag in tags)

    def answer(self) -> Response:
        """The file, or that it is still the same."""
        if self.is_known(request.headers):
            response = Response(b"", 304, self._headers)
        else:
            response = Response(self.data, 200, self._headers, content_type=self.kind)
        response.set_etag(self.tag)
        return response


def add_files(
    app: Quart,
    folder: Path,
    pages: Mapping[str, str],
    below: str,
    *,
    stream_url: str | None = None,
) -> None:
    """Add pages and what they are made of.

    Args:
        app: Gets the routes.
        folder: Where the files are; those in folders of it are not given out.
        pages: The path of each page, and its file.
        below: Below which path the other files are; it is to be :data:`BELOW` or below that.
        stream_url: Where media streams go, if not to the public address.
    """
    headers = page_headers(stream_url)
    shown = [path for path in sorted(folder.iterdir()) if path.suffix in TYPES]
    files = {path.name: StaticFile(path, headers) for path in shown}

    def add_page(path: str, name: str) -> None:
        async def page() -> Any:
            return files[name].answer()

        app.add_url_rule(path, f"page {name}", hide(page))

    for path, name in pages.items():
        add_page(path, name)

    @hide
    async def static_file(name: str) -> Any:
        file = files.get(name)
        if file is None or name.endswith(".html"):
            return {"error": "not-found", "message": "there is no such file"}, 404
        return file.answer()

    app.add_url_rule(f"{below}<name>", f"files {below}", static_file)


def add_pages(app: Quart, stream_url: str | None = None) -> None:
    """Add the pages of the API, what they are made of, and the way to them."""
    add_files(app, HERE, PAGES, BELOW, stream_url=stream_url)

    @app.get(FRONT)
    @hide
    async def front() -> Any:
        return redirect("docs")  # below a proxy's prefix, too
