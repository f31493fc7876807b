"""What a call comes to: which attachments are made, kept or undone, and which links are put right before.

Pure: everything known is an argument, every decision of multus stands here, and a refusal is a :class:`CniError`.
What is refused most: a DEL under a card that a guest still uses (a plugin's DEL would find the stand-in under the name,
answer success and leave the real link behind). Next: :mod:`services.multus.apply`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas import cni
from services.common.netlink.links import Link
from services.multus.attachment_link import Standing, standing
from services.multus.conflist import Attributes, Network, fingerprint
from services.multus.errors import CniError
from services.multus.records import Attachment, Owner, Sandbox, State


@dataclass(frozen=True)
class Wanted:
    """An attachment that is asked for.

    :ivar display: what network-status calls it (``namespace/nad``, or the CNI network's name).
    :ivar gateways: its ``default-route``; ``None`` when it says nothing of that.
    :ivar identity: the configuration before a device was put into it. :ivar device: that device, with its resource.
    """

    ifname: str
    network: Network
    display: str
    owner: Owner
    attributes: Attributes
    gateways: tuple[str, ...] | None = None
    identity: Network | None = None
    device: tuple[str, str] | None = None

    @property
    def fingerprint(self) -> str:
        """Equal for two requests for the same attachment."""
        return fingerprint(self.identity or self.network, self.attributes)

    def attachment(self) -> Attachment:
        """Its record before any plugin has run."""
        return Attachment(
            ifname=self.ifname,
            network=self.display,
            owner=self.owner,
            config=self.network.text,
            network_name=self.network.name,
            cni_version=self.network.version,
            fingerprint=self.fingerprint,
            runtime=dict(self.attributes.runtime),
            cni_args=dict(self.attributes.cni_args),
        )


@dataclass(frozen=True)
class RemoveLink:
    """Remove a stand-in."""

    index: int
    name: str


@dataclass(frozen=True)
class RenameLink:
    """Give a link its own name back, freed of any bridge."""

    index: int
    name: str


@dataclass(frozen=True)
class Keep:
    """It is there already: answer with what its ADD answered."""

    attachment: Attachment


@dataclass(frozen=True)
class Attach:
    """Make it."""

    wanted: Wanted


@dataclass(frozen=True)
class Detach:
    """Undo it: put its links right, run DEL, strike it from the record.

    :ivar with_netns: the plugin may look for the link; otherwise it only frees what it holds elsewhere (a lease).
    """

    attachment: Attachment
    links: tuple[RemoveLink | RenameLink, ...] = ()
    with_netns: bool = True


@dataclass(frozen=True)
class Release:
    """Run DEL for something that is not in any record.

    :ivar with_netns: as in :class:`Detach`.
    """

    network: Network
    ifname: str
    attributes: Attributes
    with_netns: bool


Action = Keep | Attach | Detach | Release


def adding(sandbox: Sandbox | None, wanted: Sequence[Wanted], links: Sequence[Link]) -> list[Keep | Attach | Detach]:
    """ADD: idempotent for what is there already, and never over a link that is not ours.

    :raises CniError: code 7, a name is taken.
    """
    actions: list[Keep | Attach | Detach] = []
    taken = {link.name for link in links}
    for one in wanted:
        recorded = sandbox.find(one.ifname) if sandbox else None
        if recorded is None:
            if one.ifname in taken:
                raise _name_taken(one)
            actions.append(Attach(one))
            taken.add(one.ifname)
            continue
        found = standing(recorded, links)
        same = recorded.fingerprint == one.fingerprint
        if recorded.state is State.ADDED and found.link is not None:
            if not same:
                raise _name_taken(one, f"as {recorded.network}, with other settings")
            actions.append(Keep(recorded))
        else:
            actions += [_detach(recorded, found, going=False), Attach(one)]
    return actions


def deleting(
    sandbox: Sandbox, ifnames: Sequence[str] | None, links: Sequence[Link] | None, *, going: bool
) -> list[Detach]:
    """DEL of recorded attachments, the last made first.

    :param ifnames: which; ``None`` for all. :param links: ``None`` when the network namespace is gone.
    :param going: the sandbox itself is going away, so no guest can be using anything of it.
    :raises CniError: code 11, one is still in use by a guest.
    """
    actions = []
    for attachment in reversed(sandbox.attachments):
        if ifnames is None or attachment.ifname in ifnames:
            if links is None:
                actions.append(Detach(attachment, with_netns=False))
            else:
                actions.append(_detach(attachment, standing(attachment, links), going=going))
    return actions


def releasing(network: Network, ifname: str, attributes: Attributes, links: Sequence[Link] | None) -> list[Release]:
    """DEL of something that no record knows: what it may hold elsewhere is freed, a link is never touched.

    Where a link of that name stands, it belongs to somebody else, and so may the lease: nothing is done.
    """
    if links is not None and any(link.name == ifname for link in links):
        return []
    return [Release(network, ifname, attributes, with_netns=False)]


def checking(sandbox: Sandbox, ifnames: Sequence[str] | None, links: Sequence[Link]) -> list[Attachment]:
    """CHECK: the attachments whose plugins have to be asked.

    A link that was renamed for a guest is looked at itself; its plugin would look at the stand-in.

    :raises CniError: a link is gone.
    """
    asked = []
    for attachment in sandbox.attachments:
        if ifnames is not None and attachment.ifname not in ifnames:
            continue
        found = standing(attachment, links)
        if attachment.ifindex and found.link is None:
            message = f"link {attachment.ifname} of {attachment.network} (index {attachment.ifindex}) is gone"
            raise CniError(cni.Code.INTERNAL, message)
        if not found.renamed and not found.wired:
            asked.append(attachment)
    return asked


def valid_attachments(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The container ids and interface names that GC's configuration says are in use.

    :raises CniError: it does not say; taking that for "none" would undo every pod's network.
    """
    listed = document.get("cni.dev/valid-attachments", document.get("cni.dev/attachments"))
    if not isinstance(listed, list):
        raise CniError(cni.Code.INVALID_CONFIG, "GC needs cni.dev/valid-attachments")
    valid = []
    for item in listed:
        pair = (item.get("containerID"), item.get("ifname")) if isinstance(item, dict) else (None, None)
        if not (isinstance(pair[0], str) and isinstance(pair[1], str)):
            raise CniError(cni.Code.INVALID_CONFIG, f"cni.dev/valid-attachments holds {item!r}, which is none")
        valid.append((pair[0], pair[1]))
    return valid


def collections(
    cluster: Network, valid: Sequence[tuple[str, str]], records: Sequence[Sandbox]
) -> list[tuple[Network, list[tuple[str, str]]]]:
    """GC: every network that the node uses, with the attachments of it that are in use.

    A plugin keeps its state by the network's name, which several configurations may share: each is told all of that
    name. The runtime knows only its own interface of each sandbox; the records know the others.
    """
    in_use: dict[str, set[tuple[str, str]]] = {cluster.name: set(valid)}
    networks: dict[tuple[str, str], Network] = {(cluster.name, cluster.text): cluster}
    for sandbox in records:
        for attachment in sandbox.attachments:
            network = attachment.parsed()
            in_use.setdefault(network.name, set()).add((sandbox.sandbox_id, attachment.ifname))
            if attachment.owner is not Owner.CLUSTER:
                networks.setdefault((network.name, network.text), network)
    return [(network, sorted(in_use[network.name])) for network in networks.values()]


def _detach(attachment: Attachment, found: Standing, *, going: bool) -> Detach:
    if found.wired and not going:
        message = f"{attachment.ifname} of {attachment.network} {cni.STILL_IN_USE} ({found.wired})"
        raise CniError(cni.Code.TRY_AGAIN_LATER, message)
    links: list[RemoveLink | RenameLink] = []
    foreign = found.under_name if found.renamed or found.link is None else None
    if foreign is not None and (found.stand_in or (going and found.link is not None)):
        links.append(RemoveLink(foreign.index, foreign.name))
        foreign = None
    if found.link is None:
        return Detach(attachment, tuple(links), with_netns=foreign is None)
    if foreign is not None:
        message = (
            f"{attachment.ifname} of {attachment.network} now names a {foreign.kind} link that multus did not make"
        )
        raise CniError(cni.Code.TRY_AGAIN_LATER, message)
    if found.renamed or found.link.master:
        links.append(RenameLink(found.link.index, attachment.ifname))
    return Detach(attachment, tuple(links))


def _name_taken(wanted: Wanted, how: str = "") -> CniError:
    message = (
        f'cannot set "{wanted.network.name}" interface name to "{wanted.ifname}": '
        f"validateIfName: interface name {wanted.ifname} already exists"
    )
    return CniError(cni.Code.INVALID_CONFIG, f"{message} ({how})" if how else message)
