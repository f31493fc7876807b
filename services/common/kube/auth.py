"""Where the cluster is and who we are there: kubeconfig files as kubectl reads them, or the pod's service account.

The library reads files, runs exec plugins and refreshes tokens; here its configuration becomes a base URL, an SSL
context and request headers, and is read anew after a 401. Requests themselves: :mod:`services.common.kube.client`.
"""

import asyncio
import logging
import os
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from services.common.kube.errors import KubeconfigError
from services.common.kube.lean import Lean, load

REFRESH_INTERVAL = 5.0
"""Seconds between two readings of the configuration: a burst of 401 is one run of an exec plugin."""
RELOAD_INTERVAL = 60.0
"""Seconds after which a kubeconfig's token file is read again (client-go: a minute)."""
LOAD_DEADLINE = 30.0
"""Seconds for reading the configuration, with the exec plugin or the identity provider it may ask."""
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

_log = logging.getLogger("hotnic.kube")


class ClusterAccess:
    """A cluster's address and our credentials, kept fresh.

    :param kubeconfig: path(s) as in ``KUBECONFIG``; ``None``: ``~/.kube/config``, else the pod's service account.
    :ivar server: base URL without a trailing slash. :ivar context: name of the kubeconfig context, ``None`` in a pod.
    :ivar namespace: the context's (or the pod's) namespace. :ivar ssl: ``None`` for plain HTTP.
    :ivar proxy: URL of the HTTP proxy to use, if any.
    """

    def __init__(
        self,
        kubeconfig: str | None,
        context: str | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        service_account: str = SERVICE_ACCOUNT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = kubeconfig
        self._wanted_context = context
        self._environ = environ
        self._service_account = Path(service_account)
        self._clock = clock
        self._lean: Lean = load()
        self._lock = asyncio.Lock()
        self._configuration: Any = None
        self._loader: Any = None
        self._loaded = float("-inf")
        self._tls_files: tuple[Any, ...] = ()
        self.server = ""
        self.context: str | None = None
        self.namespace = "default"
        self.ssl: ssl.SSLContext | None = None
        self.server_hostname: str | None = None
        self.proxy: str | None = None

    async def load(self) -> None:
        """Read the configuration.

        :raises KubeconfigError: there is none, or it cannot be used.
        """
        configuration = self._lean.configuration()
        self._loaded = self._clock()
        try:
            async with asyncio.timeout(LOAD_DEADLINE):
                await self._fill(configuration)
        except TimeoutError as error:
            raise KubeconfigError(f"{self._source()}: no credentials within {LOAD_DEADLINE:g} s") from error
        except KubeconfigError:
            raise
        except Exception as e:  # YAML, files, certificates, plugins: whatever it was, it names the file
            raise KubeconfigError(f"cannot use {self._source()}: {e or type(e).__name__}") from e
        if not configuration.host:
            raise KubeconfigError(f"cannot use {self._source()}: it names no server")
        self._use(configuration)

    async def headers(self) -> dict[str, str]:
        """The headers that say who we are; empty with a client certificate alone."""
        if self._stale():
            await self._reload(REFRESH_INTERVAL)
        if "BearerToken" not in self._configuration.api_key:
            return {}
        value = await self._configuration.get_api_key_with_prefix("BearerToken")
        return {"Authorization": value.strip()}

    async def refresh(self) -> bool:
        """Read the configuration again after a 401; ``False`` when that was done just now, or cannot be done."""
        return await self._reload(REFRESH_INTERVAL)

    async def _reload(self, at_most_every: float) -> bool:
        async with self._lock:
            if self._clock() - self._loaded < at_most_every:
                return False
            try:
                await self.load()
            except KubeconfigError as error:
                # What we have may still do; and a file that is being replaced is there again in a moment.
                _log.warning("credentials not refreshed: %s", error)
                return False
            return True

    def _stale(self) -> bool:
        age = self._clock() - self._loaded
        user = getattr(self._loader, "_user", None)
        if user is None or age < REFRESH_INTERVAL:
            return False
        if "exec" in user:
            # Without an expiry what the plugin gave holds until a 401, as in client-go.
            expiry = getattr(self._loader, "exec_plugin_expiry", None)
            return expiry is not None and bool(self._lean.kube_config._is_expired(expiry))
        return age > RELOAD_INTERVAL and ("tokenFile" in user or "auth-provider" in user)

    def _use(self, configuration: Any) -> None:
        self._configuration = configuration
        self.server = configuration.host.rstrip("/")
        self.server_hostname = configuration.tls_server_name or None
        self.proxy = configuration.proxy or self._environment_proxy()
        if self.server.startswith("https"):
            files = tuple(
                (path, os.stat(path).st_mtime_ns) if path else None
                for path in (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
            )
            # Connections are pooled by SSL context: a new one only when a certificate has changed.
            if self.ssl is None or files != self._tls_files:
                self.ssl, self._tls_files = _ssl_context(configuration), files

    def _source(self) -> str:
        return self._kubeconfig() or "the pod's service account"

    def _kubeconfig(self) -> str | None:
        if self._paths:
            return self._paths
        default = Path(self._environ.get("HOME", "/root")) / ".kube" / "config"
        return str(default) if default.is_file() else None

    async def _fill(self, configuration: Any) -> None:
        paths = self._kubeconfig()
        if paths is None:
            self._fill_in_pod(configuration)
            return
        if not _files(paths):
            raise KubeconfigError(f"no such kubeconfig: {paths}")
        self._loader = await self._lean.kube_config.load_kube_config(
            config_file=paths,
            context=self._wanted_context or _current_context(paths),
            client_configuration=configuration,
        )
        current = self._loader.current_context or {}
        self.context = current.get("name")
        self.namespace = current.get("context", {}).get("namespace") or "default"

    def _fill_in_pod(self, configuration: Any) -> None:
        if not self._environ.get("KUBERNETES_SERVICE_HOST"):
            raise KubeconfigError("no KUBECONFIG, no ~/.kube/config, and not in a pod")
        # The library reads the token anew every minute.
        self._lean.incluster.load_incluster_config(
            configuration,
            token_filename=str(self._service_account / "token"),
            cert_filename=str(self._service_account / "ca.crt"),
            environ=self._environ,
        )
        namespace = self._service_account / "namespace"
        self.namespace = namespace.read_text().strip() if namespace.is_file() else "default"

    def _environment_proxy(self) -> str | None:
        # Looked up once, not per request. No proxy applies to loopback or to what NO_PROXY names.
        parts = urlsplit(self.server)
        host = parts.hostname or ""
        if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
            return None
        return urllib.request.getproxies().get(parts.scheme)


def _files(paths: str) -> list[Path]:
    files = [Path(path).expanduser() for path in paths.split(os.pathsep) if path]
    return [path for path in files if path.is_file()]


def _current_context(paths: str) -> str | None:
    """The current context of several kubeconfigs: kubectl lets the first file win, the library the last."""
    files = _files(paths)
    for path in files if len(files) > 1 else []:
        content = msgspec.yaml.decode(path.read_bytes())
        current = content.get("current-context") if isinstance(content, dict) else None
        if current:
            return str(current)
    return None


def _ssl_context(configuration: Any) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    except (ssl.SSLError, OSError) as error:
        raise KubeconfigError(f"cannot use the certificates: {error}") from error
    # Python 3.13 made this the default; clusters that kubectl accepts have CAs without the extensions it demands.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
