"""Label and field selectors, parsed once and then evaluated per object.

The label syntax is that of k8s.io/apimachinery/pkg/labels, the field syntax that of pkg/fields. A table lists the
selectable fields of each kind, as in upstream's code; any other field is rejected with 400.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lab.apiserver.errors import Object, bad_request
from lab.apiserver.registry.resources import ServedResource
from lab.apiserver.storage.watch import Selector

_LABEL = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_KEY = rf"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?{_LABEL}"
_REQUIREMENT = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<akey>{_KEY})"
    rf"|(?P<key>{_KEY})\s*(?:(?P<set>\bin\b|\bnotin\b)\s*\((?P<values>[^()]*)\)"
    rf"|(?P<op>==|=|!=|>|<)\s*(?P<value>(?:{_LABEL})?))?)\s*(?:,|$)"
)
_VALUE = re.compile(rf"(?:{_LABEL})?")

_Match = Callable[[dict[str, str]], bool]


def parse_labels(text: str) -> list[_Match]:
    """Return the requirements of a label selector.

    :raises ApiError: 400 when it cannot be parsed.
    """
    matches: list[_Match] = []
    position = 0
    while position < len(text):
        found = _REQUIREMENT.match(text, position)
        if found is None:
            raise bad_request(f"unable to parse requirement: found '{text[position:]}', expected: identifier")
        matches.append(_requirement(found))
        position = found.end()
    return matches


def _requirement(found: re.Match[str]) -> _Match:
    if found["absent"]:
        missing = found["akey"]
        return lambda labels: missing not in labels
    key = found["key"]
    if found["set"]:
        values = {value.strip() for value in found["values"].split(",")}
        for value in values:
            if _VALUE.fullmatch(value) is None:
                raise bad_request(f'unable to parse requirement: values: Invalid value: "{value}"')
        if found["set"] == "in":
            return lambda labels: key in labels and labels[key] in values
        # `notin` also selects objects without the label; so does `!=`.
        return lambda labels: labels.get(key) not in values
    operator, wanted = found["op"], found["value"]
    if operator is None:
        return lambda labels: key in labels
    if operator == "!=":
        return lambda labels: labels.get(key) != wanted
    if operator in ("<", ">"):
        if re.fullmatch(r"\d+", wanted or "") is None:
            raise bad_request(f'unable to parse requirement: values[0]: Invalid value: "{wanted}"')
        return lambda labels: _compares(labels.get(key, ""), operator, int(wanted))
    return lambda labels: labels.get(key) == wanted


def _compares(value: str, operator: str, limit: int) -> bool:
    # A label value that is not an integer never matches `>` or `<`.
    if re.fullmatch(r"-?\d+", value) is None:
        return False
    return int(value) > limit if operator == ">" else int(value) < limit


_FIELDS: dict[str, tuple[str, ...]] = {
    "/pods": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    "/nodes": ("spec.unschedulable",),
    "/namespaces": ("status.phase",),
    "/secrets": ("type",),
    "/services": ("spec.clusterIP", "spec.type"),
    "/events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
}
_METADATA = ("metadata.name", "metadata.namespace")


def _field(obj: Object, path: str) -> str:
    value: object = obj
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if path == "source" and isinstance(value, dict):
        return str(value.get("component", ""))
    return "" if value is None else str(value)


_FALSE_WHEN_UNSET = frozenset({"spec.unschedulable", "spec.hostNetwork"})
"""Fields that are booleans in Go: an unset one is selected as `false`."""


def parse_fields(text: str, resource: ServedResource) -> list[tuple[str, str, bool]]:
    """Return the terms of a field selector as (path, value, equal).

    :raises ApiError: 400 for a field that is not selectable.
    """
    known = (*_METADATA, *_FIELDS.get(resource.storage_key, ()), *resource.selectable)
    terms: list[tuple[str, str, bool]] = []
    for term in text.split(","):
        if not term:
            continue
        found = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", term)
        if found is None:
            raise bad_request(f"invalid selector: '{term}'; can't understand '{term}'")
        path, operator, value = found.groups()
        if path not in known:
            if resource.crd or resource.storage_key in _FIELDS:
                raise bad_request(f"field label not supported: {path}")
            names = ", ".join(f'"{name}"' for name in _METADATA)
            raise bad_request(f'"{path}" is not a known field selector: only {names}')
        terms.append((path, re.sub(r"\\(.)", r"\1", value), operator != "!="))
    return terms


def make_selector(resource: ServedResource, labels: str, fields: str) -> Selector | None:
    """Return one predicate for both selectors, or None when they select everything.

    :raises ApiError: 400 for an invalid selector.
    """
    matches = parse_labels(labels)
    terms = parse_fields(fields, resource)
    if not matches and not terms:
        return None

    def selects(obj: Object) -> bool:
        for path, value, equal in terms:
            found = _field(obj, path) or ("false" if path in _FALSE_WHEN_UNSET else "")
            if (found == value) is not equal:
                return False
        found_labels: dict[str, str] = obj["metadata"].get("labels") or {}
        return all(match(found_labels) for match in matches)

    return selects
