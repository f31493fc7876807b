"""A kubelet's pod-resources socket that returns the devices that a test assigns to pods."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from schemas.podresources import podresources_pb2 as pb
from schemas.podresources import podresources_pb2_grpc as stubs


@dataclass
class FakeKubelet(stubs.PodResourcesListerServicer):
    """Serves ``List``.

    :ivar devices: by namespace and name of the pod, a list of containers, each with device ids by resource name.
    :ivar calls: number of ``List`` calls so far.
    """

    devices: dict[tuple[str, str], list[dict[str, list[str]]]] = field(default_factory=dict)
    calls: int = 0

    async def List(self, request: pb.ListPodResourcesRequest, context: Any) -> pb.ListPodResourcesResponse:
        self.calls += 1
        return pb.ListPodResourcesResponse(
            pod_resources=[
                pb.PodResources(
                    name=name,
                    namespace=namespace,
                    containers=[
                        pb.ContainerResources(
                            name="c",
                            devices=[
                                pb.ContainerDevices(resource_name=resource, device_ids=ids)
                                for resource, ids in devices_by_resource.items()
                            ],
                        )
                        for devices_by_resource in containers
                    ],
                )
                for (namespace, name), containers in self.devices.items()
            ]
        )


@asynccontextmanager
async def serving_kubelet(path: Path, kubelet: FakeKubelet) -> AsyncIterator[FakeKubelet]:
    """Serve `kubelet` on the unix socket at `path`."""
    server = grpc.aio.server()
    stubs.add_PodResourcesListerServicer_to_server(kubelet, server)
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    try:
        yield kubelet
    finally:
        await server.stop(None)
