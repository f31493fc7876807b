"""The rendered chart gives the node roles what docs/install.md says, and nothing else. Helm is not needed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.node.capabilities import REASONS
from tests.support.node_privileges import NodePath, documented_capabilities, documented_paths

GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "interop" / "chart" / "golden"
FILES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))
DEFAULTS = "everything"
SAME_AS = {"clean": "install-shim"}
"""Containers whose capabilities the page describes by another one's."""


def pods(name: str) -> Iterator[dict[str, Any]]:
    """The specs of all pods of a golden file, that of the pods which the uninstall hook creates included."""
    for item in yaml.load_all((GOLDEN / f"{name}.yaml").read_text(), yaml.CSafeLoader):
        if not item:
            continue
        if item["kind"] in ("Deployment", "DaemonSet", "Job"):
            yield item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            yield item["spec"]
        elif item["kind"] == "ConfigMap" and "pod.json" in item["data"]:
            yield json.loads(item["data"]["pod.json"])["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def roles_of(pod: dict[str, Any], container: dict[str, Any]) -> set[str]:
    """The roles that a container runs, by the names of the page."""
    if container["args"] == ["run", "node"]:
        [roles] = [env["value"] for env in container["env"] if env["name"] == "HOTNIC_ROLES"]
        return set(roles.split(","))
    return {SAME_AS.get(container["name"], container["name"])}


def test_the_page_has_the_capabilities_of_the_code() -> None:
    assert documented_capabilities() == {role: dict(names) for role, names in REASONS.items() if names}


@pytest.mark.parametrize("name", FILES)
def test_capabilities_are_those_of_the_page(name: str) -> None:
    page = documented_capabilities()
    for pod in pods(name):
        for container in containers(pod):
            given = container["securityContext"]["capabilities"]
            assert given["drop"] == ["ALL"]
            needed = {cap for role in roles_of(pod, container) for cap in page.get(role, {})}
            assert set(given.get("add", [])) == needed, container["name"]


@pytest.mark.parametrize("name", FILES)
def test_paths_of_the_node_are_those_of_the_page(name: str) -> None:
    page = documented_paths()
    for pod in pods(name):
        host = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
        used = set()
        for container in containers(pod):
            for mount in container["volumeMounts"]:
                if mount["name"] not in host:
                    continue
                used.add(mount["name"])
                found = NodePath(host[mount["name"]], not mount.get("readOnly", False))
                entry = page.get((container["name"], mount["name"]))
                assert entry is not None, f"docs/install.md has no {mount['name']} of {container['name']}"
                assert found.writable is entry.writable, (container["name"], mount["name"])
                if name == DEFAULTS:
                    assert found.path == entry.path
                if mount["name"] == "tun":
                    assert "handler" in roles_of(pod, container)
        assert used == set(host), "a path of the node that no container mounts"


def test_the_page_has_no_path_that_no_container_mounts() -> None:
    mounted = {
        (container["name"], mount["name"])
        for name in FILES
        for pod in pods(name)
        for container in containers(pod)
        for mount in container["volumeMounts"]
    }
    assert documented_paths().keys() <= mounted


@pytest.mark.parametrize("name", FILES)
def test_every_pod_has_a_seccomp_profile_and_no_way_to_more_privilege(name: str) -> None:
    for pod in pods(name):
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            security = container["securityContext"]
            # Only the options of `all-options` change a profile.
            assert "seccompProfile" not in security or name == "all-options"
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert not security.get("privileged")
