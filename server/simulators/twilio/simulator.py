"""The simulated Twilio as a whole: a REST API that is served, and calls that are led."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trio
from hypercorn.utils import wrap_app

from server.hooks.hypercorn_worker import make_config, serve_worker
from server.simulators.phone import PhoneScript
from server.simulators.twilio.account import SimulatedAccount
from server.simulators.twilio.api import make_api
from server.simulators.twilio.faults import FAULTS, Faults
from server.simulators.twilio.life import CallLife
from server.simulators.twilio.people import SCRIPT_NUMBERS, People
from server.simulators.twilio.webhooks import open_webhooks


class TwilioSimulator:
    """One Twilio account with one phone number, on loopback.

    Args:
        account_sid: What a client must show, with ``auth_token``.
        auth_token: Also signs webhooks and upgrades.
        phone_number: The account's number, E.164.
        script: Who answers if the number called does not say: a script or its name.
        scripts_by_ending: Who answers numbers with these last digits.
        ring_s: How long phones ring, instead of what their scripts say.
        recordings_dir: Where a two-channel WAV of each call is written (left said, right heard);
            None writes none.
        dial_s: How long the two sides of a ``<Dial>`` talk.
        faults: What goes wrong.

    Attributes:
        account: The account, with its calls.
        account_sid: The account's name.
        calls: Every call by its sid, the oldest first.
        dial_in: Lets somebody call the account's number; see :meth:`SimulatedAccount.dial_in`.
        api_url: Base URL of the REST API, once it runs.
        recordings_dir: See above.

    Raises:
        ValueError: There is no such script.
    """

    def __init__(
        self,
        *,
        account_sid: str,
        auth_token: str,
        phone_number: str,
        script: str | PhoneScript = "talks",
        scripts_by_ending: Mapping[str, str | PhoneScript] = SCRIPT_NUMBERS,
        ring_s: float | None = None,
        recordings_dir: Path | None = None,
        dial_s: float = 2.0,
        faults: Faults = FAULTS["healthy"],
    ) -> None:
        people = People(script, scripts_by_ending, ring_s)
        self.account = SimulatedAccount(account_sid, auth_token, phone_number, people, faults)
        self.account_sid = account_sid
        self.calls = self.account.calls
        self.dial_in = self.account.dial_in
        self.api_url = ""
        self.recordings_dir = recordings_dir
        self._dial_s = dial_s

    async def run(
        self,
        *,
        port: int = 0,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; ``nursery.start`` returns the API's base URL.

        Raises:
            OSError: The port is taken.
        """
        account = self.account
        config = make_config(f"127.0.0.1:{port}", graceful_timeout=0.1)
        api = wrap_app(make_api(account), config.wsgi_max_body_size, "asgi")
        async with open_webhooks(account.auth_token) as webhooks, trio.open_nursery() as nursery:
            (self.api_url,) = await nursery.start(serve_worker, api, config)
            task_status.started(self.api_url)
            async for call in account.new_calls:
                life = CallLife(
                    call,
                    webhooks,
                    account.people,
                    account.faults,
                    self._dial_s,
                    self.recordings_dir,
                )
                nursery.start_soon(life.live)
