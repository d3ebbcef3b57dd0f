"""``offhook dev``: serves while you write: restarts, a tunnel, and the number's webhooks."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
import trio
from pydantic import ValidationError

import server
from server import logs
from server.accounts import Accounts, local_url
from server.agent.roster.agents import telephone_numbers
from server.carrier.account import Numbers
from server.commands.kept import FILE, Kept, Moved
from server.commands.number import ask, set_hooks
from server.commands.opening import all_agents, with_accounts
from server.commands.processes import running
from server.commands.serve import overrides_of
from server.commands.tunnel import find_program, open_tunnel
from server.commands.watching import Code
from server.errors import CarrierError, ServerError, innermost
from server.hooks.stopping import StopSignals
from server.serving.listening import listen
from server.serving.stops import stop_signals
from server.settings import accounts as account_settings
from server.settings.file import expanded, is_folder
from server.settings.settings import Settings
from server.web.keys import new_key

READY_S = 60.0
"""How long it is waited that the server answers, to say where; it goes on in any case."""
POLL_S = 0.2
RESTORE_S = 15.0
"""For the numbers' webhooks to be set back at the end."""
ASK_S = 5.0
END_S = 50.0
"""How long the server may take to end beside its drain and its calls' goodbyes."""
WHILE_WRITTEN: Mapping[str, Any] = MappingProxyType(
    {"drain_timeout_s": 0.0, "farewell_timeout_s": 2.0, "agents_watch": True}
)
"""Calls end with a short goodbye when the server is started again, and agents are read at once.

What ``.env`` says of these is for a server that is in use, and only the environment counts more.
"""


def say(text: str) -> None:
    """Tell whoever is at the terminal, if anybody still is: there may be numbers to set back."""
    try:
        print(f"offhook dev: {text}", flush=True)  # noqa: T201
    except (BlockingIOError, UnicodeEncodeError):  # the next may be heard
        pass
    except (OSError, ValueError):  # they have gone, or it is closed
        # For good, or what could not be written would be tried again as the process ends, and fail
        # it.
        sys.stdout = None


def dev(chosen: argparse.Namespace) -> int:
    """Serve until told to stop; the value is the exit status.

    Raises:
        ConfigurationError: The settings do not fit, or there is no tunnel.
        CannotListen: The address is taken.
    """
    overrides = overrides_of(chosen)
    logs.configure(level="WARNING")
    signals = stop_signals()
    signals.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder may have any name
    try:
        return trio.run(develop, overrides, chosen.tunnel, chosen.yes, signals)
    finally:
        try:
            print(end="", flush=True)  # noqa: T201
        except (OSError, ValueError):  # nobody has read it until now
            sys.stdout = None


async def develop(
    overrides: Mapping[str, Any], tunnel: str, is_sure: bool, signals: StopSignals
) -> int:
    """Serve, in a process of its own that is begun again when its code changes.

    Args:
        overrides: Settings that the command line has said.
        tunnel: What opens one, ``none``, or ``auto`` for whatever is installed, if it is needed.
        is_sure: Set webhooks unasked.
        signals: What stops it; a second Ctrl+C, later, kills the server. Neither, however often it
            comes, keeps a number from being set back.

    Raises:
        ConfigurationError: The settings do not fit, or there is no tunnel.
        CannotListen: The address is taken.
    """
    stop, hurry = trio.Event(), trio.Event()
    failure: BaseException | None = None
    with signals.told(stop, hurry.set):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_at, stop, nursery.cancel_scope)
                await _develop(overrides, tunnel, hurry, is_sure=is_sure)
        except* ServerError as failures:
            failure = innermost(failures)
    if failure is not None:
        raise failure
    return 0


async def _end_at(stop: trio.Event, scope: trio.CancelScope) -> None:
    await stop.wait()
    say("ending")
    scope.cancel("somebody has asked for it")


