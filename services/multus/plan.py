"""Decisions of multus: which attachments are added, kept or deleted, and which links are restored before a DEL.

Pure: all input comes as arguments, and a refusal is a :class:`CniError`. The most important refusal is a DEL while a
guest still uses the interface. The plugin's DEL would find the dummy interface under the name, report success and leave
the real link behind (kubevirt#14074). Next: :mod:`services.multus.apply`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from schemas import cni
from services.common.netlink.links import Link
from services.multus.cni.conflist import AttachmentAttributes, NetworkConfig, fingerprint, is_same_request
from services.multus.cni.errors import CniError
from services.multus.records.attachment_link import AttachmentLink, find_attachment_link
from services.multus.records.sandbox import Attachment, AttachmentOrigin, AttachmentState, SandboxState

DELETE_TRIES: Final = 5
"""How often DEL is tried for an attachment whose ADD has not finished."""
DELETE_TRIES_WITH_SANDBOX: Final = 2
"""The same while the sandbox is being deleted: its record should not outlive it."""
DELETE_TRIES_OF_ADDED: Final = 30
"""How often DEL is tried while the sandbox is being deleted, for an attachment that was added: for half an
hour by the sweep. With upstream's shim the pod waits, for minutes with a kubelet's pauses."""


@dataclass(frozen=True)
class DesiredAttachment:
    """A requested attachment.

    :ivar ifname: the link's name in the sandbox.
    :ivar network: the CNI configuration to run.
    :ivar display: the network's name in network-status (``namespace/nad``, or the CNI network's name).
    :ivar origin: where the request comes from.
    :ivar attributes: the requested addresses, MAC and other attributes.
    :ivar gateways: its ``default-route``; ``None`` when it is not set.
    :ivar identity: the configuration without the device; ``None`` when there is no device.
    :ivar device: the device with its resource: ``(resource, device id)``.
    :ivar nad: ``namespace/nad`` where ``display`` is the CNI network's name; empty when it is unknown.
    """

    ifname: str
    network: NetworkConfig
    display: str
    origin: AttachmentOrigin
    attributes: AttachmentAttributes
    gateways: tuple[str, ...] | None = None
    identity: NetworkConfig | None = None
    device: tuple[str, str] | None = None
    nad: str = ""

    @property
    def fingerprint(self) -> str:
        """A digest that is equal for two requests for the same attachment."""
        return fingerprint(self.identity or self.network, self.attributes)

    def attachment(self) -> Attachment:
        """Return the attachment's record before any plugin has run."""
        return Attachment(
            ifname=self.ifname,
            network=self.display,
            origin=self.origin,
            config=self.network.text,
            network_name=self.network.name,
            cni_version=self.network.version,
            fingerprint=self.fingerprint,
            runtime=dict(self.attributes.runtime),
            cni_args=dict(self.attributes.cni_args),
            nad=self.nad,
        )


@dataclass(frozen=True)
class RemoveLink:
    """Remove the link that has an attachment's name instead of the recorded link.

    That is a dummy interface; while the sandbox is being deleted, it is any such link.

    :ivar index: the link's index.
    :ivar name: its name.
    """

    index: int
    name: str


@dataclass(frozen=True)
class RenameLink:
    """Detach a link from its bridge and give it its original name back.

    :ivar index: the link's index.
    :ivar name: its original name.
    """

    index: int
    name: str


@dataclass(frozen=True)
class KeepAttachment:
    """Keep an existing attachment and return the result of its ADD again."""

    attachment: Attachment


@dataclass(frozen=True)
class AddAttachment:
    """Add an attachment."""

    desired: DesiredAttachment


@dataclass(frozen=True)
class DeleteAttachment:
    """Delete an attachment: restore its links, run DEL and remove it from the record.

    :ivar attachment: the attachment.
    :ivar links: the changes to links before DEL.
    :ivar with_netns: whether the plugin gets the network namespace. Without it, the plugin only frees what it holds
        outside the sandbox (a lease).
    :ivar link_gone: whether the sandbox has lost the link that ADD created.
    :ivar tries: after how many failures the attachment leaves the record although DEL fails; ``None``: never.
    :ivar leftover: the link to remove if the last DEL fails: a plugin of the interrupted ADD made it.
    """

    attachment: Attachment
    links: tuple[RemoveLink | RenameLink, ...] = ()
    with_netns: bool = True
    link_gone: bool = False
    tries: int | None = None
    leftover: RemoveLink | None = None

    @property
    def last_try(self) -> bool:
        """Whether the attachment leaves the record even if DEL fails now."""
        return self.tries is not None and self.attachment.failed_deletes + 1 >= self.tries


