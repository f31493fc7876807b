"""Images of third-party programs for the compose tests, made from programs on the machine.

Where no registry can be reached, an image contains busybox (for its healthcheck's `wget`) and the program alone.
"""

from collections.abc import Mapping
from pathlib import Path

from lab.tools import LabTools
from tests.support.interop.docker_images import import_root
from tests.support.interop.tools import tool


def image_sources() -> dict[str, Path]:
    """Return the program of each image."""
    return {"nats": LabTools.find().nats_server.resolve(), "jaeger": tool("jaeger")}


ENVIRONMENT: Mapping[str, Mapping[str, str]] = {"nats": {}, "jaeger": {"JAEGER_LISTEN_HOST": "0.0.0.0"}}
"""What the published image sets."""


def import_image(name: str, program: Path) -> str:
    """Import an image with one program as its entry point; return its tag."""
    tag = f"hotnic-test-{name}:local"
    busybox = next((LabTools.find().root / "unpacked" / "busybox").rglob("bin/busybox"))
    import_root(
        tag,
        {"bin/busybox": busybox, name: program},
        folders={"tmp": 0o1777, "data": 0o777, "etc": 0o755},
        links={"bin/wget": "busybox", "bin/sh": "busybox"},
        changes=[
            f'ENTRYPOINT ["/{name}"]',
            "ENV PATH=/bin",
            *(f"ENV {variable}={value}" for variable, value in ENVIRONMENT[name].items()),
        ],
    )
    return tag
