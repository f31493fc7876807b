"""The one way in for data from outside: every failure is one class of error, with a bounded and printable message."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.inputs import (
    MAX_DEPTH,
    MAX_TEXT,
    REJECTED,
    Edge,
    InputDecoder,
    RejectedInput,
    RejectReason,
    find_member,
    is_deep,
    printable,
    rejecting,
    split_elements,
)


class _Part(msgspec.Struct):
    name: str
    number: int = 0
    open: dict[str, Any] | None = None


class _Whole(msgspec.Struct):
    part: _Part
    parts: list[_Part] = []


DECODER = InputDecoder(Edge.AGENT, _Whole, max_bytes=20_000)


def nested(levels: int) -> str:
    """Return JSON with this many levels."""
    return '{"a":[' * (levels // 2) + "1" + "]}" * (levels // 2)


HOSTILE: list[tuple[bytes | str, RejectReason]] = [
    (b"", RejectReason.MALFORMED),
    (b"{", RejectReason.MALFORMED),
    (b"\xff\xfe", RejectReason.MALFORMED),
    (b'{"part":{"name":"\xff"}}', RejectReason.MALFORMED),
    ('{"part":{"name":"\ud800"}}', RejectReason.MALFORMED),
    (b'{"part":{"name":"a\x00b"}}', RejectReason.MALFORMED),
    (b"null", RejectReason.INVALID),
    (b"[]", RejectReason.INVALID),
    (b'{"part":{"name":1}}', RejectReason.INVALID),
    (b'{"part":{"name":"a","number":1e999}}', RejectReason.INVALID),
    (b'{"part":{"name":"a","number":' + b"9" * 5000 + b"}}", RejectReason.INVALID),
    (f'{{"part":{{"name":"a","open":{nested(MAX_DEPTH + 2)}}}}}', RejectReason.TOO_DEEP),
    (f'{{"part":{{"name":"a"}},"parts":[{{"name":"b","open":{nested(MAX_DEPTH)}}}]}}', RejectReason.TOO_DEEP),
    (f'{{"part":{{"name":"a","open":{nested(3000)}}}}}', RejectReason.TOO_DEEP),
    (f'{{"part":{{"name":"a","unknown":{nested(3000)}}}}}', RejectReason.TOO_DEEP),
    (b'{"part":{"name":"' + b"a" * 20_000 + b'"}}', RejectReason.TOO_LARGE),
]


@pytest.mark.parametrize(("data", "reason"), HOSTILE, ids=[f"{reason}-{at}" for at, (_, reason) in enumerate(HOSTILE)])
def test_every_failure_is_classified_and_counted(data: bytes | str, reason: RejectReason) -> None:
    before = REJECTED.counts().get((Edge.AGENT, reason), 0)
    with pytest.raises(RejectedInput) as caught:
        DECODER.decode(data)
    assert (caught.value.edge, caught.value.reason) == (Edge.AGENT, reason)
    assert REJECTED.counts()[Edge.AGENT, reason] == before + 1


def test_a_value_within_the_limit_of_depth_passes() -> None:
    text = f'{{"part":{{"name":"a","open":{nested(MAX_DEPTH - 2)}}}}}'
    assert msgspec.json.encode(DECODER.decode(text).part.open) == nested(MAX_DEPTH - 2).encode()
    # Brackets in strings, and many values beside each other, are no depth.
    wide = msgspec.json.encode({"part": {"name": "a", "open": {"x": ["[{"] * 200, "y": [[]] * 200}}})
    assert DECODER.decode(wide).part.open == {"x": ["[{"] * 200, "y": [[]] * 200}


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (nested(MAX_DEPTH), False),
        (nested(MAX_DEPTH + 2), True),
        (f"[{nested(MAX_DEPTH)}]", True),
        (f"[{nested(MAX_DEPTH - 2)},{nested(MAX_DEPTH - 2)}]", False),
        ('["\\"' + "[{" * 500 + '"]', False),
        ("[" + "[]," * 100 + "[]]", False),
        ("{" * 20 + "}" * 200, False),
    ],
)
def test_depth_is_that_of_the_brackets_outside_of_strings(text: str, deep: bool) -> None:
    assert is_deep(text.encode()) is deep


def test_any_exception_of_a_parser_is_classified() -> None:
    for error, reason in [
        (OverflowError("too big"), RejectReason.INVALID),
        (KeyError("part"), RejectReason.INVALID),
        (RecursionError("maximum recursion depth exceeded"), RejectReason.TOO_DEEP),
    ]:
        with pytest.raises(RejectedInput) as caught, rejecting(Edge.PACKET):
            raise error
        assert caught.value.reason is reason


def test_a_quoted_input_is_cut_and_escaped() -> None:
    assert printable("\x1b[31mred\n\u202e\ud800é") == "\\x1b[31mred\\n\\u202e\\ud800é"
    with pytest.raises(RejectedInput) as caught, rejecting(Edge.AGENT):
        raise ValueError("\x1b" + "x" * 1_000_000)
    assert str(caught.value).startswith("\\x1bx")
    assert len(str(caught.value)) < MAX_TEXT + 10


def _containers(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3)


@given(st.recursive(st.text('\\"[{a', max_size=5), _containers, max_leaves=8), st.integers(0, MAX_DEPTH + 1))
def test_depth_is_that_of_the_value(value: Any, around: int) -> None:
    for _ in range(around):
        value = [value, '["']
    text = msgspec.json.encode(value)
    assert is_deep(text) is (_depth(value) > MAX_DEPTH)


def _depth(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), _containers, max_leaves=8))
def test_documents_are_split_as_a_decoder_reads_them(value: Any) -> None:
    """Elements and members are found without recursion, in any JSON."""
    array = msgspec.json.format(msgspec.json.encode([value, [value]]), indent=1)
    assert [msgspec.json.decode(element) for element in split_elements(array)] == [value, [value]]
    whole = msgspec.json.encode({"before": value, "outer": {"x": value, 'in"ner': value}, "after": [value]})
    found = find_member(whole, "outer", 'in"ner')
    assert found is not None
    assert msgspec.json.decode(found) == value
    assert find_member(whole, "outer", "missing") is None


@given(st.binary(max_size=40) | st.text('[]{},:"\\ 1', max_size=30).map(str.encode))
def test_garbage_is_split_or_refused_by_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        split_elements(data)
    with suppress(ValueError):
        find_member(data, "a", "b")
