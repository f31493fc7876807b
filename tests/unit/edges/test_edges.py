"""Hostile values at every edge: accepted, or refused with the edge's own error, whose text is short."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.edges import EDGES, FedEdge

_DEEP = 5000

HOSTILE = {
    "nothing": b"",
    "null": b"null",
    "half": b'{"metadata":{"name":"a',
    "array": b"[]",
    "no UTF-8": b'{"name":"\xff\xfe"}',
    "NUL": b'{"name":"a\\u0000b","metadata":{"name":"\\u0000"}}',
    "surrogate": b'{"name":"\\ud800"}',
    "huge integer": b'{"pid":%s,"generation":%s}' % (b"9" * 5000, b"9" * 400),
    "huge exponent": b'{"pid":1e999,"metadata":{"generation":1e400}}',
    "deep": b'{"name":' + b"[" * _DEEP + b"]" * _DEEP + b"}",
    "deep unknown": b'{"x":' + b'{"y":' * _DEEP + b"1" + b"}" * _DEEP + b"}",
    "deep spec": b'{"spec":{"networks":[{"a":' + b"[" * 500 + b"]" * 500 + b"}]}}",
    "deep and cut": b"[" * _DEEP,
    "many keys": msgspec.json.encode({str(n): n for n in range(20_000)}),
    "long": b'{"name":"' + b"x" * 1_000_000 + b'"}',
    "long and wrong": b'{"metadata":{"name":1,"annotations":{"' + b"x" * 1_000_000 + b'":2}}}',
    "escape sequences": b'{"kind":"\\u001b[31m","metadata":[],"status":"\\u001b[2J"}',
}


def feed(edge: FedEdge, data: bytes) -> None:
    """Feed an edge; any exception but its own fails the test."""
    try:
        edge.feed(data)
    except edge.error as error:
        text = str(error)
        assert len(text) < 2000, f"{len(text)} characters: {text[:100]}"


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", EDGES)
def test_a_hostile_value_is_accepted_or_refused(name: str, value: str) -> None:
    feed(EDGES[name], HOSTILE[value])


@pytest.mark.parametrize("name", sorted(EDGES.keys() - {"bus", "cri-sandbox", "packet"}))
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
