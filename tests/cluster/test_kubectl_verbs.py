"""kubectl's common verbs on built-in kinds."""

import json

import pytest

from tests.cluster.tools import Kubectl


def test_create_reports_created_and_get_prints_columns(kubectl: Kubectl, unique: str) -> None:
    """kubectl get prints the server's Table (KEP-515): NAME, DATA and AGE for a ConfigMap."""
    assert kubectl("create", "configmap", unique, "--from-literal=a=1").stdout == f"configmap/{unique} created\n"
    header, row = kubectl("get", "configmap", unique).stdout.splitlines()
    assert header.split() == ["NAME", "DATA", "AGE"]
    assert row.split()[:2] == [unique, "1"]


def test_typed_create_stores_the_same_as_client_dry_run(kubectl: Kubectl, unique: str) -> None:
    """kubectl's create generators send protobuf (application/vnd.kubernetes.protobuf); no field may be lost."""
    commands = [
        ("configmap", unique, "--from-literal=a=1", "--from-literal=b="),
        ("secret", "generic", unique, "--from-literal=password=x"),
        ("serviceaccount", unique),
        ("service", "clusterip", unique, "--tcp=80:8080", "--tcp=443:web"),
    ]
    for command in commands:
        wanted = kubectl("create", *command, "--dry-run=client", "-o", "json").json
        stored = kubectl("create", *command, "-o", "json").json
        assert stored["metadata"]["name"] == unique
        assert stored.get("data") == wanted.get("data")
        if "spec" in wanted:
            for name in ("selector", "type"):
                assert stored["spec"][name] == wanted["spec"][name]
            ports = [{k: v for k, v in port.items() if k != "nodePort"} for port in stored["spec"]["ports"]]
            assert ports == wanted["spec"]["ports"]


def test_second_creation_is_already_exists(kubectl: Kubectl, unique: str) -> None:
    """API conventions, "Types of failure": AlreadyExists, with the qualified resource and the name."""
    kubectl("create", "configmap", unique)
    rejected = kubectl("create", "configmap", unique, fails=True)
    assert f'configmaps "{unique}" already exists' in rejected.stderr


def test_missing_object_is_not_found(kubectl: Kubectl, unique: str) -> None:
    """kubectl: Error from server (NotFound): <resource> "<name>" not found."""
    rejected = kubectl("get", "configmap", unique, fails=True)
    assert rejected.stderr == f'Error from server (NotFound): configmaps "{unique}" not found\n'


def test_label_and_annotate_set_overwrite_and_remove(kubectl: Kubectl, unique: str) -> None:
    """kubectl label/annotate send merge patches; a trailing dash removes the key, a change needs --overwrite."""
    kubectl("create", "configmap", unique)
    kubectl("label", "configmap", unique, "tier=a")
    assert "--overwrite" in kubectl("label", "configmap", unique, "tier=b", fails=True).stderr
    kubectl("label", "configmap", unique, "tier=b", "--overwrite")
    kubectl("annotate", "configmap", unique, "note=hello there")
    metadata = kubectl("get", "configmap", unique, "-o", "json").json["metadata"]
    assert metadata["labels"] == {"tier": "b"}
    assert metadata["annotations"] == {"note": "hello there"}
    kubectl("label", "configmap", unique, "tier-")
    kubectl("annotate", "configmap", unique, "note-")
    metadata = kubectl("get", "configmap", unique, "-o", "json").json["metadata"]
    assert "labels" not in metadata
    assert "annotations" not in metadata


