"""What the rendered pods may do: nothing beyond the table below, which has a reason for each privilege."""

import re
from typing import Any

import pytest

from tests.support.interop.chart import VALUE_SETS, containers, objects, pod_specs, render, rendered
from tests.support.node_privileges import documented_capabilities, documented_paths

_PAGE = documented_capabilities()
CAPABILITIES: dict[tuple[str, str], dict[str, str]] = {
    ("multus", "multus"): _PAGE["multus"],
    ("multus", "install-shim"): _PAGE["install-shim"],
    ("uninstall-node", "clean"): _PAGE["install-shim"],
    ("handler", "handler"): _PAGE["handler"],
    ("node", "multus"): _PAGE["handler"] | _PAGE["multus"],
    ("node", "install-shim"): _PAGE["install-shim"],
}
"""By role and container: each added capability and what it is for. Every other container has none. The role of multus'
pods that run networks and handler too is `node`."""

HOST_PATHS: dict[str, dict[str, bool]] = {}
"""By role: the volumes that are paths of the node, and whether the role may write there."""
for (_container, _volume), _path in documented_paths().items():
    _role = {"install-shim": "multus", "clean": "uninstall-node"}.get(_container, _container)
    HOST_PATHS.setdefault(_role, {})[_volume] = _path.writable
HOST_PATHS["node"] = HOST_PATHS["multus"]
HOST_PATHS["multus"] = {volume: writable for volume, writable in HOST_PATHS["node"].items() if volume != "tun"}

HOST_NETWORK = {
    **dict.fromkeys(("multus", "node"), "plugins create links in the node's network"),
    "uninstall": "the pod starts where multus does not run any more",
    "uninstall-node": "the pod starts where multus does not run any more",
}
UNCONFINED = {
    ("multus", "appArmorProfile"): "plugins are programs of the node",
    ("handler", "appArmorProfile"): "the default profile refuses /proc/PID/root of other profiles",
    ("node", "appArmorProfile"): "it runs multus",
}
ROOT = {"networks", "multus", "handler", "node", "uninstall-node"}
"""Roles whose processes are root: the node's sockets and directories belong to root."""


def role_of(name: str) -> str:
    return re.sub("^hotnic-(nics-)?", "", name)


