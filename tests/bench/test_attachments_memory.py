"""Memory of multus and networks over many attachments: it reaches a plateau, because nothing of an attachment is kept.

multus runs the plugin ``true``, which creates no link, in a network namespace of its own. networks attaches and
detaches networks of pods on a stand-in of the API server; multus and the container runtime are stand-ins, too.
``HOTNIC_BENCH_ATTACHMENTS`` sets the number of attachments, by default 10,000.
"""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lab.supervisor.components import ALLOCATOR
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from tests.bench.measure import rss
from tests.bench.test_delegate import WARM_UP, call, daemon
from tests.bench.test_node_memory import running
from tests.support.kube.node_kube import EVENTS, NADS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.node import netns as namespaces
from tests.support.node.fake_cri import FakeCri, FakeSandbox, serving_cri
from tests.support.node.fake_multus import FakeMultus, serving_multus

ATTACHMENTS = int(os.environ.get("HOTNIC_BENCH_ATTACHMENTS", "10000"))
SAMPLES = 10
AT_ONCE = 4
PATIENCE = 300.0
"""Seconds: on a busy machine a pod may have to wait for the resync."""
ETH0 = {"name": "cluster", "interface": "eth0", "default": True, "dns": {}}


class Samples:
    """The memory of a process after each tenth of the attachments."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._done = 0
        self.rss = [round(rss(pid), 1)]

    def count(self) -> None:
        """Count an attachment that was made and removed."""
        self._done += 1
        if self._done % (ATTACHMENTS // SAMPLES) == 0:
            self.rss.append(round(rss(self._pid), 1))
            print(f"{self._done} attachments: {self.rss[-1]} MiB", flush=True)

    def result(self, role: str) -> dict[str, Any]:
        """Print and return the samples. The second half shows whether there is a plateau."""
        per_1000 = (self.rss[-1] - self.rss[SAMPLES // 2]) * 1000 / (ATTACHMENTS / 2)
        print(f"\n{role}: RSS {self.rss[0]} MiB, then {self.rss[1:]} over {ATTACHMENTS} attachments;", end=" ")
        print(f"{per_1000:.2f} MiB per 1,000 in the second half")
        return {"attachments": ATTACHMENTS, "rss_mib": self.rss, "second_half_mib_per_1000": round(per_1000, 2)}


async def test_multus_keeps_nothing_of_an_attachment(
    record: Callable[[str, dict[str, Any]], None], tmp_path: Path
) -> None:
    with namespaces.namespace(tmp_path, "pod") as netns:
        async with daemon(tmp_path, traces=False) as (process, http):
            for number in range(WARM_UP):
                await call(http, "ADD", netns, number)
                await call(http, "DEL", netns, number)
            samples = Samples(process.pid)
            numbers = iter(range(WARM_UP, WARM_UP + ATTACHMENTS))

            async def work() -> None:
                for number in numbers:
                    await call(http, "ADD", netns, number)
                    await call(http, "DEL", netns, number)
                    samples.count()

            await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    record("attachments-memory-multus", samples.result("multus"))


async def test_networks_keeps_nothing_of_an_attachment(record: Callable[[str, dict[str, Any]], None]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hn-")))
        kube = await stack.enter_async_context(serving_kube(FakeKube()))
        kube.put(NADS, "default", "blue", spec={"config": '{"cniVersion":"1.0.0","name":"b","type":"bridge"}'})
        pods = [f"p{number}" for number in range(AT_ONCE)]
        boxes = [FakeSandbox(f"s-{name}", f"uid-{name}") for name in pods]
        await stack.enter_async_context(serving_cri(str(folder / "cri.sock"), FakeCri(boxes)))
        await stack.enter_async_context(serving_multus(str(folder / "multus.sock"), FakeMultus()))
        for name in pods:
            metadata = {"annotations": {NETWORK_STATUS: json.dumps([ETH0])}}
            kube.put(PODS, "default", name, metadata=metadata, spec={"nodeName": "n1"}, status={"phase": "Running"})
        environ = {
            **ALLOCATOR,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "KUBECONFIG": write_kubeconfig(folder / "kubeconfig", kube.url),
            "HOTNIC_NODE_NAME": "n1",
            "HOTNIC_CRI_SOCKET": str(folder / "cri.sock"),
            "HOTNIC_MULTUS_SOCKET": str(folder / "multus.sock"),
            "HOTNIC_SOCKET_DIR": str(folder / "run"),
        }
        pid = await stack.enter_async_context(running("networks", environ))
        samples = Samples(pid)
        numbers = iter(range(ATTACHMENTS))

        def has(pod: str, link: str) -> bool:
            return link in kube.annotations(PODS, "default", pod)[NETWORK_STATUS]

        def lacks(pod: str, link: str) -> bool:
            return not has(pod, link)

        async def work(pod: str) -> None:
            for number in numbers:
                link = f"net{number}"
                elements = [{"name": "blue", "interface": link}]
                kube.annotate(PODS, "default", pod, {NETWORKS: json.dumps(elements)})
                await kube.until(partial(has, pod, link), PATIENCE)
                kube.annotate(PODS, "default", pod, {NETWORKS: "[]"})
                await kube.until(partial(lacks, pod, link), PATIENCE)
                # The stand-in would keep every one.
                for event in kube.of(EVENTS):
                    del kube.objects[EVENTS, event["metadata"]["namespace"], event["metadata"]["name"]]
                kube.requests.clear()
                samples.count()

        await asyncio.gather(*(work(pod) for pod in pods))
        record("attachments-memory-networks", samples.result("networks"))
