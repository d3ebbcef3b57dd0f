"""TLS to the model in C: a frame is decrypted, taken apart and sent on within one step of the pump.

Python's ``ssl`` has no way to lend its connections to C, so these are OpenSSL's own, made to trust
and to refuse as Python's default context does: the same authorities, from the same file and
directory (``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` included), the same checks of name, chain and
strength, the same errors. A session that a peer offers is kept for its next connection, which
then needs no certificate and a third of the CPU; once an hour one is looked at again.

The extension is there where OpenSSL's headers were when the package was built, on Linux; elsewhere
:data:`AVAILABLE` is False, and Python's TLS serves.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codec._tls import ClientContext as ClientContext

_compiled: Any
try:
    import codec._tls as _compiled
except ImportError:
    _compiled = None

AVAILABLE = _compiled is not None


def compiled_context(context: ssl.SSLContext, **trust: Any) -> ClientContext | None:
    """A context in C that verifies as this one does; None where there is none.

    Args:
        context: Python's. What cannot be read from it is whom it trusts.
        trust: ``cafile`` and ``capath``, for other authorities than the system's, which
            ``ssl.create_default_context`` trusts; and another clock.

    None, too, for what is left to Python: where a protocol's keys are to be written down
    (``SSLKEYLOGFILE``), certificates can be revoked, or options are not those of a new context. A
    client's own certificate cannot be seen, and is not carried over.
    """
    if _compiled is None or context.keylog_filename is not None:
        return None
    if context.verify_mode is not ssl.CERT_REQUIRED or not context.check_hostname:
        return None  # it would refuse what that allows
    if context.options != ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).options:
        return None
    if context.cert_store_stats()["crl"] or context.post_handshake_auth:
        return None
    try:
        made: ClientContext = _compiled.ClientContext(
            **(trust or _system_trust()),
            ciphers=":".join(each["name"] for each in context.get_ciphers()),
            security_level=context.security_level,
            minimum_version=max(0, context.minimum_version),
            maximum_version=max(0, context.maximum_version),
            verify_flags=int(context.verify_flags),
            checks_common_name=context.hostname_checks_common_name,
        )
    except ValueError:  # this OpenSSL, which need not be Python's, has no such thing
        return None
    return made


def _system_trust() -> dict[str, str | None]:
    """Where OpenSSL looks when it is told to look where it does by default, as Python's has it."""
    paths = ssl.get_default_verify_paths()
    return {
        "cafile": os.environ.get(paths.openssl_cafile_env, paths.openssl_cafile),
        "capath": os.environ.get(paths.openssl_capath_env, paths.openssl_capath),
    }


__all__ = ["AVAILABLE", "compiled_context"]
