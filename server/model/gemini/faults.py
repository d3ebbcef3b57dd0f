"""What goes wrong with Gemini Live, as errors of ours that hide the API key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType

import trio
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from server.errors import ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.model.gemini.protocol import ToldError
from server.model.gemini.service_words import known_words
from server.model.refusals import classify
from server.refusal import Cure, Kind

_NO_KEY = "[the API key]"
_MIN_PART_OF_KEY = 8
"""Fewer characters of a key may be part of any word."""


class _Translated:
    """A block whose errors come out as others, without a generator.

    From Python 3.13 on, an error thrown into one leads back to itself by contextlib's frame.
    """

    __slots__ = ("_translate",)

    def __init__(self, translate: Callable[[BaseException], None]) -> None:
        self._translate = translate

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._translate(error)


class Faults:
    """Makes errors of what the service and the network say.

    Args:
        secrets: Says what is never in an error: a key, or the tokens of this time.
        host: Who is connected to.
    """

    def __init__(self, secrets: Callable[[], Iterable[str]], host: str) -> None:
        self._secrets = secrets
        self._host = host

    def translated_closing(self) -> AbstractContextManager[None]:
        """Turn the socket's closing, in the middle of a session, into a ModelError."""
        return _Translated(self._raise_closing)

    def translated_opening(self) -> AbstractContextManager[None]:
        """Turn whatever can go wrong before the service is ready into a ModelError."""
        return _Translated(self._raise_opening)

    def _raise_closing(self, error: BaseException) -> None:
        if isinstance(error, ConnectionClosed):
            raise self._closed_error(error, during_setup=False) from self._cause(error)

    def _raise_opening(self, error: BaseException) -> None:
        match error:
            case ConnectionClosed():
                raise self._closed_error(error, during_setup=True) from self._cause(error)
            case InvalidStatus():
                raise self._refused_error(error) from error
            case trio.TooSlowError():
                raise self._unreachable_error("no answer to the set-up in time") from error
            case OSError():
                raise self._unreachable_error(str(error) or type(error).__name__) from error
            case InvalidHandshake():  # its text may hold headers of the other end's choosing
                kind = type(error).__name__
                raise self._unreachable_error(str(error) or kind, logged=kind) from error
            case trio.BrokenResourceError():  # TLS, on the library's own path
                raise self._unreachable_error(str(error.__cause__ or "TLS failed")) from error

    def _closed_error(self, closed: ConnectionClosed, *, during_setup: bool) -> ModelError:
        code = closed.rcvd.code if closed.rcvd is not None else 1006
        reason = self._without_key(closed.rcvd.reason if closed.rcvd is not None else "")
        told = f"Gemini closed the session with {code}"
        message = f"{told}: {reason or 'no reason given'}"
        loggable = f"{told}: {known_words(reason)}"
        return _error_of(
            classify(reason, close_code=code),
            message,
            code=code,
            reason=reason,
            loggable=loggable,
            # In mid-call 1008 comes after tool results and goes away; 1007 is a used-up context.
            of_setup=during_setup and code in (1007, 1008),
            retryable=code != 1007,
        )

    def told_error(self, told: ToldError, *, during_setup: bool) -> ModelError:
        """Make an error of one that the service has told in a message."""
        code, reason = told.http_status, self._without_key(f"{told.status} {told.reason}".strip())
        named = " ".join(str(one) for one in (code, told.status) if one) or "an error"
        message = f"Gemini says {named}: {reason or 'no reason given'}"
        loggable = f"Gemini says {named}: {known_words(reason)}"
        kind = classify(reason, status=code)
        passes = (code or 0) >= 500 or told.status in ("INTERNAL", "UNAVAILABLE", "ABORTED")
        of_setup = during_setup and not passes
        return _error_of(
            kind, message, code=None, reason=reason, loggable=loggable, of_setup=of_setup
        )

    def _refused_error(self, refused: InvalidStatus) -> ModelError:
        status = refused.response.status_code
        body = bytes(refused.response.body or b"").decode("utf-8", "replace")
        # The key goes before the text is cut: half of one is too much, too.
        reason = f"HTTP {status} {self._without_key(body)[:200]}".strip()
        message = f"Gemini refused the connection: {reason}"
        loggable = f"Gemini refused the connection: HTTP {status}, {known_words(reason)}"
        kind = classify(body, status=status, at_handshake=True)
        return _error_of(
            kind, message, code=None, reason=reason, loggable=loggable, of_setup=status < 500
        )

    def _unreachable_error(self, reason: str, *, logged: str | None = None) -> ModelError:
        reason = self._without_key(reason)
        told = f"Gemini at {self._host} cannot be reached"
        return ModelError(
            f"{told}: {reason}",
            code=None,
            reason=reason,
            retryable=True,
            loggable=f"{told}: {logged or reason}",
        )

    def _cause(self, closed: ConnectionClosed) -> ConnectionClosed | None:
        # A traceback prints its causes, and the close reason with them.
        text = str(closed)
        return None if any(secret in text for secret in self._secrets()) else closed

    def _without_key(self, text: str) -> str:
        # Google quotes the key in some refusals ("Consumer 'api_key:…' has been suspended"), and
        # cuts a close reason wherever its bytes are full.
        for secret in self._secrets():
            text = _without(secret, text)
        return text


def _without(secret: str, text: str) -> str:
    text = text.replace(secret, _NO_KEY)
    for length in range(len(secret) - 1, _MIN_PART_OF_KEY - 1, -1):
        if text.endswith(secret[:length]):
            return text[:-length] + _NO_KEY
    return text


def _error_of(
    kind: Kind | None,
    message: str,
    *,
    code: int | None,
    reason: str,
    loggable: str,
    of_setup: bool,
    retryable: bool = True,
) -> ModelError:
    """Make the error for what is about the account, about this set-up, or about neither."""
    if kind is not None:
        return account_refused(kind, message, code=code, reason=reason, loggable=loggable)
    error = ModelSetupRefused if of_setup else ModelError
    retryable = retryable and not of_setup
    return error(message, code=code, reason=reason, retryable=retryable, loggable=loggable)


def account_refused(
    kind: Kind, message: str, *, code: int | None, reason: str, loggable: str | None = None
) -> ModelError:
    """Make the error for a refusal that is about the account.

    Args:
        kind: What is refused.
        message: What has happened, without a key.
        code: The WebSocket close code, if it was one.
        reason: The service's own words, without a key.
        loggable: The message without those; None if it has none.
    """
    error = ModelError
    if kind in (Kind.RATE, Kind.QUOTA):
        error = ModelQuotaExceeded
    elif kind.cure is Cure.PERSON:
        error = ModelSetupRefused
    retryable = kind.cure is Cure.RETRY
    return error(
        message,
        code=code,
        reason=reason,
        retryable=retryable,
        loggable=loggable,
        refusal=kind,
    )


def credentials_replaced(refused: ModelError) -> ModelError:
    """Make the error for credentials that were refused, where others will be there to ask with."""
    return ModelError(
        str(refused),
        code=refused.code,
        reason=refused.reason,
        retryable=True,
        loggable=refused.loggable,
    )
