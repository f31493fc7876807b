"""The played KubeVirt by version: what it follows, what it drops, and what needs a restart."""

from typing import Any

import pytest

from lab.kubevirt.annotations import updated_networks
from lab.kubevirt.interfaces import with_multus_status
from lab.kubevirt.specs import SpecLists, clear_template, follow_template, needs_restart
from lab.kubevirt.versions import LATEST_PATCH, UnknownVersionError, behaviour_of
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.names import pod_interface

GATES = ("HotplugNICs",)


def lists(**states: str) -> SpecLists:
    """Return networks and interfaces: the default ones and secondary ones with a state each."""
    networks: list[dict[str, Any]] = [{"name": "default", "pod": {}}]
    interfaces: list[dict[str, Any]] = [{"name": "default", "masquerade": {}}]
    for name, state in states.items():
        networks.append({"name": name, "multus": {"networkName": "net1"}})
        interfaces.append({"name": name, "bridge": {}, **({"state": state} if state else {})})
    return SpecLists(networks, interfaces)


def entry(name: str) -> dict[str, Any]:
    return {"name": name, "infoSource": "domain, multus-status", "podInterfaceName": pod_interface(name)}


def test_gate_decides_until_1_3() -> None:
    assert [v for v in LATEST_PATCH if not behaviour_of(v).enabled] == ["1.0", "1.1", "1.2", "1.3"]
    assert all(behaviour_of(v, GATES).enabled for v in LATEST_PATCH)


def test_unknown_version_names_the_known_ones() -> None:
    with pytest.raises(UnknownVersionError, match=r"KubeVirt 1\.10 is not known; choose one of 1\.0, 1\.1"):
        behaviour_of("1.10")


@pytest.mark.parametrize(("version", "state"), [("1.4", None), ("1.5", "down"), ("1.9", "down")])
def test_link_state_is_followed_since_1_5(version: str, state: str | None) -> None:
    after = follow_template(lists(blue="down"), lists(blue=""), [entry("blue")], behaviour_of(version))
    found = after.interface("blue")
    assert found is not None
    assert found.get("state") == state


def test_absent_is_final() -> None:
    before = lists(blue="absent")
    assert follow_template(lists(blue=""), before, [entry("blue")], behaviour_of("1.9")) == before


def test_absent_is_not_followed_while_no_pod_interface_is_known() -> None:
    before = lists(blue="")
    assert follow_template(lists(blue="absent"), before, [], behaviour_of("1.9")) == before
    assert follow_template(lists(blue="absent"), before, [], behaviour_of("1.3", GATES)) == lists()


@pytest.mark.parametrize(
    ("version", "gates", "followed"),
    [("1.7", (), 0), ("1.8", (), 0), ("1.8", ("LiveUpdateNADRef",), 1), ("1.9", (), 1)],
)
def test_another_network_is_followed_by_the_gate_of_1_8_and_in_1_9(
    version: str, gates: tuple[str, ...], followed: int
) -> None:
    template = lists(blue="")
    template.networks[1]["multus"] = {"networkName": "net2"}
    after = follow_template(template, lists(blue=""), [entry("blue")], behaviour_of(version, gates))
    assert (after.networks == template.networks) is bool(followed)


@pytest.mark.parametrize(("version", "left"), [("1.0", False), ("1.1", True), ("1.5", True), ("1.6", False)])
def test_absent_interface_of_a_stopped_vm(version: str, left: bool) -> None:
    after = clear_template(lists(blue="absent"), None, [], behaviour_of(version))
    assert (after.interface("blue") is not None) is left


@pytest.mark.parametrize(
    ("version", "plugged", "removed"),
    [("1.2", True, True), ("1.5.0", True, True), ("1.5", False, True), ("1.9", False, True)],
)
def test_edits_that_need_a_restart(version: str, plugged: bool, removed: bool) -> None:
    behaviour = behaviour_of(version)
    assert needs_restart(lists(blue=""), lists(), behaviour) is plugged
    assert needs_restart(lists(), lists(blue=""), behaviour) is removed
    assert not needs_restart(lists(blue=""), lists(blue=""), behaviour)


@pytest.mark.parametrize(("version", "text"), [("1.1", None), ("1.2", "")])
def test_last_attachment_is_taken_out_since_1_2(version: str, text: str | None) -> None:
    vmi = vmi_of(lists(blue="absent"), [entry("blue")])
    assert updated_networks(vmi, pod("blue"), behaviour_of(version)) == text


@pytest.mark.parametrize(("version", "fields"), [("1.3", set()), ("1.4", {"podInterfaceName"})])
def test_status_has_the_fields_of_the_version(version: str, fields: set[str]) -> None:
    (found,) = with_multus_status(vmi_of(lists(blue=""), []), pod("blue"), behaviour_of(version))
    assert set(found) == {"name", "infoSource"} | fields


def vmi_of(spec: SpecLists, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "default"},
        "spec": {"networks": spec.networks, "domain": {"devices": {"interfaces": spec.interfaces}}},
        "status": {"interfaces": entries},
    }


def pod(name: str) -> dict[str, Any]:
    link = pod_interface(name)
    networks = f'[{{"name":"net1","namespace":"default","interface":"{link}"}}]'
    status = f'[{{"name":"default/net1","interface":"{link}"}}]'
    return {"metadata": {"annotations": {NETWORKS: networks, NETWORK_STATUS: status}}}
