"""When the keeper of a worker gives up."""

from __future__ import annotations

import os
import sys

import pytest

from server.hooks.keeper import Kept, _pause_after, does_any_serve
from server.supervision import MAX_SOON_DEATHS, Restarts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kept on Linux only")


@pytest.fixture
def serving():
    """A worker that tells its keeper that it serves, for as long as this is open."""
    ours, theirs = os.pipe()
    kept = Kept(pipe=theirs)
    kept.serves()
    os.close(ours)
    assert kept.mark is not None
    yield kept.mark
    kept.mark.close()


def test_a_worker_is_seen_to_serve_from_when_it_does_until_its_end(serving):
    while_it_lives = does_any_serve()
    serving.close()

    assert while_it_lives
    assert not does_any_serve()


def test_nobody_serves_before_one_does():
    assert not does_any_serve()


@pytest.mark.usefixtures("serving")
def test_a_worker_that_never_comes_to_serve_is_tried_for_as_long_as_another_serves():
    restarts = Restarts()

    assert None not in [_pause_after(None, restarts) for _ in range(10 * MAX_SOON_DEATHS)]


def test_where_nobody_serves_it_is_given_up():
    restarts = Restarts()

    pauses = [_pause_after(None, restarts) for _ in range(MAX_SOON_DEATHS + 1)]

    assert pauses.index(None) == MAX_SOON_DEATHS
