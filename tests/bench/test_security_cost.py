"""What bus identities and admission policies cost a plug, each with and without them, in turns in one run.

A plug is measured from the PUT until the watch shows the device in the VMI's status, with doubles for guests: an
emulated guest would take longer, and the same milliseconds would be a smaller share. HOTNIC_BENCH_TURNS and
HOTNIC_BENCH_PLUGS have the number of turns, and of the plugs of each side in a turn.
"""

import asyncio
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from lab.cli import commands
from lab.layout import BUS_ROLES, NATS_PORT
from lab.supervisor import components
from lab.supervisor.credentials import bus
from lab.supervisor.credentials.certificates import NAMESPACE
from lab.tools import LabTools
from schemas.bus.encoding import STREAM
from schemas.kubernetes.networks import NETWORK_STATUS
from schemas.kubernetes.objects import EVENTS, NADS, PODS, VMIS, VMS, Pod, Resource
from services.cli.tracing.tracer import NoTraces
from services.common.bus.nats_config import render_server
from services.common.kube.client import MERGE_PATCH, Kube
from services.common.kube.errors import Forbidden
from tests.bench.turns import Side, compare, show
from tests.support.bus.client import nats_client
from tests.support.lab.process import DEADLINE
from tests.support.lab.running import (
    KUBERNETES_VARIABLE,
    SAMPLE_VM,
    Lab,
    environment,
    running_lab,
    wait_until,
)
from tests.support.lab.timed_plugs import timed_plugs

Record = Callable[[str, dict[str, Any]], None]
Object = dict[str, Any]

KUBERNETES: Final = "1.36"
UNPROTECTED: Final = {"NATS_URL": f"nats://127.0.0.1:{NATS_PORT}", "NATS_CA": "", "NATS_NKEY": ""}
"""The variables of a role on a server without TLS and users; an empty one counts as missing."""

# All turns of one test.
pytestmark = pytest.mark.timeout(1800)

POLICIES: Final = "validatingadmissionpolicies,validatingadmissionpolicybindings"
POLL: Final = 0.05
"""Seconds between two probes of a policy."""


async def test_bus_identities(record: Record) -> None:
    """Two labs side by side, one of which is at rest while the other one plugs: they share nothing but the machine."""
    async with contextlib.AsyncExitStack() as stack:
        # The lab's own API server, which takes less of a plug than Kubernetes itself.
        stack.enter_context(environment(**{KUBERNETES_VARIABLE: ""}))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotnic-bench-")))
        sides, labs = [], []
        for protected in (True, False):
            name = "with" if protected else "without"
            lab = stack.enter_context(lab_with_roles(directory / name, protected=protected))
            sides.append(Side(await stack.enter_async_context(timed_plugs(lab.layout.kubeconfig, SAMPLE_VM))))
            labs.append(lab)
        before = [await messages(lab, protected=lab is labs[0]) for lab in labs]
        result = await compare(*sides)
        after = [await messages(lab, protected=lab is labs[0]) for lab in labs]
    published = [late - early for late, early in zip(after, before, strict=True)]
    # Without the bus, a plug would go on by watches, and the comparison would be about nothing.
    plugs = len(sides[0].all_plugs())
    assert all(count > 4 * plugs for count in published), f"{published} messages of {plugs} plugs and unplugs each"
    result["messages"] = dict(zip(("with", "without"), published, strict=True))
    show("bus identities (TLS, a user for each role and node, permissions, three accounts)", result)
    record("cost-of-bus-identities", result)


