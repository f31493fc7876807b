"""TLS of servers: the serving certificate and the CAs of clients, which may be replaced while they serve.

No keys are made here. Next: :mod:`services.common.http.tls_files`, which follows a certificate in files.
"""

import os
import ssl
from typing import Any
from weakref import WeakSet

from aiohttp import web

_replaced: WeakSet[ssl.SSLContext] = WeakSet()
"""Contexts of open connections whose CAs of clients were replaced since."""


class ServerTls:
    """The TLS settings of one server.

    :param client_ca: PEM text of the CAs whose client certificates are accepted; ``None`` requests no certificate.
    :param client_cert_required: refuse a handshake without a client certificate. Otherwise :func:`peer_common_name` is
        ``None`` for such a request.
    :ivar context: the SSL context to serve with. It refuses every handshake until :meth:`use` was called.
    """

    def __init__(self, *, client_ca: str | None = None, client_cert_required: bool = False) -> None:
        self._client_ca = client_ca
        self._client_cert_required = client_cert_required
        self._pair: tuple[bytes, bytes] | None = None
        self._trusting: WeakSet[ssl.SSLContext] = WeakSet()
        self._current: ssl.SSLContext | None = None
        self.context = self._new_context(client_ca)
        # Each pair has a context of its own. A pair that was loaded into a used context would stand beside the old one
        # if its key is of another type, and a mismatched pair would leave a context that serves nothing.
        self.context.sni_callback = self._select

    def use(self, certificate: bytes, key: bytes) -> None:
        """Serve another certificate: from the next handshake on. Open connections keep theirs.

        :param certificate: PEM text of the certificate chain.
        :param key: PEM text of its key.
        :raises ssl.SSLError: one of them cannot be read, or they do not match; the current certificate stays.
        """
        context = self._new_context(self._client_ca)
        _load_pair(context, certificate, key)
        self._pair, self._current = (certificate, key), context

    def trust(self, client_ca: str) -> None:
        """Accept the client certificates of other CAs: from the next handshake on.

        An open connection ends with its next request (:func:`is_of_replaced_ca`): its certificate may be one of the
        other CAs too, so that request is not refused.

        :param client_ca: PEM text of the CAs.
        :raises ssl.SSLError: it cannot be read; the current CAs stay.
        :raises ValueError: it is empty or no ASCII text; the current CAs stay.
        """
        if not client_ca.isascii():
            raise ValueError("the CAs of clients are no ASCII text")
        before, self._trusting = self._trusting, WeakSet()
        try:
            context = self._new_context(client_ca)
            if self._pair is not None:
                _load_pair(context, *self._pair)
                self._current = context
        except (ssl.SSLError, ValueError):
            self._trusting = before
            raise
        self._client_ca = client_ca
        _replaced.update(before)

    def _select(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> int | None:
        # OpenSSL calls this for every handshake, with or without a server name.
        if self._current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None

    def _new_context(self, client_ca: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # aiohttp has no HTTP/2. An API server that offers it has to learn that in the handshake.
        context.set_alpn_protocols(["http/1.1"])
        # Without tickets every handshake of TLS 1.3 verifies the client's certificate. Clients of TLS 1.2 may still
        # resume a session by its id, see peer_common_name.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        if client_ca is not None:
            context.load_verify_locations(cadata=client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if self._client_cert_required else ssl.CERT_OPTIONAL
            # CAs of clusters often lack the extensions that Python 3.13 requires by default.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._trusting.add(context)
        return context


def peer_common_name(request: web.Request) -> str | None:
    """Return the common name of the client's verified certificate.

    It is ``None`` if the client presented none, if its subject has several common names, of which others read another
    one, or if it resumed a session: its certificate was verified in an earlier handshake, perhaps by a CA that is gone.
    """
    transport = request.transport
    if transport is None:
        return None
    connection: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if connection is not None and connection.session_reused:
        return None
    peer: dict[str, Any] = transport.get_extra_info("peercert") or {}
    names = [str(value) for part in peer.get("subject", ()) for name, value in part if name == "commonName"]
    return names[0] if len(names) == 1 else None


def is_of_replaced_ca(request: web.BaseRequest) -> bool:
    """Return whether the CAs of clients were replaced since the handshake of a request's connection."""
    connection = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    return connection is not None and connection.context in _replaced


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load a pair from memory. Python's SSL reads files only; this one never reaches a disk."""
    descriptor = os.memfd_create("serving-certificate", os.MFD_CLOEXEC)
    try:
        view = memoryview(certificate + b"\n" + key)
        while view:
            view = view[os.write(descriptor, view) :]
        # Without a password OpenSSL would ask on the terminal for that of an encrypted key.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    finally:
        os.close(descriptor)
