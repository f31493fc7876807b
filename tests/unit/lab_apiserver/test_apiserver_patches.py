"""JSON patch, merge patch, strategic merge and field sets as pure functions."""

import contextlib
import copy
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.apiserver.errors import ApiError
from lab.apiserver.registry.schema import compile_schema
from lab.apiserver.rest.fieldsets import fields_of, merge_applied, overlap, path_text, remove_fields, subtract
from lab.apiserver.rest.patch import PatchFailed, apply_json_patch, apply_merge_patch
from lab.apiserver.rest.strategic import strategic_merge

NAMES = st.sampled_from(["a", "b", "a/b", "~", "0", "-", ""])
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "x"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=4)


@given(DOCUMENTS, DOCUMENTS)
def test_json_patch_of_another_implementation_produces_target(source: Any, target: Any) -> None:
    """jsonpatch (an independent implementation) computes the operations, this implementation applies them."""
    operations = jsonpatch.make_patch(source, target).patch
    assert apply_json_patch(copy.deepcopy(source), operations) == target


OPERATIONS = st.lists(
    st.fixed_dictionaries(
        {
            "op": st.sampled_from(["add", "remove", "replace", "test", "move", "copy"]),
            "path": st.sampled_from(["/a", "/b", "/a/0", "/a/b", "/a/-", "/b/0/a", "/a~1b", "/~0", "/none/x"]),
            "from": st.sampled_from(["/a", "/b", "/a/0", "/a/b"]),
            "value": VALUES,
        }
    ),
    max_size=4,
)


@given(DOCUMENTS, OPERATIONS)
def test_any_operations_produce_a_document_or_a_known_error(document: Any, operations: Any) -> None:
    """No exception other than PatchFailed and ApiError is raised."""
    with contextlib.suppress(PatchFailed, ApiError):
        apply_json_patch(document, operations)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ({"op": "test", "path": "/x", "value": 2}, "testing value /x failed: test failed"),
        ({"op": "test", "path": "/x", "value": True}, "testing value /x failed: test failed"),
        ({"op": "test", "path": "/none", "value": 1}, "missing value"),
        ({"op": "remove", "path": "/none"}, "Unable to remove nonexistent key"),
        ({"op": "replace", "path": "/none/deep", "value": 1}, "missing path"),
        ({"op": "replace", "path": "/list/0", "value": 1}, "invalid index"),
        ({"op": "add", "path": "/list/7", "value": 1}, "invalid index"),
        ({"op": "add", "path": "/list/x", "value": 1}, "not an array index"),
        ({"op": "move", "from": "/deep", "path": "/deep/a"}, "lies inside"),
        ({"op": "copy", "from": "/none/deep", "path": "/y"}, "missing path"),
        ({"op": "copy", "from": "/list/0", "path": "/y"}, "invalid index"),
        ({"op": "paint", "path": "/x"}, "Unexpected kind: paint"),
        ({"op": "add", "path": "x", "value": 1}, "missing path"),
    ],
)
def test_patch_error_names_operation_and_reason(operation: dict[str, Any], message: str) -> None:
    with pytest.raises(PatchFailed, match=message):
        apply_json_patch({"x": 1, "list": [], "deep": {}}, [operation])


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        ({"op": "replace", "path": "/none", "value": 1}, {"x": 1, "none": 1}),
        ({"op": "copy", "from": "/none", "path": "/y"}, {"x": 1, "y": None}),
    ],
)
def test_a_missing_key_is_null_for_replace_and_copy(operation: dict[str, Any], result: dict[str, Any]) -> None:
    """As in kube-apiserver (evanphx/json-patch v4), where RFC 6902 requires that the location exists."""
    assert apply_json_patch({"x": 1}, [operation]) == result


def test_test_operation_accepts_missing_value_as_null() -> None:
    """As in evanphx/json-patch; hotnic's guarded patches depend on it where a list does not exist yet."""
    assert apply_json_patch({}, [{"op": "test", "path": "/spec/networks", "value": None}]) == {}


def test_negative_indices_count_from_the_end() -> None:
    assert apply_json_patch({"a": [1, 2]}, [{"op": "replace", "path": "/a/-1", "value": 3}]) == {"a": [1, 3]}


