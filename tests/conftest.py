"""What every test shares."""

from __future__ import annotations

import math
import os
import ssl
import sys
import threading
from collections.abc import Generator
from typing import Any

import pytest
import structlog
import trio
from hypothesis import HealthCheck, settings

from server.hooks import trio_clock
from server.simulators.clock import PatientClock
from server.stalls import cause

# No test leaves a database where it is run: those that want a file name one.
os.environ.setdefault("DATABASE_URL", "sqlite://")
# Nor does one meet anybody in this user's own place for what runs.
os.environ.pop("XDG_RUNTIME_DIR", None)
# Nor does what a test finds depend on whether there is a model of voices on this machine.
os.environ.setdefault("VOICE_JUDGE", "off")

# Nor does how long one takes: the machine may be busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("few", settings.get_profile("busy"), max_examples=25)
settings.load_profile("busy")

# Nor is a traceback of many colours drawn where nobody looks: that takes half a second.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]
)


def pytest_configure(config: pytest.Config) -> None:
    """Have xdist take files in the order that is made below, not those with most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: at the end there is nothing left to do beside."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


_OPENING = frozenset({"socket.bind", "socket.connect"})
_opened: list[str] = []


def _note_socket(event: str, args: tuple[Any, ...]) -> None:
    if event in _OPENING:
        _opened.append(event)


sys.addaudithook(_note_socket)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Fail a test that has opened sockets without saying so by its mark."""
    _opened.clear()
    result = yield
    if _opened and item.get_closest_marker("sockets") is None:
        pytest.fail("it opens sockets: give it, or its module, pytest.mark.sockets", pytrace=False)
    return result


@pytest.fixture(autouse=True)
def no_line_of_late_steps(monkeypatch):
    """On a busy machine any step may be late: the log of another test's matter is not to say so."""
    monkeypatch.setattr(cause, "SAY_FROM_S", math.inf)
    monkeypatch.setattr(trio_clock, "TOLD_FROM_S", math.inf)


@pytest.fixture
def patient_clock():
    """For what takes its time over real sockets within one process: a busy machine adds none."""
    return PatientClock()


@pytest.fixture
def fast_clock():
    """For calls over real sockets, as fast as the machine can: nobody is late by it.

    Not where something waits for another process, whose time passes no faster than it does.
    """
    return PatientClock(speed=10.0)


class _SilentNames(trio.abc.HostnameResolver):
    async def getaddrinfo(self, *_: object) -> Any:
        await trio.sleep_forever()

    async def getnameinfo(self, *_: object) -> Any:
        await trio.sleep_forever()


@pytest.fixture
async def silent_names():
    """Who looks an address up by its name waits for ever."""
    trio.socket.set_custom_hostname_resolver(_SilentNames())  # for this test's run only


@pytest.fixture
def no_certificates_in_the_loop(monkeypatch):
    """To read them all takes up to 0.1 s, in which no call would be heard."""
    load = ssl.SSLContext.load_verify_locations

    def checked(context: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        load(context, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", checked)


@pytest.fixture
def kept_output(tmp_path):
    """For what a server says; it is shown with whatever else the test has printed."""
    with (tmp_path / "output").open("a+") as output:
        yield output
        output.seek(0)
        sys.stdout.write(output.read())
