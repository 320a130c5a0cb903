"""TLS and WebSockets at a real mosquitto: each thing that can be wrong has its words, and is over when it is mended."""

from __future__ import annotations

import asyncio
import errno
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from edge_daemon import link, mqtt, suspicion, visit
from edge_daemon.demo.broker import free_port
from edge_daemon.mqtt import Connection
from edge_daemon.mqtt_config import TlsConfig
from edge_daemon.outbox import Outbox
from edge_daemon.publisher import Publisher
from edge_daemon.reasons import ALERTS, CERTIFICATE, NO_TLS, REASONS, UNREACHABLE, UNVERIFIED, WRONG_CLIENT
from tests.integration.authority import Authority, Certificate
from tests.integration.listening import connection, mosquitto, process_of, until, warnings

ANOTHER = "listener {} 127.0.0.1"
"""Mosquitto 2.0 does not start with listeners for websockets alone."""
WANTS_OURS = "require_certificate true\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less between two connections; the rest is as it is."""
    monkeypatch.setattr(mqtt, "RECONNECT_FIRST_S", 0.05)
    monkeypatch.setattr(mqtt, "LONGEST_DELAY_S", 0.1)
    monkeypatch.setattr(suspicion, "LONGEST_DELAY_S", 0.05)
    monkeypatch.setattr(link, "LOOK_S", 0.1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def settings(authority: Authority, certificate: Certificate, more: str = "") -> str:
    return f"cafile {authority.file}\ncertfile {certificate.file}\nkeyfile {certificate.key}\n{more}"


def trusting(authority: Authority, **options: Any) -> TlsConfig:
    return TlsConfig(enabled=True, ca_file=authority.file, **options)


async def told_and_mended(
    caplog: pytest.LogCaptureFixture, ours: Connection, words: str, mend: Callable[[], object]
) -> None:
    """The words are told once, and nobody has to start us again."""
    await until("it is told", lambda: words in ours.problem)
    attempt = ours._visit
    await until("it was tried again", lambda: ours._visit is not attempt)
    assert [message.count(words) for message in warnings(caplog)] == [1]
    mend()
    await until("connected", lambda: ours.connected.is_set() and not ours.problem)


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
async def test_a_certificate_that_is_right(authority: Authority, tmp_path: Path, protocol: str) -> None:
    with mosquitto(tmp_path, settings(authority, authority.sign("broker"))) as port:
        async with connection(port, tls=trusting(authority), protocol=protocol) as ours:
            await until("connected", ours.connected.is_set)
            assert ours.protocol == {"auto": "5"}.get(protocol, protocol)
            for number in range(100):  # both directions at once
                ours.state(ours.topics.health, b"x" * 10000 + str(number).encode())
            await until("all is confirmed", lambda: not len(ours.outgoing))
            assert ours.sessions == 1


def stranger(authority: Authority, directory: Path) -> Certificate:
    return Authority(directory, "stranger").sign("broker2")


BROKERS: dict[str, tuple[Callable[[Authority, Path], Certificate], str]] = {
    "wrong CA": (stranger, CERTIFICATE[20]),
    "expired": (lambda authority, _: authority.sign("broker2", days=-1), CERTIFICATE[10]),
    "wrong name": (lambda authority, _: authority.sign("broker2", names="DNS:hub.example"), CERTIFICATE[64]),
}


@pytest.mark.parametrize("fault", BROKERS)
async def test_a_certificate_of_the_broker_that_is_wrong_and_is_replaced(
    fault: str, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, words = BROKERS[fault]
    port, running = free_port(), list[Any]()

    def run(certificate: Certificate) -> None:
        while running:
            running.pop().__exit__(None, None, None)
        running.append(mosquitto(tmp_path, settings(authority, certificate), port))
        running[0].__enter__()

    run(make(authority, tmp_path))
    try:
        async with connection(port, tls=trusting(authority)) as ours:
            await told_and_mended(caplog, ours, words, lambda: run(authority.sign("broker")))
    finally:
        running[0].__exit__(None, None, None)


async def test_a_name_that_the_certificate_does_not_have(authority: Authority, tmp_path: Path) -> None:
    with mosquitto(tmp_path, settings(authority, authority.sign("broker", "DNS:hub.example"))) as port:
        async with connection(port, host="localhost", tls=trusting(authority)) as ours:
            await until("it is told", lambda: CERTIFICATE[62] in ours.problem)


async def test_a_password_that_is_wrong_and_is_mended_at_the_broker(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over TLS, and nobody has to start us again."""
    passwords = tmp_path / "passwords"

    def let_in(password: str) -> None:
        subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "cam", password], check=True)
        passwords.chmod(0o600)

    let_in("another")
    broker = settings(authority, authority.sign("broker"), f"allow_anonymous false\npassword_file {passwords}\n")
    with mosquitto(tmp_path, broker) as port:

        def mend() -> None:
            let_in("ours")
            process_of(port).send_signal(signal.SIGHUP)

        login = {"username": "cam", "password": SecretStr("ours")}
        async with connection(port, tls=trusting(authority), **login) as ours:
            await told_and_mended(caplog, ours, REASONS[135], mend)


@pytest.mark.parametrize("idle", [True, False])
async def test_a_broker_that_is_half_open(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    """It holds the encrypted connection and says nothing: noticed by messages, or by the next ping, and left."""
    monkeypatch.setattr(visit, "ANSWER_S", 0.5)
    outbox = Outbox(tmp_path / "outbox.db")
    with mosquitto(tmp_path, settings(authority, authority.sign("broker"))) as port:
        process = process_of(port)
        async with connection(port, tls=trusting(authority)) as ours:
            ours.move(ours.config.model_copy(update={"keepalive_s": 1}))  # less than a file may say
            await until("connected", lambda: ours.sessions and ours.connected.is_set() and not len(ours.outgoing))
            process.send_signal(signal.SIGSTOP)
            ids = [f"r{number}" for number in range(0 if idle else 30)]
            for name in ids:
                outbox.put("porch", [{"id": name, "task": "caption", "caption": "x"}], None)
            task = asyncio.create_task(Publisher(outbox, ours, asyncio.Event(), lambda: None, 0.1).run())
            await until("it is left", lambda: not ours.connected.is_set())
            words = "sent nothing for 1 s (mqtt.keepalive_s)" if idle else "confirmed no message for 0 s"
            await until("it is told", lambda: any(words in warning for warning in warnings(caplog)))
            assert len(outbox) == len(ids), "nothing is taken for arrived"
            process.send_signal(signal.SIGCONT)
            await until("it is well", lambda: ours.connected.is_set() and not ours.problem)
            await until("all have arrived", lambda: not len(outbox))
            task.cancel()
    outbox.close()


def no_certificate(authority: Authority, file: Path, key: Path) -> None:
    made = Authority(file.parent, "stranger").sign("client2")
    made.file.rename(file)
    made.key.rename(key)


def expired_certificate(authority: Authority, file: Path, key: Path) -> None:
    made = authority.sign("client2", days=-1)
    made.file.rename(file)
    made.key.rename(key)


@pytest.mark.parametrize(
    ("make", "words"),
    [(no_certificate, WRONG_CLIENT), (expired_certificate, ALERTS["CERTIFICATE_EXPIRED"])],
    ids=["of a stranger", "expired"],
)
async def test_a_certificate_of_ours_that_is_refused_and_renewed(
    make: Callable[[Authority, Path, Path], None],
    words: str,
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The files are read again for every connection."""
    file, key = tmp_path / "ours.crt", tmp_path / "ours.key"
    make(authority, file, key)
    broker = settings(authority, authority.sign("broker"), WANTS_OURS)

    def renew() -> None:
        made = authority.sign("client")
        made.key.rename(key)
        made.file.rename(file)

    with mosquitto(tmp_path, broker) as port:
        async with connection(port, tls=trusting(authority, cert_file=file, key_file=key)) as ours:
            await told_and_mended(caplog, ours, words, renew)


@contextmanager
def old_server(authority: Authority, *options: str) -> Iterator[int]:
    """Something that speaks TLS 1.2 and no later one, which Mosquitto cannot be told to do; its port."""
    certificate, port = authority.sign("broker"), free_port()
    argv = ["openssl", "s_server", "-quiet", "-tls1_2", "-accept", f"127.0.0.1:{port}", *options]
    argv += ["-cert", str(certificate.file), "-key", str(certificate.key), "-CAfile", str(authority.file)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield port
        process.kill()


async def test_a_certificate_of_ours_that_is_missing(authority: Authority, tmp_path: Path) -> None:
    """With TLS 1.3 the broker says so after the handshake, with 1.2 in the middle of it."""
    with mosquitto(tmp_path, settings(authority, authority.sign("broker"), WANTS_OURS)) as port:
        async with connection(port, tls=trusting(authority)) as ours:
            await until("it is told", lambda: ALERTS["CERTIFICATE_REQUIRED"] in ours.problem)
    with old_server(authority, "-Verify", "1", "-verify_return_error") as port:
        async with connection(port, tls=trusting(authority)) as ours:
            await until("it is told", lambda: ALERTS["HANDSHAKE_FAILURE"] in ours.problem)


async def test_a_broker_that_is_too_old(authority: Authority) -> None:
    with old_server(authority) as port:
        async with connection(port, tls=trusting(authority, min_version="1.3")) as ours:
            await until("it is told", lambda: ALERTS["PROTOCOL_VERSION"] in ours.problem)


async def test_files_that_cannot_be_used_are_named_and_mended(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca, cert, key = (tmp_path / name for name in ("our-ca.crt", "our.crt", "our.key"))
    made, other = authority.sign("client"), authority.sign("other")
    with mosquitto(tmp_path, settings(authority, authority.sign("broker"), WANTS_OURS)) as port:
        async with connection(port, tls=TlsConfig(enabled=True, ca_file=ca, cert_file=cert, key_file=key)) as ours:
            await until("no CA", lambda: f"mqtt.tls.ca_file {ca}: No such file" in ours.problem)
            ca.write_text("-----BEGIN nonsense")
            await until("no PEM", lambda: f"mqtt.tls.ca_file {ca}: this is not a PEM file" in ours.problem)
            ca.write_bytes(authority.file.read_bytes())
            await until("no key", lambda: f"mqtt.tls.key_file {key}: No such file" in ours.problem)
            key.write_bytes(other.key.read_bytes())
            await until("no certificate", lambda: f"mqtt.tls.cert_file {cert}: No such file" in ours.problem)
            cert.write_bytes(made.file.read_bytes())
            await until("another key", lambda: "the key does not belong to this certificate" in ours.problem)
            key.write_bytes(made.key.read_bytes())
            await until("connected", lambda: ours.connected.is_set() and not ours.problem)
    assert len(warnings(caplog)) == 5, "each once"


async def test_a_port_without_tls_and_a_port_with_it(authority: Authority, tmp_path: Path) -> None:
    with mosquitto(tmp_path, "") as port:
        async with connection(port, tls=trusting(authority)) as ours:
            await until("it is told", lambda: ours.problem.startswith("the broker"))
            about_ports = (NO_TLS, ALERTS["UNEXPECTED_EOF_WHILE_READING"], UNREACHABLE[errno.ECONNRESET])
            assert any(words in ours.problem for words in about_ports)
    with mosquitto(tmp_path, settings(authority, authority.sign("broker"))) as port:
        async with connection(port) as ours:
            await until("it is told", lambda: "mqtt.tls is missing" in ours.problem)


async def test_who_does_not_verify_is_told_how_dangerous_it_is(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mosquitto(tmp_path, settings(authority, stranger(authority, tmp_path))) as port:
        async with connection(port, tls=TlsConfig(enabled=True, verify=False)) as ours:
            await until("connected", ours.connected.is_set)
            assert ours.warning == UNVERIFIED
    assert UNVERIFIED in caplog.text


@pytest.mark.parametrize("encrypted", [False, True])
async def test_websockets(authority: Authority, tmp_path: Path, encrypted: bool) -> None:
    broker = settings(authority, authority.sign("broker")) if encrypted else ""
    with mosquitto(tmp_path, f"protocol websockets\n{broker}\n{ANOTHER.format(free_port())}") as port:
        tls = trusting(authority) if encrypted else TlsConfig()
        async with connection(port, transport="websockets", tls=tls) as ours:
            await until("connected", ours.connected.is_set)
            ours.state(ours.topics.health, b"x" * 100000)
            await until("all is confirmed", lambda: not len(ours.outgoing))
            assert (ours.sessions, ours.protocol) == (1, "5")


async def test_a_port_that_speaks_no_websockets(tmp_path: Path) -> None:
    with mosquitto(tmp_path, "") as port:
        async with connection(port, transport="websockets") as ours:
            await until("it is told", lambda: "WebSocket" in ours.problem)