@dataclass(frozen=True)
class DeleteUnrecorded:
    """Run DEL for an attachment that is in no record.

    :ivar network: the CNI configuration to run.
    :ivar ifname: the link's name in the sandbox.
    :ivar attributes: the attachment's attributes.
    :ivar with_netns: as in :class:`DeleteAttachment`.
    """

    network: NetworkConfig
    ifname: str
    attributes: AttachmentAttributes
    with_netns: bool


Action = KeepAttachment | AddAttachment | DeleteAttachment | DeleteUnrecorded


def plan_add(
    sandbox: SandboxState | None, desired: Sequence[DesiredAttachment], links: Sequence[Link]
) -> list[KeepAttachment | AddAttachment | DeleteAttachment]:
    """Plan an ADD: keep what is attached already, and never touch a foreign link.

    :param sandbox: the sandbox's record; ``None`` when it is new.
    :param desired: the requested attachments.
    :param links: the links of the sandbox.
    :raises CniError: code 7, a name is taken; code 11, an interrupted attachment is in use by a guest.
    """
    actions: list[KeepAttachment | AddAttachment | DeleteAttachment] = []
    taken = {link.name for link in links}
    for one in desired:
        recorded = sandbox.find(one.ifname) if sandbox else None
        if recorded is None:
            if one.ifname in taken:
                raise _name_taken(one)
            actions.append(AddAttachment(one))
            # Two elements may request one name; only the first of them can get it.
            taken.add(one.ifname)
            continue
        found = find_attachment_link(recorded, links)
        if recorded.state is AttachmentState.ADDED and found.link is not None:
            identity = one.identity or one.network
            if not is_same_request(identity, one.attributes, recorded.fingerprint, recorded.attributes()):
                raise _name_taken(one, f"as {recorded.network}, with other settings")
            actions.append(KeepAttachment(recorded))
        else:
            # The link is lost or its ADD was interrupted: the plugins may hold a lease, so DEL comes first. After an
            # interrupted ADD, its failure does not bar the name: the network may have been corrected since.
            deletion = _plan_delete_one(recorded, found, deleting_sandbox=False)
            actions += [deletion if deletion.tries is None else replace(deletion, tries=1), AddAttachment(one)]
    return actions


def plan_delete(
    sandbox: SandboxState, ifnames: Sequence[str] | None, links: Sequence[Link] | None, *, deleting_sandbox: bool
) -> list[DeleteAttachment]:
    """Plan the DEL of recorded attachments, the last one first.

    :param sandbox: the sandbox's record.
    :param ifnames: the attachments' link names; ``None`` for all.
    :param links: the links of the sandbox; ``None`` when its network namespace is gone.
    :param deleting_sandbox: whether the sandbox itself is being deleted, so that no guest can use its links any more.
    :raises CniError: code 11, an attachment is still in use by a guest, or a foreign link has its name.
    """
    actions = []
    for attachment in reversed(sandbox.attachments):
        if ifnames is None or attachment.ifname in ifnames:
            if links is None:
                tries = _count_tries(attachment, deleting_sandbox=deleting_sandbox)
                actions.append(DeleteAttachment(attachment, with_netns=False, tries=tries))
            else:
                found = find_attachment_link(attachment, links)
                actions.append(_plan_delete_one(attachment, found, deleting_sandbox=deleting_sandbox))
    return actions


def plan_delete_unrecorded(
    network: NetworkConfig, ifname: str, attributes: AttachmentAttributes, links: Sequence[Link] | None
) -> list[DeleteUnrecorded]:
    """Plan the DEL of an attachment that is in no record. It frees what the plugin holds elsewhere and touches no link.

    If a link of that name exists, it is foreign, and the lease may be foreign too. Then nothing is done.

    :param network: the CNI configuration of the call.
    :param ifname: the link's name.
    :param attributes: the attributes of the call.
    :param links: the links of the sandbox; ``None`` when its network namespace is gone.
    """
    if links is not None and any(link.name == ifname for link in links):
        return []
    return [DeleteUnrecorded(network, ifname, attributes, with_netns=False)]


def plan_check(sandbox: SandboxState, ifnames: Sequence[str] | None, links: Sequence[Link]) -> list[Attachment]:
    """Plan a CHECK: return the attachments whose plugins are to run.

    A plugin finds its link by name. For a link in use by a guest it would find the dummy interface, so multus checks
    such a link itself.

    :param sandbox: the sandbox's record.
    :param ifnames: the attachments' link names; ``None`` for all.
    :param links: the links of the sandbox.
    :raises CniError: code 999, a link is gone.
    """
    to_check = []
    for attachment in sandbox.attachments:
        if ifnames is not None and attachment.ifname not in ifnames:
            continue
        # Only its DEL is owed: the sandbox does not have it.
        if ifnames is None and attachment.state is AttachmentState.ADDING:
            continue
        found = find_attachment_link(attachment, links)
        # Index 0: the network has no link that could be gone.
        if attachment.ifindex and found.link is None:
            message = f"{attachment}: the link (index {attachment.ifindex}) is gone"
            raise CniError(cni.CniErrorCode.INTERNAL, message)
        if not found.renamed and not found.in_use:
            to_check.append(attachment)
    return to_check


