"""The connection to a cluster: options as kubectl has them, the client, and an exit code for each of its errors.

Next: :mod:`services.cli.commands.status`, the simplest command that uses it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from services.cli.errors import CommandFailed, RefusedByServer, Unreachable
from services.common.telemetry.redact import redact_addresses

if TYPE_CHECKING:
    from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
    from services.common.kube.client import Kube
    from services.common.kube.errors import KubeError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

USER_AGENT = "hotnic-cli"


@dataclass(frozen=True, slots=True)
class ClusterTarget:
    """Cluster and namespace as the user selected them; ``None`` selects the default of the kubeconfig."""

    namespace: str | None
    context: str | None
    kubeconfig: str | None


def cluster_options(command: F) -> F:
    """Add ``--namespace``, ``--context`` and ``--kubeconfig``."""
    for option in (
        click.option("--kubeconfig", metavar="FILE", help="Path of the kubeconfig file (default: as for kubectl)."),
        click.option("--context", metavar="NAME", help="Name of the kubeconfig context."),
        click.option("-n", "--namespace", metavar="NAME", help="Namespace of the VM (default: that of the context)."),
    ):
        command = option(command)
    return command


def run_with_cluster(
    target: ClusterTarget, work: Callable[[Kube, str], Coroutine[Any, Any, T]], *, span: str | None = None
) -> T:
    """Connect to the cluster, run ``work(kube, namespace)`` and disconnect.

    :param span: name of a span around the work, for commands that change something; ``None`` creates no spans.
    :raises CliError: the cluster does not answer or refuses a request.
    """
    # Large libraries are imported where they are used, so that help texts and usage errors appear at once.
    from services.cli.tracing import tracer
    from services.common.kube.client import Kube
    from services.common.kube.errors import KubeError

    async def connected() -> T:
        kubeconfig = target.kubeconfig or os.environ.get("KUBECONFIG") or None
        traces = tracer.configure_tracing() if span else tracer.NoTraces()
        try:
            kube = await Kube.connect(
                kubeconfig=kubeconfig, telemetry=traces, user_agent=USER_AGENT, context=target.context
            )
            async with kube:
                entry = tracer.caller_entry(traces)
                with traces.tracer.start_as_current_span(span or "", context=entry.parent, links=entry.links):
                    return await work(kube, target.namespace or kube.access.namespace)
        finally:
            traces.shutdown()

    try:
        return asyncio.run(connected())
    except KubeError as error:
        raise cli_error(error) from error


def cli_error(error: KubeError) -> click.ClickException:
    """Return the error with exit code and message for an error of the API server or of the connection to it."""
    from services.common.kube import errors

    if isinstance(error, errors.KubeconfigError):
        return Unreachable(f"cannot find a cluster: {error.message}\n{CLUSTER_HINT}")
    # An error inside the server is no refusal of the request.
    if error.status == 500:
        return CommandFailed(f"the server failed (500 {error.reason}): {error.message}")
    if isinstance(error, errors.Unavailable):
        # With a status it was the API server that answered: its address is right.
        hint = CLUSTER_HINT if error.status == 0 else "hotnic's api or the API server is not available; try again later"
        return Unreachable(f"the cluster does not answer: {error.message}\n{hint}")
    if isinstance(error, errors.Unauthorized):
        return RefusedByServer(f"the server rejected the credentials: {error.message}")
    return RefusedByServer(f"the server refused ({error.status} {error.reason}): {error.message}")


CLUSTER_HINT = (
    "Select a cluster with --kubeconfig FILE, --context NAME or KUBECONFIG; "
    'for the lab: export KUBECONFIG="$(hotnic lab kubeconfig)"'
)


def cluster_message(kube: Kube) -> str:
    """Return the line that names the cluster, which commands print before they change something."""
    return f"cluster {redact_addresses(kube.access.server)}, context {kube.access.context or '(in the pod)'}"


async def find_vmi(kube: Kube, namespace: str, name: str) -> VirtualMachineInstance:
    """Read a VMI.

    :raises RefusedByServer: there is none; the message names the namespace.
    """
    from schemas.kubernetes.objects import VMIS

    return await explain_not_found(kube.get(VMIS, namespace, name), namespace, name)


async def find_vm(kube: Kube, namespace: str, name: str) -> VirtualMachine:
    """Read a VM.

    :raises RefusedByServer: there is none; the message names the namespace.
    """
    from schemas.kubernetes.objects import VMS

    return await explain_not_found(kube.get(VMS, namespace, name), namespace, name)


async def get_or_none(answer: Awaitable[T]) -> T | None:
    """Await a request and return its answer; ``None`` when the object does not exist."""
    from services.common.kube.errors import NotFound

    try:
        return await answer
    except NotFound:
        return None


async def explain_not_found(answer: Awaitable[T], namespace: str, name: str) -> T:
    """Await a request about a VM or its VMI and explain a "not found".

    :raises RefusedByServer: the VM or VMI does not exist, or the cluster does not serve hotnic's API.
    :raises KubeError: any other error, also when another object does not exist.
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
                raise RefusedByServer(
                    f'no {what} "{name}" in namespace "{namespace}"; list them with: kubectl get {short} -n {namespace}'
                ) from error
        if details is None or not details.name:
            # A 404 that names no object is about the path: the cluster does not serve this API.
            raise RefusedByServer(
                f"the cluster does not serve hotnic's API ({error.message}); check whether hotnic is installed"
            ) from error
        raise


async def find_pod(kube: Kube, vmi: VirtualMachineInstance) -> Pod | None:
    """Read the acting pod of a VMI; ``None`` when there is none."""
    from schemas.kubernetes.objects import PODS
    from services.common.domain.operations import find_acting_pod

    listing = await kube.list(PODS, vmi.metadata.namespace, labels=pod_selector(vmi))
    return find_acting_pod(vmi, listing.items)


def pod_selector(vmi: VirtualMachineInstance) -> str:
    """Return the label selector of a VMI's launcher pods."""
    from schemas.kubernetes.objects import CREATED_BY_LABEL

    return f"{CREATED_BY_LABEL}={vmi.metadata.uid}"
