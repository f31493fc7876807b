"""A serving certificate in files is followed: a new pair serves new handshakes, a broken one is refused."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import structlog
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from services.common.http.server import make_app, serve
from services.common.http.tls import ServerTls, peer_common_name
from services.common.http.tls_files import CertificateFiles, UnusablePair
from tests.support.kube.certs import Authority, Pair, tls_get
from tests.support.telemetry.spans import recording_telemetry


class MountedSecret:
    """Files as in a mounted Secret: links to links, and one rename replaces both."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version = 0
        folder.mkdir()
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        for path in (self.cert, self.key):
            path.symlink_to(Path("..data") / path.name)

    def put(self, cert: bytes, key: bytes) -> None:
        """Replace both files."""
        self._version += 1
        version = self._folder / f"..{self._version}"
        version.mkdir()
        (version / "tls.crt").write_bytes(cert)
        (version / "tls.key").write_bytes(key)
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self._folder / "..data")


class Served:
    """A server with a mounted certificate."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.secret = MountedSecret(folder / "secret")
        self.telemetry, _ = recording_telemetry("api")
        self.tls = ServerTls(client_ca=self.authority.ca.read_text())
        self.files = CertificateFiles(
            self.tls,
            str(self.secret.cert),
            str(self.secret.key),
            log=structlog.get_logger(),
            meter=self.telemetry.meter,
        )
        self.address = ""

    def put(self, pair: Pair) -> None:
        """Replace the files by a pair."""
        self.secret.put(pair.cert.read_bytes(), pair.key.read_bytes())

    async def subject(self, client: Pair | None = None) -> tuple[str, str]:
        """Connect; return the common name of the server's certificate, and the client's as the server sees it."""
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        if client is not None:
            context.load_cert_chain(client.cert, client.key)
        certificate, body = await tls_get(self.address, context)
        return str(certificate["subject"][0][0][1]), body

    def refused(self) -> float:
        """Return how many pairs were refused."""
        for line in self.telemetry.metrics_text().decode().splitlines():
            if line.startswith("hotnic_tls_refused_certificates_total"):
                return float(line.split()[-1])
        return 0.0


@asynccontextmanager
async def following(folder: Path) -> AsyncIterator[Served]:
    served = Served(folder)
    served.put(served.authority.server("first"))
    served.files.load()
    app = make_app(telemetry=served.telemetry, max_body=10)
    app.router.add_get("/", who)
    async with serve(app, "127.0.0.1:0", ssl=served.tls.context) as served.address:
        task = asyncio.create_task(served.files.run(interval=0.01))
        yield served
        task.cancel()
        await asyncio.wait([task])


async def who(request: web.Request) -> web.Response:
    return web.Response(text=peer_common_name(request) or "nobody")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_served(served: Served, name: str) -> None:
    async with asyncio.timeout(20):
        while (await served.subject())[0] != name:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_replaced_secret_serves_new_handshakes_and_still_verifies_clients(tmp_path: Path) -> None:
    async with following(tmp_path) as served:
        client = served.authority.client("front-proxy-client")
        assert await served.subject(client) == ("first", "front-proxy-client")
        served.put(served.authority.server("second"))
        await until_served(served, "second")
        assert await served.subject(client) == ("second", "front-proxy-client")
        assert await served.subject() == ("second", "nobody")
        foreign = Authority(tmp_path, "other-ca").client("front-proxy-client")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await served.subject(foreign)
        assert served.refused() == 0


async def test_an_open_connection_keeps_working(tmp_path: Path) -> None:
    async with following(tmp_path) as served:
        context = ssl.create_default_context(cafile=str(served.authority.ca))
        async with aiohttp.ClientSession() as session:
            async with session.get(f"https://{served.address}/", ssl=context) as response:
                assert response.status == 200
            served.put(served.authority.server("second"))
            await until_served(served, "second")
            async with session.get(f"https://{served.address}/", ssl=context) as response:
                assert response.status == 200


async def test_a_pair_is_tried_again_after_an_error_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path)
    served.put(served.authority.server("first"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", lambda *_: os.open("/proc/self/nothing", os.O_RDONLY))
        with pytest.raises(FileNotFoundError):
            served.files.load()
    served.files.load()
    app = make_app(telemetry=served.telemetry, max_body=10)
    async with serve(app, "127.0.0.1:0", ssl=served.tls.context) as served.address:
        assert (await served.subject())[0] == "first"


@pytest.mark.parametrize("damage", ["certificate", "key", "mismatch", "empty"])
async def test_a_broken_pair_is_refused_once_and_the_old_one_stays(tmp_path: Path, damage: str) -> None:
    async with following(tmp_path) as served:
        good, other = served.authority.server("second"), served.authority.server("third")
        cert, key = good.cert.read_bytes(), good.key.read_bytes()
        pairs = {
            "certificate": (b"no certificate", key),
            "key": (cert, b"no key"),
            "mismatch": (cert, other.key.read_bytes()),
            "empty": (b"", b""),
        }
        served.secret.put(*pairs[damage])
        await until(lambda: served.refused() == 1)
        assert (await served.subject())[0] == "first"
        served.put(other)
        await until_served(served, "third")
        assert served.refused() == 1


async def test_missing_files_are_refused_until_they_are_back(tmp_path: Path) -> None:
    async with following(tmp_path) as served:
        served.secret.cert.unlink()
        await until(lambda: served.refused() == 1)
        assert (await served.subject())[0] == "first"
        second = served.authority.server("second")
        served.secret.cert.symlink_to("..data/tls.crt")
        served.put(second)
        await until_served(served, "second")


async def test_a_key_of_another_type_replaces_the_certificate(tmp_path: Path) -> None:
    """A pair that is loaded into a used context stands beside the old one, which clients may then still get."""
    async with following(tmp_path) as served:
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        served.secret.put(served.authority.certify("second", key.public_key()), pem)
        await until_served(served, "second")
        for _ in range(3):
            assert (await served.subject())[0] == "second"


def test_files_that_cannot_be_used_at_the_start_are_an_error(tmp_path: Path) -> None:
    served = Served(tmp_path)
    with pytest.raises(UnusablePair, match=r"cannot read the serving certificate: .*tls\.crt"):
        served.files.load()
    served.secret.put(b"x", b"y")
    with pytest.raises(UnusablePair, match=r"tls\.crt and .*tls\.key are no certificate with its key"):
        served.files.load()


async def test_a_server_without_a_certificate_refuses_every_handshake(tmp_path: Path) -> None:
    served = Served(tmp_path)
    app = make_app(telemetry=served.telemetry, max_body=10)
    async with serve(app, "127.0.0.1:0", ssl=served.tls.context) as served.address:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await served.subject()
