"""Authentication: passwords and TLS."""

import asyncio
import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.credentials import Endpoint
from tests.support.bus.jetstream import QUICK, Buses
from tests.support.bus.nats import nats_server
from tests.support.kube.certs import Authority

NOW = datetime.datetime.now(datetime.UTC)


async def test_bus_connects_with_the_right_password_only(tmp_path: Path) -> None:
    async with nats_server(tmp_path, "--user", "hotnic", "--pass", "secret") as server:
        address = f"127.0.0.1:{server.port}"
        buses = Buses(server)
        wrong = await buses.start("controller", "_", url=f"nats://hotnic:wrong@{address}")
        right = await buses.start("controller", "_", url=f"nats://hotnic:secret@{address}")
        async with asyncio.timeout(60):
            await right.wait_connected()
        assert not wrong.connected
        await buses.close()


async def test_bus_connects_to_the_first_server_that_answers(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server:
        buses = Buses(server)
        bus = await buses.start("controller", "_", url=f"nats://127.0.0.1:9,{server.url}")
        async with asyncio.timeout(60):
            await bus.wait_connected()
        await buses.close()


async def test_tls_with_a_private_ca(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nats")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(hours=1))
        .not_valid_after(NOW + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    options = ("--tls", "--tlscert", str(cert), "--tlskey", str(private))
    async with nats_server(tmp_path / "nats", *options) as server:
        url = server.url.replace("nats://", "tls://")
        log = structlog.get_logger()
        connection = await BusConnection.open(Endpoint((url,), ca=str(cert)), name="test", settings=QUICK, log=log)
        assert connection.client.is_connected
        await connection.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await BusConnection.open(Endpoint((url,)), name="test", settings=QUICK, log=log)


# nats-py passes a number as the timeout of a WebSocket.
@pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning")
async def test_a_token_over_a_websocket_with_tls(tmp_path: Path, unused_tcp_port: int) -> None:
    authority = Authority(tmp_path)
    pair, token, config = authority.server(), tmp_path / "token", tmp_path / "server.conf"
    token.write_text("first")
    websocket = f'listen: "127.0.0.1:{unused_tcp_port}", tls {{ cert_file: "{pair.cert}", key_file: "{pair.key}" }}'
    config.write_text(f"authorization {{ token: first }}\nwebsocket {{ {websocket} }}\n")
    async with nats_server(tmp_path / "nats", "-c", str(config)):
        endpoint = Endpoint((f"wss://127.0.0.1:{unused_tcp_port}",), ca=str(authority.ca), token=str(token))
        connection = await BusConnection.open(endpoint, name="test", settings=QUICK, log=structlog.get_logger())
        assert connection.client.is_connected
        await connection.close()