async def _develop(
    overrides: Mapping[str, Any], tunnel: str, hurry: trio.Event, *, is_sure: bool
) -> None:
    async with AsyncExitStack() as stack:
        in_environment = {name.lower() for name in os.environ}
        said = {
            name: value for name, value in WHILE_WRITTEN.items() if name not in in_environment
        } | dict(overrides)
        plain = _settings(said)
        local = url_here(plain)
        listen(plain.host, plain.port).close()  # so that it is said now, and not by a child
        if tunnel != "none" and (tunnel != "auto" or _needs_tunnel(plain)):
            program, path = find_program(None if tunnel == "auto" else tunnel)
            say(f"opening a tunnel by {program.name}")
            address = await stack.enter_async_context(open_tunnel(program, path, local))
            say(f"{address} leads to {local}")
            said["public_url"] = address
            if plain.api_key is None and not plain.api_keys:
                # Without an account a server lets everybody in, and now everybody can come.
                said["api_key"] = new_key()
                say(f"the API's key, until this ends: {said['api_key']}")
        settings = Settings.load(**said)
        serving = Serving(settings, said, hurry)
        if settings.account is None or settings.carrier != "twilio":
            await serving.run()
            return

        async def with_numbers(accounts: Accounts) -> None:
            async with accounts.carrier, pointed(settings, accounts, is_sure=is_sure):
                await serving.run()

        await with_accounts(settings, with_numbers)


def _settings(said: Mapping[str, Any]) -> Settings:
    """The settings before it is asked whether they are whole: an address may be missing yet."""
    try:
        return Settings(**said)
    except ValidationError:
        Settings.load(**said)  # which says it in words
        raise


def _needs_tunnel(settings: Settings) -> bool:
    """Whether Twilio has to reach this machine, and nothing says where."""
    keys = (getattr(settings, name) for name in account_settings.TWILIO)
    return settings.public_url is None and settings.carrier == "twilio" and any(keys)


