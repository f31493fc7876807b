"""What a process shows to NATS to be let in: files, which others may replace while it runs.

Every file is read when the process connects. Next: :mod:`services.common.bus.nats.connection`.
"""

import hashlib
import ssl
from collections.abc import Mapping
from pathlib import Path

import msgspec

from services.common.runtime.settings import SettingsError

FILE_VARIABLES = {
    "creds": "NATS_CREDS",
    "nkey": "NATS_NKEY",
    "token": "NATS_TOKEN_FILE",
    "ca": "NATS_CA",
    "cert": "NATS_CERT",
    "key": "NATS_KEY",
}
"""The variables that name the files of an endpoint; those of NATS' own tools where they have one."""
_TLS_SCHEMES = ("tls://", "wss://")


class Endpoint(msgspec.Struct, frozen=True):
    """Address of NATS and the credentials to connect.

    :ivar servers: URLs, ``nats://`` or ``tls://``.
    :ivar creds: path of a credentials file in NATS' own format: a user's JWT and seed.
    :ivar nkey: path of the seed of an nkey.
    :ivar token: path of a token, such as that of a ServiceAccount, which an auth callout of the server examines.
    :ivar ca: path of the CA certificates, PEM.
    :ivar cert: path of the client certificate, PEM.
    :ivar key: path of the client key, PEM.
    """

    servers: tuple[str, ...]
    creds: str | None = None
    nkey: str | None = None
    token: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be kept secret.

        A token is refused for a server without TLS: whoever reads it on its way can connect as its role. An nkey and a
        credentials file are for any server: their seed signs a challenge and is not sent.

        :raises SettingsError: there is a token and a URL without TLS, or a file for TLS and a URL that never has it.
        """
        if self.token and not all(server.startswith(_TLS_SCHEMES) for server in self.servers):
            raise SettingsError(
                FILE_VARIABLES["token"],
                "is set, but whoever reads a token on its way can connect as its role; set NATS_URL to addresses with "
                "tls:// or wss://",
            )
        for field in ("ca", "cert"):
            # Its client sends the password of a URL before the server's first line.
            if getattr(self, field) and any(server.startswith("ws://") for server in self.servers):
                raise SettingsError(FILE_VARIABLES[field], "is set, but ws:// has no TLS; set NATS_URL to wss://")

    @classmethod
    def from_url(cls, url: str, environ: Mapping[str, str]) -> "Endpoint":
        """Return the endpoint of a URL and of the environment variables that name its files.

        :param url: ``NATS_URL``; several URLs are separated by commas.
        :param environ: the variables of :data:`FILE_VARIABLES` are read.
        :raises SettingsError: the files do not fit the URL.
        """
        files = {field: environ.get(name) or None for field, name in FILE_VARIABLES.items()}
        return cls(tuple(part.strip() for part in url.split(",") if part.strip()), **files)

    def needs_tls(self, scheme: str) -> bool:
        """Return whether nothing may be sent to a server of this scheme before TLS is up."""
        return f"{scheme}://" in _TLS_SCHEMES or bool(self.ca or self.cert or self.token)

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context, or ``None`` when neither a CA nor a certificate is configured.

        Without a context a ``tls://`` URL uses the trust store of the machine.

        :raises OSError: a file is missing or not PEM (``ssl.SSLError`` is an ``OSError``).
        """
        if not (self.ca or self.cert):
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context

    def read_token(self) -> str | None:
        """Return the token, ``None`` if none is configured.

        :raises OSError: the file cannot be read.
        """
        return Path(self.token).read_text().strip() if self.token else None

    def digest(self) -> str:
        """Return a digest of what the files hold now; it changes when one of them is replaced."""
        found = hashlib.sha256()
        for name in FILE_VARIABLES:
            path = getattr(self, name)
            try:
                content = Path(path).read_bytes() if path else b""
            except OSError as error:
                content = str(error).encode()
            found.update(hashlib.sha256(content).digest())
        return found.hexdigest()
