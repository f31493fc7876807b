#!/usr/bin/env python3
"""Write ``k8s/values.schema.json`` from ``k8s/values.yaml``, so that each value is described in one place.

The description of a value is the comment above it, its type is that of its default, and `RULES` has what a default
cannot say. ``--check`` writes nothing and fails when the file differs.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "k8s"
ROLES = ("api", "controller", "networks", "multus", "handler")

# Only characters that mean nothing in YAML, because the templates write paths into flow mappings.
PATH: dict[str, Any] = {"pattern": "^(/[A-Za-z0-9._-]+)+$"}
SOCKET_PATH: dict[str, Any] = {"pattern": "^((/[A-Za-z0-9._-]+){2,})?$"}
OPTIONAL_PATH: dict[str, Any] = {"pattern": "^((/[A-Za-z0-9._-]+)+)?$"}
GUEST_PATH: dict[str, Any] = {"pattern": "^(/[A-Za-z0-9._{}-]+)+$"}
NAME: dict[str, Any] = {"pattern": "^([a-z]([a-z0-9-]*[a-z0-9])?)?$", "maxLength": 40}
SHARE: dict[str, Any] = {"type": ["integer", "string"], "pattern": "^[1-9][0-9]?%$|^100%$", "minimum": 1}
ENVIRONMENT: dict[str, Any] = {
    "type": "array",
    "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}},
}
# The admission policies write them into single quotes.
IDENTITIES: dict[str, Any] = {"type": "array", "items": {"type": "string", "pattern": "^[^'\\\\\\s]+$"}}
OBJECTS: dict[str, Any] = {"type": "array", "items": {"type": "object"}}

RULES: dict[str, dict[str, Any]] = {
    # Empty passes here, so that _checks.tpl can say what the two mean.
    "vmOwner": {"enum": ["kubevirt", "hotnic", ""]},
    "nameOverride": NAME,
    "fullnameOverride": NAME,
    "extraEnv": ENVIRONMENT,
    "imagePullSecrets": OBJECTS,
    "fsGroup": {"type": ["integer", "null"], "minimum": 1},
    "image.repository": {"minLength": 1},
    # Not `latest`: nobody knows afterwards what ran.
    "image.tag": {"minLength": 1, "not": {"const": "latest"}},
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    # Not in /: networks mounts the socket's directory.
    "criSocket": SOCKET_PATH,
    "cniBinDir": PATH,
    "cniConfDir": PATH,
    "netnsDir": PATH,
    "kubeletDir": PATH,
    "node.process": {"enum": ["separate", "single"]},
    # No user part: a password in a value would be in plain text in the release and in the pods.
    "nats.authCallout.audience": {"pattern": "^[A-Za-z0-9][A-Za-z0-9._:/-]*$"},
    # Kubernetes makes no token for less than ten minutes.
    "nats.authCallout.tokenSeconds": {"minimum": 600, "maximum": 86400},
    "nats.url": {"pattern": "^((nats|tls|ws|wss)://[^@,\\s]+(,(nats|tls|ws|wss)://[^@,\\s]+)*)?$"},
    "log.level": {"enum": ["debug", "info", "warning", "error"]},
    "log.format": {"enum": ["json", "console"]},
    "tracing.endpoint": {"pattern": "^(https?://[^@\\s/:?#][^@\\s]*)?$"},
    "tracing.protocol": {"enum": ["http/protobuf", "grpc"]},
    "metrics.serviceMonitor.interval": {"pattern": "^[0-9]+(ms|s|m|h)$"},
    "networkPolicies.healthFrom": OBJECTS,
    "certificates.provider": {"enum": ["self", "cert-manager"]},
    "certificates.issuerRef.kind": {"minLength": 1},
    # Not empty: the roles would use their default.
    "namespaceIsolation.globalNamespaces": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "pattern": "^[a-z0-9-]+$"},
    },
    # Not the separator of the list, and no path.
    "networkPluginTypes": {"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z0-9._-]+$"}},
    "networkDataDirs": {"type": "array", "items": {"type": "string", "pattern": "^/[^,]*$"}},
    "admission.enabled": {"type": ["boolean", "null"]},
    "admission.trusted.users": IDENTITIES,
    "admission.trusted.groups": IDENTITIES,
    "admission.kubevirtNamespace": {"pattern": "^[a-z0-9-]*$"},
    "admission.foreignAnnotations": {"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z0-9./_-]+[./]$"}},
    "networks.upstreamMultus.socketDir": OPTIONAL_PATH,
    "multus.socketDir": PATH,
    "multus.stateDir": PATH,
    "multus.networksDir": PATH,
    "multus.connectionLimit": {"minimum": 1},
    "multus.pluginTimeout": {"minimum": 1, "maximum": 600},
    "multus.healthPort": {"minimum": 1, "maximum": 65535},
    "handler.enabled": {"type": ["boolean", "null"]},
    "handler.guestDriver": {"enum": ["auto", "qmp", "libvirt"]},
    "handler.qmpSocket": GUEST_PATH,
    "handler.guestAgentSocket": GUEST_PATH,
    "handler.tapOwner": {"minimum": 0},
    # The hook reports, then its Job ends, both before Helm gives up, by default after 300 s.
    "uninstall.timeout": {"minimum": 10, "maximum": 180},
} | {
    f"{role}.{name}": rule
    for role in ROLES
    for name, rule in {
        "replicas": {"minimum": 1},
        "maxUnavailable": SHARE,
        "topologySpreadConstraints": OBJECTS,
        "tolerations": OBJECTS,
        "extraEnv": ENVIRONMENT,
    }.items()
}

OPEN = {"resources", "nodeSelector"}
"""Names of values with the structure of a Kubernetes field; an empty mapping is open, too."""

_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):( |$)")


def read_comments(text: str) -> dict[str, str]:
    """Return the comment above each value, by the value's path such as ``image.tag``."""
    found: dict[str, str] = {}
    comment: list[str] = []
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        key = _KEY.match(line)
        if line.strip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
        elif key is not None:
            indent = len(key["indent"])
            above = [*((width, name) for width, name in above if width < indent), (indent, key["key"])]
            found[".".join(name for _, name in above)] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found


