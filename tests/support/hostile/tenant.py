"""A hostile tenant: a process that sends hostile objects, requests and events at a bounded rate, then deletes its own.

Run as ``python -m tests.support.hostile.tenant OPTIONS``, where the options are a JSON object (:class:`Options`). It
prints ``ready`` once its pods run, attacks, and prints a JSON line with what it sent and the answers' numbers. After a
line on its standard input it deletes its namespace, waits for that, and ends. It is a process of its own, with a low
priority, so that what it costs itself does not count as an effect of what it sends.
Next: :mod:`tests.support.hostile.remains`, what is left of it.
"""

import asyncio
import contextlib
import os
import random
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import msgspec
from nats.aio.client import Client

from schemas.bus.encoding import SUBJECT_ROOT
from schemas.bus.events import ChangedObject, Event, MultusAttached, ObjectRef, Requested
from schemas.bus.hotplug_status import BUCKET
from schemas.kubernetes.networks import NETWORKS
from schemas.kubernetes.objects import CREATED_BY_LABEL, NADS, PODS, VMIS, VMS, Pod
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind
from services.cli.tracing.tracer import NoTraces
from services.common.bus.envelope import encode_message
from services.common.kube.client import MERGE_PATCH, Kube
from services.common.kube.errors import KubeError, NotFound
from tests.support.bus.client import nats_client
from tests.support.hostile import objects

NAMESPACE = "hostile"
MAX_OBJECTS = 40
"""VMs at a time; the oldest is deleted. VMIs and pods cost the lab a sandbox each, so there are fewer."""
MAX_VMIS, MAX_STRANGE_PODS = 8, 6
MAX_SLOW = 24
"""Requests at a time of which the rest of the body never comes."""
DEADLINE = 120.0
"""Seconds for its pods to run, and for its namespace to disappear."""
SUBRESOURCES = f"/apis/subresources.hotnic.io/v1/namespaces/{NAMESPACE}/virtualmachineinstances"


class Options(msgspec.Struct, frozen=True):
    """What the tenant does.

    :ivar kubeconfig: of the lab.
    :ivar nats: variables with which to connect to the lab's bus, with an identity that may do everything.
    :ivar socket: path of the silent socket outside of the lab.
    :ivar node: name of the node.
    :ivar victim: namespace and name of another tenant's VM, about which it forges events.
    :ivar seconds: how long it attacks.
    :ivar rate: actions a second.
    :ivar pods: number of its running pods, whose annotations it changes.
    :ivar seed: of its random choices.
    """

    kubeconfig: str
    nats: dict[str, str]
    socket: str
    node: str
    victim: tuple[str, str]
    seconds: float
    rate: float = 25.0
    pods: int = 20
    seed: str = ""


class Attacked(msgspec.Struct):
    """What the tenant has done.

    :ivar sent: number of actions by kind.
    :ivar answers: number of answers by HTTP status; 0 counts those that did not come in time.
    """

    sent: dict[str, int] = msgspec.field(default_factory=Counter)
    answers: dict[int, int] = msgspec.field(default_factory=Counter)


