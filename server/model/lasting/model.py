"""Making lasting sessions."""

from __future__ import annotations

import trio

from server.agent.agent import Agent
from server.logs import Sparing
from server.model import (
    Conversation,
    EventListener,
    Standing,
)
from server.model.lasting.connection import Service
from server.model.lasting.plan import ConnectionPlan, new_redials
from server.model.lasting.session import LastingSession

REFUSAL_TOLD_EVERY_S = 600.0


class LastingModel:
    """Makes sessions that outlive their connections.

    Args:
        service: The model.
        fallback: Where to turn when the model fails for good or is out of quota: another model,
            key or region.
        connection_age_s: Age at which a connection is replaced in the next silence; the service
            ends them after about ten minutes.
        reconnect_budget_s: How long one outage may last before the session is given up.
    """

    def __init__(
        self,
        service: Service,
        *,
        fallback: Service | None = None,
        connection_age_s: float = 540.0,
        reconnect_budget_s: float = 30.0,
    ) -> None:
        self.name = service.name
        self._services = (service, fallback)
        self._refusals_told = Sparing(REFUSAL_TOLD_EVERY_S)
        self._redials = new_redials()
        self._connection_age_s = connection_age_s
        self._reconnect_budget_s = reconnect_budget_s

    def new_session(
        self,
        agent: Agent,
        conversation: Conversation,
        on_event: EventListener,
        going_on: Standing | None = None,
    ) -> LastingSession:
        """Make the session of one call; it connects when it is run.

        One that goes on is resumed where the same model is used with the same key.
        """
        plan = ConnectionPlan(
            trio.current_time(),
            connection_age_s=self._connection_age_s,
            budget_s=self._reconnect_budget_s,
            has_fallback=self._services[1] is not None,
            redials=self._redials,
        )
        services = self._services
        if agent.model is not None and agent.model != self.name:
            services = services[0].of_model(agent.model), services[1]
        if going_on is not None:
            service, fallback = services
            if on_fallback := going_on.on_fallback and fallback is not None:
                assert fallback is not None
                service = fallback
            is_same = (service.name, service.key_name) == (going_on.model, going_on.key_name)
            plan.go_on(going_on.handle if is_same else None, on_fallback=on_fallback)
            plan.since_handle.go_on(
                done=going_on.done,
                interrupted=going_on.interrupted,
                in_first_words=going_on.in_first_words,
            )
        return LastingSession(
            services,
            agent,
            conversation,
            on_event,
            plan,
            self._refusals_told,
            first_turn=1 if going_on is None else going_on.turn + 1,
        )
