"""Calls as they should go: the caller and the model are scripted, all that is ours is real."""

from server.testing import AgentCalls, AgentSays, CallerSays, ToolUse

GREETS = AgentSays("Pizza Norte. What may it be?")
ITEMS = [{"pizza": "hawaii", "count": 2}]


def test_an_order_comes_out_as_data(agent_call):
    call = agent_call(
        GREETS,
        CallerSays("Two hawaii, please. For Ana."),
        AgentCalls("price_of", pizza="hawaii", count=2),
        AgentCalls("save_outcome", name="Ana", items=ITEMS),
        AgentSays("Two hawaii, eighteen dollars. Is that right?"),
        CallerSays("Yes."),
        AgentCalls("save_outcome", confirmed=True),
        AgentCalls("hang_up"),
        AgentSays("Ready in twenty minutes. Goodbye!"),
        agent="order-desk",
    )

    assert call.outcome == {"name": "Ana", "items": ITEMS, "confirmed": True}
    assert call.is_complete
    assert call.tools[0] == ToolUse("price_of", {"pizza": "hawaii", "count": 2}, "18.00 dollars")
    assert call.reason == "agent-hung-up"


def test_what_is_not_on_the_menu_is_not_sold(agent_call):
    call = agent_call(
        GREETS,
        CallerSays("One sushi, please."),
        AgentCalls("price_of", pizza="sushi"),
        AgentCalls("save_outcome", items=[{"pizza": "sushi", "count": 1}]),
        AgentSays("We have no sushi. There are margherita, hawaii and funghi."),
        agent="order-desk",
    )

    assert [use.name for use in call.tools if use.error] == ["price_of", "save_outcome"]
    assert call.outcome == {}


def test_each_shop_has_its_name_in_the_prompt(agent_call):
    call = agent_call(GREETS, agent="order-desk", variables={"shop": "Pizza Sur"})

    assert "the telephone of Pizza Sur" in call.prompt


def test_who_complains_is_transferred(agent_call):
    call = agent_call(
        GREETS,
        CallerSays("It was cold! I want the owner."),
        AgentCalls("transfer", destination="owner"),
        agent="order-desk",
    )

    assert call.transferred_to == ("+584125550009",)


def test_the_owner_gets_a_message(agent_call):
    call = agent_call(
        AgentSays("The owner's telephone. May I take a message?"),
        CallerSays("The oven is repaired. It is Luis."),
        AgentCalls("save_outcome", who="Luis", message="The oven is repaired."),
        AgentSays("I will tell her. Goodbye!"),
        agent="owner",
    )

    assert call.is_complete
