"""What a failed request to the Kubernetes API means for the caller; the answer's body says more than its status does.

::

    KubeError
      BadRequest, Unauthorized, Forbidden, NotFound, ObjectTooLarge
      Conflict            the object has changed since it was read
      AlreadyExists       the name is taken
      Gone                a resource version is too old: list again
      Invalid             refused by the object's schema or rules
        PatchTestFailed   a JSON patch whose ``test`` (or path) no longer fits the object: read again
      Unavailable         no answer, or one that says "later": try again
        BadApiAnswer         an answer that is not the API's
      KubeconfigError     no usable configuration; no request was made

The reasons are those of ``k8s.io/apimachinery/pkg/apis/meta/v1`` (``StatusReason``).
"""

import re
from collections.abc import Mapping
from typing import ClassVar

import msgspec

from schemas.kube import Status

_status = msgspec.json.Decoder(Status)
_MAX_MESSAGE = 1024
_TEST_FAILED = re.compile(r"\btest(?:ing)?\b", re.IGNORECASE)


class KubeError(Exception):
    """A request that failed.

    :ivar status: HTTP status, 0 when there was no answer.
    :ivar reason: of the ``Status``, CamelCase. :ivar message: for people.
    :ivar status_body: the decoded ``Status``, where the answer was one.
    :ivar retry_after: seconds, where the answer named them.
    :cvar transient: the same intent may succeed later, after a fresh look; ``False`` where the request itself is wrong.
    """

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
        self.reason = reason or type(self).__name__
        self.message = message
        self.status_body = status_body
        self.retry_after = retry_after


class BadRequest(KubeError):
    """400."""

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
    """No answer (refused, reset, deadline), or 429 or 5xx: later it may go."""


class BadApiAnswer(Unavailable):
    """An answer that is not the API's: no JSON, or not of the expected shape."""


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
    409: Conflict,
    410: Gone,
    413: ObjectTooLarge,
    422: Invalid,
    429: Unavailable,
}


def classify(status: int, body: bytes, headers: Mapping[str, str], *, guarded: bool = False) -> KubeError:
    """The error behind an answer of 400 or more.

    :param guarded: the request was a JSON patch with ``test`` operations.
    """
    decoded = _decode(body)
    reason = (decoded.reason if decoded else None) or ""
    kind = _BY_REASON.get(reason) if status in (409, 410, 413, 422) else None
    if kind is None:
        kind = _BY_STATUS.get(status) or (Unavailable if status >= 500 else KubeError)
    if kind is Invalid and guarded and _is_patch_failure(decoded):
        kind = PatchTestFailed
    message = (decoded.message if decoded else None) or body[:_MAX_MESSAGE].decode(errors="replace").strip()
    return kind(
        message or f"HTTP status {status}",
        status=status,
        reason=reason,
        status_body=decoded,
        retry_after=_retry_after(decoded, headers),
    )


def of_status(status: Status) -> KubeError:
    """The error behind a ``Status`` object that came inside a watch."""
    code = status.code or 500
    kind = _BY_REASON.get(status.reason or "") or _BY_STATUS.get(code) or (Unavailable if code >= 500 else KubeError)
    retry_after = status.details.retry_after_seconds if status.details else None
    return kind(
        status.message or status.reason or f"status {code}",
        status=code,
        reason=status.reason or "",
        status_body=status,
        retry_after=retry_after,
    )


def _is_patch_failure(status: Status | None) -> bool:
    # kube-apiserver answers a failed ``test`` with a generic 422 that names no object and no cause
    # (apiserver/pkg/endpoints/handlers/patch.go, NewGenericServerResponse); an object that was patched and then found
    # invalid is named, with a cause for each field.
    if status is None:
        return True
    details = status.details
    if details is None or not details.causes:
        return details is None or not details.kind or bool(_TEST_FAILED.search(status.message or ""))
    return any(not cause.field and _TEST_FAILED.search(cause.message or "") for cause in details.causes)


def _retry_after(status: Status | None, headers: Mapping[str, str]) -> float | None:
    if status and status.details and status.details.retry_after_seconds:
        return float(status.details.retry_after_seconds)
    text = headers.get("Retry-After", "")
    return float(text) if text.isdigit() else None


def _decode(body: bytes) -> Status | None:
    try:
        decoded = _status.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return decoded if decoded.kind == "Status" else None
