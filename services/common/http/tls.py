"""TLS for servers: certificate, and client certificates that are asked for and verified. No key is ever made here."""

import ssl
from typing import Any

from aiohttp import web


def server_context(
    cert: str, key: str, *, client_ca: str | None = None, client_cert_required: bool = False
) -> ssl.SSLContext:
    """The context of a TLS server.

    :param cert: PEM file with the certificate chain. :param key: PEM file with its key.
    :param client_ca: PEM text of the CAs whose client certificates are accepted; ``None``: none is asked for.
    :param client_cert_required: refuse a handshake without one; else such a request has no :func:`peer_common_name`.
    :raises OSError: a file cannot be read. :raises ssl.SSLError: it is not what it should be.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    # An API server that offers HTTP/2 must learn at once that it is not spoken here.
    context.set_alpn_protocols(["http/1.1"])
    if client_ca is not None:
        context.load_verify_locations(cadata=client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if client_cert_required else ssl.CERT_OPTIONAL
        # As for servers' CAs: clusters' own CAs often lack the extensions that Python 3.13 demands.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def peer_common_name(request: web.Request) -> str | None:
    """The common name of the client's verified certificate; ``None`` when it showed none."""
    transport = request.transport
    peer: dict[str, Any] | None = transport.get_extra_info("peercert") if transport is not None else None
    for part in (peer or {}).get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return None
