"""Parse a request's path, its options, and the representation that the client accepts.

Paths are parsed like k8s.io/apiserver's RequestInfo, options like apimachinery converts query values (any value but "",
"0" and "false" is true). This module does not use the store; next: `server.py`, which routes by the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from multidict import MultiDict, MultiMapping

from lab.apiserver.errors import bad_request, not_acceptable


@dataclass(frozen=True, slots=True)
class ResourceTarget:
    """A resource path: `/apis/GROUP/VERSION[/namespaces/NS]/PLURAL[/NAME[/SUBRESOURCE]]`."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def parse_target(path: str) -> ResourceTarget | None:
    """Parse a resource path; return None for any other path, such as discovery and health."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        # `/namespaces/NAME/status` is a subresource of the namespace itself, not a resource in the namespace.
        inside = len(rest) > 2 and rest[2] not in ("status", "finalize")
        if inside:
            namespace, rest = rest[1], rest[2:]
    if len(rest) > 3 or not all(rest):
        return None
    name = rest[1] if len(rest) > 1 else ""
    return ResourceTarget(group, version, rest[0], namespace, name, rest[2] if len(rest) > 2 else "")


class Options:
    """Query options, parsed on demand."""

    def __init__(self, query: MultiMapping[str]) -> None:
        self._query = query

    def text(self, name: str) -> str:
        """Return the value of an option, "" when unset."""
        return self._query.get(name, "")

    def flag(self, name: str) -> bool:
        """Return the value of a boolean option."""
        value = self._query.get(name)
        return value is not None and value.lower() not in ("", "0", "false")

    def number(self, name: str) -> int | None:
        """Return the value of an integer option, or None when unset.

        :raises ApiError: 400 when it is not an integer.
        """
        value = self._query.get(name, "")
        if not value:
            return None
        try:
            return int(value)
        except ValueError:
            raise bad_request(f'strconv.ParseInt: parsing "{value}": invalid syntax') from None

    @property
    def dry_run(self) -> bool:
        """Return whether the request is a dry run."""
        return self._query.get("dryRun", "") == "All"

    def check(self) -> None:
        """Raise `ApiError` 400 for unknown values of write options."""
        value = self._query.get("dryRun", "")
        if value not in ("", "All"):
            raise bad_request(f'invalid dryRun value "{value}": supported values: "All"')
        value = self._query.get("fieldValidation", "")
        if value not in ("", "Ignore", "Warn", "Strict"):
            raise bad_request(f'invalid fieldValidation "{value}": supported values: Ignore, Warn, Strict')

    @property
    def field_validation(self) -> str:
        """Return `Ignore`, `Warn` or `Strict`; the default has been `Warn` since Kubernetes 1.27."""
        return self._query.get("fieldValidation", "") or "Warn"

    @property
    def manager(self) -> str:
        """Return the field manager, "" when unset."""
        return self._query.get("fieldManager", "")

    def resource_version(self) -> int | None:
        """Return the requested resourceVersion, or None when unset.

        :raises ApiError: 400 when it is not a number.
        """
        value = self._query.get("resourceVersion", "")
        if not value:
            return None
        if not value.isdigit():
            raise bad_request(f'Invalid value: "{value}": strconv.ParseUint: parsing "{value}": invalid syntax')
        return int(value)


NO_OPTIONS = Options(MultiDict())
"""The options of requests that the server makes to itself."""


class ResponseForm(NamedTuple):
    """The representation of a response.

    :ivar as_: "", `Table`, `PartialObjectMetadata`, … of API group `group`.
    :ivar yaml: YAML instead of JSON.
    """

    as_: str = ""
    group: str = ""
    version: str = ""
    yaml: bool = False


PLAIN_FORM = ResponseForm()
_KNOWN = {
    ("Table", "meta.k8s.io"),
    ("PartialObjectMetadata", "meta.k8s.io"),
    ("PartialObjectMetadataList", "meta.k8s.io"),
    ("APIGroupDiscoveryList", "apidiscovery.k8s.io"),
}


def accepted_form(accept: str) -> ResponseForm:
    """Return the form of the first media type in an Accept header that this server supports.

    :raises ApiError: 406 when there is none.
    """
    if not accept or accept in ("*/*", "application/json"):
        return PLAIN_FORM
    for choice in accept.split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        values = dict(part.split("=", 1) for part in parameters if "=" in part)
        if media in ("application/yaml", "text/yaml"):
            return ResponseForm(yaml=True)
        # Browsers and plain HTTP clients accept text; they get JSON.
        if media not in ("application/json", "*/*", "application/*", "text/html", "text/plain"):
            continue
        as_ = values.get("as", "")
        if not as_:
            return PLAIN_FORM
        group, version = values.get("g", ""), values.get("v", "")
        if (as_, group) in _KNOWN and version in ("v1", "v1beta1", "v2", "v2beta1"):
            return ResponseForm(as_, group, version)
    raise not_acceptable(["application/json", "application/yaml"])
