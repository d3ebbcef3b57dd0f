"""The registry over Redis or Valkey, for the processes of many machines."""

from __future__ import annotations

from server.cluster.redis.connection import check_installed
from server.cluster.redis.registry import RedisRegistry
from server.cluster.registry import Member, Registry
from server.errors import ConfigurationError
from server.metrics import RegistryMetrics
from server.settings.cluster import registry_address
from server.settings.settings import Settings


def redis_registry(settings: Settings, me: Member, metrics: RegistryMetrics) -> Registry:
    """The registry that the settings name.

    Args:
        settings: With a ``registry_url``, checked.
        me: This process: ``settings.node_name``, with ``.NUMBER`` for one of several.
        metrics: Told when the registry is away and back.

    Raises:
        ConfigurationError: coredis is not installed, or the settings name no registry.
    """
    if settings.registry_url is None:
        raise ConfigurationError("REGISTRY_URL is not set")
    check_installed()
    return RedisRegistry(
        registry_address(settings.registry_url.get_secret_value()),
        me,
        settings.node_url or "",
        [secret.get_secret_value() for secret in settings.cluster_secret],
        metrics,
        settings.registry_timeout_s,
        settings.lease_s,
    )
