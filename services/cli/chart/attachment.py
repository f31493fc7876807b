"""``helm test``: checks in a pod that the pod gets an interface and loses it, and that the aggregated APIs are served.

The pod requests the interface by its own annotation, as a user does, and sees it in its own network namespace.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.objects import PODS
from services.cli.errors import CommandFailed
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError

POLL_INTERVAL: Final = 0.2
"""Seconds between two looks at the pod's links."""
LINKS: Final = Path("/sys/class/net")


async def check_apis(kube: Kube, apis: tuple[str, ...], timeout: float, say: Callable[[str], None]) -> None:
    """Check that each aggregated API answers discovery.

    :param apis: as ``group/version``.
    :param timeout: seconds for each; an API that was just installed waits for its certificate.
    :raises CommandFailed: one is not served.
    """
    for api in apis:
        last = "no answer"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        await kube.request("GET", f"/apis/{api}")
                        break
                    except KubeError as error:
                        last = error.message
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            raise CommandFailed(
                f"the API {api} is not served: {last}; see: kubectl describe apiservice "
                f"{api.partition('/')[2]}.{api.partition('/')[0]}"
            ) from None
        say(f"API {api} served")


async def check_attachment(
    kube: Kube,
    pod: tuple[str, str],
    network: str,
    interface: str,
    *,
    attached: bool,
    timeout: float,
    say: Callable[[str], None],
    links: Path = LINKS,
) -> None:
    """Check that the pod has the interface. Request it before and remove it afterwards, unless it has been requested.

    :param pod: namespace and name of the pod in which this runs.
    :param attached: whether the pod has requested the interface itself.
    :param timeout: seconds for each step.
    :param links: the directory with the links of the pod.
    :raises CommandFailed: the interface does not appear, or does not go.
    """
    if not attached:
        wanted = msgspec.json.encode([{"name": network, "interface": interface}]).decode()
        await _annotate(kube, pod, wanted)
    await _wait(kube, pod, links / interface, True, timeout)
    say(f"interface {interface} attached")
    if not attached:
        await _annotate(kube, pod, "")
        await _wait(kube, pod, links / interface, False, timeout)
        say(f"interface {interface} detached")


async def _annotate(kube: Kube, pod: tuple[str, str], networks: str) -> None:
    await kube.merge_patch(PODS, *pod, {"metadata": {"annotations": {NETWORKS: networks or None}}})


async def _wait(kube: Kube, pod: tuple[str, str], link: Path, present: bool, timeout: float) -> None:
    """Wait until a link is there, or gone."""
    try:
        async with asyncio.timeout(timeout):
            while True:
                # Netlink would report the change, but this costs nothing and needs no library.
                if (link.name in os.listdir(link.parent)) is present:
                    return
                await asyncio.sleep(POLL_INTERVAL)
    except TimeoutError:
        status = (await kube.get(PODS, *pod)).metadata.annotations.get(NETWORK_STATUS, "none")
        what = "not attached" if present else "not detached"
        raise CommandFailed(
            f"interface {link.name} of pod {'/'.join(pod)} {what} within {timeout:.0f} s; network-status: {status}; "
            "see the events of the pod and the logs of networks and multus on its node"
        ) from None
