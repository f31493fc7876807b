"""JSON schemas of a Kubernetes version's objects, made from the OpenAPI document that the Kubernetes module carries.

The schemas are strict: a field that the version does not know is an error. Resources that other projects define have no
schema here, except for those whose CRD is the chart's.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MODULE = "k8s.io/kubernetes"
DEFINITION = "#/definitions/"
COMPLETE = "complete"
"""A file that says that the folder is whole."""
NUMBER_OR_TEXT = {"oneOf": [{"type": "string"}, {"type": "number"}]}


def schema_folder(version: str, crds: Path) -> Path:
    """Return the folder with the schemas of a version, made at the first call.

    :param version: such as ``v1.36.3``.
    :param crds: folder with CRDs, whose schemas are added.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "hotnic" / "interop" / "kubernetes-schemas" / version
    if not (folder / COMPLETE).is_file():
        document = json.loads((_module_folder(version) / "api" / "openapi-spec" / "swagger.json").read_bytes())
        folder.mkdir(parents=True, exist_ok=True)
        for name, schema in kind_schemas(document).items():
            _replace(folder / name, schema)
        (folder / COMPLETE).touch()
    for path in sorted(crds.glob("*.yaml")):
        for name, schema in crd_schemas(yaml.safe_load(path.read_text())).items():
            _replace(folder / name, schema)
    return folder


def _replace(path: Path, schema: dict[str, Any]) -> None:
    """Write a schema as a whole: another run on the machine may read it now."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(schema))
    temporary.replace(path)


def _module_folder(version: str) -> Path:
    command = ["go", "mod", "download", "-json", f"{MODULE}@{version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd="/")
    assert done.returncode == 0, f"cannot fetch {MODULE} {version} with Go: {done.stderr or done.stdout}"
    return Path(json.loads(done.stdout)["Dir"])


def file_name(group: str, version: str, kind: str) -> str:
    """Return the name of a kind's file, as kubeconform's template builds it: the core group has its version's name."""
    return f"{group or version}_{version}_{kind.lower()}.json"


def kind_schemas(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a strict schema for each kind of an OpenAPI v2 document, by file name, with the definitions it uses."""
    definitions = {name: _strict(definition) for name, definition in document["definitions"].items()}
    found: dict[str, dict[str, Any]] = {}
    for name, definition in document["definitions"].items():
        kinds = definition.get("x-kubernetes-group-version-kind", [])
        used = _used(name, definitions) if kinds else {}
        for kind in kinds:
            schema = {"$ref": f"{DEFINITION}{name}", "definitions": used}
            found[file_name(kind["group"], kind["version"], kind["kind"])] = schema
    return found


def _used(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a definition and those that it refers to."""
    used: dict[str, Any] = {}
    todo = [name]
    while todo:
        one = todo.pop()
        if one not in used:
            used[one] = definitions[one]
            todo += _references(definitions[one])
    return used


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix(DEFINITION)
            else:
                yield from _references(value)


def crd_schemas(crd: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the schema of each version of a CRD, by file name."""
    spec = crd["spec"]
    return {
        file_name(spec["group"], version["name"], spec["names"]["kind"]): _strict(version["schema"]["openAPIV3Schema"])
        for version in spec["versions"]
    }


def _strict(schema: Any) -> Any:
    """Return an OpenAPI schema as a JSON schema that allows no unknown field."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # A Quantity is text; YAML writes `cpu: 1` as a number, which the API server accepts.
    is_quantity = schema.get("type") == "string" and schema.get("description", "").startswith(
        "Quantity is a fixed-point"
    )
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string") or is_quantity:
        return dict(NUMBER_OR_TEXT)
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: _strict(item) for name, item in value.items()}
        elif key != "format" and not key.startswith("x-"):
            made[key] = _strict(value)
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and not open_ended:
        made["additionalProperties"] = False
    return made
