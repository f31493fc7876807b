"""Errors of the API, as Kubernetes `Status` objects.

Every error that a client sees is an `ApiError`; `endpoints/server.py` encodes it in one place. Reasons, codes and
messages follow k8s.io/apimachinery/pkg/api/errors byte for byte, because clients match on them. This module knows no
transport. Next: `registry/resources.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field error of an `Invalid` status.

    :ivar reason: a CauseType such as `FieldValueRequired`.
    """

    reason: str
    message: str
    field: str

    def to_object(self) -> Object:
        """Return the StatusCause object."""
        return {"reason": self.reason, "message": self.message, "field": self.field}


class ApiError(Exception):
    """An error that the client receives as a `Status` with status `Failure`.

    :param metadata: the list metadata of the Status.
    """

    def __init__(
        self, code: int, reason: str, message: str, details: Object | None = None, metadata: Object | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.metadata = metadata or {}

    def to_status(self) -> Object:
        """Return the Status object."""
        status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            status["details"] = self.details
        status["code"] = self.code
        return status


def success_status(details: Object) -> Object:
    """Return the Status of a completed deletion."""
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _qualified(plural: str, group: str) -> str:
    return f"{plural}.{group}" if group else plural


def _details(group: str, kind: str, name: str = "", causes: list[FieldError] | None = None) -> Object:
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
    """Return the error for a malformed request."""
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    """Return the error for a request without valid credentials."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(group: str, plural: str, name: str, reason: str, causes: list[FieldError] | None = None) -> ApiError:
    """Return the error for an action that is not allowed on the object."""
    message = f'{_qualified(plural, group)} "{name}" is forbidden: {reason}'
    return ApiError(403, "Forbidden", message, _details(group, plural, name, causes))


def not_found(group: str, plural: str, name: str) -> ApiError:
    """Return the error for an object that does not exist."""
    message = f'{_qualified(plural, group)} "{name}" not found'
    return ApiError(404, "NotFound", message, _details(group, plural, name))


def no_such_resource() -> ApiError:
    """Return the error for an unknown path, API group, version or resource type."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def method_not_allowed() -> ApiError:
    """Return the error for a verb that the resource does not support."""
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})


def not_acceptable(accepted: list[str]) -> ApiError:
    """Return the error for an Accept header without a supported media type."""
    message = f"only the following media types are accepted: {', '.join(accepted)}"
    return ApiError(406, "NotAcceptable", message)


def already_exists(group: str, plural: str, name: str) -> ApiError:
    """Return the error for the creation of an object that exists."""
    message = f'{_qualified(plural, group)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(group, plural, name))


def conflict(group: str, plural: str, name: str, reason: str = "") -> ApiError:
    """Return the error for a stale resourceVersion (the default message), or a failed precondition."""
    reason = reason or ("the object has been modified; please apply your changes to the latest version and try again")
    message = f'Operation cannot be fulfilled on {_qualified(plural, group)} "{name}": {reason}'
    return ApiError(409, "Conflict", message, _details(group, plural, name))


def apply_conflict(conflicts: list[tuple[str, str]]) -> ApiError:
    """Return the error of a server-side apply that changes fields of other managers and is not forced.

    :param conflicts: manager and path of each field.
    """
    causes = [FieldError("FieldManagerConflict", f'conflict with "{manager}"', path) for manager, path in conflicts]
    plural = "s" if len(conflicts) > 1 else ""
    by_manager: dict[str, list[str]] = {}
    for manager, path in conflicts:
        by_manager.setdefault(manager, []).append(path)
    details_text = "\n".join(
        f'conflict{"s" if len(paths) > 1 else ""} with "{manager}":\n' + "\n".join(f"- {p}" for p in paths)
        if len(conflicts) > 1
        else f'conflict with "{manager}": {paths[0]}'
        for manager, paths in by_manager.items()
    )
    message = f"Apply failed with {len(conflicts)} conflict{plural}: {details_text}"
    return ApiError(409, "Conflict", message, {"causes": [cause.to_object() for cause in causes]})


def expired(message: str) -> ApiError:
    """Return the error for a resourceVersion that the server has forgotten."""
    return ApiError(410, "Expired", message)


def expired_token(inconsistent: str) -> ApiError:
    """Return the error for a continue token whose resourceVersion the server has forgotten.

    :param inconsistent: token with which the client may read the other objects as they are now.
    """
    message = (
        "The provided continue parameter is too old to display a consistent list result. You can start a new list "
        "without the continue parameter, or use the continue token in this response to retrieve the remainder of the "
        "results. Continuing with the provided token results in an inconsistent list - objects that were created, "
        "modified, or deleted between the time the first chunk was returned and now may show up in the list."
    )
    return ApiError(410, "Expired", message, metadata={"continue": inconsistent})


def too_large(message: str) -> ApiError:
    """Return the error for a request that exceeds a size limit."""
    return ApiError(413, "RequestEntityTooLarge", message)


def unsupported_media_type(accepted: list[str]) -> ApiError:
    """Return the error for a body of an unsupported media type."""
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    return ApiError(415, "UnsupportedMediaType", message)


def unsupported_patch_type() -> ApiError:
    """Return the error for a patch of an unknown media type to a built-in kind."""
    return ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})


def invalid(group: str, kind: str, name: str, causes: list[FieldError]) -> ApiError:
    """Return the error for invalid fields; `kind` is the Kind, not the resource name."""
    details_text = [f"{cause.field}: {cause.message}" for cause in causes]
    listed = details_text[0] if len(details_text) == 1 else "[" + ", ".join(details_text) + "]"
    message = f'{_qualified(kind, group)} "{name}" is invalid: {listed}'
    return ApiError(422, "Invalid", message, _details(group, kind, name, causes))


def unprocessable() -> ApiError:
    """Return the error for a JSON patch that cannot be applied, including a failed `test`.

    Kubernetes' API server does not pass the patch library's message on to the client (apimachinery
    `NewGenericServerResponse` with `isUnexpectedResponse=false`), so the message is always this one.
    """
    return ApiError(422, "Invalid", "the server rejected our request due to an error in our request", {})


def internal_error(message: str) -> ApiError:
    """Return the error for an unexpected failure of the server."""
    details = {"causes": [{"message": message}]}
    return ApiError(500, "InternalError", f"Internal error occurred: {message}", details)


def not_implemented(message: str) -> ApiError:
    """Return the error for a request that this server does not implement."""
    return ApiError(501, "NotImplemented", message)


def unavailable(message: str) -> ApiError:
    """Return the error for an aggregated server that is unavailable."""
    return ApiError(503, "ServiceUnavailable", message)


def timeout(message: str) -> ApiError:
    """Return the error for a request that exceeded its time limit."""
    return ApiError(504, "Timeout", message, {})


def too_large_resource_version(wanted: int, current: int) -> ApiError:
    """Return the error for a resourceVersion in the future."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Too large resource version: {wanted}, current: {current}"
    return ApiError(504, "Timeout", message, details)
