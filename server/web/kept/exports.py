"""For clients: calls that have ended, as a file, however many there are."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import trio
from quart import Quart, Response
from quart_schema import validate_querystring

from server.records.database.tables import SUMMARY
from server.records.words import Cursor, RecordsUnavailable
from server.service import Service
from server.switchboard.register import Page
from server.web.api import WhichCalls

PAGE = 100
"""Rows that are in memory at a time."""
COLUMNS = (*SUMMARY, "outcome")
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")
"""Where something begins that a spreadsheet would compute (OWASP, "CSV Injection"): a cell, or what
one takes for a cell that has ``;`` or a tab between them, as Excel does where ``,`` is decimal."""
_Rows = Sequence[dict[str, Any]]


def csv_lines(rows: _Rows) -> str:
    """Rows of a list of calls as CSV, with nothing in them that a spreadsheet would compute."""
    text = io.StringIO()
    csv.writer(text).writerows([_cell(row.get(name)) for name in COLUMNS] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """One cell; text that a spreadsheet would compute has an apostrophe before it."""
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False) if value else ""
    if isinstance(value, str):
        return _FORMULA.sub(r"\1'", value)
    return value


def json_lines(rows: _Rows) -> str:
    """Rows of a list of calls, each as JSON in a line."""
    return "".join(f"{json.dumps(row, separators=(',', ':'))}\n" for row in rows)


def add_exports(app: Quart, service: Service) -> None:
    """Add the routes that give calls as files."""

    @app.get("/calls.csv")
    @validate_querystring(WhichCalls)
    async def export_csv(query_args: WhichCalls) -> Any:
        """Calls that have ended, newest first, as CSV; filtered as ``GET /calls`` is.

        Text that a spreadsheet would compute has an apostrophe before it, as numbers with a plus.
        """
        head = f"{','.join(COLUMNS)}\r\n"
        return await export(query_args, csv_lines, "text/csv", head)

    @app.get("/calls.jsonl")
    @validate_querystring(WhichCalls)
    async def export_json_lines(query_args: WhichCalls) -> Any:
        """Calls that have ended, newest first, as JSON Lines; filtered as ``GET /calls`` is."""
        return await export(query_args, json_lines, "application/jsonl", "")

    async def export(
        which: WhichCalls, write: Callable[[_Rows], str], mimetype: str, head: str
    ) -> Response:
        async def page_after(before: Cursor | None) -> Page:
            register = service.calls.register
            page = await register.page(PAGE, before, which.wanted, with_outcome=True)
            if not page.is_complete:
                raise RecordsUnavailable("the database does not answer")
            return page

        first = await page_after(None)  # what fails now can still be said

        async def lines() -> AsyncGenerator[bytes]:
            page = first
            yield head.encode()
            while True:
                # Calls go on meanwhile: a page of long labels and outcomes takes milliseconds.
                yield (await trio.to_thread.run_sync(write, page.rows)).encode()
                if page.next is None:
                    return
                page = await page_after(page.next)

        response = Response(lines(), mimetype=mimetype)
        response.cache_control.no_store = True
        return response
