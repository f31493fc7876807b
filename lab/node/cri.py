"""The kubelet's part of the Container Runtime Interface: create, inspect and remove pod sandboxes.

The roles' client (`services.common.cri`) only reads; this one writes and serves the lab alone. It makes no calls for
images and containers, because the lab runs no containers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import grpc.aio
import msgspec

from lab.node.objects import Object
from schemas.cri import runtime_pb2 as pb
from schemas.cri import runtime_pb2_grpc as stubs

DEADLINE: Final = 10.0
"""Seconds that a read-only call may take."""

SANDBOX_DEADLINE: Final = 120.0
"""Seconds that a call which runs CNI plugins may take; kubelet allows four minutes."""

_OPTIONS: Final = (
    # Go's gRPC server rejects the escaped socket path that grpc would otherwise send as the authority.
    ("grpc.default_authority", "localhost"),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


_REQUIRED: Final = frozenset({"RuntimeReady", "NetworkReady"})
"""The conditions that every runtime has, and that pods need."""


class RuntimeCallError(Exception):
    """A call to the runtime failed; the message names the call."""


@dataclass(frozen=True, slots=True)
class PodSandbox:
    """An entry of the runtime's list of pod sandboxes."""

    id: str
    pod_uid: str
    ready: bool
    attempt: int
    created_ns: int


@dataclass(frozen=True, slots=True)
class SandboxStatus:
    """The status of a sandbox.

    :ivar netns: path of its network namespace; empty for a pod on the host network.
    :ivar pid: process id of its pause container.
    """

    id: str
    ips: tuple[str, ...]
    netns: str
    pid: int


class _RuntimeNamespace(msgspec.Struct, frozen=True):
    type: str = ""
    path: str = ""


class _RuntimeLinux(msgspec.Struct, frozen=True):
    namespaces: list[_RuntimeNamespace] = []


class _OciSpec(msgspec.Struct, frozen=True):
    linux: _RuntimeLinux = _RuntimeLinux()


class _VerboseInfo(msgspec.Struct, frozen=True):
    pid: int = 0
    runtime_spec: _OciSpec = msgspec.field(default=_OciSpec(), name="runtimeSpec")


class PodRuntime:
    """Client of containerd's runtime service on a unix socket."""

    def __init__(self, socket_path: str, cgroup_parent: str) -> None:
        self._cgroup_parent = cgroup_parent
        self._channel = grpc.aio.insecure_channel(f"unix://{socket_path}", options=_OPTIONS)
        self._stub: stubs.RuntimeServiceAsyncStub = stubs.RuntimeServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def version(self) -> str:
        """Return the runtime's name and version in the Node status' form, such as `containerd://1.6.20`."""
        answer = await self._call(self._stub.Version, pb.VersionRequest(), "Version")
        return f"{answer.runtime_name}://{answer.runtime_version}"

    async def not_ready_reason(self) -> str:
        """Return why the runtime does not accept pods, its network included; empty when it does.

        containerd 2 has further conditions, with warnings that do not concern pods.
        """
        answer = await self._call(self._stub.Status, pb.StatusRequest(), "Status")
        return "; ".join(
            c.message or c.reason or c.type for c in answer.status.conditions if not c.status and c.type in _REQUIRED
        )

    async def list_sandboxes(self, pod_uid: str | None = None) -> list[PodSandbox]:
        """Return the sandboxes of a pod, or of all pods, newest first."""
        labels = {"io.kubernetes.pod.uid": pod_uid} if pod_uid else {}
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels))
        answer = await self._call(self._stub.ListPodSandbox, request, "ListPodSandbox")
        found = [
            PodSandbox(s.id, s.metadata.uid, s.state == pb.SANDBOX_READY, s.metadata.attempt, s.created_at)
            for s in answer.items
        ]
        return sorted(found, key=lambda s: s.created_ns, reverse=True)

    async def run_sandbox(self, pod: Object, attempt: int) -> str:
        """Create a sandbox for `pod`, with CNI ADD, and return its id."""
        request = pb.RunPodSandboxRequest(config=sandbox_config(pod, attempt, self._cgroup_parent))
        answer = await self._call(self._stub.RunPodSandbox, request, "RunPodSandbox", SANDBOX_DEADLINE)
        return answer.pod_sandbox_id

    async def sandbox_status(self, sandbox_id: str) -> SandboxStatus:
        """Return the status of a sandbox."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=True)
        answer = await self._call(self._stub.PodSandboxStatus, request, "PodSandboxStatus")
        return parse_sandbox_status(answer)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Stop and remove a sandbox, with CNI DEL; a sandbox that does not exist is no error."""
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
            # gRPC's own deadline does not run while the channel connects; this one does.
            async with asyncio.timeout(deadline + 0.5):
                # While containerd restarts, the call waits for it until the deadline instead of failing at once.
                return await method(request, timeout=deadline, wait_for_ready=True)
        except TimeoutError as error:
            raise RuntimeCallError(f"{name}: no answer within {deadline:g} s") from error
        except grpc.aio.AioRpcError as error:
            raise RuntimeCallError(f"{name}: {error.code().name}: {error.details()}") from error


def sandbox_config(pod: Object, attempt: int, cgroup_parent: str) -> pb.PodSandboxConfig:
    """Return the sandbox configuration that a kubelet sends for `pod`."""
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
        # Without a DNS configuration the runtime copies the machine's resolv.conf, which may dangle inside the lab.
        dns_config=pb.DNSConfig(servers=["127.0.0.1"]),
        labels={**meta.get("labels", {}), **identity},
        # As the kubelet marks pods that come from the API server.
        annotations={**meta.get("annotations", {}), "kubernetes.io/config.source": "api"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=pb.NamespaceOption(network=network, pid=pb.CONTAINER)
            ),
        ),
    )


def parse_sandbox_status(answer: pb.PodSandboxStatusResponse) -> SandboxStatus:
    """Return the content of a verbose sandbox status.

    :raises RuntimeFailureError: its details cannot be decoded.
    """
    status = answer.status
    try:
        info = msgspec.json.decode(answer.info.get("info", "{}"), type=_VerboseInfo)
    except msgspec.DecodeError as error:
        raise RuntimeCallError(f"PodSandboxStatus: unreadable details of {status.id}: {error}") from error
    paths: Sequence[str] = [n.path for n in info.runtime_spec.linux.namespaces if n.type == "network"]
    ips = [status.network.ip, *(extra.ip for extra in status.network.additional_ips)]
    return SandboxStatus(status.id, tuple(ip for ip in ips if ip), paths[0] if paths else "", info.pid)
