"""What is measured on one call, besides its replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from server.metrics import LatencySummary


@dataclass(slots=True)
class Timings:
    """What was measured on this call; durations in seconds."""

    answer_to_first_audio_s: float | None = None
    caller_chunks: LatencySummary = field(default_factory=LatencySummary)
    agent_chunks: LatencySummary = field(default_factory=LatencySummary)
    interrupt_to_clear: LatencySummary = field(default_factory=LatencySummary)
    replies: LatencySummary = field(default_factory=LatencySummary)
    """From the caller's last sound to the agent's first, as heard."""
    caller_audio_s: float = 0.0
    """Caller audio received, and passed on to the model."""

    def as_dict(self, *, caller_audio_lost_s: float) -> dict[str, Any]:
        """What the API shows, in milliseconds; the session knows how much audio was lost."""
        first_s = self.answer_to_first_audio_s
        return {
            "answer_to_first_audio_ms": None if first_s is None else round(first_s * 1000, 3),
            "caller_to_model": self.caller_chunks.as_dict(),
            "model_to_caller": self.agent_chunks.as_dict(),
            "interrupt_to_clear": self.interrupt_to_clear.as_dict(),
            "caller_to_reply": self.replies.as_dict(),
            "caller_audio_s": round(self.caller_audio_s, 3),
            "caller_audio_lost_s": round(caller_audio_lost_s, 3),
        }
