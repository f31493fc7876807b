"""Parser of CRI responses about a pod's container: its first process on the node. Pure.

As for a sandbox, the process id is only in the verbose part, as JSON; containerd (1.6 to 2.x) and CRI-O use the same
field names. Next: :mod:`services.common.cri.client`, which sends the calls.
"""

from collections.abc import Iterable

import msgspec

from schemas.cri import runtime_pb2 as pb
from schemas.inputs import Edge, InputDecoder
from services.common.cri.errors import ContainerMissing, CriUnavailable
from services.common.cri.verbose import read_info

CONTAINER_LABEL = "io.kubernetes.container.name"


class _Info(msgspec.Struct, frozen=True):
    pid: int = 0
    removing: bool = False


_info = InputDecoder(Edge.CRI, _Info)


def choose_container(items: Iterable[pb.Container], subject: str) -> str:
    """Return the id of the running container; the newest if there are several.

    :param subject: the container in the error message.
    :raises ContainerMissing: no container is running.
    """
    running = [item for item in items if item.state == pb.CONTAINER_RUNNING]
    if not running:
        raise ContainerMissing(f"the container runtime has no running {subject}")
    return max(running, key=lambda item: (item.created_at, item.id)).id


def parse_pid(response: pb.ContainerStatusResponse) -> int:
    """Return the process id of a running container's first process, in the node's PID namespace.

    :raises ContainerMissing: the container is not running, or no longer.
    :raises CriUnavailable: the response has no process id.
    """
    container = response.status.id
    if response.status.state != pb.CONTAINER_RUNNING:
        raise ContainerMissing(f"container {container} is not running")
    info = read_info(response.info, _info, f"container {container}")
    if info.removing:
        raise ContainerMissing(f"container {container} is being removed")
    if info.pid <= 0:
        raise CriUnavailable(f"the container runtime reports no process id of container {container}")
    return info.pid
