"""The identities of a lab on NATS: whose seed is where, and which keys nats-server knows."""

from pathlib import Path

import pytest

from lab.layout import BUS_ROLES, Layout, role_processes
from lab.supervisor.credentials import bus, certificates
from schemas.bus.permissions import API_ACCOUNT, STREAM_ACCOUNT, BusRole, identity_name
from services.common.bus.nkeys import read_public_key, write_seed


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A lab of three nodes with credentials."""
    found = Layout(tmp_path / "lab")
    found.prepare()
    certificates.issue(found, "https://127.0.0.1:1", role_processes(3))
    bus.issue(found, bus.in_namespaces(found), role_processes(3), unrestricted=True)
    return found


def seeds(layout: Layout) -> dict[Path, str]:
    return {file: read_public_key(file.read_bytes()) for file in layout.dir.rglob("*.nk")}


def test_every_role_of_a_node_has_an_identity_of_its_own() -> None:
    layout = Layout(Path("/lab"))
    found = {
        identity_name(one.role, one.node): str(one.seed) for one in bus.identities(layout, sorted(role_processes(3)))
    }
    on_nodes = {
        f"{role}@{node}": f"/lab/config/{role}{suffix}.nk"
        for role in ("networks", "handler")
        for node, suffix in (("lab", ""), ("lab-2", "-2"), ("lab-3", "-3"))
    }
    # Both controllers have one, because one leads for all nodes. multus does not use the bus.
    of_the_cluster = {role: f"/lab/config/{role}.nk" for role in ("api", "controller")}
    assert found == {**on_nodes, **of_the_cluster, "administrator": "/lab/nats.nk"}
    for process in role_processes(3):
        if process.partition("-")[0] in BUS_ROLES:
            assert str(layout.nats_seed(process)) in found.values()


def test_seeds_differ_and_only_their_owner_can_read_them(layout: Layout) -> None:
    found = seeds(layout)
    assert set(found) == {
        layout.unrestricted_nats_seed,
        *(one.seed for one in bus.identities(layout, role_processes(3))),
    }
    assert len(set(found.values())) == len(found)
    assert {file.stat().st_mode & 0o777 for file in found} == {0o600}


def test_nats_server_knows_public_keys_alone(layout: Layout) -> None:
    text = layout.nats_config.read_text()
    for file, key in seeds(layout).items():
        assert text.count(key) == 1
        assert file.read_text().strip() not in text
    assert "tls {" in text


def test_seeds_are_kept_at_the_next_start(layout: Layout) -> None:
    before = seeds(layout)
    bus.issue(layout, bus.in_namespaces(layout), role_processes(3))
    assert seeds(layout) == before


def test_both_keys_are_known_while_a_seed_is_replaced(layout: Layout) -> None:
    seed = layout.nats_seed("handler-2")
    following = seed.with_name(seed.name + bus.NEXT)
    write_seed(following)
    old, new = (read_public_key(file.read_bytes()) for file in (seed, following))

    def known() -> set[str]:
        bus.write_configuration(layout, bus.in_namespaces(layout), bus.identities(layout, role_processes(3)))
        text = layout.nats_config.read_text()
        return {key for key in (old, new) if key in text}

    assert known() == {old, new}
    following.replace(seed)
    assert known() == {new}


def test_the_unrestricted_identity_is_in_the_account_of_the_streams(layout: Layout) -> None:
    text = layout.nats_config.read_text()
    key = read_public_key(layout.unrestricted_nats_seed.read_bytes())
    streams = text[text.index(f"  {STREAM_ACCOUNT} {{") : text.index(f"  {API_ACCOUNT} {{")]
    assert f'{{ nkey: "{key}", allowed_connection_types: [STANDARD, WEBSOCKET] }}' in streams
    assert BusRole.ADMINISTRATOR in text
