"""A plug without NATS completes by the roles' watches; its events are published when NATS is available again."""

from lab.cli import commands
from schemas.kubernetes.operations import read_operation
from tests.support.lab.running import SAMPLE_NAD, Lab


def test_plug_completes_without_nats_and_its_events_are_published_later(lab: Lab, vm: str, interface: str) -> None:
    output: list[str] = []
    assert commands.change(lab.layout.dir, "stop", "nats", output.append) == 0, output
    try:
        done = lab.hotnic(
            "addinterface", vm, "--name", interface, "--network-attachment-definition-name", SAMPLE_NAD, "--wait"
        )
        assert done.returncode == 0, done.stderr
    finally:
        assert commands.change(lab.layout.dir, "start", "nats", output.append) == 0, output
    operation = read_operation(lab.vmi(vm).metadata.annotations, interface)
    assert operation is not None
    assert operation.traceparent is not None
    stages = ("requested", "pod-annotated", "multus-attached", "guest-attached")
    lab.wait_for_spans(operation.traceparent.split("-")[1], {f"send hotplug.{stage}" for stage in stages}, timeout=45)
