from __future__ import annotations

import pytest
from werkzeug.datastructures import Headers

from server.commands.line import main
from server.errors import ConfigurationError
from server.settings.settings import Settings
from server.web.keys import Keys, hash_key, new_key

KEYS = Keys({"shop": hash_key("secret"), "crm": hash_key("other")})


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"Authorization": "Bearer secret"}, "shop"),
        ({"authorization": "bearer  secret "}, "shop"),
        ({"X-API-Key": "other"}, "crm"),
        ({"Authorization": "Bearer other", "X-API-Key": "secret"}, "crm"),
        ({"Authorization": "Basic secret"}, None),
        ({"X-API-Key": "secre"}, None),
        ({"X-API-Key": ""}, None),
        ({"X-API-Key": hash_key("secret")}, None),
        ({"Authorization": "Bearer \u00e9\udcff"}, None),
        ({}, None),
    ],
)
def test_a_key_is_known_by_name_in_either_header(headers, name):
    assert KEYS.identify(headers) == name


@pytest.mark.parametrize(
    "lines",
    [
        [("Authorization", "Bearer secret"), ("authorization", "Bearer other")],
        [("Authorization", "Bearer nobody's"), ("Authorization", "Bearer secret")],
        [("X-API-Key", "secret"), ("x-api-key", "other")],
        [("Authorization", "Basic x"), ("Authorization", "Basic y"), ("X-API-Key", "secret")],
    ],
)
def test_a_header_that_is_there_twice_shows_no_key(lines):
    assert KEYS.identify(Headers(lines)) is None


def test_no_key_is_ever_the_same():
    assert len({new_key() for _ in range(100)}) == 100
    assert len(new_key()) > 40


def test_the_command_prints_a_key_and_the_hash_that_knows_it(capsys):
    assert main(["new-key", "shop"]) == 0

    first, second = capsys.readouterr().out.splitlines()
    name, _, digest = second.split()[-1].partition(":")
    assert name == "shop"
    assert Keys({name: digest}).identify({"X-API-Key": first.split()[-1]}) == "shop"


def test_a_key_that_may_only_look_says_so_in_its_line(capsys, monkeypatch):
    assert main(["new-key", "ana", "--read-only"]) == 0

    first, second = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("API_KEYS", f"shop:{hash_key('one')},{second.split()[-1]}")
    keys = Keys.of(Settings.load(_env_file=None))
    assert keys.identify({"X-API-Key": first.split()[-1]}) == "ana"
    assert (keys.may_only_look("ana"), keys.may_only_look("shop")) == (True, False)


@pytest.mark.parametrize("scope", [";scope=write", ";scope=", ";read", ":read", ";scope=read;"])
def test_a_scope_that_is_none_is_refused(monkeypatch, scope):
    monkeypatch.setenv("API_KEYS", f"shop:{hash_key('one')}{scope}")

    with pytest.raises(ConfigurationError, match="API_KEYS"):
        Settings.load(_env_file=None)


@pytest.mark.parametrize("name", ["a b:c", "abc\n"])
def test_a_name_that_settings_would_not_take_is_refused(capsys, name):
    assert main(["new-key", name]) == 2


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, {"X-API-Key": ""}])
def test_no_key_is_nobodys_key(headers):
    assert Keys({"shop": hash_key("")}).identify(headers) is None
