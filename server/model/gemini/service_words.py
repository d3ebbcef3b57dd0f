"""What may be logged of words that the model's service has chosen.

Close reasons, error messages, field names and MIME types are whatever the other end likes to send,
and may hold what a caller has said. A log line has of them only what is in these tables; the words
themselves stay in the call's record, which is shown to those with a key.
"""

from __future__ import annotations

import re
from hashlib import sha256

_PHRASES = (
    ("quota", "the quota is used up"),
    ("RESOURCE_EXHAUSTED", "the quota is used up"),
    ("API key expired", "the API key has expired"),
    ("API key not valid", "the API key is not valid"),
    ("reported as leaked", "the API key has been reported as leaked"),
    ("has been suspended", "the account has been suspended"),
    ("unregistered callers", "no API key was shown"),
    ("PERMISSION_DENIED", "permission denied"),
    ("User location is not supported", "the region is not supported"),
    ("not supported for bidiGenerateContent", "the model is not found, or not for live sessions"),
    ("Requested entity was not found", "the session is not known"),
    ("Unknown name", "the set-up has a field that this model does not know"),
    ("Thinking level", "the thinking level is wrong for this model"),
    ("Thinking budget", "the thinking budget is wrong for this model"),
    ("Requested voice", "the voice is not available"),
    ("response modalities", "the response modalities are not supported"),
    ("function calls are not supported", "the functions' behavior is wrong for this model"),
    ("Invalid function name", "a function's name is not allowed"),
    ("invalid argument", "invalid argument"),
    ("Invalid value", "invalid argument"),
    ("Invalid JSON payload", "invalid argument"),
    ("Deadline expired", "the connection's time is up"),
    ("operation was aborted", "the operation was aborted"),
    ("still in use", "the session is still in use"),
    ("UNAVAILABLE", "the service is unavailable"),
    ("overloaded", "the service is overloaded"),
    ("Internal error", "internal error"),
)
"""Parts of the service's known messages, and what is said of each; the first that is found."""
_STATUS = frozenset(
    {
        *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
        *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
        *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
        "UNAUTHENTICATED",
    }
)
"""The codes of google.rpc.Code."""
MAX_REASON = 500
"""Characters of a reason that are looked at, and kept."""


def known_words(reason: str) -> str:
    """Say a service's reason in words of ours; without any of its own if it is none we know."""
    reason = reason[:MAX_REASON]
    if not reason:
        return "no reason given"
    found = (ours for part, ours in _PHRASES if re.search(re.escape(part), reason, re.IGNORECASE))
    return next(found, "a reason unknown here")


def known_status(status: str) -> str:
    """The name of an RPC status, or "" if it is none."""
    return status if status in _STATUS else ""


def fingerprint(words: str) -> str:
    """Short for words that are not shown: the same for the same words, telling nothing of them."""
    return sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:8]
