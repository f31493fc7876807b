"""The events that roles publish when a stage is reached: one frozen struct per stage, joined in a tagged union.

An event is a hint to reconcile and carries the trace of the request; Kubernetes objects hold the truth.
Later versions only add optional fields. :mod:`schemas.bus.cloudevents` encodes an event's metadata as headers.
"""

from enum import StrEnum
from typing import cast

import msgspec

from schemas.bus.encoding import NO_NODE, NO_VMI, Subject
from schemas.inputs import Edge, InputDecoder
from schemas.kubernetes.operations import Operation
from schemas.stages import ROWS, Stage

MAX_EVENT_BYTES = 64 * 1024
"""Larger payloads are not decoded; they are dead-lettered."""


class ConfirmedBy(StrEnum):
    """The observation that confirms a plug, from the weakest to the strongest.

    ``device``: the domain has the device. ``driver``: a driver in the guest uses it. ``guest-agent``: the guest agent
    lists it.
    """

    DEVICE = "device"
    DRIVER = "driver"
    GUEST_AGENT = "guest-agent"


class _Payload(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class ObjectRef(_Payload, frozen=True):
    """A Kubernetes object by name and UID; a later object of the same name has another UID."""

    namespace: str
    name: str
    uid: str


class ChangedObject(_Payload, frozen=True):
    """The object that was changed and the version it got: a cache that holds exactly this version is up to date.

    Versions are compared for equality only (Kubernetes API conventions: resource versions are opaque).
    """

    kind: str
    uid: str
    resource_version: str


class _Event(_Payload, frozen=True, tag_field="stage"):
    """What all events have.

    :ivar vmi: ``None`` for an ordinary pod.
    :ivar pod: the acting pod, or the ordinary pod; ``None`` in ``requested``.
    :ivar sandbox_id: the pod's sandbox; ``None`` if unknown to the publisher.
    :ivar node: the pod's node; ``_`` while unknown.
    :ivar changed: the object with which the stage was reached; ``None`` if none was changed.
    :ivar attempt: number of the publisher's attempt, from 1; for ``UnplugTimeout``, number of requests to the guest.
    """

    operation: Operation
    vmi: ObjectRef | None = None
    pod: ObjectRef | None = None
    sandbox_id: str | None = None
    node: str = NO_NODE
    changed: ChangedObject | None = None
    attempt: int = 1

    @property
    def stage(self) -> Stage:
        """The stage that this event reports."""
        return Stage(str(self.__struct_config__.tag))

    @property
    def subject(self) -> Subject:
        """The subject on which the event is published."""
        namespace = (self.vmi or self.pod or _NO_OBJECT).namespace
        return Subject(self.stage, self.node or NO_NODE, namespace, self.vmi.name if self.vmi else NO_VMI)


# An event that names no object still needs a namespace token in its subject.
_NO_OBJECT = ObjectRef("_", "_", "")


class Requested(_Event, frozen=True, tag="requested"):
    """The spec contains the desired state of the interface.

    :ivar network: the NetworkAttachmentDefinition as ``namespace/name``; empty for an unplug.
    """

    network: str = ""


class PodAnnotated(_Event, frozen=True, tag="pod-annotated"):
    """The pod's networks annotation lists the attachment."""

    pod_interface: str = ""


class MultusAttached(_Event, frozen=True, tag="multus-attached"):
    """The pod's network-status annotation lists the attachment.

    :ivar mac: MAC of the pod interface; the guest NIC gets the same.
    :ivar ips: addresses that IPAM assigned.
    """

    pod_interface: str = ""
    mac: str | None = None
    ips: tuple[str, ...] = ()


class MultusDetached(_Event, frozen=True, tag="multus-detached"):
    """CNI DEL succeeded and the pod's network-status annotation is updated."""

    pod_interface: str = ""


class GuestAttached(_Event, frozen=True, tag="guest-attached"):
    """The device is in the guest's domain.

    Published again with a stronger confirmation, under the same operation.

    :ivar guest_interface: name of the link in the guest; ``None`` before the guest agent has listed it.
    """

    mac: str | None = None
    confirmed_by: ConfirmedBy = ConfirmedBy.DEVICE
    guest_interface: str | None = None


class GuestDetached(_Event, frozen=True, tag="guest-detached"):
    """The device is gone from the guest's domain and the pod network is torn down."""


class Failed(_Event, frozen=True, tag="failed"):
    """An attempt failed.

    :ivar at: the stage that the attempt was to reach.
    :ivar reason: CamelCase, stable, for machines.
    :ivar message: text for users; names the object and what to do.
    :ivar retry_after: seconds until the next attempt; ``None`` when the failure is final.
    """

    at: Stage = Stage.REQUESTED
    reason: str = ""
    message: str = ""
    retry_after: float | None = None


Event = Requested | PodAnnotated | MultusAttached | MultusDetached | GuestAttached | GuestDetached | Failed


def is_observed(event: Event, role: str) -> bool:
    """Return whether an event is about what KubeVirt or its Multus did, and its publisher only saw it.

    :param role: the publisher.
    """
    return event.operation.vm is not None and role in ROWS[event.stage].observers


_encoder = msgspec.json.Encoder()
_decoder: InputDecoder[Event] = InputDecoder(Edge.BUS, cast("type[Event]", Event), max_bytes=MAX_EVENT_BYTES)


def encode(event: Event) -> bytes:
    """Return the JSON payload of an event."""
    return _encoder.encode(event)


def decode(payload: bytes) -> Event:
    """Decode a payload; unknown fields of newer publishers are ignored.

    :raises RejectedInput: it is not an event, or too large.
    """
    return _decoder.decode(payload)
