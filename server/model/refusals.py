"""Which refusals of the model's service are about the account, told by the service's words.

A connection that breaks is ordinary trouble: another one may do better. A service that refuses the
account refuses every call, so no phone should ring for the next one. Which of the two it was is
told by an HTTP status while connecting, a close code, or most often by words alone: the reason of a
close frame, or the JSON of an error.

The kinds are in :mod:`server.refusal`. Top to bottom here: the words that each is known by
(``WORDS``), and :func:`classify`, which is a pure function. What it does not know is nobody's
refusal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from server.refusal import Kind

MAX_CHARACTERS = 4_000
"""Of what a service says, so much is looked at: Google's longest errors have about 1,000."""
MAX_DETAILS = 20


# ------------------------------------------------------------------------------------------
# What each kind is known by

_API_KEY = r"api[ -]?keys?"
_NOT_SOUND = r"^(?!.*\b(?:language|voice|audio|speech)\b).*?"
"""These have places, too, and are one set-up's."""
_MODEL = r"(?:\b(?:publisher )?models?[ :/`'\"]+\S{0,160}|\bgemini-[\w.-]{1,80}[`'\"]?)"

WORDS: tuple[tuple[Kind, str], ...] = (
    # A limit on spending within minutes passes by itself.
    (
        Kind.RATE,
        r"\bspend\w*[ -](?:based )?rate|\bspend\w*\b.{0,40}\b(?:per|every|rolling|last) "
        r"(?:\w+ )?(?:10|ten|minute|second)",
    ),
    (Kind.PERMISSION, r"\bquota project|user project denied|\bconsumer\b.{0,80}\bsuspended"),
    # Money. "Check your plan and billing details" is Google's text for any quota: not here.
    (
        Kind.CREDITS,
        r"\bcredits?\b.{0,60}?\b(?:deplet\w+|exhaust\w+|used up|r[ua]n out|insufficient|expired|"
        r"too low|empty|spent|consumed|zero|not enough|negative|gone)\b",
    ),
    (
        Kind.CREDITS,
        r"\b(?:insufficient|not enough|no|out of|low on|deplet\w+|exhausted|zero|purchase|buy|add|"
        r"more|top[ -]?up|used (?:up )?(?:all )?(?:of )?)\b (?:\w+ ){0,3}(?:credits?|funds|balance)"
        r"\b|\bfunds\b.{0,30}\b(?:deplet\w+|insufficient|exhaust\w+|too low)",
    ),
    (
        Kind.CREDITS,
        r"\b(?:prepa(?:id|y|yment)|account|billing|credit) (?:\w+ )?balance\b|"
        r"\bprepa(?:id|y|yment)\b.{0,40}\b(?:deplet\w+|exhaust\w+|used up|expired|r[ua]n out)",
    ),
    (
        Kind.CREDITS,
        r"\bspend(?:ing)?\b.{0,30}?\b(?:caps?|limits?|budget|threshold)\b|"
        r"\b(?:monthly|project|account|billing) (?:spend\w*|budget|cap)\b|"
        r"(?<!thinking )(?<!token )\bbudget\b.{0,30}\b(?:exceeded|reached|exhausted|used up)",
    ),
    (
        Kind.CREDITS,
        r"\bbilling\b.{0,60}?\b(?:disabled|not (?:been )?(?:enabled|active|set up|configured|open)|"
        r"inactive|suspended|closed|required|past due|overdue|delinquent|failed|to be enabled)\b|"
        r"\b(?:enable|requires?|without|no|set up|activate|update|fix|closed|disabled|inactive|"
        r"invalid|missing)\b (?:\w+ ){0,3}billing\b",
    ),
    (
        Kind.CREDITS,
        r"\bpayment (?:method|required|failed|declined|overdue|past due|is (?:due|overdue))|"
        r"\bdunning\b|\b(?:trial|subscription)\b.{0,20}\b(?:ended|expired|over|lapsed)|"
        r"\bupgrade your (?:plan|tier)|"
        r"\b(?:unpaid|outstanding|overdue) (?:invoices?|balance|bills?)\b",
    ),
    # How much, how often.
    (Kind.QUOTA, r"\bexceeded your current quota|\bper day\b|\bdaily (?:\w+ )?limit"),
    (
        Kind.RATE,
        r"(?<!sample )(?<!sampling )\brate[ -]?limit|\brequest rate|"
        r"\bsession limit (?:exceeded|reached|has)|"
        r"\btoo many (?:\w+ ){0,3}(?:requests?|sessions?|connections?)\b|"
        r"\bper[ -](?:minute|second)\b|\b[rt]pm\b|\bthrottl|\bslow down\b|"
        r"\b(?:concurren\w+|simultaneous|active|open) (?:\w+ ){0,2}"
        r"(?:sessions?|connections?|requests?)\b.{0,40}\b(?:limit|exceed\w*|reached|quota)|"
        r"\b(?:limit|maximum|max|quota)\b.{0,30}\b(?:concurren\w+|simultaneous) ",
    ),
    (
        Kind.QUOTA,
        r"\bquotas?\b|\bresources?(?: has| have)?(?: been)? exhausted|"
        r"\b(?:tier|plan|project|account)(?:'s)? limits? (?:has been |was |is )?"
        r"(?:reached|exceeded)|"
        r"\busage (?:limit|cap)|\bexceeded your (?:current )?(?:plan|usage)",
    ),
    # Where.
    (
        Kind.LOCATION,
        rf"{_NOT_SOUND}\b(?:location|region|country|countries|territor\w+)\b.{{0,60}}?\b"
        r"(?:not (?:currently |yet )?(?:supported|available|allowed|permitted)|unsupported|"
        r"restricted|prohibited|policy violated)",
    ),
    (
        Kind.LOCATION,
        rf"{_NOT_SOUND}\b(?:not (?:currently |yet )?"
        r"(?:supported|available|allowed|offered|permitted)|"
        r"unavailable|unsupported|prohibited)\b.{0,40}?\b"
        r"(?:your|this|user'?s?|that|unsupported) (?:current )?"
        r"(?:location|region|country|territory)|"
        r"\bunsupported (?:user )?(?:location|region|country)",
    ),
    # With what.
    (
        Kind.KEY,
        rf"\b{_API_KEY}\b.{{0,80}}?\b(?:not valid|invalid|expired|leaked|compromised|"
        r"revoked|disabled|deleted|missing|not found|malformed|incorrect|wrong|rejected|unknown|"
        r"exposed|public\w*|suspended|inactive|deactivated|blocked|terminated|no longer|"
        r"not exist|required|not recogni[sz]ed|not provided|not set|not supported|reported)\b",
    ),
    (
        Kind.KEY,
        r"\b(?:invalid|expired|leaked|revoked|bad|missing|wrong|incorrect|unknown|disabled|no|"
        r"renew|without|compromised|blocked|provide|valid|use an?)\b.{0,40}?"
        rf"\b{_API_KEY}\b",
    ),
    (
        Kind.KEY,
        r"\bunauthenticated\b|\bunauthori[sz]ed\b|\bunregistered callers?|"
        r"\bauthentication (?:failed|required|error|is required|has failed)|"
        r"\binvalid (?:authentication|credentials?|access token|auth token)|"
        r"\bcredentials?\b.{0,20}\b(?:missing|invalid|expired|not valid|revoked|rejected)|"
        r"\b(?:oauth|access|auth|bearer) token\b.{0,30}\b(?:expired|invalid|revoked|not valid)|"
        r"\b(?:this|your|provided|supplied) key (?:(?:has|is|was|been) )*(?:leaked|expired|revoked|"
        r"invalid|not valid|compromised|disabled)|^(?:invalid|expired|revoked|leaked) key\.?$|"
        r"^key (?:(?:has|is|was|been) )*(?:leaked|expired|revoked|invalid)\.?$|"
        r"\blogin required|\binsufficient authentication|\bscope insufficient|"
        r"\bcould not authenticate|\bnot authenticated",
    ),
    # What for.
    (
        Kind.PERMISSION,
        r"\bhas not been used in project|\bservice disabled|\baccess not configured|"
        r"\benable it by visiting|"
        r"\b(?:api|apis|service)\b.{0,60}?\b(?:disabled|not (?:been )?enabled|blocked)\b",
    ),
    (
        Kind.PERMISSION,
        r"\bpermission denied|\bpermissions? .{0,60}\b(?:denied|missing|required)|"
        r"\b(?:not|no longer) have (?:the |any )?(?:required |sufficient |necessary )?"
        r"(?:permissions?|access)|"
        r"\blacks? (?:the )?(?:required )?permission|\binsufficient permissions?|"
        r"\baccess (?:is |was |has been )?(?:denied|forbidden|revoked)|\bdenied access|"
        r"\bnot authori[sz]ed|\bnot permitted to|\bforbidden\.?$|\b403 forbidden",
    ),
    (
        Kind.PERMISSION,
        r"\b(?:project|account|consumer|organi[sz]ation)\b.{0,60}?\b(?:suspended|terminated|"
        r"deactivated|deleted|disabled|blocked|banned|denied|invalid)\b|"
        r"\bgcp suspended|\borg restriction|"
        r"\bnot (?:on the )?allow-?list|\bip address restriction|"
        r"\breferr?er\b.{0,60}\bblocked|\brequests (?:to|from)\b.{0,120}\bblocked\b",
    ),
    # When.
    (
        Kind.BUSY,
        r"\boverload|\bhigh (?:demand|load|traffic)|\bat capacity|\b(?:no|insufficient|out of|"
        r"lack of) capacity|\bcapacity (?:exceeded|reached|constraints?)|^unavailable\b|"
        r"\b(?:service|model|server|backend|system)s? (?:is |are )?(?:currently |temporarily )?"
        r"(?:unavailable|busy|not available (?:right now|at the moment))|"
        r"\b(?:currently|temporarily) (?:unavailable|busy|out of)",
    ),
    # Which. An entity that is not found is a session's handle, not a model.
    (
        Kind.MODEL,
        rf"{_MODEL} (?:(?:is|was|are|were|has|have|had|could|does|do|did|been|currently|yet) )*"
        r"(?:not (?:be )?found|not exist|not available|not offered|no longer|retired|removed|"
        r"shut ?down|deprecated|discontinued|decommissioned|sunset|"
        r"turned (?:off|down)|reached its end|not supported\.?$|"
        r"not supported (?:for|in|by|with) (?:the )?(?:bidi|live|generate|api|v1))",
    ),
    (
        Kind.MODEL,
        r"\b(?:unknown|no such|unrecogni[sz]ed|retired|deprecated|non-?existent|invalid) "
        r"model\b(?! (?:turn|role|content|config|response|output))|"
        r"\bunsupported model(?:\.?$|:| name| [`'\"]| models/| gemini)|"
        r"\bmodel (?:name )?not found|\bno models? (?:found|named|matches)|"
        r"\b(?:could|can) ?not find (?:the |a )?(?:model\b|models/)|"
        r"\bnot found: (?:the )?(?:publisher )?models?\b|"
        r"\bnot supported for bidi",
    ),
)
"""Searched in this order; the text is in lower case, on one line, without ``_`` and "n't"."""

