"""A cluster of many VMs: an API server, a bus, and the controller and the api as processes. The nodes are played.

The API server is the lab's, whose file is filled with copies of one VM, or with HOTNIC_TEST_KUBERNETES the real one
without a node, which takes each VM as five requests. Nothing attaches a network here: a plug ends with the annotation
of its pod. Next: :mod:`tests.bench.test_scale`.
"""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from lab.apiserver.identity import pki
from lab.apiserver.storage.persist import Database
from lab.kubevirt.installation import install
from lab.kubevirt.versions import behaviour_of
from lab.supervisor.bootstrap import api_registration, create_definitions, create_unless_exists, namespaces
from lab.supervisor.credentials.certificates import NAMESPACE
from schemas.kubernetes.objects import NADS, PODS, VMIS, VMS
from schemas.names import pod_interface
from services.common.domain.operations import vmi_name_of
from services.common.http.client import HttpFailure, UnixHttpClient
from services.common.kube.client import Kube
from services.common.telemetry import configure
from tests.support.bus.nats import NatsServer, nats_server
from tests.support.kube.control_plane import control_plane
from tests.support.lab.kubevirt import api_server
from tests.support.lab.resting import PARALLEL, VERSION, create_running_vm, mac_of
from tests.support.lab.running import on_kubernetes
from tests.support.lab.spec_patches import add_interface_patch

READY = 120.0
"""Seconds until a role is ready; with 10,000 VMs it takes less than 20 s alone."""
SEED, SEED_NODE = "seed-vm", "seed-node"
"""The first VM and its node, where the others are copies."""
PLUGGED = 60.0
"""Seconds until a plug is at its pod."""


class RunningRole:
    """A role as a process.

    :ivar pid: its process.
    :ivar seconds: from its start until it was ready.
    """

    def __init__(self, pid: int, health: UnixHttpClient, seconds: float) -> None:
        self.pid, self._health, self.seconds = pid, health, seconds

    async def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        _, body = await self._health.request("GET", "/metrics")
        lines = (line for line in body.decode().splitlines() if line.startswith((f"{name}{{", f"{name} ")))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    async def idle(self) -> None:
        """Wait until no key is queued or runs, twice in a row."""
        quiet = 0
        while quiet < 2:
            await asyncio.sleep(1)
            waiting = await self.metric("hotnic_queue_depth") + await self.metric("hotnic_in_flight")
            quiet = quiet + 1 if waiting == 0 else 0


class Place(NamedTuple):
    """Where the api listens, and who owns the VMs.

    :ivar beside: whether KubeVirt does; then its objects are there, and its controllers are not played.
    """

    api_port: int
    beside: bool


