"""A NIC leaves a running guest in order, leaving nothing, whichever way it was asked for; its name is free again."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from schemas.kube import VMS, VirtualMachine, VmiSpec
from schemas.names import pod_interface
from schemas.networks import NETWORK_STATUS, NETWORKS, parse_network_status, parse_networks
from schemas.operations import operation_key, operation_of, pod_nic_key, pod_nic_of
from schemas.options import OPERATION_HEADER
from services.cli.tracing import NoTraces
from services.common.domain.status_interfaces import DOMAIN, GUEST_AGENT, MULTUS_STATUS, entry_of, tokens
from services.common.kube.client import Kube
from services.lab.guest.console import LinkEvent
from tests.support.lab import SAMPLE_NAD, Lab, Span, until
from tests.support.node_state import NodeState, node_state

NAD = ("--network-attachment-definition-name", SAMPLE_NAD)
SUBRESOURCES = "/apis/subresources.hotnic.io/v1/namespaces/default"
UNPLUG = ("requested", "guest-detached", "multus-detached")
INTERFACES = "/spec/template/spec/domain/devices/interfaces"
NETWORKS_PATH = "/spec/template/spec/networks"


@pytest.fixture
def vm(lab: Lab) -> Iterator[str]:
    """A VM with a free slot, which is given back: every test here unplugs what it plugs."""
    name = lab.vm_with_a_slot()
    yield name
    lab.give_slot_back(name)


def test_the_guest_lets_go_first_and_nothing_is_left(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    plug(lab, vm, interface)
    during = node_state(lab)
    assert during.speaks_of(interface)
    assert len(during.veths - before.veths) == 1
    assert during.leases - before.leases == {address_of(lab, vm, interface)}
    mac = entry(lab, vm, interface)["mac"]

    asyncio.run(guest_reports(lab, vm, mac, "add"))
    answer = unplug(lab, vm, interface)
    assert (answer["result"], answer["rung"]["kind"]) == ("detached", "unplug")
    asyncio.run(guest_reports(lab, vm, mac, "remove"))

    assert_left_nothing(lab, vm, interface, before)
    spans = lab.wait_for_spans(answer["rung"]["traceId"], {f"send hotplug.{stage}" for stage in UNPLUG})
    (request,) = [span for span in spans if span["name"].startswith("PUT /apis/")]
    assert all(below(span, request, spans) for span in spans), names(spans)
    # Who learns by watch may be ahead of the event; what must be in order is what was done.
    order = [
        ("api", "kube patch virtualmachineinstances"),
        ("handler", "qmp device_del"),
        ("handler", "netlink release"),
        ("handler", "kube patch virtualmachineinstances"),
        ("controller", "controller annotate"),
        ("networks", "networks detach"),
        ("multus", "cni DEL bridge"),
        ("networks", "kube patch pods"),
        ("controller", "controller clear"),
    ]
    began = [min(int(s["startTimeUnixNano"]) for s in of(spans, *hop)) for hop in order]
    assert began == sorted(began), list(zip(order, began, strict=True))
    assert any(pod_interface(interface) in span["name"] for span in of(spans, "networks", "networks detach"))


def test_the_name_is_free_at_once_and_the_next_card_gets_a_lease_of_its_own(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    plugged = [plug(lab, vm, interface)]
    first = address_of(lab, vm, interface)
    unplug(lab, vm, interface)
    plugged.append(plug(lab, vm, interface))
    second = address_of(lab, vm, interface)
    now = node_state(lab)
    assert first != second
    assert now.leases - before.leases == {second}
    assert len(now.veths - before.veths) == 1
    assert plugged[0]["operation"] != plugged[1]["operation"]
    unplug(lab, vm, interface)
    assert_left_nothing(lab, vm, interface, before)


def test_the_last_card_can_go_too(lab: Lab, interface: str) -> None:
    vm = lab.vm_with_a_slot(empty=True)
    before = node_state(lab)
    plug(lab, vm, interface)
    assert len(parse_networks(annotations(lab, vm)[NETWORKS])) == 1
    unplug(lab, vm, interface)
    assert parse_networks(annotations(lab, vm).get(NETWORKS)) == []
    assert_left_nothing(lab, vm, interface, before)
    lab.give_slot_back(vm)


async def test_a_plug_that_is_taken_back_at_once_ends_unplugged(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    body = {"networkAttachmentDefinitionName": SAMPLE_NAD, "name": interface}
    async with await Kube.connect(
        kubeconfig=str(lab.layout.kubeconfig), telemetry=NoTraces(), user_agent="hotnic-test"
    ) as kube:
        path = f"{SUBRESOURCES}/virtualmachineinstances/{vm}"
        asked = [(await kube.request("PUT", f"{path}/addinterface", body=body)).headers[OPERATION_HEADER]]
        for _ in range(2):
            answer = await kube.request("PUT", f"{path}/removeinterface", body={"name": interface})
            asked.append(answer.headers[OPERATION_HEADER])
    assert asked[0] != asked[1] == asked[2]
    await asyncio.to_thread(until, lambda: entry_in(spec(lab, vm), interface) is None)
    assert_left_nothing(lab, vm, interface, before)


def test_a_template_and_its_running_vm_gain_and_lose_a_card_together(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    answer = plug(lab, vm, interface, "--persist")
    assert (answer["result"], answer["persist"]) == ("attached", True)
    operations = [
        operation_of(holder.metadata.annotations, interface) for holder in (template_of(lab, vm), lab.vmi(vm))
    ]
    assert [operation.id for operation in operations if operation is not None] == [answer["operation"]] * 2
    assert entry_in(template_of(lab, vm).spec.template.spec, interface) is not None
    stages = {"requested", "pod-annotated", "multus-attached", "guest-attached"}
    spans = lab.wait_for_spans(answer["rung"]["traceId"], {f"send hotplug.{stage}" for stage in stages})
    assert of(spans, "api", "kube patch virtualmachines")
    assert not of(spans, "api", "kube patch virtualmachineinstances")
    assert {span["service"] for span in of(spans, "", "send hotplug.requested")} == {"hotnic-controller"}

    answer = unplug(lab, vm, interface, "--persist")
    assert answer["result"] == "detached"
    template = template_of(lab, vm)
    assert entry_in(template.spec.template.spec, interface) is None
    assert operation_key(interface) not in template.metadata.annotations
    assert_left_nothing(lab, vm, interface, before)


def test_a_card_that_only_the_running_vm_loses_stays_in_the_template(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    plug(lab, vm, interface, "--persist")
    unplug(lab, vm, interface)
    kept = entry_in(template_of(lab, vm).spec.template.spec, interface)
    assert kept is not None
    assert kept.get("state") is None
    # Whatever makes the controller look at the VM again must not bring the card back.
    lab.kubectl("annotate", "vm", vm, f"example.org/{interface}=touched")
    done = lab.hotnic("removeinterface", vm, "--name", interface)
    assert done.returncode == 3, done.stderr
    done = lab.hotnic("addinterface", vm, "--name", interface, *NAD, "--persist")
    assert done.returncode == 3, done.stderr
    unplug(lab, vm, interface, "--persist")
    assert entry_in(template_of(lab, vm).spec.template.spec, interface) is None
    # The mark that kept it out goes with the template's wish.
    until(lambda: operation_key(interface) not in lab.vmi(vm).metadata.annotations)
    assert_left_nothing(lab, vm, interface, before)


def test_a_vm_that_does_not_run_changes_its_template_alone(lab: Lab, interface: str) -> None:
    name = f"resting-{interface}"
    sample = json.loads(lab.kubectl("get", "vm", "centos-stream9-1", "-o", "json"))
    body = {key: sample[key] for key in ("apiVersion", "kind")}
    body |= {"metadata": {"name": name}, "spec": sample["spec"] | {"running": False}}
    lab.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    try:
        done = lab.hotnic("addinterface", name, "--name", interface, *NAD, "--persist", "--wait")
        assert done.returncode == 0, done.stderr
        assert f"{interface} stands in the template of default/{name}, which does not run" in done.stdout
        assert entry_in(template_of(lab, name).spec.template.spec, interface) is not None
        done = lab.hotnic("removeinterface", name, "--name", interface, "--persist", "-o", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"] == "template"
        until(lambda: entry_in(template_of(lab, name).spec.template.spec, interface) is None)
        assert operation_of(template_of(lab, name).metadata.annotations, interface) is None
    finally:
        lab.kubectl("delete", "vm", name, "--wait=false")


def test_an_edit_of_the_template_plugs_and_unplugs(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    mac = "02:68:6f:74:6e:69"
    nic = {"name": interface, "bridge": {}, "macAddress": mac}
    network = {"name": interface, "multus": {"networkName": SAMPLE_NAD}}
    edit(lab, vm, ("add", f"{INTERFACES}/-", nic), ("add", f"{NETWORKS_PATH}/-", network))
    until(lambda: {DOMAIN, GUEST_AGENT, MULTUS_STATUS} <= tokens(entry(lab, vm, interface)))
    shown = entry(lab, vm, interface)
    assert (shown["infoSource"], shown["mac"]) == ("domain, guest-agent, multus-status", mac)
    assert (shown["queueCount"], shown["podInterfaceName"]) == (1, pod_interface(interface))
    assert (shown["linkState"], shown["interfaceName"][:3]) == ("up", "eth")
    stages = {"requested", "pod-annotated", "multus-attached", "guest-attached"}
    spans = lab.wait_for_spans(request_of(lab, interface)[0], {f"send hotplug.{stage}" for stage in stages})
    assert of(spans, "controller", "send hotplug.requested")
    assert of(spans, "handler", "qmp device_add")

    items = template_of(lab, vm).spec.template.spec.interface_items()
    (index,) = [at for at, item in enumerate(items) if item.name == interface]
    edit(lab, vm, ("test", f"{INTERFACES}/{index}/name", interface), ("add", f"{INTERFACES}/{index}/state", "absent"))
    until(lambda: entry_in(template_of(lab, vm).spec.template.spec, interface) is None)
    plugging, unplugging = request_of(lab, interface)
    assert plugging != unplugging
    spans = lab.wait_for_spans(unplugging, {f"send hotplug.{stage}" for stage in UNPLUG})
    (root,) = [span for span in spans if span["name"] == f"controller request {interface}"]
    assert all(below(span, root, spans) for span in spans), names(spans)
    assert of(spans, "handler", "qmp device_del")
    assert of(spans, "multus", "cni DEL bridge")
    assert_left_nothing(lab, vm, interface, before)


@pytest.mark.parametrize("persist", [(), ("--persist",)], ids=["VMI", "VM"])
@pytest.mark.parametrize(
    ("name", "said"), [("nothing", "404 NotFound"), ("default", "422 Invalid")], ids=["unknown", "primary"]
)
def test_what_cannot_be_unplugged_is_refused(lab: Lab, vm: str, name: str, said: str, persist: tuple[str, ...]) -> None:
    before = spec(lab, vm), template_of(lab, vm).spec
    done = lab.hotnic("removeinterface", vm, "--name", name, *persist)
    assert (done.returncode, done.stdout) == (3, "")
    assert said in done.stderr
    assert name in done.stderr
    assert (spec(lab, vm), template_of(lab, vm).spec) == before


def test_while_an_unplug_runs_it_is_joined_and_nothing_else_is_taken(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    plug(lab, vm, interface)
    with lab.without("handler"):
        first = lab.hotnic("removeinterface", vm, "--name", interface, "-o", "json")
        assert first.returncode == 0, first.stderr
        done = lab.hotnic("removeinterface", vm, "--name", interface, "--wait", "--timeout", "1s", "-o", "json")
        assert done.returncode == 4, done.stderr
        assert "reached requested, WaitingForGuestDetached: it is the turn of handler" in done.stderr
        assert json.loads(done.stdout)["operation"] == json.loads(first.stdout)["operation"]
        done = lab.hotnic("addinterface", vm, "--name", interface, *NAD)
        assert done.returncode == 3
        assert "409" in done.stderr
        assert "is being unplugged" in done.stderr
        assert node_state(lab).speaks_of(interface), "nothing may be taken from under a card that the guest uses"
        assert entry(lab, vm, interface)
    until(lambda: entry_in(spec(lab, vm), interface) is None)
    assert_left_nothing(lab, vm, interface, before)


def plug(lab: Lab, vm: str, interface: str, *flags: str) -> dict[str, Any]:
    return changed(lab, "addinterface", vm, interface, *NAD, *flags)


def unplug(lab: Lab, vm: str, interface: str, *flags: str) -> dict[str, Any]:
    return changed(lab, "removeinterface", vm, interface, *flags)


def changed(lab: Lab, verb: str, vm: str, interface: str, *flags: str) -> dict[str, Any]:
    done = lab.hotnic(verb, vm, "--name", interface, *flags, "--wait", "-o", "json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def edit(lab: Lab, vm: str, *ops: tuple[str, str, Any]) -> None:
    patch = [{"op": op, "path": path, "value": value} for op, path, value in ops]
    lab.kubectl("patch", "vm", vm, "--type=json", "-p", json.dumps(patch))


def assert_left_nothing(lab: Lab, vm: str, interface: str, before: NodeState) -> None:
    """Nothing of the NIC stands in any object or on the node, and the node holds what it held before."""
    vmi = lab.vmi(vm)
    pod = lab.pod(vmi).metadata.annotations
    assert all(item.get("name") != interface for item in [*(vmi.spec.networks or ()), *(vmi.status.interfaces or ())])
    assert entry_in(vmi.spec, interface) is None
    kept = {operation_key(interface), pod_nic_key(interface)}
    assert not kept & (vmi.metadata.annotations.keys() | pod.keys())
    link = pod_interface(interface)
    assert link not in {element.requested_interface for element in parse_networks(pod.get(NETWORKS))}
    assert link not in {status.interface for status in parse_network_status(pod.get(NETWORK_STATUS))}
    now = node_state(lab)
    assert now.speaks_of(interface) == []
    assert (now.veths, now.leases, now.links) == (before.veths, before.leases, before.links)


async def guest_reports(lab: Lab, vm: str, mac: str, action: str) -> None:
    """Wait until the guest's console tells that the card with a MAC came, or that its link has gone."""
    async with lab.console(lab.vmi(vm)) as console, asyncio.timeout(10):
        came = await console.wait_for_link(mac, timeout=10)
        if action == "remove":

            def gone(event: object) -> bool:
                return isinstance(event, LinkEvent) and event.action == "remove" and event.name == came.name

            await console.wait_for(gone, timeout=10, since=console.events.index(came))
            assert came.name not in console.links_seen()


