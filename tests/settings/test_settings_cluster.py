"""What is said of a server on many machines."""

from __future__ import annotations

import socket

import pytest

from server.errors import ConfigurationError
from server.settings.cluster import RegistryAddress, registry_address
from server.settings.settings import Settings
from tests.settings.test_settings import ACCOUNT

SECRET = "s" * 32
CLUSTER = ACCOUNT | {
    "registry_url": "redis://redis.example.com",
    "node": "n0",
    "node_url": "http://10.0.0.3:8000/",
    "host": "0.0.0.0",
    "cluster_secret": SECRET,
    "api_key": "k",
    "database_url": "postgresql+psycopg://db.example.com/offhook",
}


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://r", RegistryAddress("server", (("r", 6379),))),
        (
            "rediss://u:p%40ss@r.example.com:7000/3?ca=/ca.pem",
            RegistryAddress(
                "server", (("r.example.com", 7000),), db=3, tls=True, ca="/ca.pem",
                username="u", password="p@ss",
            ),
        ),
        ("redis://[::1]:1/?prefix=a:", RegistryAddress("server", (("::1", 1),), prefix="a:")),
        (
            "redis+sentinel://:p@a,b:1,c/mymaster/2?sentinel_password=q",
            RegistryAddress(
                "sentinel", (("a", 26379), ("b", 1), ("c", 26379)), name="mymaster", db=2,
                password="p", sentinel_password="q",
            ),
        ),
        (
            "rediss+cluster://a,b:1",
            RegistryAddress("cluster", (("a", 6379), ("b", 1)), tls=True),
        ),
        ("unix:///run/redis.sock?db=1", RegistryAddress("unix", path="/run/redis.sock", db=1)),
    ],
)  # fmt: skip
def test_the_address_of_a_registry_is_read(url, address):
    assert registry_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "r", "http://r", "redis://", "redis://r:0", "redis://r:70000", "redis://a,b", "redis://r/x",
        "redis://r/1/2", "redis+sentinel://a", "redis+cluster://a/1", "redis://r?what=1",
        "redis://r?prefix={x}", "redis://r#x", "redis://[r", "unix://host/path", "redis://r/99999999",
        "redis://:hidden@", "redis://r?db",
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_registry_is_refused(url):
    with pytest.raises(ConfigurationError, match="REGISTRY_URL") as refused:
        Settings.load(**CLUSTER | {"registry_url": url})

    assert "hidden" not in str(refused.value)


def test_a_whole_cluster_is_taken():
    settings = Settings.load(**CLUSTER)

    assert (settings.node_name, settings.node_url) == ("n0", "http://10.0.0.3:8000")
    assert SECRET not in repr(settings)
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"database_url": "sqlite:///offhook.db"}, "PostgreSQL"),
        ({"api_key": None}, "API_KEY"),
        ({"cluster_secret": ()}, "CLUSTER_SECRET"),
        (dict.fromkeys(ACCOUNT), "TWILIO_API_URL"),
    ],
)
def test_a_registry_without_what_all_nodes_share_is_refused(changed, told):
    with pytest.raises(ConfigurationError, match=f"REGISTRY_URL needs .*{told}"):
        Settings.load(**CLUSTER | changed)


def test_named_keys_and_doubles_will_do():
    doubles = {"twilio_api_url": "http://127.0.0.1:1", "gemini_url": "ws://127.0.0.1:2"}
    keys = {"api_key": None, "api_keys": {"shop": "a" * 64}}

    assert Settings.load(**CLUSTER | doubles | keys).account is not None


@pytest.mark.parametrize("secret", ["short", f"{SECRET},short", "a\nb" * 20])
def test_a_secret_that_can_be_guessed_is_refused_and_not_shown(secret):
    with pytest.raises(ConfigurationError, match="CLUSTER_SECRET") as refused:
        Settings.load(**CLUSTER | {"cluster_secret": secret})

    assert "short" not in str(refused.value)


def test_several_secrets_are_read_from_a_list_with_commas():
    secrets = Settings.load(**CLUSTER | {"cluster_secret": f"{SECRET},{'t' * 32}"}).cluster_secret

    assert [secret.get_secret_value() for secret in secrets] == [SECRET, "t" * 32]


@pytest.mark.parametrize("name", ["N0", "-a", "a_b", "a.b", "a" * 64, "n/0"])
def test_a_node_that_cannot_be_in_an_address_is_refused(name):
    with pytest.raises(ConfigurationError, match="NODE"):
        Settings.load(**CLUSTER | {"node": name})


def test_a_node_is_called_after_its_machine(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Offhook-3.nodes.example.com")

    assert Settings.load(**CLUSTER | {"node": None}).node_name == "offhook-3"


def test_a_machine_whose_name_will_not_do_needs_one(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "my_machine")

    with pytest.raises(ConfigurationError, match="NODE not set"):
        Settings.load(**CLUSTER | {"node": None})


def test_a_node_that_others_cannot_reach_is_a_warning():
    (warning,) = Settings.load(**CLUSTER | {"node_url": None}).warnings

    assert "NODE_URL" in warning


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", None])
def test_a_node_that_listens_to_its_own_machine_alone_is_a_warning(host):
    given = CLUSTER | {"host": host} if host else {k: CLUSTER[k] for k in CLUSTER if k != "host"}
    (warning,) = Settings.load(**given).warnings

    assert warning.startswith("HOST is ")
    assert "NODE_URL" in warning


@pytest.mark.parametrize(
    "changed",
    [
        {"host": "10.0.0.3"},
        {"host": "::"},
        {"host": "127.0.0.1", "node_url": "http://127.0.0.1:8000"},
        {"host": "127.0.0.1", "registry_url": None},
    ],
)
def test_one_that_is_reached_or_alone_is_none(changed):
    assert Settings.load(**CLUSTER | changed).warnings == ()


def test_streams_go_to_the_host_of_their_node():
    settings = Settings.load(**CLUSTER | {"stream_url": "wss://{node}.calls.example.com/"})

    assert settings.streams_at == f"wss://{settings.node_name}.calls.example.com"


def test_streams_may_go_to_one_host_for_all():
    assert Settings.load(stream_url="wss://media.example.com:8443").streams_at == (
        "wss://media.example.com:8443"
    )


@pytest.mark.parametrize(
    "address",
    [
        "https://media.example.com",
        "ws://media.example.com",
        "wss://",
        "wss://{name}.example.com",
        "wss://media.example.com/stream",
        "wss://media.example.com?a=b",
        "wss://user@media.example.com",
        "wss://media.example.com:99999",
    ],
)
def test_an_address_that_no_stream_can_be_opened_at_is_refused(address):
    with pytest.raises(ConfigurationError, match="STREAM_URL"):
        Settings.load(stream_url=address)


@pytest.mark.parametrize("address", ["https://10.0.0.3:8000", "http://a:b@10.0.0.3", "10.0.0.3"])
def test_an_address_that_no_node_asks_at_is_refused(address):
    with pytest.raises(ConfigurationError, match="NODE_URL"):
        Settings.load(**CLUSTER | {"node_url": address})
