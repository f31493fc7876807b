"""The whole table of docs/admission.md on a real API server: every identity, every object, every change."""

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS
from tests.support.kube.admission.cluster import GuardedCluster
from tests.support.kube.admission.objects import COLUMNS, NODE, NODE_ROLES, OPERATION, POD_NIC, SLOTS, identities
from tests.support.kube.admission.table import LAUNCHER, VMI, Row, annotate, rows

TENANT, *_ = identities()


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.id)
def test_every_identity_gets_the_answer_of_the_table(guarded: GuardedCluster, row: Row) -> None:
    assert guarded.wrong_cells(row, list(identities())) == []


def test_every_column_has_an_identity() -> None:
    assert {identity.column for identity in identities()} == set(COLUMNS)


def test_the_api_server_finds_no_mistake_in_the_types_of_a_policy(guarded: GuardedCluster) -> None:
    warnings = {one["metadata"]["name"]: one["status"]["typeChecking"] for one in guarded.policies()}
    assert len(warnings) == 7
    assert [name for name, found in warnings.items() if found] == [], warnings


def test_a_refusal_names_object_cause_and_way_out(guarded: GuardedCluster) -> None:
    status, message = guarded.send(TENANT, "PATCH", VMI, {"spec": {"networks": None}})
    assert status == 403
    assert message.endswith(
        "VMI vms/vm1: networks and interfaces change through hotnic only; use `hotnic addinterface` and "
        "`hotnic removeinterface`, edit the template of the VM, or name the account in admission.trusted of the chart"
    )
    networks = next(one for one in identities() if one.role == "networks" and not one.node)
    status, message = guarded.send(networks, "PATCH", LAUNCHER, annotate(**{NETWORK_STATUS: "[1]"}))
    assert status == 403
    assert "may change objects of its own node only; its token is of no node: run it in a pod" in message


def test_a_request_that_changes_nothing_is_allowed_to_everybody(guarded: GuardedCluster) -> None:
    for identity in identities():
        if identity.role and identity.node != NODE:
            continue
        for path in (LAUNCHER, VMI):
            assert guarded.send(identity, "PATCH", path, {"metadata": {}})[0] == 200, identity.name


def test_an_object_full_of_annotations_exceeds_no_budget(guarded: GuardedCluster) -> None:
    """A tenant must not be able to lock a role out of an object by filling its annotations."""
    own = {one.role: one for one in identities() if one.node == (NODE if one.role in NODE_ROLES else "")}
    for role, path, key in (
        ("networks", f"{LAUNCHER}-crowded", NETWORK_STATUS),
        ("handler", f"{LAUNCHER}-crowded", POD_NIC),
        ("handler", VMI.replace("vm1", "crowded"), SLOTS),
        ("controller", VMI.replace("vm1", "crowded"), OPERATION),
    ):
        assert guarded.send(own[role], "PATCH", path, annotate(**{key: "[1]"})) == (200, ""), (role, path)


def test_a_refusal_about_many_annotations_is_short(guarded: GuardedCluster) -> None:
    filler = {f"hotnic.io/{number:05d}": "x" for number in range(9000)}
    status, message = guarded.send(TENANT, "PATCH", LAUNCHER, annotate(**filler))
    assert (status, "pod vms/launcher: only hotnic writes the annotations 9000 of them;" in message) == (403, True)
