"""What multus-cni itself has left on the node about a sandbox, read as a record of ours: its daemon was replaced.

Two kinds of files below its ``cniDir``: ``<containerID>``, the delegates of the sandbox in order, and for each
attachment, hot-plugged ones too, ``results/<network>-<containerID>-<ifname>``, libcni's cache with the configuration as
it was run. Either may be missing or torn. They stay until the attachment is undone, so that a node can be given back.
Next: :mod:`services.multus.adoption`.
"""

import base64
import binascii
import contextlib
import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas import cni
from services.multus import conflist
from services.multus.call import valid_sandbox_id
from services.multus.conflist import Attributes, Network
from services.multus.errors import CniError
from services.multus.records import Attachment, Owner, Sandbox, State

_OTHERS: Final = frozenset({"results", "sandboxes"})


class Cached(msgspec.Struct, frozen=True, rename="camel"):
    """A file of libcni's cache."""

    container_id: str = ""
    if_name: str = ""
    network_name: str = ""
    netns: str = ""
    config: str = ""
    cni_args: list[list[str]] | None = None
    capability_args: dict[str, Any] | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")

    def args(self) -> dict[str, str]:
        """``CNI_ARGS`` of the call."""
        return {pair[0]: pair[1] for pair in self.cni_args or () if len(pair) == 2}

    def attributes(self) -> Attributes:
        """What was asked beside the configuration."""
        runtime, args = dict(self.capability_args or {}), self.args()
        if args.get("MAC"):
            runtime.setdefault("mac", args["MAC"])
        if args.get("IP"):
            runtime.setdefault("ips", args["IP"].split(","))
        return Attributes(runtime)


class Delegate(msgspec.Struct, frozen=True):
    """An element of a ``<containerID>`` file."""

    name: str = msgspec.field(default="", name="Name")
    interface: str = msgspec.field(default="", name="ifnameRequest")
    config: str = msgspec.field(default="", name="Bytes")


class UpstreamCache:
    """The files of multus-cni on this node."""

    def __init__(self, cni_dir: Path) -> None:
        self._folder = cni_dir

    def ids(self) -> list[str]:
        """The sandboxes that it has left something of."""
        found = {cached.container_id for cached in self._results("*") if valid_sandbox_id(cached.container_id)}
        with contextlib.suppress(OSError):
            found |= {path.name for path in self._folder.iterdir() if path.is_file() and valid_sandbox_id(path.name)}
        return sorted(found - _OTHERS)

    def read(self, sandbox_id: str) -> Sandbox | None:
        """Everything that is known of a sandbox; without links, whose indexes nobody has written down."""
        cached = {one.if_name: one for one in self._results(f"*-{sandbox_id}-*") if one.container_id == sandbox_id}
        attachments: list[Attachment] = []
        for index, delegate in enumerate(self._delegates(sandbox_id)):
            ifname = delegate.interface or ("eth0" if index == 0 else f"net{index}")
            owner = Owner.CLUSTER if index == 0 else Owner.NETWORKS
            attachments += _attachment(ifname, delegate, cached.get(ifname), owner)
        known = {attachment.ifname for attachment in attachments}
        for ifname, one in cached.items():
            if ifname not in known:
                owner = Owner.DELEGATE if known or ifname != "eth0" else Owner.CLUSTER
                attachments += _attachment(ifname, Delegate(), one, owner)
        if not attachments:
            return None
        args = next((args for args in (one.args() for one in cached.values()) if "K8S_POD_NAME" in args), {})
        return Sandbox(
            sandbox_id,
            next((one.netns for one in cached.values() if one.netns), ""),
            args.get("K8S_POD_NAMESPACE", ""),
            args.get("K8S_POD_NAME", ""),
            args.get("K8S_POD_UID", ""),
            tuple(attachments),
            adopted=True,
        )

    def forget(self, sandbox_id: str, ifname: str, *, last: bool) -> None:
        """Take away what belongs to an attachment that has been undone; with the last one, the sandbox's file too."""
        for path in self._paths(f"*-{sandbox_id}-{glob.escape(ifname)}"):
            path.unlink(missing_ok=True)
        if last and sandbox_id not in _OTHERS:
            (self._folder / sandbox_id).unlink(missing_ok=True)

    def _delegates(self, sandbox_id: str) -> list[Delegate]:
        if sandbox_id in _OTHERS:
            return []
        try:
            return msgspec.json.decode((self._folder / sandbox_id).read_bytes(), type=list[Delegate])
        except (OSError, msgspec.DecodeError):
            return []

    def _results(self, pattern: str) -> Iterable[Cached]:
        for path in self._paths(pattern):
            try:
                yield msgspec.json.decode(path.read_bytes(), type=Cached)
            except (OSError, msgspec.DecodeError):
                continue

    def _paths(self, pattern: str) -> list[Path]:
        folder = self._folder / "results"
        try:
            return sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
        except OSError:
            return []


def _attachment(ifname: str, delegate: Delegate, cached: Cached | None, owner: Owner) -> list[Attachment]:
    """The attachment, unless nothing tells how it was configured.

    libcni's copy of the configuration comes first: upstream's own has lost keys where the network was a list in a file.
    """
    for text in (cached.config if cached else "", delegate.config):
        network = _network(text, cached.network_name if cached else None)
        if network is None:
            continue
        attributes = cached.attributes() if cached else Attributes()
        made = Attachment(
            ifname=ifname,
            network=delegate.name or network.name,
            owner=owner,
            config=network.text,
            network_name=network.name,
            cni_version=network.version,
            fingerprint=conflist.fingerprint(network, attributes),
            state=State.ADDED,
            runtime=dict(attributes.runtime),
            result=_result(cached),
        )
        return [made]
    return []


def _network(text: str, name: str | None) -> Network | None:
    try:
        return conflist.parse(base64.b64decode(text, validate=True), name=name or None) if text else None
    except (CniError, binascii.Error, ValueError):
        return None


def _result(cached: Cached | None) -> cni.CniResult | None:
    if cached is None:
        return None
    try:
        return cni.up_convert(bytes(cached.result))
    except ValueError:
        return None
