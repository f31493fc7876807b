"""The client of the multus daemon: ``/delegate`` to attach or detach one network, and the record of a sandbox.

The request bodies are those of the dynamic networks controller, so the daemon may be upstream's, which serves no
records. The client never repeats an ADD; the caller decides that by the kind of failure.
Next: :mod:`services.networks.network_config`, the CNI configuration that is sent.
"""

import asyncio
import os
import re
from typing import Final
from urllib.parse import quote

import msgspec

from schemas import cni
from schemas.inputs import Edge, InputDecoder, RejectedInput, rejecting
from schemas.kubernetes.networks import NetworkSelectionElement
from schemas.kubernetes.objects import Pod
from schemas.multus import (
    DELEGATE_PATH,
    SANDBOXES_PATH,
    InterfaceAttributes,
    SandboxRecord,
    build_delegate_request,
)
from services.common.cri.sandbox import Sandbox
from services.common.http.client import HttpFailure, UnixHttpClient
from services.common.telemetry.redact import redact_configuration

DEADLINE: Final = 60.0
"""Seconds for one ADD or DEL: a plugin may wait for its own controller (kube-ovn's waits for up to 15 s)."""
RECORD_DEADLINE: Final = 5.0
PROBE_DEADLINE: Final = 2.0
"""Seconds to connect; a probe sends nothing."""
MAX_TEXT: Final = 1024
"""Bytes of a response that an error message quotes."""

UNAVAILABLE: Final = "MultusUnavailable"
BUSY: Final = "TryAgainLater"
STILL_IN_USE: Final = "StillInUse"
"""A guest uses the link: it cannot be detached before the handler has torn down the pod network."""
FAILED: Final = "CniFailed"

_PLUGIN_FAILED: Final = re.compile(rb"failed \(add\)|error configuring pod \[[^]]*] networking: (?!DelegateAdd: )")
"""The response of a daemon that has found the link name free, and has failed after that.

The first text is libcni's, for a plugin of a list. For a single plugin upstream's daemon quotes the plugin alone after
the second text, which is its own. The errors of its checks, that of the name among them, begin with ``DelegateAdd:``.
"""

_REFUSALS: Final = (cni.NOT_ALLOWED, cni.ISOLATED, cni.NO_CONFIGURATION)

DaemonId = tuple[int, int, int]
"""Device, inode and time of change of a daemon's socket."""


class _Response(msgspec.Struct, frozen=True):
    """The response to ADD, with a result of any CNI version."""

    result: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"), name="Result")


_response = InputDecoder(Edge.MULTUS, _Response)
_record = msgspec.json.Decoder(SandboxRecord)


