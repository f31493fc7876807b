"""The bill of materials of an image: its pure function, and the program that lists an image's contents."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.image.contents import LISTING, kernel_package, unpacked_packages
from scripts.image.sbom import bill_of_materials

STATUS = """Package: libc6
Status: install ok installed
Source: glibc
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
    "licenses": {"libc6": ["GPL-2+", "LGPL-2.1+"]},
    "distributions": [
        {"name": "Zope.Interface", "version": "1.0+x", "license": "ZPL-2.1", "sha256": "ab" * 32, "requires": []},
        {
            "name": "hotnic",
            "version": "0.1.0",
            "license": None,
            "license_names": ["Apache Software License"],
            "requires": ["zope-interface>=1", "absent; extra == 'x'"],
        },
    ],
    "programs": [
        {
            "path": "/opt/hotnic/bin/nats-server",
            "sha256": "cd" * 32,
            "go": "go1.27.2",
            "modules": "path\texample.com/server\nmod\texample.com/server\tv2.0.0\ndep\texample.com/net\tv0.9.0\n",
        },
        {"path": "/opt/hotnic/share/hotnic-multus", "sha256": "ef" * 32, "go": "", "modules": ""},
    ],
}
LABELS = {"org.opencontainers.image.version": "0.1.0", "a": "b"}
UNPACKED = [{"name": "runc", "source": "runc", "version": "1.1.5+ds1-1", "licenses": ["Apache-2.0"]}]


def components(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in document["components"]}


def test_components_are_named_by_package_urls() -> None:
    document = bill_of_materials(LISTED, name="hotnic", labels=LABELS, unpacked=UNPACKED)
    assert [one.get("purl") for one in document["components"]] == [
        "pkg:generic/nats-server@v2.0.0",
        None,
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12&upstream=glibc",
        "pkg:deb/debian/runc@1.1.5%2Bds1-1?arch=amd64&distro=debian-12",
        "pkg:generic/python@3.13.14",
        "pkg:pypi/hotnic@0.1.0",
        "pkg:pypi/zope-interface@1.0%2Bx",
    ]
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


def test_licences_and_hashes_of_packages() -> None:
    found = components(bill_of_materials(LISTED, name="hotnic", labels=LABELS, unpacked=UNPACKED))
    assert found["zope-interface"]["licenses"] == [{"expression": "ZPL-2.1"}]
    assert found["zope-interface"]["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert found["hotnic"]["licenses"] == [{"license": {"name": "Apache Software License"}}]
    assert [one["license"]["name"] for one in found["libc6"]["licenses"]] == ["GPL-2+", "LGPL-2.1+"]
    assert found["runc"]["properties"] == [{"name": "hotnic:unpacked", "value": "true"}]


def test_a_program_of_go_has_its_modules() -> None:
    found = components(bill_of_materials(LISTED, name="hotnic", labels=LABELS))
    server, shim = found["nats-server"], found["hotnic-multus"]
    assert [one["purl"] for one in server["components"]] == [
        "pkg:golang/stdlib@1.27.2",
        "pkg:golang/example.com/server@v2.0.0",
        "pkg:golang/example.com/net@v0.9.0",
    ]
    assert server["properties"] == [{"name": "hotnic:path", "value": "/opt/hotnic/bin/nats-server"}]
    assert (shim["type"], shim["hashes"][0]["content"]) == ("file", "ef" * 32)


def test_every_reference_is_unique_and_every_dependency_a_component() -> None:
    document = bill_of_materials(LISTED, name="hotnic", labels=LABELS, unpacked=UNPACKED)
    references = [document["metadata"]["component"]["bom-ref"]]
    for one in document["components"]:
        references += [one["bom-ref"], *(part["bom-ref"] for part in one.get("components", ()))]
    assert len(references) == len(set(references))
    assert {"ref": "pkg:pypi/hotnic@0.1.0", "dependsOn": ["pkg:pypi/zope-interface@1.0%2Bx"]} in document[
        "dependencies"
    ]
    for one in document["dependencies"]:
        assert {one["ref"], *one["dependsOn"]} <= set(references)


def test_same_contents_have_the_same_serial_number() -> None:
    first, same = (bill_of_materials(LISTED, name="hotnic", labels=LABELS) for _ in range(2))
    other = bill_of_materials({**LISTED, "python": "3.13.15"}, name="hotnic", labels=LABELS)
    assert first == same
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", first["serialNumber"])
    assert first["serialNumber"] != other["serialNumber"]


def test_base_without_dpkg() -> None:
    document = bill_of_materials({**LISTED, "dpkg": "", "programs": []}, name="hotnic", labels={})
    assert len(document["components"]) == 3
    assert "version" not in document["metadata"]["component"]


def test_the_listing_of_this_machine(tmp_path: Path) -> None:
    """The program runs in an image's Python without any package; here in that of the tests, with the lab's programs."""
    server = Path(sys.executable).parent / "nats-server"
    (tmp_path / "nats-server").write_bytes(server.read_bytes())
    (tmp_path / "launcher").write_text("#!/bin/sh\n")
    done = subprocess.run(
        [sys.executable, "-c", LISTING.replace("/opt/hotnic/bin", str(tmp_path))],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    (program,) = json.loads(done.stdout)["programs"]
    found = components(bill_of_materials(json.loads(done.stdout), name="x", labels={}))
    assert re.fullmatch(r"go\d+\.\d+(\.\d+)?", program["go"])
    assert "github.com/nats-io/nats-server/v2" in {one["name"] for one in found["nats-server"]["components"]}
    assert found["click"]["licenses"] == [{"expression": "BSD-3-Clause"}]


def test_packages_behind_unpacked_tools(tmp_path: Path) -> None:
    folder = tmp_path / "unpacked" / "runc" / "usr" / "share" / "doc" / "runc"
    folder.mkdir(parents=True)
    with gzip.open(folder / "changelog.Debian.gz", "wt") as lines:
        lines.write("golang-runc (1.1.5+ds1-1+deb12u1) bookworm; urgency=medium\n")
    (folder / "copyright").write_text("Format: https://www.debian.org/\n\nFiles: *\nLicense: Apache-2.0\n text\n")
    assert unpacked_packages(tmp_path) == [
        {"name": "runc", "source": "golang-runc", "version": "1.1.5+ds1-1+deb12u1", "licenses": ["Apache-2.0"]}
    ]


def test_the_package_of_a_kernel(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    text = b"6.1.0-57-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP Debian 6.1.192-3 (2026-11-26)\0"
    image.write_bytes(b"\0" * 0x20E + (0x100).to_bytes(2, "little") + b"\0" * (0x300 - 0x210) + text)
    found = kernel_package(image)
    assert found is not None
    assert (found["name"], found["version"]) == ("linux-image-6.1.0-57-cloud-amd64", "6.1.192-3")
    image.write_bytes(b"\0" * 1000)
    assert kernel_package(image) is None
    assert kernel_package(tmp_path / "absent") is None
