"""Jaeger has each operation of a lab as one trace with every hop, whichever protocol and API server there is."""

from pathlib import Path

import pytest

from tests.support.interop.jaeger import hops, jaeger, roots
from tests.support.lab.running import KUBERNETES_VARIABLE, SAMPLE_NAD, SAMPLE_VM, environment, running_lab, wait_until

PLUG = {
    ("hotnic-api", "PUT /apis/"),
    ("hotnic-api", "send hotplug.requested"),
    ("hotnic-controller", "process hotplug.requested"),
    ("hotnic-controller", "controller annotate"),
    ("hotnic-controller", "send hotplug.pod-annotated"),
    ("hotnic-networks", "process hotplug.pod-annotated"),
    ("hotnic-networks", "networks attach"),
    ("hotnic-networks", "POST /delegate"),
    ("hotnic-multus", "POST /delegate"),
    ("hotnic-multus", "cni ADD bridge"),
    ("hotnic-networks", "send hotplug.multus-attached"),
    ("hotnic-handler", "process hotplug.multus-attached"),
    ("hotnic-handler", "netlink setup"),
    ("hotnic-handler", "qmp device_add"),
    ("hotnic-handler", "guest confirm"),
    ("hotnic-handler", "send hotplug.guest-attached"),
    ("hotnic-controller", "process hotplug.guest-attached"),
}
UNPLUG = {
    ("hotnic-api", "PUT /apis/"),
    ("hotnic-api", "send hotplug.requested"),
    ("hotnic-handler", "process hotplug.requested"),
    ("hotnic-handler", "qmp device_del"),
    ("hotnic-handler", "netlink teardown"),
    ("hotnic-handler", "send hotplug.guest-detached"),
    ("hotnic-controller", "process hotplug.guest-detached"),
    ("hotnic-controller", "controller annotate"),
    ("hotnic-networks", "networks detach"),
    ("hotnic-networks", "POST /delegate"),
    ("hotnic-multus", "POST /delegate"),
    ("hotnic-multus", "cni DEL bridge"),
    ("hotnic-networks", "send hotplug.multus-detached"),
    ("hotnic-controller", "process hotplug.multus-detached"),
    ("hotnic-controller", "controller clear"),
}
"""The service and the beginning of the name of a span for each hop."""


@pytest.mark.parametrize(("protocol", "kubernetes"), [("http", None), ("grpc", None), ("grpc", "1.36")])
def test_an_operation_is_one_trace_with_every_hop(tmp_path: Path, protocol: str, kubernetes: str | None) -> None:
    with jaeger(tmp_path / "jaeger") as collector:
        url, variables = collector.http, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.http}
        if protocol == "grpc":
            url = collector.grpc.replace("http://", "grpc://")
            variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.grpc, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        if kubernetes:
            variables[KUBERNETES_VARIABLE] = kubernetes
        # The user's commands run outside of the lab, so they export to the collector themselves.
        with environment(**variables), running_lab(tmp_path / "lab", guests="double", otlp=url) as lab:
            # The api serves before it is connected, and its event would then come after the end of the test.
            wait_until(lambda: "NATS connected" in lab.layout.log("api").read_text())
            nad = ("--network-attachment-definition-name", SAMPLE_NAD)
            for command, *options in (("addinterface", *nad), ("removeinterface",)):
                done = lab.hotnic(command, SAMPLE_VM, "--name", "blue", *options, "--wait")
                assert done.returncode == 0, done.stderr
        # Stopping the lab has exported the last spans.
        traces = {roots(trace): hops(trace) for trace in collector.traces("hotnic-cli")}
    plug, unplug = (("hotnic-cli", f"hotnic {command}") for command in ("addinterface", "removeinterface"))
    assert traces.keys() == {(plug,), (unplug,)}
    for root, expected in ((plug, PLUG), (unplug, UNPLUG)):
        found = traces[(root,)]
        missing = {
            one for one in expected if not any(one[0] == role and name.startswith(one[1]) for role, name in found)
        }
        assert not missing, f"{root} lacks {sorted(missing)}; it has {sorted(found)}"
