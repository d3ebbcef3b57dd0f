"""Takes what the server tells of calls, and keeps the orders: one line of JSON for each.

It checks the signature as https://www.standardwebhooks.com says, which has libraries for most
languages. Run it beside the server: ``python receiver.py``.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dotenv import dotenv_values

SETTINGS = {**dotenv_values(Path(__file__).with_name(".env")), **os.environ}
KEY = base64.b64decode((SETTINGS.get("EVENTS_SECRET") or "").removeprefix("whsec_"))
if len(KEY) < 24:
    raise SystemExit("EVENTS_SECRET is not set, or too short: anybody could sign with it")
PORT = int(SETTINGS.get("RECEIVER_PORT") or 9000)
ORDERS = Path(__file__).with_name("orders.jsonl")
MAX_BYTES = 1024 * 1024
MAX_AGE_S = 300.0
SEEN: set[str] = set()  # in a database of yours: an event may come twice, within a day


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 as soon as an event is kept; what is answered otherwise is sent again."""

    timeout = 10.0

    def do_POST(self) -> None:
        """Take one event."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,7}", length) or int(length) > MAX_BYTES:
            return self.answer(413)
        body = self.rfile.read(int(length))
        if not is_signed(self.headers, body):
            return self.answer(401)
        event_id = self.headers["webhook-id"]
        if event_id not in SEEN:
            take(json.loads(body))
            SEEN.add(event_id)  # when it is done: else it would be lost if this fails
        return self.answer(204)

    def answer(self, status: int) -> None:
        """Send a status, and nothing else."""
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def is_signed(headers, body: bytes) -> bool:
    """Whether an event was signed with our secret, lately."""
    event_id, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not re.fullmatch("[0-9]{1,12}", at) or abs(time.time() - int(at)) > MAX_AGE_S:
        return False
    digest = hmac.new(KEY, f"{event_id}.{at}.".encode() + body, hashlib.sha256).digest()
    wanted = "v1," + base64.b64encode(digest).decode()
    given = headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(wanted.encode(), one.encode()) for one in given)


def take(event) -> None:
    """Keep the order of a call that is over, if it has brought one."""
    call = event["data"]["call"]
    if event["type"] != "call.ended" or call["agent"] != "order-desk" or not call["outcome"]:
        return
    order = {"call": call["call_sid"], "complete": call["outcome"]["complete"]}
    line = json.dumps(order | call["outcome"]["values"])
    with ORDERS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", PORT), Receiver) as server:
        print(f"waiting for orders on port {server.server_address[1]}", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
