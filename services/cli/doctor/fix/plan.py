"""Make steps of the changes that findings carry: one patch for each object, then the changes of the node.

A patch tests the object's UID and every annotation that a decision is based on, so it applies to the state of the
snapshot or not at all. A change of the node is checked again when it is applied.
Pure. Next: :mod:`services.cli.doctor.fix.apply`.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from schemas.kubernetes.networks import NETWORKS
from services.cli.doctor.fix.changes import (
    AnnotationRemoval,
    ElementRemoval,
    Fix,
    FixTarget,
    LeaseRemoval,
    LinkRemoval,
    NodeChange,
    ObjectChange,
    RecordRemoval,
)
from services.cli.doctor.snapshot import Finding
from services.common.domain.spec_patch import PatchOp, annotation_path


class ObjectPatch(msgspec.Struct, frozen=True):
    """The changes of one object, as one guarded JSON patch."""

    target: FixTarget
    changes: tuple[ObjectChange, ...]
    ops: tuple[PatchOp, ...]


FixStep: TypeAlias = ObjectPatch | LinkRemoval | RecordRemoval | LeaseRemoval


class FixPlan(msgspec.Struct, frozen=True):
    """What to do.

    :ivar steps: in this order.
    :ivar postponed: changes whose subject may belong to an operation that has just begun.
    """

    steps: tuple[FixStep, ...]
    postponed: tuple[Fix, ...] = ()


def plan_fixes(findings: Iterable[Finding], now: float) -> FixPlan:
    """Return the steps for the findings that carry a change.

    :param now: seconds since the epoch.
    """
    patched: dict[FixTarget, list[ObjectChange]] = {}
    on_node: list[NodeChange] = []
    postponed: list[Fix] = []
    for change in dict.fromkeys(finding.fix for finding in findings):
        if change is None:
            continue
        if not isinstance(change, LinkRemoval) and now < change.not_before:
            postponed.append(change)
        elif isinstance(change, AnnotationRemoval | ElementRemoval):
            patched.setdefault(change.target, []).append(change)
        else:
            on_node.append(change)
    patches = [ObjectPatch(target, tuple(changes), _ops(target, changes)) for target, changes in patched.items()]
    return FixPlan((*patches, *on_node), tuple(postponed))


def changes_of(step: FixStep) -> tuple[Fix, ...]:
    """Return the changes that a step makes."""
    return step.changes if isinstance(step, ObjectPatch) else (step,)


def _ops(target: FixTarget, changes: Iterable[ObjectChange]) -> tuple[PatchOp, ...]:
    expected: dict[str, str | None] = {}
    removed: list[str] = []
    links: set[str] = set()
    for change in changes:
        expected |= dict(change.expected)
        if isinstance(change, ElementRemoval):
            links.add(change.link)
        else:
            removed.append(change.key)
    ops: list[PatchOp] = [{"op": "test", "path": "/metadata/uid", "value": target.uid}]
    ops += [{"op": "test", "path": annotation_path(key), "value": value} for key, value in expected.items()]
    if links:
        value = without_elements(expected[NETWORKS] or "", links)
        ops.append({"op": "replace", "path": annotation_path(NETWORKS), "value": value})
    return (*ops, *({"op": "remove", "path": annotation_path(key)} for key in removed))


def without_elements(networks: str, links: set[str]) -> str:
    """Return a networks annotation without the elements of these links; every other element keeps all its fields.

    An empty list is ``""``, as KubeVirt writes it.
    """
    if not any(mark in networks for mark in '[{"'):
        return ",".join(item for item in networks.split(",") if item.partition("@")[2].strip() not in links)
    elements: list[dict[str, Any]] = msgspec.json.decode(networks, type=list[dict[str, Any]])
    kept = [one for one in elements if (one.get("interface") or one.get("interfaceRequest")) not in links]
    return msgspec.json.encode(kept).decode() if kept else ""
