"""``offhook check`` as a whole: real accounts are doubles on this machine, asked over sockets."""

from __future__ import annotations

import json
import sqlite3
import ssl
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial

import hypercorn.trio
import pytest
import trio
import trustme
from quart import request
from quart_trio import QuartTrio

from benchmarks.ports import free_port
from server.app import create_app
from server.checkup import Finding, State, findings
from server.checkup.asking import ask_all, look
from server.commands import check as command
from server.commands import opening
from server.commands.check import find
from server.commands.line import main
from server.errors import CallRefused, CarrierError
from server.hooks.hypercorn_worker import make_config
from server.settings.settings import Settings
from server.simulators.gemini.scripts import refused
from tests.support.accounts import NUMBER, OTHER, Doubles, open_doubles
from tests.support.processes import run_command
from tests.support.receivers import receiving
from tests.support.redis_servers import redis_server

pytestmark = pytest.mark.sockets


@pytest.fixture
async def doubles(nursery, tmp_path):
    return await open_doubles(nursery, tmp_path)


async def looked(doubles: Doubles, **changes) -> dict[str, Finding]:
    with trio.fail_after(60):
        return {finding.subject: finding for finding in await find(doubles.settings(**changes))}


def one_about(found: dict[str, Finding], word: str) -> Finding:
    (subject,) = (subject for subject in found if subject.startswith(word))
    return found[subject]


async def test_all_that_is_configured_is_tried_once_and_nothing_is_changed(doubles, tmp_path):
    number = doubles.twilio.account.numbers.get(NUMBER)
    number.voice_url = doubles.given["public_url"] + "/twiml"
    number.status_url = doubles.given["public_url"] + "/call-status"

    found = await looked(doubles)

    assert {subject: finding.state for subject, finding in found.items()} == {
        "settings": State.OK,
        "carrier twilio": State.OK,
        "number +15*******06": State.OK,
        "model gemini-3.8-live (GEMINI_API_KEY)": State.OK,
        f"database {tmp_path}/offhook.db": State.OK,
        f"PUBLIC_URL {doubles.given['public_url']}": State.OK,
    }
    assert [session.closed_by_client for session in doubles.gemini.sessions] == [1000]
    assert number.updates == 0
    assert not (tmp_path / "offhook.db").exists()


async def test_each_agent_is_set_up_and_its_numbers_are_looked_up(doubles, tmp_path):
    (tmp_path / "a.toml").write_text(f'name = "order-desk"\nnumbers = ["{OTHER}"]\n')
    (tmp_path / "b.toml").write_text('name = "owner"\nmodel = "gemini-3.1-flash-live-preview"\n')
    doubles.twilio.account.numbers.add(OTHER)

    found = await looked(doubles, agents=tmp_path)

    assert one_about(found, "model gemini-3.8-live").found.endswith("closed: default, order-desk")
    assert one_about(found, "model gemini-3.1").found.endswith("closed: owner")
    assert len(doubles.gemini.sessions) == 3
    assert one_about(found, "number +15*******07").state is State.FAILED
    assert "--agent order-desk" in one_about(found, "number +15*******07").todo
    assert one_about(found, "number +15*******06").state is State.DOUBT  # nobody's, calls come from


async def test_agents_that_cannot_be_read_are_a_finding_and_all_else_is_asked(doubles, tmp_path):
    (tmp_path / "a.toml").write_text("name = ")

    found = await looked(doubles, agents=tmp_path)

    assert one_about(found, "agents").state is State.FAILED
    assert "a.toml" in one_about(found, "agents").found
    assert one_about(found, "carrier").state is State.OK
    assert one_about(found, "model").state is State.OK
    assert one_about(found, "number").state is State.DOUBT
    assert one_about(found, "PUBLIC_URL").state is State.OK


async def test_in_a_simulation_no_number_has_to_be_the_accounts(tmp_path):
    (tmp_path / "a.toml").write_text(f'name = "order-desk"\nnumbers = ["{OTHER}"]\n')
    settings = Settings.load(_env_file=None, agents=tmp_path, database_url="sqlite://")

    with trio.fail_after(60):
        found = await find(settings)

    assert {finding.state for finding in found} == {State.OK}
    assert found[0].found == "no account is set: carrier and model are simulated"


