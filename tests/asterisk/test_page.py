"""What docs/asterisk.md tells people to write into Asterisk's files, in a real Asterisk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.asterisk.conftest import exchange_of
from tests.asterisk.test_real import THEM, US, ended, hears_speech
from tests.support.asterisk import SECRET, asterisk, needs_asterisk
from tests.support.sip_phone import Ended

pytestmark = [needs_asterisk, pytest.mark.sockets, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "asterisk.md"
NAMES = ("http.conf", "ari.conf", "websocket_client.conf", "pjsip.conf", "extensions.conf")
HERE = {
    "bindaddr = 10.0.0.2": "bindaddr = 127.0.0.1",
    "bindport = 8088": "bindport = {http}",
    "password = …": f"password = {SECRET}",
    "ws://10.0.0.3:8000/stream": "ws://127.0.0.1:{server}/stream",
    "bind = 0.0.0.0:5060": "bind = 127.0.0.1:{sip}",
    "sip:sip.example.com:5060": "sip:127.0.0.1:{callee}",
    "match = sip.example.com": "match = 127.0.0.1",
}
"""Addresses and secrets, of which a page can only have examples; all else is as it is there."""


def files_of_page() -> dict[str, str]:
    """The blocks of the page, in the order of its files."""
    blocks = re.findall(r"```ini\n(.*?)```", PAGE.read_text(), re.DOTALL)
    files = dict(zip(NAMES, blocks, strict=True))
    for name, text in files.items():
        text = text.replace("{", "{{").replace("}", "}}")
        for example, here in HERE.items():
            text = text.replace(example, here)
        files[name] = text
    return files


@pytest.fixture
async def pbx():
    """A PBX with the files of the page."""
    async with asterisk(files=files_of_page()) as one:
        yield one


async def test_the_files_of_the_page_bring_calls_in_and_out_and_back_from_a_transfer(pbx, nursery):
    async with (
        exchange_of(pbx, asterisk_app="offhook-0") as exchange,
        exchange.phone() as caller,
        exchange.phone(is_callee=True) as callee,
    ):
        nursery.start_soon(caller.run)
        await caller.call(US)
        await hears_speech(caller)
        first = await exchange.only_call()
        nursery.start_soon(first.transfer, "sales", THEM)
        with pytest.raises(Ended):
            await callee.take_call(refuse=486)
        heard = len(caller.heard)
        first.conversation.session.send_text("Hello?")
        await hears_speech(caller, after=heard)
        await caller.hang_up()
        await ended(exchange, first)
        nursery.start_soon(callee.run)
        await exchange.make_call(THEM)
        second = await exchange.only_call()
        await callee.take_call()
        await hears_speech(callee)
        await callee.hang_up()
        await ended(exchange, second)

    assert first.end_reason == second.end_reason == "caller-hung-up"
