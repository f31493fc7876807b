"""The VMIs that a handler watches: those that run on its node, and those that migrate to it."""

import asyncio
from pathlib import Path

from schemas.kubernetes.kubevirt import NODE_LABEL, TARGET_NODE_LABEL
from services.common.cri.client import CriClient
from services.common.guest.drivers import driver_factory
from services.common.kube.client import Kube
from services.common.netlink.pool import NetnsPool
from services.handler.role import Handler
from tests.support.bus.memory import MemoryBus
from tests.support.contexts import role_context
from tests.support.kube.node_kube import FakeKube, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

VMIS = "virtualmachineinstances"


def put(kube: FakeKube, name: str, **labels: str) -> None:
    node = labels.get("node", "")
    found = {NODE_LABEL: node, TARGET_NODE_LABEL: labels.get("target", "")}
    metadata = {"uid": name, "labels": {key: value for key, value in found.items() if value}}
    kube.put(VMIS, "default", name, metadata=metadata, spec={}, status={"nodeName": node, "phase": "Running"})


async def test_vmis_of_other_nodes_cost_a_handler_nothing(tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry("handler")
    kube, pool = FakeKube(), NetnsPool()
    put(kube, "here", node="node1")
    put(kube, "arriving", node="node2", target="node1")
    for number in range(50):
        put(kube, f"elsewhere{number}", node="node2")
    async with serving_kube(kube):
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            cri = CriClient(str(tmp_path / "cri.sock"), telemetry)
            paths = {"qmp_socket": str(tmp_path / "{uid}"), "agent_socket": str(tmp_path / "{uid}")}
            make_driver = driver_factory("qmp", **paths, cri=cri, host_root="/", tracer=telemetry.tracer)
            handler = Handler(
                role_context("handler", client, MemoryBus(role="handler"), telemetry, node="node1"),
                cri=cri,
                netns=pool,
                make_driver=make_driver,
                tap_owner=0,
                is_owner=lambda: True,
            )
            tasks = [asyncio.create_task(one.run()) for one in (handler.vmis, handler.arriving_vmis)]
            await handler.vmis.synced.wait()
            await handler.arriving_vmis.synced.wait()
            assert [*handler.vmis.keys(), *handler.arriving_vmis.keys()] == [
                ("default", "here"),
                ("default", "arriving"),
            ]
            assert handler.get("default", "arriving") is not None
            assert handler.get("default", "elsewhere0") is None
            # Queued are the VMI that runs here and, after it has left, the same one.
            assert handler.queue.depth == 1
            put(kube, "here", node="node2")
            while handler.vmis.get("default", "here") is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await cri.close()
    pool.close()
