"""A small text model of Google's: one method of its HTTP API, on loopback, in a thread."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class TextModel:
    """What it is asked, and what it answers.

    Attributes:
        url: Its base address.
        text: What its one candidate says.
        status: Its HTTP status.
        asked: Path, headers and body of each request.
    """

    url: str = ""
    text: str = "{}"
    status: int = 200
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)


@contextmanager
def text_model() -> Generator[TextModel]:
    """Serve one on a free port."""
    model = TextModel()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            model.asked.append((self.path, headers, body))
            answer: dict[str, Any] = {
                "candidates": [{"content": {"role": "model", "parts": [{"text": model.text}]}}]
            }
            if model.status != 200:
                answer = {"error": {"code": model.status, "message": "secret words"}}
            content = json.dumps(answer).encode()
            self.send_response(model.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        model.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield model
        server.shutdown()
        thread.join()
