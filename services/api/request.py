"""Decode the body of an interface subresource, JSON or YAML, with or without a Content-Type, and its query.

Pure: bytes in, options out. Not whether the request can be fulfilled: :mod:`services.api.plan`.
Next: :mod:`services.api.observe`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from schemas.inputs import Edge, RejectedInput, rejecting
from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.names import NEW_INTERFACE_NAME, is_object_name

T = TypeVar("T")


class BadBody(ValueError):
    """The body or the query cannot be decoded, or a field is missing or malformed; the message is for the user."""


def decode_add(body: bytes) -> AddInterfaceOptions:
    """Return the options in the body of ``addinterface``.

    :raises BadBody: the body is refused; in KubeVirt's words where KubeVirt has them.
    """
    options = _decode(body, AddInterfaceOptions)
    if not options.network_attachment_definition_name:
        raise BadBody("AddInterfaceOptions requires `networkAttachmentDefinitionName` to be set")
    if not options.name:
        raise BadBody("AddInterfaceOptions requires `name` to be set")
    if not NEW_INTERFACE_NAME.fullmatch(options.name):
        raise BadBody(
            f"interface name {options.name!r} is malformed: use 1 to 63 letters, digits, '-' or '_', "
            "beginning with a letter or digit"
        )
    _check_nad_reference(options.network_attachment_definition_name)
    return options


def decode_remove(body: bytes) -> RemoveInterfaceOptions:
    """Return the options in the body of ``removeinterface``.

    Every name passes: a spec may have interfaces whose name :func:`decode_add` would refuse.

    :raises BadBody: as for :func:`decode_add`.
    """
    options = _decode(body, RemoveInterfaceOptions)
    if not options.name:
        raise BadBody("RemoveInterfaceOptions requires `name` to be set")
    return options


def parse_dry_run(query: Mapping[str, str]) -> bool:
    """Return whether the request is to change nothing (``dryRun=All``, as in Kubernetes).

    :raises BadBody: another value.
    """
    value = query.get("dryRun", "")
    if value not in ("", "All"):
        raise BadBody(f"dryRun must be All, not {value!r}")
    return value == "All"


def _decode(body: bytes, kind: type[T]) -> T:
    if not body.strip():
        raise BadBody("no request body, unable to decode options")
    try:
        with rejecting(Edge.API):
            return msgspec.convert(_decode_document(body), kind)
    except RejectedInput as error:
        if isinstance(error.__cause__, BadBody):
            # Without a cause: it would be this error, whose own cause is the error that is raised.
            raise error.__cause__ from None
        raise BadBody(f"cannot unmarshal Request body to struct, error: {error}") from error


def _check_nad_reference(reference: str) -> None:
    parts = reference.split("/")
    if len(parts) > 2 or not all(is_object_name(part) for part in parts):
        raise BadBody(
            f"networkAttachmentDefinitionName {reference!r} is malformed: use `name` or `namespace/name`, "
            "each a Kubernetes object name"
        )


def _decode_document(body: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        document = _decode_yaml(body)
    if document is None:
        raise BadBody("no request body, unable to decode options")
    if not isinstance(document, dict):
        raise BadBody(f"cannot unmarshal Request body to struct, error: expected an object, got {_json_type(document)}")
    return document


def _json_type(document: object) -> str:
    return {list: "an array", str: "a string", bool: "a boolean"}.get(type(document), "a scalar")


def _decode_yaml(body: bytes) -> Any:
    # Imported here because only a body that is not JSON needs it.
    from services.common.http.plain_yaml import decode_yaml

    return decode_yaml(body.decode())
