"""The state of an attachment's link: as its plugin left it, renamed, in use by a guest, or gone.

Pure functions over one list of the sandbox's links. The recorded link is found by its index and never by its name:
while a guest uses the link, a dummy interface carries the name. What follows from the state is decided in
:mod:`services.multus.plan`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from services.common.netlink.links import Link
from services.multus.records.sandbox import Attachment, AttachmentState

_HASHED = re.compile(r"pod[0-9a-f]{11}")


@dataclass(frozen=True)
class AttachmentLink:
    """An attachment's link and the links around it.

    :ivar link: the recorded link, found by its index; ``None`` when it is gone.
    :ivar named_link: the link that carries the attachment's name now, whichever link that is.
    :ivar in_use: why the link counts as in use by a guest; empty when it is not in use.
    :ivar has_dummy: whether ``named_link`` is a dummy interface that replaces the recorded link under its name.
    """

    link: Link | None
    named_link: Link | None
    in_use: str
    has_dummy: bool

    @property
    def renamed(self) -> bool:
        """Whether the recorded link exists under another name."""
        return self.link is not None and (self.named_link is None or self.named_link.index != self.link.index)


def in_pod_bridge_name(ifname: str) -> str:
    """Return the name of the in-pod bridge of a link (``podX`` → ``k6t-X``, ``net1`` → ``k6t-net1``)."""
    return f"k6t-{_stem(ifname)}"


def find_original_link(ifname: str, links: Sequence[Link]) -> Link | None:
    """Return the link that a plugin created under this name; while a guest uses it, its name is ``X-nic``."""
    by_name = {link.name: link for link in links}
    return by_name.get(f"{_stem(ifname)}-nic") or by_name.get(ifname)


def find_attachment_link(attachment: Attachment, links: Sequence[Link]) -> AttachmentLink:
    """Find an attachment's link among the links of its sandbox.

    An attachment without a recorded index had its ADD interrupted. Its link is the one under its name, because ADD
    starts only when that name is free.

    :param attachment: the attachment.
    :param links: all links of the sandbox.
    :returns: the state of the attachment's link.
    """
    by_name = {link.name: link for link in links}
    named_link = by_name.get(attachment.ifname)
    recorded = next((link for link in links if _is_recorded(link, attachment)), None)
    link = recorded if attachment.ifindex else named_link
    return AttachmentLink(
        link, named_link, _use_by_guest(attachment, link, links, by_name), _has_dummy(link, named_link, links)
    )


def with_unrecorded_link(attachment: Attachment, links: Sequence[Link], mac: str | None) -> Attachment | None:
    """Return an attachment of no record with the link that multus-cni made for it; ``None`` if there is none.

    The name alone does not show it: another program may have made a link of that name.

    :param attachment: the attachment as its network selection element and its NAD describe it.
    :param mac: the MAC that network-status has for the link; ``None`` if it has none. While a guest uses the link, the
        dummy interface under its name has it.
    """
    named_link = next((link for link in links if link.name == attachment.ifname), None)
    link = find_original_link(attachment.ifname, links)
    if link is None or not mac or (named_link is not None and named_link.mac != mac.lower()):
        return None
    return msgspec.structs.replace(
        attachment,
        state=AttachmentState.ADDED,
        ifindex=link.index,
        kind=link.kind,
        mac=link.mac or None,
        mtu=link.mtu or None,
    )


def _is_recorded(link: Link, attachment: Attachment) -> bool:
    # The kind is compared too, because another link may have the index once the recorded one is gone.
    return link.index == attachment.ifindex and link.kind == attachment.kind


def _use_by_guest(attachment: Attachment, link: Link | None, links: Sequence[Link], by_name: dict[str, Link]) -> str:
    bridge = in_pod_bridge_name(attachment.ifname)
    if bridge in by_name:
        return f"bridge {bridge} exists"
    if link is not None and link.master:
        master = next((other.name for other in links if other.index == link.master), str(link.master))
        # An ordinal name may belong to an ordinary pod, whose workload may put the link into a bridge of its own.
        if _HASHED.fullmatch(attachment.ifname) or master.startswith("k6t-"):
            return f"{link.name} is a port of {master}"
    return ""


def _has_dummy(link: Link | None, named_link: Link | None, links: Sequence[Link]) -> bool:
    if named_link is None or (link is not None and link.index == named_link.index):
        return False
    if named_link.kind == "dummy":
        return True
    # Where the kernel has no dummy links, the handler uses a bridge without ports.
    return named_link.kind == "bridge" and all(other.master != named_link.index for other in links)


def _stem(ifname: str) -> str:
    return ifname[3:] if _HASHED.fullmatch(ifname) else ifname
