"""What an attachment needs to know beyond its pod: the sandbox, and the network's CNI configuration.

Both are asked for at once, and only when there is something to do. Next: :mod:`services.networks.write`.
"""

import asyncio

from schemas.kube import NADS, Pod
from services.common.cri.errors import CriError, SandboxMissing
from services.common.cri.sandbox import Sandbox
from services.common.kube.errors import KubeError, NotFound
from services.networks.failure import Failure
from services.networks.nad import config_of
from services.networks.tools import Tools

STATIC_SOURCE = "kubernetes.io/config.source"
"""Annotation of the kubelet; anything but ``api`` is a static pod, which the API server knows by its mirror only."""


async def sandbox_and_config(
    tools: Tools, pod: Pod, namespace: str, nad: str, *, remembered: bool, gone: bytes | None = None
) -> tuple[Sandbox, bytes]:
    """The pod's sandbox and the configuration of a network.

    :param remembered: whether the sandbox of an earlier look will do.
    :param gone: stands in for the configuration of a network that is not there any more, or has no namespace because
        only the daemon's record speaks of it.
    :raises Failure: one of them cannot be had.
    """
    sandbox, network = await asyncio.gather(
        sandbox_of(tools, pod, remembered=remembered), config(tools, namespace, nad, gone), return_exceptions=True
    )
    if isinstance(sandbox, BaseException):
        raise sandbox
    if isinstance(network, BaseException):
        raise network
    return sandbox, network


async def sandbox_of(tools: Tools, pod: Pod, *, remembered: bool) -> Sandbox:
    """The sandbox that runs the pod. It is not remembered here: an ADD that succeeds in it says that it may be.

    :raises Failure: ``SandboxMissing`` or ``CriUnavailable``.
    """
    memory = tools.memory.of(pod.metadata.uid)
    if remembered and memory.sandbox is not None:
        return memory.sandbox
    static = pod.metadata.annotations.get(STATIC_SOURCE, "api") != "api"
    try:
        sandbox = await tools.cri.sandbox_of(
            pod.metadata.uid,
            static=(pod.metadata.namespace, pod.metadata.name) if static else None,
            earlier=memory.sandbox,
        )
    except CriError as error:
        memory.sandbox = None
        raise Failure(
            "SandboxMissing" if isinstance(error, SandboxMissing) else "CriUnavailable", str(error)
        ) from error
    memory.runs_in(sandbox.id)
    return sandbox


async def config(tools: Tools, namespace: str, nad: str, gone: bytes | None) -> bytes:
    """The CNI configuration of a network, read live.

    :raises Failure: ``NetworkNotFound``, ``InvalidNetwork`` or ``KubeUnavailable``.
    """
    if gone is not None and not namespace:
        return gone
    try:
        return config_of(await tools.kube.get(NADS, namespace, nad))
    except NotFound as error:
        if gone is not None:
            return gone
        raise Failure("NetworkNotFound", f"there is no network {namespace}/{nad}: {error.message}") from error
    except KubeError as error:
        raise Failure("KubeUnavailable", f"network {namespace}/{nad} cannot be read: {error.message}") from error
