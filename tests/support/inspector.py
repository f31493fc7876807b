"""A doctor that stays inside a lab and looks whenever it is asked, because starting one takes longer than a look.

Run in the lab as ``python -m tests.support.inspector``: each line of input is a request, answered by one line.
``{"look": true}`` examines everything once, ``{"kill": PID}`` ends a process of the lab by SIGKILL.
The other side is :class:`Inspector`. Next: :mod:`tests.support.rig`, which asks.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from services.cli.collect import many
from services.cli.node_files import Paths
from services.cli.tracing import NoTraces
from services.common.domain.invariants import examine
from services.common.domain.invariants.world import NodeSnapshot, NotVisible, PodOnNode, Snapshot
from services.common.domain.operations import acting_pod
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError
from services.lab.guest.qemu import LAB_QMP_SOCKET
from services.lab.layout import INSIDE_RUN, NODE_NAME
from tests.support.lab import Lab

MONITOR = INSIDE_RUN / "guests" / "{uid}" / LAB_QMP_SOCKET
"""A guest's second monitor, which the handler leaves alone: only the lab's guests have one."""


class Inspector:
    """The process inside a lab, as the tests outside use it. Synchronous; several threads may ask."""

    def __init__(self, lab: Lab) -> None:
        command = [sys.executable, "-m", "services.cli", "lab", "exec", "--"]
        # Who gives up waiting for an answer leaves a thread behind that still reads it.
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [*command, sys.executable, "-m", "tests.support.inspector"],
            env=lab.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()


def shown(world: Snapshot) -> dict[str, Any]:
    """What the invariants say of a world, and the numbers that have to be right besides."""
    report = examine(world)
    cards: dict[str, list[str] | str] = {}
    for machine in world.machines:
        pod = acting_pod(machine.vmi, machine.pods) if machine.vmi is not None else None
        inside = machine.inside.get(pod.metadata.uid) if pod is not None else None
        if isinstance(inside, PodOnNode) and not isinstance(inside.cards, NotVisible):
            cards[machine.name] = [card.interface for card in inside.cards]
    counted = world.node if isinstance(world.node, NodeSnapshot) else None
    return {
        "busy": [str(one) for one in report.in_progress],
        "disagreements": [str(one) for one in report.disagreements],
        "notSeen": [str(one) for one in report.not_seen],
        "cards": cards,
        "leases": -1 if counted is None or isinstance(counted.leases, NotVisible) else len(counted.leases),
        "veths": -1
        if counted is None or isinstance(counted.links, NotVisible)
        else sum(link.kind == "veth" for link in counted.links),
    }


async def serve() -> None:
    """Answer until the input ends."""
    paths = Paths(qmp_socket=str(MONITOR))
    kube = await Kube.connect(
        kubeconfig=os.environ["KUBECONFIG"], telemetry=NoTraces(), user_agent="hotnic-test-inspector"
    )
    async with kube:
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            try:
                if "kill" in request:
                    os.kill(request["kill"], signal.SIGKILL)
                    answer: dict[str, Any] = {}
                else:
                    answer = shown(await many(kube, None, paths, NODE_NAME))
            except (KubeError, OSError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve())
