"""Asks everything that the settings name, all at once, each for a bounded time and only once.

Nothing is changed: a model's session is set up and closed, a number is looked up, a receiver is
connected to and told nothing.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpcore2
import httpx2
import msgspec
import trio
from sqlalchemy.exc import SQLAlchemyError

from server.accounts import Accounts
from server.agent.agent import DEFAULT_NAME, Agent
from server.agent.roster.agents import telephone_numbers
from server.carrier.account import AccountState, Numbers, OwnNumber
from server.checkup import Finding, State, findings
from server.cluster.redis.answers import flags
from server.cluster.redis.connection import check_installed, is_theirs, open_connection
from server.cluster.redis.scripts import Step
from server.errors import CallRefused, ConfigurationError, ModelError, ServerError, innermost
from server.events.targets import AddressRefused, GuardedBackend
from server.model import ModelAccount
from server.records.database.database import Database
from server.records.database.tables import SCHEMA_VERSION
from server.records.database.url import check_database, database_url
from server.settings.cluster import registry_address
from server.settings.settings import Settings

LIMIT_S = 20.0
"""For each question; all are asked at the same time."""
MAX_AGENTS = 20
"""Of one model whose set-up is tried."""
MAX_NUMBERS = 50
"""That are looked up."""
AT_ONCE = 4
"""Numbers that are looked up at the same time."""
MAX_ANSWER_BYTES = 4_096

Answer = Awaitable[list[Finding]]
Question = tuple[str, Callable[[], Answer]]
"""What it is about, and what asks it."""
SessionRoom = Callable[[], AbstractContextManager[None]]
"""Held while a session with a model is open; raises ``CallRefused`` if there is none to be had."""


async def look(
    settings: Settings,
    accounts: Accounts,
    agents: Collection[Agent],
    room: SessionRoom = nullcontext,
) -> list[Finding]:
    """Ask everything that the settings name.

    Args:
        settings: The process's.
        accounts: The carrier and the model, opened.
        agents: All there are.
        room: For each session with a model that is opened.

    Returns:
        What was found, in an order that stays the same.
    """
    found = findings.of_settings(settings.warnings, are_simulated=accounts.are_simulated)
    # Reading the certificates takes tens of milliseconds, which calls of this process would hear.
    tls = await trio.to_thread.run_sync(ssl.create_default_context)
    return found + await ask_all(questions(settings, accounts, agents, tls, room), limit_s=LIMIT_S)


def questions(
    settings: Settings,
    accounts: Accounts,
    agents: Collection[Agent],
    tls: ssl.SSLContext,
    room: SessionRoom = nullcontext,
) -> Iterable[Question]:
    """Everything that can be asked."""
    if (describe := accounts.describe) is not None:
        yield "carrier", partial(_ask_carrier, accounts.carrier.name, describe)
    if (numbers := accounts.numbers) is not None:
        # Whatever number is called in a simulation, it is called here.
        answering = () if accounts.are_simulated else agents
        yield "numbers", partial(_ask_numbers, numbers, accounts.own_number, answering)
    first, *others = accounts.model_accounts
    for name, speaking in _by_model(first.name, agents).items():
        model = first if name == first.name else first.of_model(name)
        yield f"model {name}", partial(_ask_model, model, speaking, room)
    default = [agent for agent in agents if agent.name == DEFAULT_NAME]
    for other in others:
        yield f"model {other.name}", partial(_ask_model, other, default, room)
    yield "database", partial(_ask_database, settings.database_url.get_secret_value())
    if settings.registry_url is not None:
        url = settings.registry_url.get_secret_value()
        yield "registry", partial(_ask_registry, url, settings.registry_timeout_s)
    if settings.carrier == "twilio" and settings.public_url is not None:  # the simulated one, too
        yield "PUBLIC_URL", partial(_ask_public_url, accounts.public_url, settings, tls)
    receivers = {settings.events_url, *(agent.events_url for agent in agents)} - {None}
    for receiver in sorted(url for url in receivers if url):
        ask = partial(_ask_receiver, receiver, tls, allow_private=settings.events_allow_private)
        yield "events", ask


async def ask_all(asked: Iterable[Question], *, limit_s: float) -> list[Finding]:
    """Ask all of these at once; what is not answered in time, or is refused, is a finding."""
    asked = list(asked)
    answers: list[list[Finding]] = [[] for _ in asked]

    async def ask(place: int) -> None:
        subject, question = asked[place]
        with trio.move_on_after(limit_s) as waiting:
            try:
                answers[place] = await question()
            except ServerError as error:
                answers[place] = [findings.failed(subject, error)]
        if waiting.cancelled_caught:
            answers[place] = [findings.late(subject, limit_s)]

    async with trio.open_nursery() as nursery:
        for place in range(len(asked)):
            nursery.start_soon(ask, place)
    return [finding for answer in answers for finding in answer]


def _by_model(default: str, agents: Iterable[Agent]) -> dict[str, list[Agent]]:
    speaking: dict[str, list[Agent]] = {default: []}
    for agent in agents:
        speaking.setdefault(agent.model or default, []).append(agent)
    return speaking


# -- accounts -----------------------------------------------------------------------------------


async def _ask_carrier(name: str, describe: Callable[[], Awaitable[AccountState]]) -> list[Finding]:
    answer: AccountState | ServerError
    try:
        answer = await describe()
    except ServerError as error:
        answer = error
    return [findings.of_carrier(name, answer)]


async def _ask_numbers(numbers: Numbers, own: str, agents: Iterable[Agent]) -> list[Finding]:
    """Look up the number that calls come from, and those that agents answer."""
    wanted: dict[str, str | None] = {own: None, **telephone_numbers(agents)}
    looked_up = list(wanted.items())[:MAX_NUMBERS]
    found: list[Finding | None] = [None] * len(looked_up)
    turns = trio.CapacityLimiter(AT_ONCE)

    async def ask(place: int, number: str, agent: str | None) -> None:
        answer: OwnNumber | ServerError | None
        async with turns:
            try:
                answer = await numbers.find(number)
            except ServerError as error:
                answer = error
        found[place] = findings.of_number(number, agent, answer, numbers.ours)

    async with trio.open_nursery() as nursery:
        for place, (number, agent) in enumerate(looked_up):
            nursery.start_soon(ask, place, number, agent)
    left = len(wanted) - len(looked_up)
    rest = [Finding("numbers", State.DOUBT, f"{left} more were not looked up")] if left else []
    return [one for one in found if one is not None] + rest


async def _ask_model(
    model: ModelAccount, agents: Iterable[Agent], room: SessionRoom
) -> list[Finding]:
    """Set a session up for each agent that speaks with a model, one after the other."""
    slowest_s, tried, wrong = 0.0, list[str](), list[Finding]()
    for agent in list(agents)[:MAX_AGENTS]:
        try:
            with room():
                began = trio.current_time()
                try:
                    async with model.open_connection(agent):
                        slowest_s = max(slowest_s, trio.current_time() - began)
                    tried.append(agent.name)
                except* ModelError as failures:
                    error = innermost(failures)
                    assert isinstance(error, ModelError)
                    name = agent.name
                    wrong.append(findings.of_model(model.name, model.key_name, [name], error))
        except CallRefused as refused:
            wrong.append(findings.of_untried_model(model.name, agent.name, refused))
        if wrong:
            break  # the next would most likely be refused for the same reason
    if tried:
        wrong.append(findings.of_model(model.name, model.key_name, tried, slowest_s))
    return wrong


# -- what is ours -------------------------------------------------------------------------------


async def _ask_database(text: str) -> list[Finding]:
    return [await trio.to_thread.run_sync(_look_at_database, text, abandon_on_cancel=True)]


def _look_at_database(text: str) -> Finding:
    """Read the version of a database's tables; a file that is not there is not made."""
    try:
        url = database_url(text)
        check_database(text)
    except ConfigurationError as error:
        return findings.failed("database", error)
    place = url.database or "in memory"
    if url.host:
        place = f"{url.get_backend_name()} {url.host}/{place}"
    if url.get_backend_name() == "sqlite" and url.database and not url.query.get("uri"):
        path = Path(url.database)
        if not path.exists():
            return findings.of_new_database(place, is_writable=_can_be_made(path))
    database = Database(url)
    try:
        version = database.use(database.version)
    except SQLAlchemyError as error:
        words = Exception(str(error).splitlines()[0])
        return findings.failed(f"database {place}", words, "see whether DATABASE_URL is right")
    finally:
        database.close()
    return findings.of_database(place, version, SCHEMA_VERSION)


