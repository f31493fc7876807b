"""What a request asks for: its path, its options, and the representation the client accepts.

Paths are read as k8s.io/apiserver's RequestInfo does, options as apimachinery converts query values
(any value but "", "0" and "false" is true). Touches no store; next: `server.py` routes on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from multidict import MultiDict, MultiMapping

from services.lab.apiserver.errors import bad_request, not_acceptable


@dataclass(frozen=True, slots=True)
class Target:
    """A resource path: `/apis/GROUP/VERSION[/namespaces/NS]/PLURAL[/NAME[/SUBRESOURCE]]`."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def parse_target(path: str) -> Target | None:
    """Read a resource path; None when it is not one (discovery, health, nonsense)."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        inside = len(rest) > 2 and rest[2] not in ("status", "finalize")
        if inside:
            namespace, rest = rest[1], rest[2:]
    if len(rest) > 3 or not all(rest):
        return None
    name = rest[1] if len(rest) > 1 else ""
    return Target(group, version, rest[0], namespace, name, rest[2] if len(rest) > 2 else "")


class Options:
    """Query options, read on demand."""

    def __init__(self, query: MultiMapping[str]) -> None:
        self._query = query

    def text(self, name: str) -> str:
        return self._query.get(name, "")

    def flag(self, name: str) -> bool:
        value = self._query.get(name)
        return value is not None and value.lower() not in ("", "0", "false")

    def number(self, name: str) -> int | None:
        """A whole number; raises `ApiError` 400 for anything else."""
        value = self._query.get(name, "")
        if not value:
            return None
        try:
            return int(value)
        except ValueError:
            raise bad_request(f'strconv.ParseInt: parsing "{value}": invalid syntax') from None

    @property
    def dry_run(self) -> bool:
        return self._query.get("dryRun", "") == "All"

    def check(self) -> None:
        """Raise `ApiError` 400 for values of write options that do not exist."""
        value = self._query.get("dryRun", "")
        if value not in ("", "All"):
            raise bad_request(f'invalid dryRun value "{value}": supported values: "All"')
        value = self._query.get("fieldValidation", "")
        if value not in ("", "Ignore", "Warn", "Strict"):
            raise bad_request(f'invalid fieldValidation "{value}": supported values: Ignore, Warn, Strict')

    @property
    def field_validation(self) -> str:
        """`Ignore`, `Warn` or `Strict`; servers since 1.27 warn when nothing is said."""
        return self._query.get("fieldValidation", "") or "Warn"

    @property
    def manager(self) -> str:
        return self._query.get("fieldManager", "")

    def resource_version(self) -> int | None:
        """The asked resourceVersion; None when unset. Raises `ApiError` 400 when it is no number."""
        value = self._query.get("resourceVersion", "")
        if not value:
            return None
        if not value.isdigit():
            raise bad_request(f'Invalid value: "{value}": strconv.ParseUint: parsing "{value}": invalid syntax')
        return int(value)


NO_OPTIONS = Options(MultiDict())
"""The options of requests that the server makes to itself."""


class Form(NamedTuple):
    """How to answer: `as_` is "", "Table", "PartialObjectMetadata", … of group `group`; yaml or JSON."""

    as_: str = ""
    group: str = ""
    version: str = ""
    yaml: bool = False


PLAIN = Form()
_KNOWN = {
    ("Table", "meta.k8s.io"),
    ("PartialObjectMetadata", "meta.k8s.io"),
    ("PartialObjectMetadataList", "meta.k8s.io"),
    ("APIGroupDiscoveryList", "apidiscovery.k8s.io"),
}


def accepted_form(accept: str) -> Form:
    """The first media type of an Accept header that this server can make; 406 when there is none."""
    if not accept or accept in ("*/*", "application/json"):
        return PLAIN
    for choice in accept.split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        values = dict(part.split("=", 1) for part in parameters if "=" in part)
        if media in ("application/yaml", "text/yaml"):
            return Form(yaml=True)
        if media not in ("application/json", "*/*", "application/*", "text/html", "text/plain"):
            continue
        as_ = values.get("as", "")
        if not as_:
            return PLAIN
        group, version = values.get("g", ""), values.get("v", "")
        if (as_, group) in _KNOWN and version in ("v1", "v1beta1", "v2", "v2beta1"):
            return Form(as_, group, version)
    raise not_acceptable(["application/json", "application/yaml"])
