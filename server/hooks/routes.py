"""Which route a path belongs to, found without leaving anything to the garbage collector.

werkzeug's own matcher is a function within a function that calls itself, made for each request
anew: three objects that lead back to themselves. This one finds the same, over the same states.
Quart's ``url_map_class`` is the documented seam for the map; its matcher is not, and
tests/hooks/test_routes.py fails when another version goes another way.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from quart.routing import QuartMap
from werkzeug.routing import Rule
from werkzeug.routing.converters import ValidationError
from werkzeug.routing.exceptions import NoMatch, RequestPath
from werkzeug.routing.matcher import SlashRequired, State, StateMachineMatcher

OF_WERKZEUG = "__werkzeug_"
"""How the groups of a part's pattern are named; a number follows."""


class _Search:
    """One look for a rule, from the root of the states downwards."""

    def __init__(self, method: str, websocket: bool) -> None:
        self._method = method
        self._websocket = websocket
        self.other_methods: set[str] = set()
        self.is_other_protocol = False

    def find(
        self, state: State, parts: list[str], values: list[str]
    ) -> tuple[Rule, list[str]] | None:
        """The rule to which the rest of a path leads from here, and what its variables are."""
        if not parts:
            return self._at_end(state, values)
        part, rest = parts[0], parts[1:]
        if part in state.static:
            found = self.find(state.static[part], rest, values)
            if found is not None:
                return found
        for test, beyond in state.dynamic:
            target, remaining = ("/".join(parts), []) if test.final else (part, rest)
            match = re.compile(test.content).match(target)
            if match is None:
                continue
            if test.suffixed and match.groups()[-1] == "/":
                remaining = [""]
            named = match.groupdict()
            ours = sorted(
                (name for name in named if name.startswith(OF_WERKZEUG)),
                key=lambda name: int(name[len(OF_WERKZEUG) :]),
            )
            found = self.find(beyond, remaining, values + [named[name] for name in ours])
            if found is not None:
                return found
        if parts == [""]:
            lenient = [rule for rule in state.rules if not rule.strict_slashes]
            return self._choose(lenient, values)
        return None

    def _at_end(self, state: State, values: list[str]) -> tuple[Rule, list[str]] | None:
        found = self._choose(state.rules, values)
        if found is None and "" in state.static:
            for rule in state.static[""].rules:
                takes = rule.methods is None or self._method in rule.methods
                if takes and rule.websocket == self._websocket:
                    if rule.strict_slashes:
                        raise SlashRequired
                    return rule, values
        return found

    def _choose(self, rules: list[Rule], values: list[str]) -> tuple[Rule, list[str]] | None:
        for rule in rules:
            if rule.methods is not None and self._method not in rule.methods:
                self.other_methods |= rule.methods
            elif rule.websocket != self._websocket:
                self.is_other_protocol = True
            else:
                return rule, values
        return None


class _Matcher(StateMachineMatcher):
    """werkzeug's states, searched by an object that nothing leads back to."""

    def match(
        self, domain: str, path: str, method: str, websocket: bool
    ) -> tuple[Rule, MutableMapping[str, Any]]:
        """The rule of a path, and what its variables are.

        Raises:
            NoMatch: There is none.
            RequestPath: There is one for the same path with other slashes.
        """
        search = _Search(method, websocket)
        found = self._find(search, domain, path)
        if found is None and self.merge_slashes:
            path = re.sub("/{2,}", "/", path)
            found = self._find(search, domain, path)
            if found is not None and found[0].merge_slashes:
                raise RequestPath(path)
            found = None
        if found is None:
            raise NoMatch(search.other_methods, search.is_other_protocol)
        rule, texts = found
        values: dict[str, Any] = {}
        for (name, converter), text in zip(rule._converters.items(), texts, strict=False):
            try:
                values[name] = converter.to_python(text)
            except ValidationError:
                raise NoMatch(search.other_methods, search.is_other_protocol) from None
        return rule, {**values, **(rule.defaults or {})}

    def _find(self, search: _Search, domain: str, path: str) -> tuple[Rule, list[str]] | None:
        try:
            return search.find(self._root, [domain, *path.split("/")], [])
        except SlashRequired:
            raise RequestPath(f"{path}/") from None


class Routes(QuartMap):
    """The routes of an app."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._matcher = _Matcher(self._matcher.merge_slashes)
