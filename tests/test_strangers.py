"""Tests of what the server withstands: strangers, hostile clients, and TLS files that change."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import http.client
import importlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import unittest
import unittest.mock
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import playground
from tests import harness
from tests.harness import (
    PATIENCE_SECONDS,
    STATUS,
    Ca,
    Running,
    WithoutCluster,
    altered,
    empty_cluster,
    eventually,
    gen_cert,
    in_a_network_of_its_own,
    is_answered,
    our_ca,
    path,
    receive_all,
    refused,
    stand_in,
    stepping,
    tls,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down


class Strangers(WithoutCluster):
    """Who has not shown a certificate, at a server whose cluster does not answer."""

    def test_stranger_without_a_certificate_of_our_ca_for_clients_is_refused(self) -> None:
        gen_cert("alice", store="other_store")
        other = tls("")
        other.load_cert_chain(path("other_store/alice/alice.crt"), path("other_store/alice/alice.key"))
        for name, context in (("none", tls("")), ("another CA's", other),
                              ("the server's own", tls("server"))):
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context.maximum_version = version
                plain = socket.create_connection(("127.0.0.1", self.server.port))
                with self.subTest(name, version=version.name), \
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

    def test_certificate_of_our_ca_without_exactly_one_common_name_is_403_that_says_so(self) -> None:
        for subject in ("/O=nobody", "/CN=one/CN=two", "/CN= "):
            context = our_ca().certify(subject, 999)
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context.minimum_version = context.maximum_version = version
                for request in (STATUS, b"GET /api/none HTTP/1.1\r\nHost: x\r\n\r\n",
                                b'POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n'
                                b'{"user_id": "a"}'):
                    plain = socket.create_connection(("127.0.0.1", self.server.port), PATIENCE_SECONDS)
                    with self.subTest(subject, version=version.name, request=request), \
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

    def burden(self, server: Running) -> tuple[int, int]:
        """Return a server's threads and sockets; its kubectls, which come and go, have pipes."""
        process = f"/proc/{server.process.pid}"
        return len(os.listdir(f"{process}/task")), sum(
            link.startswith("socket:") for link in map(self.link, glob.glob(f"{process}/fd/*")))

    def link(self, file: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return os.readlink(file)
        return ""

    def test_refused_handshakes_are_a_line_for_each_reason_with_their_number(self) -> None:
        with Running() as server:
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", server.port)) as stranger:
                    stranger.sendall(bytes(20))
                    self.assertLess(len(receive_all(stranger)), 10)  # A TLS alert at most.
                with socket.create_connection(("127.0.0.1", server.port)):
                    pass
            self.assertEqual(server.call("alice", "status")[0], 200)  # All before it have been accepted.
        lines = server.lines("handshake outcome=refused")
        self.assertLessEqual(len(lines), 4, lines)
        self.assertEqual(sum(int(line.rpartition("count=")[2]) for line in lines), 40)
        for line in lines:
            self.assertRegex(line, r'address=127\.0\.0\.1 reason="(wrong version number|hung up)" count=\d+$')

    def test_clients_connections_make_room_for_each_other_and_not_for_another_clients(self) -> None:
        with Running("--max_connections_per_client=3") as server, contextlib.ExitStack() as stack:
            bob = stack.enter_context(server.connect("bob"))
            self.assertTrue(is_answered(bob))
            connections = [stack.enter_context(server.connect()) for _ in range(3)]
            for connection in connections:
                self.assertTrue(is_answered(connection))
            newest = stack.enter_context(server.connect())
            self.assertTrue(is_answered(newest))
            left = [connection for connection in connections if is_answered(connection)]
            self.assertEqual(len(left), 2)  # One that was idle made room.
            for connection in (*left, newest):  # Busy ones, for HEAD_SECONDS.
                connection.sendall(b"GET /api/status HTTP/1.1\r\n")
            time.sleep(1)  # The server has read that.
            with server.connect() as refused:
                refused.sendall(STATUS)
                answer = receive_all(refused)
                self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
                self.assertIn(b"\r\nRetry-After: ", answer)
            self.assertTrue(is_answered(bob))

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

    def test_hostile_clients_leave_no_thread_and_no_file_behind(self) -> None:
        post = b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
        with Running() as server:
            self.assertEqual(server.call("alice", "status")[0], 200)
            before = self.burden(server)
            with contextlib.ExitStack() as stack:
                for number in range(60):
                    plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                    # A reset instead of a good-bye, at each stage.
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    if number % 6:
                        connection = tls("alice").wrap_socket(plain, server_hostname="localhost")
                        stack.enter_context(connection)
                        connection.sendall((b"", b"GET /api", post, post + b"x", STATUS,
                                            STATUS * 50)[number % 6])
                        if number % 2:
                            connection.shutdown(socket.SHUT_WR)  # Half-closed.
                self.assertEqual(server.call("bob", "status")[0], 200)
            eventually(lambda: self.burden(server) <= before, "its threads and files are as before")

    def test_client_that_sends_ahead_without_end_keeps_nobody_waiting(self) -> None:
        with Running() as server, server.connect() as greedy:
            done = threading.Event()

            def ask() -> None:
                greedy.setblocking(False)
                while not done.is_set():
                    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                        greedy.send(STATUS * 200)
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

    def test_tls_that_fails_after_the_handshake_is_told_to_the_client_and_counted_in_the_log(self) -> None:
        broken = {b"\x17\x03\x03\0\x20" + bytes(32): "BAD_RECORD_MAC",
                  b"\x17\x03\x03\x50\0" + bytes(0x5000): "RECORD_OVERFLOW", bytes(32): "PROTOCOL_VERSION"}
        with Running(kubeconfig=path("dead.kubeconfig")) as server:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                for record, alert in list(broken.items()) * 10:
                    with self.subTest(alert, version=version.name), connected(server, version) as connection:
                        connection.sendall(STATUS)
                        socket.socket.sendall(connection, record)
                        time.sleep(0.05)
                        socket.socket.sendall(connection, bytes(20000))  # No reset loses the alert.
                        self.assertRegex(heard(connection), f"ALERT_{alert}$")
            self.assertEqual(server.call("alice", "status")[0], 200)
        lines = server.lines("event=connection ")
        self.assertLessEqual(len(lines), 2 * playground.REFUSAL_LINES, lines)
        self.assertEqual(sum(int(line.rpartition("count=")[2]) for line in lines), 2 * 10 * len(broken))
        for line in lines:
            self.assertRegex(line, r'level=INFO .* outcome=broken client=alice reason="[a-z ]+" count=\d+$')

    def test_every_end_says_good_bye_without_waiting_for_the_client(self) -> None:
        program = altered("playground.STATES['idle'] = playground.STATES['idle']._replace(seconds=2)")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            with self.subTest(version=version.name), contextlib.ExitStack() as stack, \
                    Running("--max_connections_per_client=1", program=program) as server:
                def asked(server: Running = server, version: ssl.TLSVersion = version,
                          stack: contextlib.ExitStack = stack) -> ssl.SSLSocket:
                    connection = stack.enter_context(connected(server, version))
                    self.assertTrue(is_answered(connection))
                    return connection
                first, second = asked(), asked()
                self.assertEqual([heard(first), heard(second)], ["good-bye"] * 2)  # Made room; idle for long.
                asked().unwrap().close()  # The client's own is answered: it raises otherwise.
                half_closed = asked()
                socket.socket.shutdown(half_closed, socket.SHUT_WR)
                self.assertEqual(heard(half_closed), "good-bye")
                last = asked()
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(heard(last), "good-bye")
                self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)

    def test_tls_1_2_has_forward_secrecy_and_authenticated_encryption_only(self) -> None:
        taken, context = set(), tls("alice")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ALL")
        with Running(kubeconfig=path("dead.kubeconfig")) as server:
            for cipher in [offered for offered in context.get_ciphers() if offered["protocol"] != "TLSv1.3"]:
                context.set_ciphers(cipher["name"])
                plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS)
                with contextlib.suppress(OSError), plain, \
                        context.wrap_socket(plain, server_hostname="localhost") as connection:
                    taken.add((connection.cipher() or ("",))[0])
        self.assertEqual(taken, {"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256",
                                 "ECDHE-ECDSA-CHACHA20-POLY1305"})

    def test_client_that_hangs_up_while_it_waits_is_not_waited_for(self) -> None:
        ask = b"GET /api/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        with Running(stand_in("never", "exec sleep 1000"), kubeconfig=path("dead.kubeconfig")) as server:
            with server.begin("create_db", "gone"):
                eventually(lambda: b'connections{state="busy"} 1\n' in server.raw(ask), "it waits")
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)
        self.assertEqual(server.lines("api=create_db"), [])  # It would be answered when its time is up.

    def test_client_that_does_not_read_is_let_go(self) -> None:
        with Running() as server, server.connect() as connection:
            burden = self.burden(server)
            # 20 MB of answers, twice of what all buffers between us hold. They are asked for in so few bytes
            # that these are all there: where both directions are full, TCP itself may not move for minutes.
            connection.sendall(b"GET /api/metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 4000)
            eventually(lambda: self.burden(server) < burden, "the connection has ended")

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
                self.assertTrue(is_answered(connection))
                # Written in place.
                shutil.copyfile(path("new_server/server.crt"), path("exchanged/server/server.crt"))
                eventually(lambda: self.serial(server) != old, "the new one is served")
                # Nobody else is let in than before: it goes on.
                self.assertTrue(is_answered(connection))

    def test_sighup_takes_the_files_up_and_a_new_ca_lets_its_clients_in(self) -> None:
        options = self.key_store("joined")
        gen_cert("carol", store="joining")
        other = tls("")
        other.load_cert_chain(path("joining/carol/carol.crt"), path("joining/carol/carol.key"))
        with Running(*options, "--crl=") as server, server.connect() as connection:
            self.assertTrue(is_answered(connection))
            with open(path("joining/ca/ca.crt"), encoding="utf-8") as file, \
                    open(path("joined/ca/ca.crt"), "a", encoding="utf-8") as bundle:
                bundle.write(file.read())
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: server.lines("tls outcome=reloaded"), "it has reloaded")
            plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS)
            with other.wrap_socket(plain, server_hostname="localhost") as carol:
                self.assertTrue(is_answered(carol))
            self.assertFalse(is_answered(connection))  # Others may be let in now than when it was.

    def test_revoked_client_is_shut_out_within_seconds_while_no_request_of_others_is_lost(self) -> None:
        options = self.key_store("revoking")
        crl = path("revoking/ca/ca.crl")
        with Running(*options, f"--crl={crl}") as server, server.connect("alice") as idle, \
                server.connect("alice") as busy:
            self.assertTrue(is_answered(idle))
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
                self.assertFalse(is_answered(again))
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

        authority = Ca(path("ending/ca/ca.key"), path("ending/ca/ca.crt"))
        shutil.copy(crl, good)
        with Running(*options, f"--crl={crl}") as server:
            def admitted(client: str) -> bool:
                with contextlib.suppress(OSError), server.connect(client) as connection:
                    return is_answered(connection)
                return False
            authority.list_for(1, crl)
            time.sleep(1.5)
            os.utime(crl)  # It is taken up no sooner than it has ended.
            eventually(lambda: server.lines("it has ended"), "the list that has ended is refused")
            with open(crl, "w", encoding="utf-8") as file:
                file.write("garbage")
            eventually(lambda: server.lines("it holds no X509 CRL"),
                       "the list that cannot be read is refused")
            self.assertEqual([admitted(client) for client in ("alice", "bob")], [False, True])
            authority.list_for(6, crl)
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
                            with self.subTest(wrong, version=version.name, method=method):
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


def connected(server: Running, version: ssl.TLSVersion) -> ssl.SSLSocket:
    """Connect with one version of TLS, so that an end without a good-bye is an error."""
    context = tls("alice")
    context.minimum_version = context.maximum_version = version
    return context.wrap_socket(socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS),
                               server_hostname="localhost", suppress_ragged_eofs=False)


def heard(connection: ssl.SSLSocket) -> str:
    """Return what TLS says at a connection's end."""
    try:
        while connection.recv(65536):
            pass
    except OSError as error:
        return str(getattr(error, "reason", error))
    return "good-bye"
