"""Selectors, schemas, columns, the watch cache and certificates: the parts that need no server."""

import datetime as dt
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from lab.apiserver.documents.jsonpath import compile_path
from lab.apiserver.documents.printers import human_span
from lab.apiserver.documents.tables import columns_of
from lab.apiserver.endpoints.request import ResourceTarget, ResponseForm, accepted_form, parse_target
from lab.apiserver.errors import ApiError
from lab.apiserver.identity import pki
from lab.apiserver.registry import crd
from lab.apiserver.registry.builtin_schema import model, with_schema
from lab.apiserver.registry.resources import BUILTIN, Registry
from lab.apiserver.registry.schema import compile_schema, fill_defaults, prune
from lab.apiserver.registry.selectors import make_selector, parse_labels
from lab.apiserver.registry.validation import validate
from lab.apiserver.storage.persist import Database
from lab.apiserver.storage.store import Store
from lab.apiserver.storage.watch import Watcher

CRDS = Path(__file__).parents[3] / "lab" / "manifests" / "crds"
LABELS = st.dictionaries(st.sampled_from(["a", "b", "x.io/c"]), st.sampled_from(["", "1", "2", "v"]), max_size=3)
TERMS = st.sampled_from(["a=1", "a==v", "a!=1", "a", "!a", "b in (1,2)", "b notin (1, v)", "x.io/c=2", "a>0", "b<2"])


def evaluate(term: str, labels: dict[str, str]) -> bool:
    """Evaluate one requirement of TERMS in the simplest way."""
    for operator in (" notin ", " in ", "!=", "==", "=", ">", "<"):
        if operator in term:
            key, _, text = term.partition(operator)
            values = [value.strip() for value in text.strip("()").split(",")]
            value = labels.get(key)
            number = value is not None and value.isdigit()
            return {
                " in ": value in values,
                " notin ": value not in values,
                "!=": value != text,
                "=": value == text,
                "==": value == text,
                ">": number and int(value or 0) > int(text if text.isdigit() else 0),
                "<": number and int(value or 0) < int(text if text.isdigit() else 0),
            }[operator]
    return term[1:] not in labels if term.startswith("!") else term in labels


@given(st.lists(TERMS, max_size=4), LABELS)
def test_label_selector_is_the_conjunction_of_its_terms(terms: list[str], labels: dict[str, str]) -> None:
    matches = parse_labels(",".join(terms))
    assert all(match(labels) for match in matches) == all(evaluate(term, labels) for term in terms)


@given(st.text(alphabet="ab=!,()<> in.x/", max_size=12))
def test_any_text_is_a_label_selector_or_bad_request(text: str) -> None:
    refusals = []
    try:
        parse_labels(text)
    except ApiError as error:
        refusals.append(error.code)
    assert refusals in ([], [400])


def test_events_are_selected_by_involved_object() -> None:
    events = next(resource for resource in BUILTIN if resource.plural == "events")
    event = {"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "uid": "u"}, "reason": "Started"}
    for fields, wanted in (
        ("involvedObject.kind=Pod,involvedObject.name=p,involvedObject.uid=u", True),
        ("reason!=Started", False),
        ("type=Normal", False),
    ):
        selects = make_selector(events, "", fields)
        assert selects is not None
        assert selects(event) is wanted


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/api/v1/pods", ResourceTarget("", "v1", "pods")),
        ("/api/v1/namespaces/n/pods/p/log", ResourceTarget("", "v1", "pods", "n", "p", "log")),
        ("/api/v1/namespaces", ResourceTarget("", "v1", "namespaces")),
        ("/api/v1/namespaces/n", ResourceTarget("", "v1", "namespaces", "", "n")),
        ("/api/v1/namespaces/n/status", ResourceTarget("", "v1", "namespaces", "", "n", "status")),
        ("/api/v1/namespaces/n/finalize", ResourceTarget("", "v1", "namespaces", "", "n", "finalize")),
        ("/apis/g.io/v1/things/t/status", ResourceTarget("g.io", "v1", "things", "", "t", "status")),
        ("/apis/g.io/v1/namespaces/n/things/", ResourceTarget("g.io", "v1", "things", "n")),
        ("/apis/g.io/v1", None),
        ("/api/v1", None),
        ("/openapi/v2", None),
        ("/apis/g.io/v1/namespaces/n/things/t/a/b", None),
        ("/apis/g.io/v1//things/t", None),
    ],
)
def test_paths_are_parsed_like_upstream(path: str, target: ResourceTarget | None) -> None:
    assert parse_target(path) == target


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", ResponseForm()),
        ("*/*", ResponseForm()),
        ("application/vnd.kubernetes.protobuf,application/json", ResponseForm()),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", ResponseForm("Table", "meta.k8s.io", "v1")),
        ("application/json;as=Odd;v=v1;g=meta.k8s.io,application/json", ResponseForm()),
        ("application/yaml", ResponseForm(yaml=True)),
    ],
)
def test_first_supported_form_is_accepted(accept: str, form: ResponseForm) -> None:
    assert accepted_form(accept) == form


