"""Client of the kubelet's pod-resources socket: the devices that device plugins have allocated to a pod.

Few pods need it, so each call opens a connection of its own. API: k8s.io/kubelet ``pkg/apis/podresources/v1``.
"""

import asyncio
from typing import Final

import grpc
import grpc.aio

from schemas.podresources import podresources_pb2 as pb
from schemas.podresources import podresources_pb2_grpc as stubs
from services.common.cri.errors import CriUnavailable

DEADLINE: Final = 10.0
"""Seconds for the call."""

_OPTIONS: Final = (("grpc.default_authority", "localhost"), ("grpc.max_receive_message_length", 16 * 1024 * 1024))
"""For the same reasons as in :mod:`services.common.cri.client`."""


async def devices_of(
    socket_path: str, namespace: str, name: str, *, deadline: float = DEADLINE
) -> dict[str, list[str]]:
    """Return the device ids of a pod by resource name, sorted and without duplicates, over all its containers.

    :param deadline: seconds.
    :raises CriUnavailable: the kubelet sent no response.
    """
    channel = grpc.aio.insecure_channel(f"unix://{socket_path}", options=_OPTIONS)
    try:
        # gRPC's own deadline does not run while the channel connects; this one does.
        async with asyncio.timeout(deadline + 0.5):
            response = await stubs.PodResourcesListerStub(channel).List(pb.ListPodResourcesRequest(), timeout=deadline)
    except TimeoutError as error:
        raise CriUnavailable(f"kubelet at {socket_path}: no response within {deadline:g} s") from error
    except grpc.aio.AioRpcError as error:
        raise CriUnavailable(f"kubelet at {socket_path}: {error.code().name}: {error.details()}") from error
    finally:
        await channel.close()
    found: dict[str, set[str]] = {}
    for pod in response.pod_resources:
        if (pod.namespace, pod.name) == (namespace, name):
            for devices in (devices for container in pod.containers for devices in container.devices):
                found.setdefault(devices.resource_name, set()).update(devices.device_ids)
    return {resource: sorted(ids) for resource, ids in found.items()}
