"""Tests of what the server withstands: strangers, hostile clients, and TLS files that change."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import unittest
import unittest.mock
from typing import Any, ClassVar

import playground
from tests import harness
from tests.harness import (
    PATIENCE_SECONDS,
    Running,
    eventually,
    gen_cert,
    path,
    receive_all,
    stepping,
    tls,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down


class Strangers(unittest.TestCase):
    """Who has not shown a certificate, at a server whose cluster does not answer."""

    server: ClassVar[Running]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Running(kubeconfig=path("dead.kubeconfig"))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.__exit__(None)

    def test_stranger_without_a_certificate_of_our_ca_for_clients_is_refused(self) -> None:
        gen_cert("alice", store="other_store")
        other = tls("")
        other.load_cert_chain(path("other_store/alice/alice.crt"), path("other_store/alice/alice.key"))
        for name, context in (("none", tls("")), ("another CA's", other),
                              ("the server's own", tls("server"))):
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context.maximum_version = version
                plain = socket.create_connection(("127.0.0.1", self.server.port))
                with self.subTest(name, version=version), \
                        self.assertRaises((ssl.SSLError, ConnectionError)), \
                        plain, context.wrap_socket(plain, server_hostname="localhost") as connection:
                    connection.sendall(b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n")
                    if not connection.recv(1):
                        raise ConnectionError
        for reason in ("peer did not return a certificate",
                       "self-signed certificate in certificate chain|unable to get",
                       "unsuitable certificate purpose"):
            def logged(reason: str = reason) -> bool:
                return any(re.search(reason, line) for line in self.server.lines("handshake outcome=refused"))
            eventually(logged, f"the log says {reason}")

    def test_certificate_needs_exactly_one_common_name(self) -> None:
        for subject, outcome in (("/O=nobody", False), ("/CN=one/CN=two", False),
                                 ("/O=class/CN=carol", True)):
            command = ["openssl", "req", "-new", "-key", path("key_store/alice/alice.key"), "-subj", subject]
            request = subprocess.run(command, capture_output=True, check=True).stdout
            with open(path("named.crt"), "wb") as file:
                file.write(subprocess.run(["openssl", "x509", "-req", "-CA", path("key_store/ca/ca.crt"),
                                           "-CAkey", path("key_store/ca/ca.key"),
                                           "-set_serial", "7"], input=request, capture_output=True,
                                          check=True).stdout)
            context = tls("")
            context.load_cert_chain(path("named.crt"), path("key_store/alice/alice.key"))
            with context.wrap_socket(socket.create_connection(("127.0.0.1", self.server.port)),
                                     server_hostname="localhost") as connection:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                self.assertEqual(receive_all(connection).startswith(b"HTTP/1.1 200 "), outcome, subject)

    def test_session_is_resumed_only_while_the_certificate_is_good(self) -> None:
        with open(path("later"), "w", encoding="utf-8") as file:
            file.write("0")
        ask = b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        with Running(program=stepping(path("later"))) as server:
            store = path("key_store/alice")
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-CAfile",
                       f"{store}/ca.crt", "-quiet", "-ign_eof"]
            answers = []
            for version, offset in (("-tls1_2", "0"), ("-tls1_2", str(1000 * 86400)), ("-tls1_3", "0")):
                with open(path("later"), "w", encoding="utf-8") as file:
                    file.write("0")
                for options in (["-cert", f"{store}/alice.crt", "-key", f"{store}/alice.key", "-sess_out",
                                 path("session")], ["-sess_in", path("session")]):
                    if os.path.exists(path("session")) or "-cert" in options:
                        result = subprocess.run([*command, version, *options], input=ask,
                                                capture_output=True, timeout=PATIENCE_SECONDS)
                        answers.append(b"HTTP/1.1 200" in result.stdout)
                    with open(path("later"), "w", encoding="utf-8") as file:
                        file.write(offset)
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path("session"))
            self.assertEqual(answers, [True, True, True, False, True])  # TLS 1.3 gives no session to resume.

    def test_silent_clients_keep_nobody_waiting(self) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(playground.MAX_HANDSHAKES + 50):
                stack.enter_context(socket.create_connection(("127.0.0.1", self.server.port)))
            started = time.monotonic()
            self.assertEqual(self.server.call("alice", "status")[0], 200)
            self.assertLess(time.monotonic() - started, playground.HANDSHAKE_SECONDS / 2)
            eventually(lambda: self.server.lines('reason="made room for others"'),
                       "the log says what became of the oldest")

    def test_handshake_in_very_many_pieces_is_refused(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port), PATIENCE_SECONDS) as stranger:
            stranger.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            with contextlib.suppress(OSError):
                for byte in b"\x16\x03\x01\x02\x00\x01\x00" + bytes(400):
                    stranger.sendall(bytes([byte]))
                    time.sleep(0.01)
                self.assertEqual(receive_all(stranger), b"")
        eventually(lambda: self.server.lines('reason="came in too many pieces"'), "the log says why")

    def test_handshake_of_a_byte_a_second_ends_at_the_deadline(self) -> None:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", self.server.port), 1) as stranger:
            # A ClientHello that would be 512 bytes long.
            for byte in b"\x16\x03\x01\x02\x00\x01\x00" + bytes(99):
                stranger.sendall(bytes([byte]))
                with contextlib.suppress(socket.timeout):
                    self.assertEqual(stranger.recv(1), b"")
                    break
        self.assertGreater(time.monotonic() - started, playground.HANDSHAKE_SECONDS - 1)
        self.assertLess(time.monotonic() - started, playground.HANDSHAKE_SECONDS + 10)
        eventually(lambda: self.server.lines('reason="timed out"'), "the log says why")


class Fortress(unittest.TestCase):
    """Strangers, hostile clients, and TLS files that change."""

    STATUS = b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n"

    def burden(self, server: Running) -> tuple[int, int]:
        return len(os.listdir(f"/proc/{server.process.pid}/task")), len(
            os.listdir(f"/proc/{server.process.pid}/fd"))

    def settled(self, server: Running) -> tuple[int, int]:
        """Return the burden once it stays the same: the kubectls of a start come and go."""
        while True:
            burden = self.burden(server)
            time.sleep(1)
            if self.burden(server) == burden:
                return burden

    def is_answered(self, connection: ssl.SSLSocket) -> bool:
        """Ask on an open connection; tell whether it was answered, and not closed."""
        try:
            connection.sendall(self.STATUS)
            return connection.recv(65536).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def test_refused_handshakes_are_a_line_for_each_reason_with_their_number(self) -> None:
        with Running() as server:
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", server.port)) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    answer = receive_all(stranger)
                    self.assertNotIn(b"HTTP", answer)
                    self.assertLess(len(answer), 10)  # A TLS alert at most.
                with socket.create_connection(("127.0.0.1", server.port)):
                    pass
            self.assertEqual(server.call("alice", "status")[0], 200)  # All before it have been accepted.
        lines = server.lines("handshake outcome=refused")
        self.assertLessEqual(len(lines), 4, lines)
        self.assertEqual(sum(int(line.rpartition("count=")[2]) for line in lines), 40)
        for line in lines:
            self.assertRegex(line, r'address=127\.0\.0\.1 reason=("http request"|"hung up") count=\d+$')

    def test_clients_connections_make_room_for_each_other_and_not_for_another_clients(self) -> None:
        with Running("--max_connections_per_client=3") as server, contextlib.ExitStack() as stack:
            bob = stack.enter_context(server.connect("bob"))
            self.assertTrue(self.is_answered(bob))
            connections = [stack.enter_context(server.connect()) for _ in range(3)]
            for connection in connections:
                self.assertTrue(self.is_answered(connection))
            newest = stack.enter_context(server.connect())
            self.assertTrue(self.is_answered(newest))
            left = [connection for connection in connections if self.is_answered(connection)]
            self.assertEqual(len(left), 2)  # One that was idle made room.
            for connection in (*left, newest):  # Busy ones, for HEAD_SECONDS.
                connection.sendall(b"GET /api/status HTTP/1.1\r\n")
            time.sleep(1)  # The server has read that.
            with server.connect() as refused:
                refused.sendall(self.STATUS)
                answer = receive_all(refused)
                self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
                self.assertIn(b"\r\nRetry-After: ", answer)
            self.assertTrue(self.is_answered(bob))

    def test_hostile_clients_leave_no_thread_and_no_file_behind(self) -> None:
        post = b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
        with Running() as server:
            self.assertEqual(server.call("alice", "status")[0], 200)
            before = self.settled(server)
            with contextlib.ExitStack() as stack:
                for number in range(60):
                    plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                    # A reset instead of a good-bye, at each stage.
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    if number % 6:
                        connection = tls("alice").wrap_socket(plain, server_hostname="localhost")
                        stack.enter_context(connection)
                        connection.sendall((b"", b"GET /api", post, post + b"x", self.STATUS,
                                            self.STATUS * 50)[number % 6])
                        if number % 2:
                            connection.shutdown(socket.SHUT_WR)  # Half-closed.
                self.assertEqual(server.call("bob", "status")[0], 200)
            eventually(lambda: self.burden(server) <= before, "its threads and files are as before")

    def test_without_a_thread_to_be_had_a_slow_request_is_503_and_others_are_answered(self) -> None:
        half = len(self.STATUS) // 2
        with Running() as server, contextlib.ExitStack() as stack:
            connections = [stack.enter_context(server.connect()) for _ in range(20)]
            self.assertTrue(all(map(self.is_answered, connections)))
            with open(f"/proc/{server.process.pid}/status", encoding="utf-8") as file:
                size = int(re.findall(r"VmSize:\s+(\d+) kB", file.read())[0]) * 1024
            # No new thread's stack fits.
            resource.prlimit(server.process.pid, resource.RLIMIT_AS, (size + 2 ** 21, resource.RLIM_INFINITY))
            for connection in connections:  # Some get the stack of a thread that has ended.
                connection.sendall(self.STATUS[:half])
            # The others are waited for, for HEAD_SECONDS.
            refused, _, _ = select.select(connections, [], [], PATIENCE_SECONDS)
            answer = receive_all(refused[0])
            self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
            self.assertIn(b"\r\nRetry-After: ", answer)
            self.assertEqual(server.call("bob", "status")[0], 200)
            resource.prlimit(server.process.pid, resource.RLIMIT_AS,
                             (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with server.connect() as connection:
                connection.sendall(self.STATUS[:half])
                time.sleep(0.2)
                connection.sendall(self.STATUS[half:])
                self.assertTrue(connection.recv(65536).startswith(b"HTTP/1.1 200 "))
        self.assertTrue(server.lines("lead error="))

    def test_client_that_sends_ahead_without_end_keeps_nobody_waiting(self) -> None:
        with Running() as server, server.connect() as greedy:
            done = threading.Event()

            def ask() -> None:
                greedy.setblocking(False)
                while not done.is_set():
                    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                        greedy.send(self.STATUS * 200)
                    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                        greedy.recv(65536)
            thread = threading.Thread(target=ask)
            thread.start()
            self.addCleanup(thread.join)
            self.addCleanup(done.set)
            time.sleep(0.5)
            taken = []
            for _ in range(10):
                started = time.monotonic()
                self.assertEqual(server.call("bob", "status")[0], 200)
                taken.append(time.monotonic() - started)
            done.set()
            thread.join()
            self.assertLess(max(taken), 3)  # Some 0.1 s, on a machine that is not busy with other tests.

    def test_client_that_does_not_read_is_let_go(self) -> None:
        with Running() as server, socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            plain.connect(("127.0.0.1", server.port))
            with tls("alice").wrap_socket(plain, server_hostname="localhost") as connection:
                files = self.settled(server)[1]
                connection.settimeout(1)
                with contextlib.suppress(OSError):
                    # Until its answers fill every buffer between us, and it reads no more requests.
                    while True:
                        connection.sendall(self.STATUS * 100)
                eventually(lambda: self.burden(server)[1] < files, "the connection has ended")

    def key_store(self, name: str) -> list[str]:
        """Copy the key store; return the options that name the copy."""
        shutil.copytree(path("key_store"), path(name))
        return [f"--ca_crt={path(name)}/ca/ca.crt", f"--server_key={path(name)}/server/server.key",
                f"--server_crt={path(name)}/server/server.crt"]

    def serial(self, server: Running) -> Any:
        with server.connect() as connection:
            certificate = connection.getpeercert()
            assert certificate
            return certificate["serialNumber"]

    def test_server_certificate_is_taken_up_when_both_its_files_have_changed(self) -> None:
        options = self.key_store("exchanged")
        shutil.move(path("exchanged/server"), path("old_server"))
        self.assertEqual(gen_cert("server", store="exchanged").returncode, 0)
        shutil.move(path("exchanged/server"), path("new_server"))
        shutil.copytree(path("old_server"), path("exchanged/server"))
        with Running(*options) as server:
            old = self.serial(server)
            os.replace(path("new_server/server.key"), path("exchanged/server/server.key"))  # Renamed over.
            eventually(lambda: server.lines('tls outcome="kept as it was"'),
                       "the pair that does not match is noticed")
            self.assertEqual(self.serial(server), old)
            with server.connect() as connection:
                self.assertTrue(self.is_answered(connection))
                # Written in place.
                shutil.copyfile(path("new_server/server.crt"), path("exchanged/server/server.crt"))
                eventually(lambda: self.serial(server) != old, "the new one is served")
                # Nobody else is let in than before: it goes on.
                self.assertTrue(self.is_answered(connection))

    def test_sighup_takes_the_files_up_and_a_new_ca_lets_its_clients_in(self) -> None:
        options = self.key_store("joined")
        gen_cert("carol", store="joining")
        other = tls("")
        other.load_cert_chain(path("joining/carol/carol.crt"), path("joining/carol/carol.key"))
        with Running(*options) as server, server.connect() as connection:
            self.assertTrue(self.is_answered(connection))
            with open(path("joining/ca/ca.crt"), encoding="utf-8") as file, \
                    open(path("joined/ca/ca.crt"), "a", encoding="utf-8") as bundle:
                bundle.write(file.read())
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: server.lines("tls outcome=reloaded"), "it has reloaded")
            plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS)
            with other.wrap_socket(plain, server_hostname="localhost") as carol:
                self.assertTrue(self.is_answered(carol))
            self.assertFalse(self.is_answered(connection))  # Others may be let in now than when it was.

    def test_revoked_client_is_shut_out_within_seconds_while_no_request_of_others_is_lost(self) -> None:
        options = self.key_store("revoking")
        crl = path("revoking/ca/ca.crl")
        with Running(*options, f"--crl={crl}") as server, server.connect("alice") as idle, \
                server.connect("alice") as busy:
            self.assertTrue(self.is_answered(idle))
            # Its body is awaited for 10 s.
            busy.sendall(b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            done = threading.Event()
            self.addCleanup(done.set)
            lost: list[int] = []

            def ask() -> None:
                connection = http.client.HTTPSConnection("localhost", server.port, context=tls("bob"),
                                                         timeout=PATIENCE_SECONDS)
                while not done.is_set():
                    try:
                        connection.request("GET", "/api/status")
                        response = connection.getresponse()
                        response.read()
                        lost.extend([] if response.status == 200 else [response.status])
                    except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError):
                        connection.close()  # It was kept and idle: the next request connects again.
                connection.close()
            others = [threading.Thread(target=ask) for _ in range(4)]
            for other in others:
                other.start()
            self.assertEqual(gen_cert("--revoke", "alice", store="revoking").returncode, 0)
            started = time.monotonic()
            self.assertEqual((receive_all(idle), receive_all(busy)), (b"", b""))
            # 2 to 3 s, on a machine that is not busy with other tests.
            self.assertLess(time.monotonic() - started, 10)
            with contextlib.suppress(OSError), server.connect("alice") as again:
                self.assertFalse(self.is_answered(again))
            done.set()
            for other in others:
                other.join()
            self.assertEqual(lost, [])
            self.assertEqual(server.call("bob", "status")[0], 200)
        self.assertTrue(server.lines('reason="certificate revoked"'))

    def test_revocation_list_that_cannot_be_read_or_has_ended_keeps_the_last_good_one_and_then_nobody_gets_in(
        self) -> None:
        options = self.key_store("ending")
        gen_cert("--revoke", "alice", store="ending")
        crl, good = path("ending/ca/ca.crl"), path("good.crl")

        def list_for(seconds: int) -> None:
            with open(path("index.txt"), "w", encoding="utf-8"), \
                    open(path("ca.conf"), "w", encoding="utf-8") as file:
                file.write(
                    f"[ca]\ndefault_ca = a\n[a]\ndatabase = {path('index.txt')}\ndefault_md = sha256\n")
            command = ["openssl", "ca", "-gencrl", "-config", path("ca.conf"), "-cert",
                       path("ending/ca/ca.crt"), "-keyfile",
                       path("ending/ca/ca.key"), "-crlsec", str(seconds), "-out", path("new.crl")]
            subprocess.run(command, check=True, capture_output=True)
            os.replace(path("new.crl"), crl)
        shutil.copy(crl, good)
        with Running(*options, f"--crl={crl}") as server:
            def admitted(client: str) -> bool:
                with contextlib.suppress(OSError), server.connect(client) as connection:
                    return self.is_answered(connection)
                return False
            list_for(1)
            time.sleep(1.5)
            os.utime(crl)  # It is taken up no sooner than it has ended.
            eventually(lambda: server.lines("it has ended"), "the list that has ended is refused")
            with open(crl, "w", encoding="utf-8") as file:
                file.write("garbage")
            eventually(lambda: server.lines("it holds no X509 CRL"),
                       "the list that cannot be read is refused")
            self.assertEqual([admitted(client) for client in ("alice", "bob")], [False, True])
            list_for(6)
            eventually(lambda: admitted("alice"), "the new list revokes nobody")
            eventually(lambda: not admitted("alice") and not admitted("bob"),
                       "it has ended, and nobody gets in")
            eventually(lambda: server.lines(f"level=ERROR event=tls file={crl}"), "the log says so")
            os.replace(good, crl)
            eventually(lambda: admitted("bob"), "a good one is taken up")

    def test_resumed_session_of_a_revoked_certificate_is_refused(self) -> None:
        options, store = self.key_store("resuming"), path("key_store/alice")
        ask = b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        with Running(*options, f"--crl={path('resuming/ca/ca.crl')}") as server:
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-CAfile",
                       f"{store}/ca.crt", "-quiet", "-ign_eof", "-tls1_2"]
            first = [*command, "-cert", f"{store}/alice.crt", "-key", f"{store}/alice.key", "-sess_out",
                     path("revoked-session")]
            resumed = [*command, "-sess_in", path("revoked-session")]
            for arguments in (first, resumed):
                self.assertIn(b"HTTP/1.1 200",
                              subprocess.run(arguments, input=ask, capture_output=True).stdout)
            gen_cert("--revoke", "alice", store="resuming")
            eventually(lambda: server.lines("tls outcome=reloaded"), "the list is taken up")
            self.assertNotIn(b"HTTP/1.1", subprocess.run(resumed, input=ask, capture_output=True).stdout)
