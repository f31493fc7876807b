"""Errors of netlink operations, classified by errno.

Next: :mod:`services.common.netlink.links`, the values that successful requests return.
"""

import errno
import os

from services.common.node.capabilities import name_missing


class NetlinkFailure(Exception):
    """An operation that the kernel refused or did not finish in time.

    :ivar code: errno.
    :ivar message: the operation and the reason of its failure.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class LinkMissing(NetlinkFailure):
    """The link does not exist (``ENODEV``, ``ENXIO``)."""


class LinkExists(NetlinkFailure):
    """A link of that name, or the address, exists already (``EEXIST``)."""


class NetnsGone(NetlinkFailure):
    """The network namespace does not exist at its path, or no longer."""


_CAPABILITIES = ("NET_ADMIN", "NET_RAW", "SYS_ADMIN")
"""What an operation in a network namespace may need."""

_BY_CODE: dict[int, type[NetlinkFailure]] = {
    errno.ENODEV: LinkMissing,
    errno.ENXIO: LinkMissing,
    errno.EEXIST: LinkExists,
}


def classify_errno(code: int, action: str) -> NetlinkFailure:
    """Return the failure for an errno.

    :param code: errno of either sign; netlink replies carry negative ones.
    :param action: the operation as a verb phrase, such as ``delete link 7``.
    """
    number = abs(code)
    text = f"cannot {action}: {os.strerror(number)}{name_missing(number, *_CAPABILITIES)}"
    return _BY_CODE.get(number, NetlinkFailure)(number, text)


def classify_path_error(error: OSError, message: str) -> NetlinkFailure:
    """Return the failure for a network namespace's path that cannot be used.

    Only a path that does not exist means that the namespace is gone: what belongs to it is deleted then.
    """
    code = error.errno or errno.EIO
    kind = NetnsGone if code in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ELOOP) else NetlinkFailure
    return kind(code, f"{message}: {os.strerror(code)}{name_missing(code, 'SYS_PTRACE', 'DAC_OVERRIDE')}")
