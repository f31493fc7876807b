"""How the kernel's refusals are told apart. Next: :mod:`services.common.netlink.links`, what it answers otherwise."""

import errno
import os


class NetlinkFailure(Exception):
    """The kernel refused, or did not answer in time.

    :ivar code: errno. :ivar message: what was tried, and why it failed.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class LinkMissing(NetlinkFailure):
    """The link is not there (``ENODEV``, ``ENXIO``)."""


class LinkExists(NetlinkFailure):
    """A link of that name, or the address, is there already (``EEXIST``)."""


class NetnsGone(NetlinkFailure):
    """The network namespace is not, or no longer, at its path."""


_BY_CODE: dict[int, type[NetlinkFailure]] = {
    errno.ENODEV: LinkMissing,
    errno.ENXIO: LinkMissing,
    errno.EEXIST: LinkExists,
}


def classified(code: int, doing: str) -> NetlinkFailure:
    """The failure for an errno (of either sign)."""
    number = abs(code)
    return _BY_CODE.get(number, NetlinkFailure)(number, f"{doing}: {os.strerror(number)}")
