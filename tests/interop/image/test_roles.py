"""Every role and command starts in the image: as its user, on a read-only root, without a cluster."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from services.cli.commands.run import ROLES
from tests.support.interop.docker_images import HOTNIC, container, docker, run_in

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "networks": ("HOTNIC_NODE_NAME=node",),
    "handler": ("HOTNIC_NODE_NAME=node",),
}
"""Settings without which a role does not print its configuration."""

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: none
contexts: [{name: none, context: {cluster: none, user: none}}]
clusters: [{name: none, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: none, user: {token: none}}]
"""

PROBE = """
import json, subprocess, sys, time
found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    began = time.monotonic()
    done = subprocess.run(["hotnic", *arguments], capture_output=True, text=True)
    found[name] = {"code": done.returncode, "text": done.stdout, "error": done.stderr, "took": time.monotonic() - began}
print(json.dumps(found))
"""


def probe(commands: Mapping[str, list[str]], *options: str) -> dict[str, dict[str, Any]]:
    """Run `hotnic` commands in one container; return code, text, error and duration of each."""
    done = run_in(HOTNIC, "python3", "-c", PROBE, json.dumps(commands), options=options)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("role", sorted(ROLES))
def test_role_starts(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--env={setting}" for setting in REQUIRED.get(role, ())]
    commands = {"config": ["run", role, "--print-config"], "help": ["run", role, "--", "--help"]}
    found = probe(commands, *options)
    assert {name: one["code"] for name, one in found.items()} == {"config": 0, "help": 0}, found
    assert all("HOTNIC_HEALTH_LISTEN" in one["text"] for one in found.values())
    if role == "multus":
        assert "/opt/hotnic/share/hotnic-multus" in found["config"]["text"], "it installs the image's executable"
    with capsys.disabled():
        sys.stdout.write(f"\nstart of the {role} to --print-config: {found['config']['took'] * 1000:.0f} ms ")


def test_commands_have_their_help() -> None:
    names = ("healthcheck", "addinterface", "removeinterface", "status", "doctor")
    found = probe({"hotnic": ["--help"], **{name: [name, "--help"] for name in names}})
    assert {one["code"] for one in found.values()} == {0}, found
    assert all(name in found["hotnic"]["text"] for name in names)


def test_entry_point_and_user() -> None:
    assert "addinterface" in docker("run", "--rm", "--network=none", "--read-only", HOTNIC, "--help").stdout
    assert run_in(HOTNIC, "id", "-u").stdout.strip() == "65532"


@pytest.mark.parametrize("role", ["api", "controller"])
def test_role_without_a_cluster_says_what_is_missing(role: str) -> None:
    failed = docker("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", HOTNIC, "run", role, check=False)
    assert (failed.returncode, "no KUBECONFIG, no ~/.kube/config, and not in a pod" in failed.stderr) == (2, True)


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """A folder with a kubeconfig of a cluster that does not answer."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "kubeconfig").write_text(KUBECONFIG)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)  # readable by the user of the image
    return folder


def test_controller_lives_and_is_not_ready_while_the_cluster_does_not_answer(credentials: Path) -> None:
    options = (
        f"--volume={credentials}:/credentials:ro",
        "--env=KUBECONFIG=/credentials/kubeconfig",
        "--env=HOTNIC_VM_OWNER=hotnic",
        "--env=HOTNIC_HEALTH_LISTEN=unix:/tmp/health.sock",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    )
    with container(HOTNIC, "run", "controller", options=options) as name:
        deadline = time.monotonic() + 90
        while docker("exec", name, "hotnic", "healthcheck", "--live", check=False).returncode:
            logs = docker("logs", name)
            assert time.monotonic() < deadline, f"the controller does not respond: {logs.stdout}{logs.stderr}"
        checked = docker("exec", name, "hotnic", "healthcheck", "--timeout=60s", check=False)
        assert (checked.returncode, "is not ready: " in checked.stderr) == (1, True), checked.stderr
        docker("stop", "--time=60", name)
        assert docker("inspect", "--format={{.State.ExitCode}}", name).stdout.strip() == "0"
