"""Errors of an API server and of what may answer in its place: without a reason, without a Status, without a body."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.objects import Status
from services.common.kube import errors
from services.common.kube.errors import KubeError, classify, of_status

WITHOUT_REASON = msgspec.json.encode({"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}})


@pytest.mark.parametrize("body", [WITHOUT_REASON, b"<html>refused", b""], ids=["no reason", "no JSON", "no body"])
@pytest.mark.parametrize(
    ("status", "kind", "reason", "transient"),
    [
        (302, errors.BadApiResponse, "BadApiResponse", True),
        (400, errors.BadRequest, "BadRequest", False),
        (401, errors.Unauthorized, "Unauthorized", True),
        (403, errors.Forbidden, "Forbidden", True),
        (404, errors.NotFound, "NotFound", True),
        (405, errors.BadRequest, "MethodNotAllowed", False),
        (408, errors.Unavailable, "Timeout", True),
        (409, errors.Conflict, "Conflict", True),
        (410, errors.Gone, "Gone", True),
        (413, errors.ObjectTooLarge, "RequestEntityTooLarge", False),
        (415, errors.BadRequest, "UnsupportedMediaType", False),
        (418, errors.BadRequest, "BadRequest", False),
        (422, errors.Invalid, "Invalid", False),
        (429, errors.Unavailable, "TooManyRequests", True),
        (500, errors.Unavailable, "InternalError", True),
        (502, errors.Unavailable, "Unavailable", True),
        (503, errors.Unavailable, "ServiceUnavailable", True),
    ],
)
def test_the_status_decides_without_a_reason(
    body: bytes, status: int, kind: type[KubeError], reason: str, transient: bool
) -> None:
    error = classify(status, body, {})
    assert (type(error), error.status, error.reason, error.transient) == (kind, status, reason, transient)
    assert error.message == ("<html>refused" if body == b"<html>refused" else f"HTTP status {status}")


@pytest.mark.parametrize(
    ("event", "kind", "retry_after"),
    [
        ({"code": 410, "reason": "Expired", "message": "too old resource version: 1 (9)"}, errors.Gone, None),
        ({"code": 410, "message": "The resourceVersion for the provided watch is too old."}, errors.Gone, None),
        ({"reason": "Expired"}, errors.Gone, None),
        ({"code": 429, "details": {"retryAfterSeconds": 3}}, errors.Unavailable, 3),
        ({"code": 500, "reason": "InternalError"}, errors.Unavailable, None),
        ({"code": 403}, errors.Forbidden, None),
        ({}, errors.Unavailable, None),
    ],
)
def test_error_events_of_watches_are_classified(
    event: dict[str, Any], kind: type[KubeError], retry_after: float | None
) -> None:
    error = of_status(msgspec.convert({"kind": "Status", "status": "Failure"} | event, Status))
    assert (type(error), error.retry_after) == (kind, retry_after)


@pytest.mark.parametrize(
    ("header", "details", "expected"),
    [
        ("1", {}, 1.0),
        ("7", {"retryAfterSeconds": 3}, 3.0),
        # Zero would replace the backoff by an endless loop.
        ("0", {"retryAfterSeconds": 0}, None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", {}, None),
        ("-1", {}, None),
        ("²", {}, None),
        (None, {}, None),
    ],
)
def test_the_time_to_wait_is_read(header: str | None, details: dict[str, int], expected: float | None) -> None:
    headers = {} if header is None else {"Retry-After": header}
    # The filter of priority and fairness answers with text.
    text = b"Too many requests, please try again later.\n"
    body = msgspec.json.encode({"kind": "Status", "details": details}) if details else text
    error = classify(429, body, headers)
    assert (type(error), error.reason, error.retry_after) == (errors.Unavailable, "TooManyRequests", expected)


GENERIC = "the server rejected our request due to an error in our request"
DENIED = 'admission webhook "w.example.com" denied the request: networks are frozen during the test'


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"reason": "Invalid", "message": GENERIC, "details": {}}, errors.PatchTestFailed),
        ({"message": GENERIC}, errors.PatchTestFailed),
        ({"message": "testing value /spec/networks failed: test failed"}, errors.PatchTestFailed),
        # Neither is about a `test` of the patch: the request would be repeated for ever.
        ({"message": DENIED}, errors.Invalid),
        ({"message": DENIED, "details": {"kind": "vmi", "causes": [{"message": DENIED}]}}, errors.Invalid),
        ({"message": "", "details": {"causes": [{"field": "spec", "message": "test failed"}]}}, errors.Invalid),
        (b"<html>422 Unprocessable Entity", errors.Invalid),
    ],
)
def test_a_guarded_patch_that_is_refused_is_no_failed_test(answer: Any, kind: type[KubeError]) -> None:
    body = answer if isinstance(answer, bytes) else msgspec.json.encode({"kind": "Status"} | answer)
    assert type(classify(422, body, {}, guarded=True)) is kind
