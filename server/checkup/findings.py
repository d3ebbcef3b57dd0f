"""What follows from each answer, in words: nothing here asks or waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from server.carrier.account import TRUNK, AccountState, NumberHooks, OwnNumber
from server.checkup import Finding, State
from server.errors import (
    CallRefused,
    CarrierError,
    ConfigurationError,
    ModelError,
    ServerError,
)
from server.events.targets import target_of
from server.logs import censored, masked

MAX_BEHIND = 5
MAX_CHARS = 300
"""Of somebody else's words."""
MAX_OWN_CHARS = 4_000
"""Of what is wrong with the settings, each of which is named."""


def failed(subject: str, error: Exception, todo: str = "") -> Finding:
    """Something could not be asked, or its answer was a refusal."""
    return Finding(subject, State.FAILED, _words_of(error), todo)


def _words_of(error: BaseException) -> str:
    """What an error says, or what the one behind it does: libraries pass on some without a word."""
    one: BaseException | None = error
    for _ in range(MAX_BEHIND):
        if one is None:
            break
        is_ours = isinstance(one, ConfigurationError)
        if said := plain(str(one), MAX_OWN_CHARS if is_ours else MAX_CHARS):
            return said
        one = one.__cause__ or one.__context__
    return type(error).__name__


def late(subject: str, limit_s: float) -> Finding:
    """There was no answer."""
    return Finding(
        subject, State.FAILED, f"no answer within {limit_s:g} s", "see whether it is reached at all"
    )


