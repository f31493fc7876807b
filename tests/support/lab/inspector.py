"""A process inside a lab that runs the doctor's checks on request, because starting ``hotnic doctor`` takes long.

Run in the lab as ``python -m tests.support.lab.inspector``. Each line of standard input is a request, and each reply is
one line. ``{"examine": true}`` runs all checks once, ``{"kill": PID, "signal": NAME}`` sends a signal to a process of
the lab, ``{"compact": PORT}`` has the etcd on a port forget all old revisions.
The client is :class:`Inspector`. Next: :mod:`tests.support.lab.rig`, which uses it.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from lab.guest.qemu import LAB_QMP_SOCKET
from lab.layout import INSIDE_RUN, NODE_NAME
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.collect.objects import snapshot_of_vms
from services.cli.doctor.examine import examine
from services.cli.doctor.snapshot import NodeSnapshot, NotVisible, PodOnNode, Snapshot
from services.cli.tracing.tracer import NoTraces
from services.common.domain.operations import find_acting_pod
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError
from tests.support.kube.etcd import compact
from tests.support.lab.running import Lab

MONITOR = INSIDE_RUN / "guests" / "{uid}" / LAB_QMP_SOCKET
"""A second QMP socket of the guest, which only the lab's guests have: the handler is connected to the first one."""


class Inspector:
    """The client of the process inside a lab. Synchronous; several threads may send requests."""

    def __init__(self, lab: Lab) -> None:
        command = [sys.executable, "-m", "services.cli", "lab", "exec", "--"]
        # A test that is cancelled while it waits leaves a thread behind that still reads the reply.
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [*command, sys.executable, "-m", "tests.support.lab.inspector"],
            env=lab.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def request(self, **request: Any) -> dict[str, Any]:
        """Send a request and return its reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def close(self) -> None:
        """End the process."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()


def build_report(snapshot: Snapshot) -> dict[str, Any]:
    """Return the result of all checks, the guest devices of each VM, and the number of leases and host veths.

    The numbers are -1 when the part of the node is not visible.
    """
    report = examine(snapshot)
    devices: dict[str, list[str]] = {}
    for vm_snapshot in snapshot.vms:
        pod = find_acting_pod(vm_snapshot.vmi, vm_snapshot.pods) if vm_snapshot.vmi is not None else None
        pod_on_node = vm_snapshot.pods_on_node.get(pod.metadata.uid) if pod is not None else None
        if isinstance(pod_on_node, PodOnNode) and not isinstance(pod_on_node.guest_devices, NotVisible):
            devices[vm_snapshot.name] = [device.interface for device in pod_on_node.guest_devices]
    node = snapshot.node if isinstance(snapshot.node, NodeSnapshot) else None
    return {
        "inProgress": [str(one) for one in report.in_progress],
        "findings": [str(one) for one in report.findings],
        "notChecked": [str(one) for one in report.not_checked],
        "devices": devices,
        "leases": -1 if node is None or isinstance(node.leases, NotVisible) else len(node.leases),
        "veths": -1
        if node is None or isinstance(node.links, NotVisible)
        else sum(link.kind == "veth" for link in node.links),
    }


async def serve() -> None:
    """Reply to requests until the input ends."""
    paths = NodeSettings(qmp_socket=str(MONITOR))
    kube = await Kube.connect(
        kubeconfig=os.environ["KUBECONFIG"], telemetry=NoTraces(), user_agent="hotnic-test-inspector"
    )
    async with kube:
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            try:
                if "kill" in request:
                    os.kill(request["kill"], signal.Signals[request["signal"]])
                    reply: dict[str, Any] = {}
                elif "compact" in request:
                    reply = {"revision": await asyncio.to_thread(compact, request["compact"])}
                else:
                    reply = build_report(await snapshot_of_vms(kube, None, paths, NODE_NAME))
            except (KubeError, OSError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve())
