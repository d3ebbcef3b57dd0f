"""``POST /check``: whether everything that the settings name is there, asked by this process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import trio
from pydantic import BaseModel
from quart import Quart
from quart_schema import document_response

from server.checkup import Finding, all_is_well
from server.checkup.asking import look
from server.service import Service
from server.web.api import Answer, error_body, retry_after
from server.web.calls_api import may_fail

KEPT_S = 60.0
"""For so long an answer is given again: each costs sessions with the model, and its turn at others'
services. One in which a model was not tried, as calls need its sessions, is not."""
WAIT_S = 60.0
"""For so long whoever asks waits for an answer, their own or another's: each question has 20 s."""
PAUSE_S = 5.0
"""When to ask again if there was none."""


class Found(BaseModel):
    """What was found of one thing that is configured."""

    subject: str
    state: Literal["ok", "doubt", "failed"]
    found: str
    todo: str
    """What to do about it; empty if nothing."""


class Checked(BaseModel):
    """What was found of everything."""

    ok: bool
    findings: list[Found]
    age_s: float
    """How long ago it was found: up to a minute."""


def add_check(app: Quart, service: Service) -> None:
    """Add the route that tries every account, number and address once."""
    under_way: list[trio.Event] = []
    """Set when the check is over that somebody waits for; none while there is none."""
    newest: list[tuple[float, list[Finding]]] = []
    """When, and what was found; none before the first time."""

    @app.post("/check")
    @document_response(Checked)
    @may_fail(401, 403, 409)
    async def check() -> Any:
        """Try every account, number and address that is set, once; nothing is changed."""
        asked_at = trio.current_time()
        with trio.move_on_after(WAIT_S):
            while not is_known(asked_at):
                if under_way:  # somebody else's, which may fail or be given up
                    await under_way[0].wait()
                    continue
                await ask()
            return told()
        body = error_body("in-progress", "everything is being asked just now")
        return Answer(body, 409, retry_after(PAUSE_S)).response()

    def is_known(asked_at: float) -> bool:
        if not newest:
            return False
        found_at, found = newest[0]
        is_kept = all(finding.was_asked for finding in found)
        return found_at >= asked_at or (is_kept and trio.current_time() < found_at + KEPT_S)

    def room() -> AbstractContextManager[None]:
        calls = service.calls.live_count + service.cluster.live_elsewhere
        return service.calls.admission.trial_session(calls)

    async def ask() -> None:
        over = trio.Event()
        under_way.append(over)
        try:
            agents = service.roster.agents.by_name.values()
            found = await look(service.settings, service.accounts, agents, room)
            newest[:] = [(trio.current_time(), found)]
        finally:
            under_way.clear()
            over.set()

    def told() -> dict[str, Any]:
        found_at, found = newest[0]
        findings = [finding.as_dict() for finding in found]
        age_s = round(trio.current_time() - found_at, 1)
        return {"ok": all_is_well(found), "findings": findings, "age_s": age_s}