def annotations(lab: Lab, vm: str) -> dict[str, str]:
    return lab.pod(lab.vmi(vm)).metadata.annotations


def address_of(lab: Lab, vm: str, interface: str) -> str:
    """The address that the CNI plugins gave an interface."""
    record = pod_nic_of(annotations(lab, vm), pod_nic_key(interface))
    assert record is not None
    return record.ips[0].split("/")[0]


def spec(lab: Lab, vm: str) -> VmiSpec:
    return lab.vmi(vm).spec


def template_of(lab: Lab, vm: str) -> VirtualMachine:
    return msgspec.json.decode(lab.kubectl("get", VMS.plural, vm, "-o", "json"), type=VirtualMachine)


def entry_in(spec: VmiSpec, interface: str) -> dict[str, Any] | None:
    items = spec.domain.devices.interfaces or ()
    return next((item for item in items if item.get("name") == interface), None)


def entry(lab: Lab, vm: str, interface: str) -> dict[str, Any]:
    return entry_of(lab.vmi(vm).status.interfaces, interface) or {}


def request_of(lab: Lab, interface: str) -> list[str]:
    """The traces in which the controller wrote an edit of an interface down, the oldest first."""
    mine = [span for span in lab.all_spans() if span["name"] == f"controller request {interface}"]
    return [span["traceId"].lower() for span in sorted(mine, key=lambda span: int(span["startTimeUnixNano"]))]


def of(spans: list[Span], role: str, name: str) -> list[Span]:
    return [s for s in spans if s["service"].startswith(f"hotnic-{role}") and s["name"].startswith(name)]


def names(spans: list[Span]) -> list[str]:
    return [f"{span['service']} {span['name']}" for span in spans]


def below(span: Span, root: Span, spans: list[Span]) -> bool:
    by_id = {one["spanId"]: one for one in spans}
    at: Span | None = span
    while at is not None and at is not root:
        at = by_id.get(at.get("parentSpanId", ""))
    return at is root
