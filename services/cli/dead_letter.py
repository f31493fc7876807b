"""``hotnic dead-letter``: the messages that no consumer could use; to list, to look at, to send again.

They are kept in the stream HOTPLUG_DEAD for a week. What one is: :mod:`services.common.bus.dead_letters`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from services.cli.bus import ask, bus_option, named, shown
from services.cli.errors import Refused
from services.cli.examples import examples
from services.cli.output import NONE, as_json, table

if TYPE_CHECKING:
    from services.common.bus.dead_letters import DeadLetter
    from services.common.bus.reader import Reader

COLUMNS = ("SEQUENCE", "AT", "REASON", "SUBJECT")
WIDE_COLUMNS = (*COLUMNS, "CONSUMER", "DETAIL")


@click.group("dead-letter")
def dead_letter() -> None:
    """Look at the messages that no consumer could use, and send them again.

    Nothing waits for them: truth is in Kubernetes, and the work they spoke of is done without them.
    """


@dead_letter.command("list", epilog=examples("hotnic dead-letter list", "hotnic dead-letter list -o wide"))
@click.option("-o", "--output", type=click.Choice(["wide", "json"]), help="More columns, or JSON.")
@bus_option
def list_(output: str | None, nats_url: str | None) -> None:
    """List the messages that were put aside, the oldest first."""
    letters = ask(nats_url, _all)
    if output == "json":
        click.echo(as_json([letter.summary() for letter in letters]))
    elif letters:
        columns = WIDE_COLUMNS if output == "wide" else COLUMNS
        click.echo(table(columns, [_cells(letter, wide=output == "wide") for letter in letters]))
    else:
        click.echo("there is no dead letter", err=True)


@dead_letter.command(epilog=examples("hotnic dead-letter show 7", "hotnic dead-letter show 7 -o json"))
@click.argument("sequence", type=click.IntRange(min=1), metavar="SEQUENCE")
@click.option("-o", "--output", type=click.Choice(["json"]), help="JSON.")
@bus_option
def show(sequence: int, output: str | None, nats_url: str | None) -> None:
    """Show the letter of this sequence: why it was put aside, its headers, and its payload, decoded where it can be."""
    letter = ask(nats_url, lambda reader: _one(reader, sequence))
    if output == "json":
        click.echo(as_json(letter.document()))
        return
    for line in lines(letter):
        click.echo(line)


@dead_letter.command(epilog=examples("hotnic dead-letter replay 7", "hotnic dead-letter replay --all --keep"))
@click.argument("sequences", nargs=-1, type=click.IntRange(min=1), metavar="[SEQUENCE]...")
@click.option("--all", "everything", is_flag=True, help="All that there are when it begins.")
@click.option("--keep", is_flag=True, help="Leave the letters where they are, too.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="JSON.")
@bus_option
def replay(sequences: tuple[int, ...], everything: bool, keep: bool, output: str | None, nats_url: str | None) -> int:
    """Publish messages again under a new id, and take their letters away.

    One that would only be put aside again is refused and stays: exit code 3, after all others are done.
    """
    if bool(sequences) is everything:
        raise click.UsageError("name letters by their SEQUENCE, or all of them with --all")
    click.echo(f"NATS {shown(named(nats_url))}", err=True)
    done = ask(nats_url, lambda reader: _replay(reader, sequences, everything, keep))
    refused = [one for one in done if not one["replayed"]]
    if output == "json":
        click.echo(as_json(done))
    for one in done if output is None else ():
        if one["replayed"]:
            click.echo(f"{one['sequence']}: published again on {one['subject']} as {one['id']}")
    for one in refused:
        click.echo(f"{one['sequence']}: refused: {one['reason']}: {one['detail']}", err=True)
    if not done:
        click.echo("there is no dead letter", err=True)
    return Refused.exit_code if refused else 0


async def _all(reader: Reader) -> list[DeadLetter]:
    return [letter async for letter in reader.letters()]


async def _one(reader: Reader, sequence: int) -> DeadLetter:
    letter = await reader.letter(sequence)
    if letter is None:
        raise Refused(f"there is no dead letter {sequence} (see: hotnic dead-letter list)")
    return letter


async def _replay(reader: Reader, sequences: tuple[int, ...], everything: bool, keep: bool) -> list[dict[str, Any]]:
    from services.common.bus.envelope import Unusable

    # All are looked up before any is touched: a wrong sequence changes nothing.
    letters = await _all(reader) if everything else [await _one(reader, sequence) for sequence in sequences]
    done: list[dict[str, Any]] = []
    for letter in letters:
        about = {"sequence": letter.sequence, "subject": letter.subject}
        try:
            done.append({**about, "replayed": True, "id": await reader.replay(letter, keep=keep)})
        except Unusable as error:
            done.append({**about, "replayed": False, "reason": error.reason, "detail": error.detail})
    return done


def lines(letter: DeadLetter) -> list[str]:
    """A letter for people."""
    import msgspec

    document = letter.document()
    payload = document["payload"]
    text = payload if isinstance(payload, str) else msgspec.json.format(msgspec.json.encode(payload), indent=2).decode()
    said = [f"{name}: {value or NONE}" for name, value in letter.summary().items()]
    said += ["headers:", *(f"  {name}: {value}" for name, value in sorted(letter.headers.items()))]
    return [*said, f"payload ({len(letter.payload)} bytes):", *(f"  {line}" for line in text.splitlines())]


def _cells(letter: DeadLetter, *, wide: bool) -> list[str]:
    line = [str(letter.sequence), letter.at or NONE, letter.reason or NONE, letter.subject or NONE]
    return [*line, letter.consumer or NONE, letter.detail or NONE] if wide else line
