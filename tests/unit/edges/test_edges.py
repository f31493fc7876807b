"""Hostile values at every edge: accepted, or refused with the edge's own error, whose text is short."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.edges import EDGES, FedEdge
from tests.support.hostile.values import DOCUMENTS


def feed(edge: FedEdge, data: bytes) -> None:
    """Feed an edge; any exception but its own fails the test."""
    try:
        edge.feed(data)
    except edge.error as error:
        text = str(error)
        assert len(text) < 2000, f"{len(text)} characters: {text[:100]}"


@pytest.mark.parametrize("value", DOCUMENTS)
@pytest.mark.parametrize("name", EDGES)
def test_a_hostile_value_is_accepted_or_refused(name: str, value: str) -> None:
    feed(EDGES[name], DOCUMENTS[value])


@pytest.mark.parametrize("name", sorted(EDGES.keys() - {"bus", "cri-sandbox"}))
def test_a_proper_value_is_read(name: str) -> None:
    """Otherwise the table would show nothing. Proper values of the other edges are in their own tests."""
    for seed in EDGES[name].seeds:
        EDGES[name].feed(seed)


_KEYS = ["metadata", "spec", "status", "name", "interfaces", "networks", "items", "annotations", "domain", "pid"]
_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
_values = _scalars | st.lists(_scalars, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), _scalars, max_size=3)


@given(
    st.sampled_from(sorted(EDGES)),
    st.dictionaries(st.sampled_from(_KEYS), _values, max_size=4),
    st.integers(0, 1200),
)
def test_any_document_of_any_depth_is_accepted_or_refused(name: str, document: dict[str, Any], depth: int) -> None:
    data = msgspec.json.encode(document)
    feed(EDGES[name], data[:-1] + (b"," if document else b"") + b'"x":' + b"[" * depth + b"]" * depth + b"}")