def test_replace_sends_the_whole_object(kubectl: Kubectl, unique: str) -> None:
    """kubectl replace is a PUT: missing fields are removed, uid and creationTimestamp are unchanged."""
    kubectl("create", "configmap", unique, "--from-literal=a=1")
    before = kubectl("get", "configmap", unique, "-o", "json").json
    after = {**before, "data": {"b": "2"}}
    kubectl("replace", "-f", "-", stdin=after)
    current = kubectl("get", "configmap", unique, "-o", "json").json
    assert current["data"] == {"b": "2"}
    assert current["metadata"]["uid"] == before["metadata"]["uid"]
    assert current["metadata"]["creationTimestamp"] == before["metadata"]["creationTimestamp"]
    assert current["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]


def test_replacement_of_stale_version_is_a_conflict(kubectl: Kubectl, unique: str) -> None:
    """API conventions, "Concurrency Control and Consistency": a stale resourceVersion is a 409 Conflict."""
    kubectl("create", "configmap", unique, "--from-literal=a=1")
    stale = kubectl("get", "configmap", unique, "-o", "json").json
    kubectl("label", "configmap", unique, "x=y")
    rejected = kubectl("replace", "-f", "-", stdin=stale, fails=True)
    assert "(Conflict)" in rejected.stderr
    assert "the object has been modified; please apply your changes to the latest version" in rejected.stderr


def test_apply_reports_created_unchanged_and_configured(kubectl: Kubectl, unique: str) -> None:
    """Declarative management with kubectl apply: created, configured, unchanged; removed fields are pruned."""
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": unique}, "data": {"a": "1", "b": "2"}}
    assert kubectl("apply", "-f", "-", stdin=obj).stdout == f"configmap/{unique} created\n"
    assert kubectl("apply", "-f", "-", stdin=obj).stdout == f"configmap/{unique} unchanged\n"
    version = kubectl("get", "configmap", unique, "-o", "jsonpath={.metadata.resourceVersion}").stdout
    changed = {**obj, "data": {"a": "3"}}
    assert kubectl("apply", "-f", "-", stdin=changed).stdout == f"configmap/{unique} configured\n"
    current = kubectl("get", "configmap", unique, "-o", "json").json
    assert current["data"] == {"a": "3"}
    assert current["metadata"]["resourceVersion"] != version


def test_apply_accepts_several_yaml_documents(kubectl: Kubectl, unique: str) -> None:
    """kubectl apply -f accepts YAML streams; quoted numbers and dates remain strings."""
    text = "\n---\n".join(
        f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {unique}-{n}\ndata:\n  when: '2024-01-01'\n"
        for n in (1, 2)
    )
    kubectl("apply", "-f", "-", stdin=text)
    found = kubectl("get", "configmap", f"{unique}-1", f"{unique}-2", "-o", "json").json
    assert [item["data"] for item in found["items"]] == [{"when": "2024-01-01"}] * 2


def test_apply_accepts_a_list(kubectl: Kubectl, unique: str) -> None:
    """kubectl validates a List itself, by OpenAPI v2 in protobuf (query_param_verifier_v3.go, HasSupport)."""
    items = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{unique}-{n}"}, "data": {"a": "1"}}
        for n in (1, 2)
    ]
    objects = {"apiVersion": "v1", "kind": "List", "items": items}
    created = kubectl("apply", "-f", "-", stdin=objects).stdout
    assert created == "".join(f"configmap/{unique}-{n} created\n" for n in (1, 2))
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=objects).stdout
    items[1]["dat"] = {"b": "2"}
    assert 'unknown field "dat"' in kubectl("apply", "-f", "-", stdin=objects, fails=True).stderr


def test_server_dry_run_changes_nothing(kubectl: Kubectl, unique: str) -> None:
    """API concepts, "Dry-run": the response is that of a real request, and nothing is stored."""
    assert "created (server dry run)" in kubectl("create", "configmap", unique, "--dry-run=server").stdout
    kubectl("get", "configmap", unique, fails=True)
    kubectl("create", "configmap", unique)
    assert "labeled" in kubectl("label", "configmap", unique, "a=b", "--dry-run=server").stdout
    kubectl("delete", "configmap", unique, "--dry-run=server")
    assert "labels" not in kubectl("get", "configmap", unique, "-o", "json").json["metadata"]


def test_diff_shows_what_apply_would_change(kubectl: Kubectl, unique: str) -> None:
    """kubectl diff applies with a dry run on the server; exit code 1 means that there are differences."""
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": unique}, "data": {"a": "1"}}
    kubectl("apply", "-f", "-", stdin=obj)
    assert kubectl("diff", "-f", "-", stdin=obj).stdout == ""
    changed = kubectl("diff", "-f", "-", stdin={**obj, "data": {"a": "2"}}, fails=True)
    assert changed.code == 1
    assert '+  a: "2"' in changed.stdout


def test_describe_shows_the_object_and_its_events(kubectl: Kubectl, unique: str) -> None:
    """kubectl describe reads the events of an object with field selectors on involvedObject."""
    kubectl("create", "configmap", unique, "--from-literal=color=blue")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{unique}.1"},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": unique,
            "namespace": kubectl.namespace,
            "uid": kubectl("get", "configmap", unique, "-o", "jsonpath={.metadata.uid}").stdout,
        },
        "reason": "Painted",
        "message": "it is blue now",
        "type": "Normal",
        "source": {"component": "painter"},
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2099-01-01T00:00:00Z",
        "count": 1,
    }
    kubectl("create", "-f", "-", stdin=event)
    output = kubectl("describe", "configmap", unique).stdout
    assert "color:\n----\nblue" in output
    assert "Painted" in output
    assert "it is blue now" in output
    listed = kubectl("get", "events", "--field-selector", f"involvedObject.name={unique}").stdout.splitlines()
    assert listed[0].split() == ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    assert f"configmap/{unique}" in listed[1]


def test_delete_waits_until_the_object_is_removed(kubectl: Kubectl, unique: str) -> None:
    """kubectl delete waits by watching the object; a second delete fails unless --ignore-not-found is given."""
    kubectl("create", "configmap", unique)
    assert kubectl("delete", "configmap", unique).stdout.startswith(f'configmap "{unique}" deleted')
    kubectl("get", "configmap", unique, fails=True)
    kubectl("delete", "configmap", unique, fails=True)
    kubectl("delete", "configmap", unique, "--ignore-not-found")


