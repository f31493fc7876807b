"""Images of third-party programs for the compose tests, made from programs on the machine.

Where no registry can be reached, an image contains busybox (for its healthcheck's `wget`) and the program alone.
Nothing is built by Docker: `docker import` takes the file system as a tar archive.
"""

import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from lab.tools import LabTools
from tests.support.interop_tools import tool


def image_sources() -> dict[str, Path]:
    """Return the program of each image."""
    return {"nats": LabTools.find().nats_server.resolve(), "jaeger": tool("jaeger")}


ENVIRONMENT: Mapping[str, Mapping[str, str]] = {"nats": {}, "jaeger": {"JAEGER_LISTEN_HOST": "0.0.0.0"}}
"""What the published image sets."""


def import_image(name: str, program: Path) -> str:
    """Import an image with one program as its entry point; return its tag."""
    tag = f"hotnic-test-{name}:local"
    changes = [f'ENTRYPOINT ["/{name}"]', "ENV PATH=/bin"]
    changes += [f"ENV {variable}={value}" for variable, value in ENVIRONMENT[name].items()]
    options = [part for change in changes for part in ("--change", change)]
    with subprocess.Popen(
        ["docker", "import", *options, "-", tag], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as importing:
        assert importing.stdin is not None
        write_root(importing.stdin, name, program)
    assert importing.returncode == 0, f"docker import of {name} ended with code {importing.returncode}"
    return tag


def write_root(stream: io.BufferedIOBase | object, name: str, program: Path) -> None:
    """Write the file system of an image as a tar archive."""
    busybox = next((LabTools.find().root / "unpacked" / "busybox").rglob("bin/busybox"))
    with tarfile.open(fileobj=stream, mode="w|") as archive:  # type: ignore[call-overload]
        for folder, mode in (("bin", 0o755), ("tmp", 0o1777), ("data", 0o777), ("etc", 0o755)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for path, target in ((busybox, "bin/busybox"), (program, name)):
            entry = tarfile.TarInfo(target)
            entry.size, entry.mode = path.stat().st_size, 0o755
            with path.open("rb") as content:
                archive.addfile(entry, content)
        for applet in ("wget", "sh"):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
