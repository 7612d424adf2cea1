"""Faults that this server once had, each seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import logging
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import yaml

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
    stand_in,
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
        with Running("--max_connections_per_client=2", program=program, kubeconfig=path("dead.kubeconfig")) \
                as server, contextlib.ExitStack() as stack:
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
            file.write(f"[ca]\ndefault_ca = a\n[a]\ndatabase = {self.folder}/index\n"
                       f"serial = {self.folder}/serial\nnew_certs_dir = {self.folder}\n"
                       "default_md = sha256\npolicy = p\n[p]\ncommonName = optional\n")
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
        dates = [time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + offset))
                 for offset in (-60, seconds)]
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
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-days", "90", "-config", path(f"{name}.conf"), "-keyout", path(f"{name}.key"),
                    "-out", path(f"{name}.crt")], check=True, capture_output=True)
    return path(name)


class TlsFiles(unittest.TestCase):
    def lifetime(self, server: Running, context: ssl.SSLContext) -> float:
        """Beat on one connection, keep another one idle, until both have ended; return how long it took."""
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
        for pieces in (
                [STATUS], [STATUS[:1], STATUS[1:5], STATUS[5:]], [b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"],
                [b"OPTIONS * HTTP/1.0\r\n\r\n"],
                [b"POST / HTTP/1.1\r\nContent-Length: 9999\r\n\r\n", b"x" * 9999]):
            with self.subTest(pieces[0]), \
                    socket.create_connection(("127.0.0.1", self.server.port), PATIENCE_SECONDS) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
                for piece in pieces:
                    plain.sendall(piece)
                    time.sleep(0.05)
                head, _, content = receive_all(plain).partition(b"\r\n\r\n")
                self.assertTrue(head.startswith(b"HTTP/1.1 400 "), head)
                self.assertTrue(b"https://" in content or pieces[0].startswith(b"HEAD"), content)
        url = f"http://localhost:{self.server.port}/api/status"
        answer = subprocess.run(["curl", "-sS", "-m", "10", "-d", "x", url], capture_output=True, text=True,
                                check=True).stdout
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

# ---- Refused clients -----------------------------------------------------------------------------------


class Alerts(unittest.TestCase):
    """Of 100 requests 100 see the alert that says why, and no stranger gets a thread."""

    BODY = b'{"user_id": "alice"}' + b" " * 8000
    server: ClassVar[Running]
    # By what is wrong: a certificate and its key, and what the alert is called.
    refused: ClassVar[dict[str, tuple[tuple[str, str] | None, str]]]

    @classmethod
    def setUpClass(cls) -> None:
        for arguments in (("server",), ("alice",), ("--revoke", "alice")):
            assert gen_cert(*arguments, store="told").returncode == 0
        gen_cert("alice", store="told_other")

        def pair(store: str) -> tuple[str, str]:
            return path(store, "alice/alice.crt"), path(store, "alice/alice.key")
        cls.refused = {"no certificate": (None, "certificate required|handshake failure"),
                       "another CA's": (pair("told_other"), "unknown ca"),
                       "a revoked one": (pair("told"), "certificate revoked")}
        cls.server = Running(*(f"--{option}={path('told', name)}" for option, name in (
            ("ca_crt", "ca/ca.crt"), ("crl", "ca/ca.crl"), ("server_crt", "server/server.crt"),
            ("server_key", "server/server.key"))), empty_cluster("steady", "sleep 1000")[0])

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.__exit__(None)

    def each(self, ask: Callable[[str, ssl.SSLContext, tuple[str, str] | None], list[str]]) -> None:
        """Have a client ask 100 times in each way; it returns what it was told each time."""
        threads: set[int] = set()
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.02):
                threads.add(len(os.listdir(f"/proc/{self.server.process.pid}/task")))
        with ThreadPoolExecutor(1) as pool:
            looker = pool.submit(look)
            try:
                for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                    for wrong, (pair, alert) in self.refused.items():
                        for method in ("GET", "POST"):
                            context = ssl.create_default_context(cafile=path("told/ca/ca.crt"))
                            context.minimum_version = context.maximum_version = version
                            if pair:
                                context.load_cert_chain(*pair)
                            with self.subTest(wrong, version=version, method=method):
                                told = ask(method, context, pair)
                                heard = [bool(re.search(f"alert.*({alert})", one.replace("_", " "), re.I))
                                         for one in told]
                                lost = [one for one, good in zip(told, heard) if not good]
                                self.assertEqual((len(told), lost[:1]), (100, []), f"{len(lost)} lost")
            finally:
                done.set()
            looker.result()
        # Those that run kubectl come and go.
        self.assertLessEqual(max(threads) - min(threads), 3)

    def url(self, method: str) -> str:
        return f"https://localhost:{self.server.port}/api/{'status' if method == 'GET' else 'create_db'}"

    def test_requests_hears_why_it_is_refused(self) -> None:
        requests = importlib.import_module("requests")

        class Adapter(requests.adapters.HTTPAdapter):  # type: ignore[misc, name-defined]
            context: ssl.SSLContext

            def init_poolmanager(self, *arguments: Any, **more: Any) -> Any:
                return super().init_poolmanager(*arguments, **more, ssl_context=Adapter.context)

        def ask(method: str, context: ssl.SSLContext, pair: tuple[str, str] | None) -> list[str]:
            Adapter.context, told = context, []
            for _ in range(100):
                with requests.Session() as session:
                    session.mount("https://", Adapter())
                    try:
                        told.append(str(session.request(
                            method, self.url(method), data=self.BODY if method == "POST" else None,
                            verify=path("told/ca/ca.crt"), timeout=PATIENCE_SECONDS)))
                    except requests.RequestException as error:
                        told.append(repr(error))
            return told
        self.each(ask)

    def test_tornado_hears_why_it_is_refused(self) -> None:
        try:
            httpclient = importlib.import_module("tornado.httpclient")
        except ImportError:
            self.skipTest("tornado is missing")
        simple = importlib.import_module("tornado.simple_httpclient")

        async def ask_all(method: str, context: ssl.SSLContext) -> list[str]:
            told, client = [], simple.SimpleAsyncHTTPClient(force_instance=True)
            for _ in range(100):
                try:
                    told.append(str(await client.fetch(httpclient.HTTPRequest(
                        self.url(method), method, body=self.BODY if method == "POST" else None,
                        ssl_options=context, request_timeout=PATIENCE_SECONDS))))
                except Exception as error:
                    told.append(repr(error))
            client.close()
            return told

        def ask(method: str, context: ssl.SSLContext, pair: tuple[str, str] | None) -> list[str]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # Tornado's own.
                logging.disable()
                try:
                    return asyncio.run(ask_all(method, context))
                finally:
                    logging.disable(logging.NOTSET)
        self.each(ask)

    def test_curl_hears_why_it_is_refused(self) -> None:
        def ask(method: str, context: ssl.SSLContext, pair: tuple[str, str] | None) -> list[str]:
            version = "1.2" if context.maximum_version == ssl.TLSVersion.TLSv1_2 else "1.3"
            body = ["--data-binary", self.BODY.decode()] if method == "POST" else []
            certificate = ["--cert", pair[0], "--key", pair[1]] if pair else []
            return subprocess.run(
                ["curl", "-sS", "--cacert", path("told/ca/ca.crt"), f"--tlsv{version}", "--tls-max", version,
                 *certificate, *body, self.url(method) + "?[1-100]"],
                capture_output=True, text=True).stderr.splitlines()
        self.each(ask)


# ---- The cluster ---------------------------------------------------------------------------------------


def empty_cluster(name: str, watch: str, listing: str = "") -> tuple[str, Callable[[], list[str]]]:
    """Make a kubectl of a cluster that holds nothing, with scripts for watches and lists before others'.

    Return the option that names it, and what returns what it was asked, a line each.
    """
    asked = path(f"{name}.asked")
    option = stand_in(name, f"""echo "$*" >> {asked}
