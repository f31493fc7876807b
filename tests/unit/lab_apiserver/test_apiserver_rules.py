"""Selectors, schemas, columns, watches of the log, certificates: the parts that decide without a server."""

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

from services.lab.apiserver import crd, pki
from services.lab.apiserver.builtin_schema import model, with_schema
from services.lab.apiserver.errors import ApiError
from services.lab.apiserver.jsonpath import compile_path
from services.lab.apiserver.persist import Database
from services.lab.apiserver.printers import human_span
from services.lab.apiserver.request import Form, Target, accepted_form, parse_target
from services.lab.apiserver.resources import BUILTIN, Registry
from services.lab.apiserver.schema import compile_schema, fill_defaults, prune
from services.lab.apiserver.selectors import make_selector, parse_labels
from services.lab.apiserver.store import Store
from services.lab.apiserver.tables import columns_of
from services.lab.apiserver.validation import validate
from services.lab.apiserver.watch import Watcher

CRDS = Path(__file__).parents[3] / "k8s" / "crds"
LABELS = st.dictionaries(st.sampled_from(["a", "b", "x.io/c"]), st.sampled_from(["", "1", "2", "v"]), max_size=3)
TERMS = st.sampled_from(["a=1", "a==v", "a!=1", "a", "!a", "b in (1,2)", "b notin (1, v)", "x.io/c=2", "a>0", "b<2"])


def meaning(term: str, labels: dict[str, str]) -> bool:
    """What one requirement of TERMS says, read naively."""
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
def test_a_label_selector_is_the_conjunction_of_its_terms(terms: list[str], labels: dict[str, str]) -> None:
    matches = parse_labels(",".join(terms))
    assert all(match(labels) for match in matches) == all(meaning(term, labels) for term in terms)


@given(st.text(alphabet="ab=!,()<> in.x/", max_size=12))
def test_any_text_is_a_label_selector_or_a_bad_request(text: str) -> None:
    refusals = []
    try:
        parse_labels(text)
    except ApiError as refused:
        refusals.append(refused.code)
    assert refusals in ([], [400])


def test_events_are_selected_by_what_they_involve() -> None:
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
        ("/api/v1/pods", Target("", "v1", "pods")),
        ("/api/v1/namespaces/n/pods/p/log", Target("", "v1", "pods", "n", "p", "log")),
        ("/api/v1/namespaces", Target("", "v1", "namespaces")),
        ("/api/v1/namespaces/n", Target("", "v1", "namespaces", "", "n")),
        ("/api/v1/namespaces/n/status", Target("", "v1", "namespaces", "", "n", "status")),
        ("/api/v1/namespaces/n/finalize", Target("", "v1", "namespaces", "", "n", "finalize")),
        ("/apis/g.io/v1/things/t/status", Target("g.io", "v1", "things", "", "t", "status")),
        ("/apis/g.io/v1/namespaces/n/things/", Target("g.io", "v1", "things", "n")),
        ("/apis/g.io/v1", None),
        ("/api/v1", None),
        ("/openapi/v2", None),
        ("/apis/g.io/v1/namespaces/n/things/t/a/b", None),
        ("/apis/g.io/v1//things/t", None),
    ],
)
def test_paths_are_read_as_upstream_reads_them(path: str, target: Target | None) -> None:
    assert parse_target(path) == target


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Form()),
        ("*/*", Form()),
        ("application/vnd.kubernetes.protobuf,application/json", Form()),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Form("Table", "meta.k8s.io", "v1")),
        ("application/json;as=Odd;v=v1;g=meta.k8s.io,application/json", Form()),
        ("application/yaml", Form(yaml=True)),
    ],
)
def test_the_first_form_that_can_be_made_is_taken(accept: str, form: Form) -> None:
    assert accepted_form(accept) == form


def test_a_form_that_cannot_be_made_is_not_acceptable() -> None:
    with pytest.raises(ApiError) as refused:
        accepted_form("image/png, application/cbor")
    assert refused.value.code == 406


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
def test_ages_read_as_kubectl_users_know_them(seconds: int, text: str) -> None:
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


def test_a_json_path_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="invalid JSONPath"):
        compile_path(".a[")


