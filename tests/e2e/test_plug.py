"""A NIC is plugged into a running guest; objects, guest, pod network, trace and status are consistent."""

import json

from lab.cli import commands
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, parse_network_status, parse_networks
from schemas.kubernetes.operations import pod_nic_key, read_operation, read_pod_nic
from schemas.names import bridge, pod_interface, tap
from services.common.domain.status_interfaces import find_entry, parse_tokens
from tests.support.lab.running import SAMPLE_NAD, Lab, Span, link_events


def plug(lab: Lab, vm: str, interface: str) -> None:
    done = lab.hotnic(
        "addinterface", vm, "--name", interface, "--network-attachment-definition-name", SAMPLE_NAD, "--wait"
    )
    assert done.returncode == 0, done.stderr


async def test_guest_kernel_reports_the_new_nic(lab: Lab, vm: str, interface: str) -> None:
    plug(lab, vm, interface)
    vmi = lab.vmi(vm)
    pod = lab.pod(vmi)

    (element,) = [
        e for e in parse_networks(pod.metadata.annotations[NETWORKS]) if e.interface == pod_interface(interface)
    ]
    assert (element.namespace, element.name) == ("default", SAMPLE_NAD)
    (status,) = [
        s for s in parse_network_status(pod.metadata.annotations[NETWORK_STATUS]) if s.interface == element.interface
    ]
    record = read_pod_nic(pod.metadata.annotations, pod_nic_key(interface))
    assert record is not None
    assert record.pod_uid == pod.metadata.uid
    assert status.ips == [ip.split("/")[0] for ip in record.ips]

    entry = find_entry(vmi.status.interfaces, interface)
    assert entry is not None
    assert {"domain", "multus-status"} <= parse_tokens(entry)
    assert entry["podInterfaceName"] == element.interface
    assert entry["mac"] == record.mac

    async with lab.console(vmi) as console:
        seen = await console.wait_for_link(record.mac, timeout=45)
    assert seen.mtu == record.mtu
    assert link_events(console.events, record.mac)


def test_pod_network_is_that_of_kubevirts_bridge_binding(lab: Lab, vm: str, interface: str) -> None:
    plug(lab, vm, interface)
    vmi = lab.vmi(vm)
    pod = lab.pod(vmi)
    record = read_pod_nic(pod.metadata.annotations, pod_nic_key(interface))
    assert record is not None
    done = lab.hotnic("lab", "exec", "--", "sh", "-c", "ls /run/netns")
    (netns,) = [
        name
        for name in done.stdout.split()
        if tap(interface) in lab.hotnic("lab", "exec", "--", "ip", "-n", name, "-o", "link").stdout
    ]
    links = {
        link["ifname"]: link
        for link in json.loads(lab.hotnic("lab", "exec", "--", "ip", "-n", netns, "-j", "-d", "link").stdout)
    }
    nic = f"{pod_interface(interface)[3:]}-nic"
    assert {bridge(interface), tap(interface), nic, pod_interface(interface)} <= set(links)
    assert links[nic]["master"] == links[tap(interface)]["master"] == bridge(interface)
    assert links[nic]["address"] != record.mac, "the guest's MAC must be free for the guest"
    assert links[pod_interface(interface)]["address"] == record.mac


