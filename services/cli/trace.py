"""``hotnic trace``: the one trace of an operation, from the request to the card in the guest, as a waterfall.

It reads the span files that the services write where ``HOTNIC_TRACE_DIR`` is set (in the lab: always); spans that go
to a collector are looked at there. Next: :mod:`services.cli.spans`, :mod:`services.cli.waterfall`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli.cluster import Where, call, cluster_options, find_vmi
from services.cli.errors import Failed
from services.cli.examples import examples
from services.cli.output import as_json

if TYPE_CHECKING:
    from schemas.kube import VirtualMachineInstance
    from services.cli.spans import Span
    from services.cli.waterfall import Style
    from services.common.kube.client import Kube

_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")
_OPERATION_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_OPERATION_ATTRIBUTE = "hotnic.operation.id"
_EVENT = "send hotplug."
"""Begins the span of every published event: a trace that has one is an operation's."""


@click.command(
    epilog=examples(
        "# the latest operation of a VM",
        "hotnic trace vm1",
        "# one interface's; or an operation, or a trace, by its id",
        "hotnic trace vm1 --interface blue",
        "hotnic trace a8bc409b-de23-4587-8076-7c700fc3853f",
    )
)
@click.argument("target", required=False, metavar="[VM | OPERATION-ID | TRACE-ID]")
@click.option("--interface", metavar="NAME", help="Which of the VM's interfaces (default: the latest operation).")
@click.option("--last", is_flag=True, help="The latest operation in the files, without asking a cluster.")
@click.option("--dir", "directory", metavar="DIR", help="Folder of the span files (HOTNIC_TRACE_DIR, else the lab's).")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
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
    """Show every hop of an operation, with its milliseconds."""
    if (target is None) != last:
        raise click.UsageError("name a VM, an operation id or a trace id, or ask for the latest one with --last")
    folder = trace_folder(directory)
    if target is None:
        spans = latest(folder)
    elif _TRACE_ID.fullmatch(target):
        spans = of_trace(folder, target)
    elif _OPERATION_ID.fullmatch(target):
        spans = of_operation(folder, target)
    else:
        where = Where(namespace, context, kubeconfig)
        spans = of_trace(folder, call(where, lambda kube, ns: _trace_id(kube, ns, target, interface)))
    _show(spans, output)


def trace_folder(chosen: str | None) -> Path:
    """The folder of the span files: as chosen, by environment, or the lab's.

    :raises Failed: it is not there.
    """
    from services.lab.layout import Layout, lab_dir

    named = chosen or os.environ.get("HOTNIC_TRACE_DIR")
    folder = Path(named) if named else Layout(lab_dir()).traces
    if not folder.is_dir():
        raise Failed(
            f"there is no folder {folder}: name that of the span files with --dir or HOTNIC_TRACE_DIR. Services write "
            "them where HOTNIC_TRACE_DIR is set; otherwise look into the collector of OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    return folder


def of_trace(folder: Path, trace_id: str) -> list[Span]:
    """The spans of a trace.

    :raises Failed: there are none.
    """
    wanted = trace_id.lower()
    spans = [span for span in _read(folder, wanted) if span.trace_id == wanted]
    if not spans:
        raise Failed(f"no span of trace {wanted} in {folder}")
    return spans


def of_operation(folder: Path, operation: str) -> list[Span]:
    """The spans of an operation's trace.

    :raises Failed: there are none.
    """
    wanted = operation.lower()
    for span in _read(folder, wanted):
        if span.attributes.get(_OPERATION_ATTRIBUTE) == wanted:
            return of_trace(folder, span.trace_id)
    raise Failed(f"no span of operation {wanted} in {folder}")


def latest(folder: Path) -> list[Span]:
    """The spans of the operation that began last.

    :raises Failed: there is none.
    """
    begun: dict[str, int] = {}
    operations = set()
    spans = _read(folder)
    for span in spans:
        begun[span.trace_id] = min(span.start, begun.get(span.trace_id, span.start))
        if span.name.startswith(_EVENT):
            operations.add(span.trace_id)
    if not operations:
        raise Failed(f"no operation left a span in {folder}")
    newest = max(operations, key=begun.__getitem__)
    return [span for span in spans if span.trace_id == newest]


def _read(folder: Path, marker: str | None = None) -> list[Span]:
    """The spans of all lines, or of those that hold a text (lower case), which is much quicker."""
    from services.cli.spans import parse

    def lines() -> Iterator[bytes]:
        needle = marker.encode() if marker is not None else None
        for file in sorted(folder.rglob("*.jsonl")):
            with file.open("rb") as opened:
                yield from (line for line in opened if needle is None or needle in line.lower())

    try:
        spans, _ = parse(lines())
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from error
    return spans


async def _trace_id(kube: Kube, namespace: str, name: str, interface: str | None) -> str:
    return trace_id_of(await find_vmi(kube, namespace, name), interface)


def trace_id_of(vmi: VirtualMachineInstance, interface: str | None) -> str:
    """The trace of an interface's operation; without a name, of the operation that was asked for last.

    :raises Failed: there is no such interface, or its operation carries no trace.
    """
    from services.cli.hotplug_status import folded

    meta = vmi.metadata
    nic_statuses = folded(vmi, None)
    names = ", ".join(nic_status.interface for nic_status in nic_statuses) or "none"
    if interface is not None:
        nic_statuses = [nic_status for nic_status in nic_statuses if nic_status.interface == interface]
        if not nic_statuses:
            raise Failed(f"{meta.namespace}/{meta.name} has no plugged interface {interface} (there are: {names})")
    traced = [nic_status for nic_status in nic_statuses if nic_status.trace_id is not None]
    if not traced:
        raise Failed(f"no operation of {meta.namespace}/{meta.name} carries a trace (its plugged interfaces: {names})")
    nic_status = max(traced, key=lambda nic_status: nic_status.requested_at or "")
    if interface is None and len(traced) > 1:
        click.echo(f"the latest operation is that of interface {nic_status.interface} (there are: {names})", err=True)
    assert nic_status.trace_id is not None
    return nic_status.trace_id


def _show(spans: list[Span], output: str) -> None:
    from services.cli.spans import tree
    from services.cli.waterfall import as_document, render, summary

    nodes = tree(spans)
    if output == "json":
        click.echo(as_json(as_document(nodes)))
        return
    click.echo("\n".join([summary(nodes), "", *render(nodes, _style())]))


def _style() -> Style:
    from services.cli.waterfall import Style

    terminal = sys.stdout.isatty()
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return Style(
        colour=terminal and "NO_COLOR" not in os.environ,
        columns=shutil.get_terminal_size().columns if terminal else None,
        unicode=encoding.startswith("utf"),
    )
