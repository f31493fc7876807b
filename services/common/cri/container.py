"""A pod's container, read from the runtime's answers: its first process on the node. Pure.

As with a sandbox, the pid stands only in the verbose answer, as JSON text; containerd (1.6 to 2.x) and CRI-O use the
same words for it. Next: :mod:`services.common.cri.client`, which asks.
"""

from collections.abc import Iterable

import msgspec

from schemas.cri import runtime_pb2 as pb
from services.common.cri.errors import ContainerMissing, CriUnavailable
from services.common.cri.verbose import read_info

CONTAINER_LABEL = "io.kubernetes.container.name"


class _Info(msgspec.Struct, frozen=True):
    pid: int = 0
    removing: bool = False


_info = msgspec.json.Decoder(_Info)


def choose_container(items: Iterable[pb.Container], what: str) -> str:
    """The id of the container that runs; the newest when there are several.

    :param what: how the message calls it.
    :raises ContainerMissing: none runs.
    """
    running = [item for item in items if item.state == pb.CONTAINER_RUNNING]
    if not running:
        raise ContainerMissing(f"the container runtime has no running {what}")
    return max(running, key=lambda item: (item.created_at, item.id)).id


def pid_of(response: pb.ContainerStatusResponse) -> int:
    """The first process of a running container, as the node numbers it.

    :raises ContainerMissing: it does not run (any more).
    :raises CriUnavailable: the answer does not tell.
    """
    container = response.status.id
    if response.status.state != pb.CONTAINER_RUNNING:
        raise ContainerMissing(f"container {container} does not run")
    info = read_info(response.info, _info, f"container {container}")
    if info.removing:
        raise ContainerMissing(f"container {container} is being removed")
    if info.pid <= 0:
        raise CriUnavailable(f"the container runtime does not say which process container {container} is")
    return info.pid
