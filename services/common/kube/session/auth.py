"""Address of the cluster and credentials: kubeconfig files as kubectl reads them, or the pod's service account.

kubernetes_asyncio reads files and runs exec plugins. This module turns its configuration into a base URL, an SSL
context and request headers, and reads it again after a 401.
Next: :mod:`services.common.kube.session.transport`, which sends requests with them.
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

from schemas.inputs import printable
from services.common.kube.errors import KubeconfigError
from services.common.kube.session.lean import KubernetesAsyncio, load
from services.common.node.files import stamps

REFRESH_INTERVAL = 5.0
"""Minimum seconds between two reads of the configuration, so that a burst of 401 runs an exec plugin once."""
RELOAD_INTERVAL = 60.0
"""Seconds after which a kubeconfig's token file is read again; client-go uses a minute, too."""
LOAD_DEADLINE = 30.0
"""Seconds for reading the configuration, including a run of its exec plugin."""
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_OIDC = "oidc"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_log = logging.getLogger("hotnic.kube")


class ClusterAccess:
    """Address of a cluster, and credentials that are refreshed before they expire.

    :param kubeconfig: path(s) as in ``KUBECONFIG``; ``None``: ``~/.kube/config``, else the pod's service account.
    :param context: context of the kubeconfig; ``None`` for its current context.
    :ivar server: base URL without a trailing slash.
    :ivar context: name of the kubeconfig context; ``None`` in a pod.
    :ivar namespace: namespace of the context or the pod.
    :ivar ssl: TLS settings; ``None`` for plain HTTP.
    :ivar server_hostname: name that the server's certificate must have; ``None`` for the host of the URL.
    :ivar proxy: URL of the HTTP proxy; ``None`` without one.
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
        self._kubeconfig_paths = kubeconfig
        self._context_name = context
        self._environ = environ
        self._service_account = Path(service_account)
        self._clock = clock
        self._library: KubernetesAsyncio = load()
        self._lock = asyncio.Lock()
        self._configuration: Any = None
        self._loader: Any = None
        self._loaded_at = float("-inf")
        self._tls_files: tuple[Any, ...] = ()
        self._tls_checked_at = float("-inf")
        self.server = ""
        self.context: str | None = None
        self.namespace = "default"
        self.ssl: ssl.SSLContext | None = None
        self.server_hostname: str | None = None
        self.proxy: str | None = None

    async def load(self) -> None:
        """Read the configuration.

        :raises KubeconfigError: there is no configuration, or it cannot be used.
        """
        configuration = self._library.configuration()
        self._loaded_at = self._clock()
        try:
            async with asyncio.timeout(LOAD_DEADLINE):
                await self._load_into(configuration)
        except TimeoutError as error:
            raise KubeconfigError(
                f"cannot use {self._describe_source()}: no credentials within {LOAD_DEADLINE:g} s"
            ) from error
        except KubeconfigError:
            raise
        except Exception as e:  # the library raises whatever YAML, files, certificates and plugins raise
            raise KubeconfigError(f"cannot use {self._describe_source()}: {e or type(e).__name__}") from e
        if not configuration.host:
            raise KubeconfigError(f"cannot use {self._describe_source()}: it names no server")
        self._use(configuration)

    async def headers(self) -> dict[str, str]:
        """Return the authentication headers; none with a client certificate alone."""
        if self._is_stale() or self._is_tls_replaced():
            await self._reload(REFRESH_INTERVAL)
        if "BearerToken" not in self._configuration.api_key:
            return {}
        value = await self._configuration.get_api_key_with_prefix("BearerToken")
        return {"Authorization": value.strip()}

    async def refresh(self) -> bool:
        """Read the configuration again after a 401; return ``False`` if that failed or was done a moment ago."""
        return await self._reload(REFRESH_INTERVAL)

    async def _reload(self, min_interval: float) -> bool:
        async with self._lock:
            if self._clock() - self._loaded_at < min_interval:
                return False
            try:
                await self.load()
            except KubeconfigError as error:
                # The old credentials may still be valid, and a file that is being replaced reappears in a moment.
                _log.warning("credentials not refreshed: %s", error)
                return False
            return True

    def _is_stale(self) -> bool:
        age = self._clock() - self._loaded_at
        user = getattr(self._loader, "_user", None)
        if user is None or age < REFRESH_INTERVAL:
            return False
        if "exec" in user:
            # Credentials without an expiry are used until a 401, as in client-go.
            expiry = getattr(self._loader, "exec_plugin_expiry", None)
            return expiry is not None and bool(self._library.kube_config._is_expired(expiry))
        return age > RELOAD_INTERVAL and ("tokenFile" in user or "auth-provider" in user)

    def _is_tls_replaced(self) -> bool:
        """Return whether a CA, a certificate or a key has changed: a failed handshake has no 401 that would tell."""
        if self.ssl is None or self._clock() - self._tls_checked_at < REFRESH_INTERVAL:
            return False
        self._tls_checked_at = self._clock()
        try:
            return _tls_files(self._configuration) != self._tls_files
        except OSError:
            # A file that is being replaced reappears in a moment.
            return False

    def _use(self, configuration: Any) -> None:
        self._configuration = configuration
        self.server = configuration.host.rstrip("/")
        self.server_hostname = configuration.tls_server_name or None
        self.proxy = configuration.proxy or self._find_proxy()
        if not self.server.startswith("https") and configuration.api_key and not self._is_loopback():
            raise KubeconfigError(
                f"cannot use {self._describe_source()}: credentials are not sent to {self.server}, where everybody "
                "on the way can read them; use https"
            )
        if self.server.startswith("https"):
            files = _tls_files(configuration)
            # aiohttp pools connections by SSL context, so a new context is made only if a certificate has changed.
            if self.ssl is None or files != self._tls_files:
                self.ssl, self._tls_files = _ssl_context(configuration), files

    def _describe_source(self) -> str:
        return self._find_kubeconfig() or "the pod's service account"

    def _find_kubeconfig(self) -> str | None:
        if self._kubeconfig_paths:
            return self._kubeconfig_paths
        default = Path(self._environ.get("HOME", "/root")) / ".kube" / "config"
        return str(default) if default.is_file() else None

    async def _load_into(self, configuration: Any) -> None:
        paths = self._find_kubeconfig()
        if paths is None:
            self._load_service_account(configuration)
            return
        if not _existing_files(paths):
            raise KubeconfigError(f"no such kubeconfig: {paths}")
        merged = self._library.kube_config.KubeConfigMerger(paths).config
        _forget_refresh_tokens(merged)
        self._loader = self._library.kube_config.KubeConfigLoader(
            merged, self._context_name or _current_context(paths), config_base_path=None
        )
        provider = self._loader.provider
        if provider not in (None, _OIDC):
            raise KubeconfigError(
                f"cannot use {paths}: the auth-provider {printable(str(provider))} is not supported, as in kubectl; "
                "use an exec plugin"
            )
        try:
            await self._loader.load_and_set(configuration)
        except self._library.config_error as error:
            if provider != _OIDC:
                raise
            raise KubeconfigError(
                f"cannot use {paths}: {error}. hotnic refreshes no tokens of the auth-provider {_OIDC}: let kubectl do "
                "that (kubectl get --raw /version), or use an exec plugin"
            ) from error
        current = self._loader.current_context or {}
        self.context = current.get("name")
        self.namespace = current.get("context", {}).get("namespace") or "default"

    def _load_service_account(self, configuration: Any) -> None:
        if not self._environ.get("KUBERNETES_SERVICE_HOST"):
            raise KubeconfigError("no KUBECONFIG, no ~/.kube/config, and not in a pod")
        # The library reads the token again every minute.
        self._library.incluster.load_incluster_config(
            configuration,
            token_filename=str(self._service_account / "token"),
            cert_filename=str(self._service_account / "ca.crt"),
            environ=self._environ,
        )
        namespace = self._service_account / "namespace"
        self.namespace = namespace.read_text().strip() if namespace.is_file() else "default"

    def _is_loopback(self) -> bool:
        return urlsplit(self.server).hostname in _LOOPBACK

    def _find_proxy(self) -> str | None:
        # Resolved once, not per request. Loopback and the hosts of NO_PROXY use no proxy.
        parts = urlsplit(self.server)
        host = parts.hostname or ""
        if self._is_loopback() or urllib.request.proxy_bypass(host):
            return None
        return urllib.request.getproxies().get(parts.scheme)


def _forget_refresh_tokens(merged: Any) -> None:
    """Keep the library from refreshing tokens of an OpenID Connect provider: it does not verify its certificate."""
    for user in merged.value["users"]:
        match user.value:
            case {"user": {"auth-provider": {"config": dict(config)}}}:
                config.pop("refresh-token", None)


def _tls_files(configuration: Any) -> tuple[Any, ...]:
    """Return the files of a configuration, and what changes with their content."""
    paths = [path for path in (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file) if path]
    return (*paths, *stamps(paths))


def _existing_files(paths: str) -> list[Path]:
    files = [Path(path).expanduser() for path in paths.split(os.pathsep) if path]
    return [path for path in files if path.is_file()]


def _current_context(paths: str) -> str | None:
    """Return the current context of several kubeconfigs: the first one, as in kubectl. The library uses the last."""
    files = _existing_files(paths)
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
        raise KubeconfigError(f"cannot load the certificates: {error}") from error
    # Python 3.13 made VERIFY_X509_STRICT the default. Clusters that kubectl accepts have CAs without the extensions it
    # requires.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
