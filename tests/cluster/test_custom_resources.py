"""CustomResourceDefinitions: the API that they add, and what their schemas do to objects."""

import asyncio

import pytest

from tests.cluster.tools import Api, CustomKind, Kubectl, Object, definition

MERGE = "application/merge-patch+json"


def test_crd_is_established_and_discovered(kubectl: Kubectl, widgets: CustomKind) -> None:
    """CustomResourceDefinitions: conditions NamesAccepted and Established, then the API and its short names exist."""
    crd = kubectl("get", "crd", widgets.crd, "-o", "json").json
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions["NamesAccepted"] == conditions["Established"] == "True"
    assert crd["status"]["storedVersions"] == ["v1"]
    assert crd["status"]["acceptedNames"]["listKind"] == "WidgetList"
    rows = kubectl("api-resources", f"--api-group={widgets.group}", "--no-headers").stdout.split()
    assert rows == ["widgets", "wdg", f"{widgets.group}/v1", "true", "Widget"]


def test_get_prints_the_printer_columns(kubectl: Kubectl, widgets: CustomKind, unique: str) -> None:
    """additionalPrinterColumns: NAME first, then the columns; priority above 0 only with -o wide."""
    kubectl("create", "-f", "-", stdin=widgets.make(unique, size=7, parts=[{"name": "a", "value": "v"}]))
    header, row = kubectl("get", widgets.crd, unique).stdout.splitlines()
    assert header.split() == ["NAME", "SIZE", "PHASE", "AGE"]
    assert row.split()[:2] == [unique, "7"]
    header, row = kubectl("get", widgets.crd, unique, "-o", "wide").stdout.splitlines()
    assert header.split() == ["NAME", "SIZE", "PHASE", "PART", "AGE"]
    assert row.split()[2] == "v"


def test_describe_explain_edit_and_apply_work_on_a_custom_kind(
    kubectl: Kubectl, widgets: CustomKind, unique: str
) -> None:
    """kubectl needs only discovery and OpenAPI for custom kinds."""
    assert "created" in kubectl("apply", "-f", "-", stdin=widgets.make(unique, color="red")).stdout
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=widgets.make(unique, color="red")).stdout
    assert "configured" in kubectl("apply", "-f", "-", stdin=widgets.make(unique, color="green")).stdout
    output = kubectl("describe", widgets.crd, unique).stdout
    assert "Color:" in output
    assert "green" in output
    assert "color\t<string>" in kubectl("explain", f"{widgets.plural}.spec", f"--api-version={widgets.group}/v1").stdout
    assert "labeled" in kubectl("label", widgets.crd, unique, "a=b").stdout
    assert "annotated" in kubectl("annotate", widgets.crd, unique, "a=b").stdout
    assert "deleted" in kubectl("delete", widgets.crd, unique).stdout


async def test_unknown_fields_are_pruned(api: Api, widgets: CustomKind, unique: str) -> None:
    """Structural schemas: unspecified fields are dropped, unless x-kubernetes-preserve-unknown-fields is set."""
    obj = widgets.make(
        unique,
        bogus=1,
        free={"any": {"thing": [1, {"x": None}]}},
        parts=[{"name": "a", "extra": True}],
        labels={"a": "b"},
    )
    answer = await api("POST", widgets.path, {**obj, "toplevel": 1})
    assert answer.code == 201
    assert "toplevel" not in answer.body
    assert "bogus" not in answer.body["spec"]
    assert answer.body["spec"]["parts"] == [{"name": "a"}]
    assert answer.body["spec"]["free"]["any"]["thing"][0] == 1
    assert answer.body["spec"]["labels"] == {"a": "b"}


