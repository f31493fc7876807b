"""hotnic set to be the owner does not start while KubeVirt's controllers run, and stops if they appear later."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

from services.common.domain.kubevirt.owner import OwnerSetting, is_hotplug_enabled
from services.common.kube.client import Kube
from services.common.runtime.owner import CONDITION, VmOwner
from services.common.runtime.settings import SettingsError
from tests.support.kube.node_kube import PODS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

KUBEVIRTS, CRDS, HOME = "kubevirts", "customresourcedefinitions", "kubevirt"


def install(kube: FakeKube) -> None:
    kube.put(KUBEVIRTS, HOME, "kubevirt")


def run_pod(kube: FakeKube, component: str, node: str = "node1", phase: str = "Running") -> None:
    metadata = {"labels": {"kubevirt.io": component}}
    kube.put(PODS, HOME, f"{component}-x", metadata=metadata, spec={"nodeName": node}, status={"phase": phase})


@dataclass
class Watched:
    """An owner that watches a fake API server, and the reported states of its condition."""

    kube: FakeKube
    owner: VmOwner
    conditions: list[tuple[bool, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    changes: int = 0

    def on_change(self) -> None:
        """Count a change."""
        self.changes += 1
        self.changed.set()

    async def until(self, is_hotnic: bool, timeout: float = 5) -> None:
        """Wait until hotnic is the owner, or no longer is."""
        async with asyncio.timeout(timeout):
            while self.owner.is_hotnic() is not is_hotnic:
                await self.changed.wait()
                self.changed.clear()


@asynccontextmanager
async def watching(
    tmp_path: Path, kube: FakeKube, setting: OwnerSetting = "hotnic", node: str | None = None
) -> AsyncIterator[Watched]:
    telemetry, _ = recording_telemetry("test")
    async with serving_kube(kube):
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            watched: Watched
            owner = VmOwner(
                client,
                structlog.get_logger(),
                setting,
                node=node,
                on_change=lambda: watched.on_change(),
                on_condition=lambda name, ok, why: watched.conditions.append((ok, why)) if name == CONDITION else None,
            )
            watched = Watched(kube, owner)
            task = asyncio.create_task(owner.run())
            yield watched
            task.cancel()
            await asyncio.wait([task])


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
async def test_hotnic_as_owner_does_not_start_while_kubevirts_controllers_run(
    tmp_path: Path, component: str, at: str, node: str | None, refused: bool
) -> None:
    kube = FakeKube()
    install(kube)
    run_pod(kube, component, at)
    async with watching(tmp_path, kube, node=node) as watched:
        if refused:
            with pytest.raises(SettingsError, match=rf"controllers run \(pod kubevirt/{component}-x\)") as error:
                await watched.owner.wait_synced()
            assert error.value.variable == "HOTNIC_VM_OWNER"
        else:
            await watched.owner.wait_synced()
        assert watched.owner.is_hotnic() is not refused


async def test_hotnic_is_no_owner_while_kubevirts_controllers_run(tmp_path: Path) -> None:
    kube = FakeKube()
    install(kube)
    async with watching(tmp_path, kube) as watched:
        await watched.owner.wait_synced()
        assert watched.owner.is_hotnic()
        run_pod(kube, "virt-controller")
        await watched.until(is_hotnic=False)
        kube.delete(PODS, HOME, "virt-controller-x")
        await watched.until(is_hotnic=True)
        assert [ok for ok, _ in watched.conditions] == [False, True]
        assert "kubevirt/virt-controller-x" in watched.conditions[0][1]


async def test_a_pod_with_the_label_of_a_tenant_is_no_change(tmp_path: Path) -> None:
    """Each change queues all VMs."""
    kube = FakeKube()
    install(kube)
    async with watching(tmp_path, kube) as watched:
        await watched.owner.wait_synced()
        before = watched.changes
        metadata = {"labels": {"kubevirt.io": "virt-controller"}}
        for phase in ("Pending", "Running", "Failed"):
            kube.put(PODS, "tenant", "virt-controller-x", metadata=metadata, status={"phase": phase})
        run_pod(kube, "virt-controller")
        await watched.until(is_hotnic=False)
        assert watched.changes == before + 1


@pytest.mark.parametrize("crd", [True, False], ids=["the CRD alone", "no CRD"])
async def test_kubevirt_as_owner_does_not_start_without_kubevirt(tmp_path: Path, crd: bool) -> None:
    kube = FakeKube()

    def find(_method: str, plural: str, _name: str) -> None:
        if plural == KUBEVIRTS and not crd:
            raise Refused(404, "NotFound", "the server could not find the requested resource")

    kube.before = find
    async with watching(tmp_path, kube, "kubevirt") as watched:
        with pytest.raises(SettingsError, match="the cluster has no KubeVirt object") as error:
            await watched.owner.wait_synced()
    assert error.value.variable == "HOTNIC_VM_OWNER"


@pytest.mark.parametrize("setting", ["auto", "hotnic"])
@pytest.mark.parametrize("seen", [False, True])
async def test_a_kubevirt_object_of_a_tenant_takes_nothing_from_hotnic(
    tmp_path: Path, setting: OwnerSetting, seen: bool
) -> None:
    """Who has all rights in a namespace may write the status, too."""
    kube = FakeKube()
    status = {"phase": "Deployed", "observedKubeVirtVersion": "v1.9.0"} if seen else {}
    kube.put(KUBEVIRTS, "tenant", "kubevirt", spec={"configuration": {}}, status=status)
    metadata = {"labels": {"kubevirt.io": "virt-controller"}}
    kube.put(PODS, "tenant", "virt-controller-x", metadata=metadata, status={"phase": "Running"})
    async with watching(tmp_path, kube, setting) as watched:
        await watched.owner.wait_synced()
        assert watched.owner.is_hotnic()
        assert is_hotplug_enabled("auto", watched.owner.installations.items())


@pytest.mark.parametrize("setting", ["auto", "kubevirt"])
async def test_other_settings_start_beside_kubevirt_and_watch_no_pods(tmp_path: Path, setting: OwnerSetting) -> None:
    kube = FakeKube()
    install(kube)
    run_pod(kube, "virt-controller")
    async with watching(tmp_path, kube, setting) as watched:
        await watched.owner.wait_synced()
        assert not watched.owner.is_hotnic()
        assert kube.counted("GET", PODS) == 0


@pytest.mark.parametrize("unserved", [0, 1], ids=["served with its CRD", "served after its CRD"])
async def test_kubevirt_that_is_installed_later_is_noticed_by_its_crd(tmp_path: Path, unserved: int) -> None:
    kube = FakeKube()
    kube.put(CRDS, "", "pods.example.com")
    failures = iter(range(unserved))
    following = asyncio.Event()

    def serve(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("WATCH", CRDS):
            following.set()
        # The API server serves a new type shortly after its CRD exists.
        if (method, plural) == ("GET", KUBEVIRTS) and (not served or next(failures, None) is not None):
            raise Refused(404, "NotFound", "the server could not find the requested resource")

    served = False
    kube.before = serve
    async with watching(tmp_path, kube, "auto") as watched:
        await watched.owner.wait_synced()
        assert watched.owner.is_hotnic()
        await asyncio.wait_for(following.wait(), 30)
        served = True
        install(kube)
        kube.put(CRDS, "", "kubevirts.kubevirt.io")
        # Without the CRD's watch it would take a minute.
        await watched.until(is_hotnic=False, timeout=30)
        assert kube.counted("GET", KUBEVIRTS) <= 4


async def test_a_role_that_must_not_start_exits_with_the_reason(tmp_path: Path) -> None:
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
        _, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert b"two controllers must not hot-plug one interface" in stderr
    assert kube.counted("PATCH", "virtualmachineinstances") == 0


@pytest.mark.parametrize(("setting", "observes"), [("auto", True), ("kubevirt", True), ("hotnic", False)])
async def test_what_kubevirt_can_do_is_known_while_it_is_the_owner(
    tmp_path: Path, setting: OwnerSetting, observes: bool
) -> None:
    kube = FakeKube()
    install(kube)
    async with watching(tmp_path, kube, setting) as watched:
        await watched.owner.wait_synced()
        assert (watched.owner.beside() is not None) is observes
