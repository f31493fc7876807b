"""What stands around a VM that waits: read late, only what its reasons ask for, and only beside KubeVirt."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.stages import OperationKind, Stage
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ
from services.common.kube.client import Kube
from services.controller.waiting import Waiting
from tests.support.kube.node_kube import PODS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities
from tests.support.telemetry.spans import recording_telemetry

KEY = ("default", "vm1")
BESIDE = capabilities("v1.9.0", namespace="kubevirt")
VMI = objects.vmi(objects.nic("blue"), owned=True)


def waiting_for(reason: str) -> list[InterfaceHotplugStatus]:
    return [InterfaceHotplugStatus("blue", "net1", OperationKind.PLUG, Stage.POD_ANNOTATED, "op", reason=reason)]


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[tuple[FakeKube, Kube]]:
    telemetry, _ = recording_telemetry("controller")
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving_kube(FakeKube()))
        config = write_kubeconfig(tmp_path / "kubeconfig", served.url)
        client = await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test")
        yield served, await stack.enter_async_context(client)


async def test_surroundings_are_read_after_a_while_and_forgotten_with_the_reason(kube: tuple[FakeKube, Kube]) -> None:
    served, client = kube
    due = asyncio.Event()
    waiting = Waiting(client, lambda _key: due.set(), patience=0.0)
    status = waiting_for("WillMigrate")
    assert await waiting.read(KEY, status, VMI, [], None) is NOTHING_READ
    assert await waiting.read(KEY, status, VMI, [], BESIDE) is NOTHING_READ
    assert served.requests == [], "an operation that goes on is not asked about"
    await due.wait()
    served.put(
        "virtualmachineinstancemigrations",
        "default",
        "update-1",
        metadata={"labels": {"kubevirt.io/vmi-name": "vm1"}},
        spec={"vmiName": "vm1"},
        status={"phase": "Pending"},
    )
    around = await waiting.read(KEY, status, VMI, [], BESIDE)
    assert [one.status.phase for one in around.migrations] == ["Pending"]
    assert (around.controllers, around.attachers) == ((), None)
    asked = {plural for _, plural, _ in served.requests}
    assert asked == {"virtualmachineinstancemigrations", "pods", "leases"}
    assert await waiting.read(KEY, status, VMI, [], BESIDE) is around, "not read again at each change"
    waiting_for_guest = waiting_for("WaitingForGuestAttached")
    assert await waiting.read(KEY, waiting_for_guest, VMI, [], BESIDE) is NOTHING_READ
    waiting.close()


async def test_what_may_not_be_read_is_left_out(kube: tuple[FakeKube, Kube]) -> None:
    served, client = kube

    def refuse_events(_method: str, plural: str, _name: str) -> None:
        if plural == "events":
            raise Refused(403, "Forbidden", "events is forbidden")

    served.before = refuse_events
    served.put(PODS, "kubevirt", "virt-handler-1", metadata={"labels": {"kubevirt.io": "virt-handler"}})
    waiting, status = Waiting(client, lambda _key: None, patience=0.0), waiting_for("WaitingForGuestAttached")
    await waiting.read(KEY, status, VMI, [objects.pod()], BESIDE)
    around = await waiting.read(KEY, status, VMI, [objects.pod()], BESIDE)
    assert (around.events, around.handlers) == ((), ())
    waiting.close()
