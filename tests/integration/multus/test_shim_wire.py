"""hotnic's shim against upstream's: the same calls and the same answers of the daemon; what it sends, and how it ends.

The daemon answers what upstream's has answered, byte by byte, so this is also hotnic's shim beside upstream's daemon.
"""

import asyncio
import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from schemas.multus import SHIM_NAME
from services.common.node.files import install_executable
from services.multus.container_runtime import shim
from tests.support.multus_wire.daemon import RecordedDaemon, serving_recorded
from tests.support.multus_wire.recording import (
    RUNTIME_STATUS,
    V4_2_4,
    V4_3_0,
    V4_3_0_CNI_1_0_0,
    WireExchange,
    WireRecording,
    WireStep,
    response_of,
)

ENVIRONMENT: Final = ("LD_LIBRARY_PATH", "PATH")
"""What upstream's shim passes on of the runtime's environment: everything. The daemon reads CNI variables only."""


@dataclass(frozen=True)
class Outcome:
    """How a run of the shim ended.

    :ivar output: the decoded standard output; the message of an error is left out of it.
    """

    exit: int
    output: Any
    message: str = ""


class ShimRunner:
    """Runs the shim against a recorded daemon."""

    def __init__(self, folder: Path, daemon: RecordedDaemon) -> None:
        self.daemon = daemon
        self._plugin = folder / SHIM_NAME
        self._socket_dir = f',"daemonSocketDir":{json.dumps(str(folder))}}}'
        install_executable(Path(shim.__file__), self._plugin)

    async def run(self, env: dict[str, str], stdin: str, exchanges: tuple[WireExchange, ...]) -> Outcome:
        """Run it once, and check what it sends against what upstream's shim has sent."""
        self.daemon.requests.clear()
        self.daemon.others.clear()
        calls = [one for one in exchanges if one.request.path == "/cni"]
        self.daemon.next = [one.response for one in calls]
        # The only change to the configuration: where the socket is.
        config = stdin.removesuffix("}") + self._socket_dir
        process = await asyncio.create_subprocess_exec(self._plugin, env=env, stdin=-1, stdout=-1, stderr=-1)
        out, _ = await asyncio.wait_for(process.communicate(config.encode()), 60)
        assert len(self.daemon.requests) == len(calls)
        for ours, theirs in zip(self.daemon.requests, (one.request for one in calls), strict=True):
            assert (ours.start, ours.headers["host"]) == (theirs.start, theirs.headers["host"])
            assert ours.headers["content-type"] == theirs.headers["content-type"]
            assert ours.document.keys() == theirs.document.keys()
            sent = {key: value for key, value in theirs.environment.items() if key not in ENVIRONMENT}
            assert ours.environment == sent
            assert ours.cni_config.decode().replace(self._socket_dir, "}") == theirs.cni_config.decode() == stdin
        # One check of the daemon's health before the call; upstream's shim sends it as POST with the body `null`.
        assert [one.start for one in self.daemon.others] == ["GET /healthz HTTP/1.1"] * len(calls)
        assert process.returncode is not None
        return outcome(process.returncode, out.decode())


def outcome(code: int, text: str) -> Outcome:
    """Return how a run ended."""
    if code == 0:
        return Outcome(code, json.loads(text) if text else None)
    document = json.loads(text)
    return Outcome(code, {"code": document["code"]}, document["msg"])


def environment_of(step: WireStep) -> dict[str, str]:
    """Return the environment of a recorded run, with that of the call where it is complete."""
    assert step.shim is not None
    return step.exchanges[-1].request.environment if step.exchanges else step.shim.env


RUNS: Final = [
    (recording, step)
    for recording, base in ((V4_3_0, None), (V4_3_0_CNI_1_0_0, V4_3_0), (V4_2_4, V4_3_0))
    for step in recording.steps
    if step.shim is not None and (base is None or step != base.step(step.name))
]


@pytest.mark.parametrize(("recording", "step"), RUNS, ids=[f"{one.label} {step.name}" for one, step in RUNS])
async def test_the_runtime_sees_what_upstreams_shim_shows(
    tmp_path: Path, recording: WireRecording, step: WireStep
) -> None:
    recorded = step.shim
    assert recorded is not None
    expected = outcome(recorded.exit, recorded.stdout)
    async with serving_recorded(tmp_path / "multus.sock") as daemon:
        found = await ShimRunner(tmp_path, daemon).run(environment_of(step), recorded.stdin, step.exchanges)
    if step.name == "shim-version":
        # 0.1.0 and 0.2.0 have results of another form, and no runtime of today asks for them.
        expected.output["supportedVersions"] = expected.output["supportedVersions"][2:]
    if step.exchanges and step.exchanges[-1].response is None:
        # The call may have had an effect, so the runtime should try again.
        expected = replace(expected, output={"code": 11}, message="closed the connection without a response")
    elif step.exchanges and expected.exit:
        # Upstream's shim adds its configuration, and then says nothing more.
        expected = replace(expected, message=response_of(step.exchanges[-1]).body.decode().strip())
    elif expected.exit:
        expected = replace(expected, message="does not allow CHECK")
    assert (found.exit, found.output) == (expected.exit, expected.output)
    assert expected.message in found.message


async def test_calls_of_the_runtime(tmp_path: Path) -> None:
    """The kubelet's pods on containerd 1.6, and the STATUS of containerd 2.4."""
    added, deleted = V4_3_0.exchange("runtime-add: ADD eth0"), V4_3_0.exchange("runtime-del")
    (status,) = RUNTIME_STATUS.exchanges
    results = {}
    async with serving_recorded(tmp_path / "multus.sock") as daemon:
        runner = ShimRunner(tmp_path, daemon)
        for exchange in (added, deleted, status):
            request = exchange.request
            stdin = base64.b64decode(request.document["config"]).decode()
            results[exchange.label] = await runner.run(request.environment, stdin, (exchange,))
    result = response_of(added).document["Result"]
    versioned = [{**ip, "version": "4"} for ip in result["ips"]]
    assert results == {
        added.label: Outcome(0, {**result, "cniVersion": "0.3.1", "ips": versioned}),
        # Upstream's daemon has answered 400; both shims hide it, so that the pod can be deleted.
        deleted.label: Outcome(0, None),
        status.label: Outcome(0, None),
    }
