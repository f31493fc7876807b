"""With NATS away a plug completes by watch; with it back, the events and the spans are there."""

from schemas.operations import operation_of
from services.lab import commands
from tests.support.lab import SAMPLE_NAD, Lab


def test_a_plug_completes_without_nats_and_its_events_follow(lab: Lab, vm: str, interface: str) -> None:
    said: list[str] = []
    assert commands.change(lab.layout.dir, "stop", "nats", said.append) == 0, said
    try:
        done = lab.hotnic(
            "addinterface", vm, "--name", interface, "--network-attachment-definition-name", SAMPLE_NAD, "--wait"
        )
        assert done.returncode == 0, done.stderr
    finally:
        assert commands.change(lab.layout.dir, "start", "nats", said.append) == 0, said
    operation = operation_of(lab.vmi(vm).metadata.annotations, interface)
    assert operation is not None
    assert operation.traceparent is not None
    stages = ("requested", "pod-annotated", "multus-attached", "guest-attached")
    lab.wait_for_spans(operation.traceparent.split("-")[1], {f"send hotplug.{stage}" for stage in stages}, timeout=20)
