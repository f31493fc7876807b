"""Errors of requests to the Kubernetes API, classified by what the caller can do about them.

::

    KubeError
      BadRequest          400, and what no other class describes: 405, 415
      Unauthorized, Forbidden, NotFound, ObjectTooLarge
      Conflict            the object has changed since it was read
      AlreadyExists       the name is taken
      Gone                a resource version is too old: list again
      Invalid             refused by the object's schema or rules
        PatchTestFailed   a ``test`` (or path) of a JSON patch no longer fits the object: read it again
      Unavailable         no response, or one that asks for a later attempt
        BadApiResponse    a response that is not the API's
          ResponseTooLarge  more than is read of one response
      KubeconfigError     no usable configuration; no request was sent

The reasons are those of ``k8s.io/apimachinery/pkg/apis/meta/v1`` (``StatusReason``). For 409, 410, 413 and 422 the
reason of the ``Status`` in the body decides, because these statuses have several meanings. An answer may lack the
reason, the ``Status`` or the body: not every error of kube-apiserver has a reason, its limits on requests answer with
text, and a proxy may answer in its place. The HTTP status decides then.
"""

import re
from collections.abc import Mapping
from typing import ClassVar

from schemas.inputs import Edge, InputDecoder, RejectedInput
from schemas.kubernetes.objects import Status, StatusDetails
from schemas.kubernetes.status_reasons import STATUS_REASONS

_status = InputDecoder(Edge.KUBE, Status)
_MAX_MESSAGE = 1024
"""Bytes of a body that is no ``Status``, such as a proxy's error page."""
_TEST_FAILED = re.compile(r"\btest failed\b|\btesting value\b", re.IGNORECASE)
"""The words of ``evanphx/json-patch``."""
_DENIED = re.compile(r"\bdenied (?:the )?request\b")
"""The words of admission webhooks' and policies' refusals, which may be as bare as those of a patch."""


class KubeError(Exception):
    """A request that failed.

    :ivar status: HTTP status; 0 if there was no response.
    :ivar reason: reason of the ``Status``, CamelCase; the usual one for the HTTP status if there was none; the class
        name without either.
    :ivar message: text for users.
    :ivar status_body: the decoded ``Status``; ``None`` if the response was none.
    :ivar retry_after: seconds that the response asks to wait; ``None`` if it names none.
    :ivar conflict: whether a guarded request failed because another writer was first.
    :cvar transient: whether a new attempt, after reading the object again, may succeed; ``False`` if the request itself
        is wrong.
    """

    # ADR 6: this includes 403 and 404, whose cause others may remove.
    transient: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        status_body: Status | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason or STATUS_REASONS.get(status) or type(self).__name__
        self.message = message
        self.status_body = status_body
        self.retry_after = retry_after
        self.conflict = False


class BadRequest(KubeError):
    """400, or another status that says that the request itself is wrong."""

    transient = False


class Unauthorized(KubeError):
    """401."""


class Forbidden(KubeError):
    """403."""


class NotFound(KubeError):
    """404."""


class Conflict(KubeError):
    """409: the object has changed since it was read."""


class AlreadyExists(KubeError):
    """409: the name is taken."""


class Gone(KubeError):
    """410: the resource version or the continue token is too old."""


class ObjectTooLarge(KubeError):
    """413."""

    transient = False


class Invalid(KubeError):
    """422: refused by the object's schema or rules, or a patch that cannot be applied."""

    transient = False


class PatchTestFailed(Invalid):
    """422: a JSON patch whose ``test`` no longer holds."""

    transient = True


class Unavailable(KubeError):
    """No response (refused, reset, deadline), or 408, 429 or 5xx."""


class BadApiResponse(Unavailable):
    """A response that is not the API's: no JSON, or not of the expected shape."""


class ResponseTooLarge(BadApiResponse):
    """A response that has more bytes than are read of one."""


class KubeconfigError(KubeError):
    """There is no usable configuration."""


_BY_REASON: dict[str, type[KubeError]] = {
    "AlreadyExists": AlreadyExists,
    "Conflict": Conflict,
    "Expired": Gone,
    "Gone": Gone,
    "Invalid": Invalid,
    "RequestEntityTooLarge": ObjectTooLarge,
}
_BY_STATUS: dict[int, type[KubeError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    408: Unavailable,
    409: Conflict,
    410: Gone,
    413: ObjectTooLarge,
    422: Invalid,
    429: Unavailable,
}


def classify(status: int, body: bytes, headers: Mapping[str, str], *, guarded: bool = False) -> KubeError:
    """Return the error for a response with an HTTP status of 300 or more.

    :param guarded: whether the request was a JSON patch with ``test`` operations.
    """
    decoded = _decode(body)
    reason = (decoded.reason if decoded else None) or ""
    kind = (_BY_REASON.get(reason) if status in (409, 410, 413, 422) else None) or _kind_of_status(status)
    if kind is Invalid and guarded and decoded is not None and _is_patch_failure(decoded):
        kind = PatchTestFailed
    message = decoded.message if decoded else body[:_MAX_MESSAGE].decode(errors="replace").strip()
    return kind(
        message or f"HTTP status {status}",
        status=status,
        reason=reason,
        status_body=decoded,
        retry_after=_retry_after(decoded, headers),
    )


def of_status(status: Status) -> KubeError:
    """Return the error for a ``Status`` object received in a watch."""
    code = status.code or 500
    kind = _BY_REASON.get(status.reason or "") or _kind_of_status(code)
    return kind(
        status.message or status.reason or f"status {code}",
        status=code,
        reason=status.reason or "",
        status_body=status,
        retry_after=_retry_after(status, {}),
    )


def _kind_of_status(status: int) -> type[KubeError]:
    if status < 400:
        # The API server sends no redirects: this is a proxy's, such as one to a page for signing in.
        return BadApiResponse
    return _BY_STATUS.get(status) or (Unavailable if status >= 500 else BadRequest)


def _is_patch_failure(status: Status) -> bool:
    # kube-apiserver responds to a failed ``test`` with a generic 422 that names neither object nor cause
    # (apiserver/pkg/endpoints/handlers/patch.go, NewGenericServerResponse). If the patched object is invalid, the 422
    # names the object, with a cause per field.
    message, details = status.message or "", status.details or StatusDetails()
    if _DENIED.search(message):
        return False
    causes = details.causes or []
    texts = [message, *(cause.message or "" for cause in causes if not cause.field)]
    return not (causes or details.kind) or any(_TEST_FAILED.search(text) for text in texts)


def _retry_after(status: Status | None, headers: Mapping[str, str]) -> float | None:
    if status and status.details and status.details.retry_after_seconds:
        return float(status.details.retry_after_seconds)
    text = headers.get("Retry-After", "")
    # Not 0, which would take the place of the caller's backoff.
    return float(text) or None if text.isascii() and text.isdigit() else None


def _decode(body: bytes) -> Status | None:
    try:
        decoded = _status.decode(body)
    except RejectedInput:
        return None
    return decoded if decoded.kind == "Status" else None
