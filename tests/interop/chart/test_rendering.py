"""The chart renders for every choice and preset, alike with both versions of helm, and as the golden files show.

`make chart-golden` writes the golden files; their differences are for review.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from schemas.kubernetes.pod_volumes import PodWithVolumes
from services.common.domain.kubevirt.surroundings.judge import find_attacher_problem
from tests.support.interop.chart import (
    CHART,
    GOLDEN,
    NATS,
    PRESETS,
    ROLES,
    VALUE_SETS,
    find,
    helm,
    objects,
    render,
    rendered,
)


@pytest.mark.parametrize("name", VALUE_SETS)
@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_helm_lint_accepts_the_chart(program: str, name: str) -> None:
    done = helm("lint", "--strict", str(CHART), "--namespace", "hotnic", *VALUE_SETS[name], program=program)
    assert "0 chart(s) failed" in done.stdout


@pytest.mark.parametrize("name", VALUE_SETS)
def test_rendered_objects_are_those_of_the_golden_file(name: str) -> None:
    made = render(*VALUE_SETS[name])
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("HOTNIC_WRITE_GOLDEN"):
        path.write_text(made)
    assert path.is_file(), f"{path.name} is missing: run `make chart-golden`"
    assert made == path.read_text(), f"{path.name} differs: review the change and run `make chart-golden`"


@pytest.mark.parametrize("name", VALUE_SETS)
def test_helm_3_and_4_render_alike(name: str) -> None:
    old, new = (objects(render(*VALUE_SETS[name], program=program)) for program in ("helm3", "helm"))
    assert old == new


def test_there_is_no_golden_file_without_values() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(VALUE_SETS)


def test_defaults_are_those_of_kubeadm() -> None:
    assert rendered("kubeadm") == rendered("everything")


@pytest.mark.parametrize("name", PRESETS)
def test_paths_of_a_preset_are_in_its_daemonsets_only(name: str) -> None:
    defaults = {find(rendered("everything"), "DaemonSet", f"hotnic-{role}")["metadata"]["name"] for role in ROLES[2:]}
    changed = [
        f"{ours['kind']}/{ours['metadata']['name']}"
        for ours, usual in zip(_by_name(name), _by_name("everything"), strict=True)
        if ours != usual
    ]
    allowed = {f"DaemonSet/{name}" for name in defaults}
    allowed |= {"ConfigMap/hotnic-multus", "ConfigMap/hotnic-uninstall"}
    if name == "openshift":
        # OpenShift assigns the group of the pods without privileges.
        allowed |= {"Deployment/hotnic-api", "Deployment/hotnic-controller", "Job/hotnic-uninstall", "Pod/hotnic-test"}
    assert set(changed) <= allowed
    assert changed or name == "kubeadm"


def _by_name(name: str) -> list[dict[str, object]]:
    found = [item for item in rendered(name) if item["kind"] != "SecurityContextConstraints"]
    return sorted(found, key=lambda item: (item["kind"], item["metadata"]["name"]))


@pytest.mark.parametrize(
    ("left_out", "also"),
    [
        ("api", []),
        ("controller", ["api.enabled=false", "handler.enabled=false"]),
        ("networks", []),
        ("multus", ["networks.upstreamMultus.socketDir=/run/multus", "admission.trusted.users={upstream}"]),
        ("handler", []),
    ],
)
def test_any_role_can_be_left_out(left_out: str, also: list[str]) -> None:
    arguments = [*VALUE_SETS["everything"], "--set", ",".join([f"{left_out}.enabled=false", *also])]
    found = objects(render(*arguments))
    names = {item["metadata"]["name"] for item in found if item["kind"] in ("Deployment", "DaemonSet")}
    assert f"hotnic-{left_out}" not in names
    gone = {left_out, *(key.partition(".")[0] for key in also if key.endswith("enabled=false"))}
    assert names == {f"hotnic-{role}" for role in ROLES if role not in gone}
    # Nothing of the role is left: no account, no right, no policy, no service.
    components = {item["metadata"]["labels"]["app.kubernetes.io/component"] for item in found}
    assert left_out not in components


def test_handler_follows_the_owner_of_the_vms() -> None:
    for owner, expected in (("kubevirt", False), ("hotnic", True)):
        found = objects(render("--set", f"vmOwner={owner}", "--set", NATS))
        assert any(item["metadata"]["name"] == "hotnic-handler" for item in found) is expected


def test_beside_kubevirt_nothing_of_kubevirt_is_claimed_or_installed() -> None:
    found = rendered("beside-kubevirt")
    assert [item["metadata"]["name"] for item in found if item["kind"] == "APIService"] == ["v1.subresources.hotnic.io"]
    assert not [item for item in found if item["kind"] == "CustomResourceDefinition"]
    rules = [rule for item in found if item["kind"] == "ClusterRole" for rule in item["rules"]]
    patched = {
        item["metadata"]["name"]
        for item in found
        if item["kind"] == "ClusterRole"
        and any("kubevirt.io" in rule["apiGroups"] and "patch" in rule["verbs"] for rule in item["rules"])
    }
    assert patched == {"hotnic-api", "hotnic-controller"}, "no role of a node changes KubeVirt's objects"
    (controller,) = [
        item for item in found if item["kind"] == "ClusterRole" and item["metadata"]["name"] == "hotnic-controller"
    ]
    changed = [rule for rule in controller["rules"] if "kubevirt.io" in rule["apiGroups"] and "patch" in rule["verbs"]]
    assert [rule["resources"] for rule in changed] == [["virtualmachineinstances"]], "only its own annotations"
    assert not [rule for rule in rules if "subresources.kubevirt.io" in rule["apiGroups"]]


@pytest.mark.parametrize("process", ["separate", "single"])
def test_the_role_that_attaches_networks_is_found_beside_kubevirt(process: str) -> None:
    found = objects(render(*VALUE_SETS["beside-kubevirt"], "--set", f"node.process={process}"))
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    templates = [item["spec"]["template"] for item in found if item["kind"] == "DaemonSet"]
    pods = [
        msgspec.convert({**one, "metadata": {**one["metadata"], "name": "one"}, "status": status}, PodWithVolumes)
        for one in templates
    ]
    assert find_attacher_problem(pods) is None


def test_crds_are_those_of_the_lab_and_stay_at_an_uninstall() -> None:
    for values, expected in (("crds.nad=true", 1), ("crds.kubevirt=true", 3), ("crds.nad=true,crds.kubevirt=true", 4)):
        found = objects(render("--set", "vmOwner=hotnic", "--set", NATS, "--set", values))
        crds = [item for item in found if item["kind"] == "CustomResourceDefinition"]
        assert len(crds) == expected
        assert {item["metadata"]["annotations"]["helm.sh/resource-policy"] for item in crds} == {"keep"}
        sources = objects("\n---\n".join(path.read_text() for path in sorted((CHART / "files/crds").glob("*.yaml"))))
        specs = {item["metadata"]["name"]: item["spec"] for item in sources}
        assert all(item["spec"] == specs[item["metadata"]["name"]] for item in crds)


def test_apiservice_has_no_ca_bundle_that_helm_would_own() -> None:
    for name in VALUE_SETS:
        for item in rendered(name):
            if item["kind"] == "APIService":
                assert not {"caBundle", "insecureSkipTLSVerify"} & item["spec"].keys()


def test_two_renders_are_equal() -> None:
    command = ["template", "hotnic", str(CHART), "--namespace", "hotnic", *VALUE_SETS["all-options"]]
    assert helm(*command).stdout == helm(*command).stdout


def test_packaged_chart_renders_as_the_folder(tmp_path: os.PathLike[str]) -> None:
    helm("package", str(CHART), "--destination", str(tmp_path))
    [package] = [entry.path for entry in os.scandir(tmp_path)]
    listing = subprocess.run(["tar", "-tzf", package], capture_output=True, text=True, check=True).stdout
    assert "hotnic/files/crds/k8s.cni.cncf.io_network-attachment-definitions.yaml" in listing
    assert "examples/" not in listing
    for program in ("helm", "helm3"):
        command = ["template", "hotnic", package, "--namespace", "hotnic", "--kube-version", "v1.36.3"]
        done = helm(*command, *VALUE_SETS["all-options"], program=program)
        assert objects(done.stdout) == rendered("all-options")


def test_notes_name_the_next_two_commands() -> None:
    for name, second in (
        ("everything", "hotnic addinterface VM"),
        ("multus-and-networks", "kubectl annotate pod POD"),
        ("multus", "kubectl run POD"),
    ):
        command = ["install", "hotnic", str(CHART), "--namespace", "hotnic", "--dry-run=client", *VALUE_SETS[name]]
        notes = helm(*command).stdout.partition("NOTES:")[2]
        commands = [line.strip() for line in notes.splitlines() if line.startswith("    ")]
        assert commands[0] == "helm test hotnic -n hotnic"
        assert commands[1].startswith(second)
        assert len(commands) == 2


@pytest.mark.parametrize(("way", "warns"), [("credentials", True), ("authCallout", False)])
def test_notes_say_that_the_roles_share_their_credentials_for_nats(way: str, warns: bool) -> None:
    command = ["install", "hotnic", str(CHART), "--namespace", "hotnic", "--dry-run=client", *VALUE_SETS["everything"]]
    settings = ("nats.url=tls://nats:4222", "nats.credentials.secret=", f"nats.{way}.secret=x")
    made = helm(*command, *(arg for setting in settings for arg in ("--set", setting)))
    assert ("All roles share the credentials" in made.stdout) is warns


@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_numbers_of_a_values_file_keep_their_digits(tmp_path: Path, program: str) -> None:
    """Helm reads them as floating point numbers, and OpenShift's user ids have ten digits."""
    values = tmp_path / "values.yaml"
    values.write_text("fsGroup: 1000650000\nhandler: {tapOwner: 1000650000}\n")
    made = render(*VALUE_SETS["everything"], "--values", str(values), program=program)
    assert "fsGroup: 1000650000\n" in made
    assert 'value: "1000650000"\n' in made


