"""Processes with the capabilities of a container: those of a list, and none that a program could regain."""

import ctypes
from collections.abc import Callable, Collection

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LAST = 40
"""The last capability of Linux 5.9 and later."""
NUMBERS = {"DAC_OVERRIDE": 1, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_CHROOT": 18, "SYS_PTRACE": 19, "SYS_ADMIN": 21}

_libc = ctypes.CDLL(None, use_errno=True)


def bounded(names: Collection[str]) -> Callable[[], None]:
    """Return a function for a process of root to call before it executes a program (``preexec_fn``).

    The program has exactly these capabilities, and so has whatever it executes (capabilities(7): root gets those of the
    bounding set).
    """
    kept = {NUMBERS[name] for name in names}

    def limit() -> None:
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        for number in range(_LAST + 1):
            if number not in kept:
                _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        # As `allowPrivilegeEscalation: false`.
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    return limit
