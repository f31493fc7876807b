"""The permissions of the bus: no identity may use what belongs to another role or node."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schemas.bus.encoding import (
    DEAD_ROOT,
    SUBJECT_ROOT,
    Subject,
    consumer_request,
    node_consumer,
    parse_consumer_request,
)
from schemas.bus.permissions import (
    API,
    API_ACCOUNT,
    BUCKET_KEYS,
    BUCKET_STREAM,
    CLIENT_API,
    CONSUMER_REQUESTS,
    CONSUMER_ROLES,
    IMPORTING_ACCOUNTS,
    NODE_ROLES,
    PEOPLE,
    STREAMS,
    BusRole,
    Import,
    Permissions,
    account_of,
    imports_of,
    inbox_prefix,
    published_stages,
    role_permissions,
)
from schemas.stages import Stage
from tests.support.bus.memory import matches

NODES = st.one_of(
    st.sampled_from(
        ["node1", "node1.example.com", "*", ">", "a.*", "a.>", "node1.>", "%2A", "..", "_x", " ", "$JS", "é"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=63),
).filter(lambda name: name != "_")


def permissions_of(role: BusRole, node: str = "node1") -> Permissions:
    return role_permissions(role, node if role in NODE_ROLES else None)


def all_imports() -> list[Import]:
    return [found for account in IMPORTING_ACCOUNTS for found in imports_of(account)]


def allows(permissions: Permissions, subject: str) -> bool:
    return any(matches(pattern, subject) for pattern in permissions.publish)


@pytest.mark.parametrize("role", [role for role in BusRole if role not in PEOPLE])
@pytest.mark.parametrize("stage", list(Stage))
def test_role_publishes_its_own_stages_only(role: BusRole, stage: Stage) -> None:
    own = {
        *published_stages(role),
        *(published_stages("networks") + published_stages("handler") if role is BusRole.NODE else ()),
    }
    subject = str(Subject(stage, "node1", "default", "vm1"))
    assert allows(permissions_of(role), subject) is (stage in own)


@given(own=NODES, other=NODES, role=st.sampled_from(sorted(NODE_ROLES)), stage=st.sampled_from(list(Stage)))
def test_identity_of_a_node_covers_no_other_node(own: str, other: str, role: BusRole, stage: Stage) -> None:
    assume(own != other)
    permissions = role_permissions(role, own)
    assert not allows(permissions, str(Subject(stage, other, "default", "vm1")))
    assert not allows(permissions, DEAD_ROOT + str(Subject(stage, other, "default", "vm1")).removeprefix(SUBJECT_ROOT))
    for consumer in (node_consumer("handler", other), node_consumer("networks", other)):
        for request in ("INFO", "MSG.NEXT"):
            assert not allows(permissions, f"{CLIENT_API}.CONSUMER.{request}.HOTPLUG.{consumer}")
    inboxes = {inbox_prefix(part, other) for part in NODE_ROLES}
    for pattern in permissions.subscribe:
        assert not any(matches(pattern, f"{inbox}.x.y") for inbox in inboxes)


@given(node=NODES, role=st.sampled_from(sorted(NODE_ROLES)))
def test_wildcards_of_a_node_stand_where_the_table_has_them(node: str, role: BusRole) -> None:
    """A node's name brings in no wildcard and no token: every pattern has the form that a plain name gives it."""

    def form(subject: str) -> list[str]:
        return [token if token in ("*", ">") else "" for token in subject.split(".")]

    hostile, plain = role_permissions(role, node), role_permissions(role, "plain")
    for found, expected in zip(hostile[:2], plain[:2], strict=True):
        assert list(map(form, found)) == list(map(form, expected))


@pytest.mark.parametrize("role", list(BusRole))
def test_controller_alone_administers_and_writes_the_bucket(role: BusRole) -> None:
    permissions = permissions_of(role)
    requests = [f"$JS.API.STREAM.{verb}.{BUCKET_STREAM}" for verb in ("CREATE", "UPDATE", "PURGE")]
    for subject in (*requests, "$JS.API.STREAM.CREATE.HOTPLUG", "$KV.hotplug-status.default.vm1.7e0055a6880"):
        assert allows(permissions, subject) is (role is BusRole.CONTROLLER)
    for subject in (
        "STREAM.DELETE.HOTPLUG",
        "STREAM.PURGE.HOTPLUG",
        "STREAM.PURGE.HOTPLUG_DEAD",
        "ACCOUNT.PURGE.X",
    ):
        assert not allows(permissions, f"{API}.{subject}")
        assert not allows(permissions, f"{CLIENT_API}.{subject}")


@pytest.mark.parametrize("role", [role for role in BusRole if role is not BusRole.ADMINISTRATOR])
def test_dead_letters_are_append_only(role: BusRole) -> None:
    permissions = permissions_of(role)
    for request in ("MSG.DELETE", "PURGE", "DELETE"):
        assert not allows(permissions, f"{CLIENT_API}.STREAM.{request}.HOTPLUG_DEAD")


