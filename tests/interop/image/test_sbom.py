"""The bill of materials: its pure function, and the document that `make image` has written."""

import json
import re
from pathlib import Path
from typing import Any

from scripts.image.sbom import bill_of_materials
from tests.support.interop.docker_images import HOTNIC, run_in

CHECKOUT = Path(__file__).parents[3]

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: GNU C Library
 shared libraries

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
"""

LISTED: dict[str, Any] = {
    "python": "3.13.14",
    "release": {"ID": "debian", "VERSION_ID": "12"},
    "dpkg": STATUS,
    "distributions": [
        {"name": "Zope.Interface", "version": "1.0+x", "license": "ZPL-2.1"},
        {"name": "hotnic", "version": "0.1.0", "license": None},
    ],
}
LABELS = {"org.opencontainers.image.version": "0.1.0", "a": "b"}


def test_components_are_named_by_package_urls() -> None:
    document = bill_of_materials(LISTED, name="hotnic", labels=LABELS)
    assert [one["purl"] for one in document["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12",
        "pkg:generic/python@3.13.14",
        "pkg:pypi/hotnic@0.1.0",
        "pkg:pypi/zope-interface@1.0%2Bx",
    ]
    assert document["components"][3]["licenses"] == [{"expression": "ZPL-2.1"}]
    assert "licenses" not in document["components"][2]
    assert document["metadata"]["component"] == {
        "type": "container",
        "bom-ref": "hotnic",
        "name": "hotnic",
        "version": "0.1.0",
        "properties": [
            {"name": "a", "value": "b"},
            {"name": "org.opencontainers.image.version", "value": "0.1.0"},
        ],
    }


def test_same_contents_have_the_same_serial_number() -> None:
    first, same = (bill_of_materials(LISTED, name="hotnic", labels=LABELS) for _ in range(2))
    other = bill_of_materials({**LISTED, "python": "3.13.15"}, name="hotnic", labels=LABELS)
    assert first == same
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", first["serialNumber"])
    assert first["serialNumber"] != other["serialNumber"]


def test_base_without_dpkg() -> None:
    document = bill_of_materials({**LISTED, "dpkg": ""}, name="hotnic", labels={})
    assert len(document["components"]) == 3
    assert "version" not in document["metadata"]["component"]


def test_written_document_has_what_the_lock_file_pins() -> None:
    document = json.loads((CHECKOUT / "build" / "image" / "sbom.cdx.json").read_text())
    found = {one["name"]: one["version"] for one in document["components"] if one["purl"].startswith("pkg:pypi/")}
    text = (CHECKOUT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE))
    version = run_in(HOTNIC, "python3", "-c", "import importlib.metadata as m; print(m.version('hotnic'))").stdout
    assert found.pop("hotnic") == version.strip()
    assert found.items() <= locked.items()
    # A lock file has packages of other platforms, too.
    assert set(locked) - set(found) == {"win-inet-pton"}
    assert {"libc6", "python"} <= {one["name"] for one in document["components"]}
