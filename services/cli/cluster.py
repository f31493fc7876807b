"""Finding a cluster as kubectl does, and saying in one message what is wrong when it cannot be used.

The options every cluster command has, the connection, and the translation of the client's errors into exit codes.
Next: :mod:`services.cli.status`, the simplest of its users.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from services.cli.errors import Failed, Refused, Unreachable

if TYPE_CHECKING:
    from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
    from services.common.kube.client import Kube
    from services.common.kube.errors import KubeError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

USER_AGENT = "hotnic-cli"


@dataclass(frozen=True, slots=True)
class Where:
    """Which cluster and namespace the user means; ``None`` is what the kubeconfig says."""

    namespace: str | None
    context: str | None
    kubeconfig: str | None


def cluster_options(command: F) -> F:
    """Add ``--namespace``, ``--context`` and ``--kubeconfig``."""
    for option in (
        click.option("--kubeconfig", metavar="FILE", help="Credentials file (default: as kubectl finds it)."),
        click.option("--context", metavar="NAME", help="Context of the credentials file."),
        click.option("-n", "--namespace", metavar="NAME", help="Namespace of the VM (default: the context's)."),
    ):
        command = option(command)
    return command


def call(where: Where, work: Callable[[Kube, str], Coroutine[Any, Any, T]], *, span: str | None = None) -> T:
    """Connect, run ``work(kube, namespace)`` and disconnect.

    :param span: name of the span around it all, for commands that change something.
    :raises Complaint: the cluster is not there, or says no.
    """
    from services.cli import tracing
    from services.common.kube.client import Kube
    from services.common.kube.errors import KubeError

    async def connected() -> T:
        kubeconfig = where.kubeconfig or os.environ.get("KUBECONFIG") or None
        traces = tracing.telemetry() if span else tracing.NoTraces()
        try:
            kube = await Kube.connect(
                kubeconfig=kubeconfig, telemetry=traces, user_agent=USER_AGENT, context=where.context
            )
            async with kube:
                with traces.tracer.start_as_current_span(span or "", context=tracing.caller()):
                    return await work(kube, where.namespace or kube.access.namespace)
        finally:
            traces.shutdown()

    try:
        return asyncio.run(connected())
    except KubeError as error:
        raise complaint(error) from error


def complaint(error: KubeError) -> click.ClickException:
    """What to tell the user about an error of the API server, or of the way to it."""
    from services.common.kube import errors

    if isinstance(error, errors.KubeconfigError):
        return Unreachable(f"no cluster: {error.message}\n{HOW_TO_POINT}")
    if error.status == 500:
        return Failed(f"the server failed (500 {error.reason}): {error.message}")
    if isinstance(error, errors.Unavailable):
        hint = HOW_TO_POINT if error.status == 0 else "hotnic's api or the API server is not available; try again"
        return Unreachable(f"the cluster does not answer: {error.message}\n{hint}")
    if isinstance(error, errors.Unauthorized):
        return Refused(f"the server does not accept these credentials: {error.message}")
    return Refused(f"the server refused ({error.status} {error.reason}): {error.message}")


HOW_TO_POINT = (
    "Name one with --kubeconfig FILE, --context NAME or the variable KUBECONFIG; "
    'the lab\'s: export KUBECONFIG="$(hotnic lab kubeconfig)"'
)


def cluster_line(kube: Kube) -> str:
    """What a command that changes something says first: which cluster it is about to change."""
    return f"cluster {kube.access.server}, context {kube.access.context or '(in the pod)'}"


async def find_vmi(kube: Kube, namespace: str, name: str) -> VirtualMachineInstance:
    """Read a VMI.

    :raises Refused: there is none; says where it was looked for.
    """
    from schemas.kube import VMIS

    return await or_unknown(kube.get(VMIS, namespace, name), namespace, name)


async def find_vm(kube: Kube, namespace: str, name: str) -> VirtualMachine:
    """Read a VM.

    :raises Refused: there is none; says where it was looked for.
    """
    from schemas.kube import VMS

    return await or_unknown(kube.get(VMS, namespace, name), namespace, name)


async def or_none(answer: Awaitable[T]) -> T | None:
    """Await a request; ``None`` where what it asks for is not there."""
    from services.common.kube.errors import NotFound

    try:
        return await answer
    except NotFound:
        return None


async def or_unknown(answer: Awaitable[T], namespace: str, name: str) -> T:
    """Await a request about a VM or its VMI.

    :raises Refused: instead of "not found", where it is this VM that is not there.
    """
    from services.common.kube.errors import NotFound

    try:
        return await answer
    except NotFound as error:
        details = error.status_body.details if error.status_body else None
        kind = (details.kind or "") if details is not None and details.name == name else ""
        for prefix, what, short in (
            ("virtualmachineinstance", "running VM", "vmi"),
            ("virtualmachine", "VM", "vm"),
        ):
            if kind.startswith(prefix):
                raise Refused(
                    f'there is no {what} "{name}" in namespace "{namespace}" (see: kubectl get {short} -n {namespace})'
                ) from error
        if details is None or not details.name:
            raise Refused(f"this cluster does not serve the request; is hotnic installed? ({error.message})") from error
        raise


async def find_pod(kube: Kube, vmi: VirtualMachineInstance) -> Pod | None:
    """Read the pod that acts for a VMI; ``None`` when there is none."""
    from schemas.kube import PODS
    from services.common.domain.operations import acting_pod

    listing = await kube.list(PODS, vmi.metadata.namespace, labels=pod_selector(vmi))
    return acting_pod(vmi, listing.items)


def pod_selector(vmi: VirtualMachineInstance) -> str:
    """The label selector of a VMI's launcher pods."""
    from schemas.kube import CREATED_BY_LABEL

    return f"{CREATED_BY_LABEL}={vmi.metadata.uid}"
