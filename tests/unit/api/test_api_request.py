"""Reading bodies: JSON or YAML, and every malformed one refused with words."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.options import AddInterfaceOptions, RemoveInterfaceOptions
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
def test_json_and_yaml_are_both_read(body: bytes) -> None:
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
        (b"[" * 60_000, "cannot unmarshal"),
    ],
)
def test_a_bad_body_is_refused_with_words(body: bytes, text: str) -> None:
    with pytest.raises(BadBody, match=text.replace("`", "`")):
        decode_add(body)


@given(st.binary(max_size=200))
def test_no_body_breaks_the_decoder(body: bytes) -> None:
    with contextlib.suppress(BadBody):
        assert decode_add(body).name


@pytest.mark.parametrize("body", [b'{"name":"iface1"}', b"name: iface1"])
def test_a_removal_names_an_interface(body: bytes) -> None:
    assert decode_remove(body) == RemoveInterfaceOptions("iface1")


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"", "no request body"), (b"{}", "RemoveInterfaceOptions requires `name`"), (b'{"name":[]}', "cannot unmarshal")],
)
def test_a_bad_removal_is_refused_with_words(body: bytes, text: str) -> None:
    with pytest.raises(BadBody, match=text):
        decode_remove(body)
