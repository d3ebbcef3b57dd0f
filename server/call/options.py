"""The settings that one call needs, as ``app.py`` makes them of the environment's."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.dialogue.decisions import Patience
from server.dialogue.ear import BargeInMode
from server.dialogue.opening import GreetingWhen
from server.dialogue.voicemail import VoicemailPolicy


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The settings that a call needs, in seconds."""

    prewarm: bool = True
    lead_s: float = 30.0
    mark_every_s: float = 1.0
    greeting_when: GreetingWhen = GreetingWhen.AT_ONCE
    greeting_deadline_s: float = 3.0
    greeting_protect_s: float = 2.0
    greeting_hello_s: float = 1.5
    barge_in: BargeInMode = BargeInMode.BOTH
    barge_in_confirm_s: float = 0.2
    barge_in_hint: bool = False
    speech_end_s: float = 0.5
    patience: Patience = field(default_factory=Patience)
    media_timeout_s: float = 4.0
    answer_timeout_s: float = 120.0
    max_duration_s: float = 3_600.0
    farewell_timeout_s: float = 10.0
    close_timeout_s: float = 3.0
    transfer_ring_timeout_s: float = 30.0
    tool_timeout_s: float = 10.0
    dtmf_pause_s: float = 1.5
    voicemail: VoicemailPolicy = VoicemailPolicy.IGNORE
    voicemail_timeout_s: float = 60.0
    max_cost_usd: float | None = None
    """As far as the cost is known; None for no cap."""
    transcripts: bool = True
    """Whether the record says what was said, or only when."""
    full_numbers: bool = False
    """Whether the record has the other party's whole number."""
