"""Lists of Kubernetes objects: the decoded form, and one page of a response.

Next: :mod:`services.common.kube.client`, which reads them.
"""

from typing import Generic, TypeVar

import msgspec

from schemas.inputs import Edge, InputDecoder, RejectedInput, find_member, rejecting, split_elements
from services.common.kube.errors import BadApiResponse

T = TypeVar("T")

PAGE_SIZE = 500
"""Objects in a page, as client-go and kubectl request them: some MiB of VMIs or pods."""
SMALL_PAGE_SIZE = 8
"""Objects in a page of a collection that was to be read without pages, but has large objects."""


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """The objects of a collection at one resource version.

    :ivar skipped: number of objects that are left out because they could not be decoded.
    """

    items: list[T]
    resource_version: str
    skipped: int = 0


class RawPage(msgspec.Struct, frozen=True):
    """Undecoded objects of one page. They share the memory of the response.

    :ivar resource_version: version of the collection, the same in all pages of a list.
    """

    items: list[msgspec.Raw]
    resource_version: str


class ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    """Metadata of a page.

    :ivar continue_: token for the next page; empty on the last page.
    """

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class ListPage(msgspec.Struct, frozen=True):
    """One page of a collection."""

    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] | None = None


# Without a limit: the objects are decoded one by one.
_decoder = InputDecoder(Edge.KUBE, ListPage, max_bytes=None)
_metadata = InputDecoder(Edge.KUBE, ListMeta)


def first_limit(labels: str | None, fields: str | None) -> int:
    """Return the number of objects to request at first; 0 for all of them.

    A selector by value finds few objects. Without a limit, Kubernetes since 1.31 reads them from its watch cache; with
    one, before 1.34, it reads the whole collection from etcd to find a page of them.
    """
    by_value = fields or any(sign in (labels or "") for sign in ("=", " in ("))
    return 0 if by_value else PAGE_SIZE


def smaller_limit(limit: int) -> int:
    """Return the number of objects to request after so many were too large for one response; 0 if there is none."""
    if not limit:
        return SMALL_PAGE_SIZE
    return max(1, limit // 4) if limit > 1 else 0


def selectors(labels: str | None, fields: str | None) -> dict[str, str]:
    """Return the query of a label selector and a field selector."""
    query = {}
    if labels:
        query["labelSelector"] = labels
    if fields:
        query["fieldSelector"] = fields
    return query


def decode_page(plural: str, status: int, body: bytes) -> ListPage:
    """Decode the response to a list request. One object that is nested too deeply does not hide the others.

    :param plural: name of the resource, for the error message.
    :raises BadApiResponse: the body is no list.
    """
    try:
        return _decoder.decode_shallow(body)
    except RecursionError:
        return _split_page(plural, status, body)
    except RejectedInput as error:
        raise BadApiResponse(f"cannot decode list of {plural}: {error}", status=status) from error


def _split_page(plural: str, status: int, body: bytes) -> ListPage:
    try:
        with rejecting(Edge.KUBE):
            items = split_elements(find_member(body, "items") or b"[]")
            return ListPage(
                _metadata.decode(find_member(body, "metadata") or b"{}"), [msgspec.Raw(item) for item in items]
            )
    except RejectedInput as error:
        raise BadApiResponse(f"cannot decode list of {plural}: {error}", status=status) from error
