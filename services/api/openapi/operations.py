"""The operations of the aggregated API as data: paths, parameters, bodies and responses, in no version of OpenAPI.

Both versions are built from this table. What requests mean is :mod:`services.api.server`.
Next: :mod:`services.api.openapi.schemas`, the schemas of the bodies.
"""

from typing import Any, Final

import msgspec

from schemas.bus.hotplug_status import LIST_KIND, HotplugStatus
from schemas.kubernetes.objects import Status
from schemas.kubernetes.options import OPERATION_HEADER, AddInterfaceOptions, RemoveInterfaceOptions
from services.api.discovery import CHANGE_RESOURCES, HOTNIC_GROUP, KIND_RESOURCES, STATUS_RESOURCE

OPTIONS: Final[dict[str, type]] = {
    "AddInterfaceOptions": AddInterfaceOptions,
    "RemoveInterfaceOptions": RemoveInterfaceOptions,
}
"""The bodies of requests, by kind."""

REFUSALS: Final = {
    400: "The body or a parameter is malformed, or interfaces may not be hot-plugged.",
    401: "The request did not come through the Kubernetes API server.",
    403: "The user may not use the network, or a webhook refuses the change.",
    404: "The VM, its VMI or the network does not exist.",
    408: "The body did not arrive in time.",
    409: "The state of the VM does not allow the change; the message says what does.",
    413: "The body is too large.",
    422: "The change is not possible for this interface or network, or the VM or VMI has a field that cannot be read.",
    500: "The api lacks a permission, or an answer of the API server cannot be read; the message says which.",
    503: "The Kubernetes API server does not answer.",
    504: "The Kubernetes API server does not answer in time.",
}
"""The refusals of a change, by HTTP code."""

FAILED_READS: Final = {code: REFUSALS[code] for code in (400, 401, 404, 422, 500, 503, 504)} | {
    429: "Too many watches are open."
}
"""The refusals of a read, by HTTP code."""


class OperationParameter(msgspec.Struct, frozen=True):
    """A parameter of an operation.

    :ivar where: ``path`` or ``query``.
    :ivar schema: its type, and what it may be.
    """

    name: str
    where: str
    schema: dict[str, Any]
    description: str


class OperationResponse(msgspec.Struct, frozen=True):
    """A response of an operation.

    :ivar body: type of the body; ``None`` for an empty one.
    :ivar headers: descriptions of the headers, by name.
    """

    description: str
    body: type | None = None
    headers: dict[str, str] = {}


class ServedOperation(msgspec.Struct, frozen=True):
    """One method of one path.

    :ivar id: unique in the document of all group versions.
    :ivar action: what Kubernetes calls the method.
    :ivar kind: the kind that the operation is about, in its group version.
    :ivar body: type of the request's body.
    """

    path: str
    method: str
    id: str
    action: str
    kind: str
    description: str
    parameters: tuple[OperationParameter, ...]
    responses: dict[int, OperationResponse]
    body: type | None = None


_NAMESPACE = OperationParameter("namespace", "path", {"type": "string"}, "namespace of the VM")
_NAME = OperationParameter("name", "path", {"type": "string"}, "name of the VM or VMI")
_CHANGE_PARAMETERS: Final = (
    OperationParameter(
        "dryRun", "query", {"type": "string", "enum": ["All"]}, "All: everything is checked, nothing changes"
    ),
    OperationParameter(
        "allowEviction",
        "query",
        {"type": "boolean"},
        "whether the change may be made if KubeVirt shuts the VM down or migrates it for it",
    ),
)
_STATUS_PARAMETERS: Final = (
    OperationParameter(
        "watch", "query", {"type": "boolean"}, "whether to stream the status: one WatchEvent in each line"
    ),
    OperationParameter(
        "timeoutSeconds", "query", {"type": "integer"}, "seconds after which a stream ends; it ends after 50 at most"
    ),
    OperationParameter(
        "resourceVersion", "query", {"type": "string"}, "of the status from which a stream resumes, by any replica"
    ),
    OperationParameter(
        "stored", "query", {"type": "boolean"}, "whether to add the bucket's own entries, for hotnic doctor"
    ),
)


def list_operations(group: str, version: str) -> list[ServedOperation]:
    """Return the operations of a group version."""
    base = f"/apis/{group}/{version}/namespaces/{{namespace}}"
    suffix = "".join(part.capitalize() for part in (*group.split(".")[:-1], version))
    found = [_change(base, resource, kind, suffix) for resource, kind in CHANGE_RESOURCES.items()]
    if group == HOTNIC_GROUP:
        found.append(_status(base, suffix))
    kinds = KIND_RESOURCES[group]
    return [*found, *(_explained(base, resource, kind, suffix) for resource, kind in kinds.items())]


def _change(base: str, resource: str, kind: str, suffix: str) -> ServedOperation:
    plural, _, verb = resource.partition("/")
    target = plural.removesuffix("s")
    what = "Plug an interface into" if kind == "AddInterfaceOptions" else "Unplug an interface from"
    where = (
        "the running VM, at once" if target == "virtualmachineinstance" else "the VM: its template, and the running VM"
    )
    accepted = OperationResponse(
        "The operation has begun, or it is in progress already.",
        headers={
            OPERATION_HEADER: "id of the operation; without it nothing had to be done, or nothing was done",
            "Warning": "what the user should know about the change",
        },
    )
    return ServedOperation(
        path=f"{base}/{plural}/{{name}}/{verb}",
        method="put",
        id=f"replace{suffix}{target.capitalize()}{kind.removesuffix('Options')}",
        action="put",
        kind=kind,
        description=f"{what} {where}.",
        parameters=(_NAMESPACE, _NAME, *_CHANGE_PARAMETERS),
        responses={202: accepted} | _refused(REFUSALS),
        body=OPTIONS[kind],
    )


def _status(base: str, suffix: str) -> ServedOperation:
    plural, _, subresource = STATUS_RESOURCE.partition("/")
    return ServedOperation(
        path=f"{base}/{plural}/{{name}}/{subresource}",
        method="get",
        id=f"read{suffix}VirtualmachineinstanceInterfaces",
        action="get",
        kind=LIST_KIND,
        description="Read the hot-plug status of all interfaces of a VMI, or watch it.",
        parameters=(_NAMESPACE, _NAME, *_STATUS_PARAMETERS),
        responses={200: OperationResponse("The status.", HotplugStatus)} | _refused(FAILED_READS),
    )


def _explained(base: str, resource: str, kind: str, suffix: str) -> ServedOperation:
    """Return the operation by which ``kubectl explain`` finds a kind; it reads only operations of whole resources."""
    message = f"{kind} is the content of a subresource; there are no objects of this kind."
    return ServedOperation(
        path=f"{base}/{resource}",
        method="get",
        id=f"explain{suffix}{kind}",
        action="get",
        kind=kind,
        description=f"{message} The path exists for kubectl explain alone.",
        parameters=(_NAMESPACE,),
        responses=_refused({401: REFUSALS[401], 405: message}),
    )


def _refused(refusals: dict[int, str]) -> dict[int, OperationResponse]:
    return {code: OperationResponse(text, Status) for code, text in sorted(refusals.items())}
