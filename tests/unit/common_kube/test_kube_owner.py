"""Two never drive one NIC: who is told to while KubeVirt is at work does not start, or stops acting."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

from services.common.domain.kubevirt import OwnerSetting
from services.common.kube.client import Kube
from services.common.kube.owner import CONDITION, Owner
from services.common.settings import SettingsError
from tests.support.node_kube import PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.spans import recording_telemetry

KUBEVIRTS, HOME = "kubevirts", "kubevirt"


def install(kube: FakeKube) -> None:
    kube.put(KUBEVIRTS, HOME, "kubevirt")


def run_pod(kube: FakeKube, component: str, node: str = "node1", phase: str = "Running") -> None:
    metadata = {"labels": {"kubevirt.io": component}}
    kube.put(PODS, HOME, f"{component}-x", metadata=metadata, spec={"nodeName": node}, status={"phase": phase})


@dataclass
class Watched:
    """An owner that follows a scripted API server, and what it told."""

    kube: FakeKube
    owner: Owner
    told: list[tuple[bool, str]] = field(default_factory=list)
    history: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, acts: bool) -> None:
        """Wait until it acts, or no longer does."""
        async with asyncio.timeout(5):
            while self.owner.acts() is not acts:
                await self.history.wait()
                self.history.clear()


@asynccontextmanager
async def watching(
    tmp_path: Path, kube: FakeKube, setting: OwnerSetting = "hotnic", node: str | None = None
) -> AsyncIterator[Watched]:
    telemetry, _ = recording_telemetry("test")
    async with serving_kube(kube):
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            watched: Watched
            owner = Owner(
                client,
                structlog.get_logger(),
                setting,
                node=node,
                changed=lambda: watched.history.set(),
                tell=lambda name, ok, why: watched.told.append((ok, why)) if name == CONDITION else None,
            )
            watched = Watched(kube, owner)
            following = asyncio.create_task(owner.run())
            yield watched
            following.cancel()
            await asyncio.wait([following])


@pytest.mark.parametrize(
    ("component", "at", "node", "refused"),
    [
        ("virt-controller", "node2", None, True),
        ("virt-handler", "node2", None, True),
        ("virt-controller", "node2", "node1", True),
        ("virt-handler", "node1", "node1", True),
        ("virt-handler", "node2", "node1", False),
        ("virt-operator", "node1", None, False),
        ("virt-launcher", "node1", "node1", False),
    ],
)
async def test_who_finds_kubevirt_at_work_does_not_start(
    tmp_path: Path, component: str, at: str, node: str | None, refused: bool
) -> None:
    kube = FakeKube()
    install(kube)
    run_pod(kube, component, at)
    async with watching(tmp_path, kube, node=node) as watched:
        if refused:
            with pytest.raises(SettingsError, match=f"pod kubevirt/{component}-x runs") as error:
                await watched.owner.known()
            assert error.value.variable == "HOTNIC_VM_OWNER"
        else:
            await watched.owner.known()
        assert watched.owner.acts() is not refused


async def test_kubevirt_that_comes_later_stops_it_until_it_is_gone(tmp_path: Path) -> None:
    kube = FakeKube()
    install(kube)
    async with watching(tmp_path, kube) as watched:
        await watched.owner.known()
        assert watched.owner.acts()
        run_pod(kube, "virt-controller")
        await watched.until(acts=False)
        kube.delete(PODS, HOME, "virt-controller-x")
        await watched.until(acts=True)
        assert [ok for ok, _ in watched.told] == [False, True]
        assert "kubevirt/virt-controller-x" in watched.told[0][1]


@pytest.mark.parametrize("setting", ["auto", "kubevirt"])
async def test_who_leaves_the_nics_to_kubevirt_starts_beside_it_and_watches_no_pods(
    tmp_path: Path, setting: OwnerSetting
) -> None:
    kube = FakeKube()
    install(kube)
    run_pod(kube, "virt-controller")
    async with watching(tmp_path, kube, setting) as watched:
        await watched.owner.known()
        assert not watched.owner.acts()
        assert kube.counted("GET", PODS) == 0


async def test_a_role_that_may_not_start_ends_and_says_why(tmp_path: Path) -> None:
    kube = FakeKube()
    install(kube)
    run_pod(kube, "virt-controller")
    async with serving_kube(kube):
        environ = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": write_kubeconfig(tmp_path / "kubeconfig", kube.url),
            "NATS_URL": "nats://127.0.0.1:1",
            "HOTNIC_HEALTH_LISTEN": f"unix:{tmp_path}/health.sock",
            "HOTNIC_VM_OWNER": "hotnic",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.controller", env=environ, stderr=asyncio.subprocess.PIPE
        )
        _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert b"two must never drive one NIC" in said
    assert kube.counted("PATCH", "virtualmachineinstances") == 0
