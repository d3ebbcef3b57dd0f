"""Signatures, checked by the package that receivers use."""

from __future__ import annotations

import base64
import time

import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from server.events.signing import headers_of
from server.settings.events import read_secret

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 24).decode()
BODY = '{"type":"call.ended","data":{"words":"ñandú"}}'.encode()


def test_receivers_know_an_event_by_its_signature():
    headers = headers_of("msg_1", BODY, [read_secret(SECRET)], at=time.time())

    assert Webhook(SECRET).verify(BODY, headers)["type"] == "call.ended"


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_while_a_secret_is_replaced_either_one_is_enough(secret):
    keys = [read_secret(SECRET), read_secret(OTHER)]

    headers = headers_of("msg_1", BODY, keys, at=time.time())

    assert Webhook(secret).verify(BODY, headers)


def test_an_event_that_was_changed_is_not_ours():
    headers = headers_of("msg_1", BODY, [read_secret(SECRET)], at=time.time())

    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY.replace(b"ended", b"begun"), headers)


@pytest.mark.parametrize(
    "text", ["", "secret", "whsec_", "whsec_%%%", "whsec_c2hvcnQ=", "whsec_" + "A" * 120]
)
def test_what_is_no_secret_is_refused(text):
    with pytest.raises(ValueError, match="whsec_"):
        read_secret(text)
