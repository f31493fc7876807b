"""The client of the multus daemon: ``/delegate`` for one attachment more, or less, and the record of a sandbox.

Body for body what the dynamic networks controller sends, so the daemon may be upstream's, which keeps no record that
can be asked for. ADD is not repeated here: whether it may be is the caller's decision, by the kind of failure.
Next: :mod:`services.networks.status`.
"""

import asyncio
from typing import Final
from urllib.parse import quote

import msgspec

from schemas import cni
from schemas.multus import (
    DELEGATE_PATH,
    SANDBOXES_PATH,
    DelegateResponse,
    InterfaceAttributes,
    SandboxRecord,
    delegate_request,
)
from schemas.networks import NetworkSelectionElement
from services.common import faults
from services.common.cri.sandbox import Sandbox
from services.common.http.client import HttpFailure, UnixHttp
from services.networks.failure import Failure

DEADLINE: Final = 60.0
"""Seconds for one ADD or DEL: a plugin may wait for a controller of its own (kube-ovn's does so for 15 s)."""
RECORD_DEADLINE: Final = 5.0
PROBE_DEADLINE: Final = 2.0
MAX_TEXT: Final = 1024
"""Bytes of an answer's text that are quoted."""

UNAVAILABLE: Final = "MultusUnavailable"
BUSY: Final = "TryAgainLater"
STILL_IN_USE: Final = "StillInUse"
"""A guest uses the link: nothing can be undone before the handler has released it."""
FAILED: Final = "CniFailed"

_PLUGIN_FAILED: Final = "failed (add)"
"""What libcni says of a plugin that ran. Both daemons look whether the link name is free before they run one."""

_response = msgspec.json.Decoder(DelegateResponse)
_error = msgspec.json.Decoder(cni.CniErrorDocument)
_record = msgspec.json.Decoder(SandboxRecord)


class Pod(msgspec.Struct, frozen=True):
    """Whose sandbox it is, as CNI plugins are told."""

    namespace: str
    name: str
    uid: str


class Delegate:
    """The daemon behind a unix socket."""

    def __init__(self, http: UnixHttp, socket_path: str, *, deadline: float = DEADLINE) -> None:
        self._http = http
        self._socket_path = socket_path
        self._deadline = deadline

    async def add(
        self, pod: Pod, sandbox: Sandbox, link: str, config: bytes, element: NetworkSelectionElement
    ) -> cni.CniResult:
        """Attach a network under this link name.

        :raises Failure: of any kind; ``MultusUnavailable`` where nothing can have happened or nobody can know.
        """
        answer = await self._call(cni.Command.ADD, pod, sandbox, link, config, attributes_of(element))
        try:
            result = _response.decode(answer).result if answer else None
            if result is not None:
                cni.checked(result)
        except ValueError as error:
            raise Failure(UNAVAILABLE, f"the multus daemon's answer to ADD cannot be read: {error}") from error
        if result is None:
            raise Failure(UNAVAILABLE, "the multus daemon answered ADD without a result")
        return result

    async def delete(self, pod: Pod, sandbox: Sandbox, link: str, config: bytes) -> None:
        """Detach what stands under this link name.

        :param config: the one of ADD; empty when the network is gone: a daemon that keeps records has its own.
        :raises Failure: of any kind.
        """
        await self._call(cni.Command.DEL, pod, sandbox, link, config, None)

    async def record(self, sandbox: Sandbox) -> SandboxRecord | None:
        """What the daemon has attached to a sandbox; ``None`` when it does not know it, or keeps no records.

        :raises Failure: ``MultusUnavailable``: it did not answer, or not in a form that can be read.
        """
        path = f"{SANDBOXES_PATH}/{quote(sandbox.id, safe='')}"
        try:
            status, answer = await self._http.request("GET", path, timeout=RECORD_DEADLINE)
        except HttpFailure as error:
            raise Failure(UNAVAILABLE, f"multus daemon: {error}") from error
        if status == 404:
            return None
        if status != 200:
            raise Failure(UNAVAILABLE, f"the multus daemon's answer to GET {path} has status {status}: {_text(answer)}")
        try:
            return _record.decode(answer)
        except msgspec.DecodeError as error:
            raise Failure(UNAVAILABLE, f"the multus daemon's record of a sandbox cannot be read: {error}") from error

    async def probe(self) -> str:
        """Whether somebody listens: ``""``, or why not."""
        try:
            async with asyncio.timeout(PROBE_DEADLINE):
                _, writer = await asyncio.open_unix_connection(self._socket_path)
        except OSError as error:
            return f"multus daemon at {self._socket_path}: {_why(error)}"
        writer.close()
        return ""

    async def _call(
        self,
        command: cni.Command,
        pod: Pod,
        sandbox: Sandbox,
        link: str,
        config: bytes,
        attributes: InterfaceAttributes | None,
    ) -> bytes:
        request = delegate_request(
            command=command,
            sandbox_id=sandbox.id,
            netns=sandbox.netns,
            interface=link,
            pod_namespace=pod.namespace,
            pod_name=pod.name,
            pod_uid=pod.uid,
            config=config,
            attributes=attributes,
        )
        try:
            with faults.step(f"networks.delegate-{command.lower()}"):
                status, answer = await self._http.request("POST", DELEGATE_PATH, json=request, timeout=self._deadline)
        except HttpFailure as error:
            raise Failure(UNAVAILABLE, f"multus daemon: {error}") from error
        if status == 200:
            return answer
        raise failure_of(command, status, answer)


def attributes_of(element: NetworkSelectionElement) -> InterfaceAttributes | None:
    """What ``/delegate`` carries of an element; ``None`` when it asks for nothing of its own."""
    if not (element.ips or element.mac or element.cni_args is not None):
        return None
    return InterfaceAttributes(
        cni_args=element.cni_args,
        ips=element.ips if element.ips else msgspec.UNSET,
        mac=element.mac if element.mac else msgspec.UNSET,
    )


def failure_of(command: cni.Command, status: int, answer: bytes) -> Failure:
    """The failure behind an answer that is not 200: CNI error JSON, or upstream's text."""
    half_made = command is cni.Command.ADD and _PLUGIN_FAILED.encode() in answer
    try:
        error = _error.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = _text(answer) or "no text"
        return Failure(FAILED, f"CNI {command} (status {status}): {text}", half_made=half_made)
    details = f" ({error.details})" if error.details else ""
    reason = BUSY if error.code == cni.Code.TRY_AGAIN_LATER else FAILED
    if reason == BUSY and cni.STILL_IN_USE in error.msg:
        reason = STILL_IN_USE
    return Failure(reason, f"CNI {command} (code {error.code}): {error.msg}{details}", half_made=half_made)


def _text(answer: bytes) -> str:
    """A body for people: one line, shortened."""
    return " ".join(answer[:MAX_TEXT].decode(errors="replace").split())


def _why(error: OSError) -> str:
    return "no connection in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
