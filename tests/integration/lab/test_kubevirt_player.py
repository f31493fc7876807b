"""The played KubeVirt leaves the objects that real KubeVirt left after the same actions of a user."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.kubevirt.loops.play import INSTALLATIONS, PREFERENCES
from lab.kubevirt.pace import Pace
from lab.kubevirt.player import PlayOptions
from lab.kubevirt.specs import lists_of
from lab.node.resources import VMIS, VMS
from schemas.kubernetes.networks import NETWORKS
from schemas.kubernetes.objects import Resource
from schemas.names import pod_interface
from services.common.kube.errors import Invalid
from services.common.kube.patch import add
from tests.cluster.tools import Kubectl
from tests.support.lab.kubevirt import PlayedCluster, api_server, played_cluster, recorded_events, vm_without

ATTACHED = "domain, guest-agent, multus-status"
NEVER = 3600.0


async def test_plug_and_unplug_by_edits_of_the_template(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9")) as cluster:
        await cluster.start(vm_without("v1.9.0-a-plugged", "blue"))
        await cluster.plug("va", "blue", "net1")
        await cluster.reaches("v1.9.0-a-plugged", "va", slice(1))
        await unplug(cluster, "va", "blue")

        await cluster.plug("va", "green", "net2")
        await cluster.plug("va", "blue", "net1")
        await cluster.has_tokens("va", "blue", ATTACHED)
        cluster.pace.hold("detach", "blue")
        await cluster.set_state("va", "blue")
        await cluster.reaches("v1.9.0-c-unplug-guest-holds", "va", slice(1))
        cluster.pace.release("detach", "blue")
        await gone(cluster, "va", "blue")
        await unplug(cluster, "va", "green")
        await cluster.reaches("v1.9.0-d-last-gone", "va", slice(1))
        # The template equals the one that the VMI started from.
        generation = cluster.find(VMS.plural, "va")["metadata"]["generation"]
        await cluster.until(lambda: cluster.find(VMS.plural, "va")["status"]["observedGeneration"] == generation > 1)


async def test_migration_is_required_while_nobody_serves_the_annotation(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9", grace=NEVER, update_delay=0.1)) as cluster:
        play = cluster.player.play
        await cluster.start(vm_without("v1.9.0-b-pending", "blue"))
        cluster.pace.hold("network-status")
        await cluster.plug("vb", "blue", "net1")
        await cluster.reaches("v1.9.0-b-pending", "vb", slice(1))
        play.grace = 0.1
        cluster.player.trigger_all()
        await cluster.reaches("v1.9.0-b-required", "vb", slice(1))
        # Served late, the plug ends in place.
        cluster.pace.release("network-status")
        await cluster.has_tokens("vb", "blue", ATTACHED)
        await condition_is(cluster, "vb", "MigrationRequired", "")

        cluster.pace.hold("network-status")
        cluster.pace.hold("end-source")
        await set_methods(cluster, "LiveMigrate")
        await cluster.plug("vb", "red", "net2")
        await cluster.reaches("v1.9.0-b-migrated", "vb", slice(2))
        await cluster.until(lambda: cluster.events("vb") == recorded_events("v1.9.0-b-migrated"))


async def test_automatic_migration_runs(tmp_path: Path) -> None:
    async with played_cluster(
        tmp_path, PlayOptions("1.9", methods=["LiveMigrate"], grace=0.1, update_delay=0.1)
    ) as cluster:
        await cluster.start(vm_without("v1.9.0-b6-migrating", "slow"))
        # The target pod gets a copy of the VMI's annotations.
        await cluster.annotate(VMIS, "hr", "v1.9.0-b6-migrating", "vmi")
        for step in ("network-status", "hand-over"):
            cluster.pace.hold(step)
        await cluster.plug("hr", "slow", "net1")
        await cluster.reaches("v1.9.0-b6-migrating", "hr", slice(2))


async def test_unplug_that_multus_does_not_serve_requires_a_migration(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9", grace=0.1, update_delay=0.1, restart_delay=0.1)) as cluster:
        vm = vm_without("v1.9.0-b-unplug-required")
        sec1 = next(i for i in vm["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"] if i["name"] == "sec1")
        del sec1["state"]
        await cluster.start(vm)
        cluster.pace.hold("network-status")
        await cluster.set_state("vb2", "sec1")
        await cluster.reaches("v1.9.0-b-unplug-required", "vb2", slice(1))
        cluster.pace.release("network-status")
        await gone(cluster, "vb2", "sec1")

        # With Evict alone the VM is shut down and started again, with the interface in the new pod.
        cluster.pace.hold("network-status")
        await set_methods(cluster, "Evict")
        await cluster.plug("vb2", "red", "net2")
        await cluster.until(lambda: any(reason == "SuccessfulDelete" for _, reason, _, _ in cluster.events("vb2")))
        await cluster.reaches("v1.9.0-b-evicted", "vb2")
        expected = without_uid(recorded_events("v1.9.0-b-evicted"))
        await cluster.until(lambda: without_uid(cluster.events("vb2")) == expected)


async def test_restart_required_comes_and_goes_with_the_edit(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9")) as cluster:
        await cluster.start(vm_without("v1.9.0-f-model-changed", sec1={"name": "sec1", "bridge": {}}))
        await cluster.set_state("kv1", "sec1", "up")
        await set_model(cluster, "kv1", "sec1", "e1000")
        await cluster.reaches("v1.9.0-f-model-changed", "kv1")
        await cluster.plug("kv1", "fp", "net1")
        await cluster.reaches("v1.9.0-f-plugged-while-restart-required", "kv1")
        await set_model(cluster, "kv1", "sec1", None)
        await condition_is(cluster, "kv1", "RestartRequired", "")
        await cluster.edit("kv1", lambda networks, interfaces: (networks.pop(), interfaces.pop()))
        await cluster.reaches("v1.9.0-f-dropped-without-absent", "kv1")


async def test_preference_with_a_model_requires_a_restart_after_a_plug(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9")) as cluster:
        preference = {
            "apiVersion": "instancetype.kubevirt.io/v1beta1",
            "kind": PREFERENCES.kind,
            "metadata": {"name": "pref", "namespace": "default"},
            "spec": {"devices": {"preferredInterfaceModel": "virtio"}},
        }
        await cluster.kube.create(PREFERENCES, "default", preference)
        await cluster.start(vm_without("v1.9.0-l-preference-plugged", "blue"))
        await cluster.plug("vl", "blue", "net1")
        await cluster.reaches("v1.9.0-l-preference-plugged", "vl")


async def test_another_network_needs_a_migration(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9", grace=NEVER, update_delay=0.1)) as cluster:
        vm = vm_without("v1.9.0-g-nad-changed")
        vm["spec"]["template"]["spec"]["networks"][1]["multus"]["networkName"] = "net1"
        await cluster.start(vm)
        cluster.pace.hold("end-source")
        await cluster.edit("vg", lambda networks, _: networks[1]["multus"].update(networkName="net2"))
        await cluster.reaches("v1.9.0-g-nad-changed", "vg", slice(1))
        await set_methods(cluster, "LiveMigrate")
        await cluster.reaches("v1.9.0-g-nad-migrated", "vg", slice(2))


async def test_plug_while_a_migration_runs(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9")) as cluster:
        await cluster.start(vm_without("v1.9.0-k-plug-while-migrating", "kplug", "kplug2"))
        await cluster.plug("vg", "kplug", "net1")
        await cluster.has_tokens("vg", "kplug", ATTACHED)
        await cluster.migrate("vg")
        await cluster.migrate("vg")
        cluster.pace.hold("hand-over", "vg")
        await cluster.start_migration("vg")
        await cluster.until(lambda: "targetPod" in str(cluster.find(VMIS.plural, "vg")["status"]["migrationState"]))
        await cluster.until(lambda: cluster.find(VMS.plural, "vg")["status"]["printableStatus"] == "Migrating")
        await cluster.plug("vg", "kplug2", "net2")
        await cluster.reaches("v1.9.0-k-plug-while-migrating", "vg", slice(2, 4))
        # The target pod lacks it at the hand-over; the plug begins again there.
        cluster.pace.hold("network-status")
        cluster.pace.release("hand-over", "vg")
        await cluster.until(lambda: cluster.entry("vg", "kplug2") == {})
        cluster.pace.release("network-status")
        await cluster.has_tokens("vg", "kplug2", ATTACHED)


async def test_moments_after_migrations_there_and_back(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9", grace=NEVER)) as cluster:
        await cluster.start(vm_without("v1.9.0-m-stray-element", "blue"))
        await cluster.migrate("hb")
        await cluster.migrate("hb")
        cluster.pace.hold("attach", "blue")
        await cluster.plug("hb", "blue", "net1")
        await cluster.reaches("v1.9.0-k-back-on-first-node", "hb", slice(3))
        cluster.pace.release("attach", "blue")
        await cluster.has_tokens("hb", "blue", ATTACHED)

        # Plugged, and absent before Multus has answered: the element stays, and Multus serves it later.
        cluster.pace.hold("network-status")
        await cluster.plug("hb", "quick", "net1")
        await cluster.until(lambda: "quick" in str(cluster.find(VMIS.plural, "hb")["spec"]))
        await cluster.until(lambda: "pod22c72aa82ce" in str(cluster.pods("hb")[2]["metadata"]["annotations"]))
        await cluster.set_state("hb", "quick")
        await gone(cluster, "hb", "quick")
        cluster.pace.release("network-status")
        await cluster.annotate(VMS, "hb", "v1.9.0-m-stray-element", "vm")
        await cluster.reaches("v1.9.0-m-stray-element", "hb", slice(2, 3))

        await cluster.plug("hb", "sr1", "net1", sriov={})
        await cluster.reaches("v1.9.0-s-sriov-pending", "hb", slice(2, 3))


async def test_refused_change_of_the_vmi_is_shown_on_the_vm(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9")) as cluster:
        await cluster.start(vm_without("v1.9.0-n-vmi-patch-refused", "denyvmi"))
        await refuse_interface(cluster, "denyvmi")
        await cluster.plug("hf", "denyvmi", "net1")
        await cluster.reaches("v1.9.0-n-vmi-patch-refused", "hf")


async def test_requests_of_version_1_0(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.0", gates=["HotplugNICs"])) as cluster:
        await cluster.start(vm_without("v1.0.1-plugged", "hot1"))
        added = {"networkAttachmentDefinitionName": "net1", "name": "hot1"}
        await cluster.request("kv4", {"addInterfaceOptions": added})
        await cluster.reaches("v1.0.1-plugged", "kv4", slice(1))

        plain = {name: {"name": name, "bridge": {}} for name in ("sec1", "hot1")}
        await cluster.start(vm_without("v1.0.1-unplugging", **plain))
        cluster.pace.hold("detach")
        cluster.pace.hold("network-status")
        for name in plain:
            await cluster.request("kv6", {"removeInterfaceOptions": {"name": name}})
            await cluster.until(lambda name=name: state_of(cluster, "kv6", name) == "absent")
            await cluster.until(lambda: not cluster.find(VMS.plural, "kv6")["status"].get("interfaceRequests"))
        await cluster.reaches("v1.0.1-unplugging", "kv6", slice(1))
        # The last element is never taken out.
        cluster.pace.release("detach")
        cluster.pace.release("network-status")
        await gone(cluster, "kv6", "sec1")
        assert pod_interface("hot1") in cluster.pods("kv6")[0]["metadata"]["annotations"][NETWORKS]


@pytest.mark.parametrize("version", ["1.1", "1.3", "1.5", "1.8"])
async def test_plug_and_unplug_in_versions_without_recordings(tmp_path: Path, version: str) -> None:
    options, pace = PlayOptions(version, gates=["HotplugNICs"]), Pace.spread(0.05, random.Random(version))
    async with played_cluster(tmp_path, options, pace) as cluster:
        await cluster.start(vm_without("v1.9.0-a-plugged", "blue"))
        for name in ("blue", "green"):
            await cluster.plug("va", name, "net1")
            await cluster.has_tokens("va", name, ATTACHED)
        await condition_is(cluster, "va", "RestartRequired", "True" if version == "1.3" else "")
        await unplug(cluster, "va", "blue")
        await cluster.set_state("va", "green")
        if version == "1.1":
            await cluster.has_tokens("va", "green", "multus-status")
            assert pod_interface("green") in cluster.pods("va")[0]["metadata"]["annotations"][NETWORKS]
        else:
            await gone(cluster, "va", "green")
            assert cluster.pods("va")[0]["metadata"]["annotations"][NETWORKS] == ""


async def test_vm_is_stopped_started_and_deleted(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9")) as cluster:
        await cluster.start(vm_without("v1.9.0-a-plugged"))
        first = cluster.find(VMIS.plural, "va")["metadata"]["uid"]
        await cluster.kube.merge_patch(VMS, "default", "va", {"spec": {"runStrategy": "Halted"}})
        await cluster.until(lambda: cluster.find(VMS.plural, "va")["status"]["printableStatus"] == "Stopped")
        assert (cluster.find(VMIS.plural, "va"), cluster.pods("va")) == ({}, [])
        # An absent interface leaves the template of a stopped VM.
        await cluster.set_state("va", "blue")
        await cluster.until(lambda: "blue" not in str(cluster.find(VMS.plural, "va")["spec"]))

        await cluster.kube.merge_patch(VMS, "default", "va", {"spec": {"runStrategy": "Always"}})
        await cluster.has_tokens("va", "default", "domain, guest-agent")
        assert cluster.find(VMIS.plural, "va")["metadata"]["uid"] != first
        await cluster.kube.delete(VMS, "default", "va")
        await cluster.until(lambda: not cluster.find(VMS.plural, "va"))
        assert (cluster.find(VMIS.plural, "va"), cluster.pods("va")) == ({}, [])


async def test_writes_that_the_webhooks_refuse_or_undo(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, PlayOptions("1.9")) as cluster:
        await cluster.start(vm_without("v1.9.0-a-plugged"))
        before = cluster.find(VMIS.plural, "va")

        async def patched(*ops: dict[str, Any], resource: Resource[dict[str, Any]] = VMIS) -> dict[str, Any]:
            return await cluster.kube.json_patch(resource, "default", "va", ops)

        for op, why in (
            (add("/spec/domain/devices/interfaces/1/state", "absent"), "update of VMI object is restricted"),
            (add("/metadata/labels/kubevirt.io~1nodeName", "other"), "modification of the following reserved"),
        ):
            with pytest.raises(Invalid, match=why):
                await patched(op)
        absent = add("/spec/template/spec/domain/devices/interfaces/0/state", "absent")
        with pytest.raises(Invalid, match="supported only for bridge binding"):
            await patched(absent, resource=VMS)

        # A status is undone silently; an annotation of the same patch is kept.
        vmi = await patched(
            add("/status/interfaces", []),
            add("/metadata/annotations/example.io~1a", "1"),
            add("/metadata/annotations/kubevirt.io~1vm-generation", "7"),
        )
        assert vmi["status"] == before["status"]
        assert vmi["metadata"]["annotations"] == {**before["metadata"]["annotations"], "example.io/a": "1"}
        assert vmi["metadata"]["generation"] == before["metadata"]["generation"]

        # The status of a VM is written, and undone by virt-controller.
        status = {"status": {"printableStatus": "Stopped", "conditions": []}}
        vm = await cluster.kube.merge_patch(VMS, "default", "va", status, subresource="status")
        await cluster.until(lambda: cluster.find(VMS.plural, "va")["status"] != vm["status"])
        await cluster.until(lambda: cluster.find(VMS.plural, "va")["status"]["printableStatus"] == "Running")


def state_of(cluster: PlayedCluster, vm: str, name: str) -> str:
    """Return the state of an interface in a VM's template; it is empty if there is none."""
    interfaces = lists_of(cluster.find(VMS.plural, vm)["spec"]["template"]["spec"])
    return str((interfaces.interface(name) or {}).get("state", ""))


