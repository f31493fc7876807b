"""The lab's certificates: cluster CA, serving and client certificates, front-proxy CA, and kubeconfigs.

All files are below `DIR/pki` and readable by their owner only; keys are EC P-256. A later start reuses existing
files, so that kubeconfigs stay valid. `lab.supervisor.credentials` issues the roles' certificates with this module.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVICE_ADDRESS = "10.96.0.1"
"""Address of the Service `kubernetes`, by which pods reach the API server."""

VALIDITY = dt.timedelta(days=3650)
_BACKDATED = dt.timedelta(hours=1)  # tolerates clocks that differ between machines


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The files of a certificate and its key."""

    cert: Path
    key: Path


def ensure_pki(directory: Path, names: Iterable[str] = ()) -> None:
    """Create what is missing of the two CAs and of the serving, admin and front-proxy client certificates.

    :param names: further DNS names of the API server.
    """
    ensure_ca(directory, "ca", "hotnic-lab-ca")
    ensure_ca(directory, "front-proxy-ca", "hotnic-lab-front-proxy-ca")
    if not _pair(directory, "apiserver").cert.exists():
        issue_server(
            directory,
            "kube-apiserver",
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", *names],
            ["127.0.0.1", SERVICE_ADDRESS],
            file_name="apiserver",
        )
    if not _pair(directory, "admin").cert.exists():
        issue_client(directory, "kubernetes-admin", ["system:masters"], file_name="admin")
    if not _pair(directory, "front-proxy-client").cert.exists():
        issue_client(directory, "front-proxy-client", [], ca="front-proxy-ca")


def ca_file(directory: Path, ca: str = "ca") -> Path:
    """Return the PEM file of the cluster CA (`ca`) or the front-proxy CA (`front-proxy-ca`)."""
    return _pair(directory, ca).cert


def pair(directory: Path, file_name: str) -> KeyPair:
    """Return the files of a certificate that was issued before."""
    return _pair(directory, file_name)


def issue_client(
    directory: Path, common_name: str, organizations: Iterable[str], *, ca: str = "ca", file_name: str = ""
) -> KeyPair:
    """Issue a client certificate; Kubernetes takes the common name as user and the organizations as groups."""
    name = x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in organizations),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    return _issue(directory, ca, name, [], ExtendedKeyUsageOID.CLIENT_AUTH, file_name or _file_name(common_name))


def issue_server(
    directory: Path,
    common_name: str,
    dns_names: Iterable[str],
    ips: Iterable[str],
    *,
    ca: str = "ca",
    file_name: str = "",
) -> KeyPair:
    """Issue a serving certificate for the given names and addresses."""
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
    alternatives += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    file_name = file_name or _file_name(common_name)
    return _issue(directory, ca, name, alternatives, ExtendedKeyUsageOID.SERVER_AUTH, file_name)


def write_kubeconfig(
    path: Path,
    server: str,
    directory: Path,
    user: KeyPair | str,
    *,
    user_name: str = "admin",
    namespace: str = "default",
) -> None:
    """Write a self-contained kubeconfig with the context `lab`, as JSON, which is valid YAML.

    :param user: the user's client certificate, or a token.
    """
    if isinstance(user, str):
        credentials = {"token": user}
    else:
        credentials = {"client-certificate-data": _base64(user.cert), "client-key-data": _base64(user.key)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "lab",
                "cluster": {"server": server, "certificate-authority-data": _base64(ca_file(directory))},
            }
        ],
        "users": [{"name": user_name, "user": credentials}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user_name, "namespace": namespace}}],
        "current-context": "lab",
        "preferences": {},
    }
    _write(path, json.dumps(config, indent=2).encode() + b"\n")


def ensure_ca(directory: Path, file_name: str, common_name: str) -> KeyPair:
    """Return a self-signed CA; create it unless it exists."""
    files = _pair(directory, file_name)
    if files.cert.exists() and files.key.exists():
        return files
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    _write_pair(files, builder.sign(key, hashes.SHA256()), key)
    return files


def _issue(
    directory: Path,
    ca: str,
    subject: x509.Name,
    alternatives: list[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    file_name: str,
) -> KeyPair:
    authority = _pair(directory, ca)
    ca_cert = x509.load_pem_x509_certificate(authority.cert.read_bytes())
    ca_key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(subject, ca_cert.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    files = _pair(directory, file_name)
    _write_pair(files, builder.sign(ca_key, hashes.SHA256()), key)
    return files


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    start = dt.datetime.now(dt.UTC) - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + VALIDITY)
    )


def _pair(directory: Path, file_name: str) -> KeyPair:
    folder = directory / "pki"
    return KeyPair(folder / f"{file_name}.crt", folder / f"{file_name}.key")


def _file_name(common_name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in common_name)


def _write_pair(files: KeyPair, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # The key first: an existing certificate shows that the pair is complete (`ensure_pki`).
    _write(files.key, pem)
    _write(files.cert, cert.public_bytes(serialization.Encoding.PEM))


def _write(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 atomically."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
