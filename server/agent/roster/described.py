"""What may be said of an agent, in a file or in Python: checked, and made the agent it describes.

Whatever is left out is as the process's own settings say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)

from server.agent.agent import DEFAULT_NAME, Agent
from server.agent.loading import agent_of, check_names
from server.agent.outcome import SchemaWrong, outcome_schema, outcome_tool
from server.agent.roster.agents import (
    ANY_NUMBER,
    MAX_TEXT_CHARS,
    TEXTS,
    VARIABLE_NAME,
    variables_of,
)
from server.agent.tool import Tool
from server.errors import ConfigurationError, ServerError
from server.settings import values
from server.settings.events import SECRET_WANTED, check_url
from server.settings.file import misspelt, read_text
from server.settings.numbers import own_number
from server.settings.settings import Settings

NAME = "[a-z0-9][a-z0-9_-]{0,63}"
MAX_NUMBERS = 10_000
MAX_VARIABLES = 64
MAX_VALUE_CHARS = 1_000

SETTINGS: Mapping[str, str] = {
    "prompt": "agent_prompt",
    "greeting": "agent_greeting",
    "language": "agent_language",
    "voice": "gemini_voice",
    "model": "gemini_model",
    "transfer": "transfer_targets",
} | {
    name: name
    for name in (
        *("tools", "built_in_tools", "tool_timeout_s", "transfer_ring_timeout_s", "dtmf_pause_s"),
        *("voicemail", "voicemail_message", "voicemail_timeout_s", "apology"),
        *("greeting_when", "greeting_text", "greeting_wav", "greeting_deadline_s"),
        *("greeting_protect_s", "greeting_hello_s", "greeting_retry_s", "prewarm"),
        *("barge_in", "barge_in_confirm_s", "barge_in_hint", "speech_end_s"),
        *("turn_end", "thinking_sound"),
        *("reply_timeout_s", "short_answer_timeout_s", "rung_timeout_s", "thinking_timeout_s"),
        *("stall_timeout_s",),
        *("silence_timeout_s", "silence_prompts", "wrap_up_s", "farewell_timeout_s"),
        *("max_call_duration_s", "max_call_cost_usd", "media_timeout_s", "line_lost_timeout_s"),
        *("lead_s", "mark_every_s", "transcripts", "record_numbers", "events_url"),
    )
}
"""What may be different for an agent, by what it is called there: the setting of a call."""


class Misdescribed(ServerError):
    """Something said of an agent is wrong.

    Attributes:
        problems: For each, where it is (keys, from the outermost), and what is wrong.
    """

    def __init__(self, problems: Sequence[tuple[tuple[str, ...], str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{'.'.join(where)} {text}" for where, text in self.problems))


def _name(given: str) -> str:
    if given == DEFAULT_NAME:
        raise ValueError(f"must not be {DEFAULT_NAME}, which is the agent of the server's settings")
    return given


def _number(given: str) -> str:
    if given == ANY_NUMBER or given.startswith(("sip:", "sips:")):
        return given
    return own_number(given)


def _one_or_more(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


_Value = Annotated[str, Field(max_length=MAX_VALUE_CHARS)]
_OWN: Mapping[str, Any] = {
    "name": (
        Annotated[str, Field(pattern=f"^{NAME}$"), AfterValidator(_name)],
        ...,
    ),
    "numbers": (
        Annotated[
            tuple[Annotated[str, AfterValidator(_number)], ...],
            BeforeValidator(_one_or_more),
            Field(max_length=MAX_NUMBERS),
        ],
        (),
    ),
    "variables": (
        Annotated[
            dict[Annotated[str, Field(pattern=f"^{VARIABLE_NAME}$")], _Value],
            Field(max_length=MAX_VARIABLES),
        ],
        {},
    ),
    "prompt_file": (Path | None, None),
    "recording": (bool, True),
    "outcome": (Any, None),
}


def _of_setting(name: str) -> tuple[Any, Any]:
    """A setting's own type and checks, for one who may leave it out."""
    setting = Settings.model_fields[name]
    kind: Any = setting.annotation
    for check in setting.metadata:
        kind = Annotated[kind, check]
    return kind, setting.get_default(call_default_factory=True)


_make_model: Any = create_model
_Description: type[BaseModel] = _make_model(
    "Description",
    __config__=ConfigDict(extra="forbid", allow_inf_nan=False, str_strip_whitespace=True),
    **_OWN,
    **{key: _of_setting(setting) for key, setting in SETTINGS.items()},
)


