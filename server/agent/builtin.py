"""The tools that every agent may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import trio
from pydantic import Field

from server.agent.tool import LiveCall, Tool, ToolError, tool, tool_of
from server.carrier import CallStatus
from server.carrier.keypad import KEYS, MAX_KEYS
from server.errors import CarrierError, StreamEnded


@tool
async def hang_up(call: LiveCall) -> str:
    """End the telephone call.

    Use it when the conversation is over: when both sides have said goodbye, or when the caller asks
    you to hang up. Say goodbye in the same breath; the line is cut when the caller has heard it.
    """
    # Functions of one message begin in any order, all of them in one pass of trio's. When this goes
    # on, in the next one, a transfer that was wanted beside it is under way, and is left to it.
    await trio.lowlevel.checkpoint()
    if call.hang_up_when_heard():
        return "If you have not said goodbye yet, do it now, in one short sentence."
    return "The call is already being ended. Say no more than goodbye."


@tool(timeout_s=60.0)
async def send_dtmf(
    digits: Annotated[str, Field(pattern=f"^[{KEYS}w]{{1,{MAX_KEYS}}}$")], call: LiveCall
) -> str:
    """Press keys of the telephone, for instance to choose from an automatic menu.

    Args:
        digits: The keys in order: digits, * and #; a w waits for half a second.
    """
    try:
        await call.press_keys(digits)
    except StreamEnded:
        raise ToolError(
            "The line was interrupted: the keys may not have been heard. Find out before you press "
            "them again."
        ) from None
    return "The keys have been pressed."


@tool
async def voicemail_reached(call: LiveCall) -> str:
    """Report that voicemail or an answering machine has picked up, and not a person.

    Use it as soon as you hear a recorded announcement that asks to leave a message, then say
    nothing more: what happens next is taken care of.
    """
    match call.report_voicemail():
        case "silence":
            return "Understood. Say nothing now."
        case "message":
            return "That is known, and you are being recorded: go on with the message, to its end."
        case None:
            raise ToolError("Nothing can be left here. If nobody is there, hang up.")


TRANSFER_NAME = "transfer"
"""What the model calls the function that :func:`transfer_tool` makes."""


def transfer_tool(targets: Mapping[str, str]) -> Tool:
    """Make the tool that hands the caller over to one of these.

    Args:
        targets: Numbers by the name the model knows them under. No other number is ever dialled,
            whatever anybody on the line makes the model ask for.
    """

    async def transfer(destination: str, call: LiveCall) -> str:
        """Connect the caller with somebody else, and leave the call.

        Tell the caller first, in one short sentence, whom you connect them with. If nobody answers
        there, the caller comes back to you.

        Args:
            destination: With whom.
        """
        try:
            status = await call.transfer(destination, targets[destination])
        except CarrierError:
            raise ToolError(
                "The transfer was not possible. The caller is still here: tell them."
            ) from None
        except ValueError as error:
            raise ToolError(str(error)) from None
        if status is CallStatus.COMPLETED:
            return "The caller has been connected."
        raise ToolError(
            f"Nobody took the call ({status.value}). The caller is back on the line with you: "
            "tell them, and ask how to go on."
        )

    transfer.__annotations__["destination"] = Literal[tuple(targets)]
    # It rings for as long as it rings; the call itself sees to it that this ends.
    return tool_of(transfer, None, float("inf"))
