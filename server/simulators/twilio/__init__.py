"""A small Twilio on loopback: REST, signed webhooks, TwiML, media streams, people who answer.

The server talks to it with the same client code as to the real one and is called back over real
HTTP and WebSocket connections. What it says follows Twilio's public documentation; whom it calls
is a script of ``server.simulators.phone``.
"""

from server.simulators.twilio.call import SimulatedCall
from server.simulators.twilio.faults import FAULTS, Faults
from server.simulators.twilio.simulator import TwilioSimulator
from server.simulators.twilio.webhooks import sign

__all__ = [
    "FAULTS",
    "Faults",
    "SimulatedCall",
    "TwilioSimulator",
    "sign",
]
