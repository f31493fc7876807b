"""Find the socket of the node's container runtime, where no setting names it.

Next: :mod:`services.common.cri.client`, which connects to it.
"""

import asyncio
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from services.common.cri.client import CriClient
from services.common.cri.errors import CriError
from services.common.runtime.settings import SettingsError
from services.common.telemetry.propagation import HasTracer

VARIABLE: Final = "HOTNIC_CRI_SOCKET"
CRIO: Final = "/run/crio/crio.sock"
USUAL_PATHS: Final = (
    "/run/containerd/containerd.sock",
    CRIO,
    # k3s and RKE2 run a containerd of their own, and so does k0s.
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
)
PROBE_DEADLINE: Final = 2.0

SocketIdentity: TypeAlias = tuple[int, int]
"""Device and inode of a socket: the same at every path that leads to it by links or bind mounts."""


async def find_socket(setting: str | None, telemetry: HasTracer, *, host_root: str = "/") -> str:
    """Return the path of the container runtime's socket.

    :param setting: the value of ``HOTNIC_CRI_SOCKET``, which is returned unchanged if there is one.
    :param host_root: where the node's file system is mounted; its paths are tried first.
    :raises SettingsError: there is no socket, or more than one runtime answers.
    """
    if setting:
        return setting
    return await choose_socket(candidate_paths(host_root), identify_socket, lambda path: serves_cri(path, telemetry))


async def serves_cri(path: str, telemetry: HasTracer) -> bool:
    """Return whether a CRI v1 runtime answers on a socket."""
    client = CriClient(path, telemetry, deadline=PROBE_DEADLINE)
    try:
        await client.version()
    except CriError:
        return False
    finally:
        await client.close()
    return True


def candidate_paths(host_root: str) -> list[str]:
    """Return the paths to try, below the node's file system and then at the same place in this one."""
    root = host_root.rstrip("/")
    return list(dict.fromkeys(f"{prefix}{path}" for prefix in (root, "") for path in USUAL_PATHS))


async def choose_socket(
    paths: Sequence[str],
    identify: Callable[[str], SocketIdentity | None],
    answers: Callable[[str], Awaitable[bool]],
) -> str:
    """Return the socket of the only runtime, by the first of its paths.

    :param identify: returns the identity of the socket at a path; ``None`` if there is no socket.
    :param answers: returns whether a CRI v1 runtime answers on a socket; asked only if there are several.
    :raises SettingsError: there is no socket, or more than one runtime answers.
    """
    by_identity: dict[SocketIdentity, str] = {}
    for path in paths:
        if (identity := identify(path)) is not None:
            by_identity.setdefault(identity, path)
    found = list(by_identity.values())
    if not found:
        raise SettingsError(
            VARIABLE, f"is not set, and there is no socket of a container runtime at {', '.join(paths)}; set it"
        )
    if len(found) == 1:
        return found[0]
    # A Docker on the node has a containerd as well, which serves no CRI.
    serving = await asyncio.gather(*(answers(path) for path in found))
    runtimes = [path for path, serves in zip(found, serving, strict=True) if serves]
    if len(runtimes) == 1:
        return runtimes[0]
    seen = f"container runtimes answer at {', '.join(runtimes)}" if runtimes else f"none answers at {', '.join(found)}"
    raise SettingsError(VARIABLE, f"is not set, and {seen}; set it to the one that the kubelet uses")


def identify_socket(path: str) -> SocketIdentity | None:
    """Return the identity of the socket at a path; ``None`` if there is no socket."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None
