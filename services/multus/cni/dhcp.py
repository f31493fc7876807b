"""The reference plugin `dhcp`, which assigns addresses through a daemon on the node that keeps its leases in memory.

Pure. The daemon is not hotnic's, and often it does not run. Then the plugin fails every command with one text, which
the plugin that calls it passes on. Next: :mod:`services.multus.cni.network`.
"""

from typing import Final

import msgspec

from services.multus.cni.errors import CniError

# The plugin's and Go's texts, the same in 1.1.1 and 1.10.
_DIALING: Final = "error dialing DHCP daemon: "
_NOBODY_LISTENS: Final = ("no such file or directory", "connection refused")
REMEDY: Final = "start the daemon of the CNI plugin dhcp on the node: dhcp daemon"
_NO_LEASES: Final = {"type": "static"}
"""The reference plugin whose DEL frees nothing. Without any `ipam`, some plugins fail."""


def is_daemon_missing(error: CniError) -> bool:
    """Return whether a plugin failed because no daemon listens. There are no leases to release then."""
    _, dialing, reason = error.msg.partition(_DIALING)
    return bool(dialing) and any(text in reason for text in _NOBODY_LISTENS)


def with_remedy(error: CniError) -> CniError:
    """Return the error of a plugin that found no daemon, with what to do."""
    return CniError(error.code, f"{error.msg}; {REMEDY}", error.details)


def without_leases(document: bytes) -> bytes:
    """Return the standard input with which a plugin's DEL removes its link and releases no lease.

    :param document: the standard input of a plugin that takes its addresses from `dhcp`.
    """
    return msgspec.json.encode({**msgspec.json.decode(document, type=dict[str, object]), "ipam": _NO_LEASES})
