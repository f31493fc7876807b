"""Writes ``schemas/generated/``: JSON Schemas of the exchanged documents and the AsyncAPI document of the bus.

Run ``python -m schemas.generate``. With ``--check`` it writes nothing and fails on drift. The Python types are the
only source. Next: :mod:`schemas.generate.asyncapi`, the structure of the AsyncAPI document.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from schemas import multus
from schemas.bus import hotplug_status
from schemas.bus.events import Event
from schemas.describe import describe
from schemas.generate import asyncapi
from schemas.kubernetes import networks, operations, options

GENERATED = Path(__file__).parents[1] / "generated"
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
        "Response of GET …/interfaces, and object of each line of its watch",
        hotplug_status.HotplugStatus,
    ),
    "hotplug-status-entry": (f"Value of a key of the bucket {hotplug_status.BUCKET}", hotplug_status.StatusEntry),
    "delegate-request": (f"Body of POST {multus.DELEGATE_PATH} and {multus.CNI_PATH}", multus.CniRequest),
    "delegate-response": (f"Response of {multus.DELEGATE_PATH} and {multus.CNI_PATH} to ADD", multus.DelegateResponse),
}
"""Title and type of every schema, by file name."""


def build_documents() -> dict[str, str]:
    """Return the text of every generated file, by file name."""
    found = {f"{name}.schema.json": _schema(name, title, kind) for name, (title, kind) in DOCUMENTS.items()}
    found["asyncapi.json"] = asyncapi.build_document()
    return {name: json.dumps(body, indent=2, ensure_ascii=False) + "\n" for name, body in found.items()}


def _schema(name: str, title: str, kind: Any) -> dict[str, Any]:
    (root,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    describe(definitions, kind)
    return {"$schema": DIALECT, "$id": f"urn:hotnic:schema:{name}", "title": title, **root, "$defs": definitions}


def find_drift(directory: Path = GENERATED) -> list[str]:
    """Return the names of files that are missing, outdated or superfluous."""
    expected = build_documents()
    present = {path.name: path.read_text(encoding="utf-8") for path in directory.glob("*") if path.is_file()}
    return sorted(name for name in expected.keys() | present.keys() if expected.get(name) != present.get(name))


def write_documents(directory: Path = GENERATED) -> None:
    """Write every file and remove those that are no longer generated."""
    directory.mkdir(parents=True, exist_ok=True)
    expected = build_documents()
    for path in directory.glob("*"):
        if path.is_file() and path.name not in expected:
            path.unlink()
    for name, text in expected.items():
        (directory / name).write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or with ``--check`` report drift with exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m schemas.generate", description="Write schemas/generated/.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is outdated")
    parser.add_argument("--to", type=Path, default=GENERATED, metavar="DIR", help="directory to write to or to check")
    arguments = parser.parse_args(argv)
    if not arguments.check:
        write_documents(arguments.to)
        return 0
    stale = find_drift(arguments.to)
    if stale:
        sys.stderr.write(f"outdated: {', '.join(stale)}; run python -m schemas.generate\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
