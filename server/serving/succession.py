"""How a server is taken over by another on the same machine: where they meet, and what they say.

Whoever serves waits at a Unix socket in a private directory that is named by the address it
listens at. A new server of the same user, started with ``--take-over``, comes there:

::

    new                                old
     │ {"speaks": 2}                ──▶ │
     │ ◀── {"speaks": 2, "secret": …}   │   with the listening socket (SCM_RIGHTS)
     │ … starts, with the old one's secret: they have one directory of processes, one made key …
     │ {"ready": true}              ──▶ │
     │ ◀──           {"relieved": true} │   accepts no more, and ends when its calls have
     │ accepts; waits at the Unix socket in the old one's place

Whoever only wants the agents to be read again says so, and is told what came of it:

::

    {"speaks": 3, "wants": "agents"} ──▶
                                     ◀── {"told": "3 agents"} or {"wrong": "…"}

Until it is ready nothing has changed for the old one, however the new one ends. Both accept from
one queue of the system's, so that nobody is refused between them. The secret is on no disk. An old
one that was held up just then, and could not answer in time, finds the new one in its place. A new
one that was too late asks again when it is ready: one that ``ends`` by then is relieved all the
same, or nobody would serve in the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import structlog
import trio

from server.cluster.directory.meeting import private_directory, secret_to_share, share
from server.errors import CannotListen, ConfigurationError, ServerError
from server.hooks.sockets import OwnListener

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SPEAKS = 2
"""Raised when servers of before and after could not be one: when this talk changes, or what the
processes of a server have in common (:mod:`server.cluster`)."""
SPEAKS_OF_AGENTS = 3
"""So that a server of before there was anything to be wanted refuses, and offers no socket."""
MAX_MESSAGE_BYTES = 16 * 1024
MAX_TOLD_CHARS = 2_000
ANSWER_TIMEOUT_S = 10.0
"""Neither has anything to do for its answer."""
START_TIMEOUT_S = 300.0
"""For a new server to be ready, with all its processes."""
RELOAD_TIMEOUT_S = 60.0
"""For agents to be read, which may import what takes long."""
STEPS_IN_WITHIN_S = 10.0
"""For one that waits no longer for our answer to be in our place; else it is gone."""
LOOK_S = 0.1
MOST_VISITORS = 8
AGENTS = "agents"
_CREDENTIALS = struct.Struct("3i")


class TakeOverRefused(ServerError):
    """The other server does not take part, or says what it must not; the message says why."""


def meeting_point(host: str, port: int) -> str:
    """The name of the directory where those meet who serve this address, one after the other."""
    network = ""
    with suppress(OSError):  # Linux: two may have the same address in networks of their own
        network = str(Path("/proc/self/ns/net").stat().st_ino)
    what = f"{os.getuid()} {network} {host} {port}"
    return f"offhook-at-{port}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


# -- what they say ---------------------------------------------------------------------------


def write_message(**facts: object) -> bytes:
    """One message: a line of JSON."""
    # As it is and not escaped: that would be three times as long, and texts are bounded by length.
    return json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def read_message(line: bytes) -> Mapping[str, Any]:
    """What a message says.

    Raises:
        TakeOverRefused: It is none, or refuses.
    """
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise TakeOverRefused("it said something that is no message of a take-over")
    if "refused" in facts:
        raise TakeOverRefused(str(facts["refused"])[:200])
    return facts


def check_version(facts: Mapping[str, Any]) -> None:
    """Check that the other server can be one with this one.

    Raises:
        TakeOverRefused: It is too old, or too new.
    """
    if facts.get("speaks") != SPEAKS:
        raise TakeOverRefused(
            f"the two versions do not go together (take-over {SPEAKS} here, "
            f"{str(facts.get('speaks'))[:20]} there): stop the old one and start the new one"
        )


async def _receive(
    connection: trio.SocketStream, timeout_s: float
) -> tuple[Mapping[str, Any], socket.socket | None]:
    """Receive one message, and the socket that came with it."""
    text, given = b"", None
    try:
        with trio.fail_after(timeout_s):
            while not text.endswith(b"\n"):
                some, rights, _, _ = await connection.socket.recvmsg(
                    MAX_MESSAGE_BYTES, socket.CMSG_SPACE(4)
                )
                for _, _, number in rights:
                    if given is not None:
                        given.close()
                    given = socket.socket(fileno=int.from_bytes(number[:4], sys.byteorder))
                    given.set_inheritable(False)
                text += some
                if not some:
                    raise EOFError("it has gone")
                if len(text) > MAX_MESSAGE_BYTES:
                    raise TakeOverRefused("what it said is too long for a message")
        return read_message(text), given
    except BaseException:
        if given is not None:
            given.close()
        raise


def _check_user(connection: trio.SocketStream) -> None:
    """Check that the other one is a process of this user, as the directory's mode says already."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS
        return
    facts = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(facts)[1] != os.getuid():
        raise TakeOverRefused("it is another user's")


