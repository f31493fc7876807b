"""A lab with several nodes: names, settings of each node's processes, joined bridges, refused options."""

import asyncio
import dataclasses
import json
import os
from pathlib import Path

import msgspec
import pytest
import structlog
from click.testing import CliRunner

from lab.cli.lab import up
from lab.layout import BUS_ROLES, node_name, role_processes, split_name
from lab.node.uplinks import Uplinks, bridges_of, uplink
from lab.supervisor import components
from schemas.kubernetes.objects import NetworkAttachmentDefinition
from services.common.reconcile import Attempt, Retry


def test_every_node_has_its_own_node_processes_and_two_nodes_have_a_controller(
    parameters: components.LabParameters,
) -> None:
    lab = dataclasses.replace(parameters, nodes=3)
    first, second, third = (
        {split_name(name)[0] for name in lab.components if split_name(name)[1] == node} for node in (1, 2, 3)
    )
    assert third == {"containerd", "networks", "multus", "handler", "node"}
    assert second == third | {"controller"}
    assert first == set(parameters.components)
    assert sorted(name for together in lab.stop_groups for name in together) == sorted(lab.components)
    assert set(role_processes(3)) == {*lab.roles}
    assert split_name("controller-manager") == ("controller-manager", 1)


def test_processes_of_a_node_have_its_name_and_credentials_of_their_own(
    parameters: components.LabParameters,
) -> None:
    lab = dataclasses.replace(parameters, nodes=3)
    for name in ("networks", "multus", "handler", "node"):
        one, three = (components.process_spec(lab, process, {}) for process in (name, f"{name}-3"))
        assert three.argv == one.argv
        assert three.log.name == f"{name}-3.log"
        assert three.env["HOTNIC_NODE_NAME"] == node_name(3) == "lab-3"
        changed = {key for key in three.env if one.env.get(key) != three.env[key]}
        # One node's process is the scheduler and the virt-controller of all.
        of_the_node = {"HOTNIC_CLUSTER", "HOTNIC_UPLINK"} if name == "node" else {"KUBECONFIG"}
        of_the_bus = {"NATS_NKEY"} if name in BUS_ROLES else set()
        assert changed == {"HOTNIC_NODE_NAME", *of_the_node, *of_the_bus}
    identities = [
        components.process_spec(lab, name, {}).env["HOTNIC_IDENTITY"] for name in ("controller", "controller-2")
    ]
    assert len(set(identities)) == 2
    assert "hotnic lab exec --dir" in (command := components.manual_command(lab, "handler-3"))
    assert " --node lab-3 -- env " in command
    assert command.endswith("-m services.handler")


@pytest.mark.parametrize(
    ("config", "bridges"),
    [
        ({"type": "bridge", "bridge": "br-blue"}, {"br-blue"}),
        (
            {"plugins": [{"type": "bridge", "bridge": "br1"}, {"type": "tuning"}, {"type": "bridge", "bridge": "br2"}]},
            {"br1", "br2"},
        ),
        ({"type": "bridge"}, set()),
        ({"type": "macvlan", "bridge": "no"}, set()),
        ({"type": "bridge", "bridge": "; reboot"}, set()),
        ({"type": "bridge", "bridge": "longer-than-15-b"}, set()),
        ({"plugins": "none"}, set()),
        ([], set()),
    ],
)
def test_bridges_that_are_joined_are_those_that_a_nad_names(config: object, bridges: set[str]) -> None:
    assert bridges_of(json.dumps(config)) == bridges
    assert bridges_of("{") == set()
    assert all(len(uplink(bridge)) <= 15 for bridge in bridges)


@pytest.mark.parametrize("option", [("--kubevirt", "1.9"), ("--kubernetes", "1.36", "--kubelet")])
def test_options_that_work_with_one_node_only_are_refused(option: tuple[str, ...]) -> None:
    done = CliRunner().invoke(up, ["--nodes", "2", *option])
    assert done.exit_code == 2
    assert " works with one node only: leave out --nodes" in done.output


async def test_commands_that_do_not_end_are_killed_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what the shell waits for."""
    fake = tmp_path / "ip"
    fake.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    nad = msgspec.convert(
        {"metadata": {"name": "blue"}, "spec": {"config": json.dumps({"type": "bridge", "bridge": "blue"})}},
        NetworkAttachmentDefinition,
    )
    uplinks = Uplinks(lambda *_: nad, "lab-2", "/proc/1/ns/net", structlog.get_logger(), deadline=0.5)
    with pytest.raises(Retry, match=r"blue: the commands did not end within 0\.5 s"):
        await uplinks.reconcile(("default", "blue"), Attempt())
    process = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
    async with asyncio.timeout(45):
        while process.exists():  # noqa: ASYNC110, ASYNC240 (it is the shell's child)
            await asyncio.sleep(0.01)
