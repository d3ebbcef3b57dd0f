"""Our search for a route finds what werkzeug's own does, and leaves nothing behind."""

from __future__ import annotations

import gc

import pytest
from quart.routing import QuartMap, QuartRule
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from server.hooks.routes import Routes

RULES = [
    ("/", {}),
    ("/calls", {}),
    ("/calls", {"methods": ["POST"]}),
    ("/calls/<call_sid>", {}),
    ("/calls/<call_sid>/hang-up", {"methods": ["POST"]}),
    ("/stream", {"websocket": True}),
    ("/stream/<int:worker>", {"websocket": True}),
    ("/with/", {}),
    ("/lenient/", {"strict_slashes": False}),
    ("/file.<name>-<int:number>", {}),
    ("/under/<path:rest>", {}),
    ("/fixed", {"defaults": {"page": 1}}),
]
PATHS = [
    *("", "/", "//", "/calls", "/calls/", "//calls", "/calls//", "/calls/CA1", "/calls/CA1/"),
    *("/calls//hang-up", "/calls/CA1/hang-up", "/calls/CA1/hang-up/x", "/stream", "/stream/"),
    *("/stream/3", "/stream/x", "/stream/3/", "/with", "/with/", "/with//", "/lenient"),
    *("/lenient/", "/file.a-7", "/file.a-x", "/file.", "/under", "/under/", "/under/a/b//c"),
    *("/under//a/", "/fixed", "/nowhere", "/%00", "/calls/%2F", "/calls/\n"),
]


def table(kind: type[QuartMap]) -> QuartMap:
    routes = kind(host_matching=False)
    for number, (path, options) in enumerate(RULES):
        endpoint = f"{number} {path}"
        if "websocket" not in options:
            options = {"methods": ["GET"]} | options
        routes.add(QuartRule(path, endpoint=endpoint, **options))
    return routes


def outcome(routes: QuartMap, path: str, method: str, *, websocket: bool) -> object:
    adapter = routes.bind("host", url_scheme="ws" if websocket else "http")
    try:
        rule, values = adapter.match(path, method, return_rule=True, websocket=websocket)
    except RequestRedirect as redirect:
        return "redirect", redirect.new_url
    except HTTPException as error:
        return type(error), sorted(getattr(error, "valid_methods", None) or ())
    return rule.endpoint, values


@pytest.mark.parametrize("websocket", [False, True])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
def test_every_path_leads_where_werkzeug_takes_it(method, websocket):
    ours, theirs = table(Routes), table(QuartMap)

    found = {path: outcome(ours, path, method, websocket=websocket) for path in PATHS}

    assert found == {path: outcome(theirs, path, method, websocket=websocket) for path in PATHS}


def test_a_search_leaves_nothing_to_the_garbage_collector():
    routes = table(Routes)
    adapter = routes.bind("host")
    adapter.match("/calls", "GET")
    gc.collect()

    for _ in range(10):
        adapter.match("/calls/CA1", "GET")

    assert gc.collect() == 0
