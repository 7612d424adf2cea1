"""Faults that this server once had, each seen from outside."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import playground
from tests import harness
from tests.harness import (
    KUBECONFIG,
    PATIENCE_SECONDS,
    ROOT,
    Running,
    descendants,
    eventually,
    gen_cert,
    path,
    receive_all,
    tls,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down

STATUS = b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n"


def is_answered(connection: ssl.SSLSocket) -> bool:
    """Ask on an open connection; tell whether it was answered, and not closed."""
    try:
        connection.sendall(STATUS)
        return connection.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def altered(change: str) -> tuple[str, str]:
    """Return the server as a program with something changed before it starts."""
    return "-c", (f"import sys\nsys.path.insert(0, {ROOT!r})\nimport playground\n{change}\n"
                  "sys.exit(playground.main())\n")


def refused(*options: str) -> str:
    """Start a server that must not start; return the line that it says."""
    store = path("key_store")
    result = subprocess.run(
        [sys.executable, os.path.join(ROOT, "playground.py"), "--host=127.0.0.1", "--port=0", "--namespace=x",
         f"--ca_crt={store}/ca/ca.crt", f"--server_key={store}/server/server.key",
         f"--server_crt={store}/server/server.crt", *options], capture_output=True, text=True, timeout=20,
        env={**os.environ, "KUBECONFIG": path("dead.kubeconfig")})
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), (options, result.stderr)
    return result.stderr


# ---- Who is let in -------------------------------------------------------------------------------------


class Limits(unittest.TestCase):
    def test_client_at_its_own_limit_makes_room_among_its_own_also_when_the_server_is_full(self) -> None:
        busy = b"POST /api/delete_db HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n"
        program = altered("playground.MAX_CONNECTIONS = 4")
        with Running("--max_connections_per_client=2", program=program) as server, \
                contextlib.ExitStack() as stack:
            def connected(client: str) -> ssl.SSLSocket:
                connection = stack.enter_context(server.connect(client))
                self.assertTrue(is_answered(connection))
                return connection
            others = [connected("bob") for _ in range(2)]  # Idle for longest.
            own = [connected("alice") for _ in range(3)]
            self.assertEqual(list(map(is_answered, others)), [True, True])
            self.assertEqual(list(map(is_answered, own)), [False, True, True])
            for connection in (*others, own[1]):
                connection.sendall(busy)  # Its body is awaited.
            time.sleep(0.5)  # The server has read that.
            self.assertTrue(is_answered(connected("alice")))  # own[2] made room.
            self.assertFalse(is_answered(own[2]))
            for connection in (*others, own[1]):
                connection.sendall(b'{"user_id": "a"}')
                self.assertTrue(connection.recv(1000).startswith(b"HTTP/1.1 503"))  # From no cluster.

    def test_limit_of_0_is_none_and_a_negative_one_is_refused(self) -> None:
        with Running("--max_connections_per_client=0") as server, contextlib.ExitStack() as stack:
            connections = [stack.enter_context(server.connect()) for _ in range(10)]
            self.assertEqual(list(map(is_answered, connections)), [True] * 10)
        for option in ("max_connections_per_client", "max_databases", "max_databases_per_client",
                       "idle_timeout", "sweep_interval"):
            with self.subTest(option):
                self.assertIn(f"--{option}", refused(f"--{option}=-1"))

    def test_refused_handshakes_of_1000_addresses_are_some_lines_that_count_them_all(self) -> None:
        with Running() as server:
            for number in range(1000):
                source = f"127.1.{number // 250}.{number % 250 + 1}"
                with socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS, (source, 0)):
                    pass
            self.assertEqual(server.call("alice", "status")[0], 200)  # All before it have been accepted.
        lines = server.lines("event=handshake ")
        self.assertLessEqual(len(lines), 100)  # 60 a minute, and those of the end.
        self.assertEqual(sum(int(re.findall(r"count=(\d+)", line)[0]) for line in lines), 1000)

    @unittest.skipUnless(os.geteuid() == 0, "a network of its own can be made by root only")
    @unittest.skipUnless(os.path.exists("/proc/net/if_inet6"), "IPv6 is missing")
    def test_strangers_of_one_ipv6_network_make_room_among_themselves(self) -> None:
        def crowd() -> None:
            # Any address of this network is then this machine's.
            for command in ("link set lo up", "-6 route add local fd00:1::/32 dev lo"):
                subprocess.run(["ip", *command.split()], check=True)
            with Running("--host=::") as server, contextlib.ExitStack() as stack:
                def connected(address: str) -> socket.socket:
                    stranger = stack.enter_context(socket.socket(socket.AF_INET6))
                    stranger.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
                    stranger.bind((address, 0))
                    stranger.connect(("::1", server.port))
                    return stranger
                slow = connected("fd00:1:0:2::1")  # The oldest.
                for number in range(playground.MAX_HANDSHAKES + 50):
                    connected(f"fd00:1:0:1::{number + 1:x}")
                with tls("alice").wrap_socket(slow, server_hostname="localhost") as connection:
                    self.assertTrue(is_answered(connection))
        in_a_network_of_its_own(crowd)


def in_a_network_of_its_own(do: Callable[[], None]) -> None:
    """Have a thread, and the processes that it starts, see a network that nobody else is in."""
    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "unshare")
        do()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter).result()


# ---- TLS files -----------------------------------------------------------------------------------------


class Ca:
    """A certificate authority for what gen_cert.sh does not make."""

    def __init__(self, key: str, certificate: str) -> None:
        self.key, self.certificate = key, certificate
        self.folder = tempfile.mkdtemp(dir=path())
        with open(f"{self.folder}/conf", "w", encoding="utf-8") as file:
            file.write(f"[ca]\ndefault_ca = a\n[a]\ndatabase = {self.folder}/index\nserial = {self.folder}/serial"
                       f"\nnew_certs_dir = {self.folder}\ndefault_md = sha256\npolicy = p\nunique_subject = no\n"
                       "[p]\ncommonName = optional\n")
        for name in ("index", "serial"):
            with open(f"{self.folder}/{name}", "w", encoding="utf-8") as file:
                file.write("" if name == "index" else "77000001")

    def run(self, *arguments: str, stdin: bytes = b"") -> None:
        subprocess.run(["openssl", "ca", "-config", f"{self.folder}/conf", "-batch", "-notext", "-cert",
                        self.certificate, "-keyfile", self.key, *arguments], input=stdin, check=True,
                       capture_output=True)

    def certify(self, subject: str, seconds: int) -> ssl.SSLContext:
        """Return the context of a client with alice's key and a certificate for so many seconds."""
        key = path("key_store/alice/alice.key")
        request = subprocess.run(["openssl", "req", "-new", "-key", key, "-subj", subject], check=True,
                                 capture_output=True).stdout
        dates = [time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + offset)) for offset in (-60, seconds)]
        self.run("-in", "/dev/stdin", "-out", f"{self.folder}/crt", "-preserveDN", "-startdate", dates[0],
                 "-enddate", dates[1], stdin=request)
        context = tls("")
        context.load_cert_chain(f"{self.folder}/crt", key)
        return context

    def list_for(self, seconds: int, name: str) -> str:
        """Make a revocation list for so many seconds; return its path."""
        self.run("-gencrl", "-crlsec", str(seconds), "-out", f"{name}.new")
        os.replace(f"{name}.new", name)
        return name


