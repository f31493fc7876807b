"""Client of the container runtime: calls on its unix socket, each with a deadline and a span.

Each call has a connection of its own (:mod:`services.common.cri.grpc_call`). Nothing is cached here.
Next: :mod:`services.common.cri.sandbox` and :mod:`services.common.cri.container`, which parse the responses.
"""

import asyncio
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.trace import SpanKind

from schemas.cri import runtime_pb2 as pb
from services.common.cri.container import CONTAINER_LABEL, choose_container, parse_pid
from services.common.cri.errors import ContainerMissing, CriError, CriUnavailable, SandboxMissing
from services.common.cri.grpc_call import NOT_FOUND, UNIMPLEMENTED, GrpcError, call
from services.common.cri.sandbox import (
    NAME_LABEL,
    NAMESPACE_LABEL,
    UID_LABEL,
    ListedSandbox,
    Sandbox,
    choose_sandbox,
    parse_sandbox,
)
from services.common.telemetry.propagation import HasTracer

DEADLINE: Final = 5.0
"""Seconds one call may take."""

_SERVICE: Final = "runtime.v1.RuntimeService"

_Response = TypeVar("_Response", bound=Message)


class CriClient:
    """Client of the runtime on one unix socket (``/run/containerd/containerd.sock``, ``/run/crio/crio.sock``).

    :param deadline: seconds for one call.
    """

    def __init__(self, socket_path: str, telemetry: HasTracer, *, deadline: float = DEADLINE) -> None:
        self._socket_path = socket_path
        self._tracer = telemetry.tracer
        self._deadline = deadline

    async def find_sandbox(
        self, pod_uid: str, *, static: tuple[str, str] | None = None, earlier: Sandbox | None = None
    ) -> Sandbox:
        """Return the ready sandbox of a pod.

        :param static: namespace and name of a static pod, to find it by name if the UID finds nothing: the API server
            has only its mirror pod, whose UID the runtime does not know.
        :param earlier: result of an earlier call. It is returned if it is still the pod's sandbox, without another
            request for its status.
        :raises SandboxMissing: the pod has no ready sandbox with a network namespace of its own.
        :raises CriUnavailable: the runtime sent no usable response.
        """
        items = await self._list({UID_LABEL: pod_uid})
        if static is not None and not items:
            items = await self._list({NAMESPACE_LABEL: static[0], NAME_LABEL: static[1]})
        sandbox_id = choose_sandbox(items, "/".join(static) if static else pod_uid)
        # The network namespace of a sandbox never changes.
        return earlier if earlier is not None and earlier.id == sandbox_id else await self.get_sandbox(sandbox_id)

    async def get_sandbox(self, sandbox_id: str) -> Sandbox:
        """Return a ready sandbox by its id.

        :raises SandboxMissing: the sandbox is gone, not ready, or has no network namespace of its own.
        :raises CriUnavailable: the runtime sent no usable response.
        """
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=True)
        return parse_sandbox(await self._call("PodSandboxStatus", request, pb.PodSandboxStatusResponse))

    async def find_container_pid(self, pod_uid: str, name: str) -> int:
        """Return the process id of a running container's first process, in the node's PID namespace.

        :param name: name of the container in the pod.
        :raises ContainerMissing: no container of that name is running.
        :raises CriUnavailable: the runtime sent no usable response.
        """
        labels = {UID_LABEL: pod_uid, CONTAINER_LABEL: name}
        selector = pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_RUNNING), label_selector=labels)
        wanted = pb.ListContainersRequest(filter=selector)
        found = await self._call("ListContainers", wanted, pb.ListContainersResponse)
        container = choose_container(found.containers, f"container {name} for pod {pod_uid}")
        request = pb.ContainerStatusRequest(container_id=container, verbose=True)
        return parse_pid(await self._call("ContainerStatus", request, pb.ContainerStatusResponse))

    async def list_sandboxes(self) -> list[ListedSandbox]:
        """Return every sandbox of the runtime, ready or not.

        :raises CriUnavailable: the runtime sent no response.
        """
        return [
            ListedSandbox(item.id, item.metadata.uid, item.state == pb.SANDBOX_READY) for item in await self._list({})
        ]

    async def version(self) -> str:
        """Return name and version of the runtime, such as ``containerd 1.6.20``: a cheap health check, without a span.

        :raises CriUnavailable: the runtime sent no response.
        """
        response = await self._send("Version", pb.VersionRequest(), pb.VersionResponse)
        return f"{response.runtime_name} {response.runtime_version}"

    async def close(self) -> None:
        """Do nothing: no connection outlives its call."""

    async def _list(self, labels: dict[str, str]) -> list[pb.PodSandbox]:
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels))
        return list((await self._call("ListPodSandbox", request, pb.ListPodSandboxResponse)).items)

    async def _call(self, name: str, request: Message, response: type[_Response]) -> _Response:
        attributes = {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": name}
        with self._tracer.start_as_current_span(f"cri {name}", kind=SpanKind.CLIENT, attributes=attributes):
            return await self._send(name, request, response)

    async def _send(self, name: str, request: Message, response: type[_Response]) -> _Response:
        method = f"/{_SERVICE}/{name}"
        try:
            async with asyncio.timeout(self._deadline):
                raw = await call(self._socket_path, method, request.SerializeToString(), deadline=self._deadline)
            return response.FromString(raw)
        except TimeoutError as error:
            raise CriUnavailable(self._message(name, f"no response within {self._deadline:g} s")) from error
        except DecodeError as error:
            raise CriUnavailable(self._message(name, f"malformed response: {error}")) from error
        except GrpcError as error:
            raise self._classify(name, error) from error

    def _classify(self, name: str, error: GrpcError) -> CriError:
        if error.code == NOT_FOUND and name == "ContainerStatus":
            return ContainerMissing(f"the container runtime no longer knows the container: {error.details}")
        if error.code == NOT_FOUND:
            return SandboxMissing(f"the container runtime no longer knows the sandbox: {error.details}")
        if error.code == UNIMPLEMENTED:
            return CriUnavailable(
                self._message(name, "it does not support CRI v1; use containerd 1.6 or CRI-O 1.23 or later")
            )
        return CriUnavailable(self._message(name, str(error)))

    def _message(self, name: str, reason: str) -> str:
        return f"container runtime at {self._socket_path}, {name}: {reason}"
