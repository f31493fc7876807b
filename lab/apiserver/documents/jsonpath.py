"""The JSONPath subset that printer columns use: `.a.b[0].c[*]`, `['x']`, `[?(@.type=='Ready')]`, `\\.`.

The syntax is that of k8s.io/client-go/util/jsonpath without braces; each column is compiled once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

_STEP = re.compile(
    r"""\.(?P<name>(?:\\.|[^.\[\\])+)
      | \[(?P<index>-?\d+)\]
      | \[(?P<all>\*)\]
      | \[(?P<quote>['"])(?P<quoted>.*?)(?P=quote)\]
      | \[\?\(\s*@(?P<filter>[^=!<>)\s]+)\s*(?P<op>==|!=)\s*(?P<literal>'[^']*'|"[^"]*"|[^)\s]+)\s*\)\]""",
    re.VERBOSE,
)
_Step = Callable[[Any], list[Any]]


def compile_path(path: str) -> Callable[[Any], list[Any]]:
    """Return a function that returns the values at `path` in an object.

    :raises ValueError: the path is invalid.
    """
    steps: list[_Step] = []
    position = 0
    text = path if path.startswith((".", "[")) else f".{path}"
    while position < len(text):
        found = _STEP.match(text, position)
        if found is None:
            raise ValueError(f"invalid JSONPath {path!r} at {text[position:]!r}")
        steps.append(_step(found))
        position = found.end()

    def values(obj: Any) -> list[Any]:
        current = [obj]
        for step in steps:
            current = [value for item in current for value in step(item)]
        return current

    return values


def _step(found: re.Match[str]) -> _Step:
    if found["index"] is not None:
        index = int(found["index"])
        return lambda value: [value[index]] if isinstance(value, list) and -len(value) <= index < len(value) else []
    if found["all"] is not None:
        return _children
    if found["filter"] is not None:
        inner, literal, equal = compile_path(found["filter"]), _literal(found["literal"]), found["op"] == "=="
        return lambda value: [item for item in _children(value) if (inner(item)[:1] == [literal]) is equal]
    name = found["quoted"] if found["quoted"] is not None else re.sub(r"\\(.)", r"\1", found["name"])
    if name == "*":
        return _children
    return lambda value: [value[name]] if isinstance(value, dict) and name in value else []


def _children(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return list(value.values()) if isinstance(value, dict) else []


def _literal(text: str) -> Any:
    if text[0] in "'\"":
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        return text