@pytest.mark.parametrize("file", sorted(CRDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_products_crds_are_accepted_as_they_are(file: Path) -> None:
    """Nothing in them is unknown to the API, and every printer column can be read."""
    definition = yaml.safe_load(file.read_text())
    assert definition["metadata"]["name"] == f"{definition['spec']['names']['plural']}.{definition['spec']['group']}"
    resource = next(r for r in BUILTIN if r.kind == "CustomResourceDefinition")
    schema = with_schema(resource).schema
    assert schema is not None
    unknown: list[str] = []
    prune(definition, schema, unknown)
    assert unknown == []
    assert validate(definition, schema) == []
    crd.complete(definition)
    assert crd.check(definition, None) == []
    for served, _ in crd.resources_of(definition):
        for column in served.columns:
            compile_path(column.path)
        assert columns_of(served)[0].name == "Name"


def vmi_schema() -> Any:
    definition = yaml.safe_load((CRDS / "kubevirt.io_virtualmachineinstances.yaml").read_text())
    crd.complete(definition)
    [(resource, _)] = crd.resources_of(definition)
    assert not resource.status
    assert resource.schema is not None
    return resource.schema


def test_the_status_of_a_running_machine_prunes_what_kubevirt_does_not_know() -> None:
    """A field of our own in status.interfaces would be lost on a real cluster, so it is lost here."""
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


def test_every_built_in_kind_has_its_schema_from_the_client_library() -> None:
    """A new release of the library that spells its models otherwise must not pass unnoticed."""
    for resource in BUILTIN:
        assert with_schema(resource).schema is not None, resource.kind
    container = model("V1Container")
    assert container is not None
    assert container.fields["image"][0] == "str"
    assert container.fields["env"][0] == "list[V1EnvVar]"
    assert container.fields["name"][1].startswith("Name of the container")
    assert container.required == ("name",)


def test_a_pod_loses_unknown_fields_and_may_count_in_numbers() -> None:
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


def test_defaults_fill_what_is_missing_or_null_at_every_depth() -> None:
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
def test_rules_of_schemas(schema: Any, value: Any, message: str) -> None:
    causes = validate({"v": value}, compile_schema({"type": "object", "properties": {"v": schema}}))
    assert [message in cause.message for cause in causes] == [True]
    assert causes[0].field == "v"


# -- store and watches


def store(log_size: int = 100) -> Store:
    return Store(Database(None), log_size)


def obj(name: str, value: int, **labels: str) -> Any:
    return {"metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels}, "value": value}


def drain(watcher: Watcher) -> list[tuple[str, str, int]]:
    """All queued events, without waiting."""
    return [(kind, stored.obj["metadata"]["name"], stored.obj["value"]) for kind, stored in watcher.pending()]


CHANGES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(["in", "out", "gone"])), max_size=25
)


@given(CHANGES, st.integers(0, 25))
def test_a_watch_from_any_version_rebuilds_the_selection(changes: list[tuple[str, int, str]], at: int) -> None:
    """List at some version, then fold the watch's events over it: the result is the selection at the end."""
    held = store()
    selection: dict[str, int] = {}
    seen, version = dict[str, int](), held.version

    def selects(found: Any) -> bool:
        return bool(found["metadata"]["labels"].get("side") == "in")

    for step, (name, value, side) in enumerate(changes):
        if step == at:
            seen, version = dict(selection), held.version
        before = held.get("k", "n", name)
        if side == "gone":
            if before is not None:
                held.remove("k", before)
            selection.pop(name, None)
            continue
        held.put("k", obj(name, value, side=side))
        if side == "in":
            selection[name] = value
        else:
            selection.pop(name, None)
    if at >= len(changes):
        seen, version = dict(selection), held.version
    watcher = held.table("k").channel.subscribe(version, held.version, "n", selects)
    for kind, name, value in drain(watcher):
        assert (name in seen) is (kind != "ADDED")
        if kind == "DELETED":
            del seen[name]
        else:
            seen[name] = value
    assert seen == selection


def test_a_bounded_log_forgets_and_says_so() -> None:
    held = store(log_size=3)
    versions = [held.put("k", obj("a", n)).version for n in range(6)]
    channel = held.table("k").channel
    with pytest.raises(ApiError) as gone:
        channel.subscribe(versions[1], held.version, "", None)
    assert (gone.value.code, gone.value.reason) == (410, "Expired")
    assert [value for _, _, value in drain(channel.subscribe(versions[2], held.version, "", None))] == [3, 4, 5]
    with pytest.raises(ApiError) as future:
        channel.subscribe(held.version + 1, held.version, "", None)
    assert future.value.code == 504


async def test_a_waiting_watcher_is_woken_by_the_commit_itself() -> None:
    """No polling: after `put` returns, the event is there to take."""
    held = store()
    watcher = held.table("k").channel.subscribe(held.version, held.version, "", None)
    held.put("k", obj("a", 1))
    assert [kind for kind, _ in await watcher.take()] == ["ADDED"]
    watcher.close()
    assert await watcher.take() == []


def test_the_file_keeps_objects_versions_and_the_counter(tmp_path: Path) -> None:
    first = Store(Database(tmp_path / "db"))
    kept = first.put("/configmaps", obj("a", 1))
    first.remove("/configmaps", first.put("/configmaps", obj("b", 2)))
    first.close()
    second = Store(Database(tmp_path / "db"))
    [found] = second.list("/configmaps")
    assert (found.obj, found.version, second.version) == (kept.obj, kept.version, first.version)
    assert second.by_uid("a") == ("/configmaps", "n", "a")
    second.close()


def test_stored_bytes_are_the_object() -> None:
    configmaps = Registry.with_builtin().find("", "v1", "configmaps")
    assert configmaps is not None
    held = store()
    stored = held.put("/configmaps", {"kind": "ConfigMap", "apiVersion": "v1", **obj("a", 1)})
    whole = msgspec.json.decode(stored.render(configmaps))
    assert whole == {"kind": "ConfigMap", "apiVersion": "v1", **stored.obj}
    assert msgspec.json.decode(stored.bare) == stored.obj
    copy = stored.copy(configmaps)
    copy["metadata"]["name"] = "changed"
    assert stored.obj["metadata"]["name"] == "a"


# -- certificates


def test_certificates_are_private_to_their_owner_and_say_who_they_are(tmp_path: Path) -> None:
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


def test_a_second_start_keeps_the_certificates_of_the_first(tmp_path: Path) -> None:
    pki.ensure_pki(tmp_path)
    before = {file.name: file.read_bytes() for file in (tmp_path / "pki").iterdir()}
    pki.ensure_pki(tmp_path)
    assert {file.name: file.read_bytes() for file in (tmp_path / "pki").iterdir()} == before
