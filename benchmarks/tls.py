"""What does TLS to the model cost on the media plane: none, OpenSSL in C, or Python's ``ssl``?

A call's two wires over socket pairs, joined by the relay, served by a plane: each message of the
caller's or the agent's is one pass. Times are thread CPU time of the passes alone, the kernel's
share included, medians over interleaved rounds of many calls that take turns; last the sum for a
second of a call, in which both talk: 50 frames of the caller's, and 25 chunks of the agent's.
"""

from __future__ import annotations

import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from rich.table import Table
from websockets.frames import Frame, Opcode

from benchmarks.load.doubles import self_signed
from benchmarks.options import Options, machine, machine_line
from benchmarks.path import SID, agent_messages, caller_messages
from codec import tls
from codec.ear import Played
from codec.latency import Histogram, Latencies
from codec.path import MediaPath, WebSocket
from server.carrier.twilio.messages import audio_messages
from server.media.plane import Plane
from server.media.relay import Relay
from server.media.wire import Wire
from server.media.words import MediaSocket
from server.model.gemini.messages import AUDIO_MESSAGES

CALLS = 100
FRAMES_PER_S, CHUNKS_PER_S = 50, 25
MAX_BYTES = 1 << 20
FOR_EVER = 1 << 40
Wrap = Callable[[socket.socket, socket.socket], tuple[Any, Any]]
"""Makes both ends of a connection to the model of those of a socket."""


class Call:
    """One call on a plane, and the far ends of its two sockets."""

    def __init__(self, plane: Plane, wrap: Wrap) -> None:
        self._plane = plane
        near_phone, self.phone = _pair()
        near_model, far_model = _pair()
        ours, self.model = wrap(near_model, far_model)
        phone, model = self._wire(near_phone, False), self._wire(ours, True)
        path = MediaPath()
        relay = Relay(
            path,
            caller_latencies=(Latencies(), Histogram([1.0])),
            agent_latencies=(Latencies(), Histogram([1.0])),
        )
        phone.listen(lambda messages, ended: None)
        model.listen(lambda messages, ended: None)
        relay.join_phone(phone)
        relay.join_model(model, AUDIO_MESSAGES)
        path.start(SID, audio_messages(SID))
        path.caller_passes = True
        path.played = Played()
        path.played.open, path.played.play_end = True, float("inf")
        path.follow(limit_bytes=FOR_EVER)
        self._wires = phone, model

    def _wire(self, sock: MediaSocket, is_client: bool) -> Wire:
        websocket = WebSocket(is_client=is_client, max_message_bytes=MAX_BYTES)
        return self._plane.new_wire(sock, websocket)

    def close(self) -> None:
        for each in (*self._wires, self.phone, self.model):
            each.close()


def passes_us(plane: Plane, ends: list[tuple[Any, Any]], messages: list[bytes]) -> float:
    """CPU time of the plane for each message that comes in at one end, in microseconds.

    The calls take turns, so that little of each is left in the processor's caches.
    """
    took_ns = 0
    for message in messages:
        for source, sink in ends:
            source.send(message)
            began = time.thread_time_ns()
            plane.serve_now()
            took_ns += time.thread_time_ns() - began
            assert sink.recv(MAX_BYTES)  # or it raises: nothing has come out
    return took_ns / len(messages) / len(ends) / 1000


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for each in pair:
        each.setblocking(False)
    return pair


def _shaken(ours: Any, theirs: ssl.SSLSocket) -> tuple[Any, ssl.SSLSocket]:
    """Both ends of a connection, their handshake done, and nothing unread."""
    left = [ours.do_handshake, theirs.do_handshake]
    while left:
        step = left.pop(0)
        try:
            step()
        except ssl.SSLWantReadError:
            left.append(step)
    with suppress(ssl.SSLWantReadError):
        ours.recv(MAX_BYTES)  # the sessions that are offered
    return ours, theirs


def run(options: Options) -> dict[str, object]:
    """Measure, print a table, return the medians in microseconds a message."""
    return trio.run(_measure, options)


async def _measure(options: Options) -> dict[str, object]:
    chunks, rounds = (20, 5) if options.quick else (50, 15)
    caller = [Frame(Opcode.TEXT, each).serialize(mask=True) for each in caller_messages(chunks)]
    agent = [Frame(Opcode.TEXT, each).serialize(mask=False) for each in agent_messages(chunks)]
    with tempfile.TemporaryDirectory() as directory:
        server, trusted = self_signed(Path(directory))
        python = ssl.create_default_context(cafile=trusted)
        compiled = tls.compiled_context(python, cafile=str(trusted))

    def by(context: Any) -> Wrap:
        how: dict[str, Any] = {"do_handshake_on_connect": False}
        return lambda near, far: _shaken(
            context.wrap_socket(near, server_hostname="localhost", **how),
            server.wrap_socket(far, server_side=True, **how),
        )

    ways: dict[str, Wrap] = {"no TLS": lambda near, far: (near, far), "Python's": by(python)}
    if compiled is not None:
        ways["OpenSSL in C"] = by(compiled)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    plane = Plane()
    for _ in range(rounds):
        for name, wrap in ways.items():
            calls = [Call(plane, wrap) for _ in range(CALLS)]
            there = [(call.phone, call.model) for call in calls]
            back = [(call.model, call.phone) for call in calls]
            times[name][0].append(passes_us(plane, there, caller))
            times[name][1].append(passes_us(plane, back, agent))
            for call in calls:
                call.close()

    table = Table(title="Microseconds a pass of the plane, and milliseconds a call-second")
    for heading in ("TLS to the model", "caller", "agent", "ms a call-second", "more than none"):
        table.add_column(heading, justify="left" if heading.startswith("TLS") else "right")
    figures: dict[str, dict[str, float]] = {}
    for name, (caller_us, agent_us) in times.items():
        medians = statistics.median(caller_us), statistics.median(agent_us)
        second_ms = (medians[0] * FRAMES_PER_S + medians[1] * CHUNKS_PER_S) / 1000
        more_ms = second_ms - figures["no TLS"]["ms_per_call_s"] if figures else 0.0
        figures[name] = {
            "caller_us": round(medians[0], 2),
            "agent_us": round(medians[1], 2),
            "ms_per_call_s": round(second_ms, 3),
            "more_ms_per_call_s": round(more_ms, 3),
        }
        table.add_row(name, *(f"{value:.2f}" for value in figures[name].values()))
    options.console.print(table)
    facts = machine(["Cython", "trio"]) | {"openssl": ssl.OPENSSL_VERSION}
    options.console.print(f"{machine_line(facts)}; {rounds} rounds of {chunks} each, {CALLS} calls")
    return {
        "calls": CALLS,
        "chunks": chunks,
        "rounds": rounds,
        "tls": figures,
        "openssl": ssl.OPENSSL_VERSION,
    }
