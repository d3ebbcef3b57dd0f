"""For whoever runs the server: whether it lives, whether it takes calls, what it counts."""

from __future__ import annotations

from typing import Any

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from quart import Quart, Response
from quart_schema import document_response, hide

from server.errors import CallRefused
from server.metrics import merged
from server.service import Service
from server.web.api import Ready
from server.web.elsewhere import Elsewhere


def add_health(app: Quart, service: Service, elsewhere: Elsewhere) -> None:
    """Add the routes of health and metrics."""

    @app.get("/healthz")
    async def healthz() -> Any:
        """The process serves requests."""
        return {"status": "ok"}

    @app.get("/readyz")
    @document_response(Ready)
    @document_response(Ready, 503)
    async def readyz() -> Any:
        """Whether the next call would be taken."""
        refusal = None
        try:
            service.calls.check_admission()
        except CallRefused as refused:
            if service.calls.has_failed or not service.cluster.accepts_elsewhere:
                refusal = refused.reason
        cluster, calls = service.cluster, service.calls
        body = {
            "ready": refusal is None,
            "reason": refusal,
            "carrier": service.accounts.carrier.name,
            "carriers": service.accounts.carrier_names,
            "model": service.accounts.model.name,
            "model_platform": service.accounts.model_platform,
            "simulated": service.accounts.are_simulated,
            "live_calls": calls.live_count + cluster.live_elsewhere,
            "waiting_calls": calls.admission.waiting_count + cluster.waiting_elsewhere,
            "draining": calls.draining,
        }
        return body, 200 if refusal is None else 503

    @app.get("/metrics")
    @hide
    async def metrics() -> Any:
        """Prometheus text; where there are several processes, each has its own samples."""
        if not service.cluster.has_others and not service.cluster.siblings():
            text = generate_latest(service.metrics.registry)
        else:
            answers = await elsewhere.everyone()
            theirs = [answer.text for answer in answers if answer.status_code == 200]
            text = merged(service.metrics.registry, theirs, worker=service.cluster.me.name)
        return Response(text, content_type=CONTENT_TYPE_LATEST)
