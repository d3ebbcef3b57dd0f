"""TLS in C against Python's own: who is refused, what comes through, and how it ends."""

from __future__ import annotations

import fcntl
import re
import select
import shutil
import socket
import ssl
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codec.tls import AVAILABLE, compiled_context
from tests.support.inputs import inputs
from tests.support.tls_peers import Authority, Linked, authority_in, parts_of

pytestmark = [
    pytest.mark.skipif(not AVAILABLE, reason="built without OpenSSL"),
    pytest.mark.sockets,
]

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority_in(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def link() -> Iterator[Callable[..., Linked]]:
    made: list[Linked] = []

    def shaken(ours: Any, context: ssl.SSLContext, name: str = "localhost") -> Linked:
        made.append(Linked(ours, context, name))
        made[-1].shake_hands()
        return made[-1]

    yield shaken
    for each in made:
        each.close()


# -- who is there ---------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("kind", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
def test_what_is_said_is_heard_both_ways(authority, link, version, kind):
    linked = link(authority.compiled(), authority.server(version=version, kind=kind))

    linked.ours.send(b"hello")
    linked.server.far.sendall(linked.server.sealed(b"good day"))

    assert linked.ours.version() == linked.server.tls.version()
    assert linked.server.read() == b"hello"
    assert linked.ours.recv(100) == b"good day"


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "bücher.example"])
def test_addresses_and_names_in_other_letters_are_verified(authority, link, name):
    linked = link(authority.compiled(), authority.server(name), name)

    assert linked.ours.version() == "TLSv1.3"


def _another(authority: Authority, tmp_path: Path) -> ssl.SSLContext:
    return authority_in(tmp_path).server()


def _too_old(authority: Authority, tmp_path: Path) -> ssl.SSLContext:
    context = authority.server()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def _no_cipher(authority: Authority, tmp_path: Path) -> ssl.SSLContext:
    context = authority.server(version=TLS_1_2)
    context.set_ciphers("PSK")
    return context


