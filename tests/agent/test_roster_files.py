"""Files of agents: what they may say, and where it is told that something is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from server.agent.roster import files as files_module
from server.agent.roster.agents import Agents, telephone_numbers
from server.agent.roster.files import MODULE_NAME, line_of, read_agents
from server.agent.roster.roster import files_beside
from server.errors import ConfigurationError
from server.settings.settings import Settings

ORDER_DESK = '''\
# Who takes orders.
name = "order-desk"
numbers = ["+58 412-555 0001"]
prompt = """
You take orders for {{shop}}.
voice = "not this line"
"""
voice = "Kore"
language = "es-VE"
voicemail = "leave-message"
max_call_duration_s = 300
transfer = {owner = "+584125550009"}

[variables]
shop = "Pizza Norte"
'''


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture(autouse=True)
def no_module_stays(monkeypatch):
    monkeypatch.delitem(sys.modules, MODULE_NAME, raising=False)


def read(path: Path, **settings) -> Agents:
    return read_agents(Settings.load(_env_file=None, agents=path, **settings))


def refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(path)
    return str(caught.value)


def write(folder: Path, text: str, name: str = "order.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_describes_an_agent_and_the_settings_the_rest_of_it(folder):
    write(folder, ORDER_DESK)

    agents = read(folder, agent_prompt="Be kind.", silence_prompts=7)

    agent = agents.by_name["order-desk"]
    assert agent.prompt.startswith("You take orders for {{shop}}.")
    assert (agent.voice, agent.language, agent.numbers) == ("Kore", "es-VE", ("+584125550001",))
    assert agent.variables == {"shop": "Pizza Norte"}
    assert "transfer" in {tool.name for tool in agent.tools}
    assert "voicemail_reached" in {tool.name for tool in agent.tools}
    assert agent.settings is not None
    assert agent.settings.max_call_duration_s == 300
    assert agent.settings.silence_prompts == 7
    assert agents.default.prompt == "Be kind."


def test_without_the_setting_there_is_the_default_agent_alone():
    agents = read_agents(Settings.load(_env_file=None, agent_prompt="Keep {{braces}}."))

    assert list(agents.by_name) == ["default"]
    assert agents.of_number("+584125550001") is agents.default


def test_a_number_leads_to_its_agent_and_all_others_to_the_star(folder):
    write(folder, 'name = "a"\nnumbers = ["+584125550001", "sip:a@example.com"]\n', "a.toml")
    write(folder, 'name = "b"\nnumbers = "*"\n', "b.toml")

    agents = read(folder)

    called = ("+584125550001", "sip:a@example.com", "+584125550002", "")
    assert [agents.of_number(number).name for number in called] == ["a", "a", "b", "b"]


def test_only_telephone_numbers_are_among_those_that_a_carrier_is_asked_about(folder):
    write(folder, 'name = "a"\nnumbers = ["+584125550001", "sip:a@example.com"]\n', "a.toml")
    write(folder, 'name = "b"\nnumbers = "*"\n', "b.toml")

    agents = read(folder)

    assert telephone_numbers(agents.by_name.values()) == {"+584125550001": "a"}


def test_a_single_file_is_enough(folder):
    agents = read(write(folder, 'name = "a"\n'))

    assert set(agents.by_name) == {"default", "a"}


def test_a_prompt_may_be_in_a_file_of_its_own(folder):
    (folder / "prompt.md").write_text("Say hello.\n")
    write(folder, 'name = "a"\nprompt_file = "prompt.md"\n')

    assert read(folder).by_name["a"].prompt == "Say hello.\n"


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ('name = "a"\nvoise = "Kore"\n', 2, "voise is nothing that an agent has; is voice meant?"),
        ('name = "a"\n\nmax_calls = 3\n', 3, "max_calls is a setting of the whole server"),
        ('name = "a"\nlead_s = -1\n', 2, "lead_s must be more than 0"),
        ('name = "a"\nbarge_in = "loud"\n', 2, "barge_in must be model, local or both"),
        ('name = "A b"\n', 1, "name must be up to 64 of a-z"),
        ('name = "default"\n', 1, "name must not be default"),
        ('name = "a"\nnumbers = [\n  "+58",\n]\n', 2, "numbers.0 not a"),
        ('name = "a"\ntools = ["no_such_module_x"]\n', 2, "no_such_module_x cannot be imported"),
        ('name = "a"\ntools = 5\n', 2, "tools must be"),
        ('name = "a"\nevents_url = "http://10.0.0.1/"\n', 2, "events_url must be like https://"),
        ('name = "a"\nevents_url = "https://a.example/"\n', 2, "events_url needs EVENTS_SECRET"),
        ('name = "a"\ngreeting_wav = "no.wav"\n', 2, "greeting_wav cannot be read"),
        ('name = "a"\nprompt_file = "no.md"\n', 2, "prompt_file cannot be read"),
        ('name = "a"\nprompt = "b"\nprompt_file = "no.md"\n', 3, "beside a prompt"),
        ('name = "a"\n[transfer]\nowner = "0412"\n', 3, "transfer.owner must be in E.164 form"),
        ('name = "a"\nnumbers = "*"\nprompt = "Hi {{who}}"\n', 2, "nobody says what who is"),
        ('name = "a"\nprompt = """\nvoice = 3\n"""\nvoice = 3\n', 5, "voice must be a text"),
        ('name = "a"\nvoice = Kore\n', 2, "Invalid value, so it is no TOML"),
        ('name = "a"\nname = "b"\n', 2, "so it is no TOML"),
        ('voice = "Kore"\n', None, "name is missing"),
        (
            'name = "a"\n[outcome.properties.pizza]\ntype = "strin"\n',
            3,
            "outcome.properties.pizza.type is no JSON Schema: 'strin' is not valid",
        ),
        ('name = "a"\n[outcome]\nschema = "no_such_x.Order"\n', 3, "outcome.schema cannot be im"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(folder, text, line, told):
    path = write(folder, text)

    message = refusal(folder)

    assert f"{path}, line {line}: " in message if line else str(path) in message
    assert told in message


def test_two_agents_have_neither_one_name_nor_one_number(folder):
    first = write(folder, 'name = "a"\nnumbers = "+584125550001"\n', "1.toml")
    write(folder, 'name = "a"\n', "2.toml")
    write(folder, 'name = "b"\nnumbers = ["+584125550001"]\n', "3.toml")

    message = refusal(folder)

    assert f"name has a, as {first}, line 1 has" in message
    assert f"numbers has +584125550001, as {first}, line 2 has" in message


def test_all_that_is_wrong_is_told_at_once(folder):
    write(folder, 'name = "a"\nlead_s = -1\nvoice = 1\n', "1.toml")
    write(folder, "name = 1\n", "2.toml")

    message = refusal(folder)

    assert message.count("line ") == 3


def test_a_folder_without_agents_is_refused(folder):
    assert "neither" in refusal(folder)
    assert "is not there" in refusal(folder / "no")
    assert "is not there" in refusal(Path("~nobody-has-this-home/agents"))


@pytest.mark.skipif(sys.platform == "win32", reason="a name that is too long is not there")
def test_a_place_that_cannot_be_looked_at_is_refused(folder):
    assert "cannot be read: File name too long" in refusal(folder / ("n" * 300))


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "a.toml").write_bytes(b'name = "a"\nvoice = "\xff"\n')

    assert "line 2" in refusal(folder)


def test_agents_in_python_are_read_with_their_route(folder):
    path = write(
        folder,
        "from server.agent import Agent\n"
        "from server.agent.builtin import hang_up\n"
        "from server.agent.tool import tool\n"
        "@tool\n"
        "def weather() -> str:\n"
        '    """Say how the weather is."""\n'
        "    return 'fine'\n"
        "desk = DEFAULT = Agent('desk', prompt='Hi {{who}}.', tools=[weather], numbers='*')\n"
        "async def route(call):\n"
        "    return desk\n",
        "agents.py",
    )

    agents = read(path)

    desk = agents.by_name["desk"]
    assert [tool.name for tool in desk.tools] == ["hang_up", "send_dtmf", "weather"]
    assert agents.route is not None
    assert agents.fallback == "desk"


def test_agents_in_python_have_their_types_as_they_wrote_them(folder):
    path = write(folder, "def book(guests: int) -> None: ...\n", "agents.py")

    read(path)

    assert sys.modules[MODULE_NAME].book.__annotations__ == {"guests": int, "return": None}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import no_such_module_x\n", "line 1: ModuleNotFoundError"),
        ("x = 1\nif x:\n", "line 2: IndentationError"),
        ("from server.agent import Agent\n\na = Agent('a', voice=3)\n", "line 3: voice must be"),
        ("def route(call):\n    pass\n", "route must be an async function"),
        ("DEFAULT = 'nobody'\n", "DEFAULT is 'nobody', which is no agent"),
    ],
)
def test_what_is_wrong_in_python_is_told(folder, text, told):
    write(folder, text, "agents.py")

    assert told in refusal(folder)
    assert MODULE_NAME not in sys.modules or "no_such" not in text


def test_a_carrier_that_cannot_say_an_apology_refuses_the_agent(folder):
    path = write(folder, 'name = "a"\n\napology = "Sorry."\n')

    def check(agent):
        raise ConfigurationError("APOLOGY is too long")

    with pytest.raises(ConfigurationError, match=f"{path}, line 3: apology is too long"):
        read_agents(Settings.load(_env_file=None, agents=folder), check)


def test_an_outcome_gives_the_agent_a_function_to_fill_it_in(folder):
    write(folder, 'name = "a"\n[outcome.properties]\npizza = {type = "string"}\n')

    agent = read(folder).by_name["a"]

    assert agent.outcome is not None
    assert agent.outcome.required == ("pizza",)
    assert agent.tools[-1].parameters["properties"] == {"pizza": {"type": "string"}}


def test_a_key_is_found_in_its_table_and_not_in_a_text():
    text = '[a]\nb = """\nc = 1\n[d]\n"""\n[d]\n# c = 2\nc = 3\n'

    assert line_of(text, ["d", "c"]) == 8
    assert line_of(text, ["d"]) == 6
    assert line_of(text, ["d", "missing"]) == 6
    assert line_of(text, ["e"]) is None


@pytest.fixture
def parsed(monkeypatch):
    """How often a text was read while its lines were looked for."""
    counted = []
    parse = files_module._parsed
    monkeypatch.setattr(files_module, "_parsed", lambda lines: counted.append(1) or parse(lines))
    return counted


@pytest.mark.parametrize("between", [", ", ",\n"])
def test_as_many_numbers_as_there_may_be_are_read_without_looking_for_the_line_of_each(
    folder, parsed, between
):
    numbers = between.join(f'"+58412{number:07}"' for number in range(10_000))
    write(folder, f'name = "desk"\nprompt = "x"\nnumbers = [\n{numbers}\n]\n')

    agents = read(folder)

    assert len(agents.by_name["desk"].numbers) == 10_000
    assert len(parsed) <= 20


def test_no_line_is_looked_for_where_nothing_is_wrong(folder, parsed):
    for name in ("a", "b"):
        number = f"+5841255500{ord(name)}"
        write(folder, f'name = "{name}"\nprompt = "x"\nnumbers = ["{number}"]\n', f"{name}.toml")

    agents = read(folder)

    assert {"a", "b"} <= agents.by_name.keys()
    assert not parsed


def test_of_as_many_wrong_numbers_a_few_are_told(folder, parsed):
    numbers = ",\n".join(f'"{number}"' for number in range(10_000))
    write(folder, f'name = "desk"\nprompt = "x"\nnumbers = [\n{numbers}\n]\n')

    told = refusal(folder)

    assert told.count("line 3") == files_module.MAX_TOLD
    assert len(parsed) <= 10 * files_module.MAX_TOLD


def test_the_second_of_two_owners_of_many_numbers_is_told_once(folder):
    numbers = ", ".join(f'"+58412{number:07}"' for number in range(1_000))
    for name in ("a", "b"):
        write(folder, f'name = "{name}"\nnumbers = [{numbers}]\n', f"{name}.toml")

    told = refusal(folder)

    assert told.count("has +58412") == 1
    assert "b.toml, line 2" in told
    assert "a.toml, line 2" in told


@pytest.mark.parametrize("key", ["tools", "numbers", "prompt_file", "name", "outcome", "variables"])
@pytest.mark.parametrize("value", ["5", "1.5", "true", "[5]", "{a = 5}", "2026-01-01", "[[]]"])
def test_a_value_of_whatever_kind_is_refused_with_its_line(folder, key, value):
    name = "" if key == "name" else 'name = "desk"\n'
    write(folder, f'{name}prompt = "x"\n{key} = {value}\n')

    assert f"order.toml, line {name.count(chr(10)) + 2}: {key}" in refusal(folder)


def test_a_module_that_exits_is_told_and_leaves_the_agents_as_they_were(folder):
    (folder / "agents.py").write_text("import sys\n\nsys.exit('no')\n")

    assert "agents.py, line 3: SystemExit: no" in refusal(folder)


@pytest.mark.parametrize("key", ["voice", "language", "events_url"])
def test_what_is_empty_is_as_good_as_not_there(folder, key):
    write(folder, f'name = "desk"\n{key} = " "\n')
    write(
        folder, f"from server.agent import Agent\n\nowner = Agent('owner', {key}='')\n", "agents.py"
    )

    agents = read(folder).by_name

    assert [getattr(agents[name], key) for name in ("desk", "owner")] == [None, None]


@pytest.mark.parametrize("key", ["prompt", "greeting", "voicemail_message", "apology"])
def test_a_text_is_no_longer_than_another_process_would_take_it(folder, key):
    write(folder, f'name = "desk"\nvoicemail = "leave-message"\n{key} = "{"x" * 200_001}"\n')

    told = refusal(folder)

    assert f"line 3: {key} must have at most 200,000 characters" in told


@pytest.mark.parametrize("name", ["hello.wav", "hello.mp3", "hello.flac", "hello.ogg"])
def test_a_greeting_beside_agents_is_watched_whatever_holds_it(tmp_path, name):
    (tmp_path / "a.toml").write_text("")
    (tmp_path / "calls.sqlite3").write_bytes(b"")
    before = files_beside(tmp_path)

    (tmp_path / name).write_bytes(b"sound")

    assert {name for name, *_ in files_beside(tmp_path) - before} == {name}
