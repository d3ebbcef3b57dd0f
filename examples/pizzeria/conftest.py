"""What the tests share: a call with the agents of this folder."""

from server.testing import agent_call

__all__ = ["agent_call"]