def url_here(settings: Settings) -> str:
    """Where this machine itself reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return local_url(host, settings.port)


# -- numbers ------------------------------------------------------------------------------------


@asynccontextmanager
async def pointed(settings: Settings, accounts: Accounts, *, is_sure: bool) -> AsyncGenerator[None]:
    """Have the account's numbers lead here until the block ends, if that is wanted.

    How they were is in a file meanwhile: where the process is killed, the next one sets them back.
    """
    if (numbers := accounts.numbers) is None:
        yield
        return
    kept: Kept | None = None
    try:
        try:
            kept = Kept.open(Path.cwd())
            await _set_back(numbers, kept)
            await _point(settings, accounts, numbers, kept, is_sure=is_sure)
        except ServerError as error:
            say(f"the number's webhooks stay as they are: {error}")
            if kept is not None:
                await _set_back(numbers, kept)
        yield
    finally:
        if kept is not None:
            with trio.move_on_after(RESTORE_S, shield=True):
                await _set_back(numbers, kept)
            kept.close()


async def _point(
    settings: Settings, accounts: Accounts, numbers: Numbers, kept: Kept, *, is_sure: bool
) -> None:
    """Set the webhooks of numbers that lead elsewhere, and keep how they were."""
    agents = await all_agents(settings, accounts)
    wanted = [accounts.own_number, *telephone_numbers(agents.by_name.values())]
    wanted = [one for one in dict.fromkeys(wanted) if one not in kept.by_number]
    found = [await numbers.find(number) for number in wanted]
    elsewhere = [one for one in found if one is not None and one.hooks != numbers.ours]
    for one in [one for one in elsewhere if one.answered_by]:
        say(f"{one.answered_by} answers {one.number}: its webhooks are left alone")
    elsewhere = [one for one in elsewhere if not one.answered_by]
    if not elsewhere:
        return
    for one in elsewhere:
        say(f"callers of {one.number} are sent to {one.hooks.voice_url or 'nobody'}")
    if not is_sure and not sys.stdin.isatty():
        say("there is nobody to ask whether they are to come here: say --yes")
        return
    question = f"Send them to {numbers.ours.voice_url} until this ends?"
    if not is_sure and not await trio.to_thread.run_sync(ask, question, abandon_on_cancel=True):
        return
    for one in elsewhere:
        kept.keep(Moved(one, numbers.ours))
        await set_hooks(numbers, one, numbers.ours)
    say("they come here now")


async def _set_back(numbers: Numbers, kept: Kept) -> None:
    """Set webhooks as they were, but those that somebody else has set meanwhile."""
    for number, moved in list(kept.by_number.items()):
        try:
            now = await numbers.find(number)
            if now is None:
                say(f"{number} is not this account's: how it was stays in {FILE}")
                continue
            if now.hooks == moved.ours:
                await set_hooks(numbers, moved.before, moved.before.hooks)
                say(f"{number} is as it was")
            kept.forget(number)
        except CarrierError as error:
            was = moved.before.hooks.voice_url or "nobody"
            say(f"{number} could not be set back to {was}: {error.message}; see {FILE}")


# -- the server ---------------------------------------------------------------------------------


@dataclass
class Serving:
    """The server's process, again and again.

    Args:
        settings: As the server has them.
        said: Those that it is told, beside what it reads itself.
        hurry: Set when it is to have no more time to end.
    """

    settings: Settings
    said: Mapping[str, Any]
    hurry: trio.Event
    _has_told: bool = False

    async def run(self) -> None:
        """Serve until cancelled."""
        code, everything = self._code(serves=True), self._code(serves=False)
        stop_s = self.settings.drain_timeout_s + self.settings.farewell_timeout_s + END_S
        while True:
            # Whatever the process that begins now may not have read is a change.
            await code.look()
            await everything.look()
            async with running(
                self._command, stop_s=stop_s, hurry=self.hurry, env=self._env()
            ) as process:
                changed = await self._wait_over(process, code)
            if changed is None:
                say(f"the server has ended with status {process.returncode}: mend it, and save")
                changed = await everything.wait_changed()
            say(f"{_shown(changed)} changed: starting again")

    async def _wait_over(self, process: trio.Process, code: Code) -> list[str] | None:
        """Wait until the code changes, or the process ends: then None."""
        changed: list[str] | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal changed
                changed = await code.wait_changed()
                nursery.cancel_scope.cancel("it is begun again")

            nursery.start_soon(watch)
            nursery.start_soon(self._tell_where)
            await process.wait()
            nursery.cancel_scope.cancel("it has ended")
        return changed

    def _code(self, *, serves: bool) -> Code:
        """What to watch: of agents nothing while a server reads them again by itself."""
        settings = self.settings
        others = [Path(".env").absolute()]
        if settings.simulated_model_script is not None:
            others.append(expanded(settings.simulated_model_script).absolute())
        if (agents := settings.agents) is None:
            return Code(Path.cwd(), tuple(others))
        agents = expanded(agents).absolute()
        if not serves:
            return Code(Path.cwd(), tuple(others), agents=agents)
        module = agents / "agents.py" if is_folder(agents) else agents
        return Code(Path.cwd(), tuple(others), module)

    @property
    def _command(self) -> list[str]:
        # -P: a server.py of the folder's is not to be started in this program's place.
        return [sys.executable, "-P", "-m", "server", "serve"]

    def _env(self) -> dict[str, str]:
        """The process's environment, which counts more than ``.env``."""
        ours = str(Path(server.__file__).parent.parent)
        path = [ours, *filter(None, [os.environ.get("PYTHONPATH")])]
        told = {name.upper(): str(value) for name, value in self.said.items()}
        return os.environ | told | {"PYTHONPATH": os.pathsep.join(path)}

    async def _tell_where(self) -> None:
        """Say once where the server is, as soon as it answers."""
        if self._has_told:
            return
        url, public = url_here(self.settings), self.settings.public_url
        with trio.move_on_after(READY_S):
            async with httpx2.AsyncClient(trust_env=False, verify=False, timeout=ASK_S) as client:
                while not await _answers(client, f"{url}/healthz"):  # noqa: ASYNC110
                    await trio.sleep(POLL_S)
                self._has_told = True
                say(f"serving at {url}")
                if await _answers(client, f"{url}/phone"):
                    also = f", or {public}/phone" if public else ""
                    say(f"talk with it in a browser: {url}/phone{also}")


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(os.path.relpath(name) for name in names[:3]) + more


async def _answers(client: httpx2.AsyncClient, url: str) -> bool:
    with suppress(httpx2.HTTPError):
        return (await client.get(url)).status_code == 200
    return False
