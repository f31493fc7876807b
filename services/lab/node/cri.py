"""The kubelet's half of the Container Runtime Interface: make, look at and remove pod sandboxes.

The product's own client (`services.common.cri`) only reads; this one writes, and belongs to the lab. Images and
containers are not spoken of at all: a sandbox is all that a launcher pod needs here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import grpc.aio
import msgspec

from schemas.cri import runtime_pb2 as pb
from schemas.cri import runtime_pb2_grpc as stubs
from services.lab.node.objects import Object

DEADLINE: Final = 10.0
"""Seconds for calls that only look."""

SANDBOX_DEADLINE: Final = 120.0
"""Seconds for calls that run CNI plugins; kubelet gives them four minutes."""

_OPTIONS: Final = (
    # Go's gRPC server refuses the escaped socket path that would otherwise be sent as the authority.
    ("grpc.default_authority", "localhost"),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class RuntimeFailureError(Exception):
    """The runtime did not answer or refused; the message says which call."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox of a pod."""

    id: str
    pod_uid: str
    ready: bool
    attempt: int
    created_ns: int


@dataclass(frozen=True, slots=True)
class Running:
    """What a ready sandbox looks like from outside."""

    id: str
    ips: tuple[str, ...]
    netns: str
    """Path of its network namespace; empty for a pod on the node's own network."""
    pid: int


class _Namespace(msgspec.Struct, frozen=True):
    type: str = ""
    path: str = ""


class _Linux(msgspec.Struct, frozen=True):
    namespaces: list[_Namespace] = []


class _Spec(msgspec.Struct, frozen=True):
    linux: _Linux = _Linux()


class _Info(msgspec.Struct, frozen=True):
    pid: int = 0
    runtime_spec: _Spec = msgspec.field(default=_Spec(), name="runtimeSpec")


class PodRuntime:
    """containerd behind its unix socket."""

    def __init__(self, socket_path: str, cgroup_parent: str) -> None:
        self._cgroup_parent = cgroup_parent
        self._channel = grpc.aio.insecure_channel(f"unix://{socket_path}", options=_OPTIONS)
        self._stub: stubs.RuntimeServiceAsyncStub = stubs.RuntimeServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def version(self) -> str:
        """Return the runtime's name and version as a node shows it, such as `containerd://1.6.20`."""
        answer = await self._call(self._stub.Version, pb.VersionRequest(), "Version")
        return f"{answer.runtime_name}://{answer.runtime_version}"

    async def not_ready_because(self) -> str:
        """Return why the runtime cannot take pods yet, empty when it can (its network counts)."""
        answer = await self._call(self._stub.Status, pb.StatusRequest(), "Status")
        return "; ".join(c.message or c.reason or c.type for c in answer.status.conditions if not c.status)

    async def sandboxes(self, pod_uid: str | None = None) -> list[Sandbox]:
        """Return the sandboxes of a pod, or of all pods, newest first."""
        labels = {"io.kubernetes.pod.uid": pod_uid} if pod_uid else {}
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels))
        answer = await self._call(self._stub.ListPodSandbox, request, "ListPodSandbox")
        found = [
            Sandbox(s.id, s.metadata.uid, s.state == pb.SANDBOX_READY, s.metadata.attempt, s.created_at)
            for s in answer.items
        ]
        return sorted(found, key=lambda s: s.created_ns, reverse=True)

    async def run(self, pod: Object, attempt: int) -> str:
        """Make a sandbox for `pod`, CNI included, and return its id."""
        request = pb.RunPodSandboxRequest(config=sandbox_config(pod, attempt, self._cgroup_parent))
        answer = await self._call(self._stub.RunPodSandbox, request, "RunPodSandbox", SANDBOX_DEADLINE)
        return answer.pod_sandbox_id

    async def look(self, sandbox_id: str) -> Running:
        """Return addresses, network namespace and first process of a sandbox."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=True)
        answer = await self._call(self._stub.PodSandboxStatus, request, "PodSandboxStatus")
        return running(answer)

    async def remove(self, sandbox_id: str) -> None:
        """Stop and remove a sandbox, CNI DEL included; one that is gone already is no error."""
        stop = pb.StopPodSandboxRequest(pod_sandbox_id=sandbox_id)
        await self._call(self._stub.StopPodSandbox, stop, "StopPodSandbox", SANDBOX_DEADLINE)
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id)
        await self._call(self._stub.RemovePodSandbox, request, "RemovePodSandbox", SANDBOX_DEADLINE)

    async def _call(
        self,
        method: Callable[..., Awaitable[_Answer]],
        request: _Request,
        name: str,
        deadline: float = DEADLINE,
    ) -> _Answer:
        try:
            async with asyncio.timeout(deadline + 0.5):
                return await method(request, timeout=deadline, wait_for_ready=True)
        except TimeoutError as error:
            raise RuntimeFailureError(f"{name}: no answer within {deadline:g} s") from error
        except grpc.aio.AioRpcError as error:
            raise RuntimeFailureError(f"{name}: {error.code().name}: {error.details()}") from error


def sandbox_config(pod: Object, attempt: int, cgroup_parent: str) -> pb.PodSandboxConfig:
    """Return what the kubelet tells the runtime about `pod`."""
    meta, spec = pod["metadata"], pod.get("spec", {})
    identity = {
        "io.kubernetes.pod.name": meta["name"],
        "io.kubernetes.pod.namespace": meta["namespace"],
        "io.kubernetes.pod.uid": meta["uid"],
    }
    network = pb.NODE if spec.get("hostNetwork") else pb.POD
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(
            name=meta["name"], uid=meta["uid"], namespace=meta["namespace"], attempt=attempt
        ),
        hostname="" if spec.get("hostNetwork") else (spec.get("hostname") or meta["name"])[:63],
        log_directory=f"/var/log/pods/{meta['namespace']}_{meta['name']}_{meta['uid']}",
        # Said explicitly, or the runtime copies the machine's resolv.conf, which may dangle inside the lab.
        dns_config=pb.DNSConfig(servers=["127.0.0.1"]),
        labels={**meta.get("labels", {}), **identity},
        annotations={**meta.get("annotations", {}), "kubernetes.io/config.source": "api"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=pb.NamespaceOption(network=network, pid=pb.CONTAINER)
            ),
        ),
    )


def running(answer: pb.PodSandboxStatusResponse) -> Running:
    """Read a verbose sandbox status; raises RuntimeFailureError when its details cannot be read."""
    status = answer.status
    try:
        info = msgspec.json.decode(answer.info.get("info", "{}"), type=_Info)
    except msgspec.DecodeError as error:
        raise RuntimeFailureError(f"PodSandboxStatus: unreadable details of {status.id}: {error}") from error
    paths: Sequence[str] = [n.path for n in info.runtime_spec.linux.namespaces if n.type == "network"]
    ips = [status.network.ip, *(extra.ip for extra in status.network.additional_ips)]
    return Running(status.id, tuple(ip for ip in ips if ip), paths[0] if paths else "", info.pid)
