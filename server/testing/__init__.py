"""A kit for tests of your own agents: a scripted caller, a scripted model, and time that flies::

    from server.testing import AgentCalls, AgentSays, CallerSays, call_agent


    def test_an_order():
        call = call_agent(
            "agents",
            AgentSays("Good day. Which pizza?"),
            CallerSays("Two hawaii, please."),
            AgentCalls("save_outcome", pizza="hawaii", count=2),
            AgentSays("Two hawaii. Goodbye!"),
            agent="order-desk",
        )

        assert call.outcome == {"pizza": "hawaii", "count": 2}
        assert call.reason == "caller-hung-up"

The call is a real one of this program, on a virtual clock: tools, variables, interruptions, limits
and the record are what they are in production, and a minute's call takes a fraction of a second.
What the model says is for the script to say: a test shows what your code makes of it. A plain tool
may take as long as it likes, as time stands still for it; an ``async`` one waits in virtual time,
so it must not wait for a real service.
"""

from server.testing.calling import FinishedCall, ToolUse, agent_call, call_agent
from server.testing.dialogue import (
    AgentCalls,
    AgentSays,
    CallerPresses,
    CallerSays,
    CallerWaits,
    Line,
)

__all__ = [
    "AgentCalls",
    "AgentSays",
    "CallerPresses",
    "CallerSays",
    "CallerWaits",
    "FinishedCall",
    "Line",
    "ToolUse",
    "agent_call",
    "call_agent",
]
