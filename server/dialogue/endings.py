"""Why a call ends, and what follows from it for whoever is still there."""

from __future__ import annotations

from enum import StrEnum

from server.carrier import CallStatus
from server.errors import (
    CarrierProtocolError,
    ModelError,
    ModelQuotaExceeded,
    ServerError,
    StreamEnded,
)
from server.refusal import Cure, Kind


class EndReason(StrEnum):
    """Why a call ended; stored in its record and counted by it."""

    CALLER_HUNG_UP = "caller-hung-up"
    CALLER_GONE = "caller-gone"
    """The stream closed or fell silent without the carrier's stop, and no other came."""
    BUSY = "busy"
    NO_ANSWER = "no-answer"
    FAILED = "failed"
    CANCELED = "canceled"
    HUNG_UP = "hung-up"
    """Ended through our API."""
    AGENT_HUNG_UP = "agent-hung-up"
    """The agent said goodbye and ended the call."""
    VOICEMAIL = "voicemail"
    """A machine had answered; the detail says whether a message was left."""
    TRANSFERRED = "transferred"
    """Somebody else has taken the caller over; their talk may still go on."""
    CALLER_SILENT = "caller-silent"
    """Nobody answered the question whether they were still there."""
    MAX_DURATION = "max-duration"
    MODEL_UNAVAILABLE = "model-unavailable"
    MODEL_LOST = "model-lost"
    MODEL_SILENT = "model-silent"
    """The model did not answer the caller, whatever was tried."""
    MODEL_QUOTA = "model-quota"
    MODEL_REFUSED = "model-refused"
    """The model's service refuses our account (key, credits …): somebody has to see to it."""
    CARRIER_PROTOCOL = "carrier-protocol-error"
    CARRIER_FAILED = "carrier-failed"
    COST_CAP = "cost-cap"
    """The call has come to cost what one may cost at most."""
    MOVED = "moved"
    """Another process has the call, and goes on with it: here it ends in silence."""
    DRAINED = "drained"
    ERROR = "error"
    """A bug of ours; the log has the traceback."""

    @property
    def is_carriers(self) -> bool:
        """Whether the carrier has nothing left to hang up."""
        return self in _BY_CARRIER

    @property
    def is_our_failure(self) -> bool:
        """Whether a caller would take it for being hung up on: somebody has to say sorry."""
        return self in _APOLOGISED

    @property
    def is_agents_part(self) -> bool:
        """Whether it ends the agent's part: whoever is being connected with somebody else stays."""
        return self in _AGENTS_PART

    @property
    def is_failure(self) -> bool:
        """Whether nobody was reached, or something has failed that a call needs."""
        return self in _APOLOGISED or self in _NOT_TALKED

    @property
    def close_code(self) -> int:
        """What the media socket is closed with."""
        return _CLOSE_CODES.get(self, 1000)

    @classmethod
    def of_status(cls, status: CallStatus) -> EndReason:
        """What a final status means."""
        return _OF_STATUS[status]

    @classmethod
    def of_failure(cls, error: ServerError, *, had_session: bool) -> EndReason:
        """The reason of a call that an error has ended, before or after the model was there."""
        match error:
            case ModelQuotaExceeded():
                return cls.MODEL_QUOTA
            case ModelError(refusal=Kind() as kind) if kind.cure is Cure.PERSON:
                return cls.MODEL_REFUSED
            case ModelError():
                return cls.MODEL_LOST if had_session else cls.MODEL_UNAVAILABLE
            case CarrierProtocolError():
                return cls.CARRIER_PROTOCOL
            case StreamEnded():
                return cls.CALLER_GONE
            case _:
                return cls.CARRIER_FAILED


_BY_CARRIER = frozenset(
    {
        EndReason.CALLER_HUNG_UP,
        EndReason.BUSY,
        EndReason.NO_ANSWER,
        EndReason.FAILED,
        EndReason.CANCELED,
        EndReason.TRANSFERRED,
    }
)
_APOLOGISED = frozenset(
    {
        EndReason.MODEL_UNAVAILABLE,
        EndReason.MODEL_LOST,
        EndReason.MODEL_SILENT,
        EndReason.MODEL_QUOTA,
        EndReason.MODEL_REFUSED,
        EndReason.ERROR,
    }
)
_AGENTS_PART = frozenset({EndReason.MAX_DURATION, EndReason.COST_CAP, EndReason.DRAINED})
_NOT_TALKED = frozenset(
    {
        EndReason.BUSY,
        EndReason.NO_ANSWER,
        EndReason.FAILED,
        EndReason.CARRIER_FAILED,
        EndReason.CARRIER_PROTOCOL,
    }
)
_OF_STATUS = {
    CallStatus.COMPLETED: EndReason.CALLER_HUNG_UP,
    CallStatus.BUSY: EndReason.BUSY,
    CallStatus.NO_ANSWER: EndReason.NO_ANSWER,
    CallStatus.FAILED: EndReason.FAILED,
    CallStatus.CANCELED: EndReason.CANCELED,
}
_CLOSE_CODES = {
    EndReason.CARRIER_PROTOCOL: 1008,
    EndReason.ERROR: 1011,
    EndReason.MOVED: 1001,
}
