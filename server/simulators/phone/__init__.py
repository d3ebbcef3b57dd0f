"""A simulated telephone: Twilio's end of one media stream, and the scripted person who holds it.

It speaks through a :class:`server.carrier.transport.TextSocket`: over a socket when the simulated
Twilio connects it, over memory in a test on the mock clock. The person is a generator of 20 ms
frames, so that a script reads like a script and costs nothing while it runs.
"""

from codec.line import BYTES_PER_S, FRAME_BYTES
from server.simulators.phone.acting import act
from server.simulators.phone.earpiece import BUFFER_BYTES, Earpiece
from server.simulators.phone.phone import SimulatedPhone, StreamEnd, new_sid
from server.simulators.phone.scripts import GARBAGE, PHONE_SCRIPTS, find_script, speaking
from server.simulators.phone.sound import (
    SILENCE,
    is_loud,
    load_speech,
    two_channel_wav,
)
from server.simulators.phone.steps import (
    Beep,
    Drop,
    FallSilent,
    HangUp,
    HearPause,
    HearSpeech,
    PhoneScript,
    Press,
    Say,
    SayFrames,
    SendRaw,
    Speakerphone,
    Wait,
)
from server.simulators.phone.transport import memory_transports

__all__ = [
    "BUFFER_BYTES",
    "BYTES_PER_S",
    "FRAME_BYTES",
    "GARBAGE",
    "PHONE_SCRIPTS",
    "SILENCE",
    "Beep",
    "Drop",
    "Earpiece",
    "FallSilent",
    "HangUp",
    "HearPause",
    "HearSpeech",
    "PhoneScript",
    "Press",
    "Say",
    "SayFrames",
    "SendRaw",
    "SimulatedPhone",
    "Speakerphone",
    "StreamEnd",
    "Wait",
    "act",
    "find_script",
    "is_loud",
    "load_speech",
    "memory_transports",
    "new_sid",
    "speaking",
    "two_channel_wav",
]
