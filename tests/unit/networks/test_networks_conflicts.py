"""networks refuses to start on a node where upstream's dynamic networks controller runs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from services.common.kube.client import Kube
from services.common.kube.denials import Denials
from services.common.runtime.process import StartRefused
from services.networks.conflicts import refuse_upstream_controller
from tests.support.kube.node_kube import PODS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

SOCKET = {"name": "multus", "hostPath": {"path": "/run/multus/multus.sock"}}
CONFIG = {"name": "config", "configMap": {"name": "dynamic-networks-controller-config"}}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[tuple[FakeKube, Kube]]:
    async with serving_kube(FakeKube()) as kube:
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        telemetry, _ = recording_telemetry("networks")
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            yield kube, client


def put(kube: FakeKube, *, node: str = "node1", phase: str = "Running", volumes: Any = (SOCKET, CONFIG)) -> None:
    """Create a pod as upstream's DaemonSet does."""
    metadata = {"labels": {"app": "dynamic-networks-controller"}}
    spec = {"nodeName": node, "volumes": list(volumes)}
    kube.put(
        PODS, "kube-system", "dynamic-networks-controller-ds-x", metadata=metadata, spec=spec, status={"phase": phase}
    )


async def test_it_is_refused_and_the_pod_is_named(cluster: tuple[FakeKube, Kube]) -> None:
    kube, client = cluster
    put(kube)
    with pytest.raises(StartRefused) as refused:
        await refuse_upstream_controller(client, "node1", structlog.get_logger(), Denials())
    assert "pod kube-system/dynamic-networks-controller-ds-x" in str(refused.value)
    assert "remove its DaemonSet (dynamic-networks-controller-ds)" in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [{"node": "node2"}, {"phase": "Succeeded"}, {"volumes": ()}, {"volumes": (CONFIG,)}],
    ids=["another node", "it has ended", "a label alone", "no socket of multus"],
)
async def test_other_pods_do_not_matter(cluster: tuple[FakeKube, Kube], fields: dict[str, Any]) -> None:
    kube, client = cluster
    put(kube, **fields)
    await refuse_upstream_controller(client, "node1", structlog.get_logger(), Denials())


async def test_an_api_server_that_does_not_answer_is_waited_for(cluster: tuple[FakeKube, Kube]) -> None:
    kube, client = cluster
    put(kube)
    asked = asyncio.Event()

    def refuse(_method: str, _plural: str, _name: str) -> None:
        asked.set()
        raise Refused(503, "ServiceUnavailable", "not yet")

    kube.before = refuse
    checking = asyncio.create_task(refuse_upstream_controller(client, "node1", structlog.get_logger(), Denials()))
    await asyncio.wait_for(asked.wait(), 20)
    assert not checking.done()
    kube.before = lambda _method, _plural, _name: None
    with pytest.raises(StartRefused):
        await asyncio.wait_for(checking, 20)
