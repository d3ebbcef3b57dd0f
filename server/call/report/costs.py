"""What a call costs: tokens and minutes, counted as they are billed and priced from dated tables.

Everything here is an estimate of list prices in US dollars, and what is not known is said to be
``"unknown"``, never taken for nothing: an unknown model, a kind of token that has no price here, a
country whose minutes are not in the table. The known part is summed beside it, and is what the cap
of a call is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import phonenumbers

from server.carrier import BROWSER, StatusUpdate
from server.model import UNSPECIFIED, Usage

TOKENS_PER_S = 25
"""Of audio, in and out ("Live API: token counts")."""
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """US dollars for a million tokens, by modality."""

    prompt: Mapping[str, float]
    response: Mapping[str, float]


MODEL_PRICES_OF = "2026-10-09"
_LIVE_3 = ModelPrice(
    prompt={"TEXT": 0.75, "AUDIO": 3.0, "IMAGE": 1.0, "VIDEO": 1.0},
    response={"TEXT": 4.5, "AUDIO": 12.0},
)
_LIVE_2_5 = ModelPrice(
    prompt={"TEXT": 0.5, "AUDIO": 3.0, "IMAGE": 3.0, "VIDEO": 3.0},
    response={"TEXT": 2.0, "AUDIO": 12.0},
)
MODEL_PRICES: Mapping[str, ModelPrice] = {
    "gemini-3.8-live": _LIVE_3,  # and -extended-thinking
    "gemini-3.1-flash-live": _LIVE_3,
    "gemini-2.5-flash-native-audio": _LIVE_2_5,
    "gemini-live-2.5-flash-native-audio": _LIVE_2_5,  # as Vertex AI calls it
}
"""By the beginning of the model's name; the paid tier of "Gemini Developer API pricing"."""

CARRIER_PRICES_OF = "2025-01"
"""Twilio's list prices; what an account really pays is in its Console."""
STREAM_MINUTE_USD = 0.004
"""Media Streams cost this on top of the call, wherever it goes."""
OUTBOUND_MINUTE_USD: Mapping[str, float] = {"US": 0.014, "CA": 0.014}
"""By the region called; elsewhere the price depends on the number: see CARRIER_MINUTE_USD."""
INBOUND_MINUTE_USD: Mapping[str, float] = {"US": 0.0085, "CA": 0.0085}
"""By the region of our own number, if it is a local one."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What is known about prices before a call.

    Attributes:
        carrier_minute_usd: The operator's own price of a minute, media stream included; None for
            the table's.
        own_number: E.164; an inbound minute's price depends on it.
        has_table: Whether the table is this carrier's.
    """

    carrier_minute_usd: float | None = None
    own_number: str = ""
    has_table: bool = True

    def of_model(self, name: str) -> ModelPrice | None:
        """The price of a model by its name, ``models/`` and other prefixes allowed."""
        name = name.rpartition("/")[2]
        found = [known for known in MODEL_PRICES if name.startswith(known)]
        return MODEL_PRICES[max(found, key=len)] if found else None

    def of_minute(self, direction: Literal["inbound", "outbound"], number: str) -> float | None:
        """The carrier's price of a minute with this number."""
        if number == BROWSER:
            return 0.0
        if self.carrier_minute_usd is not None:
            return self.carrier_minute_usd
        if not self.has_table:
            return None
        table, priced = (
            (OUTBOUND_MINUTE_USD, number)
            if direction == "outbound"
            else (INBOUND_MINUTE_USD, self.own_number)
        )
        usd = table.get(_region(priced))
        return None if usd is None else usd + STREAM_MINUTE_USD


@lru_cache(maxsize=256)  # of calls that come in it is always our own
def _region(number: str) -> str:
    """The ISO code of a number's country; empty if unknown, or if it is not an ordinary number."""
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return ""
    ordinary = (
        phonenumbers.PhoneNumberType.FIXED_LINE,
        phonenumbers.PhoneNumberType.MOBILE,
        phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE,
    )
    if phonenumbers.number_type(parsed) not in ordinary:
        return ""
    return phonenumbers.region_code_for_number(parsed) or ""


MAX_OPEN_TURNS = 16
"""Turns whose counts may still grow; older ones are summed up, however many there are."""


