"""The client of the container runtime: calls on its unix socket, each with a deadline and a span.

The channel is opened by the first call and survives restarts of the runtime; nothing is cached here.
The answers are read in :mod:`services.common.cri.sandbox` and :mod:`services.common.cri.container`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc
import grpc.aio
from opentelemetry.trace import SpanKind

from schemas.cri import runtime_pb2 as pb
from schemas.cri import runtime_pb2_grpc as stubs
from services.common.cri.container import CONTAINER_LABEL, choose_container, pid_of
from services.common.cri.errors import ContainerMissing, CriError, CriUnavailable, SandboxMissing
from services.common.cri.sandbox import NAME_LABEL, NAMESPACE_LABEL, UID_LABEL, ListedSandbox, Sandbox, choose, read
from services.common.telemetry.propagation import HasTracer

DEADLINE: Final = 5.0
"""Seconds one call may take."""

_OPTIONS: Final = (
    # Go's gRPC server refuses the escaped socket path that would otherwise be sent as the authority.
    ("grpc.default_authority", "localhost"),
    # The kubelet's limit; a verbose answer holds a whole runtime spec.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # gRPC's own steps go up to two minutes, which would leave pods waiting long after the runtime is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class Cri:
    """A runtime behind a unix socket (``/run/containerd/containerd.sock``, ``/run/crio/crio.sock``)."""

    def __init__(self, socket_path: str, telemetry: HasTracer, *, deadline: float = DEADLINE) -> None:
        self._socket_path = socket_path
        self._tracer = telemetry.tracer
        self._deadline = deadline
        self._channel: grpc.aio.Channel | None = None
        self._stub: stubs.RuntimeServiceAsyncStub | None = None

    async def sandbox_of(
        self, pod_uid: str, *, static: tuple[str, str] | None = None, earlier: Sandbox | None = None
    ) -> Sandbox:
        """The ready sandbox of a pod.

        :param earlier: what a call told before; of a sandbox that is still the pod's, nothing else is asked.
        :param static: namespace and name, for a static pod: the API server knows only its mirror, whose UID the
            runtime has never heard of, so it is looked for by name when the UID finds nothing.
        :raises SandboxMissing: there is none (yet), or not one with a network namespace of its own.
        :raises CriUnavailable: the runtime did not answer.
        """
        items = await self._list({UID_LABEL: pod_uid})
        if static is not None and not items:
            items = await self._list({NAMESPACE_LABEL: static[0], NAME_LABEL: static[1]})
        sandbox_id = choose(items, "/".join(static) if static else pod_uid)
        # Its network namespace does not move.
        return earlier if earlier is not None and earlier.id == sandbox_id else await self.sandbox(sandbox_id)

    async def sandbox(self, sandbox_id: str) -> Sandbox:
        """A ready sandbox by its id.

        :raises SandboxMissing: it is gone, not ready, or has no network namespace of its own.
        :raises CriUnavailable: the runtime did not answer.
        """
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=True)
        return read(await self._call(self._open().PodSandboxStatus, request, "PodSandboxStatus"))

    async def container_pid(self, pod_uid: str, name: str) -> int:
        """The first process of a pod's running container, as the node numbers it.

        :raises ContainerMissing: none of that name runs.
        :raises CriUnavailable: the runtime did not answer.
        """
        labels = {UID_LABEL: pod_uid, CONTAINER_LABEL: name}
        wanted = pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_RUNNING), label_selector=labels)
        stub = self._open()
        found = await self._call(stub.ListContainers, pb.ListContainersRequest(filter=wanted), "ListContainers")
        container = choose_container(found.containers, f"container {name} for pod {pod_uid}")
        request = pb.ContainerStatusRequest(container_id=container, verbose=True)
        return pid_of(await self._call(stub.ContainerStatus, request, "ContainerStatus"))

    async def known(self) -> list[ListedSandbox]:
        """Every sandbox that the runtime knows, ready or not.

        :raises CriUnavailable: the runtime did not answer.
        """
        return [
            ListedSandbox(item.id, item.metadata.uid, item.state == pb.SANDBOX_READY) for item in await self._list({})
        ]

    async def version(self) -> str:
        """Name and version of the runtime, such as ``containerd 1.6.20``; a cheap sign of life, without a span.

        :raises CriUnavailable: the runtime did not answer.
        """
        answer = await self._ask(self._open().Version, pb.VersionRequest(), "Version")
        return f"{answer.runtime_name} {answer.runtime_version}"

    async def close(self) -> None:
        """Close the channel; a later call opens a new one."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    async def _list(self, labels: dict[str, str]) -> list[pb.PodSandbox]:
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels))
        return list((await self._call(self._open().ListPodSandbox, request, "ListPodSandbox")).items)

    def _open(self) -> "stubs.RuntimeServiceAsyncStub":
        if self._stub is None:
            self._channel = grpc.aio.insecure_channel(f"unix://{self._socket_path}", options=_OPTIONS)
            self._stub = stubs.RuntimeServiceStub(self._channel)
        return self._stub

    async def _call(self, method: Callable[..., Awaitable[_Answer]], request: _Request, name: str) -> _Answer:
        attributes = {"rpc.system": "grpc", "rpc.service": "runtime.v1.RuntimeService", "rpc.method": name}
        with self._tracer.start_as_current_span(f"cri {name}", kind=SpanKind.CLIENT, attributes=attributes):
            return await self._ask(method, request, name)

    async def _ask(self, method: Callable[..., Awaitable[_Answer]], request: _Request, name: str) -> _Answer:
        try:
            # gRPC's own deadline does not run while the channel is being made; this one does.
            async with asyncio.timeout(self._deadline + 0.5):
                return await method(request, timeout=self._deadline)
        except TimeoutError as error:
            raise CriUnavailable(self._text(name, f"no answer within {self._deadline:g} s")) from error
        except grpc.aio.AioRpcError as error:
            raise self._classified(name, error) from error

    def _classified(self, name: str, error: grpc.aio.AioRpcError) -> CriError:
        code, details = error.code(), error.details() or "no details"
        if code == grpc.StatusCode.NOT_FOUND and name == "ContainerStatus":
            return ContainerMissing(f"the container runtime no longer knows the container: {details}")
        if code == grpc.StatusCode.NOT_FOUND:
            return SandboxMissing(f"the container runtime no longer knows the sandbox: {details}")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return CriUnavailable(self._text(name, f"no answer within {self._deadline:g} s"))
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return CriUnavailable(
                self._text(name, "it does not speak CRI v1 (containerd from 1.6 and CRI-O from 1.23 do)")
            )
        return CriUnavailable(self._text(name, f"{code.name}: {details}"))

    def _text(self, name: str, why: str) -> str:
        return f"container runtime at {self._socket_path}, {name}: {why}"
