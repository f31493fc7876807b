"""The HTTP server: it receives every request and returns a response or a Status.

Order: health (without authentication), authentication, aggregated servers, resources, discovery and other documents.
Next: `handlers.py` for resources, `aggregation/api_services.py` for other servers, `documents/` for the rest.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Awaitable, Callable

from aiohttp import web

from lab.apiserver.aggregation.api_services import Aggregator
from lab.apiserver.documents import discovery, openapi
from lab.apiserver.endpoints import respond
from lab.apiserver.endpoints.handlers import Handlers
from lab.apiserver.endpoints.request import accepted_form, parse_target
from lab.apiserver.errors import ApiError, Object, internal_error, method_not_allowed, no_such_resource
from lab.apiserver.identity.auth import ANONYMOUS_PATHS, Authenticator, User
from lab.apiserver.registry.resources import Registry

_log = logging.getLogger("hotnic.lab.apiserver")

VERSION: Object = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0+hotnic.lab",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": f"python{platform.python_version()}",
    "compiler": platform.python_implementation(),
    "platform": f"linux/{platform.machine()}",
}
"""The response of `/version`: the Kubernetes release whose behaviour this server follows, marked as the lab's."""


class ApiServer:
    """The request handler of `aiohttp.web.Server`."""

    def __init__(
        self,
        registry: Registry,
        handlers: Handlers,
        authenticator: Authenticator,
        aggregator: Aggregator,
        address: str,
    ) -> None:
        self._registry = registry
        self._handlers = handlers
        self._authenticator = authenticator
        self._aggregator = aggregator
        self._address = address
        self._documents = openapi.Documents(registry)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._serve(request)
        except ApiError as error:
            return respond.respond_status(error.to_status())
        # The client has disconnected; there is no response to send.
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            _log.exception("%s %s failed", request.method, request.rel_url)
            return respond.respond_status(internal_error(f"{type(error).__name__}: {error}").to_status())

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path in ANONYMOUS_PATHS or path.startswith(("/readyz/", "/livez/", "/healthz/")):
            return self._health(request, path)
        transport = request.transport
        peercert = transport.get_extra_info("peercert") if transport is not None else None
        user = self._authenticator.user_of(peercert, request.headers)
        api_service = self._aggregator.find_api_service(path)
        if api_service is not None:
            return await self._aggregator.proxy(request, api_service, user)
        target = parse_target(path)
        if target is not None:
            return await self._handlers.handle(request, target, user)
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed() if self._known(path) else no_such_resource()
        return self._document(request, path, user)

    def _health(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        if path.startswith("/version"):
            return respond.respond_value(VERSION)
        return web.Response(text="ok")

    def _known(self, path: str) -> bool:
        return path.rstrip("/") in ("/api", "/apis", "/api/v1", "") or path.startswith(("/apis/", "/openapi/"))

    def _document(self, request: web.BaseRequest, path: str, user: User) -> web.StreamResponse:
        parts = path.strip("/").split("/")
        if parts[0] == "openapi":
            return self._documents.serve(request, path)
        form = accepted_form(request.headers.get("Accept", ""))
        remotes = self._aggregator.remotes()
        registry = self._registry
        if path.rstrip("/") in ("/api", "/apis") and form.as_ == "APIGroupDiscoveryList":
            version = form.version if form.version in ("v2", "v2beta1") else "v2"
            document = discovery.aggregated(registry, remotes, version, core=parts[0] == "api")
            response = respond.respond_value(document)
            response.headers["Content-Type"] = (
                f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
            )
            return response
        found: Object | None = None
        if path.rstrip("/") == "":
            found = {
                "paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz"]
            }
        elif parts == ["api"]:
            found = discovery.api_versions(self._address)
        elif parts == ["apis"]:
            found = discovery.group_list(registry, remotes)
        elif parts[0] == "api" and len(parts) == 2:
            found = discovery.resource_list(registry, "", parts[1])
        elif parts[0] == "apis" and len(parts) == 2:
            found = discovery.one_group(registry, remotes, parts[1])
        elif parts[0] == "apis" and len(parts) == 3:
            found = discovery.resource_list(registry, parts[1], parts[2])
        if found is None:
            raise no_such_resource()
        return respond.respond_value(found, 200, form)


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