REFUSED: dict[str, tuple[Callable[[Authority, Path], ssl.SSLContext], str]] = {
    "another host's": (lambda each, _: each.server("elsewhere.example"), "localhost"),
    "another address's": (lambda each, _: each.server("127.0.0.2"), "127.0.0.1"),
    "a name where an address is wanted": (lambda each, _: each.server(), "127.0.0.1"),
    "an unknown authority's": (_another, "localhost"),
    "out of date": (lambda each, _: each.server(not_after=LONG_AGO), "localhost"),
    "too old a protocol": (_too_old, "localhost"),
    "no cipher in common": (_no_cipher, "localhost"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_who_python_refuses_is_refused_in_the_same_words(authority, tmp_path, what):
    make, name = REFUSED[what]
    context = make(authority, tmp_path)

    theirs = _refusal(Linked(authority.python(), context, name))
    ours = _refusal(Linked(authority.compiled(), context, name))

    assert ours == theirs


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x03", b"", b"\x15\x03\x03\x00\x02\x02\x28"],
)
def test_who_does_not_speak_tls_is_refused_in_the_same_words(authority, answer):
    said = []
    for client in (authority.python(), authority.compiled()):
        linked = Linked(client, authority.server())
        with pytest.raises(ssl.SSLWantReadError):
            linked.ours.do_handshake()
        linked.server.far.recv(65536)
        linked.server.far.sendall(answer)
        linked.server.far.shutdown(socket.SHUT_WR)
        said.append(_refusal(linked, serves=False))

    assert said[0] == said[1]


def _refusal(linked: Linked, *, serves: bool = True) -> tuple[object, ...]:
    """The kind and the words of the error, but for the line of Python's own source."""
    error: Exception = ssl.SSLWantReadError()
    while isinstance(error, ssl.SSLWantReadError):
        with suppress(ssl.SSLError):
            if serves:
                linked.server.step()
        with pytest.raises(ssl.SSLError) as raised:
            linked.ours.do_handshake()
        error = raised.value
    linked.close()
    words = re.sub(r" \(_ssl\.c:\d+\)$", "", str(error.args[1]))
    facts = [getattr(error, name, None) for name in ("reason", "library", "verify_code")]
    return type(error), error.errno, words, *facts


def _any_name(context: ssl.SSLContext, _: Path) -> None:
    context.check_hostname = False


def _with_options(context: ssl.SSLContext, _: Path) -> None:
    context.options |= ssl.OP_NO_TICKET


def _with_authentication(context: ssl.SSLContext, _: Path) -> None:
    context.post_handshake_auth = True


def _with_revocations(context: ssl.SSLContext, directory: Path) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    revoked = x509.CertificateRevocationListBuilder(name, now, now).sign(key, hashes.SHA256())
    (directory / "revoked.pem").write_bytes(revoked.public_bytes(Encoding.PEM))
    context.load_verify_locations(directory / "revoked.pem")


@pytest.mark.parametrize("ask", [_any_name, _with_options, _with_authentication, _with_revocations])
def test_a_context_that_asks_for_something_else_is_left_to_python(authority, tmp_path, ask):
    context = authority.python()
    ask(context, tmp_path)

    assert compiled_context(authority.python()) is not None
    assert compiled_context(context) is None


def test_the_systems_own_authorities_are_those_of_python(authority, link, monkeypatch, tmp_path):
    for where in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(where, str(tmp_path))
    stranger = compiled_context(ssl.create_default_context())
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    trusting = compiled_context(ssl.create_default_context())

    linked = link(trusting, authority.server())

    assert linked.ours.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        link(stranger, authority.server())


# -- what comes through ---------------------------------------------------------------------


@VERSIONS
@settings(
    max_examples=inputs(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    records=st.lists(st.integers(1, 20_000), min_size=1, max_size=6),
    cuts=st.lists(st.floats(0, 1), max_size=8),
    size=st.sampled_from([1, 100, 4096, 16384, 65536]),
)
def test_whatever_a_record_is_cut_into_comes_out_whole(
    authority, link, version, records, cuts, size
):
    linked = link(authority.compiled(), authority.server(version=version))
    said = [bytes([number + 1]) * length for number, length in enumerate(records)]
    sealed = b"".join(linked.server.sealed(each) for each in said)

    heard = b""
    for part in parts_of(sealed, cuts):
        linked.server.far.sendall(part)
        heard += linked.received(size)
    linked.close()

    assert heard == b"".join(said)


def test_a_record_comes_through_byte_by_byte(authority, link):
    linked = link(authority.compiled(), authority.server())
    sealed = linked.server.sealed(b"a frame") + linked.server.sealed(b" and another")

    heard = b""
    for number in range(len(sealed)):
        linked.server.far.sendall(sealed[number : number + 1])
        heard += linked.received()

    assert heard == b"a frame and another"


@VERSIONS
def test_a_reader_that_is_slow_loses_nothing(authority, link, version):
    linked = link(authority.compiled(), authority.server(version=version))
    said, heard = bytes(range(256)) * 8000, b""
    unsent, was_full = said, 0

    while len(heard) < len(said):
        try:
            unsent = unsent[linked.ours.send(unsent) :] if unsent else b""
        except ssl.SSLWantWriteError:
            was_full += 1
            unsent = bytes(bytearray(unsent))  # somewhere else by now
        if was_full or not unsent:
            heard += linked.server.read()

    assert heard == said
    assert was_full > 0


def test_what_one_read_leaves_is_told_of(authority, link):
    linked = link(authority.compiled(), authority.server())
    linked.server.far.sendall(linked.server.sealed(b"0123456789"))

    first, pending = linked.ours.recv(4), linked.ours.pending()

    assert (first, pending) == (b"0123", True)
    assert linked.ours.recv(100) == b"456789"
    assert not linked.ours.pending()


# -- how it ends ----------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("said", [True, False])
def test_the_end_comes_behind_all_that_was_said(authority, link, version, said):
    linked = link(authority.compiled(), authority.server(version=version))
    linked.server.far.sendall(linked.server.sealed(b"the last word"))
    if said:
        with pytest.raises(ssl.SSLWantReadError):
            linked.server.tls.unwrap()
        linked.server.give()
    else:
        linked.server.far.shutdown(socket.SHUT_WR)

    first, pending = linked.ours.recv(65536), linked.ours.pending()

    # A goodbye in the same read shows itself in no later event of the socket's.
    assert first == b"the last word"
    assert pending or not said
    assert linked.ours.recv(65536) == b""
    assert linked.ours.recv(65536) == b""


@VERSIONS
def test_who_has_said_goodbye_can_still_be_told(authority, link, version):
    linked = link(authority.compiled(), authority.server(version=version))
    with pytest.raises(ssl.SSLWantReadError):
        linked.server.tls.unwrap()
    linked.server.give()
    heard = linked.ours.recv(100)

    sent = linked.ours.send(b"one more word")
    linked.server.take()

    assert (heard, sent) == (b"", 13)
    assert linked.ours.recv(100) == b""
    assert linked.server.tls.read(100) == b"one more word"


def test_who_has_said_goodbye_and_gone_is_an_os_error(authority, link):
    linked = link(authority.compiled(), authority.server())
    with pytest.raises(ssl.SSLWantReadError):
        linked.server.tls.unwrap()
    linked.server.give()
    linked.server.far.close()
    assert linked.ours.recv(100) == b""

    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            linked.ours.send(b"anybody?")


def test_half_a_record_is_no_word(authority, link):
    linked = link(authority.compiled(), authority.server())
    linked.server.far.sendall(linked.server.sealed(b"the last word")[:-1])
    linked.server.far.close()

    assert linked.ours.recv(65536) == b""


@VERSIONS
def test_a_record_that_was_tampered_with_is_an_error_and_nothing_comes_after_it(
    authority, link, version
):
    linked = link(authority.compiled(), authority.server(version=version))
    other = link(authority.compiled(), authority.server(version=version))
    sealed = bytearray(linked.server.sealed(b"a word"))
    sealed[-1] ^= 1
    linked.server.far.sendall(bytes(sealed) + linked.server.sealed(b"another"))
    other.server.far.sendall(other.server.sealed(b"undisturbed"))

    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        linked.ours.recv(65536)

    assert other.ours.recv(65536) == b"undisturbed"
    for attempt in (lambda: linked.ours.recv(100), lambda: linked.ours.send(b"x")):
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            attempt()


@settings(max_examples=inputs(100))
@given(
    version=st.sampled_from([TLS_1_2, TLS_1_3]),
    place=st.floats(0, 1),
    garbage=st.binary(min_size=1, max_size=40),
    replaces=st.booleans(),
    shakes_hands=st.booleans(),
)
def test_whatever_is_put_into_the_line_is_an_error_and_no_more(
    authority, version, place, garbage, replaces, shakes_hands
):
    linked = Linked(authority.compiled(), authority.server(version=version))
    if shakes_hands:
        linked.shake_hands()
        linked.received()
        said = linked.server.sealed(b"a word") + linked.server.sealed(b"another")
    else:
        with pytest.raises(ssl.SSLWantReadError):
            linked.ours.do_handshake()
        linked.server.take()
        with pytest.raises(ssl.SSLWantReadError):
            linked.server.tls.do_handshake()
        said = linked.server.sent.read()
    at = int(place * len(said))

    linked.server.far.sendall(said[:at] + garbage + said[at + len(garbage) * replaces :])
    heard = b""
    with suppress(ssl.SSLError):  # SSLWantReadError is one: there may be more to come
        if not shakes_hands:
            linked.ours.do_handshake()
        while some := linked.ours.recv(65536):
            heard += some
    linked.close()

    assert b"a wordanother".startswith(heard)


def test_closing_says_goodbye(authority, link):
    linked = link(authority.compiled(), authority.server())
    linked.received()  # what is not read would be an end without a goodbye
    linked.ours.send(b"bye")

    linked.ours.close()
    linked.ours.close()

    assert linked.server.read() == b"bye"
    assert linked.server.tls.read(1) == b""  # SSLEOFError without a goodbye
    assert linked.ours.fileno() == -1
    with pytest.raises(OSError, match="descriptor"):
        linked.ours.recv(1)


def test_who_has_gone_is_an_os_error(authority, link):
    linked = link(authority.compiled(), authority.server())
    linked.server.far.close()

    with pytest.raises(BrokenPipeError):
        linked.ours.send(b"anybody?")


# -- again ----------------------------------------------------------------------------------


@VERSIONS
def test_the_next_connection_resumes_the_session_of_the_last(authority, link, version):
    ours, theirs = authority.compiled(), authority.server(version=version)
    for number in range(4):
        linked = link(ours, theirs)
        linked.server.far.sendall(linked.server.sealed(b"hello"))
        linked.received()
        linked.close()

        assert linked.server.tls.session_reused is (number > 0)
        assert ours.resumable == 1


@VERSIONS
def test_a_certificate_is_looked_at_again_though_sessions_are_resumed(authority, link, version):
    times_s = [5.0]
    ours, theirs = authority.compiled(clock=lambda: times_s[-1]), authority.server(version=version)

    reused = []
    for now_s in (5.0, 1800.0, 3500.0, 3700.0, 3800.0):
        times_s.append(now_s)
        linked = link(ours, theirs)
        linked.server.far.sendall(linked.server.sealed(b"hello"))
        linked.received()
        reused.append(linked.ours.session_reused)
        linked.close()

    # A session that began with another is no younger than that.
    assert reused == [False, True, True, False, True]


def test_a_session_that_is_too_old_hides_no_younger_one(authority, link):
    times_s = [0.0]
    ours, theirs = authority.compiled(clock=lambda: times_s[-1]), authority.server(version=TLS_1_3)
    link(ours, theirs).received()
    times_s.append(3500.0)
    resumed = link(ours, theirs)
    link(ours, theirs).received()  # nobody has offered a session yet: its certificate is seen
    resumed.received()  # offered last, and resting on the first certificate
    assert (resumed.ours.session_reused, ours.resumable) == (True, 2)

    times_s.append(3700.0)

    assert link(ours, theirs).ours.session_reused


@VERSIONS
@pytest.mark.parametrize("dropped", [False, True])
def test_calls_that_lose_their_lines_at_once_all_resume(authority, link, version, dropped):
    ours, theirs = authority.compiled(), authority.server(version=version)
    reused = []
    for _ in range(3):
        calls = [link(ours, theirs) for _ in range(32)]
        reused.append(sum(call.ours.session_reused for call in calls))
        for call in calls:
            call.received()
            if dropped:
                call.server.far.close()
                assert call.ours.recv(10) == b""
        for call in calls:
            call.close()

    assert reused[1:] == [32, 32]


@VERSIONS
def test_a_line_that_was_lost_leaves_its_session(authority, link, version):
    ours, theirs = authority.compiled(), authority.server(version=version)
    lost = link(ours, theirs)
    lost.received()
    lost.server.far.close()
    assert lost.ours.recv(10) == b""
    lost.close()

    assert link(ours, theirs).ours.session_reused


@VERSIONS
def test_a_server_that_has_forgotten_is_verified_again(authority, link, version):
    ours = authority.compiled()
    for _ in range(2):
        linked = link(ours, authority.server(version=version))
        linked.received()
        linked.close()

        assert not linked.server.tls.session_reused


def test_a_session_is_of_its_host_alone(authority, link):
    ours, theirs = authority.compiled(), authority.server()
    linked = link(ours, theirs)
    linked.received()
    linked.close()

    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        link(ours, theirs, "elsewhere.example")


def test_sessions_that_nobody_takes_are_bounded(authority, link):
    ours, theirs = authority.compiled(), authority.server()
    open_ones = [link(ours, theirs) for _ in range(40)]
    for linked in open_ones:
        linked.received()

    assert ours.resumable == 32


# -- without memory -------------------------------------------------------------------------


def test_what_is_said_is_heard_though_there_is_no_memory_to_keep_the_session(authority, link):
    testing = pytest.importorskip("_testcapi")
    ours, theirs = authority.compiled(), authority.server(version=TLS_1_3)
    heard, kept = [], []

    for lacks in (1, 2, 3, 4):  # the first is for what is heard
        linked = link(ours, theirs)
        linked.server.far.sendall(linked.server.sealed(b"hello"))
        receive, before = linked.ours.recv, ours.resumable
        testing.set_nomemory(lacks, lacks + 1)
        try:
            data = receive(5)
        finally:
            testing.remove_mem_hooks()
        heard.append(data)
        kept.append(ours.resumable > before)

    assert heard == [b"hello"] * 4
    assert not all(kept)


# -- what Python's servers cannot do ----------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("order", ["k", "K"])
def test_keys_may_change_in_the_middle(authority, tmp_path, order):
    """``k`` changes the server's, ``K`` asks us for ours as well."""
    authority.ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "server.pem"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", tmp_path / "server.pem"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        while b"ACCEPT" not in server.stdout.readline():
            assert server.poll() is None
        near = socket.create_connection(("127.0.0.1", port))
        near.setblocking(False)
        ours = authority.compiled().wrap_socket(
            near, server_hostname="localhost", do_handshake_on_connect=False
        )
        _when_ready(ours, ours.do_handshake)
        for word in (b"before", b"after", b"at last"):
            ours.send(word + b"\n")
            while word not in server.stdout.readline():
                assert server.poll() is None
            for line in (order.encode(), word):
                server.stdin.write(line + b"\n")
                server.stdin.flush()
                _until_read(server.stdin)  # an order is one only at a read's beginning
            assert _when_ready(ours, lambda: ours.recv(100)) == word + b"\n"
        ours.close()
    finally:
        server.kill()
        server.communicate()


def _until_read(pipe: IO[bytes]) -> None:
    while int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder):
        select.select([], [], [], 0.01)


def _when_ready(ours: Any, step: Callable[[], Any]) -> Any:
    """The step's answer, when the socket has had what it needs for that."""
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            assert select.select([ours], [], [], 60)[0]