async def test_unknown_fields_follow_field_validation(api: Api, widgets: CustomKind, unique: str) -> None:
    """fieldValidation (KEP-2885): Warn returns Warning headers, Strict returns 400, Ignore neither."""
    obj = widgets.make(unique, bogus=1)
    strict = await api("POST", f"{widgets.path}?fieldValidation=Strict", obj)
    assert (strict.code, strict.body["reason"]) == (400, "BadRequest")
    assert 'unknown field "spec.bogus"' in strict.body["message"]
    warned = await api("POST", f"{widgets.path}?fieldValidation=Warn&dryRun=All", obj)
    assert warned.code == 201
    assert 'unknown field \\"spec.bogus\\"' in warned.headers["Warning"]
    ignored = await api("POST", f"{widgets.path}?fieldValidation=Ignore&dryRun=All", obj)
    assert ignored.code == 201
    assert "Warning" not in ignored.headers


async def test_defaults_are_set_on_creation(api: Api, widgets: CustomKind, unique: str) -> None:
    """Defaulting: missing fields get their default on creation, and the response contains it."""
    answer = await api("POST", widgets.path, widgets.make(unique))
    assert answer.body["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        ({"size": "big"}, "spec.size", "FieldValueTypeInvalid"),
        ({"size": 0}, "spec.size", "FieldValueInvalid"),
        ({"size": 101}, "spec.size", "FieldValueInvalid"),
        ({"color": "blue"}, "spec.color", "FieldValueNotSupported"),
        ({"code": "ABC"}, "spec.code", "FieldValueInvalid"),
        ({"code": "abcdef"}, "spec.code", "FieldValueTooLong"),
        ({"parts": [{"value": "x"}]}, "spec.parts[0].name", "FieldValueRequired"),
        ({"labels": {"a": 1}}, "spec.labels.a", "FieldValueTypeInvalid"),
        ({"keyed": [{"name": "a"}, {"name": "a"}]}, "spec.keyed[1]", "FieldValueDuplicate"),
    ],
)
async def test_invalid_values_are_rejected_by_field(
    api: Api, widgets: CustomKind, unique: str, spec: Object, field: str, reason: str
) -> None:
    """422 Invalid with a cause for each field (API conventions, StatusReasonInvalid)."""
    answer = await api("POST", widgets.path, widgets.make(unique, **spec))
    assert (answer.code, answer.body["reason"]) == (422, "Invalid")
    details = answer.body["details"]
    assert (details["name"], details["group"], details["kind"]) == (unique, widgets.group, "Widget")
    assert (field, reason) in [(cause["field"], cause["reason"]) for cause in details["causes"]]
    assert answer.body["message"].startswith(f'Widget.{widgets.group} "{unique}" is invalid: ')


async def test_missing_required_field_is_named(api: Api, widgets: CustomKind, unique: str) -> None:
    """required: FieldValueRequired."""
    obj = widgets.make(unique)
    del obj["spec"]["size"]
    answer = await api("POST", widgets.path, obj)
    [cause] = answer.body["details"]["causes"]
    assert (cause["field"], cause["reason"]) == ("spec.size", "FieldValueRequired")


@pytest.mark.parametrize("port", [80, "http"])
async def test_int_or_string_accepts_both(api: Api, widgets: CustomKind, unique: str, port: int | str) -> None:
    """x-kubernetes-int-or-string."""
    answer = await api("POST", widgets.path, widgets.make(unique, port=port))
    assert (answer.code, answer.body["spec"]["port"]) == (201, port)


async def test_without_status_subresource_status_is_part_of_the_object(
    api: Api, widgets: CustomKind, unique: str
) -> None:
    """No `subresources.status`: status is written with the object, increments generation, and has no /status."""
    made = await api("POST", widgets.path, {**widgets.make(unique), "status": {"phase": "New", "bogus": 1}})
    assert made.body["status"] == {"phase": "New"}
    path = f"{widgets.path}/{unique}"
    answer = await api("PATCH", path, {"status": {"phase": "Old"}}, content=MERGE)
    assert answer.body["status"] == {"phase": "Old"}
    assert answer.body["metadata"]["generation"] == 2
    assert (await api("GET", f"{path}/status")).code == 404


