"""Programs that print what cloudflared and ngrok print, and open no tunnel."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

ADDRESS = "https://quick-brown-fox.trycloudflare.com"
CLOUDFLARED = [
    "2026-03-01T12:00:00Z INF Requesting new quick Tunnel on trycloudflare.com...",
    "2026-03-01T12:00:01Z INF +----------------------------------------------------------+",
    "2026-03-01T12:00:01Z INF |  Your quick Tunnel has been created! Visit it at:         |",
    f"2026-03-01T12:00:01Z INF |  {ADDRESS}               |",
    "2026-03-01T12:00:02Z INF Registered tunnel connection connIndex=0 location=bog01",
]
NGROK_ADDRESS = "https://1a2b-190-1-2-3.ngrok-free.app"
NGROK = [
    '{"lvl":"info","msg":"open config file","path":"/root/.config/ngrok/ngrok.yml"}',
    '{"lvl":"info","msg":"starting web service","addr":"127.0.0.1:4040","url":"http://x"}',
    f'{{"addr":"http://x","lvl":"info","msg":"started tunnel","url":"{NGROK_ADDRESS}"}}',
]
REFUSED = [
    "2026-03-01T12:00:00Z INF Requesting new quick Tunnel on trycloudflare.com...",
    'failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": dial tcp: no',
]


def install(
    folder: Path, name: str, lines: list[str], *, then: str = "wait", stubborn: bool = False
) -> Path:
    """Put a program there; what it was started with, and that it was told to end, is beside it.

    Args:
        folder: Of programs.
        name: The program's.
        lines: What it prints.
        then: ``wait``, or ``end``, or ``talk``: print for as long as it runs.
        stubborn: It does not end when it is told to.
    """
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(
        f"""#!{sys.executable}
import signal, sys, time
from pathlib import Path
beside = Path(__file__).parent
def told(number, frame):
    (beside / "{name}.ended").write_text("")
    if not {stubborn}:
        sys.exit(0)
signal.signal(signal.SIGTERM, told)
(beside / "{name}.started").write_text(" ".join(sys.argv[1:]))
for line in {lines!r}:
    print(line, file=sys.stderr, flush=True)
while {then!r} != "end":
    if {then!r} == "talk":
        print("x" * 8000, flush=True)
    else:
        time.sleep(0.05)
sys.exit(1)
"""
    )
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path
