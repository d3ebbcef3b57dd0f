"""Who answers which number, and after how long."""

from __future__ import annotations

from collections.abc import Mapping

from server.simulators.phone import PhoneScript, find_script, speaking

SCRIPT_NUMBERS = {
    "5550101": "talks",
    "5550102": "interrupts",
    "5550103": "hangs-up",
    "5550104": "busy",
    "5550105": "no-answer",
    "5550106": "drops",
    "5550107": "garbage",
    "5550108": "never-hangs-up",
    "5550109": "fails",
    "5550110": "silent",
    "5550111": "oversized",
    "5550112": "vanishes",
    "5550113": "says-hello",
    "5550114": "coughs",
    "5550115": "echoing-speakerphone",
    "5550116": "asks-and-waits",
    "5550117": "asks-once",
    "5550118": "voicemail",
    "5550119": "taken-for-a-machine",
    "5550120": "asks-patiently",
}
"""Who answers a number that ends like this: 555-0100 to 555-0199 are kept free for fiction."""


class People:
    """Everybody whom a simulated Twilio can call.

    Args:
        default: Who answers if the number called does not say: a script or its name.
        by_ending: Who answers numbers with these last digits.
        ring_s: How long phones ring, instead of what their scripts say.

    Attributes:
        default: As above, and so is ``by_ending``; both may be changed between calls.

    Raises:
        ValueError: There is no such script.
    """

    def __init__(
        self,
        default: str | PhoneScript,
        by_ending: Mapping[str, str | PhoneScript],
        ring_s: float | None,
    ) -> None:
        self.default = find_script(default)
        self.by_ending = {ending: find_script(named) for ending, named in by_ending.items()}
        self._ring_s = ring_s

    def speak(self, speech: bytes) -> None:
        """Let everybody say this, in mu-law, in the place of what their scripts say."""
        self.default = speaking(self.default, speech)
        self.by_ending = {end: speaking(one, speech) for end, one in self.by_ending.items()}

    def at(self, number: str) -> PhoneScript:
        """Who answers a number."""
        for ending, script in self.by_ending.items():
            if number.endswith(ending):
                return script
        return self.default

    def ring_s(self, script: PhoneScript) -> float:
        """How long somebody's phone rings."""
        return script.ring_s if self._ring_s is None else self._ring_s
