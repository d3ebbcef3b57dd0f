"""A server's side of TLS by Python's ``ssl``, in a test's hand, and ours linked to it."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import trustme

from codec.tls import compiled_context


@dataclass
class Authority:
    """Who vouches for servers, and the file that says so."""

    ca: trustme.CA
    file: Path

    def server(
        self,
        name: str = "localhost",
        *,
        version: ssl.TLSVersion | None = None,
        kind: trustme.KeyType = trustme.KeyType.ECDSA,
        **options: Any,
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(name, key_type=kind, **options).configure_cert(context)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context

    def python(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.file)

    def compiled(self, **options: Any) -> Any:
        return compiled_context(ssl.create_default_context(), cafile=str(self.file), **options)


def authority_in(directory: Path) -> Authority:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(directory / "ca.pem")
    return Authority(ca, directory / "ca.pem")


class Server:
    """A server's side without a socket of its own, so that a test has each byte that it sends."""

    def __init__(self, context: ssl.SSLContext, far: socket.socket) -> None:
        self.received, self.sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.received, self.sent, server_side=True)
        self.far = far
        far.setblocking(False)

    def take(self) -> None:
        """Read what has come over the socket."""
        try:
            while data := self.far.recv(65536):
                self.received.write(data)
            self.received.write_eof()
        except BlockingIOError:
            pass

    def give(self) -> None:
        """Send all that there is for the socket."""
        self.far.sendall(self.sent.read())

    def step(self) -> bool:
        """Go on with the handshake; whether it is over."""
        self.take()
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self.give()
        return True

    def sealed(self, data: bytes) -> bytes:
        """What is sent for this, as one record or as many as are needed."""
        while data:
            data = data[self.tls.write(data) :]
        return self.sent.read()

    def read(self) -> bytes:
        """What the other side has said so far; its goodbye ends it."""
        self.take()
        data = b""
        try:
            while some := self.tls.read(1 << 20):
                data += some
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        return data


def parts_of(whole: bytes, cuts: list[float]) -> list[bytes]:
    """The whole, cut at these parts of its length."""
    places = [0, *sorted(int(cut * len(whole)) for cut in cuts), len(whole)]
    return [whole[first:last] for first, last in pairwise(places)]


class Linked:
    """Our socket, and the server at its far end."""

    def __init__(self, ours: Any, context: ssl.SSLContext, name: str = "localhost") -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        self.ours = ours.wrap_socket(near, server_hostname=name, do_handshake_on_connect=False)
        self.server = Server(context, far)

    def shake_hands(self) -> None:
        """Until both sides are done, or one of ours' errors."""
        done = [False, False]
        for _ in range(20):
            if not done[0]:
                try:
                    self.ours.do_handshake()
                    done[0] = True
                except ssl.SSLWantReadError:
                    pass
            if not done[1]:
                done[1] = self.server.step()
            if all(done):
                return
        raise AssertionError("no end to the handshake")

    def received(self, size: int = 65536) -> bytes:
        """What has come to us; the end is not told from a pause."""
        data = b""
        try:
            while some := self.ours.recv(size):
                data += some
        except ssl.SSLWantReadError:
            pass
        return data

    def close(self) -> None:
        self.ours.close()
        self.server.far.close()
