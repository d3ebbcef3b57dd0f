"""``POST /check``: whether everything that the settings name is there, asked by this process."""

from __future__ import annotations

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
services."""
PAUSE_S = 5.0
"""When to ask again while it is being asked for somebody else."""


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
    under_way: set[str] = set()
    newest: list[tuple[float, list[Finding]]] = []
    """When, and what was found; none before the first time."""

    @app.post("/check")
    @document_response(Checked)
    @may_fail(401, 403, 409, 503)
    async def check() -> Any:
        """Try every account, number and address that is set, once; nothing is changed."""
        now = trio.current_time()
        if newest and now < newest[0][0] + KEPT_S:
            return told(now)
        if under_way:
            body = error_body("in-progress", "everything is being asked just now")
            return Answer(body, 409, retry_after(PAUSE_S)).response()
        under_way.add("check")
        try:
            agents = service.roster.agents.by_name.values()
            found = await look(service.settings, service.accounts, agents)
        finally:
            under_way.clear()
        found_at = trio.current_time()
        newest[:] = [(found_at, found)]
        return told(found_at)

    def told(now: float) -> dict[str, Any]:
        found_at, found = newest[0]
        findings = [finding.as_dict() for finding in found]
        age_s = round(now - found_at, 1)
        return {"ok": all_is_well(found), "findings": findings, "age_s": age_s}