_RULES = tuple((kind, re.compile(pattern)) for kind, pattern in WORDS)

CLOSE_CODES = {1013: Kind.BUSY, 3000: Kind.KEY, 3003: Kind.PERMISSION}
"""Codes that say it by themselves: try again later, unauthorized, forbidden (IANA's registry)."""
HTTP_STATUSES = {
    401: Kind.KEY,
    402: Kind.CREDITS,
    403: Kind.PERMISSION,
    429: Kind.RATE,
}
"""Statuses that say it wherever they come."""
HANDSHAKE_STATUSES = {404: Kind.MODEL, 408: Kind.BUSY, 410: Kind.MODEL, 425: Kind.BUSY}
"""What others mean while connecting, when only key and address are known: no set-up, no handle."""


def classify(
    text: str,
    *,
    close_code: int | None = None,
    status: int | None = None,
    at_handshake: bool = False,
) -> Kind | None:
    """Say what about the account a service refuses; None for whatever else has gone wrong.

    Args:
        text: The service's words: a close reason (cut to 123 bytes), the body of an HTTP answer,
            or an error's JSON.
        close_code: The WebSocket close code, if it was one.
        status: The HTTP status, or the number in an error's JSON.
        at_handshake: Whether it is the answer to the WebSocket handshake.
    """
    words = _words(text)
    for kind, pattern in _RULES:
        if pattern.search(words):
            return kind
    if close_code in CLOSE_CODES:
        return CLOSE_CODES[close_code]
    if status is None:
        return None
    if status in HTTP_STATUSES:
        return HTTP_STATUSES[status]
    if at_handshake:
        if status in HANDSHAKE_STATUSES:
            return HANDSHAKE_STATUSES[status]
        if 400 <= status < 500:
            return Kind.REFUSED
    # An error's JSON in a session has 500 for a request that failed: that is one session's.
    return Kind.BUSY if status == 503 or (at_handshake and 500 <= status < 600) else None


