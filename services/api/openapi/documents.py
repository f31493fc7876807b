"""Build the OpenAPI documents: one of version 2, and of version 3 an index and one per group version.

kube-aggregator asks for version 2 with ``Accept: application/json`` and for the index without any, of 1.30 as of 1.36.
It passes a client's request for a document of version 3 on, which kubectl sends as JSON. So nobody needs protobuf here.
kube-aggregator takes every group version of the index for this server's, also one that another server registers.
Next: :mod:`services.common.http.documents`, which serves them.
"""

from functools import lru_cache
from typing import Any, Final

import msgspec

from services.api.discovery import GROUPS
from services.api.openapi.operations import OperationParameter, OperationResponse, ServedOperation, list_operations
from services.api.openapi.schemas import build_schemas, reference
from services.common.http.documents import JSON, ServedDocument

V2, V3 = "/openapi/v2", "/openapi/v3"
CONSUMED: Final = (JSON, "application/yaml")

_encode = msgspec.json.Encoder(order="sorted").encode
_INFO: Final = {"title": "hotnic", "version": "v1"}


def openapi_paths() -> list[str]:
    """Return the paths of all documents."""
    return [V2, V3, *(f"{V3}/apis/{group}/{version}" for group, versions in GROUPS.items() for version in versions)]


@lru_cache(maxsize=4)
def openapi_documents(groups: tuple[str, ...]) -> dict[str, ServedDocument]:
    """Return the documents by path. They are built once.

    :param groups: the groups that are registered for this server.
    """
    served = [(group, version) for group in groups for version in GROUPS[group]]
    documents = {
        f"{V3}/apis/{group}/{version}": ServedDocument.of(_encode(_version_3(group, version)))
        for group, version in served
    }
    # The hash lets clients keep a document for as long as the index has this address.
    index = {
        path.removeprefix(f"{V3}/"): {"serverRelativeURL": f"{path}?hash={document.hash}"}
        for path, document in documents.items()
    }
    return {
        V2: ServedDocument.of(_encode(_version_2(served))),
        V3: ServedDocument.of(_encode({"paths": index})),
        **documents,
    }


def _version_2(served: list[tuple[str, str]]) -> dict[str, Any]:
    operations = [one for group, version in served for one in _operations(2, group, version)]
    return {
        "swagger": "2.0",
        "info": _INFO,
        "paths": _by_path(operations),
        "definitions": build_schemas(2, served),
    }


def _version_3(group: str, version: str) -> dict[str, Any]:
    return {
        "openapi": "3.0.0",
        "info": _INFO,
        "paths": _by_path(_operations(3, group, version)),
        "components": {"schemas": build_schemas(3, [(group, version)])},
    }


def _by_path(operations: list[tuple[ServedOperation, dict[str, Any]]]) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for operation, described in operations:
        paths.setdefault(operation.path, {})[operation.method] = described
    return paths


def _operations(dialect: int, group: str, version: str) -> list[tuple[ServedOperation, dict[str, Any]]]:
    found = []
    for operation in list_operations(group, version):
        described: dict[str, Any] = {
            "operationId": operation.id,
            "description": operation.description,
            "tags": [f"{group}_{version}"],
            "parameters": [_parameter(one, dialect) for one in operation.parameters],
            "responses": {str(code): _response(one, dialect) for code, one in operation.responses.items()},
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": operation.kind},
        }
        if dialect == 2:
            described |= {"produces": [JSON], "schemes": ["https"]}
        if operation.body is not None:
            schema = reference(operation.body, dialect)
            if dialect == 2:
                described["consumes"] = list(CONSUMED)
                described["parameters"].append({"name": "body", "in": "body", "required": True, "schema": schema})
            else:
                content = {kind: {"schema": schema} for kind in CONSUMED}
                described["requestBody"] = {"required": True, "content": content}
        found.append((operation, described))
    return found


def _parameter(parameter: OperationParameter, dialect: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.description,
        "required": parameter.where == "path",
    }
    return described | (parameter.schema if dialect == 2 else {"schema": parameter.schema})


def _response(response: OperationResponse, dialect: int) -> dict[str, Any]:
    described: dict[str, Any] = {"description": response.description}
    if response.body is not None:
        schema = reference(response.body, dialect)
        described |= {"schema": schema} if dialect == 2 else {"content": {JSON: {"schema": schema}}}
    if response.headers:
        text = {"type": "string"}
        described["headers"] = {
            name: {"description": meaning, **(text if dialect == 2 else {"schema": text})}
            for name, meaning in response.headers.items()
        }
    return described
