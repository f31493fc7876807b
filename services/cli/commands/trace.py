"""``hotnic trace``: shows the trace of an operation, from the request to the guest NIC, as a waterfall.

It reads the span files that the roles write if ``HOTNIC_TRACE_DIR`` is set, as in the lab. It does not read spans from
an OpenTelemetry collector. Next: :mod:`services.cli.tracing.span_files`, :mod:`services.cli.tracing.waterfall`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import TYPE_CHECKING

import click

from services.cli.cluster import ClusterTarget, cluster_options, find_vmi, run_with_cluster
from services.cli.errors import CommandFailed
from services.cli.output import examples, say, say_json, say_styled

if TYPE_CHECKING:
    from schemas.kubernetes.objects import VirtualMachineInstance
    from services.cli.tracing.spans import Span
    from services.cli.tracing.waterfall import Style
    from services.common.kube.client import Kube

_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")
_OPERATION_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@click.command(
    epilog=examples(
        "# Show the latest operation of a VM",
        "hotnic trace vm1",
        "# Show the latest operation of an interface",
        "hotnic trace vm1 --interface blue",
        "# Show an operation by its id",
        "hotnic trace a8bc409b-de23-4587-8076-7c700fc3853f",
    )
)
@click.argument("target", required=False, metavar="[VM | OPERATION-ID | TRACE-ID]")
@click.option("--interface", metavar="NAME", help="Interface of the VM (default: that of the latest operation).")
@click.option("--last", is_flag=True, help="Show the latest operation in the span files; needs no cluster.")
@click.option(
    "--dir", "directory", metavar="DIR", help="Directory of the span files (default: HOTNIC_TRACE_DIR, else the lab's)."
)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output format."
)
@cluster_options
def trace(
    target: str | None,
    interface: str | None,
    last: bool,
    directory: str | None,
    output: str,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Show the trace of an operation as a waterfall, with times in milliseconds."""
    if (target is None) != last:
        raise click.UsageError("specify a VM, an operation id, a trace id or --last")
    from services.cli.tracing.span_files import latest_operation, spans_of_operation, spans_of_trace, trace_folder

    folder = trace_folder(directory)
    if target is None:
        spans = latest_operation(folder)
    elif _TRACE_ID.fullmatch(target):
        spans = spans_of_trace(folder, target)
    elif _OPERATION_ID.fullmatch(target):
        spans = spans_of_operation(folder, target)
    else:
        where = ClusterTarget(namespace, context, kubeconfig)
        spans = spans_of_trace(folder, run_with_cluster(where, lambda kube, ns: _trace_id(kube, ns, target, interface)))
    _show(spans, output)


async def _trace_id(kube: Kube, namespace: str, name: str, interface: str | None) -> str:
    return trace_id_of(await find_vmi(kube, namespace, name), interface)


def trace_id_of(vmi: VirtualMachineInstance, interface: str | None) -> str:
    """Return the trace id of an interface's operation, or without a name of the latest operation.

    :raises CommandFailed: there is no such interface, or its operation has no trace context.
    """
    from services.cli.operations.hotplug_status import status_of_objects

    meta = vmi.metadata
    nic_statuses = status_of_objects(vmi, None)
    names = ", ".join(nic_status.interface for nic_status in nic_statuses) or "none"
    if interface is not None:
        nic_statuses = [nic_status for nic_status in nic_statuses if nic_status.interface == interface]
        if not nic_statuses:
            raise CommandFailed(
                f'interface "{interface}" not found in {meta.namespace}/{meta.name}; its secondary interfaces: {names}'
            )
    traced = [nic_status for nic_status in nic_statuses if nic_status.trace_id is not None]
    if not traced:
        raise CommandFailed(
            f"no operation of {meta.namespace}/{meta.name} has a trace context; its secondary interfaces: {names}"
        )
    nic_status = max(traced, key=lambda nic_status: nic_status.requested_at or "")
    if interface is None and len(traced) > 1:
        say(f'showing interface "{nic_status.interface}", which has the latest operation', err=True)
    assert nic_status.trace_id is not None
    return nic_status.trace_id


def _show(spans: list[Span], output: str) -> None:
    from services.cli.tracing.spans import span_tree
    from services.cli.tracing.waterfall import as_document, render, summary

    nodes = span_tree(spans)
    if output == "json":
        say_json(as_document(nodes))
        return
    say_styled([summary(nodes), "", *render(nodes, _style())])


def _style() -> Style:
    from services.cli.tracing.waterfall import Style

    terminal = sys.stdout.isatty()
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return Style(
        colour=terminal and "NO_COLOR" not in os.environ,
        columns=shutil.get_terminal_size().columns if terminal else None,
        unicode=encoding.startswith("utf"),
    )
