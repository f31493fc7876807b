"""``hotnic dead-letter``: lists, shows and replays dead-lettered messages: those that no consumer could process.

The stream HOTPLUG_DEAD stores them for a week. Next: :mod:`services.common.bus.dead_letters`, their format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from services.cli.bus import bus_option, required_url, run_with_bus
from services.cli.errors import RefusedByServer
from services.cli.output import NONE, examples, say, say_json, table
from services.common.telemetry.redact import redact_addresses

if TYPE_CHECKING:
    from services.common.bus.dead_letters import DeadLetter
    from services.common.bus.nats.stored.reader import StreamReader

COLUMNS = ("SEQUENCE", "AT", "REASON", "SUBJECT")
WIDE_COLUMNS = (*COLUMNS, "CONSUMER", "DETAIL")


@click.group("dead-letter")
def dead_letter() -> None:
    """List, show and replay dead-lettered messages.

    A message is dead-lettered when no consumer can process it. No operation depends on it: the roles read the state
    of the objects from the Kubernetes API.
    """


@dead_letter.command("list", epilog=examples("hotnic dead-letter list", "hotnic dead-letter list -o wide"))
@click.option("-o", "--output", type=click.Choice(["wide", "json"]), help="Print more columns, or JSON.")
@bus_option
def list_(output: str | None, nats_url: str | None) -> None:
    """List the dead-lettered messages, oldest first."""
    letters = run_with_bus(nats_url, _all)
    if output == "json":
        say_json([letter.summary() for letter in letters])
    elif letters:
        columns = WIDE_COLUMNS if output == "wide" else COLUMNS
        say(*table(columns, [_cells(letter, wide=output == "wide") for letter in letters]))
    else:
        say("no dead letters found", err=True)


@dead_letter.command(epilog=examples("hotnic dead-letter show 7", "hotnic dead-letter show 7 -o json"))
@click.argument("sequence", type=click.IntRange(min=1), metavar="SEQUENCE")
@click.option("-o", "--output", type=click.Choice(["json"]), help="Print JSON.")
@bus_option
def show(sequence: int, output: str | None, nats_url: str | None) -> None:
    """Show a dead-lettered message.

    Prints the reason, the headers and the payload, which is decoded if possible.
    """
    letter = run_with_bus(nats_url, lambda reader: _one(reader, sequence))
    if output == "json":
        say_json(letter.document())
        return
    say(*letter_lines(letter))


@dead_letter.command(epilog=examples("hotnic dead-letter replay 7", "hotnic dead-letter replay --all --keep"))
@click.argument("sequences", nargs=-1, type=click.IntRange(min=1), metavar="[SEQUENCE]...")
@click.option("--all", "everything", is_flag=True, help="Replay all dead letters that exist when the command starts.")
@click.option("--keep", is_flag=True, help="Do not delete the dead letters that are replayed.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="Print JSON.")
@bus_option
def replay(sequences: tuple[int, ...], everything: bool, keep: bool, output: str | None, nats_url: str | None) -> int:
    """Publish dead-lettered messages again.

    Each message gets a new id, and its dead letter is deleted. A message that would be dead-lettered again is refused
    and its dead letter is not deleted; the exit code is then 3, after all other messages are published.
    """
    if bool(sequences) is everything:
        raise click.UsageError("specify either the SEQUENCE of dead letters or --all")
    say(f"NATS {redact_addresses(required_url(nats_url))}", err=True)
    done = run_with_bus(nats_url, lambda reader: _replay(reader, sequences, everything, keep))
    refused = [one for one in done if not one["replayed"]]
    if output == "json":
        say_json(done)
    for one in done if output is None else ():
        if one["replayed"]:
            say(f"{one['sequence']}: published again on {one['subject']} as {one['id']}")
    for one in refused:
        say(f"{one['sequence']}: refused: {one['reason']}: {one['detail']}", err=True)
    if not done:
        say("no dead letters found", err=True)
    return RefusedByServer.exit_code if refused else 0


async def _all(reader: StreamReader) -> list[DeadLetter]:
    return [letter async for letter in reader.list_dead_letters()]


async def _one(reader: StreamReader, sequence: int) -> DeadLetter:
    letter = await reader.get_dead_letter(sequence)
    if letter is None:
        raise RefusedByServer(f"dead letter {sequence} not found; list them with: hotnic dead-letter list")
    return letter


async def _replay(
    reader: StreamReader, sequences: tuple[int, ...], everything: bool, keep: bool
) -> list[dict[str, Any]]:
    from services.common.bus.envelope import UnusableMessage

    # Read all of them before publishing any: a wrong sequence then changes nothing.
    letters = await _all(reader) if everything else [await _one(reader, sequence) for sequence in sequences]
    done: list[dict[str, Any]] = []
    for letter in letters:
        about = {"sequence": letter.sequence, "subject": letter.subject}
        try:
            done.append({**about, "replayed": True, "id": await reader.replay(letter, keep=keep)})
        except UnusableMessage as error:
            done.append({**about, "replayed": False, "reason": error.reason, "detail": error.detail})
    return done


def letter_lines(letter: DeadLetter) -> list[str]:
    """Return a dead letter as text."""
    import msgspec

    document = letter.document()
    payload = document["payload"]
    text = payload if isinstance(payload, str) else msgspec.json.format(msgspec.json.encode(payload), indent=2).decode()
    lines = [f"{name}: {value or NONE}" for name, value in letter.summary().items()]
    lines += ["headers:", *(f"  {name}: {value}" for name, value in sorted(letter.headers.items()))]
    return [*lines, f"payload ({len(letter.payload)} bytes):", *(f"  {line}" for line in text.splitlines())]


def _cells(letter: DeadLetter, *, wide: bool) -> list[str]:
    line = [str(letter.sequence), letter.at or NONE, letter.reason or NONE, letter.subject or NONE]
    return [*line, letter.consumer or NONE, letter.detail or NONE] if wide else line