class HostileTenant:
    """The actions of the tenant.

    :ivar attacked: what it has done.
    """

    def __init__(self, options: Options, kube: Kube, bus: Client) -> None:
        self._options = options
        self._kube = kube
        self._bus = bus
        self._rng = random.Random(options.seed)
        self._number = 0
        self._vms: list[str] = []
        self._vmis: list[str] = []
        self._strange = 0
        self._slow: list[asyncio.StreamWriter] = []
        self.attacked = Attacked()
        self._actions: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "vm": (15, self._change_vm),
            "vmi": (12, self._change_vmi),
            "nad": (12, self._change_nad),
            "annotation": (25, self._annotate_pod),
            "pod": (2, self._create_pod),
            "launcher": (4, self._forge_launcher),
            "event": (12, self._forge_event),
            "value": (3, self._forge_value),
            "request": (12, self._send_request),
            "slow request": (3, self._send_slowly),
        }

    async def settle(self) -> None:
        """Create the namespace, its networks and its pods, and wait until the pods run."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        await self._kube.request("POST", "/api/v1/namespaces", body=namespace)
        for name, config in objects.nads().items():
            await self._kube.create(NADS, NAMESPACE, objects.nad(name, config, NAMESPACE))
        for number in range(self._options.pods):
            await self._kube.create(PODS, NAMESPACE, objects.pod(f"pod{number}", NAMESPACE))
        async with asyncio.timeout(DEADLINE):
            while True:
                running = [pod for pod in await self._pods() if pod.status.phase == "Running"]
                if len(running) == self._options.pods:
                    return
                await asyncio.sleep(0.2)

    async def attack(self) -> None:
        """Act at the given rate for the given time. An action that is not answered does not delay the others."""
        names = list(self._actions)
        weights = [weight for weight, _ in self._actions.values()]
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(round(self._options.seconds * self._options.rate)):
                await asyncio.sleep(began + number / self._options.rate - time.monotonic())
                kind = self._rng.choices(names, weights)[0]
                self.attacked.sent[kind] += 1
                group.create_task(self._act(self._actions[kind][1]))

    async def leave(self) -> None:
        """Delete the namespace with everything in it, and wait until it is gone."""
        for writer in self._slow:
            writer.close()
        path = f"/api/v1/namespaces/{NAMESPACE}"
        await self._kube.request("DELETE", path)
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await self._kube.request("GET", path)
                except NotFound:
                    return
                await asyncio.sleep(0.2)

    async def _act(self, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except KubeError as error:
            self.attacked.answers[error.status or 0] += 1
        except (OSError, ssl.SSLError):
            self.attacked.answers[0] += 1
        else:
            self.attacked.answers[200] += 1

    async def _pods(self) -> list[Pod]:
        return (await self._kube.list(PODS, NAMESPACE)).items

    def _name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{self._number}"

    async def _change_vm(self) -> None:
        name = self._name("vm")
        await self._kube.create(VMS, NAMESPACE, objects.vm(self._rng, name, NAMESPACE))
        self._vms.append(name)
        if len(self._vms) > MAX_OBJECTS:
            await self._kube.delete(VMS, NAMESPACE, self._vms.pop(0))

    async def _change_vmi(self) -> None:
        if len(self._vmis) < MAX_VMIS:
            name = self._name("vmi")
            self._vmis.append(name)
            await self._kube.create(VMIS, NAMESPACE, objects.vmi(self._rng, name, NAMESPACE))
        else:
            await self._merge(VMIS.path(NAMESPACE, self._rng.choice(self._vmis)), self._change())

    def _change(self) -> bytes:
        return objects.vmi_change(self._rng, self._options.node)

    async def _merge(self, path: str, body: bytes) -> None:
        await self._kube.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def _change_nad(self) -> None:
        # The networks of which the pods' annotations are proper stay as they are.
        name = self._rng.choice(list(objects.nads())[3:])
        config = objects.mutated_config(self._rng)
        body = msgspec.json.encode({"spec": {"config": config.replace("\ud800", "")}})
        await self._merge(NADS.path(NAMESPACE, name), body)

    async def _annotate_pod(self) -> None:
        text = objects.networks_annotation(self._rng, NAMESPACE)
        await self._annotate(self._rng.randrange(self._options.pods), {NETWORKS: text})

    async def _annotate(self, number: int, annotations: dict[str, str], labels: dict[str, str] | None = None) -> None:
        meta = {"annotations": annotations, "labels": labels or {}}
        await self._merge(PODS.path(NAMESPACE, f"pod{number}"), msgspec.json.encode({"metadata": meta}))

    async def _create_pod(self) -> None:
        if self._strange < MAX_STRANGE_PODS:
            self._strange += 1
            text = objects.networks_annotation(self._rng, NAMESPACE)
            await self._kube.create(PODS, NAMESPACE, objects.pod(self._name("strange"), NAMESPACE, text))

    async def _forge_launcher(self) -> None:
        """Have a pod claim that it runs a VMI: one of the tenant's, or the victim."""
        number = self._rng.randrange(self._options.pods)
        if self._vmis and self._rng.random() < 0.7:
            vmi = await self._kube.get(VMIS, NAMESPACE, self._rng.choice(self._vmis))
        else:
            vmi = await self._kube.get(VMIS, *self._options.victim)
        await self._annotate(number, objects.annotations(self._rng), {CREATED_BY_LABEL: vmi.metadata.uid})

    async def _forge_event(self) -> None:
        namespace, name = NAMESPACE, self._rng.choice((self._name("nobody"), "a\0b", "../..", "x?y=z", "ä" * 80))
        if self._rng.random() < 0.5:
            namespace, name = self._options.victim
        reference = ObjectRef(namespace, name, "u")
        operation = Operation(f"forged{self._number}", OperationKind.PLUG, "blue")
        changed = ChangedObject("VirtualMachineInstance", "u", f"{self._rng.random()}")
        event: Event = Requested(operation, reference, changed=changed)
        role = "api"
        if self._rng.random() < 0.5:
            role = "networks"
            pod = ObjectRef(namespace, "pod1", "u")
            event = MultusAttached(operation, reference, pod, "s", self._options.node, changed, pod_interface="a\x1b")
        message = encode_message(event, role=role, node=self._options.node, start_id=str(self._rng.random()))
        payload = self._rng.choice((message.payload, message.payload, objects.document(self._rng)))[:900_000]
        subject = self._rng.choice((message.subject, message.subject, f"{SUBJECT_ROOT}.x", f"{SUBJECT_ROOT}.a.b.c.d.e"))
        await self._bus.publish(subject, payload, headers=message.headers)

    async def _forge_value(self) -> None:
        key = self._rng.choice((f"{NAMESPACE}.nobody{self._rng.randrange(9)}.abc", "x", "=ZZ.a.b", "default.vm1.a"))
        await self._bus.publish(f"$KV.{BUCKET}.{key}", objects.document(self._rng)[:100_000])

    async def _send_request(self) -> None:
        body, kind = objects.request_body(self._rng)
        target = self._rng.choice((*self._vmis[-3:], "nobody", "%2e%2e", "a%00b"))
        verb = self._rng.choice(("addinterface", "removeinterface"))
        await self._kube.request("PUT", f"{SUBRESOURCES}/{target}/{verb}", body=body, content_type=kind)

    async def _send_slowly(self) -> None:
        if len(self._slow) >= MAX_SLOW:
            self._slow.pop(0).close()
        access = self._kube.access
        server = urlsplit(access.server)
        _, writer = await asyncio.open_connection(server.hostname, server.port, ssl=access.ssl)
        self._slow.append(writer)
        head = f"PUT {SUBRESOURCES}/nobody/addinterface HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n"
        writer.write(
            head.encode() + self._rng.choice((b"", b"X-A: b", b"\r\n{", b"Transfer-Encoding: chunked\r\n\r\n"))
        )
        await writer.drain()


@contextlib.contextmanager
def silent_socket(path: str) -> Iterator[None]:
    """Listen on a socket, and never accept."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen(256)
        try:
            yield
        finally:
            os.unlink(path)


@contextlib.asynccontextmanager
async def connected(options: Options) -> AsyncIterator[HostileTenant]:
    """Connect to the lab as a hostile tenant."""
    kube = await Kube.connect(kubeconfig=options.kubeconfig, telemetry=NoTraces(), user_agent="hotnic-test-hostile")
    async with nats_client(options.nats) as bus, kube:
        yield HostileTenant(options, kube, bus)


def say(line: bytes) -> None:
    """Write a line to the process that has started this one."""
    os.write(1, line + b"\n")


async def main(options: Options) -> None:
    """Settle, attack, report, and leave when told to."""
    async with connected(options) as tenant:
        with silent_socket(options.socket):
            await tenant.settle()
            say(b"ready")
            await asyncio.to_thread(sys.stdin.readline)
            await tenant.attack()
            say(msgspec.json.encode(tenant.attacked))
            await asyncio.to_thread(sys.stdin.readline)
        await tenant.leave()


if __name__ == "__main__":
    os.nice(10)
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Options)))
