"""The stage table: the way of one NIC, as data.

Every walk over the stages (the ladder, the documentation's diagram, the tests) reads this one table.
Next: :mod:`schemas.events`, what is published when a stage is reached.
"""

from enum import StrEnum

import msgspec


class Stage(StrEnum):
    """A published stage; the value is the subject's stage token."""

    REQUESTED = "requested"
    POD_ANNOTATED = "pod-annotated"
    MULTUS_ATTACHED = "multus-attached"
    GUEST_ATTACHED = "guest-attached"
    GUEST_DETACHED = "guest-detached"
    MULTUS_DETACHED = "multus-detached"
    FAILED = "failed"


class OperationKind(StrEnum):
    """What an operation does to its interface."""

    PLUG = "plug"
    UNPLUG = "unplug"


class StageRow(msgspec.Struct, frozen=True):
    """One row of the table.

    :ivar publishers: the roles that may publish the stage.
    :ivar after: what has been done, for certain, when it is published.
    :ivar next: the stage that follows, per kind; absent where the operation is complete.
    """

    stage: Stage
    publishers: tuple[str, ...]
    after: str
    next: dict[OperationKind, Stage] = {}


TABLE: tuple[StageRow, ...] = (
    StageRow(
        Stage.REQUESTED,
        ("api", "controller"),
        "the wish stands in the spec",
        {OperationKind.PLUG: Stage.POD_ANNOTATED, OperationKind.UNPLUG: Stage.GUEST_DETACHED},
    ),
    StageRow(
        Stage.POD_ANNOTATED,
        ("controller",),
        "the pod's networks annotation lists the attachment",
        {OperationKind.PLUG: Stage.MULTUS_ATTACHED},
    ),
    StageRow(
        Stage.MULTUS_ATTACHED,
        ("networks",),
        "the CNI result stands in the pod's network status",
        {OperationKind.PLUG: Stage.GUEST_ATTACHED},
    ),
    StageRow(Stage.GUEST_ATTACHED, ("handler",), "the card is in the guest's domain"),
    StageRow(
        Stage.GUEST_DETACHED,
        ("handler",),
        "the card is gone from the domain and the wiring in the pod is undone",
        {OperationKind.UNPLUG: Stage.MULTUS_DETACHED},
    ),
    StageRow(Stage.MULTUS_DETACHED, ("networks",), "CNI DEL is done and the network status rewritten"),
    StageRow(
        Stage.FAILED,
        ("api", "controller", "networks", "multus", "handler"),
        "an attempt failed; it says whether and when it will be retried",
    ),
)

ROWS: dict[Stage, StageRow] = {row.stage: row for row in TABLE}


def stage_path(kind: OperationKind) -> tuple[Stage, ...]:
    """The stages of one kind of operation in order, read off the table."""
    stages = [Stage.REQUESTED]
    while (following := ROWS[stages[-1]].next.get(kind)) is not None:
        stages.append(following)
    return tuple(stages)
