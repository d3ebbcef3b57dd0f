"""What about its account a model's service refuses, and what can be done about each kind."""

from __future__ import annotations

from enum import StrEnum


class Cure(StrEnum):
    """What makes a refusal end."""

    RETRY = "retry"
    """Seconds: a call that is going on may wait for it."""
    WAIT = "wait"
    """Minutes to a day: too long for a call."""
    PERSON = "person"
    """Only somebody who sees to the account helps."""


class Kind(StrEnum):
    """What about the account is refused; also the reason that calls are refused with."""

    RATE = "model-rate-limit"
    QUOTA = "model-quota"
    BUSY = "model-overloaded"
    CREDITS = "model-credits"
    """Credits, billing, or a cap on what may be spent."""
    KEY = "model-key"
    PERMISSION = "model-permission"
    """The project, the API in it, or the key's restrictions."""
    MODEL = "model-not-found"
    LOCATION = "model-location"
    REFUSED = "model-refused"
    """Every connection is refused before anything was asked for, and no reason is known to us."""

    @property
    def cure(self) -> Cure:
        """What makes it end."""
        return _CURES.get(self, Cure.PERSON)

    @property
    def advice(self) -> str:
        """What has happened and what to do about it, in one sentence."""
        return _ADVICE[self]


_CURES = {Kind.RATE: Cure.RETRY, Kind.BUSY: Cure.RETRY, Kind.QUOTA: Cure.WAIT}
_ADVICE = {
    Kind.RATE: (
        "the model's service says that too much is asked of it at once: allow fewer calls "
        "(MAX_CALLS, MAX_MODEL_SESSIONS), or raise the project's rate limits"
    ),
    Kind.QUOTA: (
        "the quota of the model's account is used up: wait until it is renewed, or raise it in "
        "Google AI Studio (for Vertex AI in the Google Cloud console)"
    ),
    Kind.BUSY: (
        "the model's service is overloaded or not available: this passes by itself; a fallback "
        "(FALLBACK_GEMINI_MODEL, FALLBACK_GEMINI_URL) would take over meanwhile"
    ),
    Kind.CREDITS: (
        "the model's account has no more money to spend: top up its credits, see to its billing, "
        "or raise its spending cap in Google AI Studio (for Vertex AI in the Google Cloud console)"
    ),
    Kind.KEY: (
        "the model's service refuses the API key, or the account on Vertex AI: set GEMINI_API_KEY "
        "(FALLBACK_GEMINI_API_KEY, if there is one) to a valid key, or there "
        "GOOGLE_APPLICATION_CREDENTIALS to an account that is, and restart"
    ),
    Kind.PERMISSION: (
        "the model's service refuses this project: enable the Gemini API (Generative Language API) "
        "for the project of GEMINI_API_KEY, and see whether it or the key is restricted; on Vertex "
        "AI enable the Vertex AI API for VERTEX_PROJECT, and give the account of its credentials "
        "the role Vertex AI User"
    ),
    Kind.MODEL: (
        "the model's service does not offer this model: set GEMINI_MODEL to one that it offers "
        "(and look whether GEMINI_URL is right; on Vertex AI whether VERTEX_LOCATION has the "
        "model), and restart"
    ),
    Kind.LOCATION: (
        "the model's service is not offered where this server is: run it elsewhere, or reach the "
        "service through GEMINI_PROXY, or on Vertex AI set another VERTEX_LOCATION"
    ),
    Kind.REFUSED: (
        "the model's service refuses every connection: check GEMINI_API_KEY (or VERTEX_PROJECT and "
        "VERTEX_LOCATION), GEMINI_MODEL and GEMINI_URL"
    ),
}
