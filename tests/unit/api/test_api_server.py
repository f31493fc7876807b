"""The api's routes: every verb under every group and version, the gate, the header, discovery."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from schemas.operations import operation_of
from schemas.stages import Stage
from services.api.observe import Cluster
from tests.support import objects
from tests.support.node_kube import NADS, Refused
from tests.support.served_api import HOTNIC, Served, serving_api

VMS, VMIS = "virtualmachines", "virtualmachineinstances"
VERSIONS = [HOTNIC, "subresources.kubevirt.io/v1", "subresources.kubevirt.io/v1alpha3"]
PLUG = {"networkAttachmentDefinitionName": "net1", "name": "iface1"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving_api(tmp_path) as served:
        yield served


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", [VMS, VMIS])
@pytest.mark.parametrize("verb", ["addinterface", "removeinterface"])
async def test_every_verb_is_served_everywhere(api: Served, version: str, resource: str, verb: str) -> None:
    code, status, _ = await api.ask(resource, verb, PLUG, name="nobody", version=version)
    assert code == 404
    assert (status["kind"], status["reason"]) == ("Status", "NotFound")
    assert status["message"] == f'{resource[:-1]}.kubevirt.io "nobody" not found'
    async with api.session.get(f"/apis/{version}") as answer:
        served = {(found["name"], found["kind"]) for found in (await answer.json())["resources"]}
    assert (f"{resource}/{verb}", f"{verb[0].upper()}{verb[1:-9]}InterfaceOptions") in served


async def test_virtctl_of_kubevirt_1_0_is_served_as_by_virt_api(api: Served) -> None:
    """Its requests carry no Content-Type; before it shows an error it compares versions."""
    api.put(VMS, objects.vm())
    api.put(VMIS, objects.vmi(owned=True))
    for verb, body in (("addinterface", PLUG), ("removeinterface", {"name": "iface1"})):
        path = f"/apis/subresources.kubevirt.io/v1/namespaces/default/{VMS}/vm1/{verb}"
        data = msgspec.json.encode(body)
        async with api.session.put(path, data=data, skip_auto_headers=["Content-Type"]) as answer:
            assert (answer.status, await answer.read()) == (202, b"")
    async with api.session.get("/apis/subresources.kubevirt.io") as answer:
        group = await answer.json()
    preferred = group["preferredVersion"]["groupVersion"]
    assert (group["kind"], preferred) == ("APIGroup", "subresources.kubevirt.io/v1")
    async with api.session.get(f"/apis/{preferred}/version") as answer:
        version = await answer.json()
    assert version["gitVersion"].startswith("v1.0.")
    assert {"gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"} < version.keys()


async def test_the_discovery_documents_are_kubevirts(api: Served) -> None:
    documents = {}
    for path in ("/", "/apis", *(f"/apis/{version}" for version in VERSIONS)):
        async with api.session.get(path) as answer:
            documents[path] = await answer.json()
    assert {"/apis", "/openapi/v2", "/apis/subresources.kubevirt.io", "/apis/subresources.kubevirt.io/v1alpha3"} <= set(
        documents["/"]["paths"]
    )
    assert [group["name"] for group in documents["/apis"]["groups"]] == [
        "subresources.hotnic.io",
        "subresources.kubevirt.io",
    ]
    for version in VERSIONS:
        listed = documents[f"/apis/{version}"]
        assert (listed["kind"], listed["apiVersion"], listed["groupVersion"]) == ("APIResourceList", "v1", version)
        names = {resource["name"] for resource in listed["resources"] if resource["namespaced"]}
        assert {f"{r}/{v}" for r in (VMS, VMIS) for v in ("addinterface", "removeinterface")} <= names


@pytest.mark.parametrize("version", VERSIONS)
async def test_health_is_the_connection_to_the_api_server(api: Served, version: str) -> None:
    async with api.session.get(f"/apis/{version}/healthz") as answer:
        assert (answer.status, (await answer.json())["apiserver"]["connectivity"]) == (200, "ok")

    def away(_method: str, plural: str, _name: str) -> None:
        if plural == "version":
            raise Refused(503, "ServiceUnavailable", "etcd is away")

    api.kube.before = away
    async with api.session.get(f"/apis/{version}/healthz") as answer:
        said = (await answer.json())["apiserver"]
        assert (answer.status, said["connectivity"]) == (500, "failed")
        assert "etcd is away" in said["error"]


@pytest.mark.parametrize("resource", [VMS, VMIS])
@pytest.mark.parametrize("verb", ["addinterface", "removeinterface"])
async def test_with_the_gate_off_both_verbs_are_refused_in_kubevirts_words(
    api: Served, resource: str, verb: str
) -> None:
    api.enabled = False
    code, status, _ = await api.ask(resource, verb, "whatever")
    assert (code, status["reason"]) == (400, "BadRequest")
    assert status["message"] == 'Unable to Add Interface because the "HotplugNICs" feature gate is not enabled.'


async def test_plug_and_unplug_of_a_vmi_are_published_and_a_repetition_joins(api: Served) -> None:
    api.put(VMIS, objects.vmi())
    code, _, plugged = await api.ask(VMIS, "addinterface", PLUG)
    again = await api.ask(VMIS, "addinterface", PLUG)
    assert (code, again[0], again[2]) == (202, 202, plugged)
    code, _, unplugged = await api.ask(VMIS, "removeinterface", {"name": "iface1"})
    again = await api.ask(VMIS, "removeinterface", {"name": "iface1"})
    assert (code, again[0], again[2]) == (202, 202, unplugged)
    assert plugged != unplugged
    assert [(event.stage, event.operation.id) for event in api.bus.published] == [
        (Stage.REQUESTED, plugged),
        (Stage.REQUESTED, unplugged),
    ]
    code, status, _ = await api.ask(VMIS, "addinterface", PLUG)
    assert (code, status["reason"]) == (409, "AlreadyExists")


async def test_requests_for_one_vm_at_once_take_turns_and_all_get_through(api: Served) -> None:
    api.put(VMIS, objects.vmi())
    bodies = [PLUG | {"name": f"iface{i}"} for i in range(12)]
    answers = await asyncio.gather(*(api.ask(VMIS, "addinterface", body) for body in bodies))
    assert [code for code, _, _ in answers] == [202] * len(bodies)
    interfaces = api.kube.objects[VMIS, "default", "vm1"]["spec"]["domain"]["devices"]["interfaces"]
    assert {interface["name"] for interface in interfaces} >= {body["name"] for body in bodies}


async def test_a_vm_is_changed_in_its_template_alone_and_nothing_is_published(api: Served) -> None:
    api.put(VMS, objects.vm())
    code, _, plugged = await api.ask(VMS, "addinterface", PLUG)
    assert code == 202
    written = operation_of(api.kube.annotations(VMS, "default", "vm1"), "iface1")
    assert written is not None
    assert (written.id, written.traceparent is not None) == (plugged, True)
    template = api.kube.objects[VMS, "default", "vm1"]["spec"]["template"]["spec"]
    assert template["networks"][1] == {"name": "iface1", "multus": {"networkName": "net1"}}
    code, _, unplugged = await api.ask(VMS, "removeinterface", {"name": "iface1"})
    assert (code, (await api.ask(VMS, "removeinterface", {"name": "iface1"}))[2]) == (202, unplugged)
    template = api.kube.objects[VMS, "default", "vm1"]["spec"]["template"]["spec"]
    assert template["domain"]["devices"]["interfaces"][1]["state"] == "absent"
    assert api.bus.published == []


async def test_where_kubevirt_drives_the_nics_only_templates_are_changed(api: Served) -> None:
    api.cluster = Cluster(owned=False)
    api.put(VMIS, objects.vmi(owned=True))
    api.put(VMS, objects.vm())
    code, status, _ = await api.ask(VMIS, "addinterface", PLUG)
    assert code == 409
    assert "change the VM" in status["message"]
    assert (await api.ask(VMS, "addinterface", PLUG))[0] == 202


async def test_what_is_invalid_says_why_in_a_cause_for_kubectl_prints_nothing_else(api: Served) -> None:
    api.put(VMIS, objects.vmi())
    code, status, _ = await api.ask(VMIS, "removeinterface", {"name": "default"})
    assert (code, status["reason"]) == (422, "Invalid")
    (cause,) = status["details"]["causes"]
    assert cause["message"] == status["message"]
    assert "primary network" in cause["message"]


@pytest.mark.parametrize("resource", [VMS, VMIS])
@pytest.mark.parametrize("there", [True, False], ids=["there", "not there"])
async def test_a_network_of_another_namespace_is_for_those_who_may_read_it(
    api: Served, resource: str, there: bool
) -> None:
    api.put(VMS, objects.vm())
    api.put(VMIS, objects.vmi(owned=True))
    if there:
        api.kube.put(NADS, "secret", "net1", spec={"config": '{"type":"bridge"}'})
    api.kube.may = lambda spec: False
    foreign = {"networkAttachmentDefinitionName": "secret/net1", "name": "iface1"}
    code, status, _ = await api.ask(resource, "addinterface", foreign)
    assert (code, status["reason"]) == (403, "Forbidden")
    assert 'User "someone" cannot get resource' in status["message"]
    (asked,) = api.kube.reviewed
    assert (asked["user"], asked["groups"], asked["extra"]) == ("someone", ["system:authenticated"], {"scopes": ["a"]})
    attributes = {"group": "k8s.cni.cncf.io", "version": "v1", "resource": NADS, "verb": "get"}
    assert asked["resourceAttributes"] == {**attributes, "namespace": "secret", "name": "net1"}

    api.kube.may = lambda spec: True
    code, _, _ = await api.ask(resource, "addinterface", foreign)
    assert code == (202 if there else 404)
    # Of the VM's own namespace nobody asks, and a removal names none.
    code, _, _ = await api.ask(resource, "addinterface", PLUG | {"name": "iface2"})
    assert code == 202
    await api.ask(resource, "removeinterface", {"name": "iface2"})
    assert len(api.kube.reviewed) == 2


async def test_who_cannot_be_asked_about_is_not_let_through(api: Served) -> None:
    api.put(VMIS, objects.vmi())
    api.kube.put(NADS, "secret", "net1", spec={"config": '{"type":"bridge"}'})

    def refuse(_method: str, plural: str, _name: str) -> None:
        if plural == "subjectaccessreviews":
            raise Refused(403, "Forbidden", "the api may not ask")

    api.kube.before = refuse
    code, status, _ = await api.ask(VMIS, "addinterface", PLUG | {"networkAttachmentDefinitionName": "secret/net1"})
    assert (code, status["message"]) == (403, "the api may not ask")
    assert operation_of(api.kube.annotations(VMIS, "default", "vm1"), "iface1") is None
