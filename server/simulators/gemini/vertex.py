"""The simulated service at Vertex AI's address: it judges tokens, models and locations."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.frames import Close
from websockets.http11 import Request, Response
from websockets.trio.server import ServerConnection

from server.simulators.gemini.schema import ServiceClosesError, unknown_name
from server.simulators.gemini.setup import Family
from server.simulators.gemini.simulator import GeminiSimulator
from server.simulators.gemini.sockets import MemorySocket

PATH = re.compile(
    r"/{1,2}ws/google\.cloud\.aiplatform\.(v1|v1beta1)\.LlmBidiService/BidiGenerateContent"
)
SEVERAL_REGIONS = frozenset({"global", "us", "eu"})
_REGIONAL = "gemini-live-2.5-flash-native-audio"
UNAUTHENTICATED = (
    401,
    '{"error":{"code":401,"message":"Request had invalid authentication credentials.",'
    '"status":"UNAUTHENTICATED"}}',
)


class VertexSimulator(GeminiSimulator):
    """A Gemini Live service of Vertex AI's.

    Args:
        project: The only one it knows.
        location: Where it is; models that are not there are refused.
        options: As of :class:`GeminiSimulator`, but a key.

    Attributes:
        tokens: Those that are good at the moment.
    """

    def __init__(self, *, project: str, location: str = "global", **options: Any) -> None:
        super().__init__(**options)
        self.tokens: set[str] = set()
        self._place = f"projects/{project}/locations/{location}"
        self._location = location

    @asynccontextmanager
    async def connect(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[MemorySocket]:
        """Connect without a socket, while :meth:`run` runs."""
        if not self._knows(headers):
            status, body = UNAUTHENTICATED
            raise InvalidStatus(Response(status, "Unauthorized", Headers(), body.encode()))
        async with super().connect(url, headers) as socket:
            yield socket

    def check_setup(self, setup: Mapping[str, Any]) -> Family:
        """The family of the model that a set-up names by its whole path.

        Raises:
            ServiceClosesError: The set-up is refused.
        """
        resource = str(setup.get("model", ""))
        prefix = f"{self._place}/publishers/google/models/"
        name = resource.removeprefix(prefix)
        is_regional = name.startswith(_REGIONAL)
        if not resource.startswith(prefix) or is_regional is (self._location in SEVERAL_REGIONS):
            raise ServiceClosesError(
                1008,
                f"Publisher Model `{resource}` was not found or your project does not have "
                "access to it.",
            )
        for field in ("historyConfig", "labels"):
            if field in setup:
                raise unknown_name(field, "setup")
        for tool in setup.get("tools", ()):
            for function in tool.get("functionDeclarations", ()):
                if is_regional and "behavior" in function:
                    raise unknown_name("behavior", "setup.tools[0].function_declarations[0]")
        if is_regional:
            name = "gemini-2.5-flash-native-audio-latest"
        elsewhere = {key: value for key, value in setup.items() if key != "explicitVadSignal"}
        return super().check_setup({**elsewhere, "model": f"models/{name}"})

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.script.refuse_handshake is not None:
            return connection.respond(*self.script.refuse_handshake)
        if PATH.fullmatch(request.path.partition("?")[0]) is None:
            return connection.respond(404, "Not Found\n")
        if not self._knows(request.headers):
            return connection.respond(*UNAUTHENTICATED)
        return None

    def _knows(self, headers: Mapping[str, str]) -> bool:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return scheme == "Bearer" and token in self.tokens

    def _refusal(self, url: str, headers: Mapping[str, str]) -> Close | None:
        return None  # who is not known has got no connection
