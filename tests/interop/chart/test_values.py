"""Every value is described and has an effect, and the schema is made from values.yaml."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.interop.chart import CHART, CHECKOUT, VALUE_SETS, helm, render

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())

CHANGES: dict[str, dict[str, Any]] = {
    # The changed value alone would be refused, or needs another one to have an effect.
    "vmOwner": {
        "vmOwner": "kubevirt",
        "api.claimKubevirtGroup": False,
        "crds.kubevirt": False,
        "handler.enabled": False,
    },
    "image.tag": {"image.tag": "changed", "image.digest": ""},
    "nats.url": {"nats.url": "nats://changed:4222"},
    "nats.authCallout.secret": {"nats.authCallout.secret": "changed", "nats.credentials.secret": ""},
    "nats.authCallout.audience": {
        "nats.authCallout.audience": "changed",
        "nats.authCallout.secret": "changed",
        "nats.credentials.secret": "",
    },
    "nats.authCallout.tokenSeconds": {
        "nats.authCallout.tokenSeconds": 700,
        "nats.authCallout.secret": "changed",
        "nats.credentials.secret": "",
    },
    "tracing.endpoint": {"tracing.endpoint": "http://changed:4318"},
    "metrics.serviceMonitor.interval": {"metrics.serviceMonitor.interval": "5s"},
    "image.digest": {"image.digest": f"sha256:{'f' * 64}"},
    "api.enabled": {"api.enabled": False, "api.claimKubevirtGroup": False},
    "controller.enabled": {"controller.enabled": False, "api.enabled": False, "handler.enabled": False},
    "multus.enabled": {"multus.enabled": False, "networks.upstreamMultus.socketDir": "/run/changed"},
    "networks.upstreamMultus.socketDir": {"multus.enabled": False, "networks.upstreamMultus.socketDir": "/run/changed"},
    "handler.enabled": {"handler.enabled": False},
    "admission.enabled": {"admission.enabled": False},
    "multus.config": {"multus.config.clusterNetwork": "changed/changed"},
    "certificates.provider": {"certificates.provider": "self"},
    "certificates.issuerRef.kind": {"certificates.issuerRef.kind": "Issuer", "certificates.issuerRef.name": "changed"},
    "certificates.issuerRef.group": {
        "certificates.issuerRef.group": "x.example",
        "certificates.issuerRef.name": "changed",
    },
    "test.network": {"test.network": '{"cniVersion": "1.0.0", "type": "changed"}'},
}
SAMPLES: dict[str, Any] = {
    "extraEnv": [{"name": "CHANGED", "value": "1"}],
    "imagePullSecrets": [{"name": "changed"}],
    "tolerations": [{"key": "changed", "operator": "Exists"}],
    "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "changed", "whenUnsatisfiable": "DoNotSchedule"}],
    "healthFrom": [{"podSelector": {"matchLabels": {"changed": "yes"}}}],
    "globalNamespaces": ["changed"],
    "users": ["changed"],
    "groups": ["changed"],
    "foreignAnnotations": ["changed.example/"],
    "networkPluginTypes": ["changed"],
    "networkDataDirs": ["/changed"],
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
    "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "maxUnavailable": "50%",
}


def values_of(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every value with its schema, those with values of their own left out."""
    for name, below in schema.get("properties", {}).items():
        if not path and name == "global":
            continue
        inner = f"{path}.{name}" if path else name
        if "properties" in below:
            yield from values_of(below, inner)
        else:
            yield inner, below


VALUES = dict(values_of(SCHEMA))


def default_of(path: str) -> Any:
    """Return the value of values.yaml."""
    value = DEFAULTS
    for name in path.split("."):
        value = value[name]
    return value


def current(path: str) -> Any:
    """Return the value in the set of all options, on which each change is made."""
    value: Any = yaml.safe_load((CHECKOUT / "tests/interop/chart/values/all-options.yaml").read_text())
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return default_of(path)
        value = value[name]
    return value


def changed(path: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return values that differ from the set of all options in this one."""
    if path in CHANGES:
        return CHANGES[path]
    name, now = path.rpartition(".")[2], current(path)
    if name in SAMPLES:
        return {path: SAMPLES[name]}
    if "enum" in schema:
        return {path: next(item for item in schema["enum"] if item != now)}
    if isinstance(now, bool):
        return {path: not now}
    if isinstance(now, int):
        return {path: now + 1}
    if isinstance(now, dict):
        return {path: {"changed": "yes"}}
    return {path: "/changed/path" if "(/[" in schema.get("pattern", "") else "changed"}


def test_schema_is_made_from_the_values() -> None:
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "scripts" / "generate" / "chart_schema.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def described(schema: dict[str, Any], path: str = "values") -> Iterator[tuple[str, str]]:
    """Yield every path with its description."""
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.{name}", below.get("description", "")
        yield from described(below, f"{path}.{name}")


def test_every_value_is_described_in_a_sentence() -> None:
    for path, description in described(SCHEMA):
        if ".items" in path or path.startswith(("values.extraEnv.", "values.global")):
            continue
        assert description.rstrip().endswith("."), path


def test_no_unknown_value_is_accepted() -> None:
    def check(schema: dict[str, Any], path: str) -> None:
        if "properties" in schema and "items" not in path:
            assert schema["additionalProperties"] is False, path
            for name, below in schema["properties"].items():
                check(below, f"{path}.{name}")

    check(SCHEMA, "values")


@pytest.mark.parametrize("path", VALUES)
def test_every_value_has_an_effect(path: str) -> None:
    flags = [
        part
        for key, value in changed(path, VALUES[path]).items()
        for part in ("--set-json", f"{key}={json.dumps(value)}")
    ]
    command = ["template", "hotnic", str(CHART), "--namespace", "hotnic", "--kube-version", "v1.36.3"]
    made = helm(*command, *VALUE_SETS["all-options"], *flags).stdout
    assert made != render(*VALUE_SETS["all-options"])


def test_example_values_of_the_chart_have_no_unknown_key() -> None:
    for path in [*(CHART / "choices").glob("*.yaml"), *(CHART / "presets").glob("*.yaml")]:
        for key in yaml.safe_load(path.read_text()):
            assert key in DEFAULTS, f"{path.name}: {key}"
