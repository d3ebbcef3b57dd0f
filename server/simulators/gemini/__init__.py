"""A small Gemini Live: the real wire protocol, over a loopback socket or in memory.

It refuses the set-ups that Google refuses, greets, hears where a caller's turn ends, and says each
turn back in a voice half as high again, faster than real time, until the caller interrupts. A
``ModelScript`` makes it misbehave on purpose. Everything runs on trio's clock, and a chunk of audio
costs it microseconds, so that an hour's call on a mock clock takes seconds.
"""

from server.simulators.gemini.caller import Hearing
from server.simulators.gemini.schema import ServiceClosesError, read_client_message
from server.simulators.gemini.scripts import (
    ANSWERS,
    MODEL_SCRIPTS,
    Drop,
    FunctionCall,
    ModelScript,
    ScriptedTurn,
    refused,
)
from server.simulators.gemini.session import SimulatedSession
from server.simulators.gemini.setup import check_setup
from server.simulators.gemini.simulator import GeminiSimulator
from server.simulators.gemini.sockets import MemorySocket, memory_sockets
from server.simulators.gemini.speech import GREETING, Speech, load_agent_speech
from server.simulators.gemini.written import with_words

__all__ = [
    "ANSWERS",
    "GREETING",
    "MODEL_SCRIPTS",
    "Drop",
    "FunctionCall",
    "GeminiSimulator",
    "Hearing",
    "MemorySocket",
    "ModelScript",
    "ScriptedTurn",
    "ServiceClosesError",
    "SimulatedSession",
    "Speech",
    "check_setup",
    "load_agent_speech",
    "memory_sockets",
    "read_client_message",
    "refused",
    "with_words",
]
