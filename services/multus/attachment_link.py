"""Where the link of an attachment stands now: as its plugin left it, renamed for a guest, wired to one, or gone.

Pure, over one dump of the sandbox's links. The recorded link is found by its index, never by its name: while a guest
uses it, a stand-in carries the name. What follows from it is decided in :mod:`services.multus.plan`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.common.netlink.links import Link
from services.multus.records import Attachment

_HASHED = re.compile(r"pod[0-9a-f]{11}")


@dataclass(frozen=True)
class Standing:
    """An attachment's link and what is about it.

    :ivar link: the recorded link, by index; ``None`` when it is gone.
    :ivar under_name: the link that carries the attachment's name now, whichever it is.
    :ivar wired: why the link counts as wired to a guest; empty when it is not.
    :ivar stand_in: ``under_name`` is a stand-in: neither the recorded link nor one that carries traffic.
    """

    link: Link | None
    under_name: Link | None
    wired: str
    stand_in: bool

    @property
    def renamed(self) -> bool:
        """The recorded link is there, under another name."""
        return self.link is not None and (self.under_name is None or self.under_name.index != self.link.index)


def bridge_of(ifname: str) -> str:
    """The in-pod bridge that would wire this link to a guest (``podX`` → ``k6t-X``, ``net1`` → ``k6t-net1``)."""
    return f"k6t-{_stem(ifname)}"


def original(ifname: str, links: Sequence[Link]) -> Link | None:
    """The link that a plugin made under this name, by the names that a guest's wiring gives it (``X-nic``)."""
    by_name = {link.name: link for link in links}
    return by_name.get(f"{_stem(ifname)}-nic") or by_name.get(ifname)


def standing(attachment: Attachment, links: Sequence[Link]) -> Standing:
    """Find an attachment's link among the links of its sandbox.

    One whose index is not recorded (its ADD was cut off) is the link under its name: ADD starts only where that name
    is free.
    """
    by_name = {link.name: link for link in links}
    under_name = by_name.get(attachment.ifname)
    recorded = next((link for link in links if _is_recorded(link, attachment)), None)
    link = recorded if attachment.ifindex else under_name
    return Standing(link, under_name, _wired(attachment, link, links, by_name), _stand_in(link, under_name, links))


def _is_recorded(link: Link, attachment: Attachment) -> bool:
    return link.index == attachment.ifindex and link.kind == attachment.kind


def _wired(attachment: Attachment, link: Link | None, links: Sequence[Link], by_name: dict[str, Link]) -> str:
    bridge = bridge_of(attachment.ifname)
    if bridge in by_name:
        return f"bridge {bridge} stands"
    if link is not None and link.master:
        master = next((other.name for other in links if other.index == link.master), str(link.master))
        if _HASHED.fullmatch(attachment.ifname) or master.startswith("k6t-"):
            return f"{link.name} is a port of {master}"
    return ""


def _stand_in(link: Link | None, under_name: Link | None, links: Sequence[Link]) -> bool:
    if under_name is None or (link is not None and link.index == under_name.index):
        return False
    if under_name.kind == "dummy":
        return True
    # Where the kernel has no dummy links, a bridge without ports takes their place.
    return under_name.kind == "bridge" and all(other.master != under_name.index for other in links)


def _stem(ifname: str) -> str:
    return ifname[3:] if _HASHED.fullmatch(ifname) else ifname
