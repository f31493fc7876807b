"""The stage table: the stages of plug and unplug operations, as data.

All code that depends on the order of stages, or on who may publish one, reads this table: the hot-plug status, the bus,
the AsyncAPI document, the diagram in the documentation and the tests.
Next: :mod:`schemas.bus.events`, the event that is published at each stage.
"""

from enum import StrEnum

import msgspec


class Stage(StrEnum):
    """A stage of an operation, and the type of the event that reports it. The value is the stage token of the subject.

    ``failed`` is the exception: the type of the event that reports a failed attempt. No operation reaches it.
    """

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

    :ivar stage: the stage.
    :ivar publishers: the roles that bring an interface to the stage and publish it.
    :ivar fact: what holds once the stage is published.
    :ivar next: the next stage by kind of operation; without the kinds that end at the stage or do not have it.
    :ivar observers: the roles that publish the stage where KubeVirt, or its Multus, brings the interface to it.
    """

    stage: Stage
    publishers: tuple[str, ...]
    fact: str
    next: dict[OperationKind, Stage] = {}
    observers: tuple[str, ...] = ()

    def may_publish(self, role: str, *, observed: bool) -> bool:
        """Return whether a role may publish the stage.

        :param observed: whether somebody else brought the interface to it.
        """
        return role in self.publishers or (observed and role in self.observers)

    @property
    def sources(self) -> tuple[str, ...]:
        """The roles that publish the stage, for whichever reason."""
        return tuple(dict.fromkeys((*self.publishers, *self.observers)))


TABLE: tuple[StageRow, ...] = (
    StageRow(
        Stage.REQUESTED,
        ("api", "controller"),
        "the spec contains the desired state of the interface",
        {OperationKind.PLUG: Stage.POD_ANNOTATED, OperationKind.UNPLUG: Stage.GUEST_DETACHED},
    ),
    StageRow(
        Stage.POD_ANNOTATED,
        ("controller",),
        "the pod's networks annotation lists the attachment",
        {OperationKind.PLUG: Stage.MULTUS_ATTACHED},
        observers=("controller",),
    ),
    StageRow(
        Stage.MULTUS_ATTACHED,
        ("networks",),
        "the pod's network-status annotation lists the attachment",
        {OperationKind.PLUG: Stage.GUEST_ATTACHED},
        observers=("controller",),
    ),
    StageRow(Stage.GUEST_ATTACHED, ("handler",), "the device is in the guest's domain", observers=("controller",)),
    StageRow(
        Stage.GUEST_DETACHED,
        ("handler",),
        "the device is gone from the guest's domain and the pod network is torn down",
        {OperationKind.UNPLUG: Stage.MULTUS_DETACHED},
        observers=("controller",),
    ),
    StageRow(
        Stage.MULTUS_DETACHED,
        ("networks",),
        "CNI DEL succeeded and the pod's network-status annotation is updated",
    ),
    # The controller does not publish it yet: a change that it rejects has no operation, so it records a Kubernetes
    # Event about the change instead.
    StageRow(
        Stage.FAILED,
        ("controller", "networks", "handler"),
        "an attempt failed; the event contains the reason and the time of the next attempt",
    ),
)

ROWS: dict[Stage, StageRow] = {row.stage: row for row in TABLE}


def stage_path(kind: OperationKind) -> tuple[Stage, ...]:
    """Return the stages of one kind of operation in order."""
    stages = [Stage.REQUESTED]
    while (following := ROWS[stages[-1]].next.get(kind)) is not None:
        stages.append(following)
    return tuple(stages)
