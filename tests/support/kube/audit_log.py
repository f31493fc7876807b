"""The audit log of a kube-apiserver: who requested what, the answer, and the rights that were used."""

from pathlib import Path
from typing import Any

import msgspec

Right = tuple[str, str, str]
"""API group, resource with its subresource, and verb."""


class AuditedObject(msgspec.Struct, frozen=True, rename="camel"):
    """What a request was for."""

    api_group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def full_resource(self) -> str:
        """The resource as rules name it, with its subresource."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class AuditedUser(msgspec.Struct, frozen=True):
    """Who sent a request."""

    username: str = ""


class AuditedStatus(msgspec.Struct, frozen=True):
    """How a request was answered."""

    code: int = 0


class AuditedRequest(msgspec.Struct, frozen=True, rename="camel"):
    """One line of the audit log: a request and its answer."""

    verb: str
    user: AuditedUser
    request_uri: str = msgspec.field(name="requestURI", default="")
    object_ref: AuditedObject | None = None
    response_status: AuditedStatus = AuditedStatus()

    @property
    def permission(self) -> tuple[str, str, str, str]:
        """What the user needs to be allowed; the path if it is no request for objects."""
        target = self.object_ref
        if target is None:
            return self.user.username, self.verb, self.request_uri, ""
        return self.user.username, self.verb, f"{target.api_group}/{target.full_resource}", target.namespace


def read_audit_log(path: Path) -> list[AuditedRequest]:
    """Return all requests that were answered until now.

    A line without its end is still being written, and its request is not answered.
    """
    with path.open("rb") as log:
        return [msgspec.json.decode(line, type=AuditedRequest) for line in log if line.endswith(b"\n")]


def forbidden_requests(requests: list[AuditedRequest]) -> list[str]:
    """Return verb and path of the requests that were not allowed."""
    return [f"{one.verb} {one.request_uri}" for one in requests if one.response_status.code in (401, 403)]


def never_allowed(requests: list[AuditedRequest]) -> list[AuditedRequest]:
    """Return the requests that were forbidden, except those that the same user could send at another time.

    An API server that has just started forbids everything until its caches of roles and bindings are filled.
    """
    allowed = {one.permission for one in requests if not forbidden_requests([one])}
    return [one for one in requests if one.permission not in allowed]


def used_rights(requests: list[AuditedRequest]) -> set[Right]:
    """Return what requests need of an account's rules."""
    targets = [(item.object_ref, item.verb) for item in requests]
    return {(item.api_group, item.full_resource, verb) for item, verb in targets if item is not None and item.resource}


def granted_rights(objects: list[dict[str, Any]], account: dict[str, str]) -> set[Right]:
    """Return what the bindings and roles among some objects allow to an account.

    :param account: the subject as bindings name it.
    """
    rules = {(item["kind"], item["metadata"]["name"]): item.get("rules", []) for item in objects}
    return {
        (group, resource, verb)
        for binding in objects
        if account in binding.get("subjects", [])
        for rule in rules[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        for group in rule.get("apiGroups", [])
        for resource in rule.get("resources", [])
        for verb in rule["verbs"]
    }