def test_unsupported_form_is_not_acceptable() -> None:
    with pytest.raises(ApiError) as error:
        accepted_form("image/png, application/cbor")
    assert error.value.code == 406


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (200, "3m20s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (12_000, "3h20m"),
        (28_800, "8h"),
        (172_800, "2d"),
        (180_000, "2d2h"),
        (8 * 86_400, "8d"),
        (800 * 86_400, "2y70d"),
    ],
)
def test_ages_are_formatted_like_human_duration(seconds: int, text: str) -> None:
    assert human_span(seconds) == text


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (".a.b", [1]),
        (".list[0].n", ["x"]),
        (".list[-1].n", ["y"]),
        (".list[*].n", ["x", "y"]),
        (".list[?(@.n=='y')].v", [2]),
        (".list[?(@.v==2)].n", ["y"]),
        ("['a']['b']", [1]),
        (r".ann.x\.io/y", ["z"]),
        (".none.at.all", []),
    ],
)
def test_json_paths_of_printer_columns(path: str, values: list[Any]) -> None:
    obj = {"a": {"b": 1}, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}], "ann": {"x.io/y": "z"}}
    assert compile_path(path)(obj) == values


def test_invalid_json_path_raises() -> None:
    with pytest.raises(ValueError, match="invalid JSONPath"):
        compile_path(".a[")


