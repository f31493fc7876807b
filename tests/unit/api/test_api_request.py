"""Decoding of request bodies: JSON and YAML, and the refusal of malformed ones."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from services.api.request import BadBody, decode_add, decode_remove

GOOD = AddInterfaceOptions("default/net1", "iface1")


@pytest.mark.parametrize(
    "body",
    [
        b'{"networkAttachmentDefinitionName":"default/net1","name":"iface1"}',
        b'{"networkAttachmentDefinitionName":"default/net1","name":"iface1","binding":"unknown fields are ignored"}',
        b"networkAttachmentDefinitionName: default/net1\nname: iface1\n",
        b"{networkAttachmentDefinitionName: default/net1, name: 'iface1'}",
    ],
)
def test_json_and_yaml_bodies_are_decoded(body: bytes) -> None:
    assert decode_add(body) == GOOD


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "no request body"),
        (b"null", "no request body"),
        (b"{", "cannot unmarshal"),
        (b"a: [", "cannot unmarshal"),
        (b"\xff\xfe", "cannot unmarshal"),
        (b"[]", "expected an object, got an array"),
        (b"plain words", "expected an object, got a string"),
        (b"{}", "requires `networkAttachmentDefinitionName`"),
        (b'{"networkAttachmentDefinitionName":"net1"}', "requires `name`"),
        (b'{"networkAttachmentDefinitionName":1,"name":"a"}', "cannot unmarshal"),
        (b'{"networkAttachmentDefinitionName":"a/b/c","name":"a"}', "is malformed"),
        (b'{"networkAttachmentDefinitionName":"Upper","name":"a"}', "is malformed"),
        (b'{"networkAttachmentDefinitionName":"net1","name":"-a"}', "is malformed"),
        (b'{"networkAttachmentDefinitionName":"net1","name":"a.b"}', "is malformed"),
        (b'{"networkAttachmentDefinitionName":"net1","name":"' + b"a" * 64 + b'"}', "is malformed"),
        (b"[" * 60_000, "nested too deeply"),
    ],
)
def test_malformed_add_body_is_refused_with_the_reason(body: bytes, text: str) -> None:
    with pytest.raises(BadBody, match=text.replace("`", "`")):
        decode_add(body)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"name: &a iface1", "anchors and aliases"),
        (b"&a {name: *a}", "anchors and aliases"),
        (b"<<: {name: iface1}", "merge keys"),
        (b"name: !!python/object:os.system x", "tags"),
        (b"name: " + b"9" * 4000, "more than 1024 characters"),
        (b"# \n" * 1400, "more than 4096 characters"),
        (b"[a, " * 100, "levels"),
        (b'name: "\\ud800"', "surrogate"),
        (b'"\\ud800": a', "surrogate"),
        (b"- " * 100, "levels"),
        (b"{" + b"a: b, " * 200, "values"),
        # Each level repeats the one before nine times: 500 bytes, and minutes to merge.
        (
            b"a0: &a0 {k: v}\n"
            + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (n, n, b"*a%d," % (n - 1) * 9) for n in range(1, 9)),
            "anchors",
        ),
    ],
)
def test_yaml_that_is_larger_than_it_looks_is_refused(body: bytes, text: str) -> None:
    for decode in (decode_add, decode_remove):
        with pytest.raises(BadBody, match=text):
            decode(body)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_bad_body(body: bytes) -> None:
    with contextlib.suppress(BadBody):
        assert decode_add(body).name


@pytest.mark.parametrize("body", [b'{"name":"iface1"}', b"name: iface1"])
def test_remove_body_is_decoded(body: bytes) -> None:
    assert decode_remove(body) == RemoveInterfaceOptions("iface1")


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"", "no request body"), (b"{}", "RemoveInterfaceOptions requires `name`"), (b'{"name":[]}', "cannot unmarshal")],
)
def test_malformed_remove_body_is_refused_with_the_reason(body: bytes, text: str) -> None:
    with pytest.raises(BadBody, match=text):
        decode_remove(body)