def our_ca() -> Ca:
    return Ca(path("key_store/ca/ca.key"), path("key_store/ca/ca.crt"))


def another_ca(name: str, extension: str = "") -> str:
    """Make a self-signed CA; return the start of the paths of its .key and .crt."""
    with open(path(f"{name}.conf"), "w", encoding="utf-8") as file:
        file.write(f"[req]\ndistinguished_name = d\nx509_extensions = e\nprompt = no\n[d]\nCN = {name}\n"
                   f"[e]\nbasicConstraints = critical, CA:TRUE\n{extension}\n")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "90", "-config", path(f"{name}.conf"), "-keyout", path(f"{name}.key"), "-out",
                    path(f"{name}.crt")], check=True, capture_output=True)
    return path(name)


class TlsFiles(unittest.TestCase):
    def lifetime(self, server: Running, context: ssl.SSLContext) -> float:
        """Beat on one connection, and keep another one idle, until both have ended; return how long that took."""
        def connected() -> ssl.SSLSocket:
            plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS)
            return context.wrap_socket(plain, server_hostname="localhost")
        started = time.monotonic()
        with connected() as beating, connected() as idle:
            while is_answered(beating):
                self.assertLess(time.monotonic() - started, 20)
                time.sleep(0.25)
            ended = time.monotonic() - started
            idle.settimeout(2)
            self.assertEqual(receive_all(idle), b"")
            return ended

    def test_kept_connection_ends_with_its_certificate(self) -> None:
        with Running() as server:
            context = our_ca().certify("/CN=alice", 4)
            self.assertLess(abs(self.lifetime(server, context) - 4), 2.5)
            self.assertEqual(server.call("alice", "status")[0], 200)

    def test_kept_connection_ends_with_the_revocation_list(self) -> None:
        crl = our_ca().list_for(8, path("short.crl"))
        with Running(f"--crl={crl}") as server:
            # Of the eight seconds, the start took some.
            self.assertLess(self.lifetime(server, tls("alice")), 8 + 2.5)

    def test_list_whose_issuer_only_occurs_somewhere_in_the_cas_certificate_is_refused(self) -> None:
        other = another_ca("Another CA")
        named = another_ca("Named CA", "subjectAltName = dirName:other\n[other]\nCN = Another CA")
        crl = Ca(f"{other}.key", f"{other}.crt").list_for(90 * 86400, path("another.crl"))
        self.assertIn(f"--crl {crl}", refused(f"--ca_crt={named}.crt", f"--crl={crl}"))

    def test_ca_without_a_list_while_another_one_has_one_is_told_at_start_and_by_check(self) -> None:
        other = another_ca("Listless CA")
        with open(path("two.crt"), "w", encoding="utf-8") as bundle:
            for name in (path("key_store/ca/ca.crt"), f"{other}.crt"):
                with open(name, encoding="utf-8") as file:
                    bundle.write(file.read())
        crl, both = path("key_store/ca/ca.crl"), path("both.crl")
        with open(both, "w", encoding="utf-8") as bundle:
            for name in (crl, Ca(f"{other}.key", f"{other}.crt").list_for(90 * 86400, path("other.crl"))):
                with open(name, encoding="utf-8") as file:
                    bundle.write(file.read())
        for lists, told in ((crl, True), (both, False)):
            with self.subTest(told=told):
                with Running(f"--ca_crt={path('two.crt')}", f"--crl={lists}") as server:
                    self.assertEqual(server.call("alice", "status")[0], 200)
                warnings = server.lines("level=WARNING event=tls")
                self.assertEqual(len(warnings), int(told), warnings)
                store = path("key_store/server")
                check = subprocess.run(
                    [sys.executable, os.path.join(ROOT, "playground.py"), "--check", "--namespace=x",
                     f"--ca_crt={path('two.crt')}", f"--crl={lists}", f"--server_key={store}/server.key",
                     f"--server_crt={store}/server.crt"], capture_output=True, text=True, timeout=60,
                    env={**os.environ, "KUBECONFIG": path("dead.kubeconfig")}).stdout
                self.assertEqual(len(re.findall(r"(?m)^WRONG .*\b(?:list|crl)\b", check)), int(told), check)

    def test_certificate_that_is_no_cas_is_refused_in_words(self) -> None:
        certificate = path("key_store/server/server.crt")
        line = refused(f"--ca_crt={certificate}")
        self.assertIn(f"--ca_crt {certificate}", line)
        self.assertRegex(line, "name the CA's certificate")
        self.assertNotRegex(line, r"min\(|argument|empty")