def plain(text: str, most: int = MAX_CHARS) -> str:
    """Somebody else's words: on one line, not too many, and without a number in full."""
    line = censored(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def of_settings(warnings: Iterable[str], *, are_simulated: bool) -> list[Finding]:
    """The settings, which could be read: whose accounts they name, and what may be a mistake."""
    accounts = "no account is set: carrier and model are simulated" if are_simulated else "read"
    doubts = [Finding("settings", State.DOUBT, plain(warning)) for warning in warnings]
    return [Finding("settings", State.OK, accounts), *doubts]


# -- accounts -----------------------------------------------------------------------------------


def of_carrier(name: str, answer: AccountState | ServerError) -> Finding:
    """The carrier's account."""
    subject = f"carrier {name}"
    match answer:
        case CarrierError(status=401 | 403):
            todo = "set its account and secret (TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN, or a key)"
            return failed(subject, answer, todo)
        case CarrierError(status=None):
            return failed(
                subject, answer, "see whether this machine reaches it, and by which proxy"
            )
        case Exception():
            return failed(subject, answer)
        case AccountState(advice=str(advice)) if advice:
            return Finding(subject, State.FAILED, answer.found, advice)
        case AccountState(doubt=str(doubt)) if doubt:
            return Finding(subject, State.DOUBT, f"{answer.found}; {doubt}")
    return Finding(subject, State.OK, answer.found)


def of_model(
    name: str, key_name: str, agents: Sequence[str], answer: float | ModelError
) -> Finding:
    """Sessions of a model that were set up, or one that could not be.

    Args:
        name: The model's.
        key_name: What the key's setting is called.
        agents: Whose sessions.
        answer: How many seconds the slowest set-up took.
    """
    subject, who = f"model {name} ({key_name})", ", ".join(agents)
    if isinstance(answer, ModelError):
        todo = "" if answer.refusal is None else answer.refusal.advice
        return Finding(subject, State.FAILED, f"{who}: {plain(str(answer))}", todo)
    return Finding(subject, State.OK, f"set up within {answer:.1f} s, and closed: {who}")


def of_untried_model(name: str, agent: str, refused: CallRefused) -> Finding:
    """A session of a model that was not opened, as calls need it.

    Args:
        name: The model's.
        agent: Whose session.
        refused: Why.
    """
    found = f"{agent} and those after it were not tried: {refused}"
    todo = "check again when fewer calls are live; it takes two free ones of MAX_MODEL_SESSIONS"
    return Finding(f"model {name}", State.DOUBT, found, todo, was_asked=False)


def of_number(
    number: str, agent: str | None, answer: OwnNumber | ServerError | None, ours: NumberHooks
) -> Finding:
    """A number of the account's, as callers find it.

    Args:
        number: E.164.
        agent: Whose number it is, so that it has to be answered here; None for the one that calls
            come from, which need not.
        answer: As the carrier has it; None if it has no such number.
        ours: What it should be set to.
    """
    subject = f"number {masked(number)}" + (f" ({agent})" if agent else "")
    lacking = State.FAILED if agent else State.DOUBT
    todo = f"offhook number {masked(number)}" + (f" --agent {agent}" if agent else "")
    match answer:
        case ServerError():
            return failed(subject, answer)
        case None if agent:
            todo = "buy it there, or correct the agent's numbers"
            return Finding(subject, lacking, "it is not this account's", todo)
        case None:
            todo = "set TWILIO_PHONE_NUMBER to one that is, unless it is a verified caller ID"
            return Finding(subject, lacking, "it is not this account's: nobody can call it", todo)
        case OwnNumber(takes_calls=False):
            found = "it takes no calls, only messages"
            return Finding(subject, State.FAILED, found, "take another one")
        case OwnNumber(answered_by=str(other)) if other:
            found = f"{other} answers its callers, not its webhooks"
            if other == TRUNK:
                todo = "take it off the trunk in the Twilio Console"
            return Finding(subject, lacking, found, todo)
    if (voice := answer.hooks.voice_url) != ours.voice_url:
        return Finding(subject, lacking, _leads_to(voice, ours.voice_url), todo)
    if answer.hooks.status_url != ours.status_url:
        found = "its voice webhook is ours, its status callback is not"
        return Finding(subject, State.DOUBT, found, todo)
    return Finding(subject, State.OK, "its voice and status webhooks are ours")


def _leads_to(url: str, ours: str) -> str:
    """Where a number's callers go that do not come here."""
    if not url:
        return "it has no voice webhook: nobody answers it"
    if target_of(url) == target_of(ours):
        return "its voice webhook leads to another path of this server"
    return f"its voice webhook leads to {target_of(url)}, and not here"


# -- what is ours -------------------------------------------------------------------------------


def of_database(name: str, version: int | None, newest: int) -> Finding:
    """The database of records, by the version of its tables."""
    subject = f"database {name}"
    if version is None:
        return Finding(
            subject, State.OK, "there is nothing in it yet; its tables are made at start"
        )
    if version > newest:
        return Finding(
            subject,
            State.FAILED,
            f"a later version of this program has written it (schema {version}; {newest} is known)",
            "install that version, or name another DATABASE_URL",
        )
    if version < newest:
        found = f"schema {version}, which the next start brings to {newest}"
        return Finding(subject, State.OK, found)
    return Finding(subject, State.OK, f"schema {version}")


def of_new_database(name: str, *, is_writable: bool) -> Finding:
    """A database whose file is not there yet."""
    if is_writable:
        return Finding(f"database {name}", State.OK, "it is not there yet, and is made at start")
    todo = "name a file in a folder that this user may write to (DATABASE_URL)"
    return Finding(f"database {name}", State.FAILED, "its file cannot be made there", todo)


def of_public_url(url: str, answer: int | Exception, *, is_ours: bool, listens: str) -> Finding:
    """The address that the carrier reaches this server at.

    Args:
        url: It.
        answer: An HTTP status, or what went wrong.
        is_ours: Whether what has answered is a server like this one, or stands in for it.
        listens: Where this server does, or would.
    """
    subject = f"PUBLIC_URL {target_of(url)}"
    leads = f"have the tunnel or proxy lead to {listens}"
    if isinstance(answer, Exception):
        return failed(subject, answer, f"see whether its name and certificate are right; {leads}")
    if is_ours:
        return Finding(subject, State.OK, "reached from here, and it leads to an Offhook")
    found = "something else answers there" if answer == 200 else f"it answers with status {answer}"
    return Finding(subject, State.FAILED, found, leads)


def of_registry(url: str, error: Exception | None) -> Finding:
    """The registry of many machines."""
    subject = f"registry {url}"
    if error is not None:
        return failed(subject, error, "see whether REGISTRY_URL is right, and the registry runs")
    return Finding(subject, State.OK, "it answers")


def of_receiver(url: str, answer: Exception | None) -> Finding:
    """A receiver of events, which was connected to and not told anything."""
    subject = f"events to {target_of(url)}"
    if answer is not None:
        todo = "see whether EVENTS_URL (or the agent's events_url) is right, and the receiver runs"
        return failed(subject, answer, todo)
    return Finding(subject, State.OK, "it can be connected to; nothing was sent")