def _words(text: str) -> str:
    """Bring a service's words into the form that the rules are written for."""
    if text.lstrip()[:1] in ("{", "["):
        # What is cut off, or no JSON after all, has its words in it as they are.
        with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
            text = " ".join(_told_by(msgspec.json.decode(text.encode())))
    text = text[:MAX_CHARACTERS]
    text = re.sub(r"<[^>]{0,200}>", " ", text)
    # Addresses have words in them that say nothing: ".../docs/rate-limits", ".../billing".
    text = re.sub(r"\b(?:https?://|(?:ai|cloud|console)\.)[^\s\"']+", " ", text)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # rateLimitExceeded
    text = re.sub(r"n't\b", " not", text.translate(_ALIKE).lower())
    return " ".join(re.sub(r"[\s_]+", " ", text).split())


_ALIKE = str.maketrans("\u2018\u2019\u02bc\u201c\u201d\u2010\u2011\u2013\u2014", "'''\"\"----")
"""Apostrophes, quotation marks and dashes as people type them, and as programs do."""


def _told_by(value: Any, depth: int = 0) -> Iterator[str]:
    """The words of an error: status, message, and the reasons in its details."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth < 4:
        for item in value[:MAX_DETAILS]:
            yield from _told_by(item, depth + 1)
    elif isinstance(value, Mapping) and depth < 4:
        for name in ("error", "status", "reason", "message", "details", "errors"):
            if name in value:
                yield from _told_by(value[name], depth + 1)
