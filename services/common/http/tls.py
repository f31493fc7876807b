"""TLS settings of servers: certificate, and verification of client certificates. No keys are generated here."""

import ssl
from typing import Any

from aiohttp import web


def server_context(
    cert: str, key: str, *, client_ca: str | None = None, client_cert_required: bool = False
) -> ssl.SSLContext:
    """Return the SSL context of a server.

    :param cert: PEM file with the certificate chain.
    :param key: PEM file with its key.
    :param client_ca: PEM text of the CAs whose client certificates are accepted; ``None`` requests no certificate.
    :param client_cert_required: refuse a handshake without a client certificate. Otherwise :func:`peer_common_name` is
        ``None`` for such a request.
    :raises OSError: a file cannot be read.
    :raises ssl.SSLError: a file holds no certificate or key, or they do not match.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    # aiohttp has no HTTP/2. An API server that offers it has to learn that in the handshake.
    context.set_alpn_protocols(["http/1.1"])
    if client_ca is not None:
        context.load_verify_locations(cadata=client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if client_cert_required else ssl.CERT_OPTIONAL
        # CAs of clusters often lack the extensions that Python 3.13 requires by default.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def peer_common_name(request: web.Request) -> str | None:
    """Return the common name of the client's verified certificate; ``None`` if it presented none."""
    transport = request.transport
    peer: dict[str, Any] | None = transport.get_extra_info("peercert") if transport is not None else None
    for part in (peer or {}).get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return None