def test_one_trace_has_the_spans_of_all_roles(lab: Lab, vm: str, interface: str) -> None:
    # A role that has just started has no cached sandbox and has to read it from the container runtime.
    assert commands.restart(lab.layout.dir, "networks") == 0
    plug(lab, vm, interface)
    operation = read_operation(lab.vmi(vm).metadata.annotations, interface)
    assert operation is not None
    assert operation.traceparent is not None
    pod_link = pod_interface(interface)
    # Each role writes its spans when they end; the roles do not wait for each other's.
    last = {"PUT /apis/", "controller annotate", "networks attach", "netlink setup", "qmp device_add", "guest confirm"}
    stages = ("requested", "pod-annotated", "multus-attached", "guest-attached")
    last |= {f"send hotplug.{stage}" for stage in stages}
    spans = lab.wait_for_spans(operation.traceparent.split("-")[1], last)
    tree = Tree(spans)
    request = tree.one("hotnic-api", "PUT /apis/")
    assert tree.below(request, "hotnic-api", "kube patch virtualmachineinstances")
    assert tree.below(request, "hotnic-api", "send hotplug.requested")
    annotate = tree.one("hotnic-controller", "controller annotate")
    assert tree.is_below(annotate, request)
    assert tree.below(annotate, "hotnic-controller", "kube patch pods")
    assert tree.below(annotate, "hotnic-controller", "send hotplug.pod-annotated")
    attach = tree.one("hotnic-networks", "networks attach")
    assert pod_link in attach["name"]
    assert tree.is_below(attach, request)
    assert tree.below(attach, "hotnic-networks", "cri PodSandboxStatus")
    call = tree.below(attach, "hotnic-networks", "POST /delegate")
    served = tree.below(call, "hotnic-multus", "POST /delegate")
    assert tree.below(served, "hotnic-multus", "cni ADD bridge")
    assert tree.below(attach, "hotnic-networks", "kube patch pods/status")
    assert tree.below(attach, "hotnic-networks", "send hotplug.multus-attached")
    setup = tree.one("hotnic-handler", "netlink setup")
    assert tree.is_below(setup, request)
    device = tree.one("hotnic-handler", "qmp device_add")
    assert tree.is_below(device, request)
    assert tree.is_below(tree.one("hotnic-handler", "send hotplug.guest-attached"), request)
    assert tree.is_below(tree.one("hotnic-handler", "guest confirm"), request)
    assert interface in json.dumps(device["attributes"])
    # Two roles write the VMI's status. The write that loses is a conflict, and no error.
    assert [span["name"] for span in tree.failed()] == []


def test_status_and_trace_show_the_completed_plug(lab: Lab, vm: str, interface: str) -> None:
    plug(lab, vm, interface)
    done = lab.hotnic("status", vm, "-o", "json")
    assert done.returncode == 0, done.stderr
    (nic_status,) = [
        nic_status for nic_status in json.loads(done.stdout)["interfaces"] if nic_status["interface"] == interface
    ]
    assert nic_status["stage"] == "guest-attached"
    hops = (
        "send hotplug.requested",
        "send hotplug.pod-annotated",
        "POST /delegate",
        "cni ADD bridge",
        "qmp device_add",
    )
    lab.wait_for_spans(nic_status["traceId"], set(hops))
    drawn = lab.hotnic("trace", vm, "--interface", interface)
    assert drawn.returncode == 0, drawn.stderr
    for hop in ("requested", "pod-annotated", "/delegate", "cni ADD bridge", "device_add"):
        assert hop in drawn.stdout


class Tree:
    """The spans of one trace with their parents."""

    def __init__(self, spans: list[Span]) -> None:
        self._spans = spans
        self._by_id = {span["spanId"]: span for span in spans}

    def one(self, service: str, name: str) -> Span:
        """Return the first span of a service whose name begins with ``name``."""
        found = [s for s in self._spans if s["service"] == service and s["name"].startswith(name)]
        assert found, (
            f"{service} has no span {name!r}; there are {sorted({(s['service'], s['name']) for s in self._spans})}"
        )
        return min(found, key=lambda span: int(span["startTimeUnixNano"]))

    def failed(self) -> list[Span]:
        """Return the spans with the status ERROR (2 in OTLP)."""
        return [span for span in self._spans if span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR")]

    def is_below(self, span: Span, ancestor: Span) -> bool:
        """Return whether a span is below an ancestor, at any depth."""
        at: Span | None = span
        while at is not None:
            if at["spanId"] == ancestor["spanId"]:
                return True
            at = self._by_id.get(at.get("parentSpanId", ""))
        return False

    def below(self, ancestor: Span, service: str, name: str) -> Span:
        """Return a span below the ancestor whose name begins with ``name``."""
        found = [
            s
            for s in self._spans
            if s["service"] == service
            and s["name"].startswith(name)
            and s is not ancestor
            and self.is_below(s, ancestor)
        ]
        assert found, f"{name!r} of {service} is not below {ancestor['name']!r}"
        return found[0]
