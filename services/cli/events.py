"""``hotnic events``: what happened to the NICs of a VM, and when.

From the bus where it is named (every attempt, to the millisecond, for a day), otherwise from the Kubernetes Events on
the VMI (each transition once, whole seconds, for an hour). Where a NIC stands now is :mod:`services.cli.status`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from services.cli.bus import HOW_TO_POINT, bus_option, shown
from services.cli.cluster import Where, call, cluster_options, find_vmi
from services.cli.errors import Unreachable
from services.cli.examples import examples
from services.cli.output import as_json, as_line, row, table, widths

if TYPE_CHECKING:
    from services.cli.timeline import Line
    from services.common.bus.reader import Reader
    from services.common.kube.client import Kube


@click.command(
    epilog=examples(
        "hotnic events vm1",
        "hotnic events vm1 --interface blue --follow",
        "hotnic events vm1 -o json --nats-url nats://127.0.0.1:4222",
    )
)
@click.argument("vm", metavar="VM")
@click.option("--interface", metavar="NAME", help="Of this interface only.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="JSON; with --follow one document a line.")
@bus_option
@cluster_options
def events(
    vm: str,
    interface: str | None,
    follow: bool,
    output: str | None,
    nats_url: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Show what happened to the network cards of a VM: requests, stages reached, attempts that failed.

    From the bus, if --nats-url or NATS_URL names it, otherwise from the Kubernetes Events on the running VM.
    """
    said = _Printer(interface, follow=follow, json=output == "json")

    async def work(kube: Kube, default: str) -> None:
        if nats_url and await _from_bus(nats_url, default, vm, said, follow):
            return
        await _from_cluster(kube, default, vm, said, follow)

    call(Where(namespace, context, kubeconfig), work)
    if said.count == 0:
        click.echo("nothing is known of it", err=True)


class _Printer:
    """Prints lines: a history in one piece, then one by one."""

    def __init__(self, interface: str | None, *, follow: bool, json: bool) -> None:
        self._interface = interface
        self._follow = follow
        self._json = json
        self._widths: list[int] = []
        self.count = 0

    def history(self, found: Sequence[Line | None]) -> None:
        """What has been."""
        from services.cli.timeline import COLUMNS, cells

        lines = [line for line in found if line is not None and self._interface in (None, line.interface)]
        self.count += len(lines)
        if self._json and not self._follow:
            click.echo(as_json(lines))
        elif self._json:
            for line in lines:
                click.echo(as_line(line))
        elif lines or self._follow:
            rows = [cells(line) for line in lines]
            self._widths = widths([COLUMNS, *rows])
            click.echo(table(COLUMNS, rows))

    def follow(self, line: Line | None) -> None:
        """Print an event that has just arrived."""
        from services.cli.timeline import cells

        if line is None or self._interface not in (None, line.interface):
            return
        self.count += 1
        click.echo(as_line(line) if self._json else row(cells(line), self._widths))


async def _from_bus(url: str, namespace: str, vm: str, said: _Printer, follow: bool) -> bool:
    """Whether the bus answered.

    :raises Unreachable: it went away meanwhile.
    """
    from services.common.bus.protocol import BusUnavailable
    from services.common.bus.reader import reading
    from services.common.logs import logger

    answered = False
    try:
        async with reading(url, os.environ, log=logger("cli", "critical")) as reader:
            last = await _history(reader, namespace, vm, said)
            answered = True
            if follow:
                await _follow(reader, namespace, vm, said, last)
    except BusUnavailable as error:
        if answered:
            raise Unreachable(f"NATS at {shown(url)} went away: {error}\n{HOW_TO_POINT}") from error
        click.echo(f"NATS at {shown(url)} does not answer ({error}): these are the Kubernetes Events", err=True)
    return answered


async def _history(reader: Reader, namespace: str, vm: str, said: _Printer) -> int:
    from schemas.encoding import vmi_filter
    from services.cli.timeline import of_message

    found = [stored async for stored in reader.events(vmi_filter(namespace, vm))]
    said.history([of_message(stored.message) for stored in found])
    return found[-1].sequence if found else 0


async def _follow(reader: Reader, namespace: str, vm: str, said: _Printer, last: int) -> None:
    from schemas.encoding import vmi_filter
    from services.cli.timeline import of_message

    async for stored in reader.follow(vmi_filter(namespace, vm), last):
        said.follow(of_message(stored.message))


async def _from_cluster(kube: Kube, namespace: str, vm: str, said: _Printer, follow: bool) -> None:
    from schemas.kube import EVENTS
    from services.cli.timeline import in_order, of_event
    from services.common.kube.reflector import Reflector
    from services.common.logs import logger

    vmi = await find_vmi(kube, namespace, vm)
    fields = f"involvedObject.uid={vmi.metadata.uid}"
    if not follow:
        listing = await kube.list(EVENTS, namespace, fields=fields)
        said.history(in_order(listing.items))
        return
    coming: asyncio.Queue[Line | None] = asyncio.Queue()
    shown_before = False

    def changed(_key: tuple[str, str], event: dict[str, Any] | None) -> None:
        if shown_before and event is not None:
            coming.put_nowait(of_event(event))

    log = logger("cli", "critical")
    reflector = Reflector(kube, EVENTS, namespace=namespace, fields=fields, on_change=changed, log=log)
    running = asyncio.create_task(reflector.run())
    try:
        await reflector.synced.wait()
        said.history(in_order(reflector.items()))
        shown_before = True
        while True:
            said.follow(await coming.get())
    finally:
        running.cancel()
        await asyncio.wait({running})
