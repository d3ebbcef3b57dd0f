"""A Twilio and a Gemini of this machine, and settings that name them as real accounts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from benchmarks.ports import free_port
from server.settings.settings import Settings
from server.simulators.gemini import GeminiSimulator
from server.simulators.twilio import TwilioSimulator

ACCOUNT, TOKEN, KEY = "AC" + "1" * 32, "2" * 32, "key-of-the-model-12345"
NUMBER, OTHER = "+15005550006", "+15005550107"


@dataclass
class Doubles:
    twilio: TwilioSimulator
    gemini: GeminiSimulator
    given: dict[str, Any]

    def settings(self, **changes) -> Settings:
        return Settings.load(_env_file=None, **(self.given | changes))

    def env(self) -> dict[str, str]:
        return {name.upper(): str(value) for name, value in self.given.items()}


async def open_doubles(nursery: trio.Nursery, folder: Path) -> Doubles:
    twilio = TwilioSimulator(account_sid=ACCOUNT, auth_token=TOKEN, phone_number=NUMBER)
    gemini = GeminiSimulator(api_key=KEY)
    await nursery.start(twilio.run)
    await nursery.start(gemini.run)
    port = free_port()
    given = {
        "twilio_account_sid": ACCOUNT,
        "twilio_auth_token": TOKEN,
        "twilio_phone_number": NUMBER,
        "gemini_api_key": KEY,
        "twilio_api_url": twilio.api_url,
        "gemini_url": gemini.url,
        "port": port,
        "public_url": f"http://127.0.0.1:{port}",
        "database_url": f"sqlite:///{folder}/offhook.db",
    }
    return Doubles(twilio, gemini, given)
