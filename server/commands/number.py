"""``offhook number``: a number's callers come to this server, and to one of its agents."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import trio

from server import logs
from server.accounts import Accounts
from server.agent.roster.agents import Agents
from server.agent.roster.described import Misdescribed, check_inbound
from server.agent.roster.numbering import add_number, file_of
from server.carrier.account import TRUNK, NumberHooks, Numbers, OwnNumber
from server.commands.opening import all_agents, with_accounts
from server.errors import CarrierError, ConfigurationError
from server.settings.numbers import e164
from server.settings.settings import Settings

Confirm = Callable[[str], bool]
"""Asks whether to go on."""


def point_number(text: str, agent: str | None, *, is_sure: bool) -> int:
    """Have a number's callers come here; the value is the exit status.

    Args:
        text: The number, as people write it.
        agent: Who answers; None to leave that as it is.
        is_sure: Do not ask.

    Raises:
        ConfigurationError: The number, the agent or the settings do not fit.
        CarrierError: The carrier refuses, or is not reached.
    """
    logs.configure(level="WARNING")
    return trio.run(point, Settings.load(), text, agent, _always if is_sure else ask)


def _always(question: str) -> bool:
    return True


def ask(question: str) -> bool:
    """Ask whoever is at the terminal.

    Raises:
        ConfigurationError: Nobody is.
    """
    if not sys.stdin.isatty():
        raise ConfigurationError("there is nobody to ask here: say --yes")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:  # Ctrl+D
        print()  # noqa: T201
        return False
    return answer.strip().lower() in ("y", "yes", "s", "sí", "si")


async def point(settings: Settings, text: str, agent: str | None, confirm: Confirm) -> int:
    """Set a number's webhooks, and write it into an agent's file, where that is not so already.

    Raises:
        ConfigurationError: The number or the agent does not fit.
        CarrierError: The carrier refuses, or is not reached.
    """
    try:
        number = e164(text)
    except ValueError as error:
        raise ConfigurationError(f"{text!r}: {error}") from None

    async def work(accounts: Accounts) -> int:
        agents = await all_agents(settings, accounts)
        path = _file_to_change(settings, agents, number, agent)
        changed = "" if path is None else add_number(path, number)
        async with accounts.carrier:
            numbers = None if accounts.are_simulated else accounts.numbers
            own = None if numbers is None else await _look_up(numbers, number)
            hooks = None
            if numbers is None or own is None:
                print(_why_not(accounts, settings.carrier))  # noqa: T201
            else:
                _show(own, numbers.ours)
                if own.hooks != numbers.ours or own.answered_by:
                    hooks = numbers.ours
            if path is not None:
                print(f"{path}: numbers + {number}")  # noqa: T201
            if hooks is None and path is None:
                print(f"{number}: nothing to change")  # noqa: T201
                return 0
            if not confirm(f"Change {number} like this?"):
                print("nothing is changed")  # noqa: T201
                return 1
            if numbers is not None and own is not None and hooks is not None:
                await set_hooks(numbers, own, hooks)
        if path is not None:
            write(path, changed)
            print("a server that runs reads it with: offhook --reload-agents")  # noqa: T201
        print("done")  # noqa: T201
        return 0

    return await with_accounts(settings, work)


async def set_hooks(numbers: Numbers, own: OwnNumber, hooks: NumberHooks) -> None:
    """Set a number's webhooks, and see whether they are set.

    Raises:
        CarrierError: They are not.
    """
    if (await numbers.set_hooks(own, hooks)).hooks != hooks:
        raise CarrierError("the carrier took the addresses, and shows others")


def _why_not(accounts: Accounts, carrier: str) -> str:
    if accounts.are_simulated:
        return "no account is set: calls are simulated, and come to this server"
    if carrier == "asterisk":
        return "who gets calls is said in the PBX's dialplan: docs/asterisk.md"
    return "no account of a carrier is set: no number leads anywhere yet"


async def _look_up(numbers: Numbers, number: str) -> OwnNumber:
    """The number as its carrier has it.

    Raises:
        ConfigurationError: Its webhooks cannot be set, or would not count.
        CarrierError: Refused or not reached.
    """
    if (own := await numbers.find(number)) is None:
        raise ConfigurationError(f"{number} is not one of this account's numbers")
    if not own.takes_calls:
        raise ConfigurationError(f"{number} takes no calls, only messages")
    if own.answered_by == TRUNK:
        raise ConfigurationError(
            f"a SIP trunk answers {number}: take it off the trunk in the Twilio Console first"
        )
    return own


def _file_to_change(
    settings: Settings, agents: Agents, number: str, agent: str | None
) -> Path | None:
    """The file of the agent that is to have the number; None if there is nothing to write."""
    owner = next((one.name for one in agents.by_name.values() if number in one.numbers), None)
    if agent is None or owner == agent:
        return None
    if (wanted := agents.by_name.get(agent)) is None:
        known = ", ".join(sorted(agents.by_name))
        raise ConfigurationError(f"there is no agent {agent}; there are {known}")
    if owner is not None:
        raise ConfigurationError(f"{number} is the agent {owner}'s: take it off its numbers first")
    if (path := file_of(settings, agent)) is None:
        raise ConfigurationError(
            f'the agent {agent} is not in a TOML file: add numbers=["{number}"] where it is written'
        )
    if agents.route is None:
        try:
            check_inbound(replace(wanted, numbers=(number,)))
        except Misdescribed as error:
            raise ConfigurationError(f"{path}: numbers {error.problems[0][1]}") from None
    return path


def _show(own: OwnNumber, hooks: NumberHooks) -> None:
    now = own.hooks
    before = own.answered_by or _asked(now.voice_method, now.voice_url)
    for name, old, new in (
        ("voice webhook", before, _asked(hooks.voice_method, hooks.voice_url)),
        (
            "status callback",
            _asked(now.status_method, now.status_url),
            _asked(hooks.status_method, hooks.status_url),
        ),
    ):
        said = f"stays {new}" if old == new else f"{old or 'none'}\n{'':18}→ {new}"
        print(f"{name:16}: {said}")  # noqa: T201


def _asked(method: str, url: str) -> str:
    return f"{url} (by {method})" if url and method != "POST" else url


def write(path: Path, text: str) -> None:
    """Put a file of text in the place of one that is there, all of it or nothing.

    Raises:
        ConfigurationError: It cannot be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(text.encode())
        beside.chmod(path.stat().st_mode & 0o7777)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from None
