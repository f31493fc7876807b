"""Find the socket of the node's container runtime, where no setting names it.

Next: :mod:`services.common.cri.client`, which connects to it.
"""

import asyncio
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

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


async def find_socket(setting: str | None, telemetry: HasTracer, *, host_root: str = "/") -> str:
    """Return the path of the container runtime's socket.

    :param setting: the value of ``HOTNIC_CRI_SOCKET``, which is returned unchanged if there is one.
    :param host_root: where the node's file system is mounted; its paths are tried first.
    :raises SettingsError: there is no socket, or more than one runtime answers.
    """
    if setting:
        return setting
    return await choose_socket(candidate_paths(host_root), _is_socket, lambda path: serves_cri(path, telemetry))


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
    paths: Sequence[str], exists: Callable[[str], bool], answers: Callable[[str], Awaitable[bool]]
) -> str:
    """Return the socket of the only runtime.

    :param exists: returns whether a path is a socket.
    :param answers: returns whether a CRI v1 runtime answers on a socket; asked only if there are several.
    :raises SettingsError: there is no socket, or more than one runtime answers.
    """
    found = [path for path in paths if exists(path)]
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


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False
