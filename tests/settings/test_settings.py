from __future__ import annotations

import pytest

from server.errors import ConfigurationError
from server.settings.settings import Settings

ACCOUNT = {
    "twilio_account_sid": "AC" + "1" * 32,
    "twilio_auth_token": "t",
    "twilio_phone_number": "+15005550006",
    "gemini_api_key": "g",
    "public_url": "https://phone.example.com/",
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    for name in (*ACCOUNT, "api_key", "port"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_nothing_set_means_the_simulators():
    assert Settings.load().account is None


def test_a_complete_account_is_used_and_its_origin_has_no_slash_at_the_end():
    account = Settings.load(**ACCOUNT).account

    assert account is not None
    assert account.public_url == "https://phone.example.com"


@pytest.mark.parametrize("name", ACCOUNT)
def test_a_half_set_account_names_what_is_missing(name):
    with pytest.raises(ConfigurationError, match=name.upper()):
        Settings.load(**{k: v for k, v in ACCOUNT.items() if k != name})


def test_a_public_url_alone_is_no_account():
    assert Settings.load(public_url="http://127.0.0.1:9000").account is None


def test_twilio_needs_https():
    with pytest.raises(ConfigurationError, match="https"):
        Settings.load(**ACCOUNT | {"public_url": "http://phone.example.com"})


def test_a_wrong_value_names_its_variable(monkeypatch):
    monkeypatch.setenv("PORT", "eighty")

    with pytest.raises(ConfigurationError, match="PORT"):
        Settings.load()


def test_secrets_are_not_in_the_repr():
    assert "'t'" not in repr(Settings.load(**ACCOUNT))
    assert "'g'" not in repr(Settings.load(**ACCOUNT))


def test_a_dot_env_file_is_read(tmp_path):
    (tmp_path / ".env").write_text("PORT=8123\nSOMETHING_ELSE=1\n")

    assert Settings.load().port == 8123


def test_every_setting_is_in_the_example(request):
    example = (request.config.rootpath / ".env.example").read_text()
    missing = [n.upper() for n in Settings.model_fields if f"{n.upper()}=" not in example]

    assert missing == []


def test_named_keys_are_read_as_hashes(monkeypatch):
    monkeypatch.setenv("API_KEYS", f"shop:{'a' * 64}, crm-2:{'B' * 64}")

    assert Settings.load().api_keys == {"shop": "a" * 64, "crm-2": "B" * 64}


@pytest.mark.parametrize("value", ["shop", "shop:", "shop:abc", f"shop:{'a' * 64},shop:{'b' * 64}"])
def test_wrong_keys_are_named_but_not_shown(monkeypatch, value):
    monkeypatch.setenv("API_KEYS", value)

    with pytest.raises(ConfigurationError, match="API_KEYS") as caught:
        Settings.load()
    assert "a" * 64 not in str(caught.value)


def test_prefixes_are_read_from_a_list_with_commas(monkeypatch):
    monkeypatch.setenv("ALLOWED_PREFIXES", "+58, +1305,")

    assert Settings.load().allowed_prefixes == ("+58", "+1305")
    monkeypatch.setenv("ALLOWED_PREFIXES", "58")
    with pytest.raises(ConfigurationError, match="ALLOWED_PREFIXES"):
        Settings.load()


ASTERISK = {
    "carrier": "asterisk",
    "asterisk_url": "http://10.0.0.2:8088/",
    "asterisk_user": "offhook",
    "asterisk_secret": "s",
    "gemini_api_key": "g",
}


def test_an_asterisk_needs_no_public_address():
    account = Settings.load(**ASTERISK).account

    assert account is not None
    assert account.carrier.url == "http://10.0.0.2:8088"
    assert account.carrier.dial == "PJSIP/{number}@trunk"
    assert account.public_url == "http://127.0.0.1:8000"


@pytest.mark.parametrize("host", ["::", "::1"])
def test_an_address_of_ipv6_is_written_as_urls_have_it(host):
    account = Settings.load(**ASTERISK, host=host).account

    assert account is not None
    assert account.public_url == f"http://[{host}]:8000"


def test_no_secret_is_in_what_an_account_looks_like():
    secret = "hidden-one"
    for given in (
        ASTERISK | {"asterisk_secret": secret},
        ACCOUNT | {"twilio_auth_token": secret},
        ACCOUNT | {"gemini_api_key": secret},
    ):
        assert secret not in repr(Settings.load(**given).account)


@pytest.mark.parametrize("name", [name for name in ASTERISK if name != "carrier"])
def test_a_half_set_asterisk_names_what_is_missing(name):
    with pytest.raises(ConfigurationError, match=name.upper()):
        Settings.load(**{k: v for k, v in ASTERISK.items() if k != name})


@pytest.mark.parametrize(
    "given", [ACCOUNT | {"asterisk_user": "offhook"}, ASTERISK | {"twilio_auth_token": "t"}]
)
def test_two_carriers_are_never_mixed(given):
    with pytest.raises(ConfigurationError, match="but CARRIER is"):
        Settings.load(**given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("asterisk_dial", "PJSIP/trunk"),
        ("asterisk_dial", "PJSIP/{number}/{other}@trunk"),
        ("asterisk_dial", "{number} & rm"),
        ("asterisk_app", "two words"),
        ("asterisk_apology", "sound:../../etc/passwd"),
        ("asterisk_apology", "http://elsewhere/x.wav"),
        ("asterisk_url", "ftp://pbx"),
        ("asterisk_url", "http://offhook:secret@pbx:8088"),
    ],
)
def test_what_asterisk_would_not_understand_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=name.upper()):
        Settings.load(**ASTERISK | {name: value})
