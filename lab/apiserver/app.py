"""Assemble the server: certificates, store, controllers, listeners, and an orderly shutdown.

`serving` runs the server for the duration of a `with` block; `__main__.py` makes a process of it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from lab.apiserver.aggregation.api_services import Aggregator
from lab.apiserver.aggregation.proxy import Forwarder
from lab.apiserver.controllers import system_objects
from lab.apiserver.controllers.manager import Controllers
from lab.apiserver.endpoints.handlers import Handlers
from lab.apiserver.endpoints.server import ApiServer
from lab.apiserver.identity import pki
from lab.apiserver.identity.auth import Authenticator, read_tokens
from lab.apiserver.registry import crd
from lab.apiserver.registry.resources import CRD_KEY, Registry
from lab.apiserver.registry.strategies import (
    ConfigMapStrategy,
    CrdStrategy,
    EventStrategy,
    NamespaceStrategy,
    PodStrategy,
    SecretStrategy,
    ServiceStrategy,
)
from lab.apiserver.rest.verbs import Admission, Rest
from lab.apiserver.storage.persist import Database
from lab.apiserver.storage.store import Store

KEEPALIVE_TIMEOUT = 3600.0
"""Seconds that an idle connection stays open; the lab's clients keep theirs as long as they run."""
SHUTDOWN_TIMEOUT = 0.3
"""Seconds that running requests have to finish when the server shuts down."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the API server; times in seconds.

    :ivar admission: decides on writes of users; `None` admits all.
    """

    directory: Path
    listen: tuple[str, ...] = ()
    listen_fds: tuple[int, ...] = ()
    advertise: str = ""
    tokens: Path | None = None
    event_log: int = 10_000
    bookmark_after: float = 5.0
    request_timeout: float = 60.0
    admission: Admission | None = None


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A running server.

    :ivar kubeconfig: the administrator's.
    :ivar tasks: background tasks, which end only by an exception.
    """

    url: str
    kubeconfig: Path
    listening: tuple[str, ...]
    tasks: tuple[asyncio.Task[None], ...]


def open_listeners(settings: Settings) -> list[socket.socket]:
    """Return the listening sockets, inherited ones first; 127.0.0.1 on a free port when there are no others."""
    # An inherited socket stays in the network namespace in which it was created, which makes the server reachable from
    # outside the lab.
    sockets = [socket.socket(fileno=fd) for fd in settings.listen_fds]
    for address in settings.listen or (() if sockets else ("127.0.0.1:0",)):
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        sockets.append(listener)
    return sockets


def serving_context(directory: Path) -> ssl.SSLContext:
    """Return the TLS context of the listeners; a client certificate is optional, and verified when sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving = pki.pair(directory, "apiserver")
    context.load_cert_chain(serving.cert, serving.key)
    context.load_verify_locations(pki.ca_file(directory))
    context.verify_mode = ssl.CERT_OPTIONAL
    # aiohttp does not serve HTTP/2, which clients would otherwise negotiate.
    context.set_alpn_protocols(["http/1.1"])
    return context


def _assemble(settings: Settings, address: str) -> tuple[ApiServer, Store, Controllers, Aggregator, Forwarder]:
    directory = settings.directory
    store = Store(Database(directory / "objects.sqlite"), settings.event_log)
    registry = Registry.with_builtin()
    strategies = {
        "/namespaces": NamespaceStrategy(),
        "/pods": PodStrategy(),
        "/services": ServiceStrategy(store),
        "/secrets": SecretStrategy(),
        "/configmaps": ConfigMapStrategy(),
        "/events": EventStrategy(),
        CRD_KEY: CrdStrategy(crd.set_defaults, crd.validate_crd),
    }
    # The server's own changes (controllers, garbage collector) take the same path as requests, so the same rules apply
    # to them.
    rest = Rest(store, strategies, settings.admission)
    controllers = Controllers(store, registry, rest, pki.ca_file(directory).read_text())
    system_objects.create_system_objects(store, registry, rest, directory)
    # As in a cluster that has run for a while: the versions of the server's own objects are too old to be listed.
    store.forget_past()
    authenticator = Authenticator(read_tokens(settings.tokens))
    forwarder = Forwarder(pki.pair(directory, "front-proxy-client"), settings.request_timeout)
    aggregator = Aggregator(store, registry, forwarder)
    handlers = Handlers(rest, registry, authenticator, bookmark_after=settings.bookmark_after)
    server = ApiServer(registry, handlers, authenticator, aggregator, address)
    return server, store, controllers, aggregator, forwarder


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[RunningServer]:
    """Serve for the duration of the block.

    :raises OSError: a listener or the directory cannot be opened.
    """
    directory = settings.directory
    directory.mkdir(parents=True, exist_ok=True)
    pki.ensure_pki(directory)
    listeners = open_listeners(settings)
    names = tuple(f"{name[0]}:{name[1]}" for name in (listener.getsockname() for listener in listeners))
    address = settings.advertise or names[0]
    kubeconfig = directory / "kubeconfig"
    pki.write_kubeconfig(kubeconfig, f"https://{address}", directory, pki.pair(directory, "admin"))
    server, store, controllers, aggregator, forwarder = _assemble(settings, address)
    runner = web.ServerRunner(
        web.Server(server, handler_cancellation=True, access_log=None, keepalive_timeout=KEEPALIVE_TIMEOUT),
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    await runner.setup()
    context = serving_context(directory)
    tasks = (
        asyncio.create_task(controllers.run(), name="controllers"),
        asyncio.create_task(aggregator.run(), name="aggregator"),
    )
    try:
        for listener in listeners:
            await web.SockSite(runner, listener, ssl_context=context, backlog=1024).start()
        yield RunningServer(f"https://{address}", kubeconfig, names, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Watches end only when their channels are closed, and the runner's clean-up waits for open responses.
        store.close()
        await runner.cleanup()
        await forwarder.close()
