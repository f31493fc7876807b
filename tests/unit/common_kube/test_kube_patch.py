"""JSON pointers and patch operations."""

import jsonpatch
from hypothesis import given
from hypothesis import strategies as st

from services.common.kube import patch


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.text())
def test_a_pointer_finds_the_value_under_its_segments(segments: list[str], value: str) -> None:
    document: object = value
    for segment in reversed(segments):
        document = {segment: document}
    path = patch.pointer(*segments)
    changed = jsonpatch.apply_patch(document, [patch.test(path, value), patch.replace(path, "new")])
    for segment in segments:
        changed = changed[segment]
    assert changed == "new"


def test_add_and_remove() -> None:
    document = {"a": ["x"]}
    ops = [patch.add(patch.pointer("a", "-"), "y"), patch.remove(patch.pointer("a", 0))]
    assert jsonpatch.apply_patch(document, ops) == {"a": ["y"]}


def test_a_patch_with_a_test_is_guarded() -> None:
    assert patch.is_guarded([patch.add("/a", 1), patch.test("/b", 2)])
    assert not patch.is_guarded([patch.add("/a", 1)])