def test_too_many_operations_get_413() -> None:
    with pytest.raises(ApiError) as error:
        apply_json_patch({}, [{"op": "test", "path": "/x"}] * 10_001)
    assert error.value.code == 413


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": "b"}, ["c"], ["c"]),
    ],
)
def test_merge_patch_follows_rfc_7386_examples(target: Any, patch: Any, result: Any) -> None:
    assert apply_merge_patch(target, patch) == result


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        (
            {"ports": [{"port": 1, "name": "a"}]},
            {"ports": [{"port": 1, "name": "b"}]},
            {"ports": [{"port": 1, "name": "b"}]},
        ),
        ({"finalizers": ["a"]}, {"finalizers": ["b", "a"]}, {"finalizers": ["a", "b"]}),
        ({"finalizers": ["a", "b"]}, {"$deleteFromPrimitiveList/finalizers": ["a"]}, {"finalizers": ["b"]}),
        ({"args": ["a"]}, {"args": ["b"]}, {"args": ["b"]}),
        ({"s": {"a": 1, "b": 2}}, {"s": {"$patch": "replace", "c": 3}}, {"s": {"c": 3}}),
        ({"s": {"a": 1}}, {"s": {"$patch": "delete"}}, {"s": {}}),
        ({"s": {"a": 1, "b": 2}}, {"s": {"$retainKeys": ["b"], "b": 3}}, {"s": {"b": 3}}),
        (
            {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]},
            {"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}]}, {"name": "b", "$patch": "delete"}]},
            {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}]},
        ),
        (
            {"conditions": [{"type": "A"}]},
            {"conditions": [{"$patch": "replace"}, {"type": "B"}]},
            {"conditions": [{"type": "B"}]},
        ),
    ],
)
def test_strategic_merge_merges_lists_by_key(target: Any, patch: Any, result: Any) -> None:
    assert strategic_merge(target, patch) == result


@pytest.mark.parametrize("patch", [[], {"$patch": "paint"}, {"containers": [{"image": "x"}]}])
def test_invalid_strategic_merge_is_a_bad_request(patch: Any) -> None:
    with pytest.raises(ApiError) as error:
        strategic_merge({}, patch)
    assert error.value.code == 400


# -- field sets

KEYED = compile_schema(
    {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
        "properties": {
            "items": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            },
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        },
    }
)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "a": st.integers(0, 2),
        "m": st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2), max_size=3),
        "items": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from("pqr")}, optional={"v": st.integers(0, 2)}),
            max_size=3,
            unique_by=lambda item: item["name"],
        ),
        "set": st.lists(st.sampled_from(["s", "t"]), max_size=2, unique=True),
    },
)


@given(CONFIGS, CONFIGS)
def test_single_manager_gets_exactly_what_it_applies(first: Any, second: Any) -> None:
    """Apply one configuration, then another: no field remains that only the first has."""
    live = merge_applied({}, copy.deepcopy(first), KEYED)
    remove_fields(live, fields_of(first, KEYED), [fields_of(second, KEYED)])
    live = merge_applied(live, copy.deepcopy(second), KEYED)
    assert sorted(live.pop("set", [])) == sorted(second.pop("set", []))
    assert live == second


@given(CONFIGS, CONFIGS)
def test_fields_of_other_managers_remain(own: Any, other: Any) -> None:
    """The fields of another manager remain after this manager's are applied and removed, except those that both set."""
    live = merge_applied({}, copy.deepcopy(other), KEYED)
    live = merge_applied(live, copy.deepcopy(own), KEYED)
    remove_fields(live, fields_of(own, KEYED), [fields_of(other, KEYED)])
    assert fields_of(live, KEYED) == fields_of(other, KEYED)


def test_overlap_contains_fields_that_would_change() -> None:
    own = {"a": 1, "m": {"x": 1, "y": 1}, "items": [{"name": "p", "v": 1}]}
    live = {"a": 1, "m": {"x": 2}, "items": [{"name": "p", "v": 2}]}
    found = overlap(fields_of(own, KEYED), fields_of(live, KEYED), own, live)
    assert [path_text(path) for path in found] == ['.items[name="p"].v', ".m.x"]
    remaining = subtract(fields_of(live, KEYED), found)
    assert remaining == {"f:a": {}, "f:m": {}, "f:items": {'k:{"name":"p"}': {".": {}, "f:name": {}}}}
