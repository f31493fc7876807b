"""From a NetworkAttachmentDefinition to the CNI configuration that ``/delegate`` takes. Pure.

Source: multi-network specification 1.x, and multus' reading of it: a configuration without a ``name`` gets the NAD's.
Next: :mod:`services.networks.delegate`.
"""

from typing import Any

import msgspec

from schemas.kube import NetworkAttachmentDefinition
from services.networks.failure import Failure

INVALID = "InvalidNetwork"

_document = msgspec.json.Decoder(dict[str, Any])


def config_of(nad: NetworkAttachmentDefinition) -> bytes:
    """The configuration, byte for byte where it has a name of its own.

    :raises Failure: it has none, or one that is no CNI configuration; the reason is ``InvalidNetwork``.
    """
    where = f"network {nad.metadata.namespace}/{nad.metadata.name}"
    text = nad.spec.config
    if not text.strip():
        raise Failure(
            INVALID,
            f"{where} has no spec.config: a configuration that stands in a file of the node cannot be attached "
            "to a running pod",
        )
    try:
        document = _document.decode(text)
    except msgspec.DecodeError as error:
        raise Failure(INVALID, f"spec.config of {where} is not a JSON object: {error}") from error
    if not (isinstance(document.get("type"), str) or isinstance(document.get("plugins"), list)):
        raise Failure(INVALID, f'spec.config of {where} names no plugin: neither "type" nor "plugins"')
    if document.get("name"):
        return text.encode()
    return msgspec.json.encode({**document, "name": nad.metadata.name})
