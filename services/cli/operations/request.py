"""The request that plugs or unplugs an interface, and with ``--wait`` the progress of its operation.

The request goes to the subresource of the VMI, or with ``--persist`` of the VM; the body is KubeVirt's. Beside KubeVirt
the api refuses the first, and the second is sent. The response names the operation, which continues when the command
ends.
Next: :mod:`services.cli.operations.follow`, the wait; :mod:`services.cli.operations.outcome`, the messages at the end.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import quote

from services.cli.cluster import cluster_message, explain_not_found, find_vm, find_vmi, get_or_none
from services.cli.errors import CommandFailed
from services.cli.output import say

if TYPE_CHECKING:
    from schemas.kubernetes.objects import VirtualMachineInstance
    from schemas.stages import OperationKind, Stage
    from services.cli.operations.progress import OperationProgress
    from services.common.kube.client import Kube
    from services.common.kube.errors import KubeError

PATH = "/apis/subresources.hotnic.io/v1/namespaces/{namespace}/{resource}/{name}/{verb}"


class Verb(StrEnum):
    """The subresource of the request."""

    ADD = "addinterface"
    REMOVE = "removeinterface"

    @property
    def kind(self) -> OperationKind:
        """The kind of the operation."""
        from schemas.stages import OperationKind

        return OperationKind.PLUG if self is Verb.ADD else OperationKind.UNPLUG


class ChangeRequest:
    """One request of addinterface or removeinterface and its operation.

    :param body: the body of the subresource.
    :param persist: whether to change the VM instead of the VMI; beside KubeVirt it becomes true.
    :param dry_run: whether to change nothing.
    :param allow_eviction: whether KubeVirt may shut the VM down for it.
    :param timeout: seconds to wait for the operation; ``None`` does not wait.
    :ivar operation: the operation's id; ``None`` until the server has accepted the request.
    :ivar progress: the operation's progress; ``None`` when it was not read.
    :ivar warnings: Warning Events about the interface.
    """

    def __init__(
        self,
        verb: Verb,
        vm: str,
        interface: str,
        body: dict[str, str],
        *,
        persist: bool,
        timeout: float | None,
        dry_run: bool = False,
        allow_eviction: bool = False,
    ) -> None:
        self.verb = verb
        self.vm = vm
        self.interface = interface
        self.persist = persist
        self.timeout = timeout
        self.dry_run = dry_run
        self.allow_eviction = allow_eviction
        self.namespace = ""
        self.operation: str | None = None
        self.progress: OperationProgress | None = None
        self.warnings: list[str] = []
        self._body = body
        self._started = time.monotonic()

    @property
    def status_command(self) -> str:
        """The command that shows the operation's stage."""
        return f"hotnic status {self.vm} -n {self.namespace}"

    async def run(self, kube: Kube, namespace: str) -> None:
        """Send the request and, with a timeout, wait for the operation.

        :raises CliError: the server refused the request, or its response names no operation.
        """
        from schemas.kubernetes.objects import VMIS
        from services.cli.operations.progress import OperationProgress, can_follow_template
        from services.common.kube.errors import Conflict

        self.namespace = namespace
        say(cluster_message(kube), err=True)
        try:
            self.operation = await self._request(kube)
        except Conflict as error:
            if self.persist or not requires_persist(error):
                raise
            self.persist = True
            say("KubeVirt owns the VMs of this cluster: the VM's template is changed (--persist)", err=True)
            self.operation = await self._request(kube)
        if self.operation is None:
            return
        progress = OperationProgress(self.interface, self.operation, self.verb.kind, persist=self.persist)
        vmi: VirtualMachineInstance | None = None
        if self.persist:
            vm = await find_vm(kube, namespace, self.vm)
            vmi = await get_or_none(kube.get(VMIS, namespace, self.vm))
            if not can_follow_template(vm, vmi):
                # The VM is not running: only its template changes.
                self.progress = progress
                progress.observe(vmi, (), vm)
                return
        if self.timeout is not None:
            self.progress = progress
            await self._wait(kube, vmi or await find_vmi(kube, namespace, self.vm), progress, self.timeout)

    async def _request(self, kube: Kube) -> str | None:
        """Send the request and return the id of its operation; ``None`` for a dry run."""
        from schemas.kubernetes.options import OPERATION_HEADER

        path = PATH.format(
            namespace=quote(self.namespace, safe=""),
            resource="virtualmachines" if self.persist else "virtualmachineinstances",
            name=quote(self.vm, safe=""),
            verb=self.verb,
        )
        self._started = time.monotonic()
        query = ({"dryRun": "All"} if self.dry_run else {}) | ({"allowEviction": "true"} if self.allow_eviction else {})
        request = kube.request("PUT", path, query=query, body=self._body, span=f"kube put {self.verb}")
        response = await explain_not_found(request, self.namespace, self.vm)
        for warning in response.warnings:
            say(f"Warning: {warning}", err=True)
        operation: str | None = response.headers.get(OPERATION_HEADER)
        if operation is None and not self.dry_run:
            raise CommandFailed(
                f"the response has no header {OPERATION_HEADER}: another API serves this path; check the APIService of "
                "subresources.hotnic.io"
            )
        return operation

    async def _wait(
        self,
        kube: Kube,
        vmi: VirtualMachineInstance,
        progress: OperationProgress,
        timeout: float,
    ) -> None:
        from services.cli.operations.follow import follow_operation
        from services.cli.operations.hotplug_status import read_warnings
        from services.cli.operations.progress import OperationResult

        say(f"operation {self.operation} accepted", err=True)
        await follow_operation(
            kube,
            vmi,
            progress,
            with_vm=self.persist,
            timeout=timeout,
            on_stage=self._print_stage,
            on_watch_error=self._print_line,
        )
        if progress.outcome is None or progress.outcome.result is OperationResult.FAILED:
            self.warnings = await read_warnings(kube, vmi, self.interface)

    def _print_stage(self, stage: Stage) -> None:
        self._print_line(str(stage))

    def _print_line(self, text: str) -> None:
        say(f"{time.monotonic() - self._started:7.3f} s  {text}", err=True)


def requires_persist(error: KubeError) -> bool:
    """Return whether a request about a VMI was refused because KubeVirt owns the VMs."""
    from schemas.kubernetes.options import PERSIST_REQUIRED

    details = error.status_body.details if error.status_body is not None else None
    return any(cause.reason == PERSIST_REQUIRED for cause in (details.causes if details is not None else None) or ())