@pytest.mark.parametrize("file", sorted(CRDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_crds_of_this_repository_are_valid(file: Path) -> None:
    """The CRDs have no field that the API does not specify, and every printer column compiles."""
    definition = yaml.safe_load(file.read_text())
    assert definition["metadata"]["name"] == f"{definition['spec']['names']['plural']}.{definition['spec']['group']}"
    resource = next(r for r in BUILTIN if r.kind == "CustomResourceDefinition")
    schema = with_schema(resource).schema
    assert schema is not None
    unknown: list[str] = []
    prune(definition, schema, unknown)
    assert unknown == []
    assert validate(definition, schema) == []
    crd.set_defaults(definition)
    assert crd.validate_crd(definition, None) == []
    for served, _ in crd.resources_of(definition):
        for column in served.columns:
            compile_path(column.path)
        assert columns_of(served)[0].name == "Name"


def vmi_schema() -> Any:
    definition = yaml.safe_load((CRDS / "kubevirt.io_virtualmachineinstances.yaml").read_text())
    crd.set_defaults(definition)
    [(resource, _)] = crd.resources_of(definition)
    assert not resource.status
    assert resource.schema is not None
    return resource.schema


def test_vmi_status_prunes_unknown_interface_fields() -> None:
    """A real cluster would prune a field of our own in status.interfaces, so this server does too."""
    entry = {"name": "nic", "infoSource": "domain", "queueCount": 1, "hotnic": "secret"}
    vmi = {
        "metadata": {"name": "vm"},
        "spec": {"domain": {"cpu": {"cores": 2}, "devices": {"interfaces": [{"name": "nic", "bridge": {}}]}}},
        "status": {"interfaces": [entry], "activePods": {"u": "n"}},
    }
    unknown: list[str] = []
    prune(vmi, vmi_schema(), unknown)
    assert unknown == ["status.interfaces[0].hotnic"]
    assert vmi["spec"]["domain"]["cpu"] == {"cores": 2}
    assert validate(vmi, vmi_schema()) == []


def test_each_built_in_kind_has_a_schema() -> None:
    """A release of the library with another format of models must fail this test."""
    for resource in BUILTIN:
        assert with_schema(resource).schema is not None, resource.kind
    container = model("V1Container")
    assert container is not None
    assert container.fields["image"][0] == "str"
    assert container.fields["env"][0] == "list[V1EnvVar]"
    assert container.fields["name"][1].startswith("Name of the container")
    assert container.required == ("name",)


def test_pod_schema_prunes_unknown_fields_and_allows_numeric_quantities() -> None:
    pods = next(resource for resource in BUILTIN if resource.plural == "pods")
    schema = with_schema(pods).schema
    assert schema is not None
    container = {"name": "a", "image": "b", "imagine": 1, "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [container], "nodeSelector": {"a": "b"}}}
    unknown: list[str] = []
    prune(pod, schema, unknown)
    assert unknown == ["spec.containers[0].imagine"]
    assert validate(pod, schema) == []
    pod["spec"]["containers"] = "none"
    assert [cause.field for cause in validate(pod, schema)] == ["spec.containers"]


def test_defaults_apply_at_every_depth() -> None:
    inner = {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}}
    schema = compile_schema(
        {
            "type": "object",
            "properties": {
                "whole": {**inner, "default": {}},
                "list": {"type": "array", "items": inner},
                "map": {"type": "object", "additionalProperties": inner},
                "null": {"type": "string", "nullable": True, "default": "x"},
            },
        }
    )
    obj: dict[str, Any] = {"list": [{}, {"n": None}], "map": {"k": {}}, "null": None}
    fill_defaults(obj, schema)
    assert obj == {"list": [{"n": 1}, {"n": 1}], "map": {"k": {"n": 1}}, "null": None, "whole": {"n": 1}}


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        ({"type": "integer"}, True, 'must be of type integer: "boolean"'),
        ({"type": "number", "exclusiveMinimum": True, "minimum": 1}, 1, "be greater than 1"),
        ({"type": "number", "multipleOf": 2}, 3, "be a multiple of 2"),
        ({"type": "array", "minItems": 1}, [], "have at least 1 items"),
        ({"type": "object", "maxProperties": 0}, {"a": 1}, "must have at most 0 items"),
        ({"anyOf": [{"minimum": 5}, {"maximum": 1}], "type": "integer"}, 3, "anyOf"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 5}], "type": "integer"}, 3, "oneOf"),
        ({"not": {"enum": ["a"]}, "type": "string"}, "a", "not"),
        ({"allOf": [{"minimum": 5}], "type": "integer"}, 3, "greater than or equal to 5"),
    ],
)
def test_schema_violations_have_upstream_messages(schema: Any, value: Any, message: str) -> None:
    causes = validate({"v": value}, compile_schema({"type": "object", "properties": {"v": schema}}))
    assert [message in cause.message for cause in causes] == [True]
    assert causes[0].field == "v"


# -- store and watches


def store(log_size: int = 100) -> Store:
    return Store(Database(None), log_size)


def obj(name: str, value: int, **labels: str) -> Any:
    return {"metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels}, "value": value}


def queued_events(watcher: Watcher) -> list[tuple[str, str, int]]:
    """Return all queued events without waiting."""
    return [(kind, stored.obj["metadata"]["name"], stored.obj["value"]) for kind, stored in watcher.take_pending()]


CHANGES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(["in", "out", "gone"])), max_size=25
)


@given(CHANGES, st.integers(0, 25))
def test_watch_from_any_version_rebuilds_the_selection(changes: list[tuple[str, int, str]], at: int) -> None:
    """List at some version, then or later, and apply the watch's events: the result is the selection at the end."""
    objects = store()
    selection: dict[str, int] = {}
    seen, version = dict[str, int](), objects.version

    def selects(found: Any) -> bool:
        return bool(found["metadata"]["labels"].get("side") == "in")

    for step, (name, value, side) in enumerate(changes):
        if step == at:
            seen, version = dict(selection), objects.version
        before = objects.get("k", "n", name)
        if side == "gone":
            if before is not None:
                objects.remove("k", before)
            selection.pop(name, None)
            continue
        objects.put("k", obj(name, value, side=side))
        if side == "in":
            selection[name] = value
        else:
            selection.pop(name, None)
    if at >= len(changes):
        seen, version = dict(selection), objects.version
    past = objects.list("k", "n", version)
    assert {found.obj["metadata"]["name"]: found.obj["value"] for found in past if selects(found.obj)} == seen
    watcher = objects.table("k").channel.subscribe(version, objects.version, "n", selects)
    for kind, name, value in queued_events(watcher):
        assert (name in seen) is (kind != "ADDED")
        if kind == "DELETED":
            del seen[name]
        else:
            seen[name] = value
    assert seen == selection


