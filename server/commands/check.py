"""``offhook check``: each account, number and address that is set is tried once, for real."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stdout
from functools import partial

import trio

from server import logs
from server.accounts import Accounts
from server.agent.agent import Agent
from server.carrier.account import AccountState
from server.checkup import Finding, State, all_is_well, findings
from server.checkup.asking import look
from server.commands.here import in_the_way
from server.commands.opening import all_agents, with_accounts
from server.errors import CannotListen, ConfigurationError, ServerError
from server.serving.listening import listen
from server.settings.settings import Settings

HEAD_S = 5.0
"""How long whoever asks the stand-in may take to do so."""
HEAD_BYTES = 8_192
_OK = b'{"status":"ok"}'
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_OK), _OK)
)
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def check(*, as_json: bool) -> int:
    """Try everything that is set, and print what was found; the value is the exit status.

    Args:
        as_json: Print it for a program.
    """
    found = [Finding("folder", State.DOUBT, said) for said in [in_the_way()] if said]
    logs.configure(level="WARNING")
    logging.disable(logging.CRITICAL)  # what is wrong is told as findings
    try:
        with redirect_stdout(sys.stderr):  # a module of the user's may print what it likes
            settings = Settings.load()
            found += trio.run(find, settings)
    except ServerError as error:
        found.append(findings.failed("settings", error))
    finally:
        logging.disable(logging.NOTSET)
    is_well = all_is_well(found)
    if as_json:
        whole = {"ok": is_well, "findings": [finding.as_dict() for finding in found]}
        print(json.dumps(whole, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        sys.stdout.writelines(map(_line, found))
    return 0 if is_well else 1


def _line(finding: Finding) -> str:
    word = finding.state.value.upper() if finding.state is State.FAILED else finding.state.value
    line = f"{word:7}{finding.subject}: {finding.found}\n"
    return f"{line}       → {finding.todo}\n" if finding.todo else line


async def find(settings: Settings) -> list[Finding]:
    """Open the accounts, ask everything once, and close them.

    Raises:
        ConfigurationError: The settings cannot be served with at all.
    """

    async def work(accounts: Accounts) -> list[Finding]:
        agents, wrong = [Agent()], list[Finding]()
        try:
            agents = list((await all_agents(settings, accounts)).by_name.values())
        except ConfigurationError as error:
            todo = "correct them; all else was tried without them"
            wrong.append(findings.failed("agents", error, todo))
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(accounts.carrier)
            except ConfigurationError as error:
                accounts.describe = partial(_unfit, error)
            if not accounts.are_simulated:
                await stack.enter_async_context(standing_in(settings.host, settings.port))
            return wrong + await look(settings, accounts, agents)

    return await with_accounts(settings, work)


async def _unfit(error: ConfigurationError) -> AccountState:
    await trio.lowlevel.checkpoint()
    raise error


@asynccontextmanager
async def standing_in(host: str, port: int) -> AsyncGenerator[None]:
    """Answer that all is well where the server would listen, if it does not.

    So it is seen that the public address leads here before anything is served.
    """
    try:
        listener = listen(host, port)
    except CannotListen:
        yield  # most likely the server itself
        return
    async with trio.open_nursery() as nursery:
        socket = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        await nursery.start(trio.serve_listeners, _answer, [socket])
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


async def _answer(stream: trio.SocketStream) -> None:
    """Answer one request; the carrier's are told to come again."""
    with trio.move_on_after(HEAD_S):
        try:
            head = b""
            while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES:
                if not (more := await stream.receive_some(HEAD_BYTES)):
                    break
                head += more
            is_question = head.startswith(b"GET ") and b"/healthz " in head.split(b"\r\n")[0]
            await stream.send_all(_ANSWER if is_question else _REFUSAL)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
    await trio.aclose_forcefully(stream)