class ScaledCluster:
    """A cluster whose VMs run on played nodes, 25 on each.

    :ivar kube: the administrator's client.
    :ivar vms: number of VMs.
    """

    def __init__(self, directory: Path, kubeconfig: Path, kube: Kube, nats: NatsServer, place: Place) -> None:
        self.directory, self.kubeconfig, self.kube, self.nats = directory, kubeconfig, kube, nats
        self.place = place
        self.vms = 0
        self._interfaces = itertools.count()
        self._pods: dict[str, str] = {}

    async def prepare(self, ca: bytes, host: str) -> None:
        """Create the definitions, the network of the plugs and the registration of the api."""
        for found in namespaces():
            await create_unless_exists(self.kube, found)
        if self.place.beside:
            await install(self.kube, behaviour_of(VERSION))
        await create_definitions(self.kube)
        nad = {"metadata": {"name": "net1"}, "spec": {"config": '{"cniVersion":"1.0.0","type":"bridge"}'}}
        await self.kube.create(NADS, "default", nad | {"apiVersion": NADS.api_version, "kind": NADS.kind})
        for found in api_registration(ca, host, self.place.api_port):
            await create_unless_exists(self.kube, found)

    async def create(self, vms: int) -> None:
        """Create VMs with their VMIs and launcher pods by requests."""
        allowed = asyncio.Semaphore(PARALLEL)

        async def create(number: int) -> None:
            async with allowed:
                await create_running_vm(self.kube, f"vm{number}", plugged=True, node=f"node{number // 25}")

        await asyncio.gather(*(create(number) for number in range(vms)))
        self.vms = vms

    async def settle(self) -> None:
        """Run a controller until it has written what new VMs need."""
        async with self.role("controller") as controller:
            await controller.idle()

    @asynccontextmanager
    async def role(self, name: str, **settings: str) -> AsyncIterator[RunningRole]:
        """Run a role while the block runs; it is ready."""
        path = self.directory / f"{name}.sock"
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "KUBECONFIG": str(self.kubeconfig),
            "NATS_URL": self.nats.url,
            "HOTNIC_HEALTH_LISTEN": f"unix:{path}",
            "HOTNIC_VM_OWNER": "kubevirt" if self.place.beside else "hotnic",
            "HOTNIC_NAMESPACE": NAMESPACE,
            "HOTNIC_LOG_LEVEL": "warning",
        }
        command = [sys.executable, *os.environ.get("HOTNIC_BENCH_PYTHON", "").split(), "-m", f"services.{name}"]
        began = time.monotonic()
        with (self.directory / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, env=environ | settings, stderr=log)
        health = UnixHttpClient(str(path), configure("bench", environ={}))
        try:
            async with asyncio.timeout(READY):
                while not await _is_ready(health):
                    assert process.returncode is None, (self.directory / f"{name}.log").read_text()[-2000:]
                    await asyncio.sleep(0.05)
            yield RunningRole(process.pid, health, time.monotonic() - began)
        finally:
            await health.close()
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def plug(self, vm: str, *, request: bool = False) -> tuple[float, float]:
        """Plug a new interface; return the seconds until the request is answered, and until the pod is annotated.

        :param request: by a PUT to the api; otherwise by an edit of the VM's template.
        """
        name = f"n{next(self._interfaces)}"
        fields = f"metadata.name={await self._pod_of(vm)}"
        # The current version of all objects, from the shortest list.
        version = (await self.kube.list(NADS, "default")).resource_version
        async with (
            asyncio.timeout(PLUGGED),
            self.kube.watch(PODS, "default", resource_version=version, fields=fields, duration=PLUGGED) as chunks,
        ):
            began = time.monotonic()
            await self._request(vm, name) if request else await self._edit(vm, name)
            answered = time.monotonic() - began
            async for chunk in chunks:
                if pod_interface(name).encode() in chunk:
                    return answered, time.monotonic() - began
        raise AssertionError(f"the watch of {vm}'s pod ended before the pod was annotated")

    async def _pod_of(self, vm: str) -> str:
        if not self._pods:
            # Once: a list takes the API server as long as there are pods, and what follows it would wait.
            pods = (await self.kube.list(PODS, "default")).items
            self._pods = {name: pod.metadata.name for pod in pods if (name := vmi_name_of(pod)) is not None}
        return self._pods[vm]

    async def _request(self, vm: str, interface: str) -> None:
        path = f"/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/{vm}/addinterface"
        await self.kube.request("PUT", path, body={"name": interface, "networkAttachmentDefinitionName": "net1"})

    async def _edit(self, vm: str, interface: str) -> None:
        item, network = add_interface_patch("/spec/template/spec", {"name": interface, "bridge": {}})
        network["value"]["multus"]["networkName"] = "net1"
        await self.kube.json_patch(VMS, "default", vm, [item, network])

    @asynccontextmanager
    async def changing(self, rate: int) -> AsyncIterator[list[int]]:
        """Change VMs in ways that are no hot-plugs while the block runs; yield a list that holds the number of changes.

        :param rate: changes a second, as far as the API server keeps up: of labels of VMs, and of statuses of VMIs.
        """
        made = [0]
        # Few at a time, so that a slow API server is not measured with a queue in front of it.
        allowed = asyncio.Semaphore(4)

        async def change(number: int) -> None:
            vm = f"vm{(number * 7919) % self.vms}"
            if number % 2:
                await self.kube.merge_patch(VMS, "default", vm, {"metadata": {"labels": {"changed": f"n{number}"}}})
            else:
                status = {"guestOSInfo": {"kernelRelease": f"n{number}"}}
                await self.kube.merge_patch(VMIS, "default", vm, {"status": status})
            made[0] += 1
            allowed.release()

        async def pace() -> None:
            due = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for number in itertools.count():
                    await allowed.acquire()
                    due = max(due + 1 / rate, time.monotonic() - 1)
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    group.create_task(change(number))

        task = asyncio.create_task(pace())
        try:
            yield made
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def scaled_cluster(directory: Path, vms: int, *, beside: bool = False) -> AsyncIterator[ScaledCluster]:
    """Run an API server with VMs, and a bus.

    :param beside: whether KubeVirt owns the VMs.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = Place(probe.getsockname()[1], beside)
    if (version := on_kubernetes()) is not None:
        with control_plane(directory, version) as running:
            async with _connected(directory, running.kubeconfig, place) as cluster:
                await cluster.prepare(running.ca.read_bytes(), "localhost")
                await cluster.create(vms)
                await cluster.settle()
                yield cluster
        return
    with api_server(directory, "") as (kubeconfig, _):
        async with _connected(directory, kubeconfig, place) as cluster:
            await cluster.prepare(pki.ca_file(directory).read_bytes(), "127.0.0.1")
            await create_running_vm(cluster.kube, SEED, plugged=True, node=SEED_NODE)
            await cluster.settle()
    multiply(directory / "objects.sqlite", vms)
    with api_server(directory, "") as (kubeconfig, _):
        async with _connected(directory, kubeconfig, place) as cluster:
            cluster.vms = vms
            yield cluster


@asynccontextmanager
async def _connected(directory: Path, kubeconfig: Path, place: Place) -> AsyncIterator[ScaledCluster]:
    telemetry = configure("bench", environ={})
    async with (
        nats_server(directory / "nats") as nats,
        await Kube.connect(kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="bench") as kube,
    ):
        yield ScaledCluster(directory, kubeconfig, kube, nats, place)


def multiply(path: Path, vms: int) -> None:
    """Put copies of the first VM, its VMI and its pod into the file of the lab's API server, in their place."""
    database = Database(path)
    rows = [row for row in database.load_objects() if SEED in row[2]]
    uids = [json.loads(b"{" + body)["metadata"]["uid"] for *_, body in rows]
    version = database.load_version()
    for number in range(vms):
        for resource, namespace, name, old, body in rows:
            version += 1
            text = body.decode().replace(SEED_NODE, f"node{number // 25}").replace(SEED, f"vm{number}")
            text = text.replace(f'"resourceVersion":"{old}"', f'"resourceVersion":"{version}"')
            for uid in uids:
                text = text.replace(uid, f"{uid[:-8]}{number:08d}")
            text = text.replace(mac_of(f"{SEED}/blue"), mac_of(f"vm{number}/blue"))
            database.write(resource, namespace, name.replace(SEED, f"vm{number}"), version, text.encode())
    for resource, namespace, name, *_ in rows:
        version += 1
        database.delete(resource, namespace, name, version)
    database.close()


async def _is_ready(health: UnixHttpClient) -> bool:
    try:
        status, _ = await health.request("GET", "/readyz")
    except HttpFailure:
        return False
    return status == 200


def handler_settings(cluster: ScaledCluster) -> dict[str, str]:
    """Return the settings of the handler of a node with 25 VMs, which reaches neither its guests nor its runtime."""
    guest = str(cluster.directory / "{uid}")
    sockets = dict.fromkeys(("HOTNIC_QMP_SOCKET", "HOTNIC_GUEST_AGENT_SOCKET", "HOTNIC_CRI_SOCKET"), guest)
    return {"HOTNIC_NODE_NAME": "node0", "HOTNIC_GUEST_DRIVER": "qmp", "HOTNIC_LOG_LEVEL": "error", **sockets}


def api_settings(cluster: ScaledCluster) -> dict[str, str]:
    """Return the settings of the api, which makes and registers its own certificate."""
    return {"HOTNIC_LISTEN": f"127.0.0.1:{cluster.place.api_port}", "HOTNIC_TLS_SECRET": "hotnic-api-tls"}
