"""Token counts as the service tells them, and which turn they are the counts of.

It tells them before an answer, beside it, at its end and after it, several times while they grow,
and sometimes empty. The Developer API says response where Vertex says candidates, and either may
come with or without the parts by modality.
"""

from __future__ import annotations

from server.model import UNSPECIFIED, Usage
from server.model.gemini.fields import Fields

MAX_TOKENS = 10_000_000
"""Of one turn, in one direction: eighty times the largest context there is. More is no count."""
MAX_DETAILS = 32
"""Modalities told apart in one message; there are five."""
MODALITIES = frozenset({"TEXT", "AUDIO", "IMAGE", "VIDEO", "DOCUMENT"})
"""The modalities there are; others would be names of the model's choosing."""


class _Reading:
    """Counts read one after the other, and whether all that was there could be read."""

    def __init__(self, fields: Fields) -> None:
        self.complete = True
        self._fields = fields

    def number(self, fields: Fields, name: str) -> int:
        count = fields.count(name, MAX_TOKENS)
        if count is None:
            self.complete = False
            return 0
        return count

    def total(self, name: str) -> int:
        return self.number(self._fields, name)

    def by_modality(self, *names: str) -> dict[str, int]:
        """One direction's tokens, told under any or all of these names: they are the same ones."""
        tokens: dict[str, int] = {}
        most = 0
        for name in names:
            told: dict[str, int] = {}
            details = f"{name}TokensDetails"
            for detail in self._fields.objects(details, MAX_DETAILS):
                modality = detail.text("modality", 64).upper()
                modality = modality if modality in MODALITIES else UNSPECIFIED
                told[modality] = told.get(modality, 0) + self.number(detail, "tokenCount")
            self.complete = self.complete and len(self._fields.items(details)) <= MAX_DETAILS
            most = max(most, sum(told.values()), self.total(f"{name}TokenCount"))
            for modality, count in told.items():
                tokens[modality] = max(tokens.get(modality, 0), count)
        if (rest := most - sum(tokens.values())) > 0:
            tokens[UNSPECIFIED] = tokens.get(UNSPECIFIED, 0) + rest
        return tokens


def read_usage(fields: Fields) -> Usage | None:
    """Read ``usageMetadata``; None if it counts nothing, as it often does at a turn's end."""
    reading = _Reading(fields)
    prompt = reading.by_modality("prompt")
    # What tools have read is input like any other, and is told beside the prompt, not in it.
    for modality, count in reading.by_modality("toolUsePrompt").items():
        prompt[modality] = prompt.get(modality, 0) + count
    usage = Usage(
        prompt_tokens=prompt,
        response_tokens=reading.by_modality("response", "candidates"),
        total_tokens=reading.total("totalTokenCount"),
        thoughts_tokens=reading.total("thoughtsTokenCount"),
        complete=reading.complete,
    )
    counted = (*prompt.values(), *usage.response_tokens.values())
    if not (any(counted) or usage.total_tokens or usage.thoughts_tokens) and usage.complete:
        return None
    return usage


class CountedTurn:
    """Decides which turn counts belong to, from what came before them. No clock.

    Attributes:
        begun: Whether anything of the turn under way has come.
    """

    def __init__(self) -> None:
        self.begun = False
        self._any_completed = False
        self._newest: Usage | None = None
        self._of_completed: Usage | None = None

    def completed(self) -> None:
        """The turn under way is over; the next one begins."""
        self.begun = False
        self._any_completed = True
        self._of_completed, self._newest = self._newest, None

    def is_of_completed(self, usage: Usage, *, beside_content: bool, at_completion: bool) -> bool:
        """Whether these are the counts of the turn that was completed last, not of the next one.

        Args:
            usage: The counts.
            beside_content: They came in a message with ``serverContent``, be it an empty one: the
                service announces an answer so.
            at_completion: They came with the turn's end.
        """
        late = at_completion or (
            self._any_completed
            and not self.begun
            and not beside_content
            and self._newest is None
            # A turn whose counts are known has no other ones: these would be of the same prompt.
            and (self._of_completed is None or _is_grown(self._of_completed, usage))
        )
        if late:
            self._of_completed = usage
        else:
            self._newest = usage
        return late


def _is_grown(before: Usage, now: Usage) -> bool:
    """Whether these may be the counts of the same turn, told again when there were more."""
    prompt, same = sum(now.prompt_tokens.values()), sum(before.prompt_tokens.values())
    response, least = sum(now.response_tokens.values()), sum(before.response_tokens.values())
    return prompt in (0, same) and response >= least
