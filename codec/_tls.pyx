"""TLS to whoever is connected to, by OpenSSL itself; ``tls.py`` says when and why.

Nothing here waits: a socket that is not ready is told of as Python's ``ssl`` does, by its errors,
or to the pump by a number. One thread at a time, as for any socket.
"""

import os
import socket as sockets
import ssl
import time

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from codec._pump cimport READ_LATER, READ_NOTHING, Descriptor


cdef extern from "tls.h" nogil:
    ctypedef struct SSL_METHOD
    ctypedef struct SSL_CTX
    ctypedef struct SSL
    ctypedef struct SSL_SESSION
    ctypedef struct X509_STORE
    ctypedef struct X509_VERIFY_PARAM
    ctypedef int (*VerifyCallback)(int, void*) noexcept nogil
    ctypedef int (*SessionCallback)(SSL*, SSL_SESSION*) noexcept nogil

    enum:
        SSL_ERROR_NONE
        SSL_ERROR_SSL
        SSL_ERROR_WANT_READ
        SSL_ERROR_WANT_WRITE
        SSL_ERROR_SYSCALL
        SSL_ERROR_ZERO_RETURN
        SSL_MODE_ENABLE_PARTIAL_WRITE
        SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
        SSL_MODE_RELEASE_BUFFERS
        SSL_MODE_AUTO_RETRY
        SSL_OP_IGNORE_UNEXPECTED_EOF
        SSL_OP_NO_COMPRESSION
        SSL_OP_NO_RENEGOTIATION
        SSL_R_CERTIFICATE_VERIFY_FAILED
        SSL_RECEIVED_SHUTDOWN
        SSL_SENT_SHUTDOWN
        SSL_SESS_CACHE_CLIENT
        SSL_SESS_CACHE_NO_INTERNAL
        SSL_VERIFY_PEER
        TLS1_2_VERSION
        TLS1_3_VERSION
        X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
        X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS
        X509_V_ERR_HOSTNAME_MISMATCH
        X509_V_ERR_IP_ADDRESS_MISMATCH
        X509_V_OK

    const SSL_METHOD* TLS_client_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD*)
    void SSL_CTX_free(SSL_CTX*)
    int SSL_CTX_set_cipher_list(SSL_CTX*, const char*)
    int SSL_CTX_set_min_proto_version(SSL_CTX*, int)
    int SSL_CTX_set_max_proto_version(SSL_CTX*, int)
    int SSL_CTX_load_verify_locations(SSL_CTX*, const char*, const char*)
    long SSL_CTX_set_session_cache_mode(SSL_CTX*, long)
    void SSL_CTX_sess_set_new_cb(SSL_CTX*, SessionCallback)
    void SSL_CTX_set_read_ahead(SSL_CTX*, int)
    void SSL_CTX_set_security_level(SSL_CTX*, int)
    void SSL_CTX_set_verify(SSL_CTX*, int, VerifyCallback)
    long SSL_CTX_set_mode(SSL_CTX*, long)
    unsigned long SSL_CTX_set_options(SSL_CTX*, unsigned long)
    X509_VERIFY_PARAM* SSL_CTX_get0_param(SSL_CTX*)

    SSL* SSL_new(SSL_CTX*)
    void SSL_free(SSL*)
    int SSL_set_fd(SSL*, int)
    unsigned long SSL_set_options(SSL*, unsigned long)
    int SSL_set_ex_data(SSL*, int, void*)
    void* SSL_get_ex_data(const SSL*, int)
    void SSL_set_connect_state(SSL*)
    long SSL_set_tlsext_host_name(SSL*, const char*)
    X509_VERIFY_PARAM* SSL_get0_param(SSL*)
    int SSL_do_handshake(SSL*)
    int SSL_is_init_finished(const SSL*)
    int SSL_read_ex(SSL*, void*, size_t, size_t*)
    int SSL_write_ex(SSL*, const void*, size_t, size_t*)
    int SSL_has_pending(const SSL*)
    int SSL_get_error(const SSL*, int)
    long SSL_get_verify_result(const SSL*)
    int SSL_shutdown(SSL*)
    void SSL_set_shutdown(SSL*, int)
    const char* SSL_get_version(const SSL*)

    int SSL_set_session(SSL*, SSL_SESSION*)
    SSL_SESSION* SSL_get1_session(SSL*)
    int SSL_session_reused(const SSL*)
    void SSL_SESSION_free(SSL_SESSION*)
    int SSL_SESSION_is_resumable(const SSL_SESSION*)
    int SSL_SESSION_get_protocol_version(const SSL_SESSION*)

    unsigned long X509_VERIFY_PARAM_get_flags(X509_VERIFY_PARAM*)
    int X509_VERIFY_PARAM_set_flags(X509_VERIFY_PARAM*, unsigned long)
    int X509_VERIFY_PARAM_clear_flags(X509_VERIFY_PARAM*, unsigned long)
    void X509_VERIFY_PARAM_set_hostflags(X509_VERIFY_PARAM*, unsigned int)
    int X509_VERIFY_PARAM_set1_host(X509_VERIFY_PARAM*, const char*, size_t)
    int X509_VERIFY_PARAM_set1_ip(X509_VERIFY_PARAM*, const uint8_t*, size_t)
    const char* X509_verify_cert_error_string(long)

    void ERR_clear_error()
    unsigned long ERR_peek_last_error()
    int ERR_GET_REASON(unsigned long)
    const char* ERR_reason_error_string(unsigned long)
    const char* ERR_lib_error_string(unsigned long)
    int IS_END(unsigned long)
    int is_same_openssl()


