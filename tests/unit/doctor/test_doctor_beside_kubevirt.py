"""What the doctor finds beside KubeVirt: nothing in what KubeVirt left in order, and a stray element."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from schemas.kubernetes.objects import VirtualMachine
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key
from schemas.stages import OperationKind
from services.cli.doctor.collect.objects import with_surroundings
from services.cli.doctor.examine import examine
from services.cli.doctor.snapshot import Snapshot, VmSnapshot
from services.cli.operations.owner import find_owner
from services.common.kube.client import Kube
from tests.support.kube.node_kube import PODS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.observed.kubevirt import capabilities
from tests.support.recorded_kubevirt import recorded_pods, recorded_vm, recorded_vmi
from tests.support.telemetry.spans import recording_telemetry

KUBEVIRTS = "kubevirts"


def snapshot_at(moment: str, vm: VirtualMachine | None = None, **annotations: str) -> VmSnapshot:
    """Return the snapshot of a recorded moment.

    :param annotations: further annotations of the VMI and, as KubeVirt copies them, of the pods.
    """
    vmi, pods = recorded_vmi(moment), recorded_pods(moment)
    held = [
        msgspec.structs.replace(
            one, metadata=msgspec.structs.replace(one.metadata, annotations=one.metadata.annotations | annotations)
        )
        for one in (vmi, *pods)
    ]
    beside = capabilities(moment.partition("-")[0])
    return VmSnapshot("default", vmi.metadata.name, vm or recorded_vm(moment), held[0], tuple(held[1:]), beside=beside)


def codes(snapshot: VmSnapshot) -> list[str]:
    return [finding.code for finding in examine(Snapshot((snapshot,)), node=False).findings]


@pytest.mark.parametrize(
    ("moment", "found"),
    [
        ("v1.0.1-plugged", []),
        ("v1.9.0-a-plugged", []),
        ("v1.9.0-b-migrated", []),
        ("v1.9.0-b-required", []),
        ("v1.9.0-c-unplug-guest-holds", []),
        ("v1.9.0-d-last-gone", []),
        ("v1.9.0-m-stray-element", ["ElementLeftOver"]),
    ],
)
def test_only_what_nobody_corrects_is_found(moment: str, found: list[str]) -> None:
    assert codes(snapshot_at(moment)) == found


def test_an_operation_whose_edit_kubevirt_has_not_followed_yet_is_in_order() -> None:
    vmi = recorded_vmi("v1.9.0-d-last-gone")
    plug = Operation("op", OperationKind.PLUG, "blue", vm=recorded_vm("v1.9.0-d-last-gone").metadata.uid)
    annotation = {operation_key("blue"): encode_annotation(plug)}
    assert "blue" not in {interface.name for interface in vmi.spec.interface_items()}
    plugged = recorded_vm("v1.9.0-d-last-gone")
    devices = plugged.spec.template.spec.domain.devices
    assert devices.interfaces is not None
    devices.interfaces.append({"name": "blue", "bridge": {}})
    assert plugged.spec.template.spec.networks is not None
    plugged.spec.template.spec.networks.append({"name": "blue", "multus": {"networkName": "net1"}})
    assert codes(snapshot_at("v1.9.0-d-last-gone", plugged, **annotation)) == []
    # Nothing follows it, on the VMI; copies on pods are ignored.
    assert codes(snapshot_at("v1.9.0-d-last-gone", **annotation)) == ["OperationLeftOver"]


async def test_an_operation_that_waits_has_the_reason_from_around_the_vm(kube: tuple[FakeKube, Kube]) -> None:
    served, client = kube
    vmi, vm = recorded_vmi("v1.9.0-b-required"), recorded_vm("v1.9.0-b-required")
    labels = {"labels": {"kubevirt.io/vmi-name": vmi.metadata.name}, "creationTimestamp": "2027-01-01T00:00:00Z"}
    spec, status = {"vmiName": vmi.metadata.name}, {"phase": "Failed"}
    served.put("virtualmachineinstancemigrations", "default", "update-1", metadata=labels, spec=spec, status=status)
    pods, beside = recorded_pods("v1.9.0-b-required"), capabilities("v1.9.0")
    waits = VmSnapshot("default", vmi.metadata.name, vm, vmi, tuple(pods), beside=beside)
    found = await with_surroundings(client, [waits])
    (operation,) = examine(Snapshot(tuple(found)), node=False).in_progress
    assert operation.reason == "MigrationFailed"
    served.requests.clear()
    hotnic_owns = msgspec.structs.replace(waits, beside=None)
    assert await with_surroundings(client, [hotnic_owns]) == [hotnic_owns]
    assert served.requests == []


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[tuple[FakeKube, Kube]]:
    telemetry, _ = recording_telemetry("cli")
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving_kube(FakeKube()))
        config = write_kubeconfig(tmp_path / "kubeconfig", served.url)
        client = await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test")
        yield served, await stack.enter_async_context(client)


async def test_kubevirt_owns_the_vms_unless_its_controllers_were_stopped(kube: tuple[FakeKube, Kube]) -> None:
    served, client = kube
    assert await find_owner(client) is None
    served.put(KUBEVIRTS, "kubevirt", "kubevirt", status={"observedKubeVirtVersion": "v1.9.0"})
    assert await find_owner(client) is None, "its controllers were stopped"
    labels = {"labels": {"kubevirt.io": "virt-controller"}}
    served.put(PODS, "kubevirt", "virt-controller-1", metadata=labels, status={"phase": "Pending"})
    found = await find_owner(client)
    assert found is not None
    assert found.version == (1, 9, 0)

    def refuse_pods(_method: str, plural: str, _name: str) -> None:
        if plural == PODS:
            raise Refused(403, "Forbidden", "pods is forbidden")

    served.before = refuse_pods
    assert await find_owner(client) is not None

    def refuse(_method: str, _plural: str, _name: str) -> None:
        raise Refused(403, "Forbidden", "kubevirts is forbidden")

    served.before = refuse
    assert await find_owner(client) is None
