"""The record of a sandbox: the attachments that it has, and what was requested for each of them.

Pure. A record is a value; every change returns a new one. The files that hold records are in
:mod:`services.multus.records.store`.
"""

from enum import StrEnum
from typing import Any

import msgspec

from schemas import cni, multus
from services.multus.cni.call import PodId
from services.multus.cni.conflist import AttachmentAttributes, NetworkConfig, parse_recorded


class AttachmentOrigin(StrEnum):
    """Where an attachment comes from.

    In order: the cluster network, ``defaultNetworks`` (or further ``delegates``), the auxiliary chain, the pod's
    networks annotation, and ``/delegate``.
    """

    CLUSTER = "cluster"
    DEFAULT = "default"
    AUXILIARY = "auxiliary"
    NETWORKS = "networks"
    DELEGATE = "delegate"


class AttachmentState(StrEnum):
    """Whether the ADD of an attachment has finished."""

    ADDING = "adding"
    ADDED = "added"


class Attachment(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One attachment of a sandbox.

    :ivar ifname: the link's name in the sandbox.
    :ivar network: ``namespace/nad``, or the CNI network's name.
    :ivar origin: where the attachment comes from.
    :ivar config: the CNI configuration that was run.
    :ivar network_name: the network's name where ``config`` has none.
    :ivar cni_version: the CNI version where ``config`` has none.
    :ivar fingerprint: digest of the configuration and the attributes.
    :ivar state: whether ADD has finished.
    :ivar runtime: ``runtimeConfig`` by capability.
    :ivar cni_args: the requested ``cni-args``.
    :ivar result: the result of ADD.
    :ivar ifindex: index of the link in the sandbox; ``0`` during ADD, or when the network has no link.
    :ivar kind: kind of that link (``veth``, …).
    :ivar mac: its MAC as the plugin left it.
    :ivar mtu: its MTU as the plugin left it.
    :ivar device_info: description of a device plugin's device.
    :ivar nad: ``namespace/nad`` of a hot-plugged network, if the pod's annotation names it; for messages only.
    :ivar failed_deletes: how often DEL has failed, where the number of tries is limited.
    """

    ifname: str
    network: str
    # Named `owner` in the files and on the socket.
    origin: AttachmentOrigin = msgspec.field(name="owner")
    # The exact text, because DEL needs the plugins' own keys (multus-cni#1449).
    config: str
    network_name: str
    cni_version: str
    fingerprint: str
    state: AttachmentState = AttachmentState.ADDING
    runtime: dict[str, Any] = {}
    cni_args: dict[str, Any] = {}
    result: cni.CniResult | None = None
    ifindex: int = 0
    kind: str | None = None
    mac: str | None = None
    mtu: int | None = None
    device_info: dict[str, Any] | None = None
    nad: str = ""
    failed_deletes: int = 0

    def __str__(self) -> str:
        return f"network {self.nad or self.network} on interface {self.ifname}"

    def network_config(self) -> NetworkConfig:
        """Return the CNI configuration that was run.

        :raises CniError: it cannot be parsed.
        """
        return parse_recorded(self.config, name=self.network_name, version=self.cni_version)

    def with_failed_delete(self) -> "Attachment":
        """Return the attachment after one more DEL has failed."""
        return msgspec.structs.replace(self, failed_deletes=self.failed_deletes + 1)

    def attributes(self) -> AttachmentAttributes:
        """Return the requested attributes."""
        return AttachmentAttributes(self.runtime, self.cni_args)


class SandboxState(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The record of a sandbox.

    :ivar sandbox_id: the container id.
    :ivar netns: path of the network namespace.
    :ivar namespace: namespace of the pod.
    :ivar pod: name of the pod.
    :ivar pod_uid: UID of the pod.
    :ivar attachments: the attachments in the order in which they were added.
    :ivar deletion_requested: whether the runtime has requested DEL of the whole sandbox.
    :ivar adopted: whether multus-cni created the sandbox; its files are removed together with the attachments.
    :ivar schema: version of this format.
    """

    sandbox_id: str
    netns: str
    namespace: str
    pod: str
    pod_uid: str
    attachments: tuple[Attachment, ...] = ()
    # Named `released` in the files.
    deletion_requested: bool = msgspec.field(default=False, name="released")
    adopted: bool = False
    schema: int = 1

    @property
    def pod_id(self) -> PodId:
        """The sandbox's pod."""
        return PodId(self.namespace, self.pod, self.pod_uid)

    def find(self, ifname: str) -> Attachment | None:
        """Return the attachment with this interface name."""
        return next((attachment for attachment in self.attachments if attachment.ifname == ifname), None)

    def with_attachment(self, attachment: Attachment) -> "SandboxState":
        """Return the record with this attachment; it replaces one of the same interface name."""
        others = [a if a.ifname != attachment.ifname else attachment for a in self.attachments]
        if self.find(attachment.ifname) is None:
            others.append(attachment)
        return msgspec.structs.replace(self, attachments=tuple(others))

    def without_attachment(self, ifname: str) -> "SandboxState":
        """Return the record without the attachment of that interface name."""
        left = tuple(attachment for attachment in self.attachments if attachment.ifname != ifname)
        return msgspec.structs.replace(self, attachments=left)


def sandbox_view(sandbox: SandboxState) -> multus.SandboxRecord:
    """Return a record as ``GET /sandboxes/<id>`` serves it: the form that the networks role compares with pods."""
    return multus.SandboxRecord(
        sandbox_id=sandbox.sandbox_id,
        pod_uid=sandbox.pod_uid,
        attachments=[
            multus.RecordedAttachment(
                interface=one.ifname,
                network=one.network,
                owner=one.origin.value,
                hot_plugged=one.origin is AttachmentOrigin.DELEGATE,
                config_digest=one.fingerprint,
                mac=one.mac,
                ifindex=one.ifindex,
                kind=one.kind,
                added=one.state is AttachmentState.ADDED,
                requested=_requested(one.attributes()),
            )
            for one in sandbox.attachments
        ],
    )


def _requested(attributes: AttachmentAttributes) -> multus.InterfaceAttributes:
    return multus.InterfaceAttributes(
        cni_args=dict(attributes.cni_args) or None,
        ips=attributes.ips or msgspec.UNSET,
        mac=attributes.mac or msgspec.UNSET,
    )