cdef enum:
    MAX_RECORD_BYTES = 16384  # RFC 8446 5.1; what is not gone is offered again, never less of it
    MAX_READ_BYTES = 1048576
    MAX_PEERS = 16
    MAX_VERIFIED_S = 3600  # a session goes on without a certificate, and so would those after it
    MAX_SESSIONS = 32  # of one peer; each has a chain of certificates, some 6 KiB


if not is_same_openssl():
    raise ImportError("built for another OpenSSL than the one that is here")


cdef class _Session:
    """One session that a peer will resume; owned."""

    cdef SSL_SESSION* session
    cdef double verified_at  # when the certificate was seen on which it rests

    def __dealloc__(self):
        SSL_SESSION_free(self.session)


cdef class ClientContext:
    """Whom to trust, and how; and the sessions that can be resumed, by peer.

    Args:
        cafile: Certificates to trust, PEM; one that cannot be read is left out, as it is in the
            places where OpenSSL looks by itself. It is for the caller to know that a file is there.
        capath: A directory of them, or several with colons between.
        ciphers: What OpenSSL calls a cipher list, for TLS 1.2.
        security_level: OpenSSL's.
        minimum_version: TLS 1.2 or later, as a number of the protocol; 0 for 1.2.
        maximum_version: The same; 0 for whatever there is.
        verify_flags: What a chain of certificates is checked for, as Python has it.
        checks_common_name: Whether a name may be a subject's, where there is no other.
        clock: Seconds that only grow: certificates are looked at again at least once an hour.

    Raises:
        ValueError: OpenSSL cannot do what is asked for.

    The peer's certificate is always required, and its name always checked.
    """

    cdef SSL_CTX* _context
    cdef unsigned int _host_flags
    cdef dict _sessions
    cdef object _clock

    def __cinit__(
        self,
        *,
        cafile=None,
        capath=None,
        str ciphers=None,
        int security_level=-1,
        int minimum_version=0,
        int maximum_version=0,
        unsigned long verify_flags=0,
        bint checks_common_name=False,
        clock=time.monotonic,
    ):
        cdef X509_VERIFY_PARAM* param
        cdef bytes text
        ERR_clear_error()
        self._sessions = {}
        self._clock = clock
        self._context = SSL_CTX_new(TLS_client_method())
        if self._context == NULL:
            raise MemoryError
        SSL_CTX_set_verify(self._context, SSL_VERIFY_PEER, NULL)
        SSL_CTX_set_options(self._context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION)
        SSL_CTX_set_mode(
            self._context,
            SSL_MODE_ENABLE_PARTIAL_WRITE
            | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
            | SSL_MODE_RELEASE_BUFFERS
            | SSL_MODE_AUTO_RETRY,
        )
        # One system call for a record's head and all that has come behind it.
        SSL_CTX_set_read_ahead(self._context, 1)
        SSL_CTX_set_session_cache_mode(
            self._context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL
        )
        SSL_CTX_sess_set_new_cb(self._context, on_new_session)
        minimum_version = max(minimum_version, <int>TLS1_2_VERSION)
        if not (
            SSL_CTX_set_min_proto_version(self._context, minimum_version)
            and SSL_CTX_set_max_proto_version(self._context, maximum_version)
        ):
            raise ValueError("OpenSSL has no such version of TLS")
        if security_level >= 0:
            SSL_CTX_set_security_level(self._context, security_level)
        if ciphers is not None:
            text = ciphers.encode()
            if not SSL_CTX_set_cipher_list(self._context, text):
                ERR_clear_error()
                raise ValueError("OpenSSL has none of these ciphers")
        param = SSL_CTX_get0_param(self._context)
        X509_VERIFY_PARAM_clear_flags(param, X509_VERIFY_PARAM_get_flags(param))
        X509_VERIFY_PARAM_set_flags(param, verify_flags)
        self._host_flags = X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS
        if not checks_common_name:
            self._host_flags |= X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
        if cafile is not None:
            text = os.fsencode(cafile)
            SSL_CTX_load_verify_locations(self._context, text, NULL)
        if capath is not None:
            text = os.fsencode(capath)
            SSL_CTX_load_verify_locations(self._context, NULL, text)
        ERR_clear_error()

    def __dealloc__(self):
        if self._context != NULL:
            SSL_CTX_free(self._context)

    def wrap_socket(self, sock, *, str server_hostname, do_handshake_on_connect=False):
        """Put TLS on a connected socket that does not block; shake hands then.

        Args:
            sock: Owned from now on.
            server_hostname: Whose certificate it must be: a name, or an address.
            do_handshake_on_connect: Not here, as that would wait.

        Raises:
            ValueError: That is nobody's name.
        """
        assert not do_handshake_on_connect
        return SecureSocket(self, sock, server_hostname)

    @property
    def resumable(self):
        """How many sessions could be resumed, of all peers."""
        return sum(map(len, self._sessions.values()))

    cdef int _keep(self, tuple peer, SSL_SESSION* session, double verified_at) except -1:
        """Keep a session for the peer's next connection, a bounded number; takes it over, whatever
        comes of it."""
        cdef _Session kept
        cdef list sessions
        try:
            kept = _Session.__new__(_Session)
        except MemoryError:
            SSL_SESSION_free(session)
            raise
        kept.session, kept.verified_at = session, verified_at
        if not SSL_SESSION_is_resumable(session):
            return 0
        if peer not in self._sessions and len(self._sessions) >= MAX_PEERS:
            del self._sessions[next(iter(self._sessions))]
        sessions = self._sessions.setdefault(peer, [])
        sessions.append(kept)
        if len(sessions) > MAX_SESSIONS:
            del sessions[0]
        return 0

    cdef _Session _take(self, tuple peer):
        """The peer's latest session, or None. RFC 8446 C.4: each is used once; before TLS 1.3 it is
        good for more, and kept again when it was."""
        cdef list sessions = self._sessions.get(peer)
        cdef _Session latest
        while sessions:  # the latest offered need not be the latest verified
            latest = sessions.pop()
            if self._clock() - latest.verified_at < MAX_VERIFIED_S:
                return latest
        return None


