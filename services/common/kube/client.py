"""Requests to the Kubernetes API: one keep-alive session, raw JSON in and out, answers decoded into partial structs.

Every call has a deadline, a CLIENT span and a classified error (:mod:`services.common.kube.errors`); the session is
:mod:`services.common.kube.transport`. Nothing is retried here: what to do next is the caller's decision.
Next: :mod:`services.common.kube.reflector`, which keeps a store in step on top of :meth:`Kube.list_raw` and
:meth:`Kube.watch`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import msgspec

from schemas.kube import Resource
from services.common.kube import patch as json_patches
from services.common.kube.auth import ClusterAccess
from services.common.kube.errors import BadApiAnswer
from services.common.kube.transport import DEADLINE, JSON, KubeResponse, Transport
from services.common.telemetry.propagation import HasTracer

T = TypeVar("T")

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"

_encode = msgspec.json.Encoder().encode


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """The objects of a collection at one version.

    :ivar skipped: how many objects could not be decoded and are missing.
    """

    items: list[T]
    resource_version: str
    skipped: int = 0


class RawListing(msgspec.Struct, frozen=True):
    """The same, undecoded."""

    items: list[msgspec.Raw]
    resource_version: str


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


_list_decoder = msgspec.json.Decoder(_List)


class Kube:
    """A cluster's API. Made by :meth:`connect`; :meth:`close` it, or use it as an async context manager."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._decoders: dict[Any, msgspec.json.Decoder[Any]] = {}

    @property
    def access(self) -> ClusterAccess:
        """Address and credentials: ``server``, ``context``, ``namespace``."""
        return self._transport.access

    @classmethod
    async def connect(
        cls, *, kubeconfig: str | None, telemetry: HasTracer, user_agent: str, context: str | None = None
    ) -> "Kube":
        """Read the configuration and make the session; no request yet.

        :param kubeconfig: path(s) as in ``KUBECONFIG``; ``None``: ``~/.kube/config``, else the pod's service account.
        :param context: of the kubeconfig; ``None``: its current one.
        :raises KubeconfigError: there is no usable configuration.
        """
        access = ClusterAccess(kubeconfig, context)
        await access.load()
        return cls(Transport.open(access, telemetry, user_agent))

    async def __aenter__(self) -> "Kube":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def get(self, resource: Resource[T], namespace: str | None, name: str) -> T:
        """Read one object, live.

        :raises NotFound: there is none. :raises KubeError: any other failure.
        """
        answer = await self._call("get", resource, "GET", namespace, name)
        return self.decode(resource, answer.body)

    async def list(
        self,
        resource: Resource[T],
        namespace: str | None = None,
        *,
        labels: str | None = None,
        fields: str | None = None,
    ) -> Listing[T]:
        """Read a collection, live; ``namespace=None`` reads all namespaces.

        :param labels: a label selector. :param fields: a field selector.
        """
        raw = await self.list_raw(resource, namespace, labels=labels, fields=fields)
        items: list[T] = []
        for item in raw.items:
            try:
                items.append(self.decode(resource, item))
            except BadApiAnswer:
                continue
        return Listing(items, raw.resource_version, skipped=len(raw.items) - len(items))

    async def list_raw(
        self,
        resource: Resource[Any],
        namespace: str | None = None,
        *,
        labels: str | None = None,
        fields: str | None = None,
        timeout: float = 30.0,
    ) -> RawListing:
        """Read a collection undecoded, following ``continue`` tokens."""
        query = _selectors(labels, fields)
        items: list[msgspec.Raw] = []
        while True:
            answer = await self._call("list", resource, "GET", namespace, None, query=query, timeout=timeout)
            try:
                page = _list_decoder.decode(answer.body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BadApiAnswer(f"list of {resource.plural}: {error}", status=answer.status) from error
            items += page.items or []
            if not page.metadata.continue_:
                return RawListing(items, page.metadata.resource_version)
            query = {**query, "continue": page.metadata.continue_}

    async def create(
        self,
        resource: Resource[T],
        namespace: str | None,
        body: Mapping[str, Any] | bytes,
        *,
        timeout: float = DEADLINE,
    ) -> T:
        """Create an object.

        :raises AlreadyExists: the name is taken.
        """
        answer = await self._call("create", resource, "POST", namespace, None, body=body, timeout=timeout)
        return self.decode(resource, answer.body)

    async def json_patch(
        self,
        resource: Resource[T],
        namespace: str | None,
        name: str,
        ops: Sequence[Mapping[str, Any]],
        *,
        subresource: str | None = None,
    ) -> T:
        """Apply a JSON patch (:mod:`services.common.kube.patch`).

        :raises PatchTestFailed: a ``test`` no longer holds: read again. :raises Invalid: the result is not valid.
        """
        answer = await self._call(
            "patch", resource, "PATCH", namespace, name, subresource, body=ops, content_type=JSON_PATCH
        )
        return self.decode(resource, answer.body)

    async def merge_patch(
        self,
        resource: Resource[T],
        namespace: str | None,
        name: str,
        body: Mapping[str, Any],
        *,
        subresource: str | None = None,
    ) -> T:
        """Apply a merge patch (RFC 7386); with ``metadata.resourceVersion`` in it, only to that version.

        :raises Conflict: the object has another version.
        """
        answer = await self._call(
            "patch", resource, "PATCH", namespace, name, subresource, body=body, content_type=MERGE_PATCH
        )
        return self.decode(resource, answer.body)

    async def delete(
        self,
        resource: Resource[Any],
        namespace: str | None,
        name: str,
        *,
        grace: int | None = None,
        uid: str | None = None,
    ) -> None:
        """Delete an object.

        :param grace: seconds. :param uid: only if the object has this UID.
        :raises NotFound: there is none. :raises Conflict: it has another UID.
        """
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        await self._call("delete", resource, "DELETE", namespace, name, body=options)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = DEADLINE,
        span: str | None = None,
    ) -> KubeResponse:
        """Send any request.

        :param body: bytes as they are, anything else as JSON. :param content_type: of the body, JSON if not given.
        :param span: name of the span; ``kube METHOD`` if not given.
        :raises KubeError: of the class that tells what it means, for every answer of 400 or more and for none.
        """
        guarded = content_type == JSON_PATCH and not isinstance(body, bytes) and json_patches.is_guarded(body)
        if body is not None:
            content_type = content_type or JSON
            body = body if isinstance(body, bytes) else _encode(body)
        return await self._transport.request(
            method,
            path,
            query=query,
            body=body,
            content_type=content_type,
            headers=headers,
            timeout=timeout,
            span=span or f"kube {method}",
            guarded=guarded,
        )

    def watch(
        self,
        resource: Resource[Any],
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: str | None = None,
        fields: str | None = None,
        duration: float = 300.0,
        idle: float = 75.0,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a watch; gives the stream's chunks, to be split into lines by the caller.

        :param duration: seconds after which the server shall end it. :param idle: seconds of silence after which the
            connection counts as dead (bookmarks come about once a minute).
        :raises Gone: the version is too old. :raises Unavailable: also while reading, when the connection breaks.
        """
        query = _selectors(labels, fields) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(duration))),
        }
        return self._transport.stream(resource.path(namespace), query, idle=idle)

    def stream(
        self, path: str, query: Mapping[str, str], *, idle: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read an answer that does not end soon; gives its chunks.

        :param idle: as of :meth:`watch`. :raises KubeError: also while reading, when the connection breaks.
        """
        return self._transport.stream(path, query, idle=idle)

    def decode(self, resource: Resource[T], body: bytes | msgspec.Raw) -> T:
        """Decode an object of a resource.

        :raises BadAnswer: it is not one.
        """
        decoder = self._decoders.get(resource.type)
        if decoder is None:
            decoder = self._decoders[resource.type] = msgspec.json.Decoder(resource.type)
        try:
            decoded: T = decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadApiAnswer(f"not a usable {resource.kind}: {error}") from error
        return decoded

    async def _call(
        self,
        verb: str,
        resource: Resource[Any],
        method: str,
        namespace: str | None,
        name: str | None,
        subresource: str | None = None,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str | None = None,
        timeout: float = DEADLINE,
    ) -> KubeResponse:
        what = f"{resource.plural}/{subresource}" if subresource else resource.plural
        return await self.request(
            method,
            resource.path(namespace, name, subresource),
            query=query,
            body=body,
            content_type=content_type,
            timeout=timeout,
            span=f"kube {verb} {what}",
        )


def _selectors(labels: str | None, fields: str | None) -> dict[str, str]:
    query = {}
    if labels:
        query["labelSelector"] = labels
    if fields:
        query["fieldSelector"] = fields
    return query
