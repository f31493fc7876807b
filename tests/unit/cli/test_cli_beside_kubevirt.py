"""``--wait`` beside KubeVirt: one operation is followed from its entry on the VMI to its end, in any order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.kubernetes.options import OPERATION_HEADER, PERSIST_REQUIRED
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage, stage_path
from services.cli.operations.beside import DROPPED, LISTED_AGAIN, TAKEN_BACK
from services.cli.operations.outcome import success_message
from services.cli.operations.progress import OperationOutcome, OperationProgress, OperationResult, progress_message
from services.cli.operations.request import ChangeRequest, Verb
from services.common.kube.client import Kube
from tests.support.kube.node_kube import FakeKube, serving_kube, write_kubeconfig
from tests.support.observed import objects
from tests.support.telemetry.spans import recording_telemetry

NIC = "iface1"
LINK = pod_interface(NIC)
PLUG, UNPLUG = OperationKind
PRESENT, ABSENT = objects.nic(NIC), objects.nic(NIC, state="absent")
ELEMENT = {NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])}
STATUS = {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", LINK, mac="02:01")])}
ATTACHED = [{"name": NIC, "infoSource": "domain, multus-status", "mac": "02:01"}]


def entries(plug: str | None = "op", unplug: str | None = None, vm: str = objects.VM_UID) -> dict[str, str]:
    found = {}
    if plug is not None:
        found[operation_key(NIC)] = encode_annotation(Operation(plug, PLUG, NIC, vm=vm))
    if unplug is not None:
        found[unplug_key(NIC)] = encode_annotation(Operation(unplug, UNPLUG, NIC, vm=vm))
    return found


def running(*nics: Any, **fields: Any) -> VirtualMachineInstance:
    return objects.vmi(*nics, owned=True, **{"annotations": entries(), **fields})


def observe(
    kind: OperationKind,
    *steps: tuple[VirtualMachineInstance | None, VirtualMachine | None],
    pod: dict[str, str] | None = None,
) -> OperationProgress:
    progress = OperationProgress(NIC, "op", kind, persist=True)
    for vmi, vm in steps:
        progress.observe(vmi, [objects.pod(pod)], vm)
    return progress


def outcome(result: OperationResult, message: str = "") -> OperationOutcome:
    return OperationOutcome(result, message)


PLUGGING: Sequence[tuple[VirtualMachineInstance, VirtualMachine, Pod]] = [
    (running(), objects.vm(), objects.pod()),
    (running(), objects.vm(PRESENT), objects.pod()),
    (running(PRESENT), objects.vm(PRESENT), objects.pod()),
    (running(PRESENT), objects.vm(PRESENT), objects.pod(ELEMENT)),
    (running(PRESENT), objects.vm(PRESENT), objects.pod(ELEMENT | STATUS)),
    (running(PRESENT, status=ATTACHED), objects.vm(PRESENT), objects.pod(ELEMENT | STATUS)),
]


@given(st.integers(0, 5), st.lists(st.integers(0, 5)))
def test_a_plug_is_followed_from_its_entry_to_the_attached_nic(first: int, delays: list[int]) -> None:
    """Observations may be missing and repeated; VM, VMI and pod may be seen at different moments."""
    progress, seen = OperationProgress(NIC, "op", PLUG, persist=True), [first] * 3
    reported: list[Stage] = []
    for delay in [*delays, *range(3 * len(PLUGGING))]:
        seen[delay % 3] = min(seen[delay % 3] + 1, len(PLUGGING) - 1)
        vmi, vm, pod = (PLUGGING[at][part] for part, at in enumerate(seen))
        assert isinstance(vmi, VirtualMachineInstance)
        assert isinstance(vm, VirtualMachine)
        assert isinstance(pod, Pod)
        reported += progress.observe(vmi, [pod], vm)
        if progress.outcome is not None:
            assert seen[0] == len(PLUGGING) - 1
            break
    assert progress.outcome == outcome(OperationResult.ATTACHED)
    assert reported == list(stage_path(PLUG))
    assert progress.nic_status is not None
    assert progress.nic_status.operation == "op"


OLD_PLUG, BOTH = entries("plug"), entries("plug", "op")
UNPLUGGING: Sequence[tuple[VirtualMachineInstance, VirtualMachine]] = [
    (running(PRESENT, status=ATTACHED, annotations=BOTH), objects.vm(PRESENT)),
    (running(PRESENT, status=ATTACHED, annotations=BOTH), objects.vm(ABSENT)),
    (running(ABSENT, status=ATTACHED, annotations=BOTH), objects.vm(ABSENT)),
    (running(ABSENT, annotations=BOTH), objects.vm(ABSENT)),
    (running(annotations=BOTH), objects.vm(ABSENT)),
    (running(annotations=BOTH), objects.vm()),
    (running(annotations={}), objects.vm()),
]


@given(st.integers(0, 4), st.lists(st.integers(0, 1)))
def test_an_unplug_is_followed_until_vmi_and_template_have_dropped_it(first: int, order: list[int]) -> None:
    progress, seen = OperationProgress(NIC, "op", UNPLUG, persist=True), [first, first]
    reported: list[Stage] = []
    for part in [*order, *[0, 1] * len(UNPLUGGING)]:
        seen[part] = min(seen[part] + 1, len(UNPLUGGING) - 1)
        reported += progress.observe(UNPLUGGING[seen[0]][0], [objects.pod()], UNPLUGGING[seen[1]][1])
        if progress.outcome is not None:
            assert min(seen[0] - 4, seen[1] - 5) >= 0
            break
    assert progress.outcome == outcome(OperationResult.DETACHED)
    assert reported == list(stage_path(UNPLUG))


@pytest.mark.parametrize(
    ("kind", "steps", "message"),
    [
        (PLUG, [(running(), objects.vm(PRESENT)), (running(), objects.vm())], TAKEN_BACK),
        (PLUG, [(running(), objects.vm()), (running(annotations={}), objects.vm())], TAKEN_BACK),
        (PLUG, [(running(PRESENT), objects.vm(PRESENT)), (running(PRESENT), objects.vm())], DROPPED),
        (
            PLUG,
            [(running(PRESENT), objects.vm(PRESENT)), (running(PRESENT), objects.vm(ABSENT))],
            "the interface is being unplugged again",
        ),
        (
            PLUG,
            [(running(), objects.vm(PRESENT)), (running(annotations=entries("other")), objects.vm(PRESENT))],
            "operation other replaced it",
        ),
        (
            UNPLUG,
            [
                (running(PRESENT, annotations=BOTH), objects.vm(ABSENT)),
                (running(PRESENT, annotations=BOTH), objects.vm(PRESENT)),
            ],
            TAKEN_BACK,
        ),
        (
            UNPLUG,
            [
                (running(PRESENT, annotations=BOTH), objects.vm(ABSENT)),
                (running(PRESENT, annotations=OLD_PLUG), objects.vm()),
            ],
            DROPPED,
        ),
        (
            UNPLUG,
            [
                (running(ABSENT, annotations=BOTH), objects.vm(ABSENT)),
                (running(annotations=BOTH), objects.vm(PRESENT)),
            ],
            LISTED_AGAIN,
        ),
        (
            UNPLUG,
            [
                (running(ABSENT, annotations=BOTH), objects.vm(ABSENT)),
                (running(PRESENT, annotations=BOTH), objects.vm(PRESENT)),
            ],
            LISTED_AGAIN,
        ),
        (PLUG, [(running(), objects.vm(PRESENT)), (running(), None)], "the VM was deleted"),
    ],
    ids=[
        "plug taken back",
        "plug never requested",
        "dropped from the template",
        "unplugged again",
        "another plug",
        "unplug taken back",
        "dropped without absent",
        "listed again",
        "plugged in again",
        "VM deleted",
    ],
)
def test_an_operation_that_cannot_complete_ends_with_its_reason(
    kind: OperationKind, steps: list[tuple[Any, Any]], message: str
) -> None:
    assert observe(kind, *steps[:-1]).outcome is None
    assert observe(kind, *steps).outcome == outcome(OperationResult.FAILED, message)


@pytest.mark.parametrize(
    ("verb", "before", "after"),
    [
        (Verb.ADD, (running(), objects.vm(PRESENT)), PRESENT),
        (Verb.REMOVE, (running(ABSENT), objects.vm(ABSENT)), ABSENT),
    ],
)
@pytest.mark.parametrize("vmi", [None, running(phase="Succeeded")], ids=["restarted", "stopped"])
def test_a_vm_that_stops_meanwhile_has_the_change_in_its_template(
    verb: Verb, before: Any, after: Any, vmi: VirtualMachineInstance | None
) -> None:
    change = ChangeRequest(verb, "vm1", NIC, {}, persist=True, timeout=7)
    change.progress = observe(verb.kind, before, (vmi, objects.vm(after)))
    assert change.progress.outcome == outcome(OperationResult.TEMPLATE)
    assert "the VM was stopped or restarted meanwhile, and has the change when it starts" in success_message(change)


@pytest.mark.parametrize(
    ("kind", "request_of_1_0", "before", "after"),
    [
        (PLUG, {"addInterfaceOptions": {"name": NIC}}, [], [PRESENT]),
        (UNPLUG, {"removeInterfaceOptions": {"name": NIC}}, [PRESENT], [ABSENT]),
    ],
)
def test_a_vm_that_stops_before_kubevirt_1_0_changes_its_template_is_waited_for(
    kind: OperationKind, request_of_1_0: dict[str, Any], before: list[Any], after: list[Any]
) -> None:
    vm = objects.vm(*before)
    queued = msgspec.structs.replace(vm, status=msgspec.structs.replace(vm.status, interface_requests=[request_of_1_0]))
    entered = entries() if kind is PLUG else entries(None, "op")
    waiting = (running(*before, annotations=entered), queued), (None, queued)
    assert observe(kind, *waiting).outcome is None
    assert observe(kind, *waiting, (None, objects.vm(*after))).outcome == outcome(OperationResult.TEMPLATE)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_an_operation_in_progress_names_kubevirts_component(step: int) -> None:
    vmi, vm, pod = PLUGGING[step]
    progress = OperationProgress(NIC, "op", PLUG, persist=True)
    assert isinstance(vm, VirtualMachine)
    progress.observe(vmi, [pod], vm)
    assert progress.nic_status is not None
    component = {1: "KubeVirt's virt-controller", 3: "networks", 4: "KubeVirt's virt-handler"}[step]
    assert f"waiting for {component} (" in progress_message(progress.nic_status, beside=progress.beside)


class ClusterBesideKubeVirt(FakeKube):
    """A cluster whose api refuses requests about VMIs, and answers those about VMs with a warning."""

    def app(self) -> web.Application:
        """Return the application to serve."""
        app = super().app()
        for resource in ("virtualmachines", "virtualmachineinstances"):
            path = f"/apis/subresources.hotnic.io/v1/namespaces/default/{resource}/vm1/addinterface"
            app.router.add_put(path, self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path.split("/")[-3], request.query_string))
        if "instances" in request.path:
            details = {"name": "vm1", "causes": [{"reason": PERSIST_REQUIRED}]}
            status = {
                "kind": "Status",
                "code": 409,
                "reason": "Conflict",
                "message": "change the VM",
                "details": details,
            }
            return web.json_response(status, status=409)
        headers = {} if "dryRun" in request.query else {OPERATION_HEADER: "op"}
        return web.Response(status=202, headers=headers | {"Warning": '299 - "it migrates"'})


async def test_the_request_goes_to_the_vm_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = ChangeRequest(Verb.ADD, "vm1", NIC, {"name": NIC}, persist=False, timeout=None)
    trial = ChangeRequest(
        Verb.ADD, "vm1", NIC, {"name": NIC}, persist=True, timeout=None, dry_run=True, allow_eviction=True
    )
    async with serving_kube(ClusterBesideKubeVirt()) as cluster:
        cluster.put("virtualmachines", "default", "vm1", **msgspec.to_builtins(objects.vm(PRESENT)))
        cluster.put("virtualmachineinstances", "default", "vm1", **msgspec.to_builtins(running()))
        config = write_kubeconfig(tmp_path / "kubeconfig", cluster.url)
        telemetry, _ = recording_telemetry("cli")
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as kube:
            await change.run(kube, "default")
            await trial.run(kube, "default")
    sent = [(resource, query) for method, resource, query in cluster.requests if method == "PUT"]
    assert sent == [
        ("virtualmachineinstances", ""),
        ("virtualmachines", ""),
        ("virtualmachines", "dryRun=All&allowEviction=true"),
    ]
    assert (change.operation, change.persist, trial.operation) == ("op", True, None)
    printed = capsys.readouterr().err
    assert "the VM's template is changed (--persist)" in printed
    assert printed.count("Warning: it migrates\n") == 2
    assert success_message(trial) == 'interface "iface1" would be added to the template of default/vm1 (dry run)'


def test_an_entry_of_another_vm_is_ignored() -> None:
    vmi = running(annotations=entries("op", vm="another"))
    progress = observe(PLUG, (vmi, objects.vm(PRESENT)))
    assert progress.outcome is None
    assert progress.nic_status is not None
    assert progress.nic_status.operation == ""
