"""Make and read certificates: the CA, and the serving certificates that it signs. Keys are ECDSA P-256.

The only module that imports cryptography; it is itself imported only where the api makes its own certificates.
Next: :mod:`services.api.serving_certificate.reconcile`.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.api.serving_certificate.plan import BACKDATED, CA_VALIDITY, PAIR_VALIDITY, ServingPair, TrustedCa

_PEM = serialization.Encoding.PEM
_COMMON_NAME = "hotnic-api"


def make_ca(now: datetime) -> tuple[TrustedCa, str]:
    """Return a new CA and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    # The time tells the CAs of one bundle apart for whoever reads them.
    name = _name(f"{_COMMON_NAME}-ca@{int(now.timestamp())}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), now - BACKDATED, now + CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _trusted(certificate), _key_text(key)


def make_pair(ca: TrustedCa, ca_key: str, names: Sequence[str], now: datetime) -> ServingPair:
    """Return a new serving certificate with its key.

    :param names: its DNS names.
    :raises ValueError: the CA's key cannot be used.
    """
    signing = _load_key(ca_key)
    issuer = x509.load_pem_x509_certificate(ca.pem.encode())
    key = ec.generate_private_key(ec.SECP256R1())
    # A certificate cannot be valid longer than its CA.
    end = min(now + PAIR_VALIDITY, ca.not_after)
    certificate = (
        _builder(_name(_COMMON_NAME), issuer.subject, key.public_key(), now - BACKDATED, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        .sign(signing, hashes.SHA256())
    )
    pair = read_pair(certificate.public_bytes(_PEM).decode(), _key_text(key), [ca])
    assert pair is not None
    return pair


def read_cas(text: str) -> tuple[TrustedCa, ...]:
    """Return the certificates of a bundle; none if it cannot be read."""
    try:
        return tuple(_trusted(certificate) for certificate in x509.load_pem_x509_certificates(text.encode()))
    except ValueError:
        return ()


def read_pair(certificate: str, key: str, cas: Iterable[TrustedCa]) -> ServingPair | None:
    """Return a serving certificate with its key; ``None`` if they cannot be read or do not match.

    :param cas: the CAs that may have signed it.
    """
    try:
        loaded = x509.load_pem_x509_certificate(certificate.encode())
        if _load_key(key).public_key() != loaded.public_key():
            return None
        alternatives = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(alternatives.get_values_for_type(x509.DNSName))
    except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return None
    issuer = next((ca.fingerprint for ca in cas if _has_signed(ca, loaded)), "")
    return ServingPair(certificate, key, issuer, names, loaded.not_valid_before_utc, loaded.not_valid_after_utc)


def is_key_of(key: str, ca: TrustedCa) -> bool:
    """Return whether a key is the CA's."""
    try:
        return _load_key(key).public_key() == x509.load_pem_x509_certificate(ca.pem.encode()).public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False


def _has_signed(ca: TrustedCa, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.pem.encode()))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _trusted(certificate: x509.Certificate) -> TrustedCa:
    return TrustedCa(
        certificate.fingerprint(hashes.SHA256()).hex(),
        certificate.public_bytes(_PEM).decode(),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def _load_key(text: str) -> ec.EllipticCurvePrivateKey:
    """Return a key.

    :raises ValueError: it cannot be read, or is of another kind.
    """
    try:
        key = serialization.load_pem_private_key(text.encode(), None)
    except TypeError as error:
        # An encrypted key.
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an EC key")
    return key


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