# ---- The wire ------------------------------------------------------------------------------------------


class Wire(unittest.TestCase):
    server: ClassVar[Running]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Running(kubeconfig=path("dead.kubeconfig"))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.__exit__(None)

    def ask(self, line: str, *fields: str, body: str = "") -> tuple[int, dict[str, str], str]:
        """Return the status, the header fields and the content."""
        lines = [f"{line} HTTP/1.1", "Host: x", "Connection: close", *fields, "", body]
        head, _, content = self.server.raw("\r\n".join(lines).encode()).decode().partition("\r\n\r\n")
        status, *given = head.split("\r\n")
        return int(status.split()[1]), dict(field.lower().split(": ", 1) for field in given), content

    def test_head_says_the_length_that_get_would_have_or_none(self) -> None:
        for name in ("status", "none", "create_db", "list_db"):
            with self.subTest(name):
                status, fields, content = self.ask(f"HEAD /api/{name}")
                self.assertEqual((content, status != 200 or name == "status"), ("", True))
                _, got, content = self.ask(f"GET /api/{name}")
                self.assertEqual(got["content-length"], str(len(content)))
                self.assertIn(fields.get("content-length"), (None, got["content-length"]))

    def test_certificate_of_our_ca_without_exactly_one_common_name_is_403_that_says_so(self) -> None:
        for subject in ("/O=nobody", "/CN=one/CN=two", "/CN= "):
            context = our_ca().certify(subject, 999)
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context.minimum_version = context.maximum_version = version
                for request in (STATUS, b"GET /api/none HTTP/1.1\r\nHost: x\r\n\r\n",
                                b'POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n'
                                b'{"user_id": "a"}'):
                    plain = socket.create_connection(("127.0.0.1", self.server.port), PATIENCE_SECONDS)
                    with self.subTest(subject, version=version, request=request), \
                            context.wrap_socket(plain, server_hostname="localhost") as connection:
                        connection.sendall(request.replace(b"Host", b"Connection: close\r\nHost"))
                        head, _, content = receive_all(connection).partition(b"\r\n\r\n")
                        self.assertTrue(head.startswith(b"HTTP/1.1 403 "), head)
                        self.assertIn("common name", json.loads(content)["error"])

    def test_plain_http_gets_a_plain_400_that_says_https(self) -> None:
        for pieces in ([STATUS], [STATUS[:1], STATUS[1:5], STATUS[5:]], [b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"],
                       [b"OPTIONS * HTTP/1.0\r\n\r\n"], [b"POST / HTTP/1.1\r\nContent-Length: 9999\r\n\r\n", b"x" * 9999]):
            with self.subTest(pieces[0]), \
                    socket.create_connection(("127.0.0.1", self.server.port), PATIENCE_SECONDS) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
                for piece in pieces:
                    plain.sendall(piece)
                    time.sleep(0.05)
                head, _, content = receive_all(plain).partition(b"\r\n\r\n")
                self.assertTrue(head.startswith(b"HTTP/1.1 400 "), head)
                self.assertIn(b"https://", head if pieces[0].startswith(b"HEAD") else content)
        answer = subprocess.run(["curl", "-sS", "-m", "10", "-d", "x", f"http://localhost:{self.server.port}/api/status"],
                                capture_output=True, text=True, check=True).stdout
        self.assertIn("https://", answer)

    def test_address_that_ends_in_a_slash_is_answered_and_a_404_shows_the_path(self) -> None:
        self.assertEqual(self.ask("GET //api/status")[0], 200)
        self.assertEqual(self.ask("GET //api/heart_beat?user_id=a")[0], 200)
        body = '{"user_id": "a"}'
        self.assertEqual(self.ask("POST //api/delete_db", f"Content-Length: {len(body)}", body=body)[0], 503)
        for target in ("/api/status/", "/api/nothing", "/v1/status"):
            status, _, content = self.ask(f"GET {target}?x=y")
            self.assertEqual((status, target in json.loads(content)["error"]), (404, True), content)

    def test_post_to_an_api_that_takes_get_is_405_that_says_so_with_and_without_a_length(self) -> None:
        for api in ("status", "heart_beat?user_id=a", "list_db", "metrics"):
            for fields, body in (((), ""), (("Content-Length: 0",), ""), (("Content-Length: 1",), "x")):
                with self.subTest(api, fields=fields):
                    status, headers, content = self.ask(f"POST /api/{api}", *fields, body=body)
                    self.assertEqual((status, headers.get("allow")), (405, "get"), content)
                    self.assertIn("GET", json.loads(content)["error"])
        self.assertEqual(self.ask("POST /api/create_db")[0], 411)

    def test_plus_in_a_query_is_400_that_says_what_to_write_instead(self) -> None:
        status, _, content = self.ask("GET /api/heart_beat?user_id=alice+smith")
        self.assertEqual(status, 400)
        self.assertRegex(json.loads(content)["error"], r"\+|%2B")


if __name__ == "__main__":
    unittest.main()
