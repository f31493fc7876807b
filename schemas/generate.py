"""Writes ``schemas/generated/``: JSON Schemas of what travels and an AsyncAPI document of the bus.

Run ``python -m schemas.generate``; with ``--check`` nothing is written and drift is an error. The types are the
source, nothing here is described twice. Next: :mod:`schemas.asyncapi`, the document's shape.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from schemas import asyncapi, hotplug_status, multus, networks, operations, options
from schemas.describe import describe
from schemas.events import Event

GENERATED = Path(__file__).parent / "generated"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

DOCUMENTS: dict[str, tuple[str, Any]] = {
    "event": ("Payload of a message on the bus", Event),
    "operation": (f"Annotation {operations.PREFIX}operation.<h>", operations.Operation),
    "pod-nic": (f"Annotation {operations.PREFIX}pod-nic.<h>", operations.PodNic),
    "attached": (f"Annotation {operations.PREFIX}attached.<h>", operations.HotplugMark),
    "nic-slots": (f"Annotation {operations.NIC_SLOTS}", operations.NicSlots),
    "networks": (
        f"Annotation {networks.NETWORKS}, JSON form",
        list[networks.NetworkSelectionElement],
    ),
    "network-status": (f"Annotation {networks.NETWORK_STATUS}", list[networks.NetworkStatus]),
    "add-interface-options": ("Body of PUT …/addinterface", options.AddInterfaceOptions),
    "remove-interface-options": ("Body of PUT …/removeinterface", options.RemoveInterfaceOptions),
    "hotplug-status": (
        "Answer of GET …/interfaces, and object of each line of its watch",
        hotplug_status.HotplugStatus,
    ),
    "hotplug-status-entry": (f"Value of a key of the bucket {hotplug_status.BUCKET}", hotplug_status.StatusEntry),
    "delegate-request": (f"Body of POST {multus.DELEGATE_PATH} and {multus.CNI_PATH}", multus.CniRequest),
    "delegate-response": (f"Answer of {multus.DELEGATE_PATH} and {multus.CNI_PATH} to ADD", multus.DelegateResponse),
}
"""File name, title and type of every schema."""


def documents() -> dict[str, str]:
    """Every generated file by name, as text."""
    found = {f"{name}.schema.json": _schema(name, title, kind) for name, (title, kind) in DOCUMENTS.items()}
    found["asyncapi.json"] = asyncapi.document()
    return {name: json.dumps(body, indent=2, ensure_ascii=False) + "\n" for name, body in found.items()}


def _schema(name: str, title: str, kind: Any) -> dict[str, Any]:
    (root,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    describe(definitions, kind)
    return {"$schema": DIALECT, "$id": f"urn:hotnic:schema:{name}", "title": title, **root, "$defs": definitions}


def drift(directory: Path = GENERATED) -> list[str]:
    """The names of files that are missing, stale or superfluous."""
    wanted = documents()
    present = {path.name: path.read_text(encoding="utf-8") for path in directory.glob("*") if path.is_file()}
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def write(directory: Path = GENERATED) -> None:
    """Write every file and remove those that are no longer generated."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = documents()
    for path in directory.glob("*"):
        if path.is_file() and path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (directory / name).write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or with ``--check`` say which ones drifted (exit status 1)."""
    parser = argparse.ArgumentParser(prog="python -m schemas.generate", description="Write schemas/generated/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is not up to date")
    parser.add_argument("--to", type=Path, default=GENERATED, metavar="DIR", help="another directory")
    arguments = parser.parse_args(argv)
    if not arguments.check:
        write(arguments.to)
        return 0
    stale = drift(arguments.to)
    if stale:
        sys.stderr.write(f"not up to date: {', '.join(stale)}; run python -m schemas.generate\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