# -- the old one -----------------------------------------------------------------------------


class Succession:
    """Waits for a server that takes over.

    Args:
        listener: Goes to that one; a duplicate is kept until then.
        host: The address that we were told to listen at.
        port: The port that we listen at.
        reload_agents: Reads the agents again, and says in words what there is then; raises a
            ConfigurationError if they are wrong.
        is_ending: Whether this server has been told to stop, though calls may keep it for a while.

    Attributes:
        relieved: Set when another server has taken over.
    """

    def __init__(
        self,
        listener: socket.socket,
        host: str,
        port: int,
        reload_agents: Callable[[], Awaitable[str]],
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self.relieved = trio.Event()
        self._reload_agents = reload_agents
        self._is_ending = is_ending
        # Not socket.dup, which lets accept() block, for all who have this socket.
        self._listener = socket.socket(fileno=os.dup(listener.fileno()))
        self._where = meeting_point(host, port)
        self._point: Path | None = None
        self._ours: _Mark | None = None  # of our own socket there
        self._is_asked = False
        self._visitors = trio.CapacityLimiter(MOST_VISITORS)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait until relieved; one that cannot be found there serves all the same.

        Args:
            task_status: Told when another server, or a reload, that comes now is answered.
        """
        with self._listener:
            try:
                point = private_directory(self._where) / "meet"
                unix = _listen_in_place_of(point)
                self._point, self._ours = point, _mark(point)
            except (ConfigurationError, OSError) as error:
                logger.warning("this server cannot be taken over", error=str(error))
                task_status.started()
                await trio.sleep_forever()
            listener = OwnListener(unix)
            task_status.started()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.serve_listeners, self._meet, [listener])
                    await self.relieved.wait()
                    nursery.cancel_scope.cancel("another waits there now")
            finally:
                if not (self.relieved.is_set() or self._is_replaced()):
                    with suppress(OSError):
                        point.unlink()
                        point.parent.rmdir()

    async def _meet(self, connection: trio.SocketStream) -> None:
        try:
            self._visitors.acquire_on_behalf_of_nowait(connection)
        except trio.WouldBlock:
            await connection.aclose()
            return
        try:
            async with connection:
                await self._talk(connection)
        except (EOFError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            logger.warning("take-over not finished; this server goes on", error=repr(error))
        except Exception:
            logger.exception("take-over failed by a bug of ours; this server goes on")
        finally:
            self._visitors.release_on_behalf_of(connection)

    async def _talk(self, connection: trio.SocketStream) -> None:
        try:
            _check_user(connection)
            asked = await _message(connection, ANSWER_TIMEOUT_S)
            if asked.get("wants") == AGENTS:
                await self._reload(connection)
                return
            check_version(asked)
            if self._is_asked:
                raise TakeOverRefused("another take-over is under way: try again when it is over")
        except TakeOverRefused as refusal:
            logger.warning("take-over refused", reason=str(refusal))
            with trio.move_on_after(ANSWER_TIMEOUT_S):
                await connection.send_all(write_message(refused=str(refusal)))
            return
        self._is_asked = True
        try:
            await self._hand_over(connection)
        finally:
            self._is_asked = False

    async def _reload(self, connection: trio.SocketStream) -> None:
        try:
            with trio.fail_after(RELOAD_TIMEOUT_S):
                answer = {"told": (await self._reload_agents())[:MAX_TOLD_CHARS]}
        except ConfigurationError as error:
            answer = {"wrong": str(error)[:MAX_TOLD_CHARS]}
        except trio.TooSlowError:
            answer = {"wrong": f"AGENTS: not read within {RELOAD_TIMEOUT_S:g} s"}
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            await connection.send_all(write_message(**answer))

    async def _hand_over(self, connection: trio.SocketStream) -> None:
        ends = {"ends": True} if self._is_ending() else {}
        offer = write_message(speaks=SPEAKS, secret=secret_to_share().hex(), **ends)
        number = self._listener.fileno().to_bytes(4, sys.byteorder)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, number)
        # It is far less than fits into the socket of somebody who has been sent nothing.
        await connection.socket.sendmsg([offer], [rights])
        logger.info("another server starts, to take over")
        try:
            said = await _message(connection, START_TIMEOUT_S)
            if said.get("ready") is not True:
                raise TakeOverRefused("it did not say that it is ready")
        except (TakeOverRefused, trio.TooSlowError) as error:
            reason = str(error) or f"it was not ready within {START_TIMEOUT_S:.0f} s"
            logger.warning("take-over refused", reason=reason)
            if not await _could_tell(connection, refused=reason):
                await self._wait_replaced()
            return
        # It serves from now on, whether or not it lives to hear that.
        with trio.CancelScope(shield=True):
            if await _could_tell(connection, relieved=True):
                self.relieved.set()
                return
        await self._wait_replaced()

    def _is_replaced(self) -> bool:
        """Whether another server waits where those meet who want to take over."""
        return self._point is not None and _is_anothers(self._point, self._ours)

    async def _wait_replaced(self) -> None:
        """Find out what has become of one that waits for our answer no more: we may have been held
        up, and it serves all the same; or it is gone, and we go on.
        """
        with trio.move_on_after(STEPS_IN_WITHIN_S):
            while True:
                if self._is_replaced():
                    self.relieved.set()
                    return
                await trio.sleep(LOOK_S)
        logger.warning("take-over not finished; this server goes on", error="it has gone")


async def _could_tell(connection: trio.SocketStream, **facts: object) -> bool:
    """Say the last word to a new server; False if it does not wait for that any more."""
    with suppress(trio.BrokenResourceError), trio.move_on_after(ANSWER_TIMEOUT_S):
        await connection.send_all(write_message(**facts))
        return True
    return False


async def _message(connection: trio.SocketStream, timeout_s: float) -> Mapping[str, Any]:
    facts, given = await _receive(connection, timeout_s)
    if given is not None:
        given.close()
    return facts


_Mark = tuple[int, int]
"""Of a socket at a path: its inode, whose number is another's when it is gone, and since when."""


def _mark(point: Path) -> _Mark:
    facts = point.stat()
    return facts.st_ino, facts.st_mtime_ns


def _is_anothers(point: Path, mark: _Mark | None) -> bool:
    """Whether another socket than the marked one is at this path by now; False if none is."""
    try:
        return _mark(point) != mark
    except OSError:
        return False


def _listen_in_place_of(point: Path) -> socket.socket:
    """Listen at this path, which nobody finds empty who looks for the server before us there."""
    ours = point.with_name(f"{os.getpid()}")
    ours.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(ours))
        listener.listen(MOST_VISITORS)
        ours.replace(point)
    except BaseException:
        listener.close()
        raise
    return listener


