"""The whole server put together: certificates, store, controllers, listeners, and an orderly end.

`running` is the server for the time of a `with` block; `__main__.py` wraps it in a process.
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

from services.lab.apiserver import bootstrap, crd, pki
from services.lab.apiserver.aggregation import Aggregator
from services.lab.apiserver.auth import Authenticator, read_tokens
from services.lab.apiserver.controllers import Controllers
from services.lab.apiserver.handlers import Handlers
from services.lab.apiserver.persist import Database
from services.lab.apiserver.proxy import Forwarder
from services.lab.apiserver.resources import CRD_KEY, Registry
from services.lab.apiserver.rest import Rest
from services.lab.apiserver.server import Server
from services.lab.apiserver.store import Store
from services.lab.apiserver.strategies import (
    ConfigMaps,
    CustomResourceDefinitions,
    Events,
    Namespaces,
    Pods,
    Secrets,
    Services,
)

IDLE_CONNECTION = 3600.0
"""Seconds a connection may stay open without a request; clients in the lab live as long as it does."""
GOODBYE = 0.3
"""Seconds that requests under way have when the server ends."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything one can choose; times in seconds."""

    directory: Path
    listen: tuple[str, ...] = ()
    listen_fds: tuple[int, ...] = ()
    advertise: str = ""
    tokens: Path | None = None
    event_log: int = 10_000
    bookmark_after: float = 5.0
    request_timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers: where, and how administrators reach it. `tasks` only end when something broke."""

    url: str
    kubeconfig: Path
    listening: tuple[str, ...]
    tasks: tuple[asyncio.Task[None], ...]


def open_listeners(settings: Settings) -> list[socket.socket]:
    """The listening sockets, inherited ones first; 127.0.0.1 on a free port when none is asked for."""
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
    """TLS with the serving certificate; client certificates are welcome and checked, not demanded."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving = pki.pair(directory, "apiserver")
    context.load_cert_chain(serving.cert, serving.key)
    context.load_verify_locations(pki.ca_file(directory))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context


def _assemble(settings: Settings, address: str) -> tuple[Server, Store, Controllers, Aggregator, Forwarder]:
    directory = settings.directory
    store = Store(Database(directory / "objects.sqlite"), settings.event_log)
    registry = Registry.with_builtin()
    strategies = {
        "/namespaces": Namespaces(),
        "/pods": Pods(),
        "/services": Services(store),
        "/secrets": Secrets(),
        "/configmaps": ConfigMaps(),
        "/events": Events(),
        CRD_KEY: CustomResourceDefinitions(crd.complete, crd.check),
    }
    rest = Rest(store, strategies)
    controllers = Controllers(store, registry, rest, pki.ca_file(directory).read_text())
    bootstrap.lay_out(store, registry, rest, directory)
    authenticator = Authenticator(read_tokens(settings.tokens))
    forwarder = Forwarder(pki.pair(directory, "front-proxy-client"), settings.request_timeout)
    aggregator = Aggregator(store, registry, forwarder)
    handlers = Handlers(rest, registry, authenticator, bookmark_after=settings.bookmark_after)
    server = Server(registry, handlers, authenticator, aggregator, address)
    return server, store, controllers, aggregator, forwarder


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """Serve until the block ends. Raises `OSError` when a listener or the directory cannot be had."""
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
        web.Server(server, handler_cancellation=True, access_log=None, keepalive_timeout=IDLE_CONNECTION),
        shutdown_timeout=GOODBYE,
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
        yield Running(f"https://{address}", kubeconfig, names, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        store.close()
        await runner.cleanup()
        await forwarder.close()