def test_process_plays_until_sigterm(tmp_path: Path) -> None:
    with api_server(tmp_path, "1.9") as (admin, account):
        command = [sys.executable, "-m", "lab.kubevirt", "--kubeconfig", str(account), "--version", "1.9"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == {"ready": True, "kubevirt": "1.9.0"}
            kubectl = Kubectl(admin, "default", tmp_path / "cache")
            kubectl("create", "--filename", "-", stdin=vm_without("v1.9.0-a-plugged"))
            kubectl("wait", "vm/va", "--for=jsonpath={.status.ready}=true", "--timeout=25s")
            process.terminate()
            assert process.wait(10) == 0


async def unplug(cluster: PlayedCluster, vm: str, name: str) -> None:
    """Unplug an interface and wait until the template has dropped it."""
    await cluster.set_state(vm, name)
    await gone(cluster, vm, name)


async def gone(cluster: PlayedCluster, vm: str, name: str) -> None:
    """Wait until VM and VMI have dropped an interface."""
    specs = (VMS.plural, VMIS.plural)
    await cluster.until(lambda: all(f"'{name}'" not in str(cluster.find(plural, vm)["spec"]) for plural in specs))


async def condition_is(cluster: PlayedCluster, vm: str, kind: str, status: str) -> None:
    """Wait until a condition of a VM has this status; empty for none."""

    def found() -> str:
        conditions = cluster.find(VMS.plural, vm)["status"]["conditions"]
        return next((str(item["status"]) for item in conditions if item["type"] == kind), "")

    await cluster.until(lambda: found() == status)


async def set_methods(cluster: PlayedCluster, *methods: str) -> None:
    """Set the workload update methods of the KubeVirt object, and wait until the player has seen them."""
    body = {"spec": {"workloadUpdateStrategy": {"workloadUpdateMethods": list(methods)}}}
    await cluster.kube.merge_patch(INSTALLATIONS, "kubevirt", "kubevirt", body)


async def set_model(cluster: PlayedCluster, vm: str, name: str, model: str | None) -> None:
    """Set or remove the model of an interface in a VM's template."""

    def change(_networks: list[dict[str, Any]], interfaces: list[dict[str, Any]]) -> None:
        interface = next(item for item in interfaces if item["name"] == name)
        interface.pop("model", None)
        interface.update({"model": model} if model else {})

    await cluster.edit(vm, change)


async def refuse_interface(cluster: PlayedCluster, name: str) -> None:
    """Have the API server refuse VMIs with an interface of that name."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/virtualmachineinstances.kubevirt.io"
    schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/networks/items/properties/name/pattern"
    body = [{"op": "add", "path": schema, "value": f"^(?!{name}$)"}]
    await cluster.kube.request("PATCH", path, body=body, content_type="application/json-patch+json")


def without_uid(events: list[tuple[str, str, str, str]]) -> set[tuple[str, str, str]]:
    """Return events without their messages, which have the UID of a VMI; KubeVirt counts equal ones in one object."""
    return {(kind, reason, severity) for kind, reason, severity, _ in events}
