"""All agents of a server, and which of them a call gets: pure, and never changed once made."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from server.agent.agent import DEFAULT_NAME, Agent
from server.errors import ServerError

ANY_NUMBER = "*"
VARIABLE_NAME = "[A-Za-z_][A-Za-z0-9_]{0,63}"
_VARIABLE = re.compile(r"\{\{\s*(" + VARIABLE_NAME + r")\s*\}\}")
MAX_TEXT_CHARS = 200_000
"""Of a prompt, or another text: as much as another process is told of it."""
TEXTS = ("prompt", "greeting", "greeting_text", "voicemail", "apology")
"""Of an agent, what variables are filled into."""


class VariablesWrong(ServerError):
    """What a call says cannot be put into an agent's texts."""


class VariablesMissing(VariablesWrong):
    """A call does not say what stands for some of an agent's ``{{name}}``.

    Attributes:
        names: Those that are missing.
    """

    def __init__(self, agent: str, names: Iterable[str]) -> None:
        self.names = tuple(names)
        super().__init__(f"the agent {agent} needs a value for {', '.join(self.names)}")


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers a call, by name, and what their ``{{name}}`` stand for in it."""

    agent: str
    variables: Mapping[str, str]
    """Whatever they are given as, they are texts."""

    def __post_init__(self) -> None:
        texts = {name: str(value) for name, value in self.variables.items()}
        object.__setattr__(self, "variables", texts)


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call that nobody speaks in yet, as a route of the user's may know it."""

    direction: Literal["inbound", "outbound"]
    number: str
    """The other party's, in full: not for logs."""
    called: str = ""
    """Which number of ours was called; empty for a call that we place."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the SIP leg, ``X-`` headers that the carrier passes on."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    def to(self, agent: object, /, **variables: object) -> Choice:
        """The answer of a route: this agent, by name or as it was described, with these values."""
        name = agent if isinstance(agent, str) else getattr(agent, "name", "")
        return Choice(str(name), {key: str(value) for key, value in variables.items()})


Route: TypeAlias = Callable[[NewCall], Awaitable[Any]]
"""The user's own: answers with an agent, its name, a :class:`Choice`, or None to go by number."""


@dataclass(frozen=True, slots=True)
class Agents:
    """The agents of a server."""

    by_name: Mapping[str, Agent]
    """Among them :data:`DEFAULT_NAME`."""
    route: Route | None = None
    fallback: str = DEFAULT_NAME
    """Who answers when the route does not say who."""
    _by_number: Mapping[str, Agent] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_number = {number: agent for agent in self.by_name.values() for number in agent.numbers}
        object.__setattr__(self, "_by_number", by_number)

    @property
    def default(self) -> Agent:
        """The agent that the process's own settings describe."""
        return self.by_name[DEFAULT_NAME]

    def of_number(self, called: str) -> Agent:
        """Who answers callers of this number of ours."""
        by_number = self._by_number
        return by_number.get(called) or by_number.get(ANY_NUMBER) or self.default


def telephone_numbers(agents: Iterable[Agent]) -> dict[str, str]:
    """The telephone numbers of ours that agents answer, each with its agent's name.

    ``*`` and SIP addresses are none: a carrier cannot be asked about them.
    """
    return {one: agent.name for agent in agents for one in agent.numbers if one.startswith("+")}


def variables_of(agent: Agent) -> frozenset[str]:
    """The names that stand as ``{{name}}`` in an agent's texts."""
    return frozenset(
        name for text in TEXTS for name in _VARIABLE.findall(getattr(agent, text) or "")
    )


def wanted_by(agent: Agent) -> frozenset[str]:
    """The variables that a call with this agent may say, or has to."""
    return frozenset() if agent.name == DEFAULT_NAME else variables_of(agent)


def filled(agent: Agent, variables: Mapping[str, str]) -> Agent:
    """The agent with values in the place of ``{{name}}``; braces in values stay what they are.

    The process's own settings have no variables, unless a call brings some: a prompt that has
    always had such braces in it keeps them.

    Raises:
        VariablesMissing: There is a name without a value.
        VariablesWrong: A text would be longer than one may be.
    """
    if agent.name == DEFAULT_NAME and not variables:
        return agent
    values = {**agent.variables, **variables}
    if missing := sorted(variables_of(agent) - values.keys()):
        raise VariablesMissing(agent.name, missing)
    texts: dict[str, Any] = {
        text: _VARIABLE.sub(lambda found: values[found[1]], getattr(agent, text))
        for text in TEXTS
        if getattr(agent, text)
    }
    if long := next((name for name in texts if len(texts[name]) > MAX_TEXT_CHARS), None):
        raise VariablesWrong(f"make the {long} of {agent.name} longer than {MAX_TEXT_CHARS:,}")
    return replace(agent, **texts)
