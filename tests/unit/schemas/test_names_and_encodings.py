"""Names and encodings: known values, rules, and round trips of arbitrary names."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import names
from schemas.bus.encoding import (
    StatusKey,
    Subject,
    node_consumer,
    node_filter,
    parse_status_key,
    parse_subject,
    stage_filter,
)

# No lone surrogates: they have no UTF-8 encoding, so no API server accepts them in a name.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
SPECIAL = ["a.b", "50%", "%2E", "=3D", "=", "-x", "*", ">", "ü", "日本", "a b", "\n", "_", "..", "$JS"]


def test_names_of_iface1() -> None:
    assert names.interface_hash("iface1") == "7e0055a6880"
    assert names.pod_interface("iface1") == "pod7e0055a6880"
    assert names.bridge("iface1") == "k6t-7e0055a6880"
    assert names.tap("iface1") == "tap7e0055a6880"
    assert names.bridged_nic("iface1") == "7e0055a6880-nic"
    assert names.device_alias("iface1") == "ua-iface1"


@given(TEXT)
def test_every_link_name_has_at_most_15_bytes(interface: str) -> None:
    for name in (
        names.pod_interface(interface),
        names.bridge(interface),
        names.tap(interface),
        names.bridged_nic(interface),
    ):
        assert len(name.encode()) <= 15


@given(TEXT)
def test_alias_round_trip(interface: str) -> None:
    assert names.interface_of_alias(names.device_alias(interface)) == interface


def test_alias_preserves_case() -> None:
    assert names.device_alias("NicA") == "ua-NicA"
    assert names.interface_of_alias("ua-NicA") == "NicA"


@pytest.mark.parametrize("alias", ["", "ua-", "net0", "UA-x"])
def test_foreign_device_has_no_interface(alias: str) -> None:
    assert names.interface_of_alias(alias) is None


@pytest.mark.parametrize(
    ("name", "new", "known"),
    [
        ("iface1", True, True),
        ("A-b_c", True, True),
        ("9", True, True),
        ("x" * 63, True, True),
        ("x" * 64, False, True),
        ("-x", False, True),
        ("_x", False, True),
        ("a.b", False, False),
        ("", False, False),
        ("x\n", False, False),
    ],
)
def test_interface_name_rules(name: str, new: bool, known: bool) -> None:
    assert bool(names.NEW_INTERFACE_NAME.fullmatch(name)) is new
    assert bool(names.KNOWN_INTERFACE_NAME.fullmatch(name)) is known


def test_equal_names_do_not_collide() -> None:
    assert names.find_colliding_names(["a", "b", "a"]) is None
    assert names.find_colliding_names([]) is None


@pytest.mark.parametrize(
    ("name", "ordinal"), [("net1", True), ("net12", True), ("net", False), ("pod7e0055a6880", False)]
)
def test_ordinal_names(name: str, ordinal: bool) -> None:
    assert names.is_ordinal(name) is ordinal


@given(st.builds(Subject, TEXT, TEXT, TEXT, TEXT))
@example(Subject("requested", "node-1.example", "default", "vm=1%"))
@example(Subject("-", "=", "%", "."))
def test_subject_round_trip(subject: Subject) -> None:
    text = str(subject)
    assert parse_subject(text) == subject
    assert text.isascii()
    assert len(text.split(".")) == 5
    assert not set(text) & set("*> \t\r\n")


@given(st.builds(StatusKey, TEXT, TEXT, TEXT))
@example(StatusKey("default", "vm.1", "7e0055a6880"))
@example(StatusKey("=", "%", "-"))
def test_status_key_round_trip(key: StatusKey) -> None:
    text = str(key)
    assert parse_status_key(text) == key
    # The characters that NATS accepts in a key; a leading or trailing dot would be invalid.
    assert all(c.isascii() and (c.isalnum() or c in "-_=.") for c in text)
    assert "%" not in text
    assert text.count(".") == 2


@pytest.mark.parametrize("name", SPECIAL)
def test_special_names_have_different_tokens(name: str) -> None:
    others = {str(Subject("s", other, "n", "v")) for other in SPECIAL if other != name}
    assert str(Subject("s", name, "n", "v")) not in others


@pytest.mark.parametrize(
    "subject",
    [
        "hotplug",
        "hotplug.requested.n.ns",
        "hotplug.requested.n.ns.vm.more",
        "hotplug.requested.n.ns.",
        "hotplug.requested.n.ns.%2",
        "hotplug.requested.n.ns.%zz",
        "hotplug.requested.n.ns.%2e",
        "hotplug.requested.n.ns.%FF",
        "hotplug.requested.n.ns.a=b",
        "other.requested.n.ns.vm",
        "",
    ],
)
def test_foreign_subjects_are_rejected(subject: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_subject(subject)


@pytest.mark.parametrize("key", ["", "a.b", "a.b.c.d", "a.b.%20", "a..c", "a.b.=zz"])
def test_foreign_keys_are_rejected(key: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_status_key(key)


def test_empty_name_is_rejected() -> None:
    with pytest.raises(ValueError, match="empty"):
        str(Subject("s", "", "n", "v"))


@given(TEXT)
@example("node-1.example")
def test_filter_and_consumer_name_of_a_node(node: str) -> None:
    assert node_filter(node).startswith("hotplug.*.")
    assert node_filter(node).endswith(".>")
    assert node_filter(node).count(".") == 3
    consumer = node_consumer("networks", node)
    assert consumer.startswith("networks_")
    assert len(consumer) == len("networks_") + 16
    assert "." not in consumer


def test_stage_filter() -> None:
    assert stage_filter("pod-annotated") == "hotplug.pod-annotated.>"
