"""The kubelet's pod-resources socket: which devices of device plugins it has given to a pod.

Asked once for a pod that needs it, on a connection of its own: hardly any pod does.
Source: k8s.io/kubelet ``pkg/apis/podresources/v1``.
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


async def devices_of(
    socket_path: str, namespace: str, name: str, *, deadline: float = DEADLINE
) -> dict[str, list[str]]:
    """The ids of a pod's devices by resource name, sorted; over all containers, each once.

    :raises CriUnavailable: the kubelet did not answer.
    """
    channel = grpc.aio.insecure_channel(f"unix://{socket_path}", options=_OPTIONS)
    try:
        async with asyncio.timeout(deadline + 0.5):
            answer = await stubs.PodResourcesListerStub(channel).List(pb.ListPodResourcesRequest(), timeout=deadline)
    except TimeoutError as error:
        raise CriUnavailable(f"kubelet at {socket_path}: no answer within {deadline:g} s") from error
    except grpc.aio.AioRpcError as error:
        raise CriUnavailable(f"kubelet at {socket_path}: {error.code().name}: {error.details()}") from error
    finally:
        await channel.close()
    found: dict[str, set[str]] = {}
    for pod in answer.pod_resources:
        if (pod.namespace, pod.name) == (namespace, name):
            for devices in (devices for container in pod.containers for devices in container.devices):
                found.setdefault(devices.resource_name, set()).update(devices.device_ids)
    return {resource: sorted(ids) for resource, ids in found.items()}