async def test_in_a_simulation_a_public_address_has_to_lead_here_too():
    nobody = f"http://127.0.0.1:{free_port()}"
    settings = Settings.load(_env_file=None, public_url=nobody, database_url="sqlite://")

    with trio.fail_after(60):
        found = await find(settings)

    assert [one.state for one in found if one.subject.startswith("PUBLIC_URL")] == [State.FAILED]


async def test_wrong_keys_fail_and_are_not_shown(doubles):
    found = await looked(doubles, twilio_auth_token="3" * 32, gemini_api_key="wrong-key-of-mine")

    assert one_about(found, "carrier").state is State.FAILED
    assert one_about(found, "number").state is State.FAILED
    model = one_about(found, "model")
    assert model.state is State.FAILED
    assert "GEMINI_API_KEY" in model.todo
    assert "wrong-key-of-mine" not in str(found)
    assert "3" * 32 not in str(found)


async def test_without_googles_credentials_the_model_fails_and_all_else_is_asked(doubles, tmp_path):
    vertex = {"gemini_api_key": None, "vertex_project": "a-project-1"}

    found = await looked(doubles, **vertex, google_application_credentials=tmp_path / "none.json")

    assert one_about(found, "carrier").state is State.OK
    model = one_about(found, "model gemini-3.8-live (VERTEX_PROJECT)")
    assert model.state is State.FAILED
    assert "GOOGLE_APPLICATION_CREDENTIALS" in model.found


async def test_the_fallback_is_tried_too(doubles):
    found = await looked(doubles, fallback_gemini_api_key="another-wrong-key")

    assert one_about(found, "model gemini-3.8-live (GEMINI_API_KEY)").state is State.OK
    assert one_about(found, "model gemini-3.8-live (FALLBACK_").state is State.FAILED


async def test_a_session_that_calls_need_is_not_opened_and_that_is_said(doubles, monkeypatch):
    def no_room() -> None:
        raise CallRefused("all 2 model sessions are in use", reason="model-sessions", status=503)

    monkeypatch.setattr(command, "look", partial(look, room=no_room))

    model = one_about(await looked(doubles), "model")

    assert model.state is State.DOUBT
    assert "all 2 model sessions are in use" in model.found
    assert not doubles.gemini.sessions


async def test_a_model_that_refuses_says_why(doubles):
    doubles.gemini.script = refused(1011, "Your prepayment credits are depleted.")

    found = await looked(doubles)

    assert "credits are depleted" in one_about(found, "model").found


async def test_a_public_address_that_leads_elsewhere_fails(doubles):
    async with receiving(lambda received: 502) as other:
        elsewhere = other.url.removesuffix("/events")
        found = await looked(doubles, public_url=elsewhere)
        nobody = await looked(doubles, public_url=f"http://127.0.0.1:{free_port()}")

    assert "status 502" in one_about(found, "PUBLIC_URL").found
    assert f"127.0.0.1:{doubles.given['port']}" in one_about(found, "PUBLIC_URL").todo
    assert one_about(nobody, "PUBLIC_URL").state is State.FAILED


async def test_receivers_are_connected_to_and_told_nothing(doubles):
    async with receiving() as receiver:
        given = {"events_secret": "whsec_" + "a" * 32, "events_allow_private": True}
        found = await looked(doubles, events_url=receiver.url, **given)
        dead = f"http://127.0.0.1:{free_port()}/x"
        gone = await looked(doubles, events_url=dead, **given)

    assert one_about(found, "events").state is State.OK
    assert receiver.received == []
    assert one_about(gone, "events").state is State.FAILED