# -- the new one -----------------------------------------------------------------------------


class Predecessor:
    """The server that is to be taken over: asked, and waiting for us to be ready.

    Args:
        point: Where it waits for whoever takes over.

    Attributes:
        listener: Its listening socket, and ours.
        ends: Whether it has been told to stop.

    Raises:
        OSError: It waits there no more.
    """

    def __init__(
        self,
        connection: trio.SocketStream,
        listener: socket.socket,
        point: Path,
        *,
        ends: bool = False,
    ) -> None:
        self.ends = ends
        self._connection = connection
        self._point = point
        self._its = _mark(point)  # it lets nobody else in its place while it has us to wait for
        self.listener = listener

    @classmethod
    async def ask(cls, host: str, port: int) -> Predecessor:
        """Ask the server at this address for its listening socket, and be one with it.

        Raises:
            CannotListen: There is none, or it refuses.
        """
        try:
            return await cls._ask_at(private_directory(meeting_point(host, port)) / "meet")
        except BaseException as error:
            raise _refused(error, host, port) from error

    @classmethod
    async def _ask_at(cls, point: Path) -> Predecessor:
        connection = None
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                connection = await trio.open_unix_socket(point)
                _check_user(connection)
                await connection.send_all(write_message(speaks=SPEAKS))
            facts, listener = await _receive(connection, ANSWER_TIMEOUT_S)
            if listener is None:
                raise TakeOverRefused("it gave no listening socket")
            try:
                check_version(facts)
                share(bytes.fromhex(str(facts.get("secret"))))
                return cls(connection, listener, point, ends=facts.get("ends") is True)
            except BaseException:
                listener.close()
                raise
        except BaseException:
            if connection is not None:
                await trio.aclose_forcefully(connection)
            raise

    async def relieve(self, *, asks_again: bool = True) -> None:
        """We are ready: the other one accepts no more connections when this returns.

        Args:
            asks_again: Whether one that has given us up is asked once more, as it may be ending.

        Raises:
            CannotListen: It has given us up meanwhile, and it or another goes on serving.
        """
        try:
            async with self._connection:
                # It may have refused us long ago, and hung up: that is still there to be read.
                with suppress(trio.BrokenResourceError), trio.fail_after(ANSWER_TIMEOUT_S):
                    await self._connection.send_all(write_message(ready=True))
                await _message(self._connection, ANSWER_TIMEOUT_S)
        except TakeOverRefused as refusal:
            if not await self._somebody_waits():
                logger.warning(
                    "the server before this one refused, and has gone", reason=str(refusal)
                )
            elif not (asks_again and await self._is_left_to_us()):
                raise CannotListen(f"cannot take over: {refusal}") from refusal
        except (EOFError, OSError, trio.BrokenResourceError) as error:
            # One that it had refused before us may have been ready first.
            if not (_is_anothers(self._point, self._its) and await self._somebody_waits()):
                logger.warning("the server before this one has gone", error=repr(error))
            elif not (asks_again and await self._is_left_to_us()):
                raise CannotListen(
                    "cannot take over: the server before this one has gone, and another serves"
                ) from error
        except trio.TooSlowError as error:  # it hangs: all the more it is our turn
            logger.warning("the server before this one does not answer", error=repr(error))

    async def _is_left_to_us(self) -> bool:
        """Whether the server that waits there has been told to stop, and has been relieved by us.

        Raises:
            CannotListen: It has let another in its place meanwhile.
        """
        try:
            ending = await self._ask_at(self._point)
        except (FileNotFoundError, ConnectionRefusedError):  # it has just ended
            return True
        except (EOFError, ConnectionError, trio.BrokenResourceError):  # it is ending, or busy
            return not await self._somebody_waits()
        except (TakeOverRefused, OSError, ValueError, trio.TooSlowError):
            return False
        with closing(ending):
            if ending.ends:
                await ending.relieve(asks_again=False)
            return ending.ends

    async def _somebody_waits(self) -> bool:
        """Whether a server can still be met where this one was: itself, or one in its place."""
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                connection = await trio.open_unix_socket(self._point)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (OSError, trio.TooSlowError):  # it has no room for visitors, or hangs
            return True
        await trio.aclose_forcefully(connection)
        return True

    def close(self) -> None:
        """Leave it as it was, unless it has been relieved."""
        self._connection.socket.close()
        self.listener.close()


