"""Whom TLS in C trusts: whoever Python's own does, and for the same reasons nobody else."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from codec.tls import AVAILABLE, compiled_context
from tests.support.tls_peers import Authority, Linked, authority_in

pytestmark = [
    pytest.mark.skipif(not AVAILABLE, reason="built without OpenSSL"),
    pytest.mark.sockets,
]

HOST = "a.example.org"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority_in(tmp_path_factory.mktemp("authority"))


def outcome(client: Any, context: ssl.SSLContext, name: str) -> tuple[object, ...]:
    """How a handshake ends for the client: with a version of TLS, or an error and its words."""
    linked = Linked(client, context, name)
    try:
        linked.shake_hands()
        return (linked.ours.version(),)
    except ssl.SSLError as error:
        facts = [getattr(error, name, None) for name in ("reason", "library", "verify_code")]
        return type(error), re.sub(r" \(_ssl\.c:\d+\)$", "", str(error.args[1])), *facts
    finally:
        linked.close()


def issued(
    *names: str, authority: Authority, common_name: str = "somebody", rsa_bits: int = 0
) -> ssl.SSLContext:
    """A server's context, with a certificate that says no more than this."""
    issuer = x509.load_pem_x509_certificate(authority.ca.cert_pem.bytes())
    signs: Any = load_pem_private_key(authority.ca.private_key_pem.bytes(), None)
    key: Any = (
        rsa.generate_private_key(65537, rsa_bits)
        if rsa_bits
        else ec.generate_private_key(ec.SECP256R1())
    )
    now, day = datetime.now(UTC), timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        certificate = certificate.add_extension(alternatives, critical=False)
    file = authority.file.parent / "server.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.sign(signs, hashes.SHA256()).public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # the server has no scruples
    context.load_cert_chain(file)
    return context


def below(*, authority: Authority, with_intermediate: bool) -> ssl.SSLContext:
    """A server's context, with a certificate by an authority that ours vouches for."""
    intermediate = authority.ca.create_child_ca()
    intermediate.cert_pem.write_to_path(authority.file.parent / "intermediate.pem")
    certificate = intermediate.issue_cert(HOST)
    file = authority.file.parent / "server.pem"
    chain = certificate.cert_chain_pems if with_intermediate else certificate.cert_chain_pems[:1]
    file.write_bytes(b"".join(one.bytes() for one in (certificate.private_key_pem, *chain)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def as_it_is(context: ssl.SSLContext) -> None:
    """Python's default."""


def by_names_alone(context: ssl.SSLContext) -> None:
    context.hostname_checks_common_name = False


def with_flags(context: ssl.SSLContext, flags: ssl.VerifyFlags) -> None:
    context.verify_flags = flags


def at_level(context: ssl.SSLContext, level: int) -> None:
    context.set_ciphers(f"DEFAULT:@SECLEVEL={level}")


Servers = Callable[..., ssl.SSLContext]
STRICT, PARTIAL = ssl.VerifyFlags.VERIFY_X509_STRICT, ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
USUAL = ssl.VerifyFlags.VERIFY_X509_TRUSTED_FIRST

CASES: dict[str, tuple[Servers, Callable[[ssl.SSLContext], None], bool]] = {
    "its name": (partial(issued, HOST), as_it_is, True),
    "a wildcard": (partial(issued, "*.example.org"), as_it_is, True),
    "a wildcard one label up": (partial(issued, "*.org"), as_it_is, False),
    "a wildcard for all": (partial(issued, "*"), as_it_is, False),
    "a wildcard in a label": (partial(issued, "a*.example.org"), as_it_is, False),
    "a wildcard in the middle": (partial(issued, "a.*.org"), as_it_is, False),
    "another and its own": (partial(issued, "b.example.org", HOST), as_it_is, True),
    "its name in capitals": (partial(issued, HOST.upper()), as_it_is, True),
    "its name as a subject": (partial(issued, common_name=HOST), as_it_is, True),
    "a subject beside a name": (partial(issued, "b", common_name=HOST), as_it_is, False),
    "a subject that may not be": (partial(issued, common_name=HOST), by_names_alone, False),
    "an intermediate": (partial(below, with_intermediate=True), as_it_is, True),
    "none of it": (partial(below, with_intermediate=False), as_it_is, False),
    "no key of its authority's named, strictly": (
        partial(issued, HOST),
        partial(with_flags, flags=USUAL | STRICT),
        False,
    ),
    "a short key": (partial(issued, HOST, rsa_bits=1024), partial(at_level, level=2), False),
    "a short key allowed": (partial(issued, HOST, rsa_bits=1024), partial(at_level, level=1), True),
}


@pytest.mark.parametrize("what", CASES)
def test_a_certificate_is_judged_as_python_judges_it(authority, what):
    make, ask, is_trusted = CASES[what]
    server, context = make(authority=authority), authority.python()
    context.verify_flags = USUAL  # since Python 3.13 the default is strict
    ask(context)

    theirs = outcome(context, server, HOST)
    ours = outcome(compiled_context(context, cafile=str(authority.file)), server, HOST)

    assert ours == theirs
    assert (ours == ("TLSv1.3",)) is is_trusted


@pytest.mark.parametrize("flags", [USUAL, USUAL | PARTIAL])
def test_an_authority_below_the_first_is_enough_where_python_says_so(authority, flags):
    server = below(authority=authority, with_intermediate=True)
    trusted = authority.file.parent / "intermediate.pem"
    context = ssl.create_default_context(cafile=trusted)
    context.verify_flags = flags

    theirs = outcome(context, server, HOST)
    ours = outcome(compiled_context(context, cafile=str(trusted)), server, HOST)

    assert ours == theirs
    assert (ours == ("TLSv1.3",)) is (PARTIAL in flags)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("hashed", [True, False])
def test_a_directory_of_authorities_is_read_as_python_reads_it(
    authority, monkeypatch, tmp_path: Path, hashed
):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'nowhere'}:{tmp_path}")
    shutil.copy(authority.file, tmp_path)
    if hashed:
        subprocess.run(["openssl", "rehash", tmp_path], check=True, capture_output=True)
    context, server = ssl.create_default_context(), issued(HOST, authority=authority)
    context.verify_flags = USUAL

    theirs = outcome(context, server, HOST)
    ours = outcome(compiled_context(context), server, HOST)

    assert ours == theirs
    assert (ours == ("TLSv1.3",)) is hashed
