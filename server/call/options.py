"""The settings that one call needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.dialogue.ear import BargeInMode
from server.dialogue.opening import GreetingWhen
from server.dialogue.remedies import Patience
from server.dialogue.voicemail import VoicemailPolicy
from server.settings.settings import Settings


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
    line_lost_timeout_s: float = 5.0
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
    wide: bool = False
    """Whether the caller's end has more than a telephone's band, from the first word on."""
    full_numbers: bool = False
    """Whether the record has the other party's whole number."""

    @property
    def comes_back_s(self) -> float:
        """How long the call may be there for a caller after their line was lost; 0 if not at all.

        They may know of that before we do.
        """
        waits_s = self.line_lost_timeout_s
        return self.media_timeout_s + waits_s if waits_s > 0 else 0.0

    @classmethod
    def of(cls, settings: Settings) -> CallOptions:
        """What the process's settings say for each call."""
        return cls(
            prewarm=settings.prewarm,
            lead_s=settings.lead_s,
            mark_every_s=settings.mark_every_s,
            greeting_when=GreetingWhen(settings.greeting_when),
            greeting_deadline_s=settings.greeting_deadline_s,
            greeting_protect_s=settings.greeting_protect_s,
            greeting_hello_s=settings.greeting_hello_s,
            barge_in=BargeInMode(settings.barge_in),
            barge_in_confirm_s=settings.barge_in_confirm_s,
            barge_in_hint=settings.barge_in_hint,
            speech_end_s=settings.speech_end_s,
            patience=Patience(
                reply_timeout_s=settings.reply_timeout_s,
                short_answer_timeout_s=settings.short_answer_timeout_s,
                rung_timeout_s=settings.rung_timeout_s,
                greeting_retry_s=settings.greeting_retry_s,
                thinking_timeout_s=settings.thinking_timeout_s,
                stall_timeout_s=settings.stall_timeout_s,
                silence_timeout_s=settings.silence_timeout_s,
                silence_prompts=settings.silence_prompts,
                wrap_up_s=settings.wrap_up_s,
                farewell_timeout_s=settings.farewell_timeout_s,
            ),
            media_timeout_s=settings.media_timeout_s,
            line_lost_timeout_s=settings.line_lost_timeout_s,
            answer_timeout_s=settings.ring_timeout_s + 60.0,
            max_duration_s=settings.max_call_duration_s,
            farewell_timeout_s=settings.farewell_timeout_s,
            transfer_ring_timeout_s=settings.transfer_ring_timeout_s,
            tool_timeout_s=settings.tool_timeout_s,
            dtmf_pause_s=settings.dtmf_pause_s,
            voicemail=VoicemailPolicy(settings.voicemail),
            voicemail_timeout_s=settings.voicemail_timeout_s,
            close_timeout_s=settings.close_timeout_s,
            max_cost_usd=settings.max_call_cost_usd,
            transcripts=settings.transcripts,
            full_numbers=settings.record_numbers == "full",
        )
