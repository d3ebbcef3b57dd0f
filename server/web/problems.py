"""What is answered where a request fails: JSON, and a traceback once if it was our fault."""

from __future__ import annotations

from typing import Any

import structlog
import trio
from quart import Quart
from quart_schema import RequestSchemaValidationError
from werkzeug.exceptions import HTTPException

from server.hooks.sockets import SHORT_OF_DESCRIPTORS, NoThread
from server.logs import Sparing
from server.records.words import RecordsUnavailable
from server.web.api import error_body, field_errors, invalid

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

RECORDS_PAUSE_S = 5
"""When to come back after the database did not answer."""
SHORTAGE_PAUSE_S = 5
"""When to come back after the system had nothing left of what a request needs."""

TOLD = frozenset(("Allow", "Content-Range", "Retry-After"))
"""What is said of an error in the answer's head (RFC 9110 sections 15.5.6, 15.5.17 and 10.2.3)."""


def answer_problems(app: Quart) -> None:
    """Give the app JSON for every error."""

    @app.errorhandler(RequestSchemaValidationError)
    async def wrong_fields(error: RequestSchemaValidationError) -> Any:
        return invalid(field_errors(error.validation_error)).response()

    @app.errorhandler(RecordsUnavailable)
    async def no_records(error: RecordsUnavailable) -> Any:
        body = error_body("records-unavailable", str(error))
        return body, 503, {"Retry-After": str(RECORDS_PAUSE_S)}

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Any:
        name = (error.name or "error").lower().replace(" ", "-")
        told = {field: value for field, value in error.get_headers() if field in TOLD}
        return error_body(name, error.description or ""), error.code or 500, told

    bugs, shortages = Sparing(), Sparing()

    @app.errorhandler(OSError)
    async def shortage(error: OSError) -> Any:
        if not isinstance(error, NoThread) and error.errno not in SHORT_OF_DESCRIPTORS:
            return await bug(error)
        message = "request refused: the system has nothing left of what it needs"
        shortages.log(trio.current_time(), logger.warning, message, error=error.strerror)
        body = error_body("shortage", "the server is short of threads, descriptors or memory")
        return body, 503, {"Retry-After": str(SHORTAGE_PAUSE_S)}

    @app.errorhandler(Exception)
    async def bug(error: Exception) -> Any:
        now, message = trio.current_time(), "request failed by a bug of ours"
        bugs.log(now, logger.exception, message, exc_info=error)
        return error_body("internal", "something failed on our side"), 500