def test_each_provider_of_certificates_has_a_secret_of_its_own() -> None:
    """Else an upgrade from cert-manager's would stop: Helm does not adopt that Secret, and its type is immutable."""
    found = {}
    for provider in ("self", "cert-manager"):
        items = objects(render(*VALUE_SETS["everything"], "--set", f"certificates.provider={provider}"))
        found[provider] = {item["metadata"]["name"] for item in items if item["kind"] == "Secret"}
        found[provider] |= {item["spec"]["secretName"] for item in items if item["kind"] == "Certificate"}
    assert all(found.values())
    assert not found["self"] & found["cert-manager"]


def test_the_alert_of_the_certificate_is_there_where_its_metric_is() -> None:
    for provider, expected in (("self", True), ("cert-manager", False)):
        made = render(*VALUE_SETS["all-options"], "--set", f"certificates.provider={provider}")
        assert ("HotnicCertificateExpires" in made) is expected


def test_a_chart_version_with_build_metadata_makes_valid_labels(tmp_path: Path) -> None:
    helm("package", str(CHART), "--destination", str(tmp_path), "--version", "0.1.0+a1", "--app-version", "0.1.0+a1")
    [package] = tmp_path.glob("*.tgz")
    command = ["template", "hotnic", str(package), "--kube-version", "v1.36.3", *VALUE_SETS["everything"]]
    labels = {value for item in objects(helm(*command).stdout) for value in item["metadata"]["labels"].values()}
    assert "hotnic-0.1.0_a1" in labels
    assert not [label for label in labels if "+" in label]


