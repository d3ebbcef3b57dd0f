"""The agent that the settings describe, and finding the user's own tools."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from server.agent.agent import DEFAULT_GREETING, DEFAULT_PROMPT, Agent
from server.agent.builtin import hang_up, send_dtmf, transfer_tool, voicemail_reached
from server.agent.greeting import read_greeting
from server.agent.thinking import read_thinking
from server.agent.tool import Tool
from server.errors import ConfigurationError
from server.settings.settings import Settings


def agent_of(settings: Settings) -> Agent:
    """The agent of every call that does not ask for another.

    Raises:
        ConfigurationError: A tool or the greeting cannot be had.
    """
    return Agent(
        prompt=settings.agent_prompt or DEFAULT_PROMPT,
        greeting=DEFAULT_GREETING if settings.agent_greeting is None else settings.agent_greeting,
        greeting_text=settings.greeting_text or "",
        greeting_audio=read_greeting(settings.greeting_wav) if settings.greeting_wav else b"",
        thinking_sound=read_thinking(settings.thinking_sound) if settings.thinking_sound else b"",
        voicemail=settings.voicemail_message or "",
        apology=settings.apology or "",
        voice=settings.gemini_voice or None,
        language=settings.agent_language or None,
        turn_end=settings.turn_end,
        events_url=settings.events_url or None,
        tools=tools_of(settings),
    )


def tools_of(settings: Settings) -> tuple[Tool, ...]:
    """What the agent may call: ours, as far as they are wanted, and the user's.

    Raises:
        ConfigurationError: See :func:`load_tools` and :func:`check_names`.
    """
    unwanted = {hang_up.name, send_dtmf.name} - set(settings.built_in_tools)
    unwanted.add(voicemail_reached.name)
    ours = [tool for tool in load_tools(["server.agent.builtin"]) if tool.name not in unwanted]
    if settings.transfer_targets and "transfer" in settings.built_in_tools:
        ours.append(transfer_tool(settings.transfer_targets))
    if settings.voicemail != "ignore":
        ours.append(voicemail_reached)
    return check_names((*ours, *load_tools(settings.tools)))


def load_tools(modules: Iterable[str]) -> tuple[Tool, ...]:
    """Import modules, and take every tool that stands in them, in order.

    Raises:
        ConfigurationError: A module cannot be imported or has no tools; ``TOOLS`` is named.
    """
    tools: list[Tool] = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        # Whatever a module of the user's may do when it is imported.
        except (Exception, SystemExit) as error:
            raise ConfigurationError(
                f"TOOLS: {name} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        found = [one for one in vars(module).values() if isinstance(one, Tool)]
        if not found:
            raise ConfigurationError(f"TOOLS: {name} has no function with @tool above it")
        tools += found
    return tuple(tools)


def check_names(tools: Iterable[Tool]) -> tuple[Tool, ...]:
    """Take each tool once, and make sure that no two have one name.

    Raises:
        ConfigurationError: Two different ones have the same name.
    """
    by_name: dict[str, Tool] = {}
    for one in tools:
        if by_name.setdefault(one.name, one) is not one:
            raise ConfigurationError(f"TOOLS: there are two tools called {one.name}")
    return tuple(by_name.values())
