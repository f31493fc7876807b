"""Every rendered object is valid for the oldest and the newest Kubernetes, by kubeconform and strict schemas."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.interop.chart import CHART, KUBERNETES, VALUE_SETS, objects, render
from tests.support.interop.tools import tool
from tests.support.kube.schemas import file_name, kind_schemas, schema_folder

FOREIGN = {
    # cert-manager
    "cert-manager.io/v1/Certificate",
    "cert-manager.io/v1/Issuer",
    # Prometheus' operator
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    # OpenShift
    "security.openshift.io/v1/SecurityContextConstraints",
}
"""The kinds of other projects, whose schemas Kubernetes does not have."""


def kubeconform(texts: Mapping[str, str], version: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return kubeconform's verdict on each object, by the name of its text."""
    schemas = schema_folder(version, CHART / "files" / "crds")
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    command = [
        str(tool("kubeconform")),
        *("-strict", "-output", "json", "-verbose"),
        *("-skip", ",".join(sorted(FOREIGN))),
        *("-schema-location", f"{schemas}/{{{{.Group}}}}_{{{{.ResourceAPIVersion}}}}_{{{{.ResourceKind}}}}.json"),
        *(str(folder / f"{name}.yaml") for name in texts),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in texts}
    for entry in json.loads(done.stdout)["resources"]:
        found[Path(entry["filename"]).stem].append(entry)
    return found


@pytest.mark.parametrize("age", KUBERNETES)
def test_objects_are_valid(age: str, tmp_path: Path) -> None:
    version = KUBERNETES[age]
    texts = {name: render(*arguments, version=version) for name, arguments in VALUE_SETS.items()}
    for name, entries in kubeconform(texts, version, tmp_path).items():
        assert not [entry for entry in entries if entry["status"] not in ("statusValid", "statusSkipped")]
        # Nothing is skipped but the foreign kinds, and nothing is left out.
        rendered = [f"{item['apiVersion']}/{item['kind']}" for item in objects(texts[name])]
        valid = [f"{entry['version']}/{entry['kind']}" for entry in entries if entry["status"] == "statusValid"]
        assert sorted(valid) == sorted(kind for kind in rendered if kind not in FOREIGN)


@pytest.mark.parametrize("age", KUBERNETES)
def test_a_wrong_field_is_found(age: str, tmp_path: Path) -> None:
    text = render(*VALUE_SETS["everything"], version=KUBERNETES[age])
    changes = {
        "unknown": ("replicas: 2", "replica: 2"),
        "type": ("replicas: 2", "replicas: two"),
        "case": ("appArmorProfile", "apparmorProfile"),
        "apiservice": ("versionPriority: 15", "versionPriority: high"),
        "crd": ("scope: Namespaced", "scopes: Namespaced"),
    }
    assert all(old in text for old, _ in changes.values())
    found = kubeconform({name: text.replace(*change) for name, change in changes.items()}, KUBERNETES[age], tmp_path)
    for name, entries in found.items():
        assert "statusInvalid" in {entry["status"] for entry in entries}, name


def test_schemas_are_strict_and_open_where_the_api_is() -> None:
    document = {
        "definitions": {
            "io.k8s.api.core.v1.Thing": {
                "type": "object",
                "properties": {
                    "port": {"type": "string", "format": "int-or-string"},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "size": {"$ref": "#/definitions/io.k8s.Size"},
                    "count": {"type": "integer", "format": "int32"},
                },
                "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Thing"}],
            },
            "io.k8s.Size": {"description": "Quantity is a fixed-point number.", "type": "string"},
            "io.k8s.Other": {"type": "object"},
        }
    }
    either = {"oneOf": [{"type": "string"}, {"type": "number"}]}
    thing = {
        "type": "object",
        "properties": {
            "port": either,
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "size": {"$ref": "#/definitions/io.k8s.Size"},
            "count": {"type": "integer"},
        },
        "additionalProperties": False,
    }
    # The definition that the kind does not use is left out.
    assert kind_schemas(document) == {
        "v1_v1_thing.json": {
            "$ref": "#/definitions/io.k8s.api.core.v1.Thing",
            "definitions": {"io.k8s.api.core.v1.Thing": thing, "io.k8s.Size": either},
        }
    }
    assert file_name("apps", "v1", "DaemonSet") == "apps_v1_daemonset.json"


def test_both_versions_are_within_the_range_of_the_chart() -> None:
    oldest = KUBERNETES["oldest"].removeprefix("v").rpartition(".")[0]
    assert f'kubeVersion: ">={oldest}.0-0"' in Path(CHART / "Chart.yaml").read_text()
