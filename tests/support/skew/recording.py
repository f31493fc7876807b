"""Reads the recordings of earlier versions in ``tests/support/skew/``, for the tests of version skew.

A recording holds text exactly as a role wrote it: payloads, values, annotations and bodies are strings in it. It is
made by ``scripts/generate/skew-recording``; ``tests/support/skew/README.md`` describes its files.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from schemas.bus.hotplug_status import HotplugStatus
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from services.common.bus.envelope import BusMessage
from services.common.domain.operations import find_acting_pod

FOLDER = Path(__file__).parent
Json = dict[str, Any]


@dataclass(frozen=True)
class RecordedSnapshot:
    """The objects and stores at one moment.

    :ivar label: what had just happened, such as ``red-pod-annotated``.
    """

    label: str
    document: Json

    def annotations(self) -> Iterator[tuple[str, str]]:
        """Yield each annotation of each object."""
        for objects in self.document["objects"].values():
            for item in objects:
                yield from item["metadata"].get("annotations", {}).items()

    @property
    def vmis(self) -> list[VirtualMachineInstance]:
        """The VMIs; the first is the one whose hot-plug status is recorded."""
        return msgspec.convert(self.document["objects"]["VirtualMachineInstance"], list[VirtualMachineInstance])

    @property
    def vms(self) -> list[VirtualMachine]:
        """The VMs."""
        return msgspec.convert(self.document["objects"]["VirtualMachine"], list[VirtualMachine])

    @property
    def pods(self) -> list[Pod]:
        """The pods."""
        return msgspec.convert(self.document["objects"]["Pod"], list[Pod])

    @property
    def hotplug_status(self) -> HotplugStatus:
        """The response of ``GET …/interfaces``."""
        return msgspec.convert(self.document["interfaces"], HotplugStatus)

    @property
    def bucket(self) -> dict[str, str]:
        """The values of the bucket, by key."""
        found: dict[str, str] = self.document["bucket"]
        return found

    @property
    def records(self) -> dict[str, str]:
        """The files of the multus daemon's records, by name."""
        found: dict[str, str] = self.document["records"]
        return found

    def machine(self) -> tuple[VirtualMachine, VirtualMachineInstance, Pod]:
        """Return the VM of the hot-plug status, its VMI and its acting pod."""
        name = self.document["interfaces"]["metadata"]["name"]
        (vm,) = (vm for vm in self.vms if vm.metadata.name == name)
        (vmi,) = (vmi for vmi in self.vmis if vmi.metadata.name == name)
        pod = find_acting_pod(vmi, self.pods)
        assert pod is not None, f"{self.label}: the VMI has no acting pod"
        return vm, vmi, pod


@dataclass(frozen=True)
class Recording:
    """What one version exchanged and stored."""

    folder: Path

    @cached_property
    def snapshots(self) -> dict[str, RecordedSnapshot]:
        """The snapshots by label, in the order in which they were taken."""
        files = sorted((self.folder / "snapshots").glob("*.json"))
        labels = {file: file.stem.partition("-")[2] for file in files}
        return {label: RecordedSnapshot(label, json.loads(file.read_text())) for file, label in labels.items()}

    def messages(self, stream: str) -> list[BusMessage]:
        """Return the messages of a stream."""
        items = self._read("bus.json")[stream]
        return [BusMessage(item["subject"], item["payload"].encode(), item["headers"]) for item in items]

    @property
    def events(self) -> list[BusMessage]:
        """The messages that a role has published; one more in the stream is not an event."""
        return [message for message in self.messages("HOTPLUG") if "ce-type" in message.headers]

    @property
    def multus_exchanges(self) -> list[Json]:
        """The calls of the multus daemon with their responses."""
        found: list[Json] = self._read("multus.json")["exchanges"]
        return found

    @property
    def unsettled_records(self) -> list[tuple[str, str]]:
        """Name and text of each record that was not on disk yet."""
        return [(name, text) for text, name in self._read("multus.json")["unsettled"].items()]

    @property
    def api_exchanges(self) -> list[Json]:
        """The requests to the api with their responses."""
        found: list[Json] = self._read("api.json")
        return found

    def objects(self, kind: str) -> list[Json]:
        """Return the Kubernetes Events or the NADs."""
        found: list[Json] = self._read("cluster.json")[kind]
        return found

    def schema(self, name: str) -> Json:
        """Return a generated document of that version."""
        found: Json = json.loads((self.folder / "schemas" / name).read_text())
        return found

    @property
    def schema_names(self) -> list[str]:
        """The names of the generated documents."""
        return sorted(file.name for file in (self.folder / "schemas").iterdir())

    def _read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


RECORDINGS = {folder.name: Recording(folder) for folder in sorted(FOLDER.iterdir()) if folder.is_dir()}
"""The recordings by version."""


def round_trip(text: str | bytes, kind: Any) -> Any:
    """Return a document after today's code has decoded and encoded it.

    A field that today's code does not know, or knows by another name, is lost.
    """
    return json.loads(msgspec.json.encode(msgspec.json.decode(text, type=kind)))
