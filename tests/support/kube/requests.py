"""Which requests a role can send to the Kubernetes API, read from its source: the modules that it imports, and in them
each call of the client with a resource.

A call whose resource is a variable cannot be read. It must be listed by the test that uses this, by module.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import schemas.kubernetes.api_registration
import schemas.kubernetes.kubevirt
import schemas.kubernetes.objects
import schemas.kubernetes.pod_volumes
import services.cli.chart.uninstall
from schemas.kubernetes.objects import Resource

CHECKOUT = Path(__file__).resolve().parents[3]
VERBS = {
    "get": ("get",),
    "list": ("list",),
    "list_pages": ("list",),
    "watch": ("watch",),
    "create": ("create",),
    "json_patch": ("patch",),
    "merge_patch": ("patch",),
    "delete": ("delete",),
    # A reflector lists and watches. `reflector` is the local function of VmiWatch that makes one.
    "Reflector": ("list", "watch"),
    "reflector": ("list", "watch"),
    "CachedReader": ("get",),
}
"""The verbs of each call: a method of the client, or a class that calls it."""

RESOURCES: dict[str, Resource[object]] = {
    name: value
    for module in (
        schemas.kubernetes.objects,
        schemas.kubernetes.kubevirt,
        schemas.kubernetes.api_registration,
        schemas.kubernetes.pod_volumes,
        services.cli.chart.uninstall,
    )
    for name, value in vars(module).items()
    if isinstance(value, Resource)
}

Permission = tuple[str, str, str]
"""Group, resource and verb."""


def modules_of(entry: str) -> frozenset[Path]:
    """Return the source files that a module imports, itself included, wherever in a file the import stands."""
    found: set[Path] = set()
    todo = [entry]
    while todo:
        path = _file_of(todo.pop())
        if path is None or path in found:
            continue
        found.add(path)
        todo += _imports(path)
    return frozenset(found)


def permissions_of(path: Path) -> tuple[set[Permission], set[str]]:
    """Return the permissions that the calls of one file need, and the calls whose resource cannot be read."""
    found: set[Permission] = set()
    unread: set[str] = set()
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.Call) or (name := _called(node)) not in VERBS or not _is_client(node, name):
            continue
        resource = next((item for item in map(_resource, node.args[:2]) if item is not None), None)
        if resource is None:
            unread.add(ast.unparse(node.func))
            continue
        named = f"{resource.plural}{_subresource(node)}"
        found |= {(resource.group, named, verb) for verb in VERBS[name]}
    return found, unread


def _called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _is_client(call: ast.Call, name: str) -> bool:
    """Return whether a call is one of the client: of a class above, or a method of something named ``kube``."""
    if isinstance(call.func, ast.Name):
        return name in ("Reflector", "reflector", "CachedReader")
    assert isinstance(call.func, ast.Attribute)
    return ast.unparse(call.func.value).rpartition(".")[2].lstrip("_") == "kube"


def _resource(argument: ast.expr) -> Resource[object] | None:
    return RESOURCES.get(argument.id) if isinstance(argument, ast.Name) else None


def _subresource(call: ast.Call) -> str:
    """Return the subresource of a call with a slash before it; empty if it names none, or a variable one."""
    value = next((keyword.value for keyword in call.keywords if keyword.arg == "subresource"), None)
    return f"/{value.value}" if isinstance(value, ast.Constant) else ""


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(module: str) -> Path | None:
    if module.partition(".")[0] not in ("services", "schemas"):
        return None
    path = CHECKOUT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())