class AttachmentFailure(Exception):
    """An attempt to attach or detach a network failed; the role retries unless the failure of an ADD is final.

    All reads and writes for a change raise it, also those of the container runtime and the API server.

    :ivar reason: CamelCase, stable.
    :ivar message: human-readable.
    :ivar plugin_failed: whether a plugin of an ADD ran and failed, so that whatever now has the link name was made by
        this attempt.
    :ivar final: whether another attempt fails too, until somebody changes the network, the pod or a setting.
    """

    def __init__(self, reason: str, message: str, *, plugin_failed: bool = False, final: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.plugin_failed = plugin_failed
        self.final = final


class MultusClient:
    """A client of the multus daemon.

    :param http: the HTTP client of that socket.
    :param socket_path: path of the daemon's unix socket.
    :param deadline: seconds for one ADD or DEL.
    """

    def __init__(self, http: UnixHttpClient, socket_path: str, *, deadline: float = DEADLINE) -> None:
        self._http = http
        self._socket_path = socket_path
        self._deadline = deadline
        self._asked: DaemonId | None = None
        """The daemon that is known to serve records or not to serve them."""
        self._serves_records = True
        self._asking = asyncio.Lock()

    @property
    def serves_records(self) -> bool:
        """Whether the daemon is hotnic's, as far as is known: it also finds networks by name."""
        return self._serves_records

    async def add(
        self,
        pod: Pod,
        sandbox: Sandbox,
        link: str,
        config: bytes,
        element: NetworkSelectionElement,
        *,
        network: str = "",
    ) -> cni.CniResult:
        """Attach a network and return the CNI result.

        :param link: name of the new pod interface.
        :param config: the CNI configuration; empty: the daemon finds it by ``network``.
        :param network: ``namespace/name`` of the NAD, by which hotnic's daemon decides namespace isolation.
        :raises AttachmentFailure: the call failed; with ``MultusUnavailable`` it had no effect or an unknown one.
        """
        response = await self._call(
            cni.CniCommand.ADD,
            pod,
            sandbox,
            link,
            config,
            interface_attributes(element),
            network=network if self._serves_records else "",
        )
        return decode_result(response)

    async def delete(self, pod: Pod, sandbox: Sandbox, link: str, config: bytes, *, mac: str | None = None) -> None:
        """Detach a network.

        :param link: name of the pod interface.
        :param config: the CNI configuration of the ADD; empty if the NAD does not exist any more. A daemon with records
            uses the configuration in its record.
        :param mac: MAC of a link of which the daemon may have no record; upstream's daemon does not need it.
        :raises AttachmentFailure: the call failed.
        """
        attributes = InterfaceAttributes(cni_args=None, mac=mac) if mac and self._serves_records else None
        await self._call(cni.CniCommand.DEL, pod, sandbox, link, config, attributes)

    async def record(self, sandbox: Sandbox) -> SandboxRecord | None:
        """Return the daemon's record of a sandbox; ``None`` if it has none, or serves no records.

        A daemon that serves none is asked once, because upstream's logs every such request as an error.

        :raises AttachmentFailure: ``MultusUnavailable``: no response, one that cannot be decoded, or the daemon cannot
            read the record.
        """
        # Another daemon has another socket. Without a socket the request fails below.
        daemon = _daemon_id(self._socket_path)
        if daemon is None or daemon != self._asked:
            # One request at a time, until the first response shows what the daemon serves.
            async with self._asking:
                if daemon is None or daemon != self._asked:
                    record, serves = await self._request_record(sandbox)
                    self._asked, self._serves_records = daemon, serves
                    return record
        if not self._serves_records:
            return None
        return (await self._request_record(sandbox))[0]

    async def _request_record(self, sandbox: Sandbox) -> tuple[SandboxRecord | None, bool]:
        """Return the daemon's record of a sandbox, if it has one, and whether the daemon serves records at all."""
        path = f"{SANDBOXES_PATH}/{quote(sandbox.id, safe='')}"
        try:
            status, response = await self._http.request("GET", path, timeout=RECORD_DEADLINE)
        except HttpFailure as error:
            raise AttachmentFailure(UNAVAILABLE, f"multus daemon: {error}") from error
        # Upstream's daemon answers every unknown path with 404 too, but not with a CNI error.
        if status == 404:
            return None, cni.decode_error(response) is not None
        if status != 200:
            document = cni.decode_error(response)
            text = document.msg if document is not None else _text(response)
            raise AttachmentFailure(
                UNAVAILABLE, f"the multus daemon's response to GET {path} has status {status}: {text}"
            )
        return decode_record(response), True

    async def probe(self) -> str:
        """Connect to the daemon's socket; return ``""``, or the error if that fails."""
        try:
            async with asyncio.timeout(PROBE_DEADLINE):
                _, writer = await asyncio.open_unix_connection(self._socket_path)
        except OSError as error:
            return f"multus daemon at {self._socket_path}: {_reason(error)}"
        writer.close()
        return ""

    async def _call(
        self,
        command: cni.CniCommand,
        pod: Pod,
        sandbox: Sandbox,
        link: str,
        config: bytes,
        attributes: InterfaceAttributes | None,
        *,
        network: str = "",
    ) -> bytes:
        request = build_delegate_request(
            command=command,
            sandbox_id=sandbox.id,
            netns=sandbox.netns,
            interface=link,
            pod_namespace=pod.metadata.namespace,
            pod_name=pod.metadata.name,
            pod_uid=pod.metadata.uid,
            config=config,
            attributes=attributes,
            network=network,
        )
        try:
            status, response = await self._http.request("POST", DELEGATE_PATH, json=request, timeout=self._deadline)
        except HttpFailure as error:
            raise AttachmentFailure(UNAVAILABLE, f"multus daemon: {error}") from error
        if status == 200:
            return response
        raise attachment_failure(command, status, response, config)


def _daemon_id(socket_path: str) -> DaemonId | None:
    """Return the identity of the daemon that has created the socket; ``None`` if there is no socket."""
    try:
        found = os.stat(socket_path)
    except OSError:
        return None
    # The time, because a file system may give a new socket the inode of the old one.
    return found.st_dev, found.st_ino, found.st_ctime_ns


def interface_attributes(element: NetworkSelectionElement) -> InterfaceAttributes | None:
    """Return the settings of an element that ``/delegate`` carries; ``None`` if it has none of them."""
    if not (element.ips or element.mac or element.cni_args is not None):
        return None
    # As upstream's client encodes them: empty ips and mac are omitted, missing cni-args are null.
    return InterfaceAttributes(
        cni_args=element.cni_args,
        ips=element.ips if element.ips else msgspec.UNSET,
        mac=element.mac if element.mac else msgspec.UNSET,
    )


def decode_result(response: bytes) -> cni.CniResult:
    """Return the result in the response to ADD.

    :raises AttachmentFailure: ``MultusUnavailable``: it cannot be decoded, or there is none.
    """
    try:
        sent = bytes(_response.decode(response).result) if response else b"null"
        result = cni.up_convert(sent) if sent != b"null" else None
    except RejectedInput as error:
        raise AttachmentFailure(UNAVAILABLE, f"cannot decode the multus daemon's response to ADD: {error}") from error
    if result is None:
        raise AttachmentFailure(UNAVAILABLE, "the multus daemon's response to ADD has no result")
    return result


def decode_record(response: bytes) -> SandboxRecord:
    """Return the record of a sandbox.

    :raises AttachmentFailure: ``MultusUnavailable``: it cannot be decoded.
    """
    try:
        # Without the limit of depth: what a pod's annotation may nest is nested deeper here.
        with rejecting(Edge.MULTUS):
            return _record.decode(response)
    except RejectedInput as error:
        raise AttachmentFailure(
            UNAVAILABLE, f"cannot decode the multus daemon's record of a sandbox: {error}"
        ) from error


def attachment_failure(command: cni.CniCommand, status: int, response: bytes, config: bytes = b"") -> AttachmentFailure:
    """Return the failure of a response whose status is not 200.

    :param response: a CNI error document of hotnic's daemon, or plain text of upstream's.
    :param config: the CNI configuration, whose secrets are not quoted: upstream's daemon passes on whatever a plugin
        says.
    """
    plugin_failed = command is cni.CniCommand.ADD and _PLUGIN_FAILED.search(response) is not None
    error = cni.decode_error(response)
    if error is None:
        text = _text(response, config) or "no text"
        return AttachmentFailure(FAILED, f"CNI {command} (status {status}): {text}", plugin_failed=plugin_failed)
    details = f" ({error.details})" if error.details else ""
    reason = BUSY if error.code == cni.CniErrorCode.TRY_AGAIN_LATER else FAILED
    if reason == BUSY and cni.STILL_IN_USE in error.msg:
        reason = STILL_IN_USE
    return AttachmentFailure(
        reason,
        redact_configuration(f"CNI {command} (code {error.code}): {error.msg}{details}", config),
        plugin_failed=plugin_failed,
        final=not plugin_failed and _is_refused(error),
    )


def _is_refused(error: cni.CniErrorDocument) -> bool:
    """Return whether hotnic's daemon refuses the network itself; no plugin has run."""
    if error.code == cni.CniErrorCode.INCOMPATIBLE_VERSION:
        return True
    return error.code == cni.CniErrorCode.INVALID_CONFIG and any(text in error.msg for text in _REFUSALS)


def _text(response: bytes, config: bytes = b"") -> str:
    """Return a response body as one line of limited length, without the secrets of a configuration."""
    text = redact_configuration(response[: 16 * MAX_TEXT].decode(errors="replace"), config)
    return " ".join(text[:MAX_TEXT].split())


def _reason(error: OSError) -> str:
    return "connection timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