def described(said: Mapping[str, Any], base: Settings, folder: Path) -> Agent:
    """Make the agent that is described.

    Args:
        said: Keys and values; ``tools`` may have tools among its modules.
        base: Says what is left out.
        folder: Where paths begin.

    Raises:
        Misdescribed: Something is wrong.
    """
    said = dict(said)
    tools = said.pop("tools", None)
    if isinstance(tools, str | Tool | list | tuple):
        listed = [tools] if isinstance(tools, str | Tool) else list(tools)
        functions = tuple(one for one in listed if isinstance(one, Tool))
        said["tools"] = [one for one in listed if not isinstance(one, Tool)]
    else:
        functions = ()
        if tools is not None:
            said["tools"] = tools  # to be refused
    try:
        checked = _Description.model_validate(said)
    except ValidationError as error:
        raise Misdescribed([_problem(dict(issue), said) for issue in error.errors()]) from None
    given = checked.model_dump(exclude_unset=True)
    own = {setting: given[key] for key, setting in SETTINGS.items() if key in given}
    own |= _texts(given, folder)
    settings = base.model_copy(update=own)
    if own.get("events_url"):
        try:
            check_url(own["events_url"], allow_private=settings.events_allow_private)
        except ValueError as error:
            raise Misdescribed([(("events_url",), str(error))]) from None
        if not settings.events_secret:
            raise Misdescribed([(("events_url",), f"needs EVENTS_SECRET: {SECRET_WANTED}")])
    try:
        agent = agent_of(settings)
        agent = replace(agent, tools=check_names((*agent.tools, *functions)))
    except ConfigurationError as error:
        setting, _, text = str(error).partition(" ")
        where = setting.rstrip(":").lower()
        raise Misdescribed([((where if where in said else "name",), text)]) from None
    outcome = None
    if given.get("outcome") is not None:
        try:
            outcome = outcome_schema(given["outcome"])
            agent = replace(agent, tools=check_names((*agent.tools, outcome_tool(outcome))))
        except SchemaWrong as error:
            raise Misdescribed([(("outcome", *error.where), str(error))]) from None
        except ConfigurationError as error:
            raise Misdescribed([(("outcome",), str(error))]) from None
    agent = replace(
        agent,
        name=given["name"],
        numbers=given.get("numbers", ()),
        variables=given.get("variables", {}),
        model=own.get("gemini_model"),
        outcome=outcome,
        settings=settings,
        is_recorded=given.get("recording", True),
    )
    if long := next((name for name in TEXTS if len(getattr(agent, name)) > MAX_TEXT_CHARS), None):
        key = "voicemail_message" if long == "voicemail" else long
        raise Misdescribed([((key,), f"must have at most {MAX_TEXT_CHARS:,} characters")])
    return agent


def check_inbound(agent: Agent) -> None:
    """Check that an agent can answer a caller of whom nothing is known.

    Raises:
        Misdescribed: It has a ``{{name}}`` that nothing stands for.
    """
    missing = sorted(variables_of(agent) - agent.variables.keys())
    if agent.numbers and missing:
        names = ", ".join(missing)
        raise Misdescribed(
            [
                (
                    ("numbers",),
                    f"answers callers, of whom nobody says what {names} is: give a value in "
                    "[variables], or a route in agents.py that does",
                )
            ]
        )


def _texts(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What is in files beside the description."""
    found: dict[str, Any] = {}
    for sound in ("greeting_wav", "thinking_sound"):
        if (path := given.get(sound)) is not None:
            found[sound] = folder / path
    if (path := given.get("prompt_file")) is not None:
        if "prompt" in given:
            raise Misdescribed([(("prompt_file",), "is there beside a prompt: one of them is")])
        try:
            with (folder / path).open("rb") as file:
                content = file.read(4 * MAX_TEXT_CHARS + 1)
            found["agent_prompt"] = read_text(content, str(path))
        except OSError as error:
            text = f"cannot be read: {error.strerror or error}"
            raise Misdescribed([(("prompt_file",), text)]) from None
        except ConfigurationError as error:
            raise Misdescribed([(("prompt_file",), str(error))]) from None
    return found


def _problem(issue: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """Where something is wrong, and what, as a sentence goes on after the key's name."""
    where = tuple(str(part) for part in issue["loc"])
    match issue["type"]:
        case "extra_forbidden":
            return where, _unknown(where[0])
        case "missing":
            return where, "is missing"
        case "string_pattern_mismatch" if where == ("name",):
            return where, "must be up to 64 of a-z, 0-9, - and _, beginning with a letter or digit"
        case "string_pattern_mismatch":
            return where, "must be a name of letters, digits and _"
        case "string_too_long" | "too_long":
            limits = issue.get("ctx", {})
            return where, f"is longer than {limits.get('max_length')}"
        case "tuple_type" | "list_type":
            return where, "must be a list"
        case "dict_type":
            return where, "must be a table"
        case "string_type":
            return where, "must be a text"
    return where, values.in_words(issue)


def _unknown(key: str) -> str:
    if key in Settings.model_fields:
        return "is a setting of the whole server: it belongs in the environment or .env"
    meant = misspelt(key, [*SETTINGS, *_OWN])
    return "is nothing that an agent has" + (f"; is {meant.lower()} meant?" if meant else "")
