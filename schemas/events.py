"""The events that roles publish when a stage is reached: one frozen struct per stage, a tagged union together.

An event says "look again, this happened, and this is the trace"; it is never the truth (Kubernetes objects are).
Fields are only ever added, and only optional ones. :mod:`schemas.cloudevents` puts an event's metadata into headers.
"""

from enum import StrEnum

import msgspec

from schemas.encoding import NO_NODE, NO_VMI, Subject
from schemas.operations import Operation
from schemas.stages import Stage

MAX_EVENT_BYTES = 64 * 1024
"""A larger payload is not decoded but refused (it goes to the dead letters)."""


class ConfirmedBy(StrEnum):
    """How sure it is that the guest has the card; each value includes the ones before it."""

    DEVICE = "device"
    DRIVER = "driver"
    GUEST_AGENT = "guest-agent"


class _Wire(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class ObjectRef(_Wire, frozen=True):
    """A Kubernetes object by name and UID (a name alone may since have been given to another)."""

    namespace: str
    name: str
    uid: str


class Changed(_Wire, frozen=True):
    """The object an effect changed and the version it got: a cache holding exactly this version is fresh enough.

    Versions are compared for equality only (Kubernetes API conventions: opaque).
    """

    kind: str
    uid: str
    resource_version: str


class _Event(_Wire, frozen=True, tag_field="stage"):
    operation: Operation
    vmi: ObjectRef | None = None
    """Absent for an ordinary pod."""
    pod: ObjectRef | None = None
    sandbox_id: str | None = None
    node: str = NO_NODE
    changed: Changed | None = None
    attempt: int = 1

    @property
    def stage(self) -> Stage:
        """The stage this event reports."""
        return Stage(str(self.__struct_config__.tag))

    @property
    def subject(self) -> Subject:
        """The subject the event is published on."""
        namespace = (self.vmi or self.pod or _NOWHERE).namespace
        return Subject(self.stage, self.node or NO_NODE, namespace, self.vmi.name if self.vmi else NO_VMI)


_NOWHERE = ObjectRef("_", "_", "")


class Requested(_Event, frozen=True, tag="requested"):
    """The wish stands in the spec."""

    network: str = ""
    """The NetworkAttachmentDefinition as ``namespace/name``; empty for an unplug."""


class PodAnnotated(_Event, frozen=True, tag="pod-annotated"):
    """The pod's networks annotation lists the attachment."""

    pod_interface: str = ""


class MultusAttached(_Event, frozen=True, tag="multus-attached"):
    """The attachment stands in the pod's network status."""

    pod_interface: str = ""
    mac: str | None = None
    ips: tuple[str, ...] = ()


class MultusDetached(_Event, frozen=True, tag="multus-detached"):
    """CNI DEL is done and the network status rewritten."""

    pod_interface: str = ""


class GuestAttached(_Event, frozen=True, tag="guest-attached"):
    """The card is in the guest's domain."""

    mac: str | None = None
    confirmed_by: ConfirmedBy = ConfirmedBy.DEVICE
    guest_interface: str | None = None


class GuestDetached(_Event, frozen=True, tag="guest-detached"):
    """The card is gone from the domain and the wiring in the pod is undone."""


class Failed(_Event, frozen=True, tag="failed"):
    """An attempt failed.

    :ivar at: the stage that was to be reached.
    :ivar reason: CamelCase, stable, for machines; :ivar message: for people, names the object and the way out.
    :ivar retry_after: seconds until the next attempt; ``None`` when there will be none.
    """

    at: Stage = Stage.REQUESTED
    reason: str = ""
    message: str = ""
    retry_after: float | None = None


Event = Requested | PodAnnotated | MultusAttached | MultusDetached | GuestAttached | GuestDetached | Failed

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """The JSON payload of an event."""
    return _encoder.encode(event)


def decode(payload: bytes) -> Event:
    """Read a payload; unknown fields are tolerated, so that newer publishers can be understood.

    :raises ValueError: it is not an event, or too large (``msgspec.ValidationError`` is a ``ValueError``).
    """
    if len(payload) > MAX_EVENT_BYTES:
        raise ValueError(f"event of {len(payload)} bytes; at most {MAX_EVENT_BYTES} are read")
    event: Event = _decoder.decode(payload)
    return event
