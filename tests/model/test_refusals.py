"""What a refusal of the model's service says about the account: words, codes, statuses."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model.refusals import WORDS, classify
from server.refusal import Cure, Kind


def google(code: int, status: str, message: str, reason: str = "") -> str:
    """An error as Google writes it."""
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]
    error = {"code": code, "message": message, "status": status}
    return json.dumps({"error": error | ({"details": details} if reason else {})}, indent=2)


CLOSED = [
    (Kind.QUOTA, 1011, "You exceeded your current quota, please check your plan and billing det"),
    (Kind.QUOTA, 1011, "RESOURCE_EXHAUSTED"),
    (Kind.QUOTA, 1008, "Resource has been exhausted (e.g. check quota)."),
    (Kind.QUOTA, 1011, "Quota exceeded for quota metric 'Requests' and limit 'Requests per day'"),
    (Kind.QUOTA, 1013, "quota exceeded"),
    (Kind.RATE, 1011, "Rate limit exceeded. Too many requests."),
    (Kind.RATE, 1008, "RATE_LIMIT_EXCEEDED"),
    (Kind.RATE, 1011, "rateLimitExceeded"),
    (Kind.RATE, 1008, "Too many concurrent sessions for this project."),
    (Kind.RATE, 1011, "Quota exceeded for metric: requests per minute, limit: 10"),
    (Kind.RATE, 1011, "You have reached the maximum number of concurrent Live sessions"),
    (Kind.RATE, 1008, "Spend-based rate limit reached, please retry later."),
    (Kind.CREDITS, 1011, "Your prepayment credits are depleted."),
    (Kind.CREDITS, 1008, "Your project has exceeded its monthly spending cap."),
    (Kind.CREDITS, 1011, "YOUR PREPAID CREDITS HAVE RUN OUT. PLEASE TOP UP."),
    (Kind.CREDITS, 1008, "Insufficient credits"),
    (Kind.CREDITS, 1008, "You are out of credits."),
    (Kind.CREDITS, 1008, "Spend limit reached for project 123"),
    (Kind.CREDITS, 1011, "This API method requires billing to be enabled."),
    (Kind.CREDITS, 1008, "BILLING_DISABLED"),
    (Kind.CREDITS, 1008, "The billing account for the owning project is disabled in state closed"),
    (Kind.CREDITS, 1008, "Payment required"),
    (Kind.KEY, 1007, "API key expired. Please renew the API key."),
    (Kind.KEY, 1007, "API key not valid. Please pass a valid API key."),
    (Kind.KEY, 1008, "Your API key was reported as leaked. Please use another API key."),
    (Kind.KEY, 1008, "API_KEY_INVALID"),
    (Kind.KEY, 1007, "Invalid API-key provided"),
    (Kind.KEY, 1008, "The API key you\u2019re using isn\u2019t valid"),
    (Kind.KEY, 1008, "Api Key has been revoked"),
    (Kind.KEY, 1008, "Method doesn't allow unregistered callers."),
    (Kind.KEY, 1011, "UNAUTHENTICATED: Request had invalid authentication credentials."),
    (Kind.KEY, 3000, ""),
    (Kind.PERMISSION, 1008, "PERMISSION_DENIED"),
    (Kind.PERMISSION, 1011, "The caller does not have permission"),
    (Kind.PERMISSION, 1008, "Your project has been denied access. Please contact support."),
    (Kind.PERMISSION, 1008, "Consumer 'api_key:[the API key]' has been suspended."),
    (Kind.PERMISSION, 1008, "Generative Language API has not been used in project 12 before or it"),
    (Kind.PERMISSION, 1008, "SERVICE_DISABLED"),
    (Kind.PERMISSION, 1008, "Requests to this API generativelanguage.googleapis.com are blocked."),
    (Kind.PERMISSION, 1008, "The API requires a quota project, which is not set by default."),
    (Kind.LOCATION, 1007, "User location is not supported for the API use."),
    (Kind.LOCATION, 1008, "FAILED_PRECONDITION: The service isn't available in your country."),
    (Kind.MODEL, 1008, "models/gemini-3.8-live is not found for API version v1beta"),
    (Kind.MODEL, 1008, "models/x-y is not supported for bidiGenerateContent."),
    (Kind.MODEL, 1008, "Model 'gemini-3.8-live' does not exist"),
    (Kind.MODEL, 1011, "gemini-2.5-flash-native-audio-preview-12-2025 has been shut down"),
    (Kind.MODEL, 1008, "This model models/gemini-3.1 is no longer available to new users."),
    (Kind.MODEL, 1008, "Publisher Model `projects/p/locations/l/models/g` was not found or your"),
    (Kind.MODEL, 1008, "NOT_FOUND: model not found"),
    (Kind.BUSY, 1011, "The service is currently unavailable."),
    (Kind.BUSY, 1011, "The model is overloaded. Please try again later."),
    (Kind.BUSY, 1011, "UNAVAILABLE"),
    (Kind.BUSY, 1013, ""),
    # Other people's and older words for the same.
    (Kind.KEY, 1008, "This key has been leaked"),
    (Kind.KEY, 1008, "invalid_api_key"),
    (Kind.KEY, 1008, "API keys are not supported by this API. Expected OAuth2 access token"),
    (Kind.KEY, 1008, "Request had insufficient authentication scopes."),
    (Kind.CREDITS, 1008, "billing_not_active"),
    (Kind.CREDITS, 1008, "Your credit balance is too low"),
    (Kind.CREDITS, 1008, "Dunning decision is deny"),
    (Kind.CREDITS, 1008, "Your free trial has expired"),
    (Kind.QUOTA, 1008, "insufficient_quota"),
    (Kind.QUOTA, 1008, "Free tier limit reached"),
    (Kind.RATE, 1008, "Request rate exceeded"),
    (Kind.RATE, 1008, "Session limit exceeded for project"),
    (Kind.MODEL, 1008, "Unsupported model: gemini-9"),
    (Kind.MODEL, 1008, "gemini-3.8-live is not supported"),
    (Kind.PERMISSION, 1008, "account_deactivated"),
    (Kind.PERMISSION, 1008, "Access denied"),
    (Kind.LOCATION, 1008, "LOCATION_POLICY_VIOLATED"),
]


@pytest.mark.parametrize(("kind", "code", "reason"), CLOSED)
def test_a_close_that_is_about_the_account_is_known_by_its_words(kind, code, reason):
    assert classify(reason, close_code=code) is kind


@pytest.mark.parametrize("code", [1000, 1007, 1008, 1011, 4000])
def test_the_words_count_whatever_the_code(code):
    assert classify("Your prepayment credits are depleted.", close_code=code) is Kind.CREDITS


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1000, ""),
        (1001, "going away"),
        (1006, ""),
        (1007, "Request contains an invalid argument."),
        (1007, "Thinking level is not supported for this model."),
        (1007, "Thinking budget exceeded the maximum"),
        (
            1007,
            "Invalid JSON payload received. Unknown name \"proactivity\" at 'setup': Cannot find",
        ),
        (1007, "The input token count (140000) exceeds the maximum number of tokens allowed"),
        (1007, "Unsupported language code 'xx-XX' for model models/gemini-3.8-live"),
        (1007, "Invalid value at 'setup.model_config' (invalid model turn role)"),
        (1007, "Cannot extract voices from a non-audio request."),
        (1007, "Precondition check failed."),
        (1008, "policy"),
        (1008, "The operation was aborted."),
        (1008, "Requested entity was not found."),
        (1008, "NOT_FOUND"),
        (1008, "Session not found"),
        (1008, "Live streaming function calling is not enabled for models/gemini-3.8-live"),
        (1008, "The prompt was blocked by the safety policy of the user"),
        (1008, "Function lookup_customer was not found"),
        (1011, "Internal error encountered."),
        (1011, "Deadline expired before operation could complete."),
        (1011, "RPC::DEADLINE_EXCEEDED"),
        (1011, "Thread was cancelled when writing StartStep status to channel"),
        (1011, "The session is still in use."),
        (1011, "Maximum session duration exceeded"),
        (1007, "Unsupported sample rate limit"),
        (1007, "Language code not supported for this region"),
        (1008, "Too many function calls in one turn"),
        (1008, "Invalid resumption handle; the session token has expired"),
        (1007, "models/gemini-3.8-live does not support the TEXT modality"),
        (1007, "INVALID_ARGUMENT: schema key invalid: properties"),
    ],
)
def test_ordinary_trouble_is_not_taken_for_the_accounts(code, reason):
    assert classify(reason, close_code=code) is None


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        (Kind.REFUSED, 400, ""),
        (
            Kind.KEY,
            400,
            google(400, "INVALID_ARGUMENT", "API key not valid.", "API_KEY_INVALID"),
        ),
        (Kind.KEY, 400, google(400, "INVALID_ARGUMENT", "API key expired. Please renew it.")),
        (
            Kind.LOCATION,
            400,
            google(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
        ),
        (Kind.REFUSED, 400, google(400, "FAILED_PRECONDITION", "Precondition check failed.")),
        (Kind.KEY, 401, ""),
        (Kind.KEY, 401, google(401, "UNAUTHENTICATED", "Request had invalid credentials.")),
        (Kind.CREDITS, 402, ""),
        (Kind.PERMISSION, 403, "<html><title>403</title>Forbidden</html>"),
        (Kind.PERMISSION, 403, google(403, "PERMISSION_DENIED", "Permission denied.")),
        (Kind.KEY, 403, google(403, "PERMISSION_DENIED", "Your API key was reported as leaked.")),
        (
            Kind.PERMISSION,
            403,
            google(403, "PERMISSION_DENIED", "Not used before.", "SERVICE_DISABLED"),
        ),
        (
            Kind.CREDITS,
            403,
            google(403, "PERMISSION_DENIED", "No.", "BILLING_DISABLED"),
        ),
        (Kind.MODEL, 404, "Not Found"),
        (Kind.MODEL, 404, google(404, "NOT_FOUND", "Requested entity was not found.")),
        (Kind.RATE, 429, ""),
        (
            Kind.QUOTA,
            429,
            google(
                429,
                "RESOURCE_EXHAUSTED",
                "You exceeded your current quota, please check your plan and billing details. For "
                "more information head to: https://ai.google.dev/gemini-api/docs/rate-limits.",
            ),
        ),
        (
            Kind.CREDITS,
            429,
            google(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
        ),
        (Kind.BUSY, 500, google(500, "INTERNAL", "Internal error encountered.")),
        (Kind.BUSY, 503, google(503, "UNAVAILABLE", "The model is overloaded.")),
        (Kind.BUSY, 503, ""),
        (Kind.KEY, 403, "[" + google(403, "PERMISSION_DENIED", "API key expired.") + "]"),
        (Kind.KEY, 403, google(403, "PERMISSION_DENIED", "The API key expired. " * 20)[:150]),
    ],
)
def test_an_answer_to_the_handshake_is_known_by_status_and_body(kind, status, body):
    assert classify(body, status=status, at_handshake=True) is kind


def test_a_redirect_says_nothing_about_the_account():
    assert classify("", status=302, at_handshake=True) is None


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Kind.RATE, {"code": 429, "message": "Too many requests"}),
        (Kind.PERMISSION, {"code": 403, "status": "PERMISSION_DENIED"}),
        (Kind.KEY, {"code": 401}),
        (Kind.BUSY, {"code": 503, "status": "UNAVAILABLE"}),
        (Kind.CREDITS, {"message": "Your prepayment credits are depleted."}),
        (None, {"code": 400, "message": "Request contains an invalid argument."}),
        (None, {"code": 404, "message": "Requested entity was not found."}),
        (None, {"code": 500, "message": "Internal error encountered."}),
        (None, {"code": "odd", "message": ["odd", 7], "details": {"reason": None}}),
        (None, {}),
    ],
)
def test_an_error_that_comes_as_a_message_is_known_by_its_fields(kind, error):
    code = error.get("code")

    assert classify(json.dumps(error), status=code if isinstance(code, int) else None) is kind


def test_what_passes_by_itself_is_told_from_what_needs_a_person():
    cures = {kind: kind.cure for kind in Kind}

    assert [kind for kind, cure in cures.items() if cure is Cure.RETRY] == [Kind.RATE, Kind.BUSY]
    assert [kind for kind, cure in cures.items() if cure is Cure.WAIT] == [Kind.QUOTA]
    assert all(kind.advice for kind in Kind)
    for kind in (Kind.KEY, Kind.PERMISSION, Kind.MODEL, Kind.LOCATION, Kind.REFUSED):
        assert "VERTEX" in kind.advice or "GOOGLE" in kind.advice  # both platforms' settings


@given(st.text(), st.integers(0, 5_000), st.integers(0, 999), st.booleans())
def test_whatever_a_service_says_is_read(text, code, status, at_handshake):
    classify(text, close_code=code, status=status, at_handshake=at_handshake)


@pytest.mark.parametrize("piece", ["api key ", "model ", "no more ", "[", '{"error":', "quotas"])
def test_a_hostile_text_costs_little_time(piece):
    began = time.perf_counter()
    classify(piece * 100_000, close_code=1008)

    assert time.perf_counter() - began < 1.0
    assert WORDS
