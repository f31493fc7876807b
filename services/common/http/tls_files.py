"""A serving certificate in two files that others replace: cert-manager in a mounted Secret, or an operator by hand.

A mounted Secret changes by one rename of a link above both files. The files are read at an interval, because a watch of
such a link sees only some of the ways in which a file is replaced. Next: :mod:`services.common.http.server`.
"""

import asyncio
import ssl
from pathlib import Path

from opentelemetry.metrics import Meter

from services.common.http.tls import ServerTls
from services.common.telemetry.logs import Log

READ_INTERVAL = 5.0
"""Seconds between two reads. The kubelet updates a mounted Secret within about a minute."""


class UnusablePair(Exception):
    """The files hold no usable certificate and key; the text names them."""


class CertificateFiles:
    """Keeps a server's certificate equal to its files.

    :param tls: the server's TLS settings.
    :param cert: PEM file with the certificate chain.
    :param key: PEM file with its key.
    :param meter: of the counter ``hotnic_tls_refused_certificates_total``.
    """

    def __init__(self, tls: ServerTls, cert: str, key: str, *, log: Log, meter: Meter) -> None:
        self._tls = tls
        self._cert = Path(cert)
        self._key = Path(key)
        self._log = log
        self._seen: tuple[bytes, bytes] | str | None = None
        self._refused = meter.create_counter(
            "hotnic_tls_refused_certificates", description="Serving certificates that could not be used"
        )

    def load(self) -> None:
        """Serve the certificate in the files.

        :raises UnusablePair: they cannot be read or do not match.
        """
        problem = self._update()
        if problem:
            raise UnusablePair(problem)

    async def run(self, interval: float = READ_INTERVAL) -> None:
        """Follow the files until cancelled. A pair that cannot be used is logged once, and the current one stays."""
        while True:
            await asyncio.sleep(interval)
            before = self._seen
            problem = self._update()
            if self._seen == before:
                continue
            if problem:
                self._refused.add(1)
                self._log.error("serving certificate refused, the earlier one stays", error=problem)
            else:
                self._log.info("serving certificate replaced", file=str(self._cert))

    def _update(self) -> str:
        """Serve what the files hold unless it was seen before; return why it cannot be used."""
        try:
            found = self._read()
        except OSError as error:
            self._seen = str(error)
            return f"cannot read the serving certificate: {error}"
        if found == self._seen:
            return ""
        problem = ""
        try:
            self._tls.use(*found)
        except ssl.SSLError as error:
            problem = f"{self._cert} and {self._key} are no certificate with its key: {error.reason or error}"
        # Only now: after an error of the machine, such as too many open files, the pair is tried again.
        self._seen = found
        return problem

    def _read(self) -> tuple[bytes, bytes]:
        """Return certificate and key of one version of the volume."""
        certificate = self._cert.read_bytes()
        while True:
            key, again = self._key.read_bytes(), self._cert.read_bytes()
            # The volume may have been replaced between the two reads.
            if again == certificate:
                return certificate, key
            certificate = again
