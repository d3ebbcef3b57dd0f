"""A real Asterisk of a test's own, on loopback and free ports, and a server that serves it.

``ASTERISK_ROOT`` names a directory that Asterisk was unpacked into (``.ci/asterisk DIR``); to run
what is in there takes root. Where either is missing, its tests are skipped, and say so.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from benchmarks.ports import free_port
from server.agent.greeting import read_greeting

ROOT = os.environ.get("ASTERISK_ROOT", "")
USER, SECRET = "offhook", "secret"
APOLOGY = "agent-still-here.wav"
"""What stands for the recorded apology, of this server's own speech."""
MODULES = """
app_dial app_stack app_stasis app_echo app_playback bridge_builtin_features bridge_holding
bridge_simple bridge_softmix chan_pjsip chan_websocket codec_alaw codec_ulaw format_pcm format_wav
func_callerid func_channel func_timeout pbx_config res_ari res_ari_applications res_ari_asterisk
res_ari_bridges res_ari_channels res_ari_events res_ari_model res_ari_playbacks res_ari_sounds
res_http_websocket res_pjproject res_pjsip res_pjsip_caller_id res_pjsip_dtmf_info
res_pjsip_endpoint_identifier_ip res_pjsip_rfc3326 res_pjsip_sdp_rtp res_pjsip_session
res_pjsip_outbound_registration res_rtp_asterisk res_sorcery_config res_sorcery_memory
res_sorcery_astdb res_stasis res_stasis_answer res_stasis_playback res_stasis_recording
res_clioriginate res_stasis_snoop res_stasis_device_state res_timing_timerfd res_websocket_client
res_pjsip_header_funcs res_pjsip_pubsub res_ari_endpoints bridge_native_rtp
"""
CONFIGURATION = {
    "asterisk.conf": """
[directories]
astetcdir => {etc}
astmoddir => /usr/lib/x86_64-linux-gnu/asterisk/modules
astvarlibdir => {var}
astdbdir => {var}
astkeydir => {var}
astdatadir => {var}
astspooldir => {var}
astrundir => {var}
astlogdir => {var}
""",
    "ari.conf": f"[general]\nenabled = yes\n[{USER}]\ntype = user\npassword = {SECRET}\n",
    "http.conf": "[general]\nenabled = yes\nbindaddr = 127.0.0.1\nbindport = {http}\n",
    "logger.conf": "[general]\n[logfiles]\nfull = notice,warning,error,verbose\n",
    "pjsip.conf": """
[udp]
type = transport
protocol = udp
bind = 127.0.0.1:{sip}
[trunk]
type = endpoint
context = from-trunk
disallow = all
allow = {law}
aors = trunk
direct_media = no
rtp_timeout = {rtp_timeout}
[trunk]
type = aor
contact = sip:127.0.0.1:{callee}
[trunk]
type = identify
endpoint = trunk
match = 127.0.0.1
""",
    "rtp.conf": "[general]\nrtpstart = {rtp}\nrtpend = {rtp_end}\n",
    "extensions.conf": """
[from-trunk]
exten = _[+0-9].,1,Stasis(offhook,X-Line=${{EXTEN}})
 same = n,Stasis(offhook-0)
 same = n,Stasis(offhook-1)
 same = n,Stasis(offhook-a.0)
 same = n,Stasis(offhook-b.0)
 same = n,Hangup(17)
exten = 100,1,Answer()
 same = n,Stasis(offhook)
[offhook-transfer]
exten = _[+0-9].,1,Dial(PJSIP/${{EXTEN}}@trunk,${{OFFHOOK_RING_S}})
 same = n,Stasis(${{OFFHOOK_APP}},transferred,${{DIALSTATUS}})
 same = n,Hangup()
""",
    "websocket_client.conf": "".join(
        f"""
[{name}]
type = websocket_client
connection_type = per_call_config
uri = ws://127.0.0.1:{{{port}}}/stream
protocols = media
username = {USER}
password = {SECRET}
connection_timeout = 500
reconnect_interval = 500
reconnect_attempts = 2
tls_enabled = no
"""
        for name, port in (("offhook", "server"), ("offhook-b", "other"))
    ),
}


def why_not() -> str:
    """Why there can be no Asterisk here; empty if there can."""
    if not ROOT or not (Path(ROOT) / "usr/sbin/asterisk").exists():
        return "no Asterisk: ASTERISK_ROOT names no directory with one"
    return "" if os.geteuid() == 0 else "no Asterisk: only root may run what is in another root"


needs_asterisk = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it is there")


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = 60.0) -> None:
    """Wait until something holds that has to be looked at: it is another program's to say."""
    with trio.fail_after(timeout_s):
        while not await holds():  # noqa: ASYNC110
            await trio.sleep(0.05)


