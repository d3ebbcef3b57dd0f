"""Programs that open tunnels: found, started, read, and ended."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from server.commands import processes, tunnel
from server.commands.processes import Output, running
from server.commands.tunnel import (
    TunnelLost,
    find_program,
    logged_address,
    open_tunnel,
    quick_address,
)
from server.errors import ConfigurationError
from tests.support.tunnels import ADDRESS, CLOUDFLARED, NGROK, NGROK_ADDRESS, REFUSED, install

PATIENCE_S = 60.0


def test_an_address_is_read_where_it_is_and_nowhere_else():
    assert [quick_address(line) for line in CLOUDFLARED] == [None, None, None, ADDRESS, None]
    assert [quick_address(line) for line in REFUSED] == [None, None]
    assert [logged_address(line) for line in NGROK] == [None, None, NGROK_ADDRESS]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[1]",
        '{"msg": "started tunnel"}',
        '{"msg": "started tunnel", "url": 5}',
        '{"msg": "started tunnel", "url": "http://plain.ngrok.io"}',
        '{"msg": "started tunnel", "url": "https://x.ngrok.io/path?x"}',
        "[" * 5_000,
    ],
)
def test_lines_that_have_no_address_are_passed_over(line):
    assert logged_address(line) is None


def test_what_is_installed_is_found_and_what_is_not_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"cloudflared or ngrok is not installed.*PUBLIC"):
        find_program()

    install(tmp_path, "ngrok", NGROK)

    assert find_program()[0].name == "ngrok"
    assert find_program("ngrok")[1] == str(tmp_path / "ngrok")
    with pytest.raises(ConfigurationError, match="cloudflared is not installed"):
        find_program("cloudflared")
    install(tmp_path, "cloudflared", CLOUDFLARED)
    assert find_program()[0].name == "cloudflared"


@pytest.mark.parametrize(
    ("name", "lines", "address", "started"),
    [
        ("cloudflared", CLOUDFLARED, ADDRESS, "tunnel --no-autoupdate --url http://127.0.0.1:81"),
        ("ngrok", NGROK, NGROK_ADDRESS, "http http://127.0.0.1:81 --log=stdout --log-format=json"),
    ],
)
async def test_a_tunnel_is_open_for_as_long_as_it_is_needed(
    tmp_path, monkeypatch, name, lines, address, started
):
    install(tmp_path, name, lines)
    monkeypatch.setenv("PATH", str(tmp_path))
    program, path = find_program(name)

    with trio.fail_after(PATIENCE_S):
        async with open_tunnel(program, path, "http://127.0.0.1:81") as found:
            assert not (tmp_path / f"{name}.ended").exists()

    assert found == address
    assert (tmp_path / f"{name}.started").read_text() == started
    assert (tmp_path / f"{name}.ended").exists()


async def test_a_tunnel_that_cannot_be_opened_says_why(tmp_path):
    path = install(tmp_path, "cloudflared", REFUSED, then="end")

    with trio.fail_after(PATIENCE_S), pytest.raises(TunnelLost) as lost:
        async with open_tunnel(tunnel.PROGRAMS[0], str(path), "http://127.0.0.1:81"):
            raise AssertionError

    assert "failed to request quick Tunnel" in str(lost.value)


async def test_a_tunnel_without_an_address_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tunnel, "ADDRESS_TIMEOUT_S", 0.5)
    path = install(tmp_path, "cloudflared", CLOUDFLARED[:2])

    with trio.fail_after(PATIENCE_S), pytest.raises(TunnelLost, match="has said no address"):
        async with open_tunnel(tunnel.PROGRAMS[0], str(path), "http://127.0.0.1:81"):
            raise AssertionError


async def test_a_tunnel_that_ends_is_told_of(tmp_path):
    path = install(tmp_path, "cloudflared", CLOUDFLARED, then="end")

    with trio.fail_after(PATIENCE_S), pytest.raises(ExceptionGroup) as lost:
        async with open_tunnel(tunnel.PROGRAMS[0], str(path), "http://127.0.0.1:81"):
            await trio.sleep_forever()

    assert lost.group_contains(TunnelLost, match="cloudflared has ended")


async def test_a_program_that_talks_is_read_on_and_one_that_stays_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "STOP_S", 0.5)
    path = install(tmp_path, "cloudflared", CLOUDFLARED, then="talk", stubborn=True)

    with trio.fail_after(PATIENCE_S):
        async with open_tunnel(tunnel.PROGRAMS[0], str(path), "http://127.0.0.1:81") as address:
            pass

    assert address == ADDRESS


async def test_lines_are_bounded_and_the_last_needs_no_end():
    code = (
        f"import sys; sys.stdout.write('a\\r\\n' + 'b' * {processes.MAX_LINE_BYTES * 2} + '\\nc')"
    )

    with trio.fail_after(PATIENCE_S):
        async with running([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            output = Output(process)
            lines = []
            while (line := await output.next_line()) is not None:
                lines.append(line)

    assert (lines[0], lines[-1]) == ("a", "c")
    assert {character for line in lines[1:-1] for character in line} == {"b"}
    assert max(map(len, lines)) <= 2 * processes.MAX_LINE_BYTES