async def test_a_receiver_whose_certificate_is_nobodys_fails(doubles, nursery):
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server)

    async def greet(stream: trio.SSLStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.do_handshake()

    serve = partial(trio.serve_ssl_over_tcp, greet, 0, server, host="127.0.0.1")
    [listener] = await nursery.start(serve)
    port = listener.transport_listener.socket.getsockname()[1]
    given = {"events_secret": "whsec_" + "a" * 32, "events_allow_private": True}

    found = await looked(doubles, events_url=f"https://127.0.0.1:{port}/x", **given)

    assert one_about(found, "events").state is State.FAILED
    assert "certificate" in one_about(found, "events").found


async def test_a_server_with_calls_reads_no_certificates_on_its_loop(doubles, monkeypatch):
    given = {"events_secret": "whsec_" + "a" * 32, "events_allow_private": True, "api_key": "key"}
    receiver = f"https://127.0.0.1:{free_port()}/x"
    app = create_app(doubles.settings(events_url=receiver, **given))
    made, make_context = [], ssl.create_default_context

    def make(*args, **options):
        made.append(threading.current_thread())
        return make_context(*args, **options)

    async with app.test_app():
        monkeypatch.setattr(ssl, "create_default_context", make)
        with trio.fail_after(60):
            answer = await app.test_client().post("/check", headers={"X-API-Key": "key"})
        subjects = [each["subject"] for each in (await answer.get_json())["findings"]]

    assert any(subject.startswith("PUBLIC_URL") for subject in subjects)
    assert any(subject.startswith("events") for subject in subjects)
    assert len(made) == 1
    assert made[0] is not threading.main_thread()


async def test_a_database_of_a_later_version_or_of_another_program_fails(doubles, tmp_path):
    with closing(sqlite3.connect(tmp_path / "offhook.db")) as later:
        later.execute("CREATE TABLE offhook_schema (version INTEGER)")
        later.execute("INSERT INTO offhook_schema VALUES (99)")
        later.commit()
    (tmp_path / "other.db").write_text("something else altogether, and not SQLite")

    found = await looked(doubles)
    other = await looked(doubles, database_url=f"sqlite:///{tmp_path}/other.db")
    away = await looked(doubles, database_url="postgresql://user:hidden@127.0.0.1:1/x")

    assert "schema 99" in one_about(found, "database").found
    assert one_about(other, "database").state is State.FAILED
    assert one_about(away, "database").state is State.FAILED
    assert "hidden" not in str(away)


@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
@pytest.mark.filterwarnings(
    "ignore:Exception ignored.*MemoryObject:pytest.PytestUnraisableExceptionWarning"
)
async def test_a_registry_answers_or_does_not(doubles):
    async def registry(url: str) -> Finding:
        settings = Settings(_env_file=None, **doubles.given, registry_url=url)  # not whole
        return one_about({finding.subject: finding for finding in await find(settings)}, "registry")

    with redis_server() as redis:
        assert (await registry(redis.url)).state is State.OK
    assert (await registry("redis://127.0.0.1:1/0")).state is State.FAILED


@dataclass
class FakeAri:
    """Answers as far as it is asked whether calls can be made."""

    version: str = "22.10.1"
    secret: str = "secret"
    has_apology: bool = True

    def app(self) -> QuartTrio:
        app = QuartTrio(__name__)

        @app.before_request
        async def check() -> tuple[dict[str, str], int] | None:
            shown = request.authorization
            is_known = shown is not None and shown.password == self.secret
            return None if is_known else ({"error": "Unauthorized"}, 401)

        @app.get("/ari/asterisk/info")
        async def info() -> dict[str, object]:
            return {"system": {"version": self.version}}

        @app.get("/ari/asterisk/modules/<name>")
        async def module(name: str) -> dict[str, str]:
            return {"name": name, "status": "Running"}

        @app.get("/ari/sounds/<name>")
        async def sound(name: str) -> tuple[dict[str, str], int]:
            return ({"id": name}, 200) if self.has_apology else ({"message": "Not found"}, 404)

        return app


async def test_an_asterisk_is_found_or_what_it_lacks(nursery):
    ari = FakeAri()
    config = make_config("127.0.0.1:0", graceful_timeout=0.1)
    never = trio.sleep_forever
    (url,) = await nursery.start(
        partial(hypercorn.trio.serve, ari.app(), config, shutdown_trigger=never)
    )

    async def asked(at: str = url, secret: str = "secret") -> Finding:
        settings = Settings.load(
            _env_file=None,
            carrier="asterisk",
            asterisk_url=at,
            asterisk_user="offhook",
            asterisk_secret=secret,
            gemini_api_key="key-of-the-model",
            gemini_url=f"ws://127.0.0.1:{free_port()}",
            port=free_port(),
        )
        with trio.fail_after(60):
            found = await find(settings)
        assert not [one for one in found if one.subject.startswith(("number", "PUBLIC_URL"))]
        return one_about({one.subject: one for one in found}, "carrier asterisk")

    well = await asked()
    ari.has_apology = False
    silent = await asked()
    refused_user = await asked(secret="wrong")
    ari.version = "18.9.0"
    old = await asked()
    away = await asked(at=f"http://127.0.0.1:{free_port()}")

    assert (well.state, well.found) == (State.OK, "Asterisk 22.10.1")
    assert (silent.state, "ASTERISK_APOLOGY" in silent.found) == (State.DOUBT, True)
    assert (refused_user.state, "ASTERISK_SECRET" in refused_user.found) == (State.FAILED, True)
    assert (old.state, "18.9 is too old" in old.found) == (State.FAILED, True)
    assert (away.state, "not reached" in away.found) == (State.FAILED, True)


async def test_no_answer_is_waited_for_for_long(autojump_clock):
    async def never() -> list[Finding]:
        await trio.sleep_forever()
        raise AssertionError

    async def fails() -> list[Finding]:
        await trio.lowlevel.checkpoint()
        raise CarrierError("away")

    asked = [("slow", never), ("away", fails)]
    began = trio.current_time()

    found = await ask_all(asked, limit_s=5.0)

    assert found == [findings.late("slow", 5.0), findings.failed("away", CarrierError("away"))]
    assert trio.current_time() - began == 5.0


@pytest.mark.slow
def test_the_command_works_on_the_simulators_and_is_read_by_programs(tmp_path):
    read = run_command("check", "--json", cwd=tmp_path, PORT=str(free_port()))
    failed = run_command("check", cwd=tmp_path, TWILIO_AUTH_TOKEN="x")

    said = json.loads(read.stdout)
    assert (read.returncode, said["ok"], read.stderr) == (0, True, "")
    assert {one["state"] for one in said["findings"]} == {"ok"}
    assert [one["subject"] for one in said["findings"]][:2] == ["settings", "carrier simulator"]
    assert failed.returncode == 1
    assert failed.stdout.startswith("FAILED settings: ")


@pytest.mark.slow
def test_what_is_read_by_programs_has_nothing_else_in_it(tmp_path):
    (tmp_path / "agents.py").write_text(
        "from server.agent import Agent\n\nprint('mine')\ndesk = Agent('desk')\n"
    )
    env = {"PORT": str(free_port()), "AGENTS": "agents.py", "GEMINI_MODEL": "gemini-9"}

    read = run_command("check", "--json", cwd=tmp_path, **env)

    assert json.loads(read.stdout)["findings"]
    assert read.stderr == "mine\n"


def test_a_module_of_this_programs_name_is_told_of(tmp_path, monkeypatch, capsys):
    (tmp_path / "server.py").write_text("print('mine')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setattr("server.logs.configure", lambda **_: None)  # it would stay for other tests

    assert main(["check"]) == 0
    assert "doubt  folder: server.py in this folder" in capsys.readouterr().out
    assert main(["new-key", "ana"]) == 0
    assert "use `offhook`" in capsys.readouterr().err


async def test_agents_that_are_never_read_are_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(opening, "READ_S", 0.2)
    over = threading.Event()
    monkeypatch.setattr(opening, "read_agents", lambda settings, check: over.wait(60))
    settings = Settings.load(_env_file=None, agents=tmp_path, database_url="sqlite://")

    try:
        with trio.fail_after(60):
            found = {finding.subject: finding for finding in await find(settings)}
    finally:
        over.set()

    assert one_about(found, "agents").state is State.FAILED
    assert "is not read within" in one_about(found, "agents").found
