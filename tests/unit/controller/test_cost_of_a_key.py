"""A run for one VM reads as many entries of the caches in a cluster of ten VMs as in one of ten thousand."""

import asyncio
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

import msgspec
import pytest

from schemas.bus.encoding import StatusKey
from schemas.bus.hotplug_status import BUCKET
from schemas.kubernetes.objects import VirtualMachineInstance
from schemas.stages import Stage
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.kube.cache.reflector import Reflector, _Stored
from services.common.reconcile import Attempt
from services.controller.projector import Tally
from services.controller.role import Controller
from tests.support.bus.memory import MemoryBus
from tests.support.bus.projecting import VM1, at_stage
from tests.support.contexts import role_context
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities
from tests.support.telemetry.spans import recording_telemetry


class Counted(dict[Any, Any]):
    """A dictionary that counts the entries that are read, those of a walk or a copy included."""

    reads = 0

    def get(self, key: Any, default: Any = None) -> Any:
        self.reads += 1
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        self.reads += len(self)
        return super().__iter__()

    def keys(self) -> KeysView[Any]:
        self.reads += len(self)
        return super().keys()

    def values(self) -> ValuesView[Any]:
        self.reads += len(self)
        return super().values()

    def items(self) -> ItemsView[Any, Any]:
        self.reads += len(self)
        return super().items()


def fill(reflector: Reflector[Any], found: Any, count: int) -> Counted:
    """Put copies of an object into a reflector, the object itself first; return its store, which counts."""
    store = reflector._store = Counted()
    for number in range(count):
        meta = found.metadata
        if number:
            names = {"name": f"{meta.name}-{number}", "uid": f"{meta.uid}-{number}"}
            owners = [msgspec.structs.replace(owner, uid=f"{owner.uid}-{number}") for owner in meta.owner_references]
            meta = msgspec.structs.replace(meta, **names, owner_references=owners, labels={})
        copy = msgspec.structs.replace(found, metadata=meta)
        reflector._replace((meta.namespace, meta.name), _Stored(meta.uid, meta.resource_version, copy))
    return store


async def reads_of_a_run(vms: int, vmi: VirtualMachineInstance, beside: Capabilities | None) -> list[int]:
    """Return how many entries of the caches of VMs, VMIs and pods and of the status bucket two runs for a VM read."""
    telemetry, _ = recording_telemetry("controller")
    bus = MemoryBus(role="controller", telemetry=telemetry)
    controller = Controller(
        role_context("controller", None, bus, telemetry),
        is_owner=lambda: beside is None,
        is_enabled=lambda: True,
        beside=lambda: beside,
    )
    bucket = bus.kv(BUCKET)
    for number in range(vms):
        await bucket.put(str(StatusKey("default", f"vm1-{number}", "x")), b"{}")
    loading = asyncio.create_task(controller.projector._bucket.run())
    while not controller.projector._bucket.loaded:  # noqa: ASYNC110
        await asyncio.sleep(0)
    entries = controller.projector._bucket._entries = Counted(controller.projector._bucket._entries or {})
    _, pod = at_stage(Stage.POD_ANNOTATED)
    stores = [
        fill(controller.vms, objects.vm(objects.nic("iface1")), vms),
        fill(controller.vmis, vmi, vms),
        fill(controller.pods, pod, vms),
    ]
    for store in (*stores, entries):
        store.reads = 0
    await controller._reconcile(VM1, Attempt())
    await controller.projector._project(VM1, Attempt())
    assert str(StatusKey(*VM1, "x")).rpartition(".")[0] in entries, "the run of the projector wrote nothing"
    loading.cancel()
    await asyncio.wait([loading])
    return [store.reads for store in (*stores, entries)]


@pytest.mark.parametrize("beside", [None, capabilities()], ids=["owner", "beside"])
async def test_a_run_reads_as_much_in_a_cluster_of_any_size(beside: Capabilities | None) -> None:
    vmi, _ = at_stage(Stage.POD_ANNOTATED)
    small, medium, large = [await reads_of_a_run(vms, vmi, beside) for vms in (10, 100, 10_000)]
    assert small == medium == large
    assert all(0 < reads < 20 for reads in small)


def test_a_tally_keeps_the_sum_of_the_labels_that_are_set() -> None:
    tally: Tally[str] = Tally()
    for key, labels in (("a", "xxy"), ("b", "x"), ("a", "z"), ("c", "z"), ("c", "")):
        tally.set(("default", key), labels)
    assert tally.total == {"x": 1, "z": 1}
    tally.clear()
    tally.set(("default", "a"), "z")
    assert tally.total == {"z": 1}
