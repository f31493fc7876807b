"""The multus daemon as a process on a node of its own: directories, primary network, scripted Kubernetes API."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.kubernetes.networks import NETWORKS
from tests.support.kube.node_kube import NADS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.node.cni import bridge_config
from tests.support.node.multus_daemon import POD, POD_UID, cni_environment


async def until(condition: Callable[[], bool]) -> None:
    """Poll until a condition that another process fulfils is true."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class MultusNode:
    """A node's directories with a primary network, and the daemon's environment."""

    folder: Path
    kube: FakeKube
    environ: dict[str, str]

    @contextlib.asynccontextmanager
    async def daemon(self, limit: Callable[[], None] | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run the daemon as a process; yield it when it is ready, end it by SIGTERM and expect exit code 0.

        :param limit: called by the process before it executes the daemon (``preexec_fn``).
        """
        log = (self.folder / "daemon.log").open("ab")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.multus", env=self.environ, stdout=log, stderr=log, preexec_fn=limit
        )
        log.close()
        try:
            await self.ready()
            yield process
            if process.returncode is None:
                process.terminate()
            assert await asyncio.wait_for(process.wait(), 45) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def ready(self) -> None:
        """Wait as the runtime does: execute the shim, which waits for the daemon."""
        await until(lambda: self.conf.exists() and (self.folder / "bin" / "hotnic-multus").exists())
        status, out = await self.shim("CHECK", "", version="1.0.0")
        assert status == 1, out  # the daemon has answered: it refuses a CHECK without a network namespace

    @property
    def conf(self) -> Path:
        """The configuration that the daemon writes for the runtime."""
        return self.folder / "conf" / "00-multus.conf"

    async def shim(
        self, command: str, netns: Path | str, version: str | None = None, environ: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Execute the shim with the current configuration, for the test's pod unless the environment names another."""
        config = json.loads(self.conf.read_text())
        if version:
            config["cniVersion"] = version
        process = await asyncio.create_subprocess_exec(
            self.folder / "bin" / "hotnic-multus", env=environ or cni_environment(command, netns), stdin=-1, stdout=-1
        )
        out, _ = await asyncio.wait_for(process.communicate(json.dumps(config).encode()), 45)
        assert process.returncode is not None
        return process.returncode, json.loads(out) if out else None


@contextlib.asynccontextmanager
async def multus_node(folder: Path, plugins: Path) -> AsyncIterator[MultusNode]:
    """Prepare a node, without a daemon yet.

    :param folder: the directory of everything on the node.
    :param plugins: the plugin directory.
    """
    ipam = {"type": "host-local", "subnet": "10.77.0.0/16", "dataDir": str(folder / "leases")}
    primary = {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{"type": "bridge", "bridge": "br-pods", "isGateway": True, "ipam": ipam}],
    }
    (folder / "conf").mkdir()
    (folder / "conf" / "10-primary.conflist").write_text(json.dumps(primary))
    async with serving_kube(FakeKube()) as kube:
        metadata = {"uid": POD_UID, "annotations": {NETWORKS: "blue@pod7e0055a6880"}}
        kube.put(PODS, "default", POD, metadata=metadata, spec={}, status={})
        kube.put(NADS, "default", "blue", spec={"config": json.dumps(bridge_config(folder))})
        environ = {
            **os.environ,
            "KUBECONFIG": write_kubeconfig(folder / "kubeconfig", kube.url),
            "HOTNIC_SOCKET_DIR": str(folder / "run"),
            "HOTNIC_CNI_CONF_DIR": str(folder / "conf"),
            "HOTNIC_CNI_BIN_DIR": str(plugins),
            "HOTNIC_CNI_STATE_DIR": str(folder / "state"),
            "HOTNIC_TRACE_DIR": str(folder / "traces"),
            "HOTNIC_LOG_FORMAT": "json",
        }
        yield MultusNode(folder, kube, environ)