def build(values: Any, comments: dict[str, str], path: str = "") -> dict[str, Any]:
    """Return the schema of a value and of those below it."""
    schema: dict[str, Any] = {"description": comments[path]} if comments.get(path) else {}
    name = path.rpartition(".")[2]
    if isinstance(values, dict):
        schema["type"] = "object"
        if values and name not in OPEN:
            schema["additionalProperties"] = False
            schema["properties"] = {
                key: build(value, comments, f"{path}.{key}" if path else key) for key, value in values.items()
            }
    else:
        schema["type"] = {bool: "boolean", int: "integer", str: "string", list: "array"}.get(type(values), "null")
    return schema | RULES.get(path, {})


def render() -> str:
    """Return the text of the schema."""
    text = (CHART / "values.yaml").read_text()
    comments = {path: comment for path, comment in read_comments(text).items() if comment}
    schema = build(yaml.safe_load(text), comments)
    # Helm merges these into every chart's values.
    schema["properties"]["global"] = {"type": "object", "description": "Helm's global values; the chart has none."}
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "required": ["vmOwner"], **schema}
    return json.dumps(schema, indent=2) + "\n"


def main() -> int:
    """Write the file, or compare it; return the exit code."""
    target = CHART / "values.schema.json"
    made = render()
    if "--check" in sys.argv[1:]:
        if target.is_file() and target.read_text() == made:
            return 0
        print(f"{target.name} differs from values.yaml; run: scripts/generate/chart_schema.py", file=sys.stderr)
        return 1
    target.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
