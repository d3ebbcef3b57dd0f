"""What a call makes of signs of an answering machine while nobody can be heard."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.conversation import Stage
from server.carrier import AnsweredBy, CallStatus, MachineVerdict
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Patience
from server.dialogue.voicemail import AnsweringMachine, VoicemailPolicy
from tests.support.calls_on_a_rig import Rig
from tests.support.fakes import MemoryMedia

QUIET_S = AnsweringMachine.QUIET_S
SALES = "+15005550123"


class Taken(Rig):
    """A call that the carrier takes for a machine's, and that is to be hung up then."""

    def __init__(self, nursery: trio.Nursery, **options) -> None:
        defaults = {
            "agent": Agent(greeting=""),
            "media_timeout_s": 600.0,
            "patience": Patience(silence_timeout_s=0.0),
            "voicemail": VoicemailPolicy.HANG_UP,
        }
        super().__init__(**defaults | options)
        self.nursery = nursery

    def is_called_a_machine(self) -> None:
        verdict = MachineVerdict("CA1", AnsweredBy.MACHINE_END_SILENCE, 5.0)
        self.call.report_machine(verdict)

    async def connect(self) -> None:
        self.media = MemoryMedia()
        self.nursery.start_soon(self.call.serve, self.media, self.media.start())
        await wait_all_tasks_blocked()

    async def ask_for_transfer(self) -> None:
        self.nursery.start_soon(self.call.transfer, "sales", SALES)
        await wait_all_tasks_blocked()

    async def silent_for(self, seconds: float) -> EndReason | None:
        """Nobody speaks for so long; how the call has ended by then."""
        await trio.sleep(seconds)
        await wait_all_tasks_blocked()
        return self.call.end_reason


@pytest.fixture
async def taken(nursery):
    taken = Taken(nursery)
    yield taken
    taken.call.end(EndReason.HUNG_UP)


async def test_nobody_is_hung_up_on_while_their_transfer_rings(autojump_clock, nursery, taken):
    await taken.begin(nursery)
    await taken.ask_for_transfer()
    taken.media.hang_up()
    await wait_all_tasks_blocked()
    taken.is_called_a_machine()
    rings = await taken.silent_for(20.0)
    stage = taken.call.conversation.stage
    taken.call.handover.report(CallStatus.NO_ANSWER)
    await taken.connect()
    back = await taken.silent_for(QUIET_S - 0.1)
    silent = await taken.silent_for(0.2)

    assert (rings, stage) == (None, Stage.AWAY)
    assert (back, silent) == (None, EndReason.VOICEMAIL)


async def test_whoever_takes_somebody_over_whom_the_carrier_takes_for_a_machine_has_them(
    autojump_clock, nursery, taken
):
    await taken.begin(nursery)
    await taken.ask_for_transfer()
    taken.media.hang_up()
    await wait_all_tasks_blocked()
    taken.is_called_a_machine()
    await taken.silent_for(20.0)
    taken.call.handover.report(CallStatus.IN_PROGRESS)
    await taken.call.finished.wait()

    assert taken.call.end_reason is EndReason.TRANSFERRED
    assert taken.carrier.hung_up == []


async def test_nobody_is_hung_up_on_while_the_carrier_is_told_of_their_transfer(
    autojump_clock, nursery, taken
):
    async def slowly(call_sid, number, *, ring_timeout_s):
        await trio.sleep(9.0)

    taken.carrier.transfer = slowly
    await taken.begin(nursery)
    await taken.ask_for_transfer()
    taken.is_called_a_machine()

    assert await taken.silent_for(8.0) is None
    assert taken.call.conversation.stage is Stage.AWAY


async def test_that_nobody_speaks_before_there_is_a_line_is_no_sign(autojump_clock, nursery, taken):
    nursery.start_soon(taken.call.run)
    await wait_all_tasks_blocked()
    taken.is_called_a_machine()
    before = await taken.silent_for(10.0)
    await taken.connect()
    answered = await taken.silent_for(QUIET_S - 0.1)
    silent = await taken.silent_for(0.2)

    assert (before, answered, silent) == (None, None, EndReason.VOICEMAIL)
