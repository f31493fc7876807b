"""A fake container runtime on a unix socket, with sandboxes set by the test and a count of the calls."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from schemas.cri import runtime_pb2 as pb
from schemas.cri import runtime_pb2_grpc as stubs
from services.common.cri.container import CONTAINER_LABEL
from services.common.cri.sandbox import NAME_LABEL, NAMESPACE_LABEL, UID_LABEL


@dataclass
class FakeSandbox:
    """One sandbox.

    :ivar info: text under the verbose key ``info``; by default as containerd writes it.
    :ivar containers: process ids of the running containers by name.
    """

    id: str
    uid: str
    namespace: str = "default"
    name: str = "pod1"
    ready: bool = True
    created_at: int = 1
    info: str | None = None
    containers: dict[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """The labels that the kubelet sets on every sandbox."""
        return {UID_LABEL: self.uid, NAMESPACE_LABEL: self.namespace, NAME_LABEL: self.name}

    @property
    def state(self) -> pb.PodSandboxState:
        """The state as a CRI enum."""
        return pb.SANDBOX_READY if self.ready else pb.SANDBOX_NOTREADY


def containerd_info(netns: str | None, pid: int = 4711) -> str:
    """Return verbose info as containerd 1.6 writes it."""
    namespaces: list[dict[str, Any]] = [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]
    if netns is not None:
        namespaces.append({"type": "network", "path": netns})
    return json.dumps({"pid": pid, "processStatus": "running", "runtimeSpec": {"linux": {"namespaces": namespaces}}})


@dataclass
class FakeCri(stubs.RuntimeServiceServicer):
    """The fake runtime. Its fields may change while it runs.

    :ivar fail: status code with which a method fails.
    :ivar hang: methods that never return.
    :ivar calls: number of calls by method.
    """

    sandboxes: list[FakeSandbox] = field(default_factory=list)
    fail: dict[str, grpc.StatusCode] = field(default_factory=dict)
    hang: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)

    async def Version(self, request: pb.VersionRequest, context: Any) -> pb.VersionResponse:
        await self._count_call("Version", context)
        return pb.VersionResponse(version="0.1.0", runtime_name="fake", runtime_version="1")

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest, context: Any) -> pb.ListPodSandboxResponse:
        await self._count_call("ListPodSandbox", context)
        wanted = dict(request.filter.label_selector).items()
        return pb.ListPodSandboxResponse(
            items=[
                pb.PodSandbox(id=box.id, state=box.state, created_at=box.created_at, labels=box.labels)
                for box in self.sandboxes
                if wanted <= box.labels.items()
            ]
        )

    async def PodSandboxStatus(self, request: pb.PodSandboxStatusRequest, context: Any) -> pb.PodSandboxStatusResponse:
        await self._count_call("PodSandboxStatus", context)
        box = next((box for box in self.sandboxes if box.id == request.pod_sandbox_id), None)
        if box is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "an error occurred: sandbox not found")
            raise AssertionError("abort raises")
        info = box.info if box.info is not None else containerd_info(f"/var/run/netns/{box.id}")
        return pb.PodSandboxStatusResponse(
            status=pb.PodSandboxStatus(id=box.id, state=box.state, created_at=box.created_at, labels=box.labels),
            info={"info": info} if request.verbose else {},
        )

    async def ListContainers(self, request: pb.ListContainersRequest, context: Any) -> pb.ListContainersResponse:
        await self._count_call("ListContainers", context)
        wanted = dict(request.filter.label_selector).items()
        return pb.ListContainersResponse(
            containers=[
                pb.Container(id=f"{box.id}-{name}", state=pb.CONTAINER_RUNNING, created_at=box.created_at)
                for box in self.sandboxes
                for name in box.containers
                if wanted <= (box.labels | {CONTAINER_LABEL: name}).items()
            ]
        )

    async def ContainerStatus(self, request: pb.ContainerStatusRequest, context: Any) -> pb.ContainerStatusResponse:
        await self._count_call("ContainerStatus", context)
        pids = {f"{box.id}-{name}": pid for box in self.sandboxes for name, pid in box.containers.items()}
        if request.container_id not in pids:
            await context.abort(grpc.StatusCode.NOT_FOUND, "an error occurred: container not found")
            raise AssertionError("abort raises")
        info = json.dumps({"sandboxID": "s1", "pid": pids[request.container_id], "removing": False})
        return pb.ContainerStatusResponse(
            status=pb.ContainerStatus(id=request.container_id, state=pb.CONTAINER_RUNNING),
            info={"info": info} if request.verbose else {},
        )

    async def _count_call(self, method: str, context: Any) -> None:
        self.calls[method] += 1
        if method in self.hang:
            await asyncio.Event().wait()
        if method in self.fail:
            await context.abort(self.fail[method], "injected by the test")


@asynccontextmanager
async def serving_cri(path: str, runtime: FakeCri) -> AsyncIterator[FakeCri]:
    """Serve the fake runtime on a unix socket while the context is open."""
    server = grpc.aio.server()
    stubs.add_RuntimeServiceServicer_to_server(runtime, server)
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    try:
        yield runtime
    finally:
        await server.stop(None)
