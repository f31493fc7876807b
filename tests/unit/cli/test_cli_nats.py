"""``hotnic nats``: keys that only their owner can read, and a configuration with nothing secret."""

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from schemas.bus.permissions import NODE_ROLES, BusRole, role_permissions
from services.cli.commands.nats import ROLES, ROLES_OF_NODES, nats
from services.common.bus.nkeys import read_public_key


def run(*arguments: str) -> Result:
    return CliRunner().invoke(nats, arguments)


def test_roles_are_those_of_the_table() -> None:
    assert tuple(BusRole) == ROLES
    assert set(ROLES_OF_NODES) == NODE_ROLES


def test_keys_are_made_once_and_are_their_owners(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    for nodes in (["node1"], ["node1", "node2.example.com"]):
        found = run("keys", "--dir", str(directory), *(part for node in nodes for part in ("--node", node)))
        assert found.exit_code == 0, found.output
    names = sorted(path.name for path in directory.iterdir())
    assert names == [
        "administrator.nk",
        "api.nk",
        "controller.nk",
        "handler.node1.nk",
        "handler.node2.example.com.nk",
        "networks.node1.nk",
        "networks.node2.example.com.nk",
        "reader.nk",
    ]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert run("keys", "--dir", str(directory), "--node", "node1", "--role", "node").exit_code == 0
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "node.node1.nk"} == before


def test_configuration_has_public_keys_and_the_whole_table(tmp_path: Path) -> None:
    assert run("keys", "--dir", str(tmp_path), "--node", "node1").exit_code == 0
    found = run(
        "config", "--dir", str(tmp_path), "--listen", "0.0.0.0:4222", "--tls-cert", "c.pem", "--tls-key", "k.pem"
    )
    assert found.exit_code == 0, found.output
    for path in tmp_path.iterdir():
        seed = path.read_bytes().strip()
        assert read_public_key(seed) in found.output
        assert seed.decode() not in found.output
        role, _, node = path.name.removesuffix(".nk").partition(".")
        for subject in (subject for subjects in role_permissions(role, node or None)[:2] for subject in subjects):
            assert f'"{subject}"' in found.output
    assert 'listen: "0.0.0.0:4222"' in found.output
    assert 'cert_file: "c.pem"' in found.output


def test_configuration_of_an_auth_callout_has_no_users() -> None:
    found = run("config")
    assert found.exit_code == 0
    assert "nkey" not in found.output
    for account in ("HOTNIC", "HOTNIC_API", "HOTNIC_CLIENTS"):
        assert f"  {account} {{" in found.output


@pytest.mark.parametrize(("name", "content"), [("api.nk", "nonsense"), ("multus.nk", ""), ("api.node1.nk", "")])
def test_a_wrong_key_is_named(tmp_path: Path, name: str, content: str) -> None:
    assert run("keys", "--dir", str(tmp_path), "--role", "api").exit_code == 0
    (tmp_path / name).write_text(content or (tmp_path / "api.nk").read_text())
    found = run("config", "--dir", str(tmp_path))
    assert found.exit_code == 1
    assert "identity" in found.output or name in found.output


def test_a_directory_without_keys_is_no_configuration(tmp_path: Path) -> None:
    found = run("config", "--dir", str(tmp_path))
    assert found.exit_code == 1
    assert "hotnic nats keys --dir" in found.output
