"""Tests of what a KubeVirt installation can do, by version and configuration."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.kubevirt import KubeVirt
from services.common.domain.kubevirt.capabilities import NEWEST, Capabilities, parse_version, read_capabilities


def installation(
    observed: str, target: str = "", gates: tuple[str, ...] = (), methods: tuple[str, ...] = ()
) -> KubeVirt:
    configuration = {"developerConfiguration": {"featureGates": list(gates)}}
    return msgspec.convert(
        {
            "spec": {
                "configuration": configuration,
                "workloadUpdateStrategy": {"workloadUpdateMethods": list(methods)},
            },
            "status": {"observedKubeVirtVersion": observed, "targetKubeVirtVersion": target},
        },
        KubeVirt,
    )


def capabilities(observed: str, **fields: Any) -> Capabilities:
    found = read_capabilities([installation(observed, **fields)])
    assert found is not None
    return found


FLAGS = (
    "request_queue",
    "automatic_migration",
    "nad_change",
    "removes_last_interface",
    "always_restart_required",
)


@pytest.mark.parametrize(
    ("version", "flags"),
    [
        ("v1.0.0", {"request_queue"}),
        ("v1.0.1", {"request_queue"}),
        ("v1.1.0", set()),
        ("v1.2.2", {"removes_last_interface", "always_restart_required"}),
        ("v1.3.0", {"removes_last_interface", "always_restart_required"}),
        ("v1.4.0", {"removes_last_interface", "always_restart_required"}),
        ("v1.5.0", {"removes_last_interface", "always_restart_required"}),
        ("v1.5.2", {"removes_last_interface"}),
        ("v1.6.0", {"removes_last_interface", "automatic_migration"}),
        ("v1.8.1", {"removes_last_interface", "automatic_migration"}),
        ("v1.9.0", set(FLAGS) - {"request_queue", "always_restart_required"}),
        ("v2.0.0", set(FLAGS) - {"request_queue", "always_restart_required"}),
    ],
)
def test_each_version_has_its_capabilities(version: str, flags: set[str]) -> None:
    found = capabilities(version, gates=("HotplugNICs",))
    assert {name for name in FLAGS if getattr(found, name)} == flags
    assert (found.gate, found.installing) == ("", False)


@pytest.mark.parametrize(
    ("version", "gates", "missing"),
    [("v1.3.1", (), "HotplugNICs"), ("v1.3.1", ("HotplugNICs",), ""), ("v1.4.0", (), "")],
)
def test_hotplug_needs_its_gate_before_1_4(version: str, gates: tuple[str, ...], missing: str) -> None:
    assert capabilities(version, gates=gates).gate == missing


def test_a_changed_nad_is_followed_in_1_8_with_its_gate_only() -> None:
    assert not capabilities("v1.8.0").nad_change
    assert capabilities("v1.8.0", gates=("LiveUpdateNADRef",)).nad_change


def test_an_installation_under_way_counts_as_its_target_version() -> None:
    found = capabilities("", target="v1.2.0", methods=("LiveMigrate",))
    assert (found.version, found.installing, found.update_methods) == ((1, 2, 0), True, {"LiveMigrate"})
    assert capabilities("").version == NEWEST


def test_a_cluster_without_kubevirt_has_no_capabilities() -> None:
    assert read_capabilities([]) is None


@pytest.mark.parametrize(
    ("text", "version"), [("v1.9.0", (1, 9, 0)), ("1.3", (1, 3, 0)), ("v1.10.2-rc.0", (1, 10, 2)), ("devel", None)]
)
def test_a_version_is_read_from_its_text(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version