@pytest.mark.parametrize("role", list(BusRole))
def test_controller_alone_creates_and_deletes_consumers(role: BusRole) -> None:
    """The server checks no body of such a request, which may have the consumer deliver to any subject."""
    permissions = permissions_of(role)
    for stream in STREAMS:
        own = role is BusRole.CONTROLLER and stream == "HOTPLUG"
        for name in ("x", node_consumer("handler", "node1"), "projector"):
            named = f"{stream}.{name}"
            for request, controllers in (
                (f"CREATE.{named}", own),
                (f"CREATE.{named}.hotplug.*.node1.>", own),
                (f"DELETE.{named}", own),
                (f"CREATE.{stream}", False),
                (f"DURABLE.CREATE.{named}", False),
                (f"PAUSE.{named}", False),
                (f"UNPIN.{named}", False),
                (f"RESET.{named}", False),
                (f"LEADER.STEPDOWN.{named}", False),
            ):
                assert allows(permissions, f"{API}.CONSUMER.{request}") is controllers
                assert not allows(permissions, f"{CLIENT_API}.CONSUMER.{request}")
                for found in all_imports():
                    assert not matches(found.subject, f"{API}.CONSUMER.{request}")


@pytest.mark.parametrize("role", list(BusRole))
def test_roles_request_their_own_consumers_only(role: BusRole) -> None:
    own = {BusRole.NODE: {"networks", "handler"}}.get(role, {role} & CONSUMER_ROLES)
    for part in CONSUMER_ROLES:
        assert allows(permissions_of(role), consumer_request(part, "node1")) is (part in own)
        assert not allows(permissions_of(role), consumer_request(part, "node2"))
    receives = any(matches(pattern, consumer_request("handler", "x.y")) for pattern in permissions_of(role).subscribe)
    assert (receives, permissions_of(role).answers) == ((role is BusRole.CONTROLLER,) * 2)


@given(node=NODES, role=st.sampled_from(sorted(CONSUMER_ROLES)))
def test_a_request_names_the_role_and_node_that_made_it(node: str, role: str) -> None:
    subject = consumer_request(role, node)
    assert parse_consumer_request(subject) == (role, node)
    assert matches(CONSUMER_REQUESTS, subject)


@pytest.mark.parametrize("subject", ["", "hotnic.consumers", "hotnic.consumers.x", "hotnic.consumers.a.b.c", "x.a.b"])
def test_other_subjects_request_no_consumer(subject: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_consumer_request(subject)


@pytest.mark.parametrize("role", list(BusRole))
def test_every_identity_reads_its_own_inbox_only(role: BusRole) -> None:
    inboxes = [pattern for pattern in permissions_of(role).subscribe if pattern.startswith("_INBOX_hotnic.")]
    assert all(pattern.endswith(".>") for pattern in inboxes)
    notices = {
        BusRole.API: {"hotnic.stored.$KV.hotplug-status.>"},
        BusRole.CONTROLLER: {
            "hotnic.stored.$KV.hotplug-status.>",
            "hotnic.consumers.*.*",
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.HOTPLUG.>",
        },
    }
    assert set(permissions_of(role).subscribe) - set(inboxes) == notices.get(role, set())
    # The process of a node answers for its two roles; the people share one.
    alike = ({BusRole.NODE, BusRole.NETWORKS}, {BusRole.NODE, BusRole.HANDLER}, set(PEOPLE))
    others = [other for other in BusRole if other is not role and {role, other} not in alike]
    assert not set(inboxes) & {p for other in others for p in permissions_of(other).subscribe}


@pytest.mark.parametrize(
    ("role", "node"),
    [("multus", None), ("", None), ("handler", None), ("handler", ""), ("networks", "_"), ("api", "node1")],
)
def test_no_permissions_without_a_proper_identity(role: str, node: str | None) -> None:
    with pytest.raises(ValueError, match="identity"):
        role_permissions(role, node)


@pytest.mark.parametrize("role", [role for role in BusRole if role is not BusRole.CONTROLLER])
def test_an_account_imports_what_its_identities_may_use(role: BusRole) -> None:
    imports = imports_of(account_of(role))
    for subject in permissions_of(role).publish:
        assert any(matches(found.local, subject) for found in imports if not found.delivery), subject
    delivered = {found.local for found in imports if found.delivery}
    notices = {pattern for pattern in permissions_of(role).subscribe if not pattern.startswith("_INBOX_hotnic.")}
    assert notices == delivered
    # What is delivered is published by the streams alone.
    assert not [found for found in imports if not found.delivery and found.local.startswith("hotnic.stored")]


def test_nobody_shares_an_account_with_who_subscribes() -> None:
    """The server checks no subject of an answer, so whoever is in an account can send what its subscribers get."""
    assert [role for role in BusRole if account_of(role) == API_ACCOUNT] == [BusRole.API]
    for role in BusRole:
        if account_of(role) not in (account_of(BusRole.API), account_of(BusRole.CONTROLLER)):
            assert all(pattern.startswith("_INBOX_hotnic.") for pattern in permissions_of(role).subscribe)
    reads = f"{CLIENT_API}.DIRECT.GET.{BUCKET_STREAM}.{BUCKET_KEYS}"
    assert [account for account in IMPORTING_ACCOUNTS if reads in {one.local for one in imports_of(account)}] == [
        API_ACCOUNT
    ]


def test_nothing_that_administers_is_imported() -> None:
    for found in all_imports():
        assert found.subject.removeprefix(API) == found.local.removeprefix(CLIENT_API)
        for request in ("CREATE", "UPDATE", "DELETE", "PURGE", "SNAPSHOT", "RESTORE"):
            assert not matches(found.subject, f"{API}.STREAM.{request}.HOTPLUG")
        assert not matches(found.subject, "$KV.hotplug-status.default.vm1.7e0055a6880")
