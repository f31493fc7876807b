"""A certificate authority for tests, with keys and certificates as PEM files."""

import asyncio
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Pair:
    """Files of a certificate and its key."""

    cert: Path
    key: Path


async def tls_get(address: str, context: ssl.SSLContext, *, name: str = "127.0.0.1") -> tuple[dict[str, Any], str]:
    """Request ``/`` on a connection of its own; return the server's certificate and the body of the response.

    :param address: ``host:port``.
    :param name: name that the certificate must have.
    :raises ssl.SSLError: the handshake failed.
    :raises ConnectionError: the server ended the connection without a response, as TLS 1.3 refuses a client.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        response = await reader.read()
        certificate: dict[str, Any] = writer.get_extra_info("peercert")
    finally:
        writer.close()
    if not response:
        raise ConnectionError(f"no response from {address}")
    return certificate, response.partition(b"\r\n\r\n")[2].decode()


class Authority:
    """A certificate authority that signs certificates for 127.0.0.1 and for clients.

    :param strict: add the key identifiers that Python 3.13 requires.
    :ivar ca: file of its own certificate.
    """

    def __init__(self, directory: Path, name: str = "test-ca", *, strict: bool = True) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        builder = _builder(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        if strict:
            builder = builder.add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self._strict = strict
        self.ca = directory / f"{name}.pem"
        self.ca.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str = "server") -> Pair:
        """Create a certificate for a server on 127.0.0.1 or localhost."""
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
        return self._pair(name, names, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, name: str, *, file: str | None = None, end: timedelta = timedelta(hours=1)) -> Pair:
        """Create a certificate for a client of this common name.

        :param file: name of the files, if not the common name.
        :param end: from now until it expires; negative: it has expired.
        """
        return self._pair(name, None, ExtendedKeyUsageOID.CLIENT_AUTH, file=file, end=end)

    def certify(self, name: str, public_key: rsa.RSAPublicKey) -> bytes:
        """Return a certificate for a server with another key, as PEM text."""
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        builder = _builder(_name(name), self._name, public_key).add_extension(names, critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = builder.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _pair(
        self,
        name: str,
        names: x509.SubjectAlternativeName | None,
        usage: x509.ObjectIdentifier,
        *,
        file: str | None = None,
        end: timedelta = timedelta(hours=1),
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self._name, key.public_key(), end)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        if self._strict:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
            builder = builder.add_extension(issuer, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        file = file or name
        pair = Pair(self._directory / f"{file}.crt", self._directory / f"{file}.key")
        pair.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, end: timedelta = timedelta(hours=1)
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + end)
    )
