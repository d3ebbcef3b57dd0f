"""Settings that cannot work, and files of settings as people have them: words, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from typing import Literal, get_args, get_origin

import pytest

from server.app import create_app
from server.commands.line import main
from server.errors import ConfigurationError
from server.records.database.url import check_database
from server.settings.file import read_settings_file
from server.settings.numbers import own_number
from server.settings.settings import Settings

SID = "AC" + "0123456789abcdef" * 2
ACCOUNT = {
    "twilio_account_sid": SID,
    "twilio_auth_token": "0123456789abcdef" * 2,
    "twilio_phone_number": "+15005550006",
    "gemini_api_key": "a-key-of-google",
    "public_url": "https://phone.example.com",
}
SECRET = "5ecre7" * 6


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(**given) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(_env_file=None, **given)
    return in_words(str(caught.value))


def in_words(message: str) -> str:
    assert "\n" not in message
    for technical in ("^", "\\d", "pydantic", "Input should", "Value error", "validation", "url_"):
        assert technical not in message
    return message


def kinds(annotation: object) -> set[object]:
    """What a setting may be, without None and what is annotated to it."""
    if get_origin(annotation) is Literal:
        return {Literal}
    if get_origin(annotation) is types.UnionType:
        return set().union(*(kinds(each) for each in get_args(annotation)))
    inner = getattr(annotation, "__origin__", annotation)
    return {inner} - {type(None)}


def settings_of(*wanted: object) -> list[str]:
    return [
        name
        for name, field in Settings.model_fields.items()
        if kinds(field.annotation) & set(wanted)
    ]


NUMBERS = settings_of(int, float)


def test_there_are_numbers_booleans_and_choices_among_the_settings():
    assert len(NUMBERS) > 40
    assert len(settings_of(bool)) > 5
    assert len(settings_of(Literal)) > 5


NO_NUMBERS = ("nan", "inf", "-inf", "-1", "1e400", "9" * 400, "9" * 5_000, "ten", "1,5", "0x10")


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_none_is_refused_in_words(monkeypatch, name):
    for value in NO_NUMBERS:
        monkeypatch.setenv(name.upper(), value)

        assert name.upper() in refusal()


@pytest.mark.parametrize("name", settings_of(bool))
def test_neither_true_nor_false_is_refused_in_words(name):
    assert f"{name.upper()}: must be true or false, and is 'maybe'" in refusal(**{name: "maybe"})


@pytest.mark.parametrize("name", settings_of(Literal))
def test_a_word_of_a_choice_is_known_in_any_case_and_another_one_refused(name):
    words = get_args(Settings.model_fields[name].annotation)

    for word in words:
        for written in (word.upper(), word.lower(), f" {word} "):
            assert getattr(Settings(_env_file=None, **{name: written}), name) == word
    told = refusal(**{name: "perhaps"})
    assert all(word in told for word in words)


def test_bytes_that_are_no_text_are_refused_in_words(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), os.fsdecode(b"caf\xe9"))

    message = refusal()

    assert all(f"{name.upper()}: has bytes" in message for name in Settings.model_fields)


def test_a_setting_of_nothing_but_spaces_is_as_if_it_were_not_there(monkeypatch):
    unset = Settings.load(_env_file=None)
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), " \ufeff\t")

    assert Settings.load(_env_file=None) == unset


def test_no_message_has_a_long_value_in_it(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), SECRET)

    assert SECRET not in refusal()


# ------------------------------------------------------------------------------------------
# Accounts


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("(500) 555-0006", "+15005550006"),
        ("500.555.0006", "+15005550006"),
        ("1 500 555 0006", "+15005550006"),
        ("+1 500 555 0006", "+15005550006"),
        ("\u202a+1\u00a0(500)\u2011555\u20110006\u202c", "+15005550006"),
        (
            "\uff0b\uff11\uff15\uff10\uff10\uff15\uff15\uff15\uff10\uff10\uff10\uff16",
            "+15005550006",
        ),
        ("00442079460000", "+442079460000"),
        ("tel:+1-500-555-0006", "+15005550006"),
    ],
)
def test_the_own_number_is_cleaned(given, wanted):
    settings = Settings.load(_env_file=None, **ACCOUNT | {"twilio_phone_number": given})

    assert settings.twilio_phone_number == wanted


@pytest.mark.parametrize("given", ["02079460000", "5550006", "+1500555", "my number", "+", "123"])
def test_what_is_no_number_is_refused(given):
    with pytest.raises(ValueError, match=r"."):
        own_number(given)
    assert "TWILIO_PHONE_NUMBER" in refusal(**ACCOUNT | {"twilio_phone_number": given})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"twilio_account_sid": "SK" + SID[2:]}, "TWILIO_API_KEY_SID"),
        ({"twilio_account_sid": SID[:-1]}, "33 characters"),
        ({"twilio_account_sid": SID + "0"}, "35 characters"),
        ({"twilio_account_sid": ACCOUNT["twilio_auth_token"]}, "32 characters"),
        ({"twilio_auth_token": SID}, "an account's SID"),
        ({"twilio_auth_token": "SK" + SID[2:]}, "an API key's SID"),
        ({"twilio_auth_token": "two words\nlines"}, "no key has"),
        ({"gemini_api_key": SID}, "an account's SID"),
        ({"gemini_api_key": "ключ"}, "no key has"),
        ({"twilio_phone_number": "PN" + SID[2:]}, "a phone number's SID"),
        ({"twilio_phone_number": ACCOUNT["twilio_auth_token"]}, "TWILIO_PHONE_NUMBER"),
        ({"twilio_api_key_sid": "SK" + SID[2:]}, "TWILIO_API_KEY_SID set, but not all"),
        ({"twilio_api_key_secret": "s"}, "TWILIO_API_KEY_SECRET set, but not all"),
        ({"twilio_api_key_sid": SID, "twilio_api_key_secret": "s"}, "must be SK and 32 digits"),
    ],
)
def test_one_thing_of_an_account_in_the_place_of_another_is_refused(changed, told):
    message = refusal(**ACCOUNT | changed)

    assert told in message
    assert ACCOUNT["twilio_auth_token"] not in message
    assert SID not in message


def test_an_api_key_without_an_account_is_refused():
    assert "TWILIO_API_KEY_SID set" in refusal(
        twilio_api_key_sid="SK" + SID[2:], twilio_api_key_secret="s"
    )


def test_an_api_key_belongs_to_the_account():
    key = {"twilio_api_key_sid": "SK" + SID[2:], "twilio_api_key_secret": "the-secret"}

    account = Settings.load(_env_file=None, **ACCOUNT | key).account

    assert account is not None
    assert account.carrier.api_key == ("SK" + SID[2:], "the-secret")
    assert account.carrier.account_sid == SID


# ------------------------------------------------------------------------------------------
# Addresses


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("https://<your>.ngrok.io", "placeholder"),
        ("https://your-domain.com", "placeholder"),
        ("https://your-subdomain.ngrok.app", "placeholder"),
        ("https://{host}", "placeholder"),
        ("https://xxxx.ngrok.io", "placeholder"),
        ("https://\u2026", "placeholder"),
        ("https://localhost", "this machine"),
        ("https://localhost:8443/", "this machine"),
        ("https://127.0.0.1", "this machine"),
        ("https://[::1]:8000", "this machine"),
        ("https://0.0.0.0", "this machine"),
        ("https://192.168.1.20", "this machine or network"),
        ("https://10.1.2.3", "this machine or network"),
        ("https://my-laptop.local", "this machine or network"),
        ("https://my-laptop", "this machine or network"),
        ("https://my-laptop.lan:8443", "this machine or network"),
        ("https://phone.TEST./", "this machine or network"),
        ("https://phone.home.arpa", "this machine or network"),
        ("https://my_host.example.com", "underscore"),
        ("https://phone.example.com:99999", "port"),
        ("https://phone.example.com:0", "port"),
        ("https://phone.example.com:port", "port"),
        ("https://phone.example.com/twiml", "must not end in /twiml"),
        ("https://phone.example.com/calls/twiml/", "must not end in /twiml"),
        ("https://phone.example.com/call-status", "must not end in /call-status"),
        ("https://phone.example.com/stream", "must not end in /stream"),
        ("https://phone.example.com?x=1", "no query"),
        ("https://phone.example.com#x", "no query"),
        ("https://user:pass@phone.example.com", "no user name"),
        ("https://phone example.com", "space"),
        ("https://-.example.com", "host name"),
        ("https://phone..example.com", "host name"),
        ("https://bücher.example.com", "ASCII"),
        ("https://", "https:// address"),
        ("https://:443", "host name"),
        ("https://[::1", "not an address"),
        ("phone.example.com", "https:// address"),
        ("wss://phone.example.com", "https:// address"),
        ("http://phone.example.com", "https:// address"),
        ("https://phone.example.com/a b", "space"),
        ("https://phone.example.com/a/../b", "path"),
        ('https://phone.example.com/"x"', "path"),
    ],
)
def test_a_public_url_that_twilio_cannot_reach_is_refused(given, told):
    message = refusal(**ACCOUNT | {"public_url": given})

    assert "PUBLIC_URL" in message
    assert told in message


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("HTTPS://Phone.Example.COM/", "https://phone.example.com"),
        ("https://phone.example.com:443", "https://phone.example.com"),
        ("https://phone.example.com:8443/", "https://phone.example.com:8443"),
        (" https://phone.example.com//a//b/ ", "https://phone.example.com/a/b"),
        ("https://93.184.216.34", "https://93.184.216.34"),
        ("https://xn--bcher-kva.example.com", "https://xn--bcher-kva.example.com"),
    ],
)
def test_a_public_url_is_written_in_one_way(given, wanted):
    account = Settings.load(_env_file=None, **ACCOUNT | {"public_url": given}).account

    assert account is not None
    assert account.public_url == wanted


def test_a_double_on_this_machine_may_reach_this_server_here():
    double = {"public_url": "http://127.0.0.1:8123", "twilio_api_url": "http://127.0.0.1:9"}

    assert Settings.load(_env_file=None, **ACCOUNT | double).account is not None


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("[::1]", "::1"), ("::1", "::1"), ("*", "0.0.0.0"), ("LocalHost", "LocalHost")],
)
def test_a_host_to_listen_on_has_no_brackets(given, wanted):
    assert Settings.load(_env_file=None, host=given).host == wanted


@pytest.mark.parametrize("given", ["http://127.0.0.1", "127.0.0.1:8000", "a b", "[::1]:80"])
def test_a_host_that_is_more_than_one_is_refused(given):
    assert "HOST: must be" in refusal(host=given)


@pytest.mark.parametrize("name", ["gemini_url", "fallback_gemini_url", "twilio_api_url"])
@pytest.mark.parametrize("given", ["ftp://x", "host", "ws://h:99999", "http://h:x", "ws://"])
def test_an_address_of_a_service_that_is_none_is_refused(name, given):
    assert name.upper() in refusal(**{name: given})


# ------------------------------------------------------------------------------------------
# Models


@pytest.mark.parametrize("name", ["gemini_model", "fallback_gemini_model"])
@pytest.mark.parametrize("prefix", ["", "models/"])
def test_a_retired_model_is_refused_with_its_successor(name, prefix):
    retired = f"{prefix}gemini-2.5-flash-native-audio-preview-12-2025"

    message = refusal(**{name: retired})

    assert name.upper() in message
    assert "its successor is gemini-3.8-live" in message


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gemini-3.1-flash-live-preview", "gpt-9"])
def test_a_model_that_may_not_be_there_is_a_warning(model):
    warnings = Settings.load(_env_file=None, gemini_model=model).warnings

    assert any("GEMINI_MODEL" in warning for warning in warnings)


def test_the_model_that_is_the_default_is_no_warning():
    assert Settings.load(_env_file=None).warnings == ()
    assert Settings.load(_env_file=None, gemini_model="models/gemini-3.8-live").warnings == ()


# ------------------------------------------------------------------------------------------
# Folders and files


def unusable(**given) -> str:
    with pytest.raises(ConfigurationError) as caught:
        create_app(Settings.load(_env_file=None, **given))
    return in_words(str(caught.value))


@pytest.mark.parametrize("path", ["there", "there/below", "/proc/nothing", "/dev/null", "x" * 300])
def test_an_unusable_folder_for_recordings_is_refused(tmp_path, path):
    (tmp_path / "there").write_text("a file")

    assert "RECORDINGS_DIR" in unusable(recordings_dir=path)
    assert "UNSAVED_DIR" in unusable(unsaved_dir=path)


def test_a_folder_for_recordings_is_made_with_those_above_it(tmp_path):
    create_app(Settings.load(_env_file=None, recordings_dir=tmp_path / "a" / "b"))

    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///folder",
        "sqlite:///text",
        "nonsense",
        "mysterious://x",
    ],
)
def test_an_unusable_database_is_refused(tmp_path, url):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("This is a list of calls.")

    assert "DATABASE_URL" in unusable(database_url=url)


def test_a_database_whose_folder_is_not_there_yet_is_waited_for(tmp_path):
    create_app(Settings.load(_env_file=None, database_url="sqlite:///new/calls.db"))

    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------
# The file


PROMPT = "Habla español, señora. 你好 😀"
LINES = f"PORT=8123\r\nAGENT_PROMPT={PROMPT}\r\nGREETING_TEXT='Hola'\r\n"


@pytest.mark.parametrize(
    "encoding",
    [
        *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"),
        *("utf-32-le", "utf-32-be"),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_of_settings_in_any_unicode_is_read(tmp_path, encoding, mark):
    (tmp_path / ".env").write_bytes((mark + LINES).encode(encoding))

    settings = Settings.load()

    assert settings.port == 8123
    assert settings.agent_prompt == PROMPT
    assert settings.greeting_text == "Hola"
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("PORT=1\nAGENT_PROMPT=Habla español\n".encode("cp1252"), ".env, line 2"),
        ("PORT=1\r\n\r\nAGENT_PROMPT=caf\xe9".encode("latin-1"), ".env, line 3"),
        (b"PORT=1\nAPI_KEY=a\0b\n", ".env, line 2: a NUL"),
        (b"\xff\xfeP\0O", ".env, line 1"),
        ("PORT=1\n".encode("utf-16")[:-1], ".env, line 1"),
        (b"\x00" * 4096, ".env, line 1"),
        (os.urandom(4096) + b"\xff", ".env, line"),
        (b"PORT=1\n" * 200_000, "no settings"),
    ],
    ids=["cp1252", "latin-1", "NUL", "odd", "cut", "zeros", "noise", "huge"],
)
def test_a_file_that_is_no_text_is_refused_with_its_line(tmp_path, content, told):
    (tmp_path / ".env").write_bytes(content)

    with pytest.raises(ConfigurationError, match=told) as caught:
        Settings.load()
    in_words(str(caught.value))


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / ".env").mkdir()

    with pytest.raises(ConfigurationError, match=r"\.env is a folder"):
        Settings.load()


def test_a_link_to_nowhere_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / ".env").symlink_to("nowhere")

    with pytest.raises(ConfigurationError, match=r"\.env cannot be read: No such file"):
        Settings.load()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    (tmp_path / ".env").write_text("PORT=1")
    (tmp_path / ".env").chmod(0)

    with pytest.raises(ConfigurationError, match=r"\.env cannot be read: Permission denied"):
        Settings.load()


def test_a_file_of_too_many_entries_is_refused_before_it_is_understood(tmp_path):
    (tmp_path / ".env").write_text("a=b\n" * 60_000)

    with pytest.raises(ConfigurationError, match=r"\.env has more than 2000 entries"):
        Settings.load()


def test_the_environment_counts_before_the_file(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("PORT=8123\nHOST=127.0.0.2\nMAX_CALLS=\n")
    monkeypatch.setenv("port", "8124")
    monkeypatch.setenv("HOST", "")

    settings = Settings.load()

    assert (settings.port, settings.host, settings.max_calls) == (8124, "127.0.0.2", 100)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("AGENT_PROMPT=You are agent #1 of ACME", "line 1: AGENT_PROMPT ends at its #"),
        ('AGENT_PROMPT="You are kind', "line 1 is ignored"),
        ("# mine\n\nAGENT_PROMPT='You are kind\nAPI_KEY=x", "line 3 is ignored"),
        (
            'PORT=1\nAGENT_PROMPT="You are kind\nAPI_KEY="x"\nVOICEMAIL=ignore',
            "line 2 is ignored",
        ),
        ('AGENT_PROMPT="Kind\nAPI_KEY=x\nGREETING_TEXT="', "lines with other settings"),
        ('AGENT_PROMPT="It is ${PRICE}"', "line 1: AGENT_PROMPT has ${PRICE}"),
        ("AGENT_PROMT=You are kind", "no setting AGENT_PROMT; is AGENT_PROMPT meant"),
        ("TWILIO_ACOUNT_SID=x", "is TWILIO_ACCOUNT_SID meant"),
    ],
)
def test_what_a_line_loses_is_a_warning_without_its_words(tmp_path, lines, told):
    (tmp_path / ".env").write_text(lines)

    warnings = Settings.load().warnings

    assert any(told in warning for warning in warnings)
    assert not any("kind" in warning or "ACME" in warning for warning in warnings)


def test_a_file_without_mistakes_has_no_warnings(tmp_path, request):
    example = (request.config.rootpath / ".env.example").read_text()
    more = (
        'AGENT_PROMPT="You are agent #1\nof ACME: be kind"  # who\n'
        "GREETING_TEXT='Hello #2'\nVOICEMAIL_MESSAGE=${GREETING_TEXT}\nAPI_KEY=a#b\n"
        "MY_OWN=1\nexport APOLOGY=Sorry # in case\n"
    ).replace(" # in case", "")
    (tmp_path / ".env").write_text(example + more)

    settings = Settings.load()

    assert settings.warnings == ()
    assert settings.agent_prompt == "You are agent #1\nof ACME: be kind"
    assert settings.voicemail_message == "Hello #2"


def test_turns_that_end_by_a_detector_alone_are_a_warning():
    (warning,) = Settings.load(_env_file=None, turn_end="local", voice_judge="off").warnings

    assert "VOICE_JUDGE" in warning
    assert Settings.load(_env_file=None, turn_end="local").warnings == ()


def test_a_misspelt_name_in_the_environment_is_a_warning(monkeypatch):
    monkeypatch.setenv("TWILIO_PHONE_NUMER", "+15005550006")

    assert any("TWILIO_PHONE_NUMBER" in warning for warning in Settings.load().warnings)


# ------------------------------------------------------------------------------------------
# The command


@pytest.mark.parametrize("count", ["0", "-1", "65", "1001", "9" * 50, "two", "1.5", "", "٣"])
def test_a_number_of_workers_that_is_none_is_refused(capsys, count):
    with pytest.raises(SystemExit) as ended:
        main([f"--workers={count}"])

    assert ended.value.code == 2
    assert "--workers: must be a whole number from 1 to 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "99999"], "PORT: must be at most 65,535, and is '99999'"),
        (["--port", "-1"], "PORT: must be at least 0, and is '-1'"),
        (["--host", "http://x"], "HOST: must be an address alone"),
    ],
)
def test_a_wrong_argument_ends_the_command_with_status_2_and_one_line(capsys, arguments, told):
    assert main(arguments) == 2

    said = capsys.readouterr().err
    assert said.startswith("offhook: ")
    assert len(said.splitlines()) == 1
    assert told in said


def test_a_file_that_is_missing_ends_the_command_with_status_2_and_one_line(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "server"],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "DATABASE_URL": "sqlite://",
            "GREETING_WAV": "nothing.wav",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 2
    assert ended.stderr == (
        "offhook: GREETING_WAV cannot be read: nothing.wav: No such file or directory\n"
    )


@pytest.mark.sockets
@pytest.mark.parametrize("script", ["hangs-up", "all"])
def test_a_demonstration_with_a_wrong_setting_ends_in_the_same_way(capsys, monkeypatch, script):
    monkeypatch.setenv("MAX_CALLS", "none")
    monkeypatch.setattr("server.demo.command.logs.configure", lambda **_: None)

    assert main(["demo", "--script", script]) == 2

    assert capsys.readouterr().err == (
        "offhook: wrong settings: MAX_CALLS: must be a whole number, and is 'none'\n"
    )


def test_tools_keep_their_descriptions_without_docstrings(tmp_path):
    program = (
        "from server.agent.builtin import hang_up, transfer_tool; "
        "print(hang_up.description); transfer_tool({'a': 'b'})"
    )

    ended = subprocess.run(
        [sys.executable, "-OO", "-c", program],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.stdout.startswith("End the telephone call."), ended.stderr


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://offhook.db",
        "sqlite:///x.db?timeout=abc",
        "sqlite:///" + "x" * 400,
        "postgresql://user:sesame@host:port/name",
        "nonsense",
    ],
)
def test_a_database_that_no_url_names_is_refused_in_words(url):
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as refused:
        check_database(url)

    assert "sesame" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_in_place_of_the_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".env")

    with pytest.raises(ConfigurationError, match="is no file"):
        read_settings_file(tmp_path / ".env", [])