async def test_status_subresource_separates_status_from_spec(api: Api, gadgets: CustomKind, unique: str) -> None:
    """`subresources.status`: the object ignores status, /status all else; only spec increments generation."""
    made = await api("POST", gadgets.path, {**gadgets.make(unique), "status": {"phase": "New"}})
    assert "status" not in made.body
    assert made.body["metadata"]["generation"] == 1
    path = f"{gadgets.path}/{unique}"
    both = {"spec": {"size": 5}, "status": {"phase": "Ready"}, "metadata": {"labels": {"a": "b"}}}
    answer = await api("PATCH", f"{path}/status", both, content=MERGE)
    assert answer.body["status"] == {"phase": "Ready"}
    assert answer.body["spec"]["size"] == 1
    assert "labels" not in answer.body["metadata"]
    assert answer.body["metadata"]["generation"] == 1
    answer = await api("PATCH", path, {**both, "status": {"phase": "Lost"}}, content=MERGE)
    assert answer.body["status"] == {"phase": "Ready"}
    assert answer.body["spec"]["size"] == 5
    assert answer.body["metadata"]["generation"] == 2


def test_kubectl_patches_the_status_subresource(kubectl: Kubectl, gadgets: CustomKind, unique: str) -> None:
    """kubectl patch --subresource=status."""
    kubectl("create", "-f", "-", stdin=gadgets.make(unique))
    patch = '{"status":{"phase":"Up"}}'
    kubectl("patch", gadgets.crd, unique, "--subresource=status", "--type=merge", "-p", patch)
    assert kubectl("get", gadgets.crd, unique, "-o", "jsonpath={.status.phase}").stdout == "Up"


async def test_generation_counts_only_changes_of_spec(api: Api, widgets: CustomKind, unique: str) -> None:
    """API conventions, metadata.generation."""
    await api("POST", widgets.path, widgets.make(unique))
    path = f"{widgets.path}/{unique}"
    labelled = await api("PATCH", path, {"metadata": {"labels": {"a": "b"}}}, content=MERGE)
    assert labelled.body["metadata"]["generation"] == 1
    resized = await api("PATCH", path, {"spec": {"size": 2}}, content=MERGE)
    assert resized.body["metadata"]["generation"] == 2


async def test_custom_resource_update_requires_a_version(api: Api, widgets: CustomKind, unique: str) -> None:
    """Custom resources reject unconditional updates: metadata.resourceVersion must be specified (422)."""
    await api("POST", widgets.path, widgets.make(unique))
    answer = await api("PUT", f"{widgets.path}/{unique}", widgets.make(unique, size=2))
    assert answer.code == 422
    assert answer.body["details"]["causes"][0]["field"] == "metadata.resourceVersion"


async def test_invalid_crd_is_rejected(api: Api, unique: str) -> None:
    """CRD validation: the name must be plural.group; every version needs a schema."""
    crd = definition(f"{unique}.test.hotnic.io", status=False)
    crd["metadata"]["name"] = f"wrong.{unique}.test.hotnic.io"
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    answer = await api("POST", path, crd)
    assert (answer.code, answer.body["details"]["causes"][0]["field"]) == (422, "metadata.name")
    crd = definition(f"{unique}.test.hotnic.io", status=False)
    del crd["spec"]["versions"][0]["schema"]
    answer = await api("POST", path, crd)
    assert answer.code == 422
    assert "schema" in answer.body["message"]


async def test_crd_deletion_deletes_its_objects_and_its_api(api: Api, kubectl: Kubectl, unique: str) -> None:
    """Finalizer customresourcecleanup.apiextensions.k8s.io: objects are deleted, then the definition, then the API."""
    kind = CustomKind(f"{unique}.test.hotnic.io")
    kubectl("create", "-f", "-", stdin=definition(kind.group, status=False))
    kubectl("wait", "--for=condition=Established", f"crd/{kind.crd}", "--timeout=20s")
    kubectl("create", "-f", "-", stdin=kind.make("one"))
    kubectl("delete", "crd", kind.crd, "--timeout=30s")
    for _ in range(300):  # the API is removed shortly after its definition
        if (await api("GET", kind.path)).code == 404:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the API of a deleted CRD is still served")