@dataclass(slots=True)
class _Direction:
    """One turn's tokens in one direction, as far as they have been told."""

    most: int = 0
    specified: dict[str, int] = field(default_factory=dict)

    def tell(self, tokens: Mapping[str, int]) -> None:
        self.most = max(self.most, sum(tokens.values()))
        for modality, count in tokens.items():
            if modality != UNSPECIFIED:
                self.specified[modality] = max(self.specified.get(modality, 0), count)

    def by_modality(self) -> dict[str, int]:
        """What was told without a modality at first and with one later is counted once."""
        rest = self.most - sum(self.specified.values())
        return self.specified | ({UNSPECIFIED: rest} if rest > 0 else {})


@dataclass(slots=True)
class _Turn:
    """One turn's tokens, as last told."""

    model: str
    prompt: _Direction = field(default_factory=_Direction)
    response: _Direction = field(default_factory=_Direction)
    total: int = 0
    thoughts: int = 0
    complete: bool = True

    def tell(self, usage: Usage) -> None:
        self.prompt.tell(usage.prompt_tokens)
        self.response.tell(usage.response_tokens)
        self.total = max(self.total, usage.total_tokens)
        self.thoughts = max(self.thoughts, usage.thoughts_tokens)
        self.complete = self.complete and usage.complete

    @property
    def unpriced(self) -> int:
        """Tokens beside those by modality: thoughts, whether or not the total has them in it."""
        counted = sum(self.prompt.by_modality().values())
        counted += sum(self.response.by_modality().values())
        return max(self.thoughts, self.total - counted)


@dataclass(slots=True)
class _Sum:
    """What turns come to, together."""

    usd: float = 0.0
    complete: bool = True
    prompt: dict[str, int] = field(default_factory=dict)
    response: dict[str, int] = field(default_factory=dict)
    other: int = 0

    def copy(self) -> _Sum:
        prompt, response = dict(self.prompt), dict(self.response)
        return _Sum(self.usd, self.complete, prompt, response, self.other)

    def add(self, turn: _Turn, price: ModelPrice | None) -> None:
        """Add a turn's tokens, and their price as far as it is known."""
        unpriced = turn.unpriced
        self.complete = self.complete and turn.complete and not unpriced
        self.other += unpriced
        for summed, table, counted in (
            (self.prompt, price.prompt if price else {}, turn.prompt.by_modality()),
            (self.response, price.response if price else {}, turn.response.by_modality()),
        ):
            for modality, tokens in counted.items():
                summed[modality] = summed.get(modality, 0) + tokens
                if (per_million := table.get(modality)) is None:
                    self.complete = self.complete and not tokens
                else:
                    self.usd += tokens * per_million / _MILLION


