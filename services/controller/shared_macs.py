"""Warns of VMs of one namespace that have the same MAC on the same network: a Warning Event on each of them, once.

A change costs one lookup in the index of the caches for each MAC of the changed VM, however many VMs there are; nothing
is done at a resync. Within one VM a second interface of the same MAC is refused
(:mod:`services.common.domain.eligibility`). Next: :mod:`services.controller.projector`.
"""

from itertools import chain, islice

from schemas.kubernetes.objects import VirtualMachine, VirtualMachineInstance
from services.common.domain.mac_address import SHARED_MAC, SharedMac, explain_shared_mac, find_shared_macs
from services.common.reconcile import Attempt, Reconciler, Retry
from services.common.runtime.context import RoleContext
from services.controller.apply import record_warning
from services.controller.plan.actions import PatchTarget, WarnUser
from services.controller.resting import IndexedCache

Key = tuple[str, str]

MAX_SHARED = 16
"""MACs for which one VM is warned; more of them would only make more Events."""
MAX_OTHERS = 8
"""VMs of one MAC and network that are looked at for one warning, so that many of them cost each of them no more."""


class SharedMacWarner:
    """Records the warnings of the controller that leads.

    :param vms: the cache of VMs, indexed by :func:`services.common.domain.mac_address.mac_index`.
    :param vmis: the cache of VMIs, indexed likewise.
    :ivar queue: the VMs that share a MAC and have not been warned of it.
    """

    def __init__(
        self, context: RoleContext, vms: IndexedCache[VirtualMachine], vmis: IndexedCache[VirtualMachineInstance]
    ) -> None:
        self._events = context.events
        self._vms = vms
        self._vmis = vmis
        # Only of VMs that share a MAC: MACs and NADs that a warning was recorded for.
        self._warned: dict[Key, set[tuple[str, str]]] = {}
        self.queue: Reconciler[Key] = Reconciler(
            "shared-macs", self._warn, log=context.log, meter=context.telemetry.meter
        )

    def on_change(self, key: Key) -> None:
        """Queue a VM that shares a MAC; called for each change of a VM or VMI, after its cache has it."""
        if self._find_unwarned(key):
            self.queue.add(key, source="watch")

    def _find_unwarned(self, key: Key) -> list[SharedMac]:
        shared = list(islice(find_shared_macs(self._objects(key), self._indexed), MAX_SHARED))
        # Forgotten when it is no longer shared, so that the memory does not grow.
        warned = self._warned.get(key, set()) & {_identity(one) for one in shared}
        if warned:
            self._warned[key] = warned
        else:
            self._warned.pop(key, None)
        return [one for one in shared if _identity(one) not in warned]

    def _objects(self, key: Key) -> list[VirtualMachine | VirtualMachineInstance]:
        return [found for found in (self._vms.get(*key), self._vmis.get(*key)) if found is not None]

    def _indexed(self, value: str) -> chain[VirtualMachine | VirtualMachineInstance]:
        # One more, because the VM itself may be among them.
        return chain(*(cache.indexed(value, MAX_OTHERS + 1) for cache in (self._vms, self._vmis)))

    async def _warn(self, key: Key, _attempt: Attempt) -> None:
        for shared in self._find_unwarned(key):
            for found in self._objects(key)[:1]:
                target = PatchTarget.VM if isinstance(found, VirtualMachine) else PatchTarget.VMI
                warning = WarnUser(target, SHARED_MAC, explain_shared_mac(shared), (SHARED_MAC, *_identity(shared)))
                # Nothing else would queue the key again: it has no resync.
                if not await record_warning(self._events, warning, found.metadata):
                    raise Retry("EventNotRecorded", explain_shared_mac(shared))
            # Unless the VM was deleted meanwhile: what is remembered of it has been forgotten.
            if self._objects(key):
                self._warned.setdefault(key, set()).add(_identity(shared))
            # They did not change, so nothing else queues them.
            for name in shared.others:
                if _identity(shared) not in self._warned.get((key[0], name), ()):
                    self.queue.add((key[0], name), source="watch")


def _identity(shared: SharedMac) -> tuple[str, str]:
    return shared.use.mac, shared.use.nad
