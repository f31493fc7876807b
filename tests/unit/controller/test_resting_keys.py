"""A resync leaves out the keys of which nothing that matters has changed since a run with nothing to do, no others."""

import msgspec
import pytest

from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from services.controller.resting import RestingKeys
from tests.support.bus.projecting import VM1, FakeCache
from tests.support.observed import objects


class Caches:
    """The caches of one VM, and the keys that rest."""

    def __init__(self) -> None:
        self.vms: FakeCache[VirtualMachine] = FakeCache(objects.vm())
        self.vmis: FakeCache[VirtualMachineInstance] = FakeCache(objects.vmi())
        self.pods: FakeCache[Pod] = FakeCache(objects.pod())
        self.now = 0.0
        self.resting = RestingKeys(self.vms, self.vmis, self.pods, mean=600.0, clock=lambda: self.now)

    def rests(self) -> bool:
        """Return whether a resync leaves the VM out."""
        return self.resting.rests(VM1)


@pytest.mark.parametrize("kind", ["vms", "vmis", "pods"])
def test_a_key_rests_until_one_of_its_objects_changes(kind: str) -> None:
    caches = Caches()
    assert not caches.rests()
    caches.resting.add(VM1, caches.resting.objects(VM1))
    assert caches.rests()
    stored = getattr(caches, kind).objects_by_key
    for key, found in stored.items():
        meta = msgspec.structs.replace(found.metadata, resource_version="900", generation=9, labels={"a": "b"})
        stored[key] = msgspec.structs.replace(found, metadata=meta)
    assert caches.rests()
    for key, found in stored.items():
        meta = msgspec.structs.replace(found.metadata, annotations={"a": "b"})
        stored[key] = msgspec.structs.replace(found, metadata=meta)
    assert not caches.rests()


def test_a_new_pod_and_a_deleted_vmi_end_the_rest() -> None:
    caches = Caches()
    caches.resting.add(VM1, caches.resting.objects(VM1))
    target = objects.pod(name="target")
    caches.pods.objects_by_key["default", "target"] = target
    assert not caches.rests()
    caches.resting.add(VM1, caches.resting.objects(VM1))
    caches.vmis.objects_by_key.clear()
    assert not caches.rests()


def test_a_change_during_the_run_is_not_taken_for_seen() -> None:
    caches = Caches()
    before = caches.resting.objects(VM1)
    caches.vms.objects_by_key[VM1] = objects.vm(objects.nic("iface1"))
    caches.resting.add(VM1, before)
    assert not caches.rests()


@pytest.mark.parametrize(("seconds", "rests"), [(299.0, True), (901.0, False)])
def test_a_rest_ends_by_itself(seconds: float, rests: bool) -> None:
    caches = Caches()
    caches.resting.add(VM1, caches.resting.objects(VM1))
    caches.now = seconds
    assert caches.rests() is rests


def test_objects_that_were_read_past_the_caches_are_not_the_cached_ones() -> None:
    cached = Caches().resting.objects(VM1)
    assert cached.include(cached.vm, cached.vmi, cached.pods[0])
    assert cached.include(cached.vm, cached.vmi, None)
    assert not cached.include(objects.vm(), cached.vmi, None)
    assert not cached.include(cached.vm, cached.vmi, objects.pod())