@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_the_uninstall_hook_reports_before_its_job_ends_and_its_job_ends_before_helm_gives_up(program: str) -> None:
    """Else Helm prints that it timed out, and not the nodes that were not cleaned."""
    usage = helm("uninstall", "--help", program=program).stdout
    given = re.search(r"--timeout duration .*\(default (\d+)m0s\)", usage)
    assert given is not None
    schema = json.loads((CHART / "values.schema.json").read_text())
    longest = schema["properties"]["uninstall"]["properties"]["timeout"]["maximum"]
    for values in ([], ["--set", f"uninstall.timeout={longest}"]):
        job = find(objects(render(*VALUE_SETS["multus"], *values, program=program)), "Job", "hotnic-uninstall")
        arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
        [own] = [re.fullmatch(r"--timeout=(\d+)s", item) for item in arguments if item.startswith("--timeout=")]
        assert own is not None
        # A minute for the pod's start, and another one until Helm sees the Job's end.
        assert int(own[1]) + 60 <= job["spec"]["activeDeadlineSeconds"] <= int(given[1]) * 60 - 60


def test_every_role_that_uses_nats_connects_with_a_token_and_the_api_knows_its_account() -> None:
    for process in ("separate", "single"):
        found = objects(render(*VALUE_SETS["auth-callout"], "--set", f"node.process={process}"))
        workloads = [item for item in found if item["kind"] in ("Deployment", "DaemonSet")]
        accounts = set()
        for item in workloads:
            spec = item["spec"]["template"]["spec"]
            [container] = spec["containers"]
            variables = {entry["name"]: entry.get("value") for entry in container["env"]}
            sources = [volume["projected"]["sources"] for volume in spec["volumes"] if volume["name"] == "nats-token"]
            if "NATS_URL" not in variables:
                assert (sources, "NATS_TOKEN_FILE" in variables) == ([], False)
                continue
            token = {"path": "token", "audience": "hotnic-nats", "expirationSeconds": 3600}
            assert sources == [[{"serviceAccountToken": token}]]
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert variables["NATS_TOKEN_FILE"] == f"{mounts['nats-token']}/token"
            accounts.add(spec["serviceAccountName"])
            if item["metadata"]["name"] == "hotnic-api":
                known = dict(entry.split("=") for entry in variables["HOTNIC_BUS_AUTH_ACCOUNTS"].split(","))
                assert variables["HOTNIC_BUS_AUTH_KEYS"] == mounts["nats-auth"]
            else:
                # The keys that sign are with the api alone.
                assert "nats-auth" not in mounts
        assert known.keys() == accounts
        roles = {"api", "controller", *(("networks", "handler") if process == "separate" else ("node",))}
        assert set(known.values()) == roles
