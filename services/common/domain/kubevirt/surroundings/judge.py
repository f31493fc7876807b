"""Judge the objects around a VM: which migration counts, which Event is about an interface, which pods are ready. Pure.

Next: :mod:`services.common.domain.kubevirt.surroundings.refine`, the reasons that follow.
"""

from collections.abc import Collection, Iterable
from typing import Any

from schemas.kubernetes.kubevirt import VirtualMachineInstanceMigration
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.pod_volumes import PodWithVolumes
from schemas.names import interface_hash
from services.common.domain.kubevirt.migration import find_condition
from services.common.domain.kubevirt.surroundings.observed import ReportedEvent, Surroundings
from services.common.domain.kubevirt.times import seconds_between
from services.common.domain.status.kubernetes_events import is_about_interface

COMPONENT = "app.kubernetes.io/component"
NETWORKS, MULTUS = "networks", "multus"
"""Values of :data:`COMPONENT` of hotnic's roles."""
RUNS_NETWORKS = "hotnic.io/networks"
"""Label, ``true`` on a pod of multus that runs networks in the same process."""
APP = "app"
UPSTREAM_NETWORKS, UPSTREAM_MULTUS = "dynamic-networks-controller", "multus"
"""Values of :data:`APP` of upstream's pods, as its manifests set them."""
ATTACHER_SELECTORS = (f"{COMPONENT} in ({NETWORKS},{MULTUS})", f"{APP} in ({UPSTREAM_NETWORKS},{UPSTREAM_MULTUS})")
"""Label selectors of the pods that :func:`find_attacher_problem` judges."""
TARGET_LABEL = "kubevirt.io/migrationJobUID"
"""Label of the target pod of a migration: the migration's UID."""
MIGRATES = frozenset({"TargetReady", "Running"})
"""Phases of a migration that copies the guest, or begins to."""
ENDED = frozenset({"Succeeded", "Failed"})
"""Phases of a migration that has ended."""
STALE_LEASE = 60.0
"""Seconds without a renewal after which the leader of virt-controller is gone. It renews the Lease every few seconds,
and the clocks of nodes differ."""
EVENT_SLACK = 1.0
"""Seconds that an Event of an operation may be older than it: times of Events are whole seconds."""
MAX_EVENT, KEPT_START = 320, 80
"""Characters of an Event in a reason, and how many of them are its first ones: the cause of an error is at its end."""
SYNC_REASONS = frozenset({"NicHotplug", "SyncFailed"})
"""Reasons of virt-handler's Events about a guest that it cannot change; they need not name the interface."""


def is_ready(pod: Pod | PodWithVolumes) -> bool:
    """Return whether a pod is ready."""
    ready = find_condition(pod, "Ready")
    return ready is not None and ready.status == "True"


def find_attacher_problem(pods: Iterable[PodWithVolumes]) -> tuple[str, str] | None:
    """Return why nobody attaches networks to the running pods of a node; ``None`` when somebody does.

    A Multus daemon may have labels of its own, so one that is not found is no problem: the networks controller does
    not get ready without it. Any user may set the labels; a pod that mounts nothing of the node is neither.

    :param pods: the pods on the node with the labels of :data:`ATTACHER_SELECTORS`.
    :return: the code of the reason, and the pod that it is about, empty if there is none.
    """
    controllers, daemons = [], []
    for pod in pods:
        if not pod.host_paths():
            continue
        labels = pod.metadata.labels
        component, app = labels.get(COMPONENT), labels.get(APP)
        # A pod may be both, where one process runs the roles of a node.
        if component == NETWORKS or labels.get(RUNS_NETWORKS) == "true" or app == UPSTREAM_NETWORKS:
            controllers.append(pod)
        if component == MULTUS or app == UPSTREAM_MULTUS:
            daemons.append(pod)
    for code, found in (("NetworksControllerNotReady", controllers), ("MultusNotReady", daemons)):
        if found and not any(map(is_ready, found)):
            return code, f"{found[0].metadata.namespace}/{found[0].metadata.name}"
    return None if controllers else ("NoNetworksController", "")


