"""Proof that a webhook or an upgrade is Twilio's own."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from twilio.request_validator import (
    HMAC_SHA1,
    HMAC_SHA256,
    SIGNATURE_HEADER,
    SIGNATURE_SETTINGS_HEADER,
    RequestValidator,
    get_signature_algorithm,
)

from server.carrier.twilio.documents import stream_origin
from server.headers import Headers, lines_of, listed, single

_ALGORITHMS = frozenset({HMAC_SHA1, HMAC_SHA256})


class WebhookVerifier:
    """Proves that a request was sent by Twilio, and to this server.

    The URL that was signed is rebuilt from the configured public one: the ``Host`` header is the
    sender's to choose, and behind a proxy it is not what Twilio was told.

    Args:
        auth_token: The account's secret.
        public_url: Where Twilio reaches this server.
        shared_keys: Secrets of Twilio's newer shared keys by key id, for accounts that use them.
        streams_at: Where Twilio opens media streams; None for the public address.
    """

    def __init__(
        self,
        auth_token: str,
        public_url: str,
        *,
        shared_keys: Mapping[str, str] | None = None,
        streams_at: str | None = None,
    ) -> None:
        self._origin = public_url.rstrip("/")
        self._stream_origins = (stream_origin(public_url), self._origin)
        if streams_at is not None:
            self._stream_origins = (streams_at, f"http{streams_at.removeprefix('ws')}")
        self._validator = RequestValidator(auth_token)
        self._shared_validators = {
            key: RequestValidator(secret) for key, secret in (shared_keys or {}).items()
        }

    def verify_signature(
        self, target: str, headers: Headers, form: Mapping[str, str] | None = None
    ) -> bool:
        """Whether a webhook's ``X-Twilio-Signature`` is right; without one, or with two, it is not.

        Args:
            target: Path and query exactly as requested, with their escapes.
            headers: The request's headers.
            form: The body's fields, all of them, a multi-dict if names repeat; None for a GET.
        """
        return self._is_signed([self._origin + target], target, headers, form)

    def verify_upgrade(self, target: str, headers: Headers) -> bool:
        """Whether the WebSocket upgrade of a media stream is signed.

        Whether Twilio signs the ``wss`` or the ``https`` form, and with a slash added at the end,
        differs between its documentation and the field, and some never saw the header at all. So
        every form is tried, and a False is a reason to look twice, not to hang up: the ticket
        shown at ``start`` is what lets a stream in.
        """
        urls = [origin + target + ending for origin in self._stream_origins for ending in ("", "/")]
        return self._is_signed(urls, target, headers, None)

    def signed_for(
        self, target: str, headers: Headers, form: Mapping[str, str] | None = None
    ) -> str | None:
        """The address, without its query, that a webhook which is not ours was signed for.

        Whoever can sign has the account's secret, so a right signature for another address is no
        stranger's: ``PUBLIC_URL``, or the address that Twilio was told, is wrong. It opens nothing.

        Args:
            target: Path and query exactly as requested, with their escapes.
            headers: The request's headers, of which ``Host`` and ``X-Forwarded-Host`` may say more.
            form: The body's fields, a multi-dict if names repeat; None for a GET.

        Returns:
            None if it was signed for no address that can be thought of.
        """
        if (secret := self._secret(headers)) is None or not target.startswith("/"):
            return None
        signature, validator, algorithm = secret
        try:
            # What is signed is the address and then the fields, whose part is always the same.
            fields = "".join(
                f"{name}{value}"
                for name in sorted(set(form or {}))
                for value in sorted(set(validator.get_values(form, name)))
            )
            for url in other_addresses(self._origin, target, headers, ("https", "http")):
                computed = validator.compute_signature(url + fields, {}, algorithm)
                if hmac.compare_digest(computed.encode(), signature.encode()):
                    return url.partition("?")[0]
        except ValueError:  # Text that cannot be encoded.
            pass
        return None

    def _is_signed(
        self,
        urls: list[str],
        target: str,
        headers: Headers,
        form: Mapping[str, str] | None,
    ) -> bool:
        if (secret := self._secret(headers)) is None or not target.startswith("/"):
            return False
        signature, validator, algorithm = secret
        try:
            # As it was asked for, which is nearly always what was signed; the package tries each
            # with its port and without.
            if signature.isascii() and any(
                hmac.compare_digest(
                    validator.compute_signature(url, form or {}, algorithm), signature
                )
                for url in urls
            ):
                return True
        except ValueError:
            pass
        try:
            return any(validator.validate(url, form, signature, algorithm) for url in urls)
        except ValueError:  # A URL that cannot be parsed, text that cannot be encoded.
            return False

    def _secret(self, headers: Headers) -> tuple[str, RequestValidator, str] | None:
        """A request's signature, and what to look at it with; None without exactly one, or where it
        is said to be made as none is.
        """
        signature = single(headers, SIGNATURE_HEADER)
        settings = lines_of(headers, SIGNATURE_SETTINGS_HEADER)
        if not signature or len(settings) > 1:
            return None
        validator = self._shared_validator(settings[0]) if settings else self._validator
        if validator is None:
            return None
        algorithm = get_signature_algorithm(settings[0] if settings else None).upper()
        # Any other the package logs, as it came, each time that it is asked.
        return (signature, validator, algorithm) if algorithm in _ALGORITHMS else None

    def _shared_validator(self, settings: str) -> RequestValidator | None:
        for part in settings.split(","):
            name, _, value = part.partition("=")
            if name.strip() == "key":
                return self._shared_validators.get(value.strip())
        return None


# ------------------------------------------------------------------------------------------
# Another address than the one we know

_NETLOC = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]{1,64}){1,8}")
_MAX_GIVEN = 4
_PORTS = {"https": ":443", "wss": ":443", "http": ":80", "ws": ":80"}


def other_addresses(
    public_url: str, target: str, headers: Headers, schemes: tuple[str, ...]
) -> list[str]:
    """Addresses that this request may have been sent to, besides the one that is expected.

    They are for the log only: what a stranger writes into ``Host`` opens nothing.

    Args:
        public_url: Where we believe that Twilio reaches us.
        target: Path and query as requested.
        headers: The request's.
        schemes: Which ones to think of.
    """
    public = urlsplit(public_url)
    given = [public.netloc, *lines_of(headers, "Host"), *listed(headers, "X-Forwarded-Host")]
    path, mark, query = target.partition("?")
    prefix = public.path.rstrip("/")
    stripped = (single(headers, "X-Forwarded-Prefix") or "").rstrip("/")
    paths = (
        *(path, prefix + path, path.removeprefix(prefix), path.rstrip("/"), f"{path}/"),
        *((stripped + path,) if _PREFIX.fullmatch(stripped) else ()),
    )
    return list(
        dict.fromkeys(
            f"{scheme}://{netloc}{each}{mark}{query}"
            for scheme in schemes
            for one in given[:_MAX_GIVEN]
            for netloc in _like(one, _PORTS[scheme])
            for each in paths
        )
    )


def _like(netloc: str, usual_port: str) -> tuple[str, ...]:
    """A host with and without its port, and its namesake with or without ``www``."""
    match = _NETLOC.fullmatch(netloc)
    if match is None:
        return ()
    host, port = match[1], match[2] or ""
    namesake = host.removeprefix("www.") if host.startswith("www.") else f"www.{host}"
    return (netloc, host, host + usual_port, namesake, namesake + port)