def test_delete_by_label_deletes_matching_objects(kubectl: Kubectl, unique: str) -> None:
    """kubectl delete -l lists with the selector and deletes each object."""
    for n in (1, 2, 3):
        kubectl("create", "configmap", f"{unique}-{n}")
    kubectl("label", "configmap", f"{unique}-1", f"{unique}-2", f"pick={unique}")
    kubectl("delete", "configmap", "-l", f"pick={unique}")
    remaining = kubectl("get", "configmap", "-o", "name").stdout.split()
    assert f"configmap/{unique}-1" not in remaining
    assert f"configmap/{unique}-3" in remaining


def test_get_several_kinds_and_all_namespaces(kubectl: Kubectl, unique: str) -> None:
    """kubectl get a,b prints both with their kinds; -A adds the NAMESPACE column."""
    kubectl("create", "configmap", unique)
    kubectl("create", "secret", "generic", unique)
    listed = kubectl("get", "configmap,secret").stdout
    assert f"configmap/{unique}" in listed
    assert f"secret/{unique}" in listed
    assert kubectl("get", "configmap", "-A").stdout.startswith("NAMESPACE")


def test_explain_shows_fields_with_their_types(kubectl: Kubectl) -> None:
    """kubectl explain reads /openapi/v3."""
    output = kubectl("explain", "pod.spec.containers").stdout
    assert "KIND:       Pod" in output
    assert "image\t<string>" in output
    assert "env\t<[]EnvVar>" in output


def test_api_resources_and_versions_are_discovered(kubectl: Kubectl) -> None:
    """Discovery (KEP-3352): every group version and resource, with short names and scope."""
    versions = kubectl("api-versions").stdout.split()
    assert {"v1", "coordination.k8s.io/v1", "apiextensions.k8s.io/v1", "apiregistration.k8s.io/v1"} <= set(versions)
    rows = [row.split() for row in kubectl("api-resources", "--no-headers").stdout.splitlines()]
    assert ["pods", "po", "v1", "true", "Pod"] in rows
    assert [
        "customresourcedefinitions",
        "crd,crds",
        "apiextensions.k8s.io/v1",
        "false",
        "CustomResourceDefinition",
    ] in rows


def test_strict_validation_rejects_unknown_fields(kubectl: Kubectl, unique: str) -> None:
    """KEP-2885, server-side field validation: kubectl requests Strict, and unknown fields are a BadRequest."""
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": unique}, "dta": {"a": "1"}}
    rejected = kubectl("create", "-f", "-", stdin=obj, fails=True)
    assert "(BadRequest)" in rejected.stderr
    assert 'strict decoding error: unknown field "dta"' in rejected.stderr
    kubectl("create", "--validate=ignore", "-f", "-", stdin=obj)
    assert "dta" not in kubectl("get", "configmap", unique, "-o", "json").json


def test_auth_whoami_and_can_i_respond(kubectl: Kubectl) -> None:
    """SelfSubjectReview and SelfSubjectAccessReview, as kubectl auth whoami and can-i send them."""
    output = json.loads(kubectl("auth", "whoami", "-o", "json").stdout)
    assert output["status"]["userInfo"]["username"]
    assert "system:authenticated" in output["status"]["userInfo"]["groups"]
    assert kubectl("auth", "can-i", "create", "configmaps").stdout == "yes\n"


def test_server_reports_version_and_readiness(kubectl: Kubectl) -> None:
    """GET /version, GET /readyz."""
    assert kubectl("version", "-o", "json").json["serverVersion"]["major"] == "1"
    assert kubectl("get", "--raw", "/readyz").stdout == "ok"


def test_edit_patches_the_editors_change(kubectl: Kubectl, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """kubectl edit opens the object as YAML and sends the difference as a patch."""
    kubectl("create", "configmap", unique, "--from-literal=a=old")
    monkeypatch.setenv("KUBE_EDITOR", "sed -i s/old/new/")
    kubectl("edit", "configmap", unique)
    assert kubectl("get", "configmap", unique, "-o", "jsonpath={.data.a}").stdout == "new"


def test_namespace_deletion_deletes_its_content(kubectl: Kubectl, unique: str) -> None:
    """Namespace lifecycle: Terminating until its content is deleted; meanwhile nothing can be created in it."""
    kubectl("create", "namespace", unique)
    kubectl("create", "configmap", "x", "-n", unique)
    with_finalizer = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "held", "finalizers": ["test.hotnic.io/hold"]},
    }
    kubectl("create", "-n", unique, "-f", "-", stdin=with_finalizer)
    kubectl("delete", "namespace", unique, "--wait=false")
    kubectl("wait", "--for=jsonpath={.status.phase}=Terminating", f"namespace/{unique}", "--timeout=20s")
    rejected = kubectl("create", "configmap", "y", "-n", unique, fails=True)
    assert "because it is being terminated" in rejected.stderr
    kubectl("patch", "configmap", "held", "-n", unique, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    kubectl("wait", "--for=delete", f"namespace/{unique}", "--timeout=60s")
