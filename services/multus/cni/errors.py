"""The exception that becomes a CNI error document, on the socket and on the shim's standard output.

Errors of Kubernetes, netlink and CRI have their own types. The code that awaits such a call converts them where they
fail a CNI call. Next: :mod:`services.multus.cni.call`.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from schemas import cni
from services.common.telemetry.redact import redact_configuration

MAX_TEXT: Final = 4096
"""Characters of what a plugin says."""


class CniError(Exception):
    """A CNI call failed.

    :ivar code: the CNI specification's code (:class:`schemas.cni.CniErrorCode`), or a plugin's own (100 and above).
    :ivar msg: the message, one line.
    :ivar details: further text; may be ``None``.
    """

    def __init__(self, code: int, msg: str, details: str | None = None) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details or None

    def with_prefix(self, prefix: str) -> "CniError":
        """Return the same error with context in front of its message; the code stays."""
        return CniError(self.code, f"{prefix}: {self.msg}", self.details)

    def encode(self) -> bytes:
        """Return the CNI error document, the body of an error response."""
        return msgspec.json.encode(cni.CniErrorDocument(code=self.code, msg=self.msg, details=self.details))


def as_cni_error(error: Exception) -> CniError:
    """Return an error as a :class:`CniError`: any other is a defect of this daemon, with code 999."""
    return error if isinstance(error, CniError) else CniError(cni.CniErrorCode.INTERNAL, f"internal error: {error!r}")


def combine_errors(failures: Sequence[CniError]) -> CniError:
    """Return one error for several, with the code and details of the first."""
    kind = DeadlineError if any(isinstance(error, DeadlineError) for error in failures) else CniError
    return kind(failures[0].code, " / ".join(error.msg for error in failures), failures[0].details)


class NotStartedError(CniError):
    """No plugin ran, so nothing was created and nothing needs to be deleted."""


class DeadlineError(CniError):
    """A call has used up its time. Its work is not done, which says nothing about the plugin or the attachment."""


def decode_error(raw: bytes, configuration: bytes) -> CniError | None:
    """Decode a plugin's error document, with its texts cut and without the secrets of the plugin's configuration.

    :param configuration: what the plugin got on standard input.
    :returns: the error; ``None`` when the bytes are not one.
    """
    error = cni.decode_error(raw)
    if error is None:
        return None
    message, details = (redact_configuration(text, configuration) for text in (error.msg, error.details or ""))
    return CniError(error.code, cut(message), cut(details))


def cut(text: str) -> str:
    """Return what a plugin says, no longer than a log and an Event can show it: it may quote a whole configuration."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