def _start(conf: str) -> subprocess.Popen[bytes]:
    nothing = subprocess.DEVNULL
    return subprocess.Popen(
        ["chroot", ROOT, "asterisk", "-f", "-C", conf],
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        start_new_session=True,
    )


@dataclass
class Asterisk:
    """One that runs."""

    home: Path
    http_port: int
    sip_port: int
    callee_port: int
    server_port: int
    other_port: int
    """Where another server is reached, by ``offhook-b``."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of its HTTP server."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def sip(self) -> tuple[str, int]:
        """Where it listens for SIP."""
        return "127.0.0.1", self.sip_port

    async def start(self) -> None:
        """Start it, and wait until it is there."""
        conf = f"/{self.home.relative_to(ROOT)}/asterisk.conf"
        self.process = await trio.to_thread.run_sync(_start, conf)
        await until(self._is_there, 90.0)

    async def _is_there(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        with suppress(httpx2.HTTPError):
            return "state" in await self.ask("endpoints", "PJSIP", "trunk")
        return False

    async def kill(self) -> None:
        """End it without a goodbye."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await trio.to_thread.run_sync(self.process.wait)
            self.process = None

    async def ask(self, *path: str) -> Any:
        """What ARI says of something."""
        async with httpx2.AsyncClient(trust_env=False, verify=False) as http:
            answer = await http.get("/".join((self.url, "ari", *path)), auth=(USER, SECRET))
            return answer.json() if answer.status_code == 200 else {}

    async def delete(self, *path: str) -> None:
        """Have ARI take something away."""
        async with httpx2.AsyncClient(trust_env=False, verify=False) as http:
            await http.delete("/".join((self.url, "ari", *path)), auth=(USER, SECRET))

    async def command(self, line: str) -> None:
        """Have it do what its own console can be told."""
        conf = f"/{self.home.relative_to(ROOT)}/asterisk.conf"
        with trio.fail_after(60):
            await trio.run_process(
                ["chroot", ROOT, "asterisk", "-C", conf, "-rx", line], capture_stdout=True
            )

    async def has_app(self, name: str) -> None:
        """Wait until somebody hears the events of an app."""

        async def is_there() -> bool:
            return "channel_ids" in await self.ask("applications", name)

        await until(is_there)

    def log(self) -> str:
        """The end of its log."""
        with suppress(OSError):
            return (self.home / "var" / "full").read_text()[-4_000:]
        return ""


@asynccontextmanager
async def asterisk(
    *, law: str = "ulaw", files: Mapping[str, str] | None = None, rtp_timeout_s: int = 20
) -> AsyncGenerator[Asterisk]:
    """An Asterisk for as long as the block lasts, with a trunk that leads to telephones here.

    Args:
        law: What its trunk speaks.
        files: Configuration in the place of what it has otherwise, by the names of files.
        rtp_timeout_s: For how long a telephone may send nothing; tests are held up, too.
    """
    ports = {"http": free_port(), "server": free_port(), "other": free_port()}
    ports |= {name: free_port(socket.SOCK_DGRAM) for name in ("sip", "callee")}
    rtp = 20_000 + (os.getpid() * 200) % 30_000
    home = Path(ROOT) / "tmp" / f"offhook-{os.getpid()}-{ports['http']}"
    var = home / "var"
    var.mkdir(parents=True)
    inside = f"/{home.relative_to(ROOT)}"
    values = ports | {"rtp": rtp, "rtp_end": rtp + 198, "law": law}
    values |= {"etc": inside, "var": f"{inside}/var", "rtp_timeout": rtp_timeout_s}
    for name, text in (CONFIGURATION | dict(files or {})).items():
        (home / name).write_text(text.format(**values))
    modules = "".join(f"load = {name}.so\n" for name in MODULES.split())
    (home / "modules.conf").write_text(f"[modules]\nautoload = no\n{modules}")
    for shared in ("documentation", "rest-api", "static-http"):
        (var / shared).symlink_to(f"/usr/share/asterisk/{shared}")
    sounds = var / "sounds" / "en"
    sounds.mkdir(parents=True)
    speech = Path(__file__).parent.parent.parent / "server" / "speech"
    (sounds / "offhook-apology.ulaw").write_bytes(read_greeting(speech / APOLOGY))
    names = ("http", "sip", "callee", "server", "other")
    one = Asterisk(home, *(ports[name] for name in names))
    try:
        await one.start()
        yield one
    finally:
        with trio.CancelScope(shield=True):
            await one.kill()
            shutil.rmtree(home, ignore_errors=True)
