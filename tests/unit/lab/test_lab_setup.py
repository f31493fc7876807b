"""What the supervisor sets up: mounts, cgroups, configuration, sandboxes."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from lab.layout import BUS_ROLES, ROLES, LabIdentity, Layout, credentials_of
from lab.namespaces import cgroups, isolation
from lab.node import configuration
from lab.node.cri import RuntimeCallError, parse_sandbox_status, sandbox_config
from lab.supervisor import components
from lab.supervisor.collector import Collector
from lab.supervisor.kubernetes import kubelet
from lab.supervisor.kubernetes.control_plane import NODE_ADDRESS, ControlPlanePrograms, prepare
from lab.supervisor.kubernetes.kubelet import NodePrograms
from lab.tools import ToolsMissingError
from schemas.cri import runtime_pb2 as pb

MOUNTINFO = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:20 / /sys rw - sysfs sysfs rw
24 23 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw
25 24 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
26 24 0:23 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw
27 22 0:24 / /var/lib/with\040space rw - overlay overlay rw,lowerdir=/a
28 27 0:25 / /var/lib/with\040space/below rw - tmpfs tmpfs rw
29 22 0:26 / /var/libelous rw - tmpfs tmpfs rw
"""


def test_submounts_are_only_the_topmost_ones() -> None:
    assert isolation.submounts(Path("/var/lib"), MOUNTINFO) == [Path("/var/lib/with space")]
    assert isolation.submounts(Path("/sys"), MOUNTINFO) == [Path("/sys/fs/cgroup")]
    assert isolation.submounts(Path("/opt"), MOUNTINFO) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x", "ext4"),
        ("/var/lib/with space/x", "overlay"),
        ("/var/lib/with space/below/x", "tmpfs"),
        ("/var/lib/other", "ext4"),
    ],
)
def test_filesystem_type_of_a_path(path: str, kind: str) -> None:
    assert isolation.filesystem_type(Path(path), MOUNTINFO) == kind


