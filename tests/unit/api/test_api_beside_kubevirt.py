"""Requests beside KubeVirt: the operation is written to the VMI first, then the VM is changed as the user may do it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.kubernetes.kubevirt import KubeVirt
from schemas.kubernetes.networks import RESOURCE_NAME
from schemas.kubernetes.objects import VmStatus
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.stages import OperationKind, Stage
from services.api.observe import ClusterSettings
from services.common.domain.kubevirt.capabilities import Capabilities, read_capabilities
from services.common.domain.kubevirt.entries import find_entry
from tests.support.kube.node_kube import NADS, PODS, Refused
from tests.support.kube.served_api import ServedApi, serve_api
from tests.support.observed import objects

VMS, VMIS = "virtualmachines", "virtualmachineinstances"
PLUG = {"networkAttachmentDefinitionName": "net1", "name": "iface1"}
UNPLUG = {"name": "iface1"}
IFACE, ABSENT = objects.nic("iface1"), objects.nic("iface1", state="absent")
REFUSAL = "admission webhook denied the request"


def capabilities(version: str = "v1.9.0", methods: tuple[str, ...] = ("LiveMigrate",)) -> Capabilities:
    document: dict[str, Any] = {
        "metadata": {"name": "kubevirt", "namespace": "kubevirt"},
        "spec": {
            "configuration": {"developerConfiguration": {"featureGates": ["HotplugNICs"]}},
            "workloadUpdateStrategy": {"workloadUpdateMethods": list(methods)},
        },
        "status": {"observedKubeVirtVersion": version, "targetKubeVirtVersion": version},
    }
    found = read_capabilities([msgspec.convert(document, KubeVirt)])
    assert found is not None
    return found


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ServedApi]:
    async with serve_api(tmp_path) as served:
        served.cluster = ClusterSettings(False, "masquerade", capabilities())
        # hotnic's networks runs on the node.
        pod = msgspec.to_builtins(objects.pod())
        meta = {"labels": {"app.kubernetes.io/component": "networks"}}
        served.kube.put(PODS, "hotnic", "networks", **{**pod, "metadata": meta})
        yield served


def vmi_entry(api: ServedApi, kind: OperationKind) -> Operation | None:
    vmi = msgspec.convert(api.kube.objects[VMIS, "default", "vm1"], type(objects.vmi()))
    return find_entry(vmi, "iface1", kind)


def template(api: ServedApi) -> list[dict[str, Any]]:
    spec = api.kube.objects[VMS, "default", "vm1"]["spec"]["template"]["spec"]
    found: list[dict[str, Any]] = spec["domain"]["devices"]["interfaces"]
    return found


async def test_the_operation_is_on_the_vmi_before_the_template_changes(api: ServedApi) -> None:
    api.put(VMIS, objects.vmi(owned=True))
    api.put(VMS, objects.vm())
    code, _, plugged = await api.request(VMS, "addinterface", PLUG)
    assert code == 202
    assert [(method, plural) for method, plural, _ in api.kube.requests if method == "PATCH"] == [
        ("PATCH", VMIS),
        ("PATCH", VMS),
    ]
    entry = vmi_entry(api, OperationKind.PLUG)
    assert entry is not None
    assert (entry.id, entry.vm, entry.traceparent is not None) == (plugged, objects.VM_UID, True)
    assert template(api)[1] == IFACE[0]
    assert api.kube.annotations(VMS, "default", "vm1") == {}
    # Spec and status of the VMI are KubeVirt's.
    assert api.kube.objects[VMIS, "default", "vm1"]["spec"] == msgspec.to_builtins(objects.vmi().spec)
    assert [(event.stage, event.operation.id) for event in api.bus.published] == [(Stage.REQUESTED, plugged)]
    assert (await api.request(VMS, "addinterface", PLUG))[::2] == (202, plugged)

    api.put(VMIS, objects.vmi(IFACE, owned=True, annotations=api.kube.annotations(VMIS, "default", "vm1")))
    code, _, unplugged = await api.request(VMS, "removeinterface", UNPLUG)
    assert (code, (await api.request(VMS, "removeinterface", UNPLUG))[2]) == (202, unplugged)
    plug, unplug = (vmi_entry(api, kind) for kind in OperationKind)
    assert plug is not None
    assert unplug is not None
    assert (plug.id, unplug.id) == (plugged, unplugged)
    assert template(api)[1]["state"] == "absent"
    assert len(api.bus.published) == 2


async def test_a_vm_that_does_not_run_gets_the_template_only(api: ServedApi) -> None:
    api.put(VMS, objects.vm())
    assert (await api.request(VMS, "addinterface", PLUG))[0] == 202
    assert template(api)[1] == IFACE[0]
    assert api.kube.annotations(VMS, "default", "vm1") == {}
    assert api.bus.published == []


@pytest.mark.parametrize("code", [403, 422, 409, 503])
async def test_the_operation_is_taken_back_when_the_template_is_refused(api: ServedApi, code: int) -> None:
    api.put(VMIS, objects.vmi(owned=True))
    api.put(VMS, objects.vm())

    def refuse(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", VMS):
            reason = {409: "Conflict", 422: "Invalid"}.get(code, "")
            raise Refused(code, reason, REFUSAL)

    api.kube.before = refuse
    answered, status, _ = await api.request(VMS, "addinterface", PLUG)
    assert (answered, vmi_entry(api, OperationKind.PLUG)) == (code, None)
    assert (REFUSAL in status["message"]) is (code != 409)
    assert (api.kube.counted("PATCH", VMIS), api.kube.counted("PATCH", VMS)) == (2, 5 if code == 409 else 1)
    assert api.bus.published == []


async def test_an_attempt_after_a_conflict_keeps_the_operation(api: ServedApi) -> None:
    api.put(VMIS, objects.vmi(owned=True))
    api.put(VMS, objects.vm())
    other, left = objects.nic("other"), 1

    def change(method: str, plural: str, _name: str) -> None:
        nonlocal left
        if (method, plural) == ("PATCH", VMS) and left:
            left -= 1
            api.put(VMS, objects.vm(other))

    api.kube.before = change
    code, _, operation = await api.request(VMS, "addinterface", PLUG)
    entry = vmi_entry(api, OperationKind.PLUG)
    assert entry is not None
    assert (code, entry.id, api.kube.counted("PATCH", VMIS)) == (202, operation, 1)
    assert template(api)[1:] == [other[0], IFACE[0]]


async def test_a_recent_entry_of_another_network_is_not_continued(api: ServedApi) -> None:
    recent = Operation(
        "other",
        OperationKind.PLUG,
        "iface1",
        requested_at="2999-01-01T00:00:00Z",
        vm=objects.VM_UID,
        network="default/net9",
    )
    api.put(VMIS, objects.vmi(owned=True, annotations={operation_key("iface1"): encode_annotation(recent)}))
    api.put(VMS, objects.vm())
    code, _, operation = await api.request(VMS, "addinterface", PLUG)
    plug = vmi_entry(api, OperationKind.PLUG)
    assert plug is not None
    assert (code, plug.id) == (202, operation)
    assert operation != "other"


async def test_a_request_between_the_two_writes_of_another_api_continues_its_operation(api: ServedApi) -> None:
    recent = Operation("other", OperationKind.PLUG, "iface1", requested_at="2999-01-01T00:00:00Z", vm=objects.VM_UID)
    api.put(VMIS, objects.vmi(owned=True, annotations={operation_key("iface1"): encode_annotation(recent)}))
    api.put(VMS, objects.vm())
    assert (await api.request(VMS, "addinterface", PLUG))[::2] == (202, "other")
    assert template(api)[1] == IFACE[0]


@pytest.mark.parametrize(
    "left",
    [
        Operation("old", OperationKind.PLUG, "iface1", requested_at="2020-01-01T00:00:00Z", vm=objects.VM_UID),
        Operation("clone", OperationKind.PLUG, "iface1", requested_at="2999-01-01T00:00:00Z", vm="another"),
    ],
    ids=["old", "of another VM"],
)
async def test_leftover_entries_are_replaced(api: ServedApi, left: Operation) -> None:
    unplug = Operation("gone", OperationKind.UNPLUG, "iface1", vm=objects.VM_UID)
    annotations = {operation_key("iface1"): encode_annotation(left), unplug_key("iface1"): encode_annotation(unplug)}
    api.put(VMIS, objects.vmi(owned=True, annotations=annotations))
    api.put(VMS, objects.vm())
    code, _, operation = await api.request(VMS, "addinterface", PLUG)
    plug = vmi_entry(api, OperationKind.PLUG)
    assert plug is not None
    assert (code, plug.id, vmi_entry(api, OperationKind.UNPLUG)) == (202, operation, None)
    assert operation not in ("old", "clone")
    assert api.kube.counted("PATCH", VMIS) == 1


async def test_a_user_who_may_not_update_the_vm_is_refused(api: ServedApi) -> None:
    api.put(VMIS, objects.vmi(IFACE, owned=True))
    api.put(VMS, objects.vm(IFACE))
    api.kube.may = lambda spec: spec["resourceAttributes"]["resource"] != VMS
    for verb, body in (("addinterface", PLUG | {"name": "iface2"}), ("removeinterface", UNPLUG)):
        code, status, _ = await api.request(VMS, verb, body)
        assert (code, status["reason"]) == (403, "Forbidden")
        assert 'User "someone" cannot update resource "virtualmachines"' in status["message"]
    attributes = {"verb": "update", "group": "kubevirt.io", "version": "v1", "resource": VMS}
    assert api.kube.reviewed[0]["resourceAttributes"] == {**attributes, "namespace": "default", "name": "vm1"}
    assert api.kube.counted("PATCH", VMIS) == api.kube.counted("PATCH", VMS) == 0


@pytest.mark.parametrize("verb", ["addinterface", "removeinterface"])
@pytest.mark.parametrize(
    ("vmi", "cause", "text"),
    [
        (objects.vmi(owned=True), "PersistRequired", "change the VM instead"),
        (None, "PersistRequired", "change the VM instead"),
        (objects.vmi(), None, "plugs nothing into a VMI without a VM"),
    ],
    ids=["running", "stopped", "without a VM"],
)
async def test_requests_about_a_vmi_name_the_way(
    api: ServedApi, verb: str, vmi: Any, cause: str | None, text: str
) -> None:
    if vmi is not None:
        api.put(VMIS, vmi)
    api.put(VMS, objects.vm())
    code, status, _ = await api.request(VMIS, verb, PLUG)
    assert (code, text in status["message"]) == (409, True)
    assert [found["reason"] for found in status["details"].get("causes") or ()] == ([cause] if cause else [])


@pytest.mark.parametrize(
    ("beside", "code", "text"),
    [
        (msgspec.structs.replace(capabilities(), installing=True, gate="HotplugNICs"), 409, "being installed"),
        (msgspec.structs.replace(capabilities("v1.3.0"), gate="HotplugNICs"), 400, "in the KubeVirt object"),
        (None, 409, "there is no KubeVirt object"),
    ],
    ids=["installing", "gate off", "gone"],
)
async def test_nothing_is_accepted_that_nobody_follows(
    api: ServedApi, beside: Capabilities | None, code: int, text: str
) -> None:
    api.cluster = ClusterSettings(False, "masquerade", beside)
    api.put(VMS, objects.vm())
    answered, status, _ = await api.request(VMS, "addinterface", PLUG)
    assert (answered, text in status["message"]) == (code, True)


@pytest.mark.parametrize(
    ("version", "vm", "vmi", "verb", "text"),
    [
        ("v1.9.0", objects.vm(), objects.vmi(IFACE, owned=True), "removeinterface", "first add it again (hotnic "),
        ("v1.9.0", objects.vm(), objects.vmi(ABSENT, owned=True), "removeinterface", "is being unplugged"),
        ("v1.9.0", objects.vm(IFACE), objects.vmi(ABSENT, owned=True), "addinterface", "again by itself"),
        ("v1.9.0", objects.vm(ABSENT), objects.vmi(ABSENT, owned=True), "addinterface", "is being unplugged"),
        ("v1.0.1", objects.vm(IFACE), objects.vmi(IFACE, owned=True), "removeinterface", "KubeVirt 1.0 never takes"),
        ("v1.1.0", objects.vm(IFACE), objects.vmi(IFACE, owned=True), "removeinterface", "KubeVirt 1.1 never takes"),
    ],
    ids=["dropped", "dropped, absent", "comes back", "absent", "last one on 1.0", "last one on 1.1"],
)
async def test_refusals_name_the_way_out(api: ServedApi, version: str, vm: Any, vmi: Any, verb: str, text: str) -> None:
    api.cluster = ClusterSettings(False, "masquerade", capabilities(version))
    api.put(VMS, vm)
    api.put(VMIS, vmi)
    code, status, _ = await api.request(VMS, verb, PLUG)
    assert (code, text in status["message"]) == (409, True), status["message"]


async def test_a_dropped_interface_is_added_again_as_it_is(api: ServedApi) -> None:
    item = IFACE[0] | {"model": "virtio", "macAddress": "02:00:00:00:00:01"}
    entry = Operation("plug", OperationKind.PLUG, "iface1", vm=objects.VM_UID)
    annotations = {operation_key("iface1"): encode_annotation(entry)}
    api.put(VMIS, objects.vmi((item, IFACE[1]), owned=True, annotations=annotations))
    api.put(VMS, objects.vm())
    assert (await api.request(VMS, "addinterface", PLUG))[::2] == (202, "plug")
    assert template(api)[1] == item
    assert api.kube.counted("PATCH", VMIS) == 0


async def test_kubevirt_1_0_gets_the_request_in_its_queue(api: ServedApi) -> None:
    api.cluster = ClusterSettings(False, "masquerade", capabilities("v1.0.1"))
    other, third = objects.nic("other"), objects.nic("third")
    api.put(VMIS, objects.vmi(other, third, owned=True))
    api.put(VMS, msgspec.structs.replace(objects.vm(other, third), status=VmStatus(created=True)))
    code, _, plugged = await api.request(VMS, "addinterface", PLUG)
    assert (code, (await api.request(VMS, "addinterface", PLUG))[2]) == (202, plugged)
    assert vm_requests(api) == [{"addInterfaceOptions": PLUG}]
    assert template(api)[1:] == [other[0], third[0]]
    code, status, _ = await api.request(VMS, "removeinterface", {"name": "other"})
    assert code == 202
    assert vm_requests(api)[1] == {"removeInterfaceOptions": {"name": "other"}}
    code, status, _ = await api.request(VMS, "addinterface", PLUG | {"networkAttachmentDefinitionName": "default/net1"})
    assert (code, "waits in the VM's status.interfaceRequests" in status["message"]) == (409, True)


def vm_requests(api: ServedApi) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.kube.objects[VMS, "default", "vm1"]["status"]["interfaceRequests"]
    return found


@pytest.mark.parametrize("kind", ["VirtualMachinePreference", "", None])
async def test_the_model_of_the_preference_is_named(api: ServedApi, kind: str | None) -> None:
    plural, namespace = {
        "VirtualMachinePreference": ("virtualmachinepreferences", "default"),
        "": ("virtualmachineclusterpreferences", ""),
        None: ("", ""),
    }[kind]
    vm = objects.vm()
    if kind is not None:
        devices = {"preferredInterfaceModel": "virtio"}
        api.kube.put(plural, namespace, "linux", spec={"devices": devices})
        spec = msgspec.convert({"preference": {"name": "linux", "kind": kind}}, type(vm.spec))
        vm = msgspec.structs.replace(vm, spec=msgspec.structs.replace(vm.spec, preference=spec.preference))
    api.put(VMS, vm)
    assert (await api.request(VMS, "addinterface", PLUG))[0] == 202
    assert template(api)[1] == IFACE[0] | ({"model": "virtio"} if kind is not None else {})
    assert any(plural.endswith("preferences") for _, plural, _ in api.kube.requests) is (kind is not None)


async def test_consequences_are_told_before_the_change(api: ServedApi) -> None:
    api.kube.delete(PODS, "hotnic", "networks")
    api.put(VMIS, objects.vmi(owned=True, conditions=[{"type": "LiveMigratable", "status": "True"}]))
    api.put(VMS, objects.vm())
    code, _, operation = await api.request(VMS, "addinterface", PLUG, query={"dryRun": "All"})
    assert (code, operation, len(template(api))) == (202, "", 1)
    (warning,) = api.warnings
    assert warning.startswith('299 - "')
    assert "KubeVirt migrates the VM about 25 s after the change" in warning
    assert (vmi_entry(api, OperationKind.PLUG), api.kube.counted("PATCH", VMS), api.bus.published) == (None, 1, [])
    assert (await api.request(VMS, "addinterface", PLUG))[0] == 202
    assert api.warnings == [warning]
    assert (await api.request(VMS, "addinterface", PLUG, query={"dryRun": "Some"}))[0] == 400


async def test_a_warning_shows_control_characters_of_an_object_without_sending_them(api: ServedApi) -> None:
    api.kube.delete(PODS, "hotnic", "networks")
    condition = {"type": "LiveMigratable", "status": "False", "message": "disk \x1b[31m\x00\x7f is local"}
    api.put(VMIS, objects.vmi(owned=True, conditions=[condition]))
    api.put(VMS, objects.vm())
    assert (await api.request(VMS, "addinterface", PLUG))[0] == 202
    (warning,) = api.warnings
    assert warning.isprintable()
    assert "disk \\\\x1b[31m" in warning


async def test_a_network_that_needs_a_device_is_attached_by_a_migration(api: ServedApi) -> None:
    """The pod of the migration's target requests the device."""
    nad = objects.nad()
    annotations = {RESOURCE_NAME: "vendor.example/vf"}
    api.put(NADS, msgspec.structs.replace(nad, metadata=msgspec.structs.replace(nad.metadata, annotations=annotations)))
    api.put(VMIS, objects.vmi(owned=True, conditions=[{"type": "LiveMigratable", "status": "True"}]))
    api.put(VMS, objects.vm())
    assert (await api.request(VMS, "addinterface", PLUG))[0] == 202
    (warning,) = api.warnings
    assert "needs the device 'vendor.example/vf'" in warning
    assert "KubeVirt migrates the VM" in warning


async def test_a_vm_is_shut_down_only_with_the_users_consent(api: ServedApi) -> None:
    api.cluster = ClusterSettings(False, "masquerade", capabilities(methods=("LiveMigrate", "Evict")))
    api.kube.delete(PODS, "hotnic", "networks")
    condition = {"type": "LiveMigratable", "status": "False", "reason": "DisksNotLiveMigratable"}
    api.put(VMIS, objects.vmi(owned=True, conditions=[condition]))
    api.put(VMS, objects.vm())
    code, status, _ = await api.request(VMS, "addinterface", PLUG)
    assert (code, vmi_entry(api, OperationKind.PLUG)) == (409, None)
    assert "SHUTS THE VM DOWN" in status["message"]
    assert "DisksNotLiveMigratable" in status["message"]
    assert (await api.request(VMS, "addinterface", PLUG, query={"allowEviction": "true"}))[0] == 202
    assert "SHUTS THE VM DOWN" in api.warnings[0]
