"""The one exception that becomes a CNI error document, on the socket and on the shim's standard output.

Not here: transport errors of Kubernetes or netlink; whoever awaits them turns them into this one where the caller
has to hear of them. Next: :mod:`services.multus.call`.
"""

from collections.abc import Sequence

import msgspec

from schemas import cni

_decoder = msgspec.json.Decoder(cni.CniErrorDocument)


class CniError(Exception):
    """A CNI call failed.

    :ivar code: of the CNI specification (:class:`schemas.cni.Code`), or a plugin's own (100 and above).
    :ivar details: more than the one line of ``msg``; may be ``None``.
    """

    def __init__(self, code: int, msg: str, details: str | None = None) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details or None

    def prefixed(self, prefix: str) -> "CniError":
        """The same error with more context in front of its message; the code is kept."""
        return CniError(self.code, f"{prefix}: {self.msg}", self.details)

    def document(self) -> bytes:
        """The body of an error answer."""
        return msgspec.json.encode(cni.CniErrorDocument(code=self.code, msg=self.msg, details=self.details))


def together(failures: Sequence[CniError]) -> CniError:
    """One error for several, with the first one's code and details."""
    return CniError(failures[0].code, " / ".join(error.msg for error in failures), failures[0].details)


class NotStartedError(CniError):
    """No plugin has run: nothing can have been made, and nothing needs to be undone."""


def decode_error(raw: bytes) -> CniError | None:
    """A plugin's error document; ``None`` when these bytes are not one."""
    try:
        error = _decoder.decode(raw)
    except msgspec.DecodeError:
        return None
    return CniError(error.code, error.msg, error.details)
