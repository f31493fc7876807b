"""One request to change a VM's network cards, and with ``--wait`` its way until it is done.

Plug and unplug are the same here but for their words. The request is KubeVirt's subresource, of the VMI or with
``--persist`` of the VM; its answer names the operation, which goes on when the command ends.
Next: :mod:`services.cli.follow`; what is said in the end is :mod:`services.cli.outcome`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from services.cli.cluster import Where, call, cluster_line, find_vm, find_vmi, or_none, or_unknown
from services.cli.errors import INTERRUPTED, Failed
from services.cli.output import Duration, as_json

if TYPE_CHECKING:
    from schemas.kube import VirtualMachine, VirtualMachineInstance
    from schemas.stages import OperationKind, Stage
    from services.cli.progress import Progress
    from services.common.kube.client import Kube

F = TypeVar("F", bound=Callable[..., Any])

PATH = "/apis/subresources.hotnic.io/v1/namespaces/{namespace}/{resource}/{name}/{verb}"


class Verb(StrEnum):
    """The subresource that is asked."""

    ADD = "addinterface"
    REMOVE = "removeinterface"

    @property
    def kind(self) -> OperationKind:
        """What it does to its interface."""
        from schemas.stages import OperationKind

        return OperationKind.PLUG if self is Verb.ADD else OperationKind.UNPLUG


def change_options(until: str) -> Callable[[F], F]:
    """Add the options of every command that changes a network card.

    :param until: when ``--wait`` is over, for its help.
    """

    def add(command: F) -> F:
        for option in (
            click.option("-o", "--output", type=click.Choice(["json"]), help="Print the outcome as JSON."),
            click.option("--timeout", type=Duration(), default="2m", show_default=True, help="How long --wait waits."),
            click.option("--wait", is_flag=True, help=f"Show each stage, {until}."),
            click.option("--persist", is_flag=True, help="Change the VM's template; the running VM follows it."),
        ):
            command = option(command)
        return command

    return add


class Change:
    """One request.

    :param body: the options that the subresource takes. :param persist: ask the VM, not the VMI.
    :param timeout: seconds to wait for the end; ``None`` does not wait.
    :ivar operation: its id, once the server has accepted.
    :ivar progress: what is known of its way; ``None`` where nobody looked.
    :ivar warnings: what the services reported about the interface.
    """

    def __init__(
        self, verb: Verb, vm: str, interface: str, body: dict[str, str], *, persist: bool, timeout: float | None
    ) -> None:
        self.verb = verb
        self.vm = vm
        self.interface = interface
        self.persist = persist
        self.timeout = timeout
        self.namespace = ""
        self.operation: str | None = None
        self.progress: Progress | None = None
        self.warnings: list[str] = []
        self._body = body
        self._began = time.monotonic()

    @property
    def status_command(self) -> str:
        """The command that shows how the operation stands."""
        return f"hotnic status {self.vm} -n {self.namespace}"

    async def run(self, kube: Kube, namespace: str) -> None:
        """Send the request and, where wanted, wait for its end.

        :raises Complaint: the server refused, or does not tell an operation.
        """
        from schemas.kube import VMIS
        from services.cli.progress import Progress, runs

        self.namespace = namespace
        click.echo(cluster_line(kube), err=True)
        self.operation = await self._request(kube)
        progress = Progress(self.interface, self.operation, self.verb.kind, persist=self.persist)
        vm: VirtualMachine | None = None
        vmi: VirtualMachineInstance | None = None
        if self.persist:
            vm = await find_vm(kube, namespace, self.vm)
            vmi = await or_none(kube.get(VMIS, namespace, self.vm))
            if not runs(vm, vmi):
                self.progress = progress
                progress.see(vmi, (), vm)
                return
        if self.timeout is not None:
            self.progress = progress
            await self._wait(kube, vmi or await find_vmi(kube, namespace, self.vm), vm, progress, self.timeout)

    async def _request(self, kube: Kube) -> str:
        from schemas.options import OPERATION_HEADER

        path = PATH.format(
            namespace=quote(self.namespace, safe=""),
            resource="virtualmachines" if self.persist else "virtualmachineinstances",
            name=quote(self.vm, safe=""),
            verb=self.verb,
        )
        self._began = time.monotonic()
        request = kube.request("PUT", path, body=self._body, span=f"kube put {self.verb}")
        answer = await or_unknown(request, self.namespace, self.vm)
        operation: str | None = answer.headers.get(OPERATION_HEADER)
        if operation is None:
            raise Failed("the server accepted the request but names no operation: it is not hotnic's api")
        return operation

    async def _wait(
        self,
        kube: Kube,
        vmi: VirtualMachineInstance,
        vm: VirtualMachine | None,
        progress: Progress,
        timeout: float,
    ) -> None:
        from services.cli.follow import follow
        from services.cli.progress import Result
        from services.cli.reports import warnings

        click.echo(f"operation {self.operation} accepted", err=True)
        await follow(
            kube,
            vmi,
            progress,
            with_vm=self.persist,
            timeout=timeout,
            reached=self._reached,
            last_failure=self._trouble,
        )
        if progress.outcome is None or progress.outcome.result is Result.FAILED:
            others = (vm.metadata.uid,) if vm is not None else ()
            self.warnings = await warnings(kube, vmi, self.interface, *others)

    def _reached(self, stage: Stage) -> None:
        click.echo(f"{time.monotonic() - self._began:7.3f} s  {stage}", err=True)

    def _trouble(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self._began:7.3f} s  {text}", err=True)


def perform(change: Change, where: Where, output: str | None) -> int:
    """Run a change and say how it ended; returns the exit code.

    :raises Complaint: it did not go well.
    """
    try:
        call(where, change.run, span=f"hotnic {change.verb}")
    except KeyboardInterrupt:
        if change.operation is None:
            raise
        click.echo(f"\nthe operation goes on; look at it with: {change.status_command}", err=True)
        return INTERRUPTED
    from services.cli.outcome import complaint, document, success

    last_failure = complaint(change)
    if output == "json":
        click.echo(as_json(document(change)))
    elif last_failure is None:
        click.echo(success(change))
    if last_failure is not None:
        raise last_failure
    return 0
