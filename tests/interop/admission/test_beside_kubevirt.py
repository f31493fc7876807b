"""Beside KubeVirt the policies of VMs and VMIs restrict hotnic's own accounts, and nobody else."""

from collections.abc import Iterator

import pytest

from tests.support.interop.releases import write
from tests.support.kube.admission.cluster import GuardedCluster
from tests.support.kube.admission.objects import OPERATION, identities, vm_object, vmi_spec
from tests.support.kube.admission.table import VM, VMI, annotate
from tests.support.kube.control_plane import until

TENANT, *_ = identities()
API, CONTROLLER = (next(one for one in identities() if one.role == role) for role in ("api", "controller"))
HALT = {"spec": {"running": False}}


@pytest.fixture
def beside(guarded: GuardedCluster) -> Iterator[GuardedCluster]:
    """The cluster with the policies that the chart has beside KubeVirt."""

    def stages() -> list[int]:
        return [guarded.send(TENANT, "PATCH", path, annotate(**{OPERATION: "2"}))[0] for path in (VM, VMI)]

    guarded.apply(choice="beside-kubevirt")
    try:
        until(lambda: stages() == [200, 200], lambda: f"tenants are not restricted: {stages()}")
        yield guarded
    finally:
        guarded.apply()
        until(lambda: stages() == [403, 403], lambda: f"tenants are restricted again: {stages()}")


def test_roles_change_nothing_of_a_vm_but_its_networks(beside: GuardedCluster) -> None:
    template = {"spec": {"template": {"spec": vmi_spec("blue", "red")}}}
    secret = {"spec": {"template": {"spec": {"volumes": [{"name": "x", "secret": {"secretName": "any"}}]}}}}
    label = {"metadata": {"labels": {"a": "b"}}}
    for body in (HALT, secret, label):
        assert beside.send(TENANT, "PATCH", VM, body)[0] == 200, body
        for role in (API, CONTROLLER):
            status, message = beside.send(role, "PATCH", VM, body)
            assert (status, "VM vms/vm1: system:serviceaccount:" in message) == (403, True), (role.name, body)
    assert beside.send(API, "PATCH", VM, template) == (200, "")
    assert beside.send(API, "PATCH", VM, annotate(**{OPERATION: "2"})) == (200, "")
    assert beside.send(CONTROLLER, "PATCH", VM, template)[0] == 403


def test_what_kubevirt_adds_to_an_old_vm_is_not_the_roles_change(beside: GuardedCluster) -> None:
    """Its webhook sets the defaults of a later KubeVirt with whatever change comes first."""
    spec = {"architecture": "amd64", **vmi_spec("blue", "red")}
    spec["domain"] |= {"machine": {"type": "q35"}}
    added = {"spec": {"template": {"spec": spec}}}
    assert beside.send(API, "PATCH", VM, added) == (200, "")
    old = vm_object("upgraded")
    old["spec"]["template"]["spec"] |= spec
    beside.plane.kubectl("create", "--filename", write(beside.plane, "upgraded", [old]))
    for changed in ({"architecture": "arm64"}, {"architecture": None}, {"domain": {"machine": {"type": "pc"}}}):
        body = {"spec": {"template": {"spec": changed}}}
        assert beside.send(API, "PATCH", VM.replace("vm1", "upgraded"), body)[0] == 403, changed


def test_roles_change_nothing_of_a_vmi_but_annotations(beside: GuardedCluster) -> None:
    for body in ({"spec": {"networks": None}}, {"status": {"interfaces": []}}, {"spec": {"hostname": "x"}}):
        assert beside.send(TENANT, "PATCH", VMI, body)[0] == 200, body
        for role in (API, CONTROLLER):
            assert beside.send(role, "PATCH", VMI, body)[0] == 403, (role.name, body)
    for role in (API, CONTROLLER):
        assert beside.send(role, "PATCH", VMI, annotate(**{OPERATION: "2"})) == (200, "")
