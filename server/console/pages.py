"""The console: its page, and what of the server it needs."""

from __future__ import annotations

from pathlib import Path

from quart import Quart

from server.console import session
from server.console.channel import add_channel
from server.console.check import add_check
from server.console.latency import add_latency
from server.console.live import Live
from server.console.session import Door, add_sessions
from server.service import Service
from server.web.keys import Keys
from server.web.static.files import BELOW, add_files

FILES = Path(__file__).parent / "static"
PATH = "/console"
OPEN_PATHS = frozenset({PATH, session.PATH})
"""The page is for everybody, as it says nothing of the server; who is let in is asked there."""


class Console:
    """What a server has of the console.

    Args:
        service: This process's.
        keys: Who may use the API.

    Attributes:
        door: Signs browsers in.
    """

    def __init__(self, service: Service, keys: Keys) -> None:
        self._service = service
        self.door = Door(service, keys)
        self._live = Live(service)

    def add_routes(self, app: Quart) -> None:
        """Add the page, sessions, and the live channel."""
        pages, below = {PATH: "console.html"}, f"{BELOW}console/"
        add_files(app, FILES, pages, below, stream_url=self._service.settings.stream_url)
        add_sessions(app, self.door)
        add_channel(app, self._service, self._live)
        add_latency(app, self._service)
        add_check(app, self._service)

    def begin(self) -> None:
        """The service runs: calls tell of themselves from now on."""
        self._live.begin()