class CostMeter:
    """One call's tokens and minutes. No I/O and no clock.

    A turn's counts may be told several times while they grow, with modalities and without; the
    largest of each kind is the turn's. Turns are added up, because each is billed for the whole
    history again.

    Args:
        prices: What is known about prices.
        model: The model's name; :attr:`model` may change in mid-call.
        direction: Who dialled.
        number: The other party's, E.164.
    """

    def __init__(
        self,
        prices: Prices,
        *,
        model: str,
        direction: Literal["inbound", "outbound"],
        number: str,
    ) -> None:
        self.model = model
        self.billed_s: float | None = None
        """Seconds the carrier says it bills; None until it has said so."""
        self._prices = prices
        self._minute_usd = prices.of_minute(direction, number)
        self._turns: dict[int, _Turn] = {}
        self._settled = _Sum()
        self._newest: _Turn | None = None  # the one that was told of last
        self._rest: _Sum | None = None  # all others together, if that is known

    def bill(self, update: StatusUpdate) -> bool:
        """Take the seconds that the carrier bills, once its last word has them; False if not."""
        seconds = update.facts.get("duration_s", "")
        if not (update.status.is_final and seconds.isdecimal()):
            return False
        self.billed_s = float(seconds)
        return True

    def count(self, usage: Usage) -> None:
        """Take a turn's counts, for the first time or again."""
        turn = self._turns.get(usage.turn)
        if turn is None:
            turn = self._turns[usage.turn] = _Turn(self.model)
            if self._rest is not None and (before := self._newest) is not None:
                self._rest.add(before, self._prices.of_model(before.model))
        elif turn is not self._newest:
            self._rest = None
        self._newest = turn
        turn.model = self.model
        turn.tell(usage)
        self._settle(MAX_OPEN_TURNS)

    def close(self) -> None:
        """Sum everything up: no turn's counts grow any more."""
        self._settle(0)
        self._newest = self._rest = None

    def _settle(self, open_turns: int) -> None:
        while len(self._turns) > open_turns:
            oldest = self._turns.pop(next(iter(self._turns)))
            self._settled.add(oldest, self._prices.of_model(oldest.model))

    def until_now(self) -> tuple[dict[str, Any], float, bool]:
        """Tokens as billed, what they cost as far as that is known, and whether that is all."""
        summed = self._sum()
        return _tokens(summed), summed.usd, summed.complete

    def go_on(self, tokens: Mapping[str, Any], usd: float, *, is_complete: bool) -> None:
        """So much was counted before, by another process."""
        prompt, response = dict(tokens["prompt"]), dict(tokens["response"])
        self._settled = _Sum(usd, is_complete, prompt, response, tokens["other"])
        self._rest = None

    def _sum(self) -> _Sum:
        newest = self._newest
        if self._rest is None:
            self._rest = self._settled.copy()
            for turn in self._turns.values():
                if turn is not newest:
                    self._rest.add(turn, self._prices.of_model(turn.model))
        summed = self._rest.copy()
        if newest is not None:
            summed.add(newest, self._prices.of_model(newest.model))
        return summed

    def minutes(self, on_line_s: float) -> int:
        """Minutes as the carrier bills them: every one begun."""
        billed_s = on_line_s if self.billed_s is None else self.billed_s
        return math.ceil(round(billed_s, 3) / 60)

    def carrier_usd(self, on_line_s: float) -> float | None:
        """The carrier's part; None if it is not known."""
        minutes = self.minutes(on_line_s)
        if not minutes:
            return 0.0
        return None if self._minute_usd is None else minutes * self._minute_usd

    def model_usd(self, *, caller_audio_s: float, agent_audio_s: float) -> tuple[float, bool]:
        """The model's part as far as it is known, and whether that is all of it.

        Audio that no count has mentioned yet is priced by its length, so that a service which is
        late with its counts, or forgets them, does not make the call look free.
        """
        summed = self._sum()
        usd, complete = summed.usd, summed.complete
        price = self._prices.of_model(self.model)
        if price is None:
            return usd, complete and not caller_audio_s and not agent_audio_s
        by_length = TOKENS_PER_S / _MILLION
        by_length *= (
            caller_audio_s * price.prompt["AUDIO"] + agent_audio_s * price.response["AUDIO"]
        )
        return max(usd, by_length), complete

    def known_usd(self, *, on_line_s: float, caller_audio_s: float, agent_audio_s: float) -> float:
        """What the call costs at least."""
        model_usd, _ = self.model_usd(caller_audio_s=caller_audio_s, agent_audio_s=agent_audio_s)
        return model_usd + (self.carrier_usd(on_line_s) or 0.0)

    def tokens(self) -> dict[str, Any]:
        """Tokens as billed, by direction and modality; ``other`` has no price here."""
        return _tokens(self._sum())

    def as_dict(
        self, *, on_line_s: float, caller_audio_s: float, agent_audio_s: float
    ) -> dict[str, Any]:
        """The estimate as the API shows it, in US dollars."""
        model_usd, complete = self.model_usd(
            caller_audio_s=caller_audio_s, agent_audio_s=agent_audio_s
        )
        carrier_usd = self.carrier_usd(on_line_s)
        whole = complete and carrier_usd is not None
        known_usd = model_usd + (carrier_usd or 0.0)
        return {
            "model_usd": round(model_usd, 6) if complete else "unknown",
            "carrier_usd": "unknown" if carrier_usd is None else round(carrier_usd, 6),
            "total_usd": round(known_usd, 6) if whole else "unknown",
            "known_usd": round(known_usd, 6),
            "billed_minutes": self.minutes(on_line_s),
            "model_prices_of": MODEL_PRICES_OF,
            "carrier_prices_of": (
                "CARRIER_MINUTE_USD"
                if self._prices.carrier_minute_usd is not None
                else CARRIER_PRICES_OF
            ),
        }


def _tokens(summed: _Sum) -> dict[str, Any]:
    return {"prompt": summed.prompt, "response": summed.response, "other": summed.other}
