"""What can go wrong that is not a bug of ours: whose fault it is, and the facts.

A :class:`ServerError` is always somebody else's mistake or misfortune (the operator's settings,
the carrier, the model, a client of the API). A bug of ours is a ``ValueError``, ``TypeError`` or
``AssertionError`` with a traceback.
"""

from __future__ import annotations

from server.refusal import Kind


class ServerError(Exception):
    """Anything the server can report without a traceback."""


class ConfigurationError(ServerError):
    """The settings contradict each other or miss something; the message names the variables."""


class CannotListen(ServerError):
    """The address to listen on is taken, not ours or not allowed; the message says what to do."""


class CallRefused(ServerError):
    """A call is refused before anybody's phone has rung.

    Attributes:
        reason: A short stable word for logs and metrics (``"full"``, ``"draining"`` …).
        status: The HTTP status the API answers with.
        retry_after_s: When it may be worth asking again, or None if it never is.
        position: Its place in the queue of calls to be dialled, if it was refused there.
        in_words: Whether somebody who calls us is told so, rather than that the line is busy.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        status: int,
        retry_after_s: float | None = None,
        position: int | None = None,
        in_words: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s
        self.position = position
        self.in_words = in_words


class CarrierError(ServerError):
    """The carrier's REST API refused a request or could not be reached.

    Attributes:
        status: HTTP status of the answer, or None when there was no answer.
        code: The carrier's own error code (Twilio: 21211 and so on), or None.
        outcome_unknown: Whether the carrier may have done it all the same: no answer came, or
            one that says nothing about the request. Such a request is never simply repeated.
        retry_after_s: How long the carrier has asked to be left alone, or None if it has not.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: int | None = None,
        outcome_unknown: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.outcome_unknown = outcome_unknown
        self.retry_after_s = retry_after_s


class CallNotInProgress(CarrierError):
    """The carrier does nothing to a call that is over, or that it has not answered yet."""


class CarrierProtocolError(ServerError):
    """The carrier sent a message its own documentation does not allow.

    Raised only while parsing, so it always means "their side", never a bug here; the call ends
    and other calls go on.
    """

    def __init__(self, reason: str, *, stream_sid: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stream_sid = stream_sid


class StreamEnded(ServerError):
    """The media stream is over: nothing more can be received or sent on it."""


class ModelError(ServerError):
    """The model's service refused, failed or closed a session.

    Attributes:
        code: WebSocket close code (1006 when there was none), or None when it never opened.
        reason: The service's own words; the only diagnosis there is. Like the message, which has
            them in it, for the call's record and not for logs.
        loggable: The message without words of the service's choosing.
        retryable: Whether a new connection may help (1006, 1011 without "quota").
        refusal: What about the account is refused; None for trouble with this one session.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None,
        reason: str,
        retryable: bool,
        refusal: Kind | None = None,
        loggable: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.loggable = message if loggable is None else loggable
        self.retryable = retryable
        self.refusal = refusal


class ModelSetupRefused(ModelError):
    """The set-up message was refused (1007, 1008): a mistake in our configuration."""


class ModelQuotaExceeded(ModelError):
    """The account's quota, or what it may ask for at once, is used up."""


def innermost(error: BaseException) -> BaseException:
    """The first thing that went wrong, however many nurseries it has come through."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
