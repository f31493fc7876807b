"""Reasons of errors by HTTP status, as the Kubernetes API names them.

Next: :class:`schemas.kubernetes.objects.Status`, which has such a reason.
"""

STATUS_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    408: "Timeout",
    409: "Conflict",
    410: "Gone",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
"""The usual reason for an HTTP status (``k8s.io/apimachinery``, ``StatusReason``)."""