def _refused(error: BaseException, host: str, port: int) -> BaseException:
    match error:
        case TakeOverRefused():
            reason = str(error)
        case FileNotFoundError() | ConnectionRefusedError():
            reason = (
                "no server of this user waits for that with this address (and XDG_RUNTIME_DIR, "
                "TMPDIR); start without --take-over"
            )
        case trio.TooSlowError() | EOFError() | OSError() | trio.BrokenResourceError():
            reason = f"it does not answer ({error!r})"
        case ValueError():
            reason = "what it said is no secret"
        case _:
            return error
    return CannotListen(f"cannot take over the server at {host}:{port}: {reason}")


# -- whoever wants the agents read again -------------------------------------------------------


async def reload_agents(host: str, port: int) -> str:
    """Have the server at this address read its agents again; returns what it says of them.

    Raises:
        CannotListen: There is no such server, or it does not answer.
        ConfigurationError: The agents are wrong, and it goes on with those it has.
    """
    try:
        point = private_directory(meeting_point(host, port)) / "meet"
        with trio.fail_after(RELOAD_TIMEOUT_S + ANSWER_TIMEOUT_S):
            async with await trio.open_unix_socket(point) as connection:
                _check_user(connection)
                await connection.send_all(write_message(speaks=SPEAKS_OF_AGENTS, wants=AGENTS))
                answer = await _message(connection, RELOAD_TIMEOUT_S + ANSWER_TIMEOUT_S)
    except (FileNotFoundError, ConnectionRefusedError):
        raise CannotListen(
            f"no server of this user waits for that at {host}:{port} "
            "(with this XDG_RUNTIME_DIR and TMPDIR)"
        ) from None
    except (TakeOverRefused, OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError) as e:
        raise CannotListen(f"the server at {host}:{port} does not do that: {e!r}") from None
    if "wrong" in answer:
        raise ConfigurationError(str(answer["wrong"])[:MAX_TOLD_CHARS])
    return str(answer.get("told"))[:MAX_TOLD_CHARS]
