"""``hotnic events``: lists and follows the events of a VM's network interfaces.

If the address of NATS is set, the events are read there: every attempt, with milliseconds, for a day. Otherwise the
events of the VMI are read from the Kubernetes API: each transition once, with seconds, for an hour.
The current status is :mod:`services.cli.commands.status`. Next: :mod:`services.cli.commands.timeline`, the lines.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from services.cli.bus import NATS_HINT, bus_option
from services.cli.cluster import ClusterTarget, cluster_options, find_vmi, run_with_cluster
from services.cli.errors import Unreachable
from services.cli.output import examples, row, say, say_json, table, widths
from services.common.telemetry.redact import redact_addresses

if TYPE_CHECKING:
    from services.cli.commands.timeline import TimelineEntry
    from services.common.bus.nats.stored.reader import StreamReader
    from services.common.kube.client import Kube


@click.command(
    epilog=examples(
        "hotnic events vm1",
        "hotnic events vm1 --interface blue --follow",
        "hotnic events vm1 -o json --nats-url nats://127.0.0.1:4222",
    )
)
@click.argument("vm", metavar="VM")
@click.option("--interface", metavar="NAME", help="Show only the events of this interface.")
@click.option("-f", "--follow", is_flag=True, help="Print new events as they occur, until interrupted.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="Print JSON; with --follow one document per line.")
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
    """Show the events of a VM's network interfaces: requests, stages reached, failed attempts.

    Stored events are printed in the order of their time, new ones (--follow) as they arrive. The events are read
    from NATS if --nats-url or NATS_URL is set, otherwise from the Kubernetes API.
    """
    printer = _Printer(interface, follow=follow, json=output == "json")

    async def work(kube: Kube, default: str) -> str:
        if not nats_url or not await _from_nats(nats_url, default, vm, printer, follow):
            await _from_cluster(kube, default, vm, printer, follow)
        return default

    vm_namespace = run_with_cluster(ClusterTarget(namespace, context, kubeconfig), work)
    if printer.count == 0:
        say(f"no events found for {vm_namespace}/{vm}", err=True)


class _Printer:
    """Prints the stored events at once, then new ones line by line.

    :ivar count: number of events printed.
    """

    def __init__(self, interface: str | None, *, follow: bool, json: bool) -> None:
        self._interface = interface
        self._follow = follow
        self._json = json
        self._widths: list[int] = []
        self.count = 0

    def print_history(self, found: Sequence[TimelineEntry]) -> None:
        """Print the stored events."""
        from services.cli.commands.timeline import COLUMNS, cells

        lines = [line for line in found if self._interface in (None, line.interface)]
        self.count += len(lines)
        if self._json and not self._follow:
            say_json(lines)
        elif self._json:
            for line in lines:
                say_json(line, indent=False)
        elif lines or self._follow:
            rows = [cells(line) for line in lines]
            self._widths = widths([COLUMNS, *rows])
            say(*table(COLUMNS, rows))

    def print_entry(self, line: TimelineEntry | None) -> None:
        """Print a new event."""
        from services.cli.commands.timeline import cells

        if line is None or self._interface not in (None, line.interface):
            return
        self.count += 1
        if self._json:
            say_json(line, indent=False)
        else:
            say(row(cells(line), self._widths))


def _print_following(namespace: str, vm: str, source: str) -> None:
    """Print on standard error that every event from now on is printed; standard output has events only."""
    say(f"following events of {namespace}/{vm} from {source}; press Ctrl-C to stop", err=True)


async def _from_nats(url: str, namespace: str, vm: str, printer: _Printer, follow: bool) -> bool:
    """Print the events in NATS and return whether NATS answered.

    :raises Unreachable: the connection was lost while following.
    """
    from services.common.bus.nats.stored.reader import open_reader
    from services.common.bus.protocol import BusUnavailable
    from services.common.telemetry.logs import logger

    answered = False
    server = f"NATS at {redact_addresses(url)}"
    try:
        async with open_reader(url, os.environ, log=logger("cli", "critical")) as reader:
            last = await _history(reader, namespace, vm, printer)
            answered = True
            if follow:
                await _follow(reader, namespace, vm, printer, last, lambda: _print_following(namespace, vm, server))
    except BusUnavailable as error:
        if answered:
            raise Unreachable(f"lost the connection to {server}: {error}\n{NATS_HINT}") from error
        say(f"{server} does not answer ({error}); reading events from the Kubernetes API instead", err=True)
    return answered


async def _history(reader: StreamReader, namespace: str, vm: str, printer: _Printer) -> int:
    """Print the stored events and return the sequence of the last one."""
    from schemas.bus.encoding import vmi_filter
    from services.cli.commands.timeline import entry_of_message, sort_by_time

    found = [stored async for stored in reader.list_messages(vmi_filter(namespace, vm))]
    printer.print_history(sort_by_time(entry_of_message(stored.message) for stored in found))
    # Following starts after this sequence, so that no event is missed between the two.
    return found[-1].sequence if found else 0


async def _follow(
    reader: StreamReader,
    namespace: str,
    vm: str,
    printer: _Printer,
    last: int,
    on_subscribed: Callable[[], None],
) -> None:
    from schemas.bus.encoding import vmi_filter
    from services.cli.commands.timeline import entry_of_message

    async for stored in reader.follow_messages(vmi_filter(namespace, vm), last, on_subscribed):
        printer.print_entry(entry_of_message(stored.message))


async def _from_cluster(kube: Kube, namespace: str, vm: str, printer: _Printer, follow: bool) -> None:
    from schemas.kubernetes.objects import EVENTS
    from services.cli.commands.timeline import entries_in_order, entry_of_event
    from services.common.kube.cache.reflector import Reflector
    from services.common.telemetry.logs import logger

    vmi = await find_vmi(kube, namespace, vm)
    fields = f"involvedObject.uid={vmi.metadata.uid}"
    if not follow:
        listing = await kube.list(EVENTS, namespace, fields=fields)
        printer.print_history(entries_in_order(listing.items))
        return
    incoming: asyncio.Queue[TimelineEntry | None] = asyncio.Queue()
    following = False

    def on_change(_key: tuple[str, str], event: dict[str, Any] | None) -> None:
        # The reflector also calls this for each event of its first list.
        if following and event is not None:
            incoming.put_nowait(entry_of_event(event))

    log = logger("cli", "critical")
    reflector = Reflector(kube, EVENTS, namespace=namespace, fields=fields, on_change=on_change, log=log)
    running = asyncio.create_task(reflector.run())
    try:
        await reflector.synced.wait()
        printer.print_history(entries_in_order(reflector.items()))
        following = True
        _print_following(namespace, vm, "the Kubernetes API")
        while True:
            printer.print_entry(await incoming.get())
    finally:
        running.cancel()
        await asyncio.wait({running})
