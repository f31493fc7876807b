"""Find the metadata of an object that may be nested too deeply to be decoded as a whole.

Without its metadata, an object that exists would count as deleted. Next: :mod:`services.common.kube.cache.reflector`.
"""

import msgspec

from schemas.inputs import Edge, InputDecoder, find_member, rejecting


class ObjectMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """What identifies an object and its version."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class _Identity(msgspec.Struct, frozen=True):
    metadata: ObjectMetadata


_identity = InputDecoder(Edge.KUBE, _Identity)
_metadata = InputDecoder(Edge.KUBE, ObjectMetadata)


def decode_metadata(raw: msgspec.Raw) -> ObjectMetadata:
    """Return the metadata of an object.

    :raises RejectedInput: it has none, or a value of it has the wrong type.
    """
    try:
        return _identity.decode_shallow(raw).metadata
    except RecursionError:
        return find_metadata(bytes(raw), "metadata")


def find_metadata(data: bytes, *path: str) -> ObjectMetadata:
    """Return the metadata below a path of members, without a look at anything else.

    :raises RejectedInput: there is none, or a value of it has the wrong type.
    """
    with rejecting(Edge.KUBE):
        return _metadata.decode(find_member(data, *path) or b"null")