def parse_valid_attachments(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the container ids and interface names that a GC's configuration lists as valid.

    :param document: the configuration.
    :raises CniError: code 7, there is no valid list. Taking that for an empty list would delete every pod's network.
    """
    # The second key is libcni's older name for the same list.
    listed = document.get("cni.dev/valid-attachments", document.get("cni.dev/attachments"))
    if not isinstance(listed, list):
        raise CniError(cni.CniErrorCode.INVALID_CONFIG, "GC needs cni.dev/valid-attachments")
    valid = []
    for item in listed:
        pair = (item.get("containerID"), item.get("ifname")) if isinstance(item, dict) else (None, None)
        if not (isinstance(pair[0], str) and isinstance(pair[1], str)):
            raise CniError(cni.CniErrorCode.INVALID_CONFIG, f"invalid item in cni.dev/valid-attachments: {item!r}")
        valid.append((pair[0], pair[1]))
    return valid


def plan_gc(
    cluster: NetworkConfig, valid: Sequence[tuple[str, str]], records: Sequence[SandboxState]
) -> list[tuple[NetworkConfig, list[tuple[str, str]]]]:
    """Plan a GC: return every network that the node uses, with its valid attachments.

    A plugin stores its state by the network's name, which several configurations may share, so each of them gets all
    attachments of that name. The runtime knows only its own interface of each sandbox; the records have the others.

    :param cluster: the cluster network.
    :param valid: the valid attachments that the runtime listed.
    :param records: the records of the sandboxes that stay.
    """
    in_use: dict[str, set[tuple[str, str]]] = {cluster.name: set(valid)}
    networks: dict[tuple[str, str], NetworkConfig] = {(cluster.name, cluster.text): cluster}
    for sandbox in records:
        for attachment in sandbox.attachments:
            network = attachment.network_config()
            in_use.setdefault(network.name, set()).add((sandbox.sandbox_id, attachment.ifname))
            # The cluster network is listed already; a record may hold an older text of it.
            if attachment.origin is not AttachmentOrigin.CLUSTER:
                networks.setdefault((network.name, network.text), network)
    return [(network, sorted(in_use[network.name])) for network in networks.values()]


def _plan_delete_one(attachment: Attachment, found: AttachmentLink, *, deleting_sandbox: bool) -> DeleteAttachment:
    if found.in_use and not deleting_sandbox:
        message = f"{attachment.ifname} of {attachment.network} {cni.STILL_IN_USE} ({found.in_use})"
        raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message)
    links: list[RemoveLink | RenameLink] = []
    # A link that has the attachment's name but is not the recorded one.
    foreign = found.named_link if found.renamed or found.link is None else None
    if foreign is not None and (found.has_dummy or (deleting_sandbox and found.link is not None)):
        links.append(RemoveLink(foreign.index, foreign.name))
        foreign = None
    tries = _count_tries(attachment, deleting_sandbox=deleting_sandbox)
    if found.link is None:
        # A plugin deletes the link that has the name. If that one is foreign, it gets no namespace and frees only its
        # lease.
        gone = attachment.ifindex > 0
        return DeleteAttachment(attachment, tuple(links), with_netns=foreign is None, link_gone=gone, tries=tries)
    if foreign is not None:
        message = (
            f"the name {attachment.ifname} of {attachment.network} belongs to a {foreign.kind} link that multus "
            "did not make; remove or rename that link"
        )
        raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message)
    if found.renamed or found.link.master:
        links.append(RenameLink(found.link.index, attachment.ifname))
    # An interrupted ADD; DEL of what was added must succeed.
    leftover = RemoveLink(found.link.index, attachment.ifname) if attachment.state is AttachmentState.ADDING else None
    return DeleteAttachment(attachment, tuple(links), tries=tries, leftover=leftover)


def _count_tries(attachment: Attachment, *, deleting_sandbox: bool) -> int | None:
    """Return how often DEL may fail before the attachment leaves the record; ``None`` for any number.

    An attachment that was added stays as long as its sandbox: something certainly exists then.
    """
    if attachment.state is AttachmentState.ADDING:
        return DELETE_TRIES_WITH_SANDBOX if deleting_sandbox else DELETE_TRIES
    return DELETE_TRIES_OF_ADDED if deleting_sandbox else None


def _name_taken(desired: DesiredAttachment, reason: str = "") -> CniError:
    # The text is upstream's.
    message = (
        f'cannot set "{desired.network.name}" interface name to "{desired.ifname}": '
        f"validateIfName: interface name {desired.ifname} already exists"
    )
    return CniError(cni.CniErrorCode.INVALID_CONFIG, f"{message} ({reason})" if reason else message)
