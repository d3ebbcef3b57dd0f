"""Who answers: prompt, greeting, tools. A module of agents imports its words from here."""

from server.agent.roster.agents import Choice, NewCall
from server.agent.roster.written import Agent

__all__ = ["Agent", "Choice", "NewCall"]