@pytest.fixture(params=VALUE_SETS)
def specs(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The pods of a set of values, by role."""
    found = pod_specs(rendered(request.param)).items()
    return {"node" if _runs_node(spec) else role_of(name): spec for name, spec in found}


def _runs_node(spec: dict[str, Any]) -> bool:
    return any(container["args"] == ["run", "node"] for container in spec["containers"])


def test_capabilities_are_those_of_the_table(specs: dict[str, dict[str, Any]]) -> None:
    for role, spec in specs.items():
        for container in containers(spec):
            capabilities = container["securityContext"]["capabilities"]
            assert capabilities["drop"] == ["ALL"]
            allowed = CAPABILITIES.get((role, container["name"]), {})
            assert set(capabilities.get("add", [])) == set(allowed)
            assert all(allowed.values())


def test_nothing_is_privileged(specs: dict[str, dict[str, Any]]) -> None:
    for role, spec in specs.items():
        assert not {"hostIPC", "shareProcessNamespace"} & spec.keys()
        # Its plugins run in the node's root, and find themselves in the node's /proc.
        assert spec.get("hostPID", False) is (role in ("multus", "node"))
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(spec):
            security = container["securityContext"]
            assert not security.get("privileged")
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            for profile in ("seccompProfile", "appArmorProfile"):
                if security.get(profile, {}).get("type") == "Unconfined":
                    assert (role, profile) in UNCONFINED


def test_only_node_roles_are_root(specs: dict[str, dict[str, Any]]) -> None:
    for role, spec in specs.items():
        for container in containers(spec):
            if role in ROOT:
                assert container["securityContext"]["runAsUser"] == 0
            else:
                assert spec["securityContext"]["runAsNonRoot"] is True
                assert "runAsUser" not in container["securityContext"]


def test_paths_of_the_node_are_those_of_the_table(specs: dict[str, dict[str, Any]]) -> None:
    for role, spec in specs.items():
        host = {volume["name"] for volume in spec["volumes"] if "hostPath" in volume}
        allowed = HOST_PATHS.get(role, {})
        assert host == set(allowed)
        for container in containers(spec):
            for mount in container["volumeMounts"]:
                if mount["name"] in host and not allowed[mount["name"]]:
                    assert mount["readOnly"] is True
                # Only the node passes mounts on; nothing of a container reaches the node.
                assert mount.get("mountPropagation", "None") in ("None", "HostToContainer")


OWN = ("/etc/hotnic", "/opt/hotnic", "/run/secrets", "/tmp", "/usr", "/var/run/secrets")
"""What the pods have themselves: configuration, programs, the ServiceAccount's token (/var/run is a link to /run)."""


@pytest.mark.parametrize(
    "values", [[], ["criSocket="], ["criSocket=/run/crio.sock"], ["netnsDir=/run"], ["cniBinDir=/opt"]]
)
@pytest.mark.parametrize("name", VALUE_SETS)
def test_no_directory_of_the_node_hides_what_a_pod_has_itself(name: str, values: list[str]) -> None:
    arguments = [argument for value in values for argument in ("--set", value)]
    for spec in pod_specs(objects(render(*VALUE_SETS[name], *arguments))).values():
        host = {volume["name"] for volume in spec["volumes"] if "hostPath" in volume}
        for container in containers(spec):
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert len(mounts) == len(container["volumeMounts"]), "Kubernetes refuses two volumes at one path"
            own = [*OWN, *(path for path, volume in mounts.items() if volume not in host)]
            for path in (path for path, volume in mounts.items() if volume in host):
                assert not [item for item in own if f"{item}/".startswith(f"{path}/")]


@pytest.mark.parametrize(
    ("values", "multus"),
    [
        (["criSocket=/run/crio.sock"], "/run/multus"),
        (["criSocket="], "/run/multus"),
        (["criSocket=/run/crio.sock", "multus.enabled=false,networks.upstreamMultus.socketDir=/run"], "/run"),
    ],
)
def test_networks_finds_its_sockets_in_the_directories_that_it_mounts(values: list[str], multus: str) -> None:
    arguments = [argument for value in values for argument in ("--set", value)]
    spec = pod_specs(objects(render(*VALUE_SETS["multus-and-networks"], *arguments)))["hotnic-networks"]
    [container] = spec["containers"]
    env = {item["name"]: item.get("value") for item in container["env"]}
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    for mount in container["volumeMounts"]:
        if mount["name"] in paths:
            assert mount["mountPath"] == f"/host{paths[mount['name']]}"
    assert set(paths.values()) == {"/run", multus}
    assert env["HOTNIC_MULTUS_SOCKET"] == f"/host{multus}/multus.sock"
    assert env.get("HOTNIC_CRI_SOCKET", "/host/run/crio.sock") == "/host/run/crio.sock"
    assert ("HOTNIC_HOST_ROOT" in env) is ("HOTNIC_CRI_SOCKET" not in env)


def test_network_namespaces_reach_the_containers(specs: dict[str, dict[str, Any]]) -> None:
    for role in ("multus", "handler", "node"):
        for container in specs.get(role, {}).get("containers", []):
            mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
            assert mounts["host"]["mountPropagation"] == mounts["netns"]["mountPropagation"] == "HostToContainer"


def test_only_some_pods_use_the_network_of_the_node(specs: dict[str, dict[str, Any]]) -> None:
    for role, spec in specs.items():
        asked = any(
            env == {"name": "HOTNIC_LISTEN", "value": "$(POD_IP):8443"} for env in spec["containers"][0].get("env", [])
        )
        if spec.get("hostNetwork") and not asked:
            assert role in HOST_NETWORK


def test_images_have_a_version(specs: dict[str, dict[str, Any]]) -> None:
    for spec in specs.values():
        for container in containers(spec):
            assert re.fullmatch(r"\S+(:[^:@/]+|@sha256:[0-9a-f]{64})", container["image"])
            assert not container["image"].endswith(":latest")


def test_pods_run_commands_of_hotnic_only(specs: dict[str, dict[str, Any]]) -> None:
    for spec in specs.values():
        for container in containers(spec):
            # The image's entry point is hotnic; nothing else of the image is used.
            assert "command" not in container
            assert container["args"][0] in ("run", "node", "chart")


def test_resources_are_requested(specs: dict[str, dict[str, Any]]) -> None:
    for role, spec in specs.items():
        for container in containers(spec):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            # No limit for CPU, which would slow a plug down; values.yaml says why multus has none for memory.
            assert "cpu" not in container["resources"].get("limits", {})
            assert "memory" in container["resources"].get("limits", {}) or role in ("multus", "node")


@pytest.mark.parametrize("name", VALUE_SETS)
def test_no_secret_is_in_plain_text(name: str) -> None:
    for item in rendered(name):
        if item["kind"] == "Secret":
            assert not {"data", "stringData"} & item.keys()
    text = render(*VALUE_SETS[name])
    assert not re.search(r"://[^/\s@\"']+:[^/\s@\"']+@", text)
    assert "PRIVATE KEY" not in text


@pytest.mark.parametrize("name", VALUE_SETS)
def test_openshift_constraints_allow_what_the_pods_need_and_no_more(name: str) -> None:
    found = rendered(name)
    constraints = [item for item in found if item["kind"] == "SecurityContextConstraints"]
    if not constraints:
        assert name not in ("openshift", "all-options")
        return
    [scc] = constraints
    used = {capability for added in CAPABILITIES.values() for capability in added}
    assert set(scc["allowedCapabilities"]) == used
    assert scc["allowPrivilegedContainer"] is False
    assert scc["seccompProfiles"][0] == "runtime/default"
    assert scc["seccompProfiles"][1:] == (["localhost/plugins.json"] if name == "all-options" else [])
    accounts = {
        f"system:serviceaccount:hotnic:{spec['serviceAccountName']}"
        for spec in pod_specs(found).values()
        if spec.get("hostNetwork") or any("hostPath" in volume for volume in spec["volumes"])
    }
    asked = {account for account in accounts if account.endswith("-api")}
    assert set(scc["users"]) == accounts - asked


@pytest.mark.parametrize("name", VALUE_SETS)
def test_policies_select_every_pod_with_a_network_of_its_own(name: str) -> None:
    found = objects(render(*VALUE_SETS[name]))
    selected = {
        item["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for item in found
        if item["kind"] == "NetworkPolicy"
    }
    roles = {role_of(item["metadata"]["name"]) for item in found if item["kind"] in ("Deployment", "DaemonSet")}
    assert selected == roles - {"multus"}


@pytest.mark.parametrize("name", VALUE_SETS)
def test_requests_of_every_role_have_a_priority_above_that_of_all_service_accounts(name: str) -> None:
    """Else any account, without rights, fills the queues of the roles: the level is `workload-low` by default."""
    found = rendered(name)
    accounts = {
        item["metadata"]["name"]
        for item in found
        if item["kind"] == "ServiceAccount" and "helm.sh/hook" not in item["metadata"].get("annotations", {})
    }
    schemas = {role_of(item["metadata"]["name"]): item["spec"] for item in found if item["kind"] == "FlowSchema"}
    levels = {item["metadata"]["name"] for item in found if item["kind"] == "PriorityLevelConfiguration"}
    # In a level of the API server's, or of all roles, whoever has a role's token would stall all others there.
    assert levels == {spec["priorityLevelConfiguration"]["name"] for spec in schemas.values()}
    assert len(levels) == len(schemas)
    leases = schemas.pop("leases", None)
    assert (leases is not None) is any(account.endswith("-controller") for account in accounts)
    assert leases is None or leases["matchingPrecedence"] < schemas["controller"]["matchingPrecedence"]
    asked = []
    for spec in (*schemas.values(), *([leases] if leases else [])):
        # That of the API server for ServiceAccounts has 9000, the last one of the system 900.
        assert 900 < spec["matchingPrecedence"] < 9000
    for spec in schemas.values():
        [rule] = spec["rules"]
        [subject], [resources], [others] = rule["subjects"], rule["resourceRules"], rule["nonResourceRules"]
        assert subject["serviceAccount"]["namespace"] == "hotnic"
        asked.append(subject["serviceAccount"]["name"])
        assert resources["clusterScope"] is True
        for key in ("apiGroups", "resources", "verbs", "namespaces"):
            assert resources[key] == ["*"]
        assert others == {"nonResourceURLs": ["*"], "verbs": ["*"]}
    assert sorted(asked) == sorted(accounts)


def test_the_priority_can_be_left_to_the_cluster() -> None:
    found = objects(render(*VALUE_SETS["everything"], "--set", "apiPriority.enabled=false"))
    assert not [item for item in found if item["kind"] in ("FlowSchema", "PriorityLevelConfiguration")]