@contextlib.contextmanager
def lab_with_roles(directory: Path, *, protected: bool) -> Iterator[Lab]:
    """Run a lab whose roles that use the bus are started here, in the same way with and without bus identities."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        with running_lab(directory, guests="double", without=BUS_ROLES) as lab:
            if not protected:
                admit_everybody(lab)
            started += [start_role(lab, role, {} if protected else UNPROTECTED) for role in BUS_ROLES]
            wait_until(lambda: all(component.get("ready", True) for component in status(lab)), DEADLINE)
            yield lab
    finally:
        # The lab's end has ended them.
        for process in started:
            process.wait(DEADLINE)


def start_role(lab: Lab, role: str, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a role as `hotnic lab up --without` says, with these settings in addition."""
    identity = lab.layout.identity()
    assert identity is not None
    parameters = components.LabParameters(lab.layout, identity, LabTools.find())
    # hotnic lab exec … -- env NAME=VALUE… python -m services.ROLE
    _, *words = shlex.split(components.manual_command(parameters, role))
    added = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "services.cli", *words[:-3], *added, *words[-3:]]
    with lab.layout.log(role).open("wb") as log:
        return subprocess.Popen(
            command,
            env={**lab.environment, **components.base_environment(parameters.tools, os.environ)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def status(lab: Lab) -> list[Object]:
    """Return the state of each process of a lab."""
    lines: list[str] = []
    commands.status(lab.layout.dir, as_json=True, output=lines.append)
    found: list[Object] = json.loads(lines[0])["components"]
    return found


def admit_everybody(lab: Lab) -> None:
    """Restart the lab's nats-server without TLS, users and accounts."""
    place = bus.in_namespaces(lab.layout)
    plain = render_server(
        listen=f"{place.host}:{NATS_PORT}",
        store_dir=str(place.store),
        tls=None,
        name="hotnic-lab",
        store_limits={"max_memory_store": "64MB", "max_file_store": "1GB"},
    )
    lab.layout.nats_config.write_text(plain)
    output: list[str] = []
    assert commands.restart(lab.layout.dir, "nats", output.append) == 0, output


async def messages(lab: Lab, *, protected: bool) -> int:
    """Return how many messages the stream of a lab has had."""
    variables = lab.unrestricted_nats
    if not protected:
        variables = {"NATS_URL": variables["NATS_URL"].replace("tls://", "nats://")}
    async with nats_client(variables) as client:
        info = await client.jetstream().stream_info(STREAM)
    return info.state.last_seq or 0


async def test_admission_policies(record: Record) -> None:
    """One lab on Kubernetes itself, from which the policies and their bindings are deleted for every other turn."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(environment(**{KUBERNETES_VARIABLE: KUBERNETES}))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotnic-bench-")))
        lab = stack.enter_context(running_lab(directory, guests="double"))
        timed = await stack.enter_async_context(timed_plugs(lab.layout.kubeconfig, SAMPLE_VM))
        kube = await stack.enter_async_context(client_of(lab.layout.kubeconfig))
        policies = await Policies.read(lab, kube)
        beside: dict[str, Callable[[], Awaitable[float]]] = {}
        for role, write in (("networks", policies.write_pod), ("api", policies.write_vmi)):
            own = await stack.enter_async_context(client_of(lab.layout.role_kubeconfig(role)))
            beside[f"a write of {role}"] = timed_write(write, own)
        sides = [Side(timed, enter, beside) for enter in (policies.put_in_force, policies.remove)]
        result = await compare(*sides)
        await policies.put_in_force()
    result |= {"kubernetes": KUBERNETES, "policies": policies.count}
    show(f"{policies.count} admission policies (Kubernetes {KUBERNETES})", result)
    record("cost-of-admission-policies", result)


@contextlib.asynccontextmanager
async def client_of(kubeconfig: Path) -> AsyncIterator[Kube]:
    """Provide a client with these credentials, whose connections have ended at the end."""
    async with await Kube.connect(kubeconfig=str(kubeconfig), telemetry=NoTraces(), user_agent="hotnic-bench") as kube:
        yield kube
    # A TLS connection finishes its shutdown after the session is closed, and gives no signal when it is done.
    await asyncio.sleep(0.1)


def timed_write(write: Callable[[Kube], Awaitable[object]], kube: Kube) -> Callable[[], Awaitable[float]]:
    """Return how to measure a write, in milliseconds."""

    async def measure() -> float:
        began = time.monotonic()
        await write(kube)
        return (time.monotonic() - began) * 1000

    return measure


class Policies:
    """The admission policies of a lab, which can be removed and put in force again.

    :param pod: the launcher pod of the sample VM.
    :ivar count: how many there are.
    """

    def __init__(self, lab: Lab, kube: Kube, pod: Pod, objects: list[Object]) -> None:
        self._lab, self._kube, self._pod = lab, kube, pod
        self._objects = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*map(desired, objects)]})
        self.count = sum(one["kind"] == "ValidatingAdmissionPolicy" for one in objects)
        self._are_in_force = True

    @classmethod
    async def read(cls, lab: Lab, kube: Kube) -> "Policies":
        """Return the policies of a lab, which are in force."""
        found = json.loads(await asyncio.to_thread(lab.kubectl, "get", POLICIES, "-o", "json"))
        pod = await asyncio.to_thread(lab.pod, await kube.get(VMIS, "default", SAMPLE_VM))
        policies = cls(lab, kube, pod, found["items"])
        await policies._until_in_force(True)
        return policies

    async def put_in_force(self) -> None:
        """Create the policies, unless they exist; return once each of those that a plug meets denies a request."""
        if not self._are_in_force:
            await asyncio.to_thread(self._lab.kubectl, "create", "-f", "-", stdin=self._objects)
            await self._until_in_force(True)

    async def remove(self) -> None:
        """Delete the policies, unless they are gone; return once the API server does not ask them any more."""
        if self._are_in_force:
            await asyncio.to_thread(self._lab.kubectl, "delete", "-f", "-", stdin=self._objects)
            await self._until_in_force(False)

    async def write_pod(self, kube: Kube) -> None:
        """Write what networks writes to a pod, without a change: all but the store of the API server has its work."""
        meta = self._pod.metadata
        present = {NETWORK_STATUS: meta.annotations[NETWORK_STATUS]}
        patch = {"metadata": {"annotations": present}}
        await kube.merge_patch(PODS, meta.namespace, meta.name, patch, subresource="status")

    async def write_vmi(self, kube: Kube) -> None:
        """Write nothing to the VMI."""
        await kube.merge_patch(VMIS, "default", SAMPLE_VM, {"metadata": {"annotations": {}}})

    async def _until_in_force(self, in_force: bool) -> None:
        async with asyncio.timeout(DEADLINE):
            for probe in self._probes():
                # The API server learns of a policy a little after it is stored, and has no event for that.
                while await self._is_denied(*probe) is not in_force:  # noqa: ASYNC110
                    await asyncio.sleep(POLL)
        self._are_in_force = in_force

    def _probes(self) -> Iterator[tuple[str, str, Object, str]]:
        """Yield requests, one for each policy, that it denies: method, path, body, and user."""
        note: Object = {"metadata": {"annotations": {"hotnic.io/bench": "1"}}}
        meta = self._pod.metadata
        noted: tuple[tuple[Resource[Any], str, str], ...] = (
            (PODS, meta.namespace, meta.name),
            (VMIS, "default", SAMPLE_VM),
            (VMS, "default", SAMPLE_VM),
        )
        for resource, namespace, name in noted:
            yield "PATCH", resource.path(namespace, name), note, "tenant"
        network: Object = {
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": NADS.kind,
            "metadata": {"name": "bench"},
            "spec": {"config": json.dumps({"cniVersion": "1.0.0", "name": "bench", "type": "multus"})},
        }
        yield "POST", NADS.path("default"), network, "tenant"
        event: Object = {
            "apiVersion": "v1",
            "kind": EVENTS.kind,
            "metadata": {"name": "bench"},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": meta.name},
            "reason": "Bench",
            "message": "of nobody",
            "type": "Normal",
        }
        yield "POST", EVENTS.path("default"), event, f"system:serviceaccount:{NAMESPACE}:hotnic-api"

    async def _is_denied(self, method: str, path: str, body: Object, user: str) -> bool:
        """Return whether a policy denies a dry run of a user who has all rights."""
        headers = {"Impersonate-User": user, "Impersonate-Group": "system:masters"}
        kind = MERGE_PATCH if method == "PATCH" else None
        try:
            await self._kube.request(
                method, path, query={"dryRun": "All"}, body=body, content_type=kind, headers=headers
            )
        except Forbidden as denied:
            if "ValidatingAdmissionPolicy" not in denied.message:
                raise
            return True
        return False


def desired(obj: Object) -> Object:
    """Return an object without what the API server has added."""
    kept = {key: obj["metadata"][key] for key in ("name", "labels") if key in obj["metadata"]}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": kept, "spec": obj["spec"]}
