"""What every test shares."""

from __future__ import annotations

import os

import pytest

from server.simulators.clock import PatientClock

# No test leaves a database where it is run: those that want a file name one.
os.environ.setdefault("DATABASE_URL", "sqlite://")


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
