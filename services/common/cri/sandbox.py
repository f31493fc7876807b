"""Parser of CRI responses about a pod's sandbox. Pure.

No typed field of the CRI holds the path of the network namespace. It is only in the verbose part, as JSON whose shape
each runtime defines. Supported: containerd 1.6, 1.7 and 2.x, and CRI-O (``info["info"]``).
Next: :mod:`services.common.cri.client`, which sends the calls.
"""

from collections.abc import Iterable

import msgspec

from schemas.cri import runtime_pb2 as pb
from schemas.inputs import Edge, InputDecoder
from services.common.cri.errors import CriUnavailable, SandboxMissing
from services.common.cri.verbose import read_info

UID_LABEL = "io.kubernetes.pod.uid"
NAME_LABEL = "io.kubernetes.pod.name"
NAMESPACE_LABEL = "io.kubernetes.pod.namespace"

_DELETED = "deleted"


class Sandbox(msgspec.Struct, frozen=True):
    """A ready sandbox.

    :ivar id: id of the sandbox; CNI calls it the container id.
    :ivar netns: path of the network namespace on the node.
    :ivar pid: process id of the sandbox's first process on the node; 0 if the runtime names none.
    """

    id: str
    netns: str
    pid: int
    state: str = "ready"


class ListedSandbox(msgspec.Struct, frozen=True):
    """A sandbox in the runtime's list, ready or not."""

    id: str
    pod_uid: str
    ready: bool


class _Namespace(msgspec.Struct, frozen=True):
    type: str = ""
    path: str = ""


class _Linux(msgspec.Struct, frozen=True):
    namespaces: list[_Namespace] = []


class _RuntimeSpec(msgspec.Struct, frozen=True):
    linux: _Linux | None = None


class _Metadata(msgspec.Struct, frozen=True):
    netns_path: str = msgspec.field(default="", name="NetNSPath")


class _VersionedMetadata(msgspec.Struct, frozen=True):
    """containerd's ``sandboxMetadata``: the metadata itself, or wrapped with a version."""

    metadata: _Metadata | None = msgspec.field(default=None, name="Metadata")
    netns_path: str = msgspec.field(default="", name="NetNSPath")

    @property
    def path(self) -> str:
        return self.netns_path or (self.metadata.netns_path if self.metadata else "")


class _Info(msgspec.Struct, frozen=True):
    pid: int = 0
    process_status: str = msgspec.field(default="", name="processStatus")
    netns_closed: bool = msgspec.field(default=False, name="netNamespaceClosed")
    runtime_spec: _RuntimeSpec | None = msgspec.field(default=None, name="runtimeSpec")
    sandbox_metadata: _VersionedMetadata | None = msgspec.field(default=None, name="sandboxMetadata")


_info = InputDecoder(Edge.CRI, _Info)


def choose_sandbox(items: Iterable[pb.PodSandbox], pod: str) -> str:
    """Return the id of the ready sandbox; the newest if there are several.

    A sandbox that is not ready is a leftover of an earlier one.

    :param pod: the pod in the error message.
    :raises SandboxMissing: there is no ready sandbox.
    """
    found = list(items)
    ready = [item for item in found if item.state == pb.SANDBOX_READY]
    if not ready:
        listed = f"{len(found)} sandbox(es), none of them ready," if found else "no sandbox"
        raise SandboxMissing(f"the container runtime has {listed} for pod {pod}")
    return max(ready, key=lambda item: (item.created_at, item.id)).id


def parse_sandbox(response: pb.PodSandboxStatusResponse) -> Sandbox:
    """Parse a verbose ``PodSandboxStatus``.

    :raises SandboxMissing: the sandbox is not ready, or no longer, or has no network namespace of its own.
    :raises CriUnavailable: the response does not contain the network namespace.
    """
    status = response.status
    if status.state != pb.SANDBOX_READY:
        raise SandboxMissing(f"sandbox {status.id} is not ready")
    # A hostNetwork pod: a change would be one of the node's own links.
    if status.linux.namespaces.options.network == pb.NODE:
        raise SandboxMissing(f"sandbox {status.id} shares the network namespace of its node")
    info = read_info(response.info, _info, f"sandbox {status.id}")
    if info.netns_closed or info.process_status == _DELETED:
        raise SandboxMissing(f"sandbox {status.id} is being removed: its network namespace is closed")
    return Sandbox(id=status.id, netns=_netns(status.id, info), pid=info.pid)


def _netns(sandbox_id: str, info: _Info) -> str:
    linux = info.runtime_spec.linux if info.runtime_spec else None
    if linux is not None and linux.namespaces:
        network = next((item for item in linux.namespaces if item.type == "network"), None)
        if network is None:
            raise SandboxMissing(f"sandbox {sandbox_id} shares the network namespace of its node")
        if network.path:
            return network.path
    # containerd has no runtime spec for a sandbox without a pause container.
    if info.sandbox_metadata is not None and info.sandbox_metadata.path:
        return info.sandbox_metadata.path
    if info.pid > 0:
        return f"/proc/{info.pid}/ns/net"
    raise CriUnavailable(
        f"the container runtime reports no network namespace of sandbox {sandbox_id}: "
        "its verbose info has neither a path in the runtime spec nor a process id"
    )