def test_cgroup_hierarchies_of_both_versions() -> None:
    found = cgroups.hierarchies(MOUNTINFO)
    assert found == [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/unified")]


def test_containerd_config_is_valid_toml_with_lab_settings(parameters: components.LabParameters) -> None:
    config = tomllib.loads(configuration.containerd_config(parameters.tools, "overlayfs"))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is True
    assert cri["sandbox_image"] == "hotnic.local/pause:1"
    assert cri["cni"] == {"bin_dir": "/opt/cni/bin", "conf_dir": "/etc/cni/net.d", "max_conf_num": 1}


def test_each_role_has_own_credentials_and_shared_settings(parameters: components.LabParameters) -> None:
    for port, role in enumerate((*ROLES, "node"), 9090):
        spec = components.process_spec(parameters, role, {"PATH": "/bin", "HOME": "/root", "SECRET": "x"})
        assert spec.argv[1:] == ("-m", "lab.node" if role == "node" else f"services.{role}")
        assert spec.env["KUBECONFIG"] == str(parameters.layout.config / f"{role}.kubeconfig")
        # multus and the node do not use the bus.
        assert spec.env.get("NATS_URL") == ("tls://127.0.0.1:4222" if role in BUS_ROLES else None)
        assert spec.env["HOTNIC_HEALTH_LISTEN"] == f"127.0.0.1:{port}"
        assert spec.env["PATH"] == "/tools/bin:/bin"
        assert "SECRET" not in spec.env


def test_roles_have_failpoints_if_the_variable_is_set(parameters: components.LabParameters) -> None:
    for role in ROLES:
        spec = components.process_spec(parameters, role, {"HOTNIC_LAB_FAILPOINTS": "/points"})
        assert spec.argv[1:] == ("-m", "lab.failpoints", role)
        assert spec.env["HOTNIC_LAB_FAILPOINTS"] == "/points"
    assert components.process_spec(parameters, "node", {"HOTNIC_LAB_FAILPOINTS": "/points"}).argv[1:] == (
        "-m",
        "lab.node",
    )


def test_processes_export_only_to_the_collector_of_the_option(parameters: components.LabParameters) -> None:
    caller = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    collector = Collector.parse("http://collector")
    with_option = dataclasses.replace(parameters, collector=collector)
    for component in parameters.components:
        for lab, expected in ((parameters, {}), (with_option, collector.environment)):
            env = components.process_spec(lab, component, caller).env
            exported = {name: value for name, value in env.items() if name.startswith("OTEL_")}
            assert exported == (expected if component in (*ROLES, "node") else {})
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in components.manual_command(with_option, "handler")


def test_only_the_apiserver_inherits_the_listener(parameters: components.LabParameters) -> None:
    fds = {name: components.process_spec(parameters, name, {}).pass_fds for name in parameters.components}
    assert fds.pop("apiserver") == (9,)
    assert set(fds.values()) == {()}


@pytest.fixture
def programs(tmp_path: Path) -> ControlPlanePrograms:
    """The programs of a Kubernetes version."""
    paths = {field.name: tmp_path / field.name for field in dataclasses.fields(ControlPlanePrograms)}
    return ControlPlanePrograms(**paths)


def test_on_kubernetes_each_role_and_node_has_credentials_of_its_own(
    parameters: components.LabParameters, programs: ControlPlanePrograms
) -> None:
    """A token names one node."""
    several = dataclasses.replace(parameters, kubernetes=programs, nodes=2)
    files = {
        name: components.process_spec(several, name, {}).env["KUBECONFIG"].rpartition("/")[2]
        for name in (*several.roles, "node", "node-2")
    }
    assert files["handler"] == "handler.kubeconfig"
    assert files["handler-2"] == "handler-2.kubeconfig"
    assert {files["node"], files["node-2"]} == {"node.kubeconfig"}
    # Two controllers are replicas of one role.
    assert {files[name] for name in several.roles} == {f"{credentials_of(name)}.kubeconfig" for name in several.roles}


def test_tokens_of_nodes_are_switched_on_in_the_oldest_kubernetes_only(programs: ControlPlanePrograms) -> None:
    gates = {
        version: dataclasses.replace(programs, apiserver=Path(f"/tools/v{version}/kube-apiserver")).gates
        for version in ("1.30.14", "1.36.3")
    }
    assert gates == {"1.30.14": ("--feature-gates=ServiceAccountTokenNodeBinding=true",), "1.36.3": ()}


def test_kubernetes_itself_replaces_the_apiserver_alone(
    parameters: components.LabParameters, programs: ControlPlanePrograms
) -> None:
    prepare(parameters.layout.apiserver, parameters.cluster.endpoint)
    on_kubernetes = dataclasses.replace(parameters, kubernetes=programs)
    assert on_kubernetes.cluster.endpoint == parameters.cluster.endpoint
    started = ("etcd", "apiserver", "controller-manager")
    assert on_kubernetes.cluster.components == started
    for component in on_kubernetes.components:
        spec = components.process_spec(on_kubernetes, component, {})
        # Only the lab's own API server can inherit a socket; connections to the other one are relayed.
        assert spec.pass_fds == ()
        if component not in started:
            assert spec == components.process_spec(parameters, component, {})
    assert on_kubernetes.cluster.relayed_port == parameters.identity.apiserver_port
    assert components.process_spec(on_kubernetes, "apiserver", {}).argv[0] == str(programs.apiserver)


def test_a_kubelet_brings_its_scheduler_and_containerd(
    parameters: components.LabParameters, programs: ControlPlanePrograms
) -> None:
    node = NodePrograms(kubelet=Path("/go/kubelet"), scheduler=Path("/go/kube-scheduler"), containerd=Path("/go/c/d"))
    prepare(parameters.layout.apiserver, parameters.cluster.endpoint)
    lab = dataclasses.replace(parameters, kubernetes=programs, node=node)
    started = {name: components.process_spec(lab, name, {}) for name in lab.components}
    assert started["scheduler"].argv[0] == "/go/kube-scheduler"
    assert started["kubelet"].argv[0] == "/go/kubelet"
    assert started["containerd"].argv[0] == "/go/c/d"
    # containerd 2 must not find the shim of containerd 1.
    assert started["containerd"].env["PATH"].startswith("/go/c:")
    assert started["api"].env["HOTNIC_LISTEN"].startswith(f"{NODE_ADDRESS}:")
    config = tomllib.loads(kubelet.containerd_config(lab.tools, "overlayfs"))
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    assert runtime["cni"]["conf_dir"] == "/etc/cni/net.d"
    assert runtime["containerd"]["runtimes"]["runc"]["options"]["BinaryName"] == str(lab.tools.runc)


@pytest.mark.parametrize(("version", "gates"), [("1.3", ("--gate", "HotplugNICs")), ("1.9", ())])
def test_beside_kubevirt_its_player_has_the_place_of_handler_and_vm_loops(
    parameters: components.LabParameters, version: str, gates: tuple[str, ...]
) -> None:
    lab = dataclasses.replace(parameters, kubevirt=version)
    started = {name: components.process_spec(lab, name, {}) for name in lab.components}
    assert set(parameters.components) - set(started) == {"handler"}
    assert started["apiserver"].argv[-2:] == ("--kubevirt", version)
    player = started["kubevirt"].argv
    assert player[player.index("--version") :] == ("--version", version, "--real-pods", *gates)
    assert started["node"].env["HOTNIC_VMS"] == "false"
    assert {started[role].env["HOTNIC_VM_OWNER"] for role in lab.roles} == {"kubevirt"}


def test_a_node_is_ready_by_its_condition() -> None:
    conditions = [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}]
    ready = {"status": {"conditions": conditions}}
    assert kubelet.is_node_ready(200, json.dumps(ready))
    assert not kubelet.is_node_ready(404, json.dumps(ready))
    assert not kubelet.is_node_ready(200, json.dumps({"status": {}}))
    conditions[1]["status"] = "Unknown"
    assert not kubelet.is_node_ready(200, json.dumps(ready))


