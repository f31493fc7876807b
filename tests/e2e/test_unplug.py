"""A NIC is unplugged from a running guest, by every kind of request: nothing is left, and its name is free again."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from lab.guest.console import LinkEvent
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, parse_network_status, parse_networks
from schemas.kubernetes.objects import VMS, VirtualMachine, VmiSpec
from schemas.kubernetes.operations import operation_key, pod_nic_key, read_operation, read_pod_nic
from schemas.kubernetes.options import OPERATION_HEADER
from schemas.names import pod_interface
from services.cli.tracing.tracer import NoTraces
from services.common.domain.status_interfaces import DOMAIN, GUEST_AGENT, MULTUS_STATUS, find_entry, parse_tokens
from services.common.kube.client import Kube
from tests.support.lab.node_state import NodeState, node_state
from tests.support.lab.running import SAMPLE_NAD, Lab, Span, wait_until

NAD = ("--network-attachment-definition-name", SAMPLE_NAD)
SUBRESOURCES = "/apis/subresources.hotnic.io/v1/namespaces/default"
UNPLUG = tuple(f"send hotplug.{stage}" for stage in ("requested", "guest-detached", "multus-detached"))
INTERFACES = "/spec/template/spec/domain/devices/interfaces"
NETWORKS_PATH = "/spec/template/spec/networks"


@pytest.fixture
def vm(lab: Lab) -> Iterator[str]:
    """A VM with a free slot, which is released: every test here unplugs what it plugs."""
    name = lab.take_slot()
    yield name
    lab.release_slot(name)


def test_unplug_detaches_the_guest_first_and_leaves_nothing(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    plug(lab, vm, interface)
    during = node_state(lab)
    assert during.state_of(interface)
    assert len(during.veths - before.veths) == 1
    assert during.leases - before.leases == {address_of(lab, vm, interface)}
    mac = entry(lab, vm, interface)["mac"]

    asyncio.run(guest_reports(lab, vm, mac, "add"))
    answer = unplug(lab, vm, interface)
    assert (answer["result"], answer["status"]["kind"]) == ("detached", "unplug")
    asyncio.run(guest_reports(lab, vm, mac, "remove"))

    assert_left_nothing(lab, vm, interface, before)
    # A role that is triggered by its watch may act before the event is published, so compare the actions only.
    order = [
        ("api", "kube patch virtualmachineinstances"),
        ("handler", "qmp device_del"),
        ("handler", "netlink teardown"),
        ("handler", "kube patch virtualmachineinstances"),
        ("controller", "controller annotate"),
        ("networks", "networks detach"),
        ("multus", "cni DEL bridge"),
        ("networks", "kube patch pods/status"),
        ("controller", "controller clear"),
    ]
    spans = lab.wait_for_tree(answer["status"]["traceId"], "PUT /apis/", {*UNPLUG, *(name for _, name in order)})
    began = [min(int(s["startTimeUnixNano"]) for s in of(spans, *hop)) for hop in order]
    assert began == sorted(began), list(zip(order, began, strict=True))
    assert any(pod_interface(interface) in span["name"] for span in of(spans, "networks", "networks detach"))


def test_name_is_free_at_once_and_the_next_nic_gets_a_new_lease(lab: Lab, vm: str, interface: str) -> None:
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


def test_last_secondary_nic_can_be_unplugged(lab: Lab, interface: str) -> None:
    vm = lab.take_slot(empty=True)
    before = node_state(lab)
    plug(lab, vm, interface)
    assert len(parse_networks(annotations(lab, vm)[NETWORKS])) == 1
    unplug(lab, vm, interface)
    assert parse_networks(annotations(lab, vm).get(NETWORKS)) == []
    assert_left_nothing(lab, vm, interface, before)
    lab.release_slot(vm)


async def test_unplug_immediately_after_a_plug_leaves_nothing(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    body = {"networkAttachmentDefinitionName": SAMPLE_NAD, "name": interface}
    async with await Kube.connect(
        kubeconfig=str(lab.layout.kubeconfig), telemetry=NoTraces(), user_agent="hotnic-test"
    ) as kube:
        path = f"{SUBRESOURCES}/virtualmachineinstances/{vm}"
        operations = [(await kube.request("PUT", f"{path}/addinterface", body=body)).headers[OPERATION_HEADER]]
        for _ in range(2):
            answer = await kube.request("PUT", f"{path}/removeinterface", body={"name": interface})
            operations.append(answer.headers[OPERATION_HEADER])
    assert operations[0] != operations[1] == operations[2]
    await asyncio.to_thread(wait_until, lambda: entry_in(spec(lab, vm), interface) is None)
    assert_left_nothing(lab, vm, interface, before)


def test_persist_plugs_and_unplugs_in_template_and_running_vm(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    answer = plug(lab, vm, interface, "--persist")
    assert (answer["result"], answer["persist"]) == ("attached", True)
    operations = [
        read_operation(holder.metadata.annotations, interface) for holder in (template_of(lab, vm), lab.vmi(vm))
    ]
    assert [operation.id for operation in operations if operation is not None] == [answer["operation"]] * 2
    assert entry_in(template_of(lab, vm).spec.template.spec, interface) is not None
    stages = {"requested", "pod-annotated", "multus-attached", "guest-attached"}
    spans = lab.wait_for_spans(answer["status"]["traceId"], {f"send hotplug.{stage}" for stage in stages})
    assert of(spans, "api", "kube patch virtualmachines")
    assert not of(spans, "api", "kube patch virtualmachineinstances")
    assert {span["service"] for span in of(spans, "", "send hotplug.requested")} == {"hotnic-controller"}

    answer = unplug(lab, vm, interface, "--persist")
    assert answer["result"] == "detached"
    template = template_of(lab, vm)
    assert entry_in(template.spec.template.spec, interface) is None
    assert operation_key(interface) not in template.metadata.annotations
    assert_left_nothing(lab, vm, interface, before)


def test_unplug_without_persist_leaves_the_template_unchanged(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    plug(lab, vm, interface, "--persist")
    unplug(lab, vm, interface)
    interface_in_template = entry_in(template_of(lab, vm).spec.template.spec, interface)
    assert interface_in_template is not None
    assert interface_in_template.get("state") is None
    # A reconcile of the VM must not plug the interface again.
    lab.kubectl("annotate", "vm", vm, f"example.org/{interface}=touched")
    done = lab.hotnic("removeinterface", vm, "--name", interface)
    assert done.returncode == 3, done.stderr
    done = lab.hotnic("addinterface", vm, "--name", interface, *NAD, "--persist")
    assert done.returncode == 3, done.stderr
    unplug(lab, vm, interface, "--persist")
    assert entry_in(template_of(lab, vm).spec.template.spec, interface) is None
    # The operation that prevented a plug is removed with the template's interface.
    wait_until(lambda: operation_key(interface) not in lab.vmi(vm).metadata.annotations)
    assert_left_nothing(lab, vm, interface, before)


def test_requests_for_a_stopped_vm_change_its_template_only(lab: Lab, interface: str) -> None:
    name = f"stopped-{interface}"
    sample = json.loads(lab.kubectl("get", "vm", "centos-stream9-1", "-o", "json"))
    body = {key: sample[key] for key in ("apiVersion", "kind")}
    body |= {"metadata": {"name": name}, "spec": sample["spec"] | {"running": False}}
    lab.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    try:
        done = lab.hotnic("addinterface", name, "--name", interface, *NAD, "--persist", "--wait")
        assert done.returncode == 0, done.stderr
        assert f'interface "{interface}" added to the template of default/{name}; the VM is not running' in done.stdout
        assert entry_in(template_of(lab, name).spec.template.spec, interface) is not None
        done = lab.hotnic("removeinterface", name, "--name", interface, "--persist", "-o", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"] == "template"
        wait_until(lambda: entry_in(template_of(lab, name).spec.template.spec, interface) is None)
        assert read_operation(template_of(lab, name).metadata.annotations, interface) is None
    finally:
        lab.kubectl("delete", "vm", name, "--wait=false")


def test_template_edits_plug_and_unplug(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    mac = "02:68:6f:74:6e:69"
    nic = {"name": interface, "bridge": {}, "macAddress": mac}
    network = {"name": interface, "multus": {"networkName": SAMPLE_NAD}}
    edit(lab, vm, ("add", f"{INTERFACES}/-", nic), ("add", f"{NETWORKS_PATH}/-", network))
    wait_until(lambda: {DOMAIN, GUEST_AGENT, MULTUS_STATUS} <= parse_tokens(entry(lab, vm, interface)))
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
    wait_until(lambda: entry_in(template_of(lab, vm).spec.template.spec, interface) is None)
    plugging, unplugging = request_of(lab, interface)
    assert plugging != unplugging
    spans = lab.wait_for_tree(unplugging, f"controller request {interface}", set(UNPLUG))
    assert of(spans, "handler", "qmp device_del")
    assert of(spans, "multus", "cni DEL bridge")
    assert_left_nothing(lab, vm, interface, before)


@pytest.mark.parametrize("persist", [(), ("--persist",)], ids=["VMI", "VM"])
@pytest.mark.parametrize(
    ("name", "output"), [("nothing", "404 NotFound"), ("default", "422 Invalid")], ids=["unknown", "primary"]
)
def test_unplug_of_an_unknown_or_primary_interface_is_refused(
    lab: Lab, vm: str, name: str, output: str, persist: tuple[str, ...]
) -> None:
    before = spec(lab, vm), template_of(lab, vm).spec
    done = lab.hotnic("removeinterface", vm, "--name", name, *persist)
    assert (done.returncode, done.stdout) == (3, "")
    assert output in done.stderr
    assert name in done.stderr
    assert (spec(lab, vm), template_of(lab, vm).spec) == before


def test_repeated_unplug_joins_the_operation_and_a_plug_is_refused(lab: Lab, vm: str, interface: str) -> None:
    before = node_state(lab)
    plug(lab, vm, interface)
    with lab.stopped("handler"):
        first = lab.hotnic("removeinterface", vm, "--name", interface, "-o", "json")
        assert first.returncode == 0, first.stderr
        done = lab.hotnic("removeinterface", vm, "--name", interface, "--wait", "--timeout", "1s", "-o", "json")
        assert done.returncode == 4, done.stderr
        assert "reached stage requested, waiting for handler (WaitingForGuestDetached)" in done.stderr
        assert json.loads(done.stdout)["operation"] == json.loads(first.stdout)["operation"]
        done = lab.hotnic("addinterface", vm, "--name", interface, *NAD)
        assert done.returncode == 3
        assert "409" in done.stderr
        assert "is being unplugged" in done.stderr
        assert node_state(lab).state_of(interface), "nothing may be removed while the guest uses the NIC"
        assert entry(lab, vm, interface)
    wait_until(lambda: entry_in(spec(lab, vm), interface) is None)
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
    """Check that no object and no part of the node has anything of the NIC, and that the node is as before."""
    vmi = lab.vmi(vm)
    pod = lab.pod(vmi).metadata.annotations
    assert all(item.get("name") != interface for item in [*(vmi.spec.networks or ()), *(vmi.status.interfaces or ())])
    assert entry_in(vmi.spec, interface) is None
    removed_keys = {operation_key(interface), pod_nic_key(interface)}
    assert not removed_keys & (vmi.metadata.annotations.keys() | pod.keys())
    link = pod_interface(interface)
    assert link not in {element.requested_interface for element in parse_networks(pod.get(NETWORKS))}
    assert link not in {status.interface for status in parse_network_status(pod.get(NETWORK_STATUS))}
    now = node_state(lab)
    assert now.state_of(interface) == []
    assert (now.veths, now.leases, now.links) == (before.veths, before.leases, before.links)


async def guest_reports(lab: Lab, vm: str, mac: str, action: str) -> None:
    """Wait until the guest's console reports the link with a MAC (``add``), or its removal (``remove``)."""
    async with lab.console(lab.vmi(vm)) as console:
        came = await console.wait_for_link(mac, timeout=45)
        if action == "remove":

            def gone(event: object) -> bool:
                return isinstance(event, LinkEvent) and event.action == "remove" and event.name == came.name

            await console.wait_for(gone, timeout=45, since=console.events.index(came))
            assert came.name not in console.links_seen()


def annotations(lab: Lab, vm: str) -> dict[str, str]:
    return lab.pod(lab.vmi(vm)).metadata.annotations


def address_of(lab: Lab, vm: str, interface: str) -> str:
    """Return the address that the CNI plugins assigned to an interface."""
    record = read_pod_nic(annotations(lab, vm), pod_nic_key(interface))
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
    return find_entry(lab.vmi(vm).status.interfaces, interface) or {}


def request_of(lab: Lab, interface: str) -> list[str]:
    """Return the traces of the operations that the controller recorded for edits of an interface, oldest first."""
    mine = [span for span in lab.all_spans() if span["name"] == f"controller request {interface}"]
    return [span["traceId"].lower() for span in sorted(mine, key=lambda span: int(span["startTimeUnixNano"]))]


def of(spans: list[Span], role: str, name: str) -> list[Span]:
    return [s for s in spans if s["service"].startswith(f"hotnic-{role}") and s["name"].startswith(name)]
