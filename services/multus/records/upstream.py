"""The files that multus-cni left on the node about a sandbox, read as a record after its daemon was replaced.

There are two kinds below its ``cniDir``. ``<containerID>`` lists the sandbox's delegates in order. For each attachment,
hot-plugged ones included, ``results/<network>-<containerID>-<ifname>`` is libcni's cache with the configuration that
was run. Either may be missing or torn. The files stay until the attachment is deleted, so that a node can be given back
to multus-cni. Next: :mod:`services.multus.sandboxes.adoption`.
"""

import base64
import contextlib
import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas import cni
from schemas.inputs import Edge, RejectedInput, rejecting
from services.common.node.files import read_bounded
from services.multus.cni import conflist
from services.multus.cni.call import is_valid_sandbox_id
from services.multus.cni.conflist import AttachmentAttributes, NetworkConfig
from services.multus.cni.errors import CniError
from services.multus.records.sandbox import Attachment, AttachmentOrigin, AttachmentState, SandboxState

_OTHERS: Final = frozenset({"results", "sandboxes"})
"""Directories in ``cniDir`` that are not sandboxes."""


class CachedResult(msgspec.Struct, frozen=True, rename="camel"):
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
        """Return ``CNI_ARGS`` of the call."""
        return {pair[0]: pair[1] for pair in self.cni_args or () if len(pair) == 2}

    def attributes(self) -> AttachmentAttributes:
        """Return the attributes that were requested."""
        runtime, args = dict(self.capability_args or {}), self.args()
        if args.get("MAC"):
            runtime.setdefault("mac", args["MAC"])
        if args.get("IP"):
            runtime.setdefault("ips", args["IP"].split(","))
        return AttachmentAttributes(runtime)


class UpstreamDelegate(msgspec.Struct, frozen=True):
    """An element of a ``<containerID>`` file."""

    name: str = msgspec.field(default="", name="Name")
    interface: str = msgspec.field(default="", name="ifnameRequest")
    config: str = msgspec.field(default="", name="Bytes")


class UpstreamCache:
    """multus-cni's files on this node.

    :param cni_dir: multus' ``cniDir``.
    """

    def __init__(self, cni_dir: Path) -> None:
        self._folder = cni_dir

    def sandbox_ids(self) -> list[str]:
        """Return the container ids that the files name."""
        found = {cached.container_id for cached in self._results("*") if is_valid_sandbox_id(cached.container_id)}
        with contextlib.suppress(OSError):
            found |= {path.name for path in self._folder.iterdir() if path.is_file() and is_valid_sandbox_id(path.name)}
        return sorted(found - _OTHERS)

    def read(self, sandbox_id: str) -> SandboxState | None:
        """Return the record that the files of a sandbox describe; ``None`` when there are none.

        The record has no link indexes, because multus-cni does not store them.

        :param sandbox_id: the container id.
        """
        cached = {one.if_name: one for one in self._results(f"*-{sandbox_id}-*") if one.container_id == sandbox_id}
        attachments: list[Attachment] = []
        for index, delegate in enumerate(self._delegates(sandbox_id)):
            # The file has requested names only; upstream derives the others from the position.
            ifname = delegate.interface or ("eth0" if index == 0 else f"net{index}")
            origin = AttachmentOrigin.CLUSTER if index == 0 else AttachmentOrigin.NETWORKS
            attachments += _attachment(ifname, delegate, cached.get(ifname), origin)
        known = {attachment.ifname for attachment in attachments}
        for ifname, one in cached.items():
            if ifname not in known:
                # `/delegate` writes to libcni's cache only. Without a list of delegates, eth0 is the cluster network.
                origin = AttachmentOrigin.DELEGATE if known or ifname != "eth0" else AttachmentOrigin.CLUSTER
                attachments += _attachment(ifname, UpstreamDelegate(), one, origin)
        if not attachments:
            return None
        args = next((args for args in (one.args() for one in cached.values()) if "K8S_POD_NAME" in args), {})
        return SandboxState(
            sandbox_id,
            next((one.netns for one in cached.values() if one.netns), ""),
            args.get("K8S_POD_NAMESPACE", ""),
            args.get("K8S_POD_NAME", ""),
            args.get("K8S_POD_UID", ""),
            tuple(attachments),
            adopted=True,
        )

    def remove(self, sandbox_id: str, ifname: str, *, last: bool) -> None:
        """Remove the files of an attachment that was deleted.

        :param sandbox_id: the container id.
        :param ifname: the attachment's link name.
        :param last: whether it was the sandbox's last attachment, so that the sandbox's own file is removed too.
        """
        for path in self._paths(f"*-{sandbox_id}-{glob.escape(ifname)}"):
            path.unlink(missing_ok=True)
        if last and sandbox_id not in _OTHERS:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                (self._folder / sandbox_id).unlink()

    def _delegates(self, sandbox_id: str) -> list[UpstreamDelegate]:
        if sandbox_id in _OTHERS:
            return []
        try:
            data = read_bounded(self._folder / sandbox_id)
            with rejecting(Edge.FILE):
                return msgspec.json.decode(data, type=list[UpstreamDelegate])
        except (OSError, RejectedInput):
            return []

    def _results(self, pattern: str) -> Iterable[CachedResult]:
        for path in self._paths(pattern):
            try:
                data = read_bounded(path)
                with rejecting(Edge.FILE):
                    cached = msgspec.json.decode(data, type=CachedResult)
            except (OSError, RejectedInput):
                continue
            yield cached

    def _paths(self, pattern: str) -> list[Path]:
        folder = self._folder / "results"
        try:
            # Sorted by time, because a later file of the same attachment overrides an earlier one.
            return sorted(filter(Path.is_file, folder.glob(pattern)), key=lambda path: path.stat().st_mtime_ns)
        except OSError:
            return []


def _attachment(
    ifname: str, delegate: UpstreamDelegate, cached: CachedResult | None, origin: AttachmentOrigin
) -> list[Attachment]:
    """Return the attachment in a list; the list is empty when no file has its configuration.

    libcni's copy of the configuration comes first: upstream's own copy of a list from a file lacks plugin keys
    (multus-cni#1449).
    """
    for text in (cached.config if cached else "", delegate.config):
        network = _network(text, cached.network_name if cached else None)
        if network is None:
            continue
        attributes = cached.attributes() if cached else AttachmentAttributes()
        made = Attachment(
            ifname=ifname,
            network=delegate.name or network.name,
            origin=origin,
            config=network.text,
            network_name=network.name,
            cni_version=network.version,
            fingerprint=conflist.fingerprint(network, attributes),
            state=AttachmentState.ADDED,
            runtime=dict(attributes.runtime),
            result=_result(cached),
        )
        return [made]
    return []


def _network(text: str, name: str | None) -> NetworkConfig | None:
    if not text:
        return None
    try:
        return conflist.parse_recorded(base64.b64decode(text, validate=True).decode(), name=name or None)
    except (CniError, ValueError):
        return None


def _result(cached: CachedResult | None) -> cni.CniResult | None:
    if cached is None:
        return None
    try:
        return cni.up_convert(bytes(cached.result))
    except ValueError:
        return None