case "$*" in
*watch=1*) {watch};;
*"get --raw"*) {listing or ':'}
  echo '{{"kind": "List", "metadata": {{"resourceVersion": "7"}}, "items": []}}';;
esac
exit""")

    def lines() -> list[str]:
        with open(asked, encoding="utf-8") as file:
            return file.read().splitlines()
    return option, lines


class Watches(unittest.TestCase):
    def status(self, server: Running) -> Any:
        return server.call("alice", "status")[1]["cluster"]

    def test_watch_that_meets_what_no_api_server_says_is_told_by_status_and_goes_on(self) -> None:
        said, listed, deep = path("said"), path("listed"), b"[" * 100_000
        kubectl, _ = empty_cluster(
            "garbage", f"while sleep 0.2; do [ -e {said} ] && cat {said} && exec sleep 60; done",
            f"[ -e {listed} ] && cat {listed} && exit;")
        server = Running(kubectl)
        self.addCleanup(server.__exit__, AssertionError)  # Its log may hold tracebacks.
        eventually(lambda: self.status(server) == "ok", "the cluster is known")
        gone = b'{"type": "ERROR", "object": {"code": 410}}'
        for event, listing in (
                (deep, b""), (b'{"type": "ADDED", "object": 7}', b""), (b"\xff\xfe", b""), (gone, deep),
                (gone, b'{"metadata": {"resourceVersion": "8"}, "items": 7}'),
                (b'{"type": [], "object": {"metadata": {"resourceVersion": {}, "name": 1}}}', b"null")):
            for name, content in ((listed, listing), (said, event)):
                if content:
                    with open(name, "wb") as file:
                        file.write(content + b"\n")
            eventually(lambda: self.status(server) != "ok", f"status tells: {event[:60]!r}, {listing[:9]!r}")
            os.remove(said)
            with contextlib.suppress(FileNotFoundError):
                os.remove(listed)
            eventually(lambda: self.status(server) == "ok", "it goes on")
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)

    def test_watch_that_was_cut_resumes_and_does_not_list_anew(self) -> None:
        bookmark = '{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "42"}}}'
        for number, words in enumerate((
                "unexpected EOF", "http2: client connection lost",
                "http2: server sent GOAWAY and closed the connection; LastStreamID=1, ErrCode=NO_ERROR")):
            kubectl, asked = empty_cluster(
                f"cut-{number}", f"echo '{bookmark}'; sleep 0.5; echo 'error: {words}' >&2; exit 1")
            with self.subTest(words), Running(kubectl) as server:
                eventually(lambda server=server: self.status(server) == "ok", "the cluster is known")
                while sum("watch=1" in line for line in asked()) < 9:
                    self.assertEqual(self.status(server), "ok")
                requests = [line.partition("--raw ")[2] for line in asked() if "--raw" in line]
                lists = [request for request in requests if "watch=1" not in request]
                self.assertEqual(len(lists), len(set(lists)), lists)
                resumed = [request for request in requests if "resourceVersion=42&" in request + "&"]
                self.assertGreaterEqual(len(resumed), 6)

    @unittest.skipUnless(KUBECONFIG, "PLAYGROUND_TEST_KUBECONFIG is not set")
    def test_watch_whose_connection_was_really_cut_resumes_and_does_not_list_anew(self) -> None:
        with Cuttable() as proxy, Running(kubeconfig=proxy.kubeconfig).known() as server:
            def listed() -> list[str]:
                return [line for line in server.lines("event=kubectl verb=get") if "outcome=ok" in line]
            time.sleep(1)
            before, watches = listed(), len(proxy.open)
            for _ in range(3):
                proxy.cut()
                self.assertEqual(self.status(server), "ok")
                eventually(lambda: len(proxy.open) == watches, "the watches run again")
                time.sleep(0.5)
            self.assertEqual((listed(), self.status(server)), (before, "ok"))
            self.assertGreaterEqual(len(server.lines("event=kubectl verb=watch")), 3 * watches)
            self.assertEqual(server.call("alice", "create_db", "cut")[0], 200)
            server.call("alice", "delete_db", "cut")

    def test_lists_come_in_pages(self) -> None:
        page = '{"kind": "List", "metadata": {"resourceVersion": "6", "continue": "TOKEN"}, "items": []}'
        kubectl, asked = empty_cluster(
            "pages", "sleep 60", f"case \"$*\" in *continue=TOKEN*);; *) echo '{page}'; exit;; esac;")
        with Running(kubectl) as server:
            eventually(lambda: self.status(server) == "ok", "the cluster is known")
            eventually(lambda: any("watch=1" in line for line in asked()), "it watches")
        lists = [line for line in asked() if "--raw" in line and "watch=1" not in line]
        self.assertEqual([line for line in lists if "limit=500" not in line], [])
        first = [line for line in lists if "continue=" not in line]
        self.assertEqual((len(lists), len(set(first))), (2 * len(first), len(first)), lists)


class Cuttable:
    """A way to the cluster whose connections can be cut."""

    def __init__(self) -> None:
        with open(KUBECONFIG, encoding="utf-8") as file:
            config = yaml.safe_load(file)
        cluster = config["clusters"][0]["cluster"]
        self.target = urllib.parse.urlsplit(cluster["server"])
        self.listener = socket.create_server(("127.0.0.1", 0))
        cluster["server"] = f"{self.target.scheme}://127.0.0.1:{self.listener.getsockname()[1]}"
        self.kubeconfig = path("cuttable.kubeconfig")
        with open(self.kubeconfig, "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)
        self.open: set[socket.socket] = set()  # Our ends towards kubectl.
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def __enter__(self) -> Cuttable:
        return self

    def __exit__(self, *_: Any) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.threads[0].join()
        self.listener.close()
        self.cut()
        for thread in self.threads:
            thread.join()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self.listener.accept()[0]
                self.open.add(near)
                self.threads.append(threading.Thread(target=self.carry, args=(near,)))
                self.threads[-1].start()

    def carry(self, near: socket.socket) -> None:
        """Carry bytes both ways until either end has ended."""
        with near, contextlib.suppress(OSError), \
                socket.create_connection((self.target.hostname or "", self.target.port or 443)) as far:
            while near in self.open:
                for one in select.select([near, far], [], [])[0]:
                    data = one.recv(65536)
                    (far if one is near else near).sendall(data)
                    if not data:
                        self.open.discard(near)
        self.open.discard(near)

    def cut(self) -> None:
        for connection in (those := set(self.open)):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        eventually(lambda: not those & self.open, "they have been cut")


# ---- The process ---------------------------------------------------------------------------------------


class Unread:
    """A server whose log goes into a small pipe, which is read at the start and then when told."""

    def __init__(self) -> None:
        store = path("key_store")
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "playground.py"), "--host=127.0.0.1", "--port=0",
             "--namespace=x", f"--ca_crt={store}/ca/ca.crt", f"--server_key={store}/server/server.key",
             f"--server_crt={store}/server/server.crt"], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "KUBECONFIG": path("dead.kubeconfig")})
        assert self.process.stderr
        self.stderr = self.process.stderr
        self.port = 0
        while not self.port:
            line = self.stderr.readline()
            assert line, "it ended"
            self.port = int((re.findall(r"event=start .*port=(\d+)", line) or "0")[0])

    def __enter__(self) -> Unread:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.stderr.close()

    def answers(self, count: int) -> int:
        """Send so many requests; return how many were answered before one was not, within 10 s."""
        plain = socket.create_connection(("127.0.0.1", self.port), 10)
        answered = 0
        with tls("alice").wrap_socket(plain, server_hostname="localhost") as connection, \
                contextlib.suppress(OSError):
            while answered < count:
                connection.sendall(STATUS * 50)
                answers = b""
                while answers.count(b'"version"') < 50:
                    data = connection.recv(65536)
                    if not data:
                        return answered
                    answers += data
                answered += 50
        return answered


class Process(unittest.TestCase):
    def test_log_that_nobody_reads_stops_nobody_and_what_was_dropped_is_counted(self) -> None:
        with Unread() as server:
            self.assertEqual(server.answers(15_000), 15_000)
            written, dropped = 0, 0
            while not dropped and written < 15_000:
                line = server.stderr.readline()
                written += len(re.findall(r"event=request .*api=status", line))
                dropped = int((re.findall(r"\bdropped=(\d+)", line) or "0")[0])
            self.assertLess(written, 15_000)  # Else nothing has been bounded.
            self.assertGreaterEqual(written + dropped, 15_000)
            self.assertEqual(server.answers(50), 50)
            while "api=status" not in server.stderr.readline():
                pass  # It goes on.

    def test_sigterm_ends_a_server_whose_log_nobody_reads(self) -> None:
        with Unread() as server:
            server.answers(2000)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(30), 0)

    def test_sigterm_is_a_clean_end_again_and_again(self) -> None:
        option = stand_in("patient", "exec sleep 1000")

        def start_and_stop(_: int) -> float:
            with Running(option) as server, server.connect() as connection:
                connection.sendall(STATUS * 200)  # Some are in flight when it is told to stop.
                connection.recv(1)
                started = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                server.process.wait(PATIENCE_SECONDS)
                return time.monotonic() - started
        with ThreadPoolExecutor(4) as pool:
            self.assertLess(max(pool.map(start_and_stop, range(20))), 10)

    @unittest.skipUnless(os.geteuid() == 0, "a namespace of processes can be made by root only")
    def test_orphan_of_a_kubectl_is_reaped_by_a_server_that_is_pid_1(self) -> None:
        program = altered(
            "import ctypes, os, signal\n"
            "libc = ctypes.CDLL(None)\n"
            "assert not libc.unshare(0x20000000)\n"  # CLONE_NEWPID
            "child = os.fork()\n"
            "if child:\n"
            "    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))\n"
            "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
            "assert os.getpid() == 1 and not libc.prctl(1, signal.SIGKILL)")  # PR_SET_PDEATHSIG
        kubectl = stand_in("leaving", 'case "$*" in *watch=1*|*--raw*) setsid sleep 1.5 & '
                           "sleep 0.1; echo 'connection refused' >&2; exit 1;; esac")
        with Running(kubectl, program=program) as server:
            child = descendants(server.process.pid)[0]
            orphans: set[int] = set()

            def look() -> bool:
                with open(f"/proc/{child}/task/{child}/children", encoding="utf-8") as children:
                    for pid in map(int, children.read().split()):
                        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", "rb") as comm:
                            orphans.update({pid} if comm.read() == b"sleep\n" else ())
                return len(orphans) >= 4
            eventually(look, "kubectls leave orphans")
            time.sleep(5)
            self.assertEqual([pid for pid in orphans if os.path.exists(f"/proc/{pid}")], [])
            # Who reaps must not take kubectl's exit status away from who waits for it.
            self.assertEqual([line for line in server.lines("verb=watch") if "outcome=ok" in line], [])
            self.assertTrue(server.lines("outcome=unreachable"))


if __name__ == "__main__":
    unittest.main()