def _can_be_made(path: Path) -> bool:
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


async def _ask_registry(url: str, timeout_s: float) -> list[Finding]:
    check_installed()
    address = registry_address(url)
    failure: Exception | None = None
    try:
        async with open_connection(address, timeout_s) as connection:
            flags(await connection.ask(Step("return {1}", "offhook:check")))
    except* Exception as failures:
        first = innermost(failures)
        if not isinstance(first, Exception) or not is_theirs(first):
            raise
        failure = first
    places = ",".join(f"{host}:{port}" for host, port in address.hosts) or address.path
    return [findings.of_registry(places, failure)]


async def _ask_public_url(url: str, settings: Settings, tls: ssl.SSLContext) -> list[Finding]:
    answer: int | Exception
    is_ours = False
    try:
        async with httpx2.AsyncClient(trust_env=False, verify=tls, timeout=LIMIT_S) as client:
            request = client.stream(
                "GET",
                f"{url.rstrip('/')}/healthz",
                headers={"Accept-Encoding": "identity"},
                follow_redirects=False,
            )
            async with request as response:
                answer, content = response.status_code, b""
                async for part in response.aiter_raw():
                    content += part
                    if len(content) > MAX_ANSWER_BYTES:
                        break
        is_ours = answer == 200 and _says_ok(content)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        answer = error
    listens = f"{settings.host}:{settings.port}"
    return [findings.of_public_url(url, answer, is_ours=is_ours, listens=listens)]


def _says_ok(content: bytes) -> bool:
    try:
        said = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("status") == "ok"


async def _ask_receiver(url: str, tls: ssl.SSLContext, *, allow_private: bool) -> list[Finding]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host, failure = parts.hostname or "", None
    try:
        stream = await GuardedBackend(allow_private=allow_private).connect_tcp(host, port)
        try:
            if parts.scheme == "https":
                stream = await stream.start_tls(tls, host, LIMIT_S)
        finally:
            await stream.aclose()
    except (httpcore2.NetworkError, httpcore2.TimeoutException, AddressRefused, OSError) as error:
        failure = error
    return [findings.of_receiver(url, failure)]
