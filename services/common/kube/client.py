"""Client of the Kubernetes API: single requests with raw JSON, responses decoded into partial structs.

Every call has a deadline, a CLIENT span and a classified error (:mod:`services.common.kube.errors`). Nothing is retried
here: the caller decides. The session is :mod:`services.common.kube.session.transport`.
Next: :mod:`services.common.kube.cache.reflector`, which keeps a store in sync by :meth:`Kube.list_pages` and
:meth:`Kube.watch`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Any, TypeVar

import msgspec

from schemas.inputs import InputDecoder, RejectedInput
from schemas.kubernetes.decoding import ObjectDecoder, make_decoder
from schemas.kubernetes.objects import Resource
from services.common.kube import patch as json_patches
from services.common.kube.errors import BadApiResponse, Gone, ResponseTooLarge
from services.common.kube.listing import Listing, RawPage, decode_page, first_limit, selectors, smaller_limit
from services.common.kube.session.auth import ClusterAccess
from services.common.kube.session.transport import DEADLINE, JSON, JSON_PATCH, KubeResponse, Transport
from services.common.telemetry.propagation import HasTracer

T = TypeVar("T")

MERGE_PATCH = "application/merge-patch+json"
END_GRACE = 30.0
"""Seconds that a server may take longer to end a watch than it was asked to."""

_encode = msgspec.json.Encoder().encode


class Kube:
    """Client of one cluster's API.

    Create it by :meth:`connect`, and :meth:`close` it or use it as an async context manager.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._decoders: dict[Any, InputDecoder[Any] | ObjectDecoder[Any]] = {}

    @property
    def access(self) -> ClusterAccess:
        """Address and credentials of the cluster: ``server``, ``context``, ``namespace``."""
        return self._transport.access

    @classmethod
    async def connect(
        cls, *, kubeconfig: str | None, telemetry: HasTracer, user_agent: str, context: str | None = None
    ) -> "Kube":
        """Read the configuration and create the session, without sending a request.

        :param kubeconfig: path(s) as in ``KUBECONFIG``; ``None``: ``~/.kube/config``, else the pod's service account.
        :param context: context of the kubeconfig; ``None`` for its current context.
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

        :raises NotFound: there is no such object.
        :raises KubeError: any other failure.
        """
        response = await self._call("get", resource, "GET", namespace, name)
        return self.decode(resource, response.body)

    async def list(
        self,
        resource: Resource[T],
        namespace: str | None = None,
        *,
        labels: str | None = None,
        fields: str | None = None,
        most: int | None = None,
    ) -> Listing[T]:
        """Read a collection, live.

        :param namespace: ``None`` for all namespaces.
        :param labels: label selector.
        :param fields: field selector.
        :param most: read no further page after so many objects; they may still be more.
        """
        try:
            return await self._list(resource, namespace, labels, fields, most)
        except Gone:
            # Its version has expired between two pages. A list that starts again shows a later one.
            return await self._list(resource, namespace, labels, fields, most)

    async def _list(
        self, resource: Resource[T], namespace: str | None, labels: str | None, fields: str | None, most: int | None
    ) -> Listing[T]:
        items: list[T] = []
        version, count = "", 0
        async with aclosing(self.list_pages(resource, namespace, labels=labels, fields=fields)) as pages:
            async for page in pages:
                version = page.resource_version
                count += len(page.items)
                items += self.decode_page(resource, page)
                if most is not None and count >= most:
                    break
                del page  # freed while the next one is on its way
        return Listing(items, version, skipped=count - len(items))

    def decode_page(self, resource: Resource[T], page: RawPage) -> Iterator[T]:
        """Yield the objects of a page but for those that cannot be decoded: one must not hide the others."""
        for item in page.items:
            with suppress(BadApiResponse):
                yield self.decode(resource, item)

    async def list_pages(
        self,
        resource: Resource[Any],
        namespace: str | None = None,
        *,
        labels: str | None = None,
        fields: str | None = None,
        timeout: float = 30.0,
    ) -> AsyncGenerator[RawPage, None]:
        """Read a collection page by page, live, without decoding its objects.

        All pages show the collection at the version of the first one. A page is freed before the next one arrives if
        the caller has dropped it by then. One that is too large for a response is requested again with fewer objects.

        :param timeout: seconds for one page.
        :raises Gone: the API server has forgotten that version: start again.
        """
        query, limit = selectors(labels, fields), first_limit(labels, fields)
        while True:
            if limit:
                query["limit"] = str(limit)
            try:
                response = await self._call("list", resource, "GET", namespace, None, query=query, timeout=timeout)
            except ResponseTooLarge:
                limit = smaller_limit(limit)
                if not limit:
                    raise
                continue
            page = decode_page(resource.plural, response.status, response.body)
            found, token = RawPage(page.items or [], page.metadata.resource_version), page.metadata.continue_
            del response, page
            yield found
            del found
            if not token:
                return
            query["continue"] = token

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
        response = await self._call("create", resource, "POST", namespace, None, body=body, timeout=timeout)
        return self.decode(resource, response.body)

    async def json_patch(
        self,
        resource: Resource[T],
        namespace: str | None,
        name: str,
        ops: Sequence[Mapping[str, Any]],
        *,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> T:
        """Apply a JSON patch (:mod:`services.common.kube.patch`).

        :param dry_run: only ask whether the API server and its webhooks would accept it.
        :raises PatchTestFailed: a ``test`` no longer matches; read the object again.
        :raises Invalid: the patched object would be invalid.
        """
        query = {"dryRun": "All"} if dry_run else None
        response = await self._call(
            "patch", resource, "PATCH", namespace, name, subresource, query=query, body=ops, content_type=JSON_PATCH
        )
        return self.decode(resource, response.body)

    async def merge_patch(
        self,
        resource: Resource[T],
        namespace: str | None,
        name: str,
        body: Mapping[str, Any],
        *,
        subresource: str | None = None,
    ) -> T:
        """Apply a merge patch (RFC 7386). A patch with ``metadata.resourceVersion`` applies to that version only.

        :raises Conflict: the object has another version.
        """
        response = await self._call(
            "patch", resource, "PATCH", namespace, name, subresource, body=body, content_type=MERGE_PATCH
        )
        return self.decode(resource, response.body)

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

        :param grace: grace period in seconds.
        :param uid: delete only an object with this UID.
        :raises NotFound: there is no such object.
        :raises Conflict: the object has another UID.
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

        :param body: bytes are sent unchanged, anything else as JSON.
        :param content_type: type of the body; JSON by default.
        :param timeout: seconds.
        :param span: name of the span; ``kube METHOD`` by default.
        :raises KubeError: the status is 300 or more, or there is no response.
        """
        guarded = not isinstance(body, bytes) and json_patches.is_guarded(body)
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
        duration: float,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a watch, and yield the chunks of its stream. The caller splits them into lines.

        A watch may deliver nothing for its whole time: some API servers send no bookmark for a quiet type.

        :param duration: seconds after which the server ends the watch. One that does not counts as broken.
        :raises Gone: the resource version is too old.
        :raises Unavailable: no response, or, while reading, a broken connection.
        """
        seconds = max(1, round(duration))
        query = selectors(labels, fields) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
        }
        return self._transport.stream(resource.path(namespace), query, timeout=seconds + END_GRACE)

    def stream(
        self, path: str, query: Mapping[str, str], *, timeout: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a long-running response, and yield its chunks.

        :param timeout: seconds for the whole response, which the server ends before.
        :raises KubeError: the request failed, or, while reading, the connection broke.
        """
        return self._transport.stream(path, query, timeout=timeout)

    def decode(self, resource: Resource[T], body: bytes | msgspec.Raw) -> T:
        """Decode an object of a resource.

        :raises BadApiResponse: the body is no such object.
        """
        decoder = self._decoders.get(resource.type)
        if decoder is None:
            decoder = self._decoders[resource.type] = make_decoder(resource.type)
        try:
            decoded: T = decoder.decode(body)
        except RejectedInput as error:
            raise BadApiResponse(f"cannot decode {resource.kind}: {error}") from error
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
        target = f"{resource.plural}/{subresource}" if subresource else resource.plural
        return await self.request(
            method,
            resource.path(namespace, name, subresource),
            query=query,
            body=body,
            content_type=content_type,
            timeout=timeout,
            span=f"kube {verb} {target}",
        )
