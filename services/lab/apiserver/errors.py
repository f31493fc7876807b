"""Refusals of the API as Kubernetes `Status` objects.

Every error a client sees is an `ApiError`; the server turns it into JSON in one place (`server.py`). Reasons,
codes and wording follow k8s.io/apimachinery/pkg/api/errors, because clients and people match on them.
No transport in here; next: `resources.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cause:
    """One field's share in an `Invalid` refusal; `reason` is a CauseType such as `FieldValueRequired`."""

    reason: str
    message: str
    field: str

    def to_object(self) -> Object:
        return {"reason": self.reason, "message": self.message, "field": self.field}


class ApiError(Exception):
    """A refusal that reaches the client as a `Status` of status `Failure`."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def to_status(self) -> Object:
        """The Status body, as the server sends it."""
        status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            status["details"] = self.details
        status["code"] = self.code
        return status


def success(details: Object) -> Object:
    """The Status that answers a finished deletion."""
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _qualified(plural: str, group: str) -> str:
    return f"{plural}.{group}" if group else plural


def _details(group: str, kind: str, name: str = "", causes: list[Cause] | None = None) -> Object:
    details: Object = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    if kind:
        details["kind"] = kind
    if causes:
        details["causes"] = [cause.to_object() for cause in causes]
    return details


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(group: str, plural: str, name: str, why: str, causes: list[Cause] | None = None) -> ApiError:
    message = f'{_qualified(plural, group)} "{name}" is forbidden: {why}'
    return ApiError(403, "Forbidden", message, _details(group, plural, name, causes))


def not_found(group: str, plural: str, name: str) -> ApiError:
    message = f'{_qualified(plural, group)} "{name}" not found'
    return ApiError(404, "NotFound", message, _details(group, plural, name))


def no_such_resource() -> ApiError:
    """An unknown path, API group, version or resource type."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def method_not_allowed() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})


def not_acceptable(accepted: list[str]) -> ApiError:
    message = f"only the following media types are accepted: {', '.join(accepted)}"
    return ApiError(406, "NotAcceptable", message)


def already_exists(group: str, plural: str, name: str) -> ApiError:
    message = f'{_qualified(plural, group)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(group, plural, name))


def conflict(group: str, plural: str, name: str, why: str = "") -> ApiError:
    """Stale resourceVersion (the default wording), or a failed precondition."""
    why = why or ("the object has been modified; please apply your changes to the latest version and try again")
    message = f'Operation cannot be fulfilled on {_qualified(plural, group)} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(group, plural, name))


def apply_conflict(conflicts: list[tuple[str, str]]) -> ApiError:
    """Server-side apply met fields (manager, path) of other managers and was not forced."""
    causes = [Cause("FieldManagerConflict", f'conflict with "{who}"', path) for who, path in conflicts]
    plural = "s" if len(conflicts) > 1 else ""
    by_manager: dict[str, list[str]] = {}
    for who, path in conflicts:
        by_manager.setdefault(who, []).append(path)
    told = "\n".join(
        f'conflict{"s" if len(paths) > 1 else ""} with "{who}":\n' + "\n".join(f"- {p}" for p in paths)
        if len(conflicts) > 1
        else f'conflict with "{who}": {paths[0]}'
        for who, paths in by_manager.items()
    )
    message = f"Apply failed with {len(conflicts)} conflict{plural}: {told}"
    return ApiError(409, "Conflict", message, {"causes": [cause.to_object() for cause in causes]})


def expired(message: str) -> ApiError:
    """The resourceVersion or continue token lies before what the server remembers."""
    return ApiError(410, "Expired", message)


def too_large(message: str) -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", message)


def unsupported_media_type(accepted: list[str]) -> ApiError:
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    return ApiError(415, "UnsupportedMediaType", message)


def invalid(group: str, kind: str, name: str, causes: list[Cause]) -> ApiError:
    """422 with one cause per field; `kind` is the Kind, not the resource name."""
    told = [f"{cause.field}: {cause.message}" for cause in causes]
    listed = told[0] if len(told) == 1 else "[" + ", ".join(told) + "]"
    message = f'{_qualified(kind, group)} "{name}" is invalid: {listed}'
    return ApiError(422, "Invalid", message, _details(group, kind, name, causes))


def unprocessable() -> ApiError:
    """A JSON patch that cannot be applied (a failed `test` too).

    The API server of Kubernetes drops the patch library's own words on the way to the client
    (apimachinery `NewGenericServerResponse` with `isUnexpectedResponse=false`), so the message is always this.
    """
    return ApiError(422, "Invalid", "the server rejected our request due to an error in our request", {})


def internal_error(message: str) -> ApiError:
    details = {"causes": [{"message": message}]}
    return ApiError(500, "InternalError", f"Internal error occurred: {message}", details)


def not_implemented(message: str) -> ApiError:
    return ApiError(501, "NotImplemented", message)


def unavailable(message: str) -> ApiError:
    return ApiError(503, "ServiceUnavailable", message)


def timeout(message: str) -> ApiError:
    return ApiError(504, "Timeout", message, {})


def too_large_resource_version(wanted: int, current: int) -> ApiError:
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Too large resource version: {wanted}, current: {current}"
    return ApiError(504, "Timeout", message, details)