def explain_absence(around: Surroundings) -> str:
    """Return why nobody acts as virt-controller; empty when somebody does, or when it is unknown."""
    pods, lease = around.controllers, around.controller_lease
    if pods is None:
        return ""
    if not any(map(is_ready, pods)):
        return "none of its pods is ready"
    age = seconds_between(lease.spec.renew_time, around.read_at) if lease is not None else None
    if lease is None or age is None or age <= STALE_LEASE:
        return ""
    return (
        f"its leader {lease.spec.holder_identity or 'unknown'} has not renewed its Lease since {lease.spec.renew_time}"
    )


def find_unfinished_migration(around: Surroundings) -> VirtualMachineInstanceMigration | None:
    """Return the newest migration that has not ended."""
    return _newest(one for one in around.migrations if one.status.phase not in ENDED)


def find_failed_migration(around: Surroundings, since: str | None) -> VirtualMachineInstanceMigration | None:
    """Return the newest migration if it failed.

    :param since: RFC 3339; an earlier migration does not count, nor any if it is ``None``.
    """
    newest = _newest(around.migrations)
    if newest is None or newest.status.phase != "Failed":
        return None
    age = seconds_between(since, newest.metadata.creation_timestamp)
    return newest if age is not None and age >= -EVENT_SLACK else None


def find_target(around: Surroundings, migration: VirtualMachineInstanceMigration) -> Pod | None:
    """Return the target pod of a migration."""
    uid = migration.metadata.uid
    return next((pod for pod in around.launchers if pod.metadata.labels.get(TARGET_LABEL) == uid), None)


def why_unschedulable(pod: Pod) -> str:
    """Return the scheduler's words on a pod that it cannot place; empty when it can, or has not tried."""
    scheduled = find_condition(pod, "PodScheduled")
    if scheduled is None or scheduled.status == "True" or scheduled.reason != "Unschedulable":
        return ""
    return scheduled.message or "the scheduler gives no reason"


def find_event(
    events: Iterable[ReportedEvent],
    about: str,
    since: str | None,
    interface: str = "",
    others: Collection[str] = (),
) -> str:
    """Return the newest Event about an object as text, one line; empty when there is none.

    :param about: UID of the object.
    :param since: RFC 3339; an earlier Event does not count. ``None`` if unknown: every one counts that names the
        interface.
    :param interface: name of an interface that the Event has to name, if it is not one about the whole guest.
    :param others: names of the VM's other interfaces; an Event that names one of them is not about the whole guest.
    """
    found = [
        event
        for event in events
        if event.about == about
        and _is_since(event, since)
        and (
            not interface
            or is_about_interface(event.message, interface)
            or (since is not None and event.reason in SYNC_REASONS and not _names_one(event.message, others))
        )
    ]
    if not found:
        return ""
    newest = max(found, key=lambda event: event.time or "")
    text = f"{newest.reason}: {newest.message}"
    return text if len(text) <= MAX_EVENT else f"{text[:KEPT_START]}…{text[KEPT_START + 1 - MAX_EVENT :]}"


def parse_event(event: dict[str, Any]) -> ReportedEvent:
    """Return an Event of the API server. Its fields may be missing: any program writes them."""
    series, about, metadata = (event.get(key) or {} for key in ("series", "involvedObject", "metadata"))
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    found = next((time for time in times if time), metadata.get("creationTimestamp"))
    return ReportedEvent(
        str(about.get("uid") or ""),
        str(event.get("reason") or ""),
        str(event.get("message") or ""),
        str(found) if found else None,
    )


def _names_one(message: str, interfaces: Collection[str]) -> bool:
    # virt-handler names a link in the pod, libvirt the device's alias.
    return any(f"ua-{name}'" in message or interface_hash(name) in message for name in interfaces)


def _is_since(event: ReportedEvent, since: str | None) -> bool:
    age = seconds_between(since, event.time)
    return since is None or (age is not None and age >= -EVENT_SLACK)


def _newest(found: Iterable[VirtualMachineInstanceMigration]) -> VirtualMachineInstanceMigration | None:
    return max(found, key=lambda one: (one.metadata.creation_timestamp or "", one.metadata.name), default=None)