cdef class SecureSocket(Descriptor):
    """A socket behind TLS, as the plane has sockets, and as the pump has descriptors.

    Its errors are those of Python's ``ssl``, and so are their kinds and their words.
    """

    cdef SSL* _ssl
    cdef SSL_SESSION* _fresh  # the latest that the peer has offered
    cdef ClientContext _context
    cdef object _sock
    cdef str _name
    cdef tuple _peer
    cdef double _verified_at
    cdef bint _cannot_write  # any more; reading ends by itself
    cdef int _write_errno  # why
    cdef int _fault  # what SSL_get_error said last, if that was the end
    cdef unsigned long _code  # and OpenSSL's own number of it
    cdef int _errno
    cdef int _wants  # what the last step has waited for
    cdef bint _read_wants_write
    cdef bint _write_wants_read
    cdef bint _at_end  # the peer has said goodbye, which ends reading and not writing
    cdef bint _was_full  # the last read has brought as much as was asked for

    def __init__(self, ClientContext context not None, sock, str server_hostname not None):
        cdef bytes address, name
        cdef X509_VERIFY_PARAM* param
        cdef _Session session
        super().__init__(sock.fileno())
        if not server_hostname or server_hostname.startswith("."):
            raise ValueError("a host's name is not empty and does not begin with a dot")
        self._context = context
        self._sock = sock
        self._name = server_hostname.encode("idna").decode("ascii")
        self._peer = (self._name, _port_of(sock))
        ERR_clear_error()
        self._ssl = SSL_new(context._context)
        if self._ssl == NULL or not SSL_set_fd(self._ssl, self.number):
            raise MemoryError
        SSL_set_ex_data(self._ssl, 0, &self._fresh)
        SSL_set_connect_state(self._ssl)
        param = SSL_get0_param(self._ssl)
        X509_VERIFY_PARAM_set_hostflags(param, context._host_flags)
        address, name = _address_of(self._name), self._name.encode()
        if address is not None:
            if not X509_VERIFY_PARAM_set1_ip(param, address, len(address)):
                raise MemoryError
        elif not (
            X509_VERIFY_PARAM_set1_host(param, name, len(name))
            and SSL_set_tlsext_host_name(self._ssl, name)
        ):
            ERR_clear_error()
            raise ValueError(f"{self._name!r} is no host's name")
        if (session := context._take(self._peer)) is not None:
            SSL_set_session(self._ssl, session.session)
            self._verified_at = session.verified_at
            ERR_clear_error()

    def __dealloc__(self):
        self._free()

    # -- as a socket -----------------------------------------------------------------------

    def fileno(self):
        """The socket's number, as long as it is open; -1 then."""
        return self._sock.fileno()

    def do_handshake(self):
        """Go on with the handshake; again when the socket is ready for what it waited for.

        Raises:
            ssl.SSLWantReadError, ssl.SSLWantWriteError: It is not over.
            ssl.SSLCertVerificationError: It is not who it should be.
            OSError: It has failed; ``ssl.SSLError`` is one.
        """
        cdef int result, saved
        self._check_open()
        with nogil:  # a signature or two, which is most of a millisecond
            ERR_clear_error()
            result = SSL_do_handshake(self._ssl)
            saved = errno
        if result != 1:
            self._note(saved)
            raise self._error()
        if SSL_get_verify_result(self._ssl) != X509_V_OK:
            self._fault, self._code = SSL_ERROR_SSL, 0
            raise self._error()
        if not SSL_session_reused(self._ssl):
            self._verified_at = self._context._clock()
        elif self._fresh == NULL:
            self._fresh = SSL_get1_session(self._ssl)
            if SSL_SESSION_get_protocol_version(self._fresh) >= TLS1_3_VERSION:
                SSL_SESSION_free(self._fresh)  # was good for once; the peer will offer another
                self._fresh = NULL
        self._collect()
        # From here on an end without a goodbye is an end: the WebSocket has a goodbye of its own,
        # and the session is sound.
        SSL_set_options(self._ssl, SSL_OP_IGNORE_UNEXPECTED_EOF)
        ERR_clear_error()

    def recv(self, size_t size):
        """Up to so many bytes, all that has come of them; empty when the peer has ended.

        Raises:
            ssl.SSLWantReadError: There is nothing yet.
            ssl.SSLWantWriteError: TLS has to say something first, and the socket is full.
            OSError: The connection is broken; ``ssl.SSLError`` is one.
        """
        cdef Py_ssize_t got
        cdef bytes data
        self._check_open()
        size = max(<size_t>1, min(size, <size_t>MAX_READ_BYTES))
        data = PyBytes_FromStringAndSize(NULL, size)
        got = self.read(<char*>data, size)
        if self._fresh != NULL:
            self._collect()
        if got > 0:
            return data if <size_t>got == size else data[:got]
        if self._has_ended():
            return b""
        raise self._error()

    def send(self, const uint8_t[::1] data not None):
        """Send as much as the socket takes; returns how many bytes that was.

        Raises:
            ssl.SSLWantWriteError, ssl.SSLWantReadError: None.
            OSError: The connection is broken; ``ssl.SSLError`` is one.
        """
        cdef Py_ssize_t sent
        self._check_open()
        if data.shape[0] == 0:
            return 0
        sent = self.write(&data[0], data.shape[0])
        if sent > 0:
            return sent
        raise _lost(self._write_errno) if self._cannot_write else self._error()

    def pending(self):
        """Whether a read has left something that the socket will not tell of."""
        if self._ssl == NULL:
            return False
        if self._fault != SSL_ERROR_NONE or self._at_end or self._read_wants_write:
            return True
        return bool(self._was_full and SSL_has_pending(self._ssl))

    def shutdown(self, how):
        """Say to the other side of the socket that nothing more comes."""
        self._sock.shutdown(how)

    def close(self):
        """Say goodbye if that can be said at once, and close the socket; again does nothing."""
        self.number = -1
        try:
            if self._ssl != NULL:
                is_sound = self._fault == SSL_ERROR_NONE and not self._cannot_write
                if is_sound and SSL_is_init_finished(self._ssl):
                    ERR_clear_error()
                    SSL_shutdown(self._ssl)
                    ERR_clear_error()
                if self._fault != SSL_ERROR_SSL:
                    # A line that was lost leaves its session sound: that is what is to be resumed.
                    SSL_set_shutdown(self._ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN)
                self._collect()
        finally:
            self._free()
            self._sock.close()

    # -- facts of the handshake ------------------------------------------------------------

    @property
    def session_reused(self):
        """Whether an earlier session has been resumed."""
        return self._ssl != NULL and bool(SSL_session_reused(self._ssl))

    def version(self):
        """The protocol, ``TLSv1.3``; None when there is none yet, or no more."""
        if self._ssl == NULL or not SSL_is_init_finished(self._ssl):
            return None
        return SSL_get_version(self._ssl).decode()

    # -- for the pump ----------------------------------------------------------------------

    cdef Py_ssize_t read(self, void* data, size_t size) noexcept nogil:
        """Decrypt into ``data`` what has come in whole records, at most ``size`` bytes; how many.

        READ_LATER says that the next record is not here, or not all of it.
        """
        cdef size_t got = 0, some = 0
        self._was_full = self._read_wants_write = False
        if self._ssl == NULL or self._fault != SSL_ERROR_NONE or self._at_end:
            return READ_NOTHING
        ERR_clear_error()
        self._wants = SSL_ERROR_NONE
        while got < size:
            some = 0
            if SSL_read_ex(self._ssl, <uint8_t*>data + got, size - got, &some) != 1:
                self._note(errno)
                self._read_wants_write = self._wants == SSL_ERROR_WANT_WRITE
                if self._fault == SSL_ERROR_ZERO_RETURN:
                    self._fault, self._at_end = SSL_ERROR_NONE, True
                break
            got += some
            if not SSL_has_pending(self._ssl):
                break
        self._was_full = got == size
        if got > 0:
            return <Py_ssize_t>got
        if self._wants == SSL_ERROR_WANT_READ and not self._write_wants_read:
            return READ_LATER
        return READ_NOTHING  # or whoever has something to write is to try again

    cdef Py_ssize_t write(self, const void* data, size_t size) noexcept nogil:
        """As many records as the socket takes. What it did not take is to be offered again."""
        cdef size_t sent = 0, some = 0
        cdef int saved
        self._write_wants_read = False
        if self._ssl == NULL or self._fault != SSL_ERROR_NONE or self._cannot_write:
            return -1
        ERR_clear_error()
        self._wants = SSL_ERROR_NONE
        while sent < size:
            some = min(size - sent, <size_t>MAX_RECORD_BYTES)
            if SSL_write_ex(self._ssl, <const uint8_t*>data + sent, some, &some) != 1:
                saved = errno
                self._note(saved)
                self._write_wants_read = self._wants == SSL_ERROR_WANT_READ
                if self._fault == SSL_ERROR_ZERO_RETURN or self._has_lost_line():
                    # It is gone, with a goodbye or without; what it has said can still be read.
                    self._fault, self._cannot_write = SSL_ERROR_NONE, True
                    self._write_errno = saved
                break
            sent += some
        return <Py_ssize_t>sent if sent > 0 else -1

    cdef bint has_more(self) noexcept nogil:
        """Whether the end came behind what was read, or reading and writing wait for each other."""
        if self._fault != SSL_ERROR_NONE or self._at_end:
            return True
        return self._read_wants_write or self._write_wants_read

    # -- private ---------------------------------------------------------------------------

    cdef void _note(self, int saved) noexcept nogil:
        """Keep why the last step has failed: it waits for something, or was the last."""
        cdef int why = SSL_get_error(self._ssl, 0)
        self._wants = SSL_ERROR_NONE
        if why == SSL_ERROR_WANT_READ or why == SSL_ERROR_WANT_WRITE:
            self._wants = why
        else:
            self._fault = why
            self._code = ERR_peek_last_error()
            self._errno = saved if why == SSL_ERROR_SYSCALL and self._code == 0 else 0
        ERR_clear_error()  # the thread's, and Python's ssl looks there, too

    cdef bint _has_lost_line(self) noexcept nogil:
        """Whether it is the socket that has failed, and not what was said on it."""
        return self._fault == SSL_ERROR_SYSCALL and self._code == 0

    cdef bint _has_ended(self) noexcept:
        """Whether the peer is gone, with a goodbye or without, and nothing is broken."""
        if self._fault == SSL_ERROR_NONE:
            return self._at_end
        if self._fault == SSL_ERROR_SYSCALL:
            return self._errno == 0 and self._code == 0
        return self._fault == SSL_ERROR_ZERO_RETURN

    cdef object _error(self):
        """The error that Python's ``ssl`` would raise."""
        if self._fault == SSL_ERROR_NONE:
            if self._wants == SSL_ERROR_WANT_READ:
                return ssl.SSLWantReadError(
                    ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)"
                )
            return ssl.SSLWantWriteError(
                ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)"
            )
        if self._fault == SSL_ERROR_ZERO_RETURN:
            return ssl.SSLZeroReturnError(
                ssl.SSL_ERROR_ZERO_RETURN, "TLS/SSL connection has been closed (EOF)"
            )
        if self._has_lost_line():
            return _lost(self._errno)
        return self._protocol_error()

    cdef object _protocol_error(self):
        cdef const char* text = ERR_reason_error_string(self._code)
        cdef const char* library_text = ERR_lib_error_string(self._code)
        cdef long verdict
        cdef str reason = text.decode() if text != NULL else "unknown error"
        cdef str name = reason.upper().replace(" ", "_")
        cdef str library = library_text.decode() if library_text != NULL else "SSL"
        library = "SSL" if library == "SSL routines" else library.split(" ")[0].upper()
        if self._code != 0 and IS_END(self._code):
            error = ssl.SSLEOFError(
                ssl.SSL_ERROR_EOF, f"[{library}: {name}] EOF occurred in violation of protocol"
            )
            error.reason, error.library = name, library
            return error
        verdict = SSL_get_verify_result(self._ssl) if self._ssl != NULL else X509_V_OK
        if verdict == X509_V_OK or (
            self._code != 0 and ERR_GET_REASON(self._code) != SSL_R_CERTIFICATE_VERIFY_FAILED
        ):
            error = ssl.SSLError(ssl.SSL_ERROR_SSL, f"[{library}: {name}] {reason}")
            error.reason, error.library = name, library
            return error
        if verdict == X509_V_ERR_HOSTNAME_MISMATCH:
            said = f"Hostname mismatch, certificate is not valid for '{self._name}'."
        elif verdict == X509_V_ERR_IP_ADDRESS_MISMATCH:
            said = f"IP address mismatch, certificate is not valid for '{self._name}'."
        else:
            said = X509_verify_cert_error_string(verdict).decode()
        name = "CERTIFICATE_VERIFY_FAILED"
        error = ssl.SSLCertVerificationError(
            ssl.SSL_ERROR_SSL, f"[SSL: {name}] certificate verify failed: {said}"
        )
        error.reason, error.library = name, "SSL"
        error.verify_code, error.verify_message = verdict, said
        return error

    cdef int _check_open(self) except -1:
        if self._ssl == NULL:
            raise OSError(9, os.strerror(9))  # EBADF, as of any socket that is closed
        return 0

    cdef int _collect(self) except -1:
        """Keep the session that the peer has offered, if it has, and there is memory for it."""
        cdef SSL_SESSION* fresh = self._fresh
        if fresh != NULL:
            self._fresh = NULL
            try:
                self._context._keep(self._peer, fresh, self._verified_at)
            except MemoryError:
                pass  # the next connection is verified again, and this one goes on
        return 0

    cdef void _free(self) noexcept:
        if self._fresh != NULL:
            SSL_SESSION_free(self._fresh)
            self._fresh = NULL
        if self._ssl != NULL:
            SSL_free(self._ssl)
            self._ssl = NULL


cdef int on_new_session(SSL* connection, SSL_SESSION* session) noexcept nogil:
    """The peer has offered a session to resume; 1 says that it is ours now."""
    cdef SSL_SESSION** fresh = <SSL_SESSION**>SSL_get_ex_data(connection, 0)
    if fresh == NULL:
        return 0
    if fresh[0] != NULL:
        SSL_SESSION_free(fresh[0])
    fresh[0] = session
    return 1


cdef object _lost(int number):
    """The error of a socket that has failed with this; with 0, its end came without a goodbye."""
    if number != 0:
        return OSError(number, os.strerror(number))
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")


cdef int _port_of(sock):
    """The port of the peer's, to tell one service of a host's from another; 0 if it has none."""
    try:
        peer = sock.getpeername()
    except OSError:
        return 0
    return peer[1] if isinstance(peer, tuple) else 0


cdef bytes _address_of(str name):
    """An IP address as the bytes that a certificate has, or None for a name."""
    for family in (sockets.AF_INET, sockets.AF_INET6):
        try:
            return sockets.inet_pton(family, name)
        except OSError:
            pass
    return None