def test_every_process_stops_before_those_that_it_needs(
    parameters: components.LabParameters, programs: ControlPlanePrograms
) -> None:
    others = ({"kubernetes": programs}, {"kubevirt": "1.9"})
    for lab in (parameters, *(dataclasses.replace(parameters, **changes) for changes in others)):
        order = [component for together in lab.stop_groups for component in together]
        assert sorted(order) == sorted(lab.components)
        assert [c for c in order if c in lab.cluster.components] == list(reversed(lab.cluster.components))
        first = {*lab.roles, *lab.played, "node"}
        assert set(order[: len(first)]) == first


def test_programs_are_the_newest_that_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = tmp_path / "hotnic" / "interop"
    for path in ("etcd/v3.6.9/etcd", "etcd/v3.6.16/etcd", "helm/v4.3.1/helm", "kubernetes-1.36/v1.36.3/kube-apiserver"):
        (built / path).parent.mkdir(parents=True)
        (built / path).touch()
    with pytest.raises(ToolsMissingError, match=r"kube-controller-manager .*TOOLS=kubernetes-1\.36"):
        ControlPlanePrograms.find("1.36")
    (built / "kubernetes-1.36" / "v1.36.3" / "kube-controller-manager").touch()
    assert ControlPlanePrograms.find("1.36").etcd == built / "etcd" / "v3.6.16" / "etcd"


def test_manual_command_quotes_paths_with_spaces(parameters: components.LabParameters) -> None:
    command = components.manual_command(parameters, "handler")
    assert f"hotnic lab exec --dir '{parameters.layout.dir}' -- env " in command
    assert f"KUBECONFIG='{parameters.layout.config}/handler.kubeconfig'" in command
    assert command.endswith("-m services.handler")


def test_sandbox_config_identifies_its_pod() -> None:
    pod = {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {"hostname": "h"},
    }
    config = sandbox_config(pod, 2, "/hotnic-lab-x")
    assert (config.metadata.name, config.metadata.uid, config.metadata.attempt) == ("p", "u", 2)
    assert config.labels["io.kubernetes.pod.uid"] == "u"
    assert config.labels["a"] == "b"
    assert config.linux.cgroup_parent == "/hotnic-lab-x"
    assert config.linux.security_context.namespace_options.network == pb.POD


def test_verbose_sandbox_status_is_parsed() -> None:
    info = {"pid": 7, "runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}]}}}
    answer = pb.PodSandboxStatusResponse(
        status=pb.PodSandboxStatus(
            id="s", network=pb.PodSandboxNetworkStatus(ip="10.0.0.1", additional_ips=[pb.PodIP(ip="fd00::1")])
        ),
        info={"info": json.dumps(info)},
    )
    status = parse_sandbox_status(answer)
    assert (status.id, status.ips, status.netns, status.pid) == ("s", ("10.0.0.1", "fd00::1"), "/n", 7)
    with pytest.raises(RuntimeCallError, match="unreadable"):
        parse_sandbox_status(pb.PodSandboxStatusResponse(info={"info": "{"}))


def test_directory_is_prepared_and_state_removed(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "lab")
    layout.prepare()
    layout.write_identity(LabIdentity("0a1b2c3d", 1, 2, 3, 4.0, 5))
    (layout.run / "guests" / "x").mkdir()
    (layout.logs / "api.log").write_text("line")
    identity = layout.identity()
    assert identity is not None
    assert identity.cgroup == "hotnic-lab-0a1b2c3d"
    layout.remove_state()
    assert sorted(p.name for p in layout.dir.iterdir()) == ["logs", "traces"]
    assert (layout.logs / "api.log").read_text() == "line"
    assert layout.identity() is None
    layout.prepare()
    assert not list(layout.logs.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x"}', '{"unknown": 1}'])
def test_unreadable_identity_is_none(tmp_path: Path, text: str) -> None:
    layout = Layout(tmp_path)
    layout.identity_file.write_text(text)
    assert layout.identity() is None
