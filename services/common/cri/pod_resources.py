"""Client of the kubelet's pod-resources socket: the devices that device plugins have allocated to a pod.

Few pods need it, so each call opens a connection of its own. API: k8s.io/kubelet ``pkg/apis/podresources/v1``.
"""

import asyncio
from typing import Final

from google.protobuf.message import DecodeError

from schemas.podresources import podresources_pb2 as pb
from services.common.cri.errors import CriUnavailable
from services.common.cri.grpc_call import GrpcError, call

DEADLINE: Final = 10.0
"""Seconds for the call."""

_METHOD: Final = "/v1.PodResourcesLister/List"


async def devices_of(
    socket_path: str, namespace: str, name: str, *, deadline: float = DEADLINE
) -> dict[str, list[str]]:
    """Return the device ids of a pod by resource name, sorted and without duplicates, over all its containers.

    :param deadline: seconds.
    :raises CriUnavailable: the kubelet sent no response.
    """
    request = pb.ListPodResourcesRequest().SerializeToString()
    try:
        async with asyncio.timeout(deadline):
            response = pb.ListPodResourcesResponse.FromString(
                await call(socket_path, _METHOD, request, deadline=deadline)
            )
    except TimeoutError as error:
        raise CriUnavailable(f"kubelet at {socket_path}: no response within {deadline:g} s") from error
    except (GrpcError, DecodeError) as error:
        raise CriUnavailable(f"kubelet at {socket_path}: {error}") from error
    found: dict[str, set[str]] = {}
    for pod in response.pod_resources:
        if (pod.namespace, pod.name) == (namespace, name):
            for devices in (devices for container in pod.containers for devices in container.devices):
                found.setdefault(devices.resource_name, set()).update(devices.device_ids)
    return {resource: sorted(ids) for resource, ids in found.items()}
