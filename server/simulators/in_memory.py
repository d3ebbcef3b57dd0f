"""Both ends of a call without a socket, for calls on a clock of their own."""

from __future__ import annotations

from server.carrier import MediaStream
from server.carrier.transport import Transport
from server.carrier.twilio.stream import TwilioMediaStream
from server.model import Model
from server.model.gemini.model import DEFAULT_MODEL, GeminiModel
from server.model.lasting.model import LastingModel
from server.simulators.gemini import GeminiSimulator


def model_in_memory(simulator: GeminiSimulator, name: str = DEFAULT_MODEL) -> Model:
    """A model whose connections lead to a simulator that runs without a port."""
    gemini = GeminiModel(
        api_key="simulated", model=name, url="ws://memory.invalid", connect=simulator.connect
    )
    return LastingModel(gemini)


def stream_in_memory(transport: Transport) -> MediaStream:
    """The media stream that a simulated phone speaks."""
    return TwilioMediaStream(transport)
