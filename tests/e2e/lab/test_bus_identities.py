"""Identities on NATS in a lab of three nodes: what a node may do, a server that dies, and a seed that is replaced."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoServersError

from lab.cli import commands
from lab.layout import role_processes
from lab.namespaces import control
from lab.supervisor.bootstrap import load_samples
from lab.supervisor.credentials import bus
from schemas.bus.encoding import (
    DEAD_ROOT,
    STREAM,
    SUBJECT_ROOT,
    Subject,
    consumer_request,
    node_consumer,
    node_filter,
    stored_notice,
)
from schemas.bus.hotplug_status import BUCKET
from schemas.bus.permissions import CLIENT_API, CONSUMER_REQUESTS, inbox_prefix
from schemas.stages import OperationKind, Stage, stage_path
from services.common.bus.nkeys import write_seed
from tests.support.bus.client import nats_client
from tests.support.lab.process import DEADLINE
from tests.support.lab.running import SAMPLE_NAD, Lab, running_lab, wait_until
from tests.support.leftovers import nothing_left_behind

RELOADED = "Reloaded server configuration"
"""In the log of nats-server."""

VM = "third"
"""Its guest is on the node `lab-3`."""

CONSUMER = f"{CLIENT_API}.CONSUMER"
OWN, OTHER = (node_consumer("handler", node) for node in ("lab-2", "lab-3"))
DENIED = {
    "publish another node's event": ("publish", str(Subject(Stage.GUEST_ATTACHED, "lab-3", "default", VM))),
    "publish another role's stage": ("publish", str(Subject(Stage.MULTUS_ATTACHED, "lab-2", "default", VM))),
    "publish a dead letter of another node": ("publish", f"{DEAD_ROOT}.{Stage.GUEST_ATTACHED}.lab-3.default.{VM}"),
    "write the hot-plug status": ("publish", f"$KV.{BUCKET}.default.{VM}.aaaaaaaaaaa"),
    "pull another node's events": ("publish", f"{CONSUMER}.MSG.NEXT.{STREAM}.{OTHER}"),
    "pull another role's events": ("publish", f"{CONSUMER}.MSG.NEXT.{STREAM}.{node_consumer('networks', 'lab-2')}"),
    "create its own consumer": ("publish", f"{CONSUMER}.CREATE.{STREAM}.{OWN}.{node_filter('lab-2')}"),
    "create a consumer without a name": ("publish", f"{CONSUMER}.CREATE.{STREAM}"),
    "request another node's consumer": ("publish", consumer_request("handler", "lab-3")),
    "answer requests for consumers": ("subscription", CONSUMER_REQUESTS),
    "read the events of all nodes": ("publish", f"{CLIENT_API}.DIRECT.GET.{STREAM}"),
    "follow the events of all nodes": ("subscription", stored_notice(f"{SUBJECT_ROOT}.>")),
    "delete another node's consumer": ("publish", f"{CONSUMER}.DELETE.{STREAM}.{OTHER}"),
    "purge the events": ("publish", f"{CLIENT_API}.STREAM.PURGE.{STREAM}"),
    "create a stream": ("publish", f"$JS.API.STREAM.CREATE.{STREAM}"),
    "read another node's subjects": ("subscription", node_filter("lab-3")),
    "read every subject": ("subscription", ">"),
    "read another node's answers": ("subscription", f"{inbox_prefix('handler', 'lab-3')}.>"),
}
"""What the handler of `lab-2` may not do, each with the subject that it would publish or subscribe to."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of three nodes, with a VM on the third."""
    with (
        nothing_left_behind(),
        running_lab(tmp_path_factory.mktemp("lab"), bare=True, guests="double", nodes=3) as running,
    ):
        objects = load_samples()
        for one in objects:
            if one["kind"] == "VirtualMachine":
                one["metadata"]["name"] = VM
                one["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "lab-3"}
        running.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        running.wait_ready(VM)
        yield running


@contextlib.asynccontextmanager
async def handler_of_second_node(lab: Lab) -> AsyncIterator[tuple[Client, asyncio.Queue[str]]]:
    """Connect with the identity of the handler of `lab-2`; the queue gets the server's errors."""
    errors: asyncio.Queue[str] = asyncio.Queue()
    async with nats_client(lab.nats_of("handler-2"), errors=errors) as client:
        yield client, errors


@pytest.mark.parametrize("attempt", DENIED)
async def test_a_node_role_cannot(lab: Lab, attempt: str) -> None:
    kind, subject = DENIED[attempt]
    async with handler_of_second_node(lab) as (client, errors):
        if kind == "publish":
            await client.publish(subject, b"{}")
        else:
            await client.subscribe(subject)
        await client.flush()
        async with asyncio.timeout(DEADLINE):
            error = await errors.get()
    assert f'permissions violation for {kind} to "{subject}"'.lower() in error.lower()


async def test_a_node_role_publishes_for_its_own_node(lab: Lab) -> None:
    own = str(Subject(Stage.GUEST_ATTACHED, "lab-2", "default", VM))
    async with nats_client(lab.unrestricted_nats) as everything:
        stream = everything.jetstream()
        before = (await stream.stream_info(STREAM)).state.last_seq
        async with handler_of_second_node(lab) as (client, errors):
            await client.publish(own, b"no event")
            await client.flush()
            assert errors.empty()
        found = await stream.get_last_msg(STREAM, own)
    assert (found.seq or 0) > before


@pytest.mark.parametrize("variable", ["NATS_NKEY", "NATS_CA"])
async def test_nobody_connects_without_an_identity_or_to_an_unknown_server(lab: Lab, variable: str) -> None:
    environment = {name: value for name, value in lab.unrestricted_nats.items() if name != variable}
    with pytest.raises((NatsError, NoServersError, OSError), match=r"(?i)authorization|certificate"):
        async with nats_client(environment):
            pass


def plug_and_unplug(lab: Lab, interface: str) -> None:
    """Plug an interface into the VM and take it out again."""
    network = ("--network-attachment-definition-name", SAMPLE_NAD)
    for command in (("addinterface", *network), ("removeinterface",)):
        done = lab.hotnic(*command, VM, "--name", interface, "--wait")
        assert done.returncode == 0, done.stderr


def stages(lab: Lab, interface: str) -> set[tuple[str, str]]:
    """Return kind and stage of every event of an interface on the bus."""
    done = lab.hotnic("events", VM, "--interface", interface, "-o", "json", "--nats-url", lab.nats_url)
    assert done.returncode == 0, done.stderr
    # Nothing but the events: no warning of the library, and no word about NATS.
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return {(one["kind"], one["stage"]) for one in found}


ALL_STAGES = {(str(kind), str(stage)) for kind in OperationKind for stage in stage_path(kind)}


def connections(lab: Lab, process: str) -> int:
    """Return how often a process has connected to NATS."""
    return lab.layout.log(process).read_text().count("NATS connected")


def test_every_event_is_published_although_nats_is_killed(lab: Lab) -> None:
    before = connections(lab, "handler-3")
    signal_nats(lab, "KILL")
    wait_until(lambda: component(lab, "nats")["state"] == "exited")
    plug_and_unplug(lab, "away")
    assert commands.change(lab.layout.dir, "start", "nats", print) == 0
    wait_until(lambda: connections(lab, "handler-3") > before)
    plug_and_unplug(lab, "back")
    for interface in ("away", "back"):
        wait_until(lambda name=interface: stages(lab, name) >= ALL_STAGES)


async def test_a_seed_is_replaced_while_events_flow_and_none_is_lost(lab: Lab) -> None:
    plugged: list[str] = []
    replaced = asyncio.Event()

    async def keep_plugging() -> None:
        while not replaced.is_set():
            plugged.append(f"during{len(plugged)}")
            await asyncio.to_thread(plug_and_unplug, lab, plugged[-1])

    before, others = connections(lab, "handler-3"), connections(lab, "handler-2")
    async with asyncio.TaskGroup() as group:
        group.create_task(keep_plugging())
        await asyncio.to_thread(replace_seed, lab, "handler-3")
        await asyncio.to_thread(wait_until, lambda: connections(lab, "handler-3") > before)
        replaced.set()
    await asyncio.to_thread(plug_and_unplug, lab, "after")
    for interface in (*plugged, "after"):
        await asyncio.to_thread(wait_until, lambda name=interface: stages(lab, name) >= ALL_STAGES)
    assert connections(lab, "handler-2") == others, "the connection of another identity was closed"


def replace_seed(lab: Lab, process: str) -> None:
    """Replace the seed of a process; nats-server accepts the new one before, and the old one until afterwards."""
    seed = lab.layout.nats_seed(process)
    following = seed.with_name(seed.name + bus.NEXT)
    write_seed(following)
    reload_nats(lab)
    following.replace(seed)
    reload_nats(lab)


def reload_nats(lab: Lab) -> None:
    """Have nats-server read its configuration again, with the seeds of now."""
    known = bus.identities(lab.layout, role_processes(3))
    bus.write_configuration(lab.layout, bus.in_namespaces(lab.layout), known)
    log = lab.layout.log("nats")
    before = log.read_text().count(RELOADED)
    signal_nats(lab, "HUP")
    wait_until(lambda: log.read_text().count(RELOADED) > before)


def signal_nats(lab: Lab, signal: str) -> None:
    """Send a signal to nats-server."""
    lab.run_inside("kill", f"-{signal}", str(component(lab, "nats")["pid"]))


def component(lab: Lab, name: str) -> dict[str, Any]:
    """Return the state of a process of the lab."""
    (answer,) = control.request(lab.layout.control_socket, {"verb": "status"}, timeout=DEADLINE)
    (found,) = [one for one in answer["components"] if one["name"] == name]
    return dict(found)
