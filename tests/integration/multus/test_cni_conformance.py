"""The CNI specification's errors, passed from a plugin through daemon and shim to the runtime: code, text and details.

Covers each code that CNI specification 1.1.0, section "Error", reserves, and some that it leaves to plugins.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.multus import SHIM_NAME
from services.common.node.files import install_executable
from services.multus.container_runtime import shim
from tests.support.node.cni import RecordingPlugin
from tests.support.node.multus_daemon import SANDBOX, Daemon, cni_environment

RESERVED = {
    1: "incompatible CNI version",
    2: "unsupported field in network configuration",
    3: "container unknown or does not exist",
    4: "invalid necessary environment variables",
    5: "I/O failure",
    6: "failed to decode content",
    7: "invalid network config",
    11: "try again later",
    50: "plugin is not available",
    51: "plugin is not available, and existing containers have limited connectivity",
}
PLUGINS_OWN = {99: "reserved", 100: "first of the plugin's own", 4242: "the plugin's own", 999: "internal"}
Shim = Callable[..., Awaitable[tuple[int, Any]]]


@pytest.fixture
def run_shim(daemon: Daemon, tmp_path: Path, sandbox_netns: Path) -> Shim:
    """Return a function that executes the shim as the runtime does and returns its exit code and document."""
    folder = tmp_path / "shim"
    folder.mkdir()
    program = folder / SHIM_NAME
    install_executable(Path(shim.__file__), program)

    async def run(command: str, version: str = "1.1.0", raw: bytes | None = None, **environ: str) -> tuple[int, Any]:
        config = raw if raw is not None else json.dumps({**daemon.conf, "cniVersion": version}).encode()
        env = {**cni_environment(command, sandbox_netns), **environ}
        process = await asyncio.create_subprocess_exec(program, env=env, stdin=-1, stdout=-1, stderr=-1)
        out, _ = await asyncio.wait_for(process.communicate(config), 20)
        assert process.returncode is not None
        return process.returncode, json.loads(out) if out else None

    return run


@pytest.fixture
def primary(daemon: Daemon, recording: RecordingPlugin) -> RecordingPlugin:
    """A primary network whose only plugin is scripted."""
    config = {"cniVersion": "1.1.0", "name": "pods", "type": recording.type}
    (daemon.config.conf_dir / "10-primary.conflist").write_text(json.dumps(config))
    daemon.pod()
    return recording


@pytest.mark.parametrize(("code", "meaning"), sorted((RESERVED | PLUGINS_OWN).items()))
async def test_a_plugins_error_code_reaches_the_runtime(
    run_shim: Shim, primary: RecordingPlugin, code: int, meaning: str
) -> None:
    """Upstream fault: codes were lost, and the runtime got 999 for each of them."""
    document = {"cniVersion": "1.1.0", "code": code, "msg": meaning, "details": f"details of {code}"}
    primary.fail_with("ADD", document)
    status, error = await run_shim("ADD")
    assert (status, error["code"]) == (1, code)
    assert error["msg"].endswith(meaning)
    assert error["details"] == f"details of {code}"
    assert error["cniVersion"] in {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
    # The daemon runs DEL after the failed ADD.
    assert primary.commands == ["ADD eth0", "DEL eth0"]


@pytest.mark.parametrize("code", [50, 51])
async def test_status_reports_why_the_network_is_not_ready(run_shim: Shim, primary: RecordingPlugin, code: int) -> None:
    assert await run_shim("STATUS") == (0, None)
    primary.fail_with("STATUS", {"code": code, "msg": RESERVED[code]})
    status, error = await run_shim("STATUS")
    assert (status, error["code"]) == (1, code)
    assert RESERVED[code] in error["msg"]


async def test_check_reports_a_plugins_error(run_shim: Shim, primary: RecordingPlugin) -> None:
    assert (await run_shim("ADD"))[0] == 0
    assert await run_shim("CHECK") == (0, None)
    primary.fail_with("CHECK", {"code": 3, "msg": "gone"})
    status, error = await run_shim("CHECK")
    assert (status, error["code"]) == (1, 3)
    assert await run_shim("DEL") == (0, None)


async def test_the_daemon_uses_every_reserved_code(
    daemon: Daemon, run_shim: Shim, primary: RecordingPlugin, sandbox_netns: Path, plugins: Path
) -> None:
    def network(**changes: Any) -> dict[str, Any]:
        return {"cniVersion": "1.0.0", "name": "n", "type": primary.type, **changes}

    async def delegate(command: str, config: dict[str, Any], ifname: str = "net1") -> int:
        status, error = await daemon.delegate(command, sandbox_netns, ifname, config)
        assert status == 400, error
        return int(error["code"])

    # 1: version
    assert await delegate("ADD", network(cniVersion="9.0.0")) == 1
    assert (await run_shim("ADD", version="0.2.0"))[1]["code"] == 1
    # 3: container
    assert await delegate("CHECK", network()) == 3
    # 4: environment
    for missing in ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME"):
        assert (await run_shim("ADD", **{missing: ""}))[1]["code"] == 4, missing
    assert (await run_shim("ADD", CNI_CONTAINERID="../x"))[1]["code"] == 4
    assert (await run_shim("ADD", CNI_ARGS="K8S_POD_NAME=x"))[1]["code"] == 4
    assert (await run_shim("ADD", CNI_ARGS="no equals sign"))[1]["code"] == 4
    assert (await run_shim("ADD", CNI_NETNS=""))[1]["code"] == 4
    # 5: I/O
    broken = plugins / "broken"
    broken.write_bytes(b"\x7fELF rubbish")
    broken.chmod(0o755)
    assert await delegate("ADD", network(type="broken")) == 5
    # 6: decoding
    assert (await run_shim("ADD", raw=b"{"))[1]["code"] == 6
    primary.set_result("this is not a result")
    assert await delegate("ADD", network()) == 6
    # 7: configuration
    assert await delegate("ADD", network(type="a/b")) == 7
    assert await delegate("ADD", {"cniVersion": "1.0.0", "name": "n"}) == 7
    assert await delegate("ADD", network(name="not a name")) == 7
    # 999: missing plugin
    assert await delegate("ADD", network(type="absent")) == 999
    # 11, still in use by a guest, is tested in test_bridged_links.
    # No record is left, not even of the plugin that could not be started.
    assert daemon.record(SANDBOX) is None
