"""Finding the user's own tools."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from server.agent.tool import Tool
from server.errors import ConfigurationError


def load_tools(modules: Iterable[str]) -> tuple[Tool, ...]:
    """Import modules, and take every tool that stands in them, in order.

    Raises:
        ConfigurationError: A module cannot be imported or has no tools; ``TOOLS`` is named.
    """
    tools: list[Tool] = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # whatever a module of the user's may do when it is imported
            raise ConfigurationError(
                f"TOOLS: {name} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        found = [one for one in vars(module).values() if isinstance(one, Tool)]
        if not found:
            raise ConfigurationError(f"TOOLS: {name} has no function with @tool above it")
        tools += found
    return tuple(tools)


def check_names(tools: Iterable[Tool]) -> tuple[Tool, ...]:
    """The same tools, once each.

    Raises:
        ConfigurationError: Two different ones have the same name.
    """
    by_name: dict[str, Tool] = {}
    for one in tools:
        if by_name.setdefault(one.name, one) is not one:
            raise ConfigurationError(f"TOOLS: there are two tools called {one.name}")
    return tuple(by_name.values())
