"""The daemon's capabilities: with all of the table a pod gets its networks, and without any one of them it does not.

The daemon runs as in its container: plugins run in the root of the node, which is mounted elsewhere.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.node.capabilities import REASONS
from tests.support.node.bounded import bounded
from tests.support.node.multus_process import MultusNode, multus_node

ALL = frozenset(REASONS["multus"])

RAW_SOCKET = """#!{python}
import json, os, socket, sys
config = json.load(sys.stdin)
try:
    # As the first thing that iptables-legacy does, which portmap and firewall execute.
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
except OSError as error:
    print(json.dumps({{"cniVersion": "1.0.0", "code": 100, "msg": f"raw socket: {{error.strerror}}"}}))
    sys.exit(1)
if os.environ["CNI_COMMAND"] == "ADD":
    print(json.dumps(config["prevResult"]))
"""


@pytest.fixture
def host(tmp_path: Path, plugins: Path, sandbox_netns: Path) -> Iterator[Path]:
    """The root of the node, as it is mounted in the container: with the network namespace that exists by now."""
    (plugins / "raw-socket").write_text(RAW_SOCKET.format(python=sys.executable))
    (plugins / "raw-socket").chmod(0o755)
    folder = tmp_path / "host"
    folder.mkdir()
    subprocess.run(["mount", "--rbind", "/", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def prepare(node: MultusNode, host: Path) -> None:
    """Let the node need every capability: a primary network with a raw socket, and leases of another user."""
    leases = node.folder / "leases"
    leases.mkdir()
    leases.chmod(0o700)
    os.chown(leases, 4711, 4711)
    primary = node.folder / "conf" / "10-primary.conflist"
    document = json.loads(primary.read_text())
    document["plugins"].append({"type": "raw-socket"})
    primary.write_text(json.dumps(document))
    node.environ["HOTNIC_HOST_ROOT"] = str(host)


async def test_the_capabilities_of_the_table_suffice(
    tmp_path: Path, plugins: Path, sandbox_netns: Path, host: Path
) -> None:
    async with multus_node(tmp_path, plugins) as node:
        prepare(node, host)
        async with node.daemon(bounded(ALL)):
            status, result = await node.shim("ADD", sandbox_netns)
            assert status == 0, result
            assert await node.shim("DEL", sandbox_netns) == (0, None)
        assert "capability missing" not in (tmp_path / "daemon.log").read_text()


@pytest.mark.parametrize("dropped", sorted(ALL))
async def test_without_one_capability_the_error_names_it(
    tmp_path: Path, plugins: Path, sandbox_netns: Path, host: Path, dropped: str
) -> None:
    async with multus_node(tmp_path, plugins) as node:
        prepare(node, host)
        async with node.daemon(bounded(ALL - {dropped})):
            status, error = await node.shim("ADD", sandbox_netns)
            assert status == 1
            assert f"(the process lacks CAP_{dropped})" in error["msg"]
        log = (tmp_path / "daemon.log").read_text()
        assert f'"capability": "CAP_{dropped}"' in log or f'"capability":"CAP_{dropped}"' in log
        # What is refused is not gone: nothing was deleted for it.
        assert "leftover sandbox cleanup" not in log
