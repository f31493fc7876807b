"""What the loops share: the API, the version, the pace, and guarded patches.

It decides nothing. Each run reads the objects from the API server; watches only trigger runs. Next: `vms.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from lab.kubevirt.pace import Pace
from lab.kubevirt.versions import Behaviour, behaviour_of
from lab.node.resources import PODS, Key, find
from schemas.kubernetes.objects import CREATED_BY_LABEL, Resource
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, NotFound, PatchTestFailed
from services.common.kube.patch import Op, add, pointer, test
from services.common.reconcile import Retry
from services.common.telemetry.logs import Log

Object = dict[str, Any]
LoopName: TypeAlias = Literal["vm", "vmi", "domain", "migration", "workload", "pod"]

MIGRATIONS: Resource[Object] = Resource(
    "kubevirt.io", "v1", "virtualmachineinstancemigrations", "VirtualMachineInstanceMigration", dict[str, Any]
)
PREFERENCES: Resource[Object] = Resource(
    "instancetype.kubevirt.io", "v1beta1", "virtualmachinepreferences", "VirtualMachinePreference", dict[str, Any]
)
INSTALLATIONS: Resource[Object] = Resource("kubevirt.io", "v1", "kubevirts", "KubeVirt", dict[str, Any])
EVENTS: Resource[Object] = Resource("", "v1", "events", "Event", dict[str, Any])

CONFLICT_PAUSE = 0.01
"""Seconds until an object that changed meanwhile is read again."""


@dataclass(slots=True)
class Play:
    """What the loops share.

    :ivar nodes: the nodes that launcher pods run on; empty if a scheduler places them.
    :ivar grace: seconds from MigrationRequired=False to True; 20 with a quiet VMI.
    :ivar update_delay: seconds from MigrationRequired=True to the workload update.
    :ivar restart_delay: seconds after which a VM whose guest ended is started again.
    :ivar default_binding: binding of the interface of a VM that lists none.
    :ivar not_migratable: VMIs that are not migratable, besides those with a bridge on the pod network.
    :ivar installation: the KubeVirt object as last seen.
    :ivar trigger: queues a key of a loop.
    """

    kube: Kube
    version: str
    pace: Pace
    log: Log
    nodes: tuple[str, ...] = ("kvnode1", "kvnode2")
    grace: float = 20.0
    update_delay: float = 5.0
    restart_delay: float = 12.0
    default_binding: str = "bridge"
    not_migratable: set[Key] = field(default_factory=set)
    installation: Object = field(default_factory=dict)
    trigger: Callable[[LoopName, Key], None] = lambda _loop, _key: None

    @property
    def behaviour(self) -> Behaviour:
        """The behaviour of the version with the feature gates that are on now."""
        configuration = self.installation.get("spec", {}).get("configuration") or {}
        gates = (configuration.get("developerConfiguration") or {}).get("featureGates") or []
        return behaviour_of(self.version, gates)

    @property
    def methods(self) -> list[str]:
        """The workload update methods."""
        strategy = self.installation.get("spec", {}).get("workloadUpdateStrategy") or {}
        return list(strategy.get("workloadUpdateMethods") or [])

    def later(self, seconds: float, loop: LoopName, key: Key) -> None:
        """Queue a key of a loop after some time."""
        asyncio.get_running_loop().call_later(seconds, self.trigger, loop, key)

    async def preferred_model(self, vm: Object) -> str:
        """Return the interface model that the VM's preference names; it is empty if there is none."""
        name = (vm["spec"].get("preference") or {}).get("name")
        found: Object | None = None
        if name:
            found = await find(self.kube, PREFERENCES, (vm["metadata"]["namespace"], name))
        devices = (found or {}).get("spec", {}).get("devices") or {}
        return str(devices.get("preferredInterfaceModel") or "")

    async def pods_of(self, vmi: Object) -> list[Object]:
        """Return the launcher pods of a VMI."""
        meta = vmi["metadata"]
        listing = await self.kube.list(PODS, meta["namespace"], labels=f"{CREATED_BY_LABEL}={meta['uid']}")
        return listing.items

    async def patch(self, resource: Resource[Object], obj: Object, ops: list[Op], subresource: str = "") -> Object:
        """Patch an object that is still the one that was read; return it as it is then.

        :raises PatchTestFailed: a `test` of `ops` failed.
        """
        meta = obj["metadata"]
        key = (meta["namespace"], meta["name"])
        guarded = [test("/metadata/uid", meta["uid"]), *ops]
        return await self.kube.json_patch(resource, *key, guarded, subresource=subresource or None)

    async def set_status(
        self, resource: Resource[Object], obj: Object, fields: Object, subresource: str = ""
    ) -> Object:
        """Set fields of an object's status where they differ; `None` removes one. Return the object as it is then."""
        before = obj.get("status") or {}
        after = {key: value for key, value in {**before, **fields}.items() if value is not None}
        if after == before and "status" in obj:
            return obj
        guard = test("/metadata/resourceVersion", obj["metadata"]["resourceVersion"])
        return await self.patch(resource, obj, [guard, add("/status", after)], subresource)

    async def record(self, event: Object) -> None:
        """Create a Kubernetes Event."""
        await self.kube.create(EVENTS, event["metadata"]["namespace"], event)


def key_of(obj: Object) -> Key:
    """Return namespace and name of an object."""
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def set_metadata(obj: Object, kind: str, values: dict[str, str]) -> list[Op]:
    """Return patch operations that set annotations or labels where they differ.

    :param kind: `annotations` or `labels`.
    """
    present = obj["metadata"].get(kind) or {}
    changed = {key: value for key, value in values.items() if present.get(key) != value}
    if not changed:
        return []
    if not present:
        return [add(pointer("metadata", kind), changed)]
    return [add(pointer("metadata", kind, key), value) for key, value in changed.items()]


@asynccontextmanager
async def retrying() -> AsyncIterator[None]:
    """Queue the key again when an object changed or went between read and write.

    :raises Retry: it did.
    """
    try:
        yield
    except (Conflict, PatchTestFailed, NotFound) as error:
        raise Retry("Changed", str(error), after=CONFLICT_PAUSE) from error