def test_version_older_than_bounded_log_is_expired() -> None:
    objects = store(log_size=3)
    versions = [objects.put("k", obj("a", n)).version for n in range(6)]
    channel = objects.table("k").channel
    with pytest.raises(ApiError) as expired:
        channel.subscribe(versions[1], objects.version, "", None)
    assert (expired.value.code, expired.value.reason) == (410, "Expired")
    assert [value for _, _, value in queued_events(channel.subscribe(versions[2], objects.version, "", None))] == [
        3,
        4,
        5,
    ]
    with pytest.raises(ApiError) as future:
        channel.subscribe(objects.version + 1, objects.version, "", None)
    assert future.value.code == 504


async def test_watcher_gets_event_when_commit_returns() -> None:
    """No polling: the event is queued when `put` returns."""
    objects = store()
    watcher = objects.table("k").channel.subscribe(objects.version, objects.version, "", None)
    objects.put("k", obj("a", 1))
    assert [kind for kind, _ in await watcher.next_events()] == ["ADDED"]
    watcher.close()
    assert await watcher.next_events() == []


def test_database_persists_objects_versions_and_counter(tmp_path: Path) -> None:
    first = Store(Database(tmp_path / "db"))
    written = first.put("/configmaps", obj("a", 1))
    first.remove("/configmaps", first.put("/configmaps", obj("b", 2)))
    first.close()
    second = Store(Database(tmp_path / "db"))
    [found] = second.list("/configmaps")
    assert (found.obj, found.version, second.version) == (written.obj, written.version, first.version)
    assert second.by_uid("a") == ("/configmaps", "n", "a")
    second.close()


def test_stored_bytes_encode_the_object() -> None:
    configmaps = Registry.with_builtin().find("", "v1", "configmaps")
    assert configmaps is not None
    objects = store()
    stored = objects.put("/configmaps", {"kind": "ConfigMap", "apiVersion": "v1", **obj("a", 1)})
    whole = msgspec.json.decode(stored.render(configmaps))
    assert whole == {"kind": "ConfigMap", "apiVersion": "v1", **stored.obj}
    assert msgspec.json.decode(stored.bare) == stored.obj
    copy = stored.copy(configmaps)
    copy["metadata"]["name"] = "changed"
    assert stored.obj["metadata"]["name"] == "a"


# -- certificates


def test_certificates_are_private_and_identify_their_owner(tmp_path: Path) -> None:
    pki.ensure_pki(tmp_path)
    pair = pki.issue_client(tmp_path, "system:node:lab", ["system:nodes", "x"])
    serving = pki.issue_server(tmp_path, "api", ["api.default.svc"], ["127.0.0.1"])
    for file in (tmp_path / "pki").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    subject = x509.load_pem_x509_certificate(pair.cert.read_bytes()).subject
    assert [name.value for name in subject.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)] == ["system:node:lab"]
    groups = subject.get_attributes_for_oid(x509.oid.NameOID.ORGANIZATION_NAME)
    assert [name.value for name in groups] == ["system:nodes", "x"]
    certificate = x509.load_pem_x509_certificate(serving.cert.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["api.default.svc"]
    assert certificate.not_valid_before_utc < dt.datetime.now(dt.UTC)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(pki.ca_file(tmp_path).read_bytes()))


def test_second_start_reuses_certificates(tmp_path: Path) -> None:
    pki.ensure_pki(tmp_path)
    before = {file.name: file.read_bytes() for file in (tmp_path / "pki").iterdir()}
    pki.ensure_pki(tmp_path)
    assert {file.name: file.read_bytes() for file in (tmp_path / "pki").iterdir()} == before
