"""Tests of the SQLFlow Playground Server from outside: real processes, certificates, kubectl, API server."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import unittest
import unittest.mock
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import playground
from tests import harness
from tests.harness import (
    DATA_SOURCE,
    KUBECONFIG,
    PATIENCE_SECONDS,
    ROOT,
    Holding,
    Running,
    WithoutCluster,
    altered,
    change_pod,
    checked,
    database_of,
    delete_by_hand,
    eventually,
    kill,
    kubectl,
    lease_of,
    make_leases,
    objects_of,
    password_of,
    path,
    refused,
    stand_in,
    template,
    tls,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down

# ---- What needs no cluster ----------------------------------------------------------------------------


class Names(unittest.TestCase):
    def test_each_id_has_a_name_of_its_own_that_kubernetes_takes(self) -> None:
        ids = ["alice", "Alice", "ALICE", "a.b", "a-b", "a_b", "a--b", "a@b", "x" * 40, "x" * 41, "x" * 64,
               "小明", "小红", "é", "1", "A", "٣", "9-"]
        slugs = [playground.slug(user_id) for user_id in ids]
        self.assertEqual(len(set(slugs)), len(ids))
        for name in slugs:
            self.assertRegex(name, r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
        self.assertEqual(slugs[0], "alice")

    def test_an_id_is_normalised_so_that_both_spellings_are_one_user(self) -> None:
        self.assertEqual(playground.valid_user_id("e\u0301"), "\u00e9")

    def test_password_pieces_are_struck_out_wherever_they_are_cut(self) -> None:
        password = "0123456789abcdef0123456789abcdef"
        encoded = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
        for words in (f'"{password}"', f'...|{password[5:20]}","port":3306', encoded, encoded[7:19]):
            struck = playground.strike_out(words, [password])
            self.assertIn("***", struck)
            self.assertNotRegex(struck, r"[0-9a-f]{6}|[A-Za-z0-9]{8}")
        self.assertEqual(playground.strike_out('secrets "mysql-alice" already exists', [password]),
                         'secrets "mysql-alice" already exists')


# What scripts/fuzz has found, as it prints it. Bytes in which the server and h11 differ on purpose are of use
# here as well.
FOUND = (
    ("head", b"G / HTTP/1.1\r\nHost:x\r\nA:\r\n "), ("head", b"T h HTTP/1.5"),
    ("head", b"\xad b HTTP/1.1\r\nHost:x\r\nE:"),
    ("parameters", b"\x01=%E7%8E\x92"),
    ("parameters", b"\x01" + b"&".join(b"%d=" % number for number in range(300))),
)


@unittest.skipUnless(importlib.util.find_spec("h11"), "needs h11, which scripts/test installs")
class Fuzzed(unittest.TestCase):
    def test_what_the_fuzzer_starts_from_and_has_found_once_holds(self) -> None:
        program = os.path.join(ROOT, "scripts", "fuzz.py")
        specification = importlib.util.spec_from_file_location("fuzz", program)
        assert specification and specification.loader
        fuzz = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(fuzz)
        for name, data in (*FOUND,
                           *((name, seed) for name, (_, seeds) in fuzz.TARGETS.items() for seed in seeds)):
            with self.subTest(name, data=data):
                fuzz.TARGETS[name][0](data)


class Start(unittest.TestCase):
    def test_each_tls_file_that_is_missing_unreadable_or_wrong_is_named_with_a_remedy(self) -> None:
        with open(path("garbage"), "w", encoding="utf-8") as file:
            file.write("-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n")
        subprocess.run(["openssl", "ec", "-in", path("key_store/server/server.key"), "-aes128", "-passout",
                        "pass:x", "-out", path("locked")],
                       check=True, capture_output=True)
        os.mkfifo(path("pipe"))  # Whoever opens it waits for its writer.
        for option in ("ca_crt", "server_key", "server_crt", "crl"):
            for name, remedy in (("nowhere", "gen_cert.sh server"), ("", "name a file"),
                                 ("pipe", "name a file"), ("dead.kubeconfig", "PEM"), ("garbage", "PEM")):
                with self.subTest(option=option, name=name):
                    line = refused(f"--{option}={path(name)}")
                    self.assertIn(f"--{option} {path(name)}", line)
                    self.assertIn(remedy, line)
        self.assertIn("KEY_VALUES_MISMATCH",
                      refused(f"--server_key={path('key_store/alice/alice.key')}"))
        self.assertIn(f"openssl pkey -in {path('locked')} -out", refused(f"--server_key={path('locked')}"))

    def test_template_that_does_not_parse_or_lacks_a_placeholder_is_named(self) -> None:
        def lacking(kind: str, change: Any, expected: str) -> None:
            line = refused(*template("changed.yaml", **{kind: change}))
            self.assertIn(expected, line)
            self.assertIn(path("changed.yaml"), line)
        lacking("Secret", lambda item: item["stringData"].clear(), "stringData: password: ${password}")
        lacking("Pod", lambda item: item["metadata"].update(name="mysql"), "metadata: name: ${name}")
        lacking("Pod", lambda item: item["spec"].update(hostname="${pasword}"),
                "unknown placeholder ${pasword}")
        lacking("Pod", lambda item: item.update(kind="Deployment"), "one Pod and one Secret")
        with open(path("broken.yaml"), "w", encoding="utf-8") as file:
            file.write("a: [")
        self.assertIn("is not YAML", refused(f"--templates={path()}", "--db_template=broken.yaml"))
        self.assertIn("No such file", refused(f"--templates={path()}", "--db_template=none.yaml"))

    def test_missing_kubectl_and_port_in_use_are_named(self) -> None:
        self.assertIn("install kubectl", refused("--kubectl=no-such-program"))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            self.assertIn(f"--port {port}", refused(f"--port={port}"))
        self.assertIn("--context", refused("--namespace=", "--context=nowhere"))
        self.assertIn("--namespace", refused("--namespace=Not_One"))

    def test_value_that_cannot_be_used_is_named_with_what_was_expected_also_by_check(self) -> None:
        for option, expected in (("--port=99999", "up to 65535"), ("--host=nowhere.invalid", "an address of"),
                                 (f"--ready_file={path('nowhere/ready')}", "may write"),
                                 (f"--ready_file={path()}", "may write"),
                                 (f"--templates={path('nowhere')}", "beside playground.py")):
            with self.subTest(option=option):
                self.assertIn(expected, refused(option))
                check = checked(option)
                self.assertEqual(check.returncode, 1)
                self.assertRegex(check.stdout, f"WRONG .*{expected}")
        for option, expected in (("--idle_timeout=1h", "seconds, such as"), ("--port=-1", "from 0 on"),
                                 ("--max_databases=many", "from 0 on"), ("--idel_timeout=1", "see --help")):
            self.assertIn(expected, refused(option))

    def test_program_that_is_no_kubectl_is_named_and_fills_no_log(self) -> None:
        check = checked("--kubectl=/bin/true")
        self.assertEqual((check.returncode, check.stderr), (1, ""))
        self.assertRegex(check.stdout, "WRONG  kubectl runs: .* name the right --kubectl")
        with Running("--kubectl=/bin/true") as server:
            server.wait_for(lambda: server.lines("no Kubernetes API server's"), "the log says what is wrong")
            time.sleep(2)
            self.assertEqual(len(server.lines("Traceback")) + len(server.lines("outcome=lost")), 1)

    def test_help_gives_defaults_and_dashes_work_for_underscores(self) -> None:
        output = subprocess.run([sys.executable, os.path.join(ROOT, "playground.py"), "--help"],
                                capture_output=True, text=True, check=True).stdout
        self.assertIn("50052", output)
        self.assertIn("cannot be read", refused("--ca-crt=nowhere"))


def raw_requests() -> tuple[tuple[int, bytes], ...]:
    """Return requests, each with the status that RFC 9112 and the API give it."""
    good, line = b"Host: x\r\n\r\n", b"GET /api/status HTTP/1.1\r\n"
    post, body = b"POST /api/create_db HTTP/1.1\r\nHost: x\r\n", b'{"user_id": "a"}'
    length = b"Content-Length: %d\r\n" % len(body)
    # What the API itself refuses leaves the connection open; the requests close it by a header field.
    close = b"Connection: close\r\n"
    fields = playground.MAX_HEADER_FIELDS - 2
    others = line + close + b"Host: x\r\nA: "
    filler = b"A: " + b"x" * (playground.MAX_HEAD_BYTES - len(others))
    path_of = b"/api/status?" + b"x" * (
        playground.MAX_REQUEST_LINE_BYTES - len(b"GET /api/status? HTTP/1.1"))
    beat = b"GET /api/heart_beat?%s HTTP/1.1\r\n" + close + good
    coded, ahead = b"Transfer-Encoding: chunked\r\n", line + good  # What follows a body is no request there.
    return (
        (200, line + close + good), (200, b"\r\n" + line + close + good),
        (200, b"GET https://x:1/api/status HTTP/1.1\r\n" + close + good),
        (200, b"GET /api/status HTTP/1.0\r\n\r\n"),
        (200, line + b"Host: [::1]:50052\r\n" + close + b"\r\n"),
        (200, line + b"X:\tspaced \t\r\n" + close + good),
        (200, line + b"A: b\r\n" * fields + close + good),
        (431, line + b"A: b\r\n" * (fields + 1) + close + good),
        (200, line + close + b"Host: x\r\n" + filler + b"\r\n\r\n"),
        (431, line + close + b"Host: x\r\n" + filler + b"x\r\n\r\n"), (431, line + b"A: " + b"x" * 99999),
        (400, b"GET %s HTTP/1.1\r\n" % path_of + close + good),
        (414, b"GET %sx HTTP/1.1\r\n" % path_of + close + good), (414, b"G" * 99999),
        (400, b"GET /api/status\r\n\r\n"), (400, b"GET  /api/status HTTP/1.1\r\n" + good),
        (400, b"GET /api/status HTTP/1.1 \r\n" + good),
        (400, b"get\t/api/status HTTP/1.1\r\n" + good), (400, b"GET /api/status http/1.1\r\n" + good),
        (400, b"GET /a b HTTP/1.1\r\n" + good),
        (505, b"GET /api/status HTTP/2.0\r\n" + good), (400, b"\x16\x03\x01\x02\x00\x01\r\n\r\n"),
        (400, b"GET / HTTP/11\r\n" + good),
        (400, line + b"\r\n"), (400, line + b"Host: x\r\nHost: x\r\n\r\n"),
        (400, line + b"Host: a b\r\n\r\n"), (400, line + b"Host: x/y\r\n\r\n"),
        (400, line + b"Host:\r\n\r\n"), (400, line + b" folded: x\r\n" + good),
        (400, line + b"A: b\r\n c\r\n" + good),
        (400, line + b"A : b\r\n" + good), (400, line + b": b\r\n" + good),
        (400, line + b"A\r\n" + good), (400, line + b"A(: b\r\n" + good),
        (400, line.replace(b"\r", b"") + good), (400, line + b"A: b\n" + good),
        (400, line + b"A: b\rc\r\n" + good),
        (400, line + b"A: b\x00c\r\n" + good), (400, line + b"A: \x01\r\n" + good),
        (400, b"GET /api/status\x00 HTTP/1.1\r\n" + good),
        (501, b"BREW /api/status HTTP/1.1\r\n" + good),
        (405, b"DELETE /api/status HTTP/1.1\r\n" + close + good),
        (200, b"HEAD /api/status HTTP/1.1\r\n" + close + good),
        (405, b"HEAD /api/create_db HTTP/1.1\r\n" + close + good),
        (400, b"\r\nHEAD  /api/status HTTP/1.1\r\n" + good), (400, b"HEAD /api/status HTTP/1.1\r\n\r\n"),
        (501, b"HEAD /api/status HTTP/1.1\r\nTransfer-Encoding: x, chunked\r\n" + good),
        (400, b"HEAD /api/status HTTP/1.1\r\n" + coded + good + b"x\r\n"),
        (414, b"HEAD /" + b"x" * 99999),
        (405, b"OPTIONS /api/status HTTP/1.1\r\n" + close + good),
        (200, b"GET / HTTP/1.1\r\n" + close + good), (200, b"GET https://x HTTP/1.1\r\n" + close + good),
        (200, b"GET HTTP://[::1]:1/api/heart_beat?user_id=a HTTP/1.1\r\n" + close + good),
        *((400, b"%s HTTP/1.1\r\n" % target + good + ahead) for target in (
            b"GET foo/bar", b"GET *", b"OPTIONS *", b"GET example.com:443", b"CONNECT x:443", b"GET ?a",
            b"GET https://]x/api/status", b"GET https://u:p@localhost/api/status", b"GET https:///api/status",
            b"GET https:/api/status", b"GET ftp://x/api/status", b"GET https://x:y/api/status",
            b"GET https://x\\@y/api/status", b"GET /api/status#x", b"GET /api/heart_beat?user_id=a#x",
            b"GET https://x#/api/status", b"GET /api/status%", b"GET /api/%0g", b"GET /api\\status",
            b'GET /api/"status"', b"GET #", b"GET /api/<status>")),
        (404, b"GET /api/ HTTP/1.1\r\n" + close + good),
        (404, b"GET /api/status/ HTTP/1.1\r\n" + close + good),
        (404, b"GET /api/__init__ HTTP/1.1\r\n" + close + good),
        (405, b"GET /api/create_db HTTP/1.1\r\n" + close + good),
        (411, post + b"\r\n"),
        (200, line + close + coded + good + b"0\r\n\r\n"),
        (200, line + close + b"transfer-encoding:\t CHUNKED \r\n" + good + b"000;a=b ; c\r\nA: b\r\n\r\n"),
        (400, line + close + coded + good + b"1\r\nx\r\n0\r\n\r\n"),  # It takes no body.
        (400, post + close + coded + b"\r\n0\r\n\r\n"),  # Nor is that JSON.
        *((400, post + b"%s\r\n\r\n0\r\n\r\n" % fields + ahead) for fields in (
            length + coded[:-2], coded + length[:-2], coded + b"Content-Length: 0", coded + coded[:-2],
            coded + b"Transfer-Encoding: identity", b"Transfer-Encoding: x\r\n" + coded[:-2],
            b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b" " + coded[:-2],
            b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked\x00", b"X: x\n" + coded[:-2],
            b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: x\r" + coded[:-2],
            b"Transfer-Encoding:", b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: 'chunked'",
            b"Transfer-Encoding: chunked;q=1", "Transfer-Encoding: chun\u212aed".encode())),
        (400, post.replace(b"1.1", b"1.0") + coded + b"\r\n0\r\n\r\n" + ahead),
        *((501, post + b"Transfer-Encoding: %s\r\n\r\n0\r\n\r\n" % value + ahead) for value in (
            b"gzip, chunked", b"chunked, chunked", b",chunked")),
        *((400, post + coded + b"\r\n%s\r\nx\r\n0\r\n\r\n" % size + ahead) for size in (
            b"+1", b"-1", b"0x1", b"1_0", b" 1", b"1 ", b"1\n", b"1\r", b"2", b"", b"\r\n1",
            "\uff11".encode(), b"g", b"1,1", b"1;", b"1;a=", b'1;a="', b"1;a\nb", b"1;a\x00",
            b"1 a", b"1;a b", b"1;=b", b"1" * 17, b"1;" + b"a" * playground.MAX_CHUNK_LINE_BYTES)),
        *((400, post + coded + b"\r\n" + chunks + ahead) for chunks in (
            b"1\nx\r\n0\r\n\r\n", b"1\r\nx\n0\r\n\r\n", b"1\r\nx0\r\n\r\n", b"1\r\nxy\r\n0\r\n\r\n",
            b"1\r\nx\r\n\r\n", b"0\n\n", b"0\r\n\n", b"0\r\n\r\r\n", b"0\r\nA\r\n\r\n", b"0\r\n A: b\r\n\r\n",
            b"0\r\nA : b\r\n\r\n", b"0\r\nA: b\n\r\n", b"0\r\nA: " + b"a" * playground.MAX_CHUNK_LINE_BYTES)),
        *((413, post + coded + b"\r\n" + chunks) for chunks in (
            b"%x\r\n" % (playground.MAX_BODY_BYTES + 1), b"%x\r\n" % 2 ** 63, b"f" * 16 + b"\r\n",
            b"1;x\r\na\r\n" * (playground.MAX_BODY_BYTES + 1))),
        (417, post + length + b"Expect: tea\r\n\r\n" + body),
        *((400, post + b"Content-Length: %s\r\n\r\n" % value + body) for value in (
            b"", b"+16", b"-1", b"1_6", b"16, 16", b"0x10", b"16.0", "١٦".encode(), b"9" * 30)),
        (400, post + length + length + b"\r\n" + body),
        (413, post + b"Content-Length: %d\r\n\r\n" % (playground.MAX_BODY_BYTES + 1)),
        (413, post + b"Content-Length: 999999\r\n\r\n" + b"x" * 999999),
        *((400, post + close + b"Content-Length: %d\r\n\r\n" % len(text) + text) for text in (
            b"", b"user_id=a", b"[]", b"null", b'"a"', b'{"user_id": "a"', b'{"user_id": 1}',
            b'{"user_id": ["a"]}', b'{"user_id": null}', b"{}",
            b'{"user_id": "a", "user_id": "b"}', b'{"user_id": "a", "x": NaN}',
            b'{"user_id": "a", "image": "b"}', b"[" * 9999, b"{'user_id': 'a'}",
            b'\xef\xbb\xbf{"user_id": "a"}', '{"user_id": "a"}'.encode("utf-16"), b'{"user_id": "\xff"}',
            b'{"user_id": "\\ud800"}',
            b'{"user_id": ""}', b'{"user_id": "-a"}', b'{"user_id": ".a"}', b'{"user_id": "a b"}',
            b'{"user_id": "a/b"}',
            b'{"user_id": "a\\u0000"}', b'{"user_id": "a\\n"}', '{"user_id": "²"}'.encode(),
            b'{"user_id": "%s"}' % (b"x" * 65),
            b'{"user_id": "\\u0301a"}', b'{"user_id": "a$(id)"}', b'{"user_id": ' + b"9" * 9999 + b"}")),
        (400, b"GET /api/status?x=1 HTTP/1.1\r\n" + close + good),
        (400, line + close + b"Content-Length: 1\r\n" + good + b"x"),
        (400, b"POST /api/create_db?user_id=a HTTP/1.1\r\n" + close + length + good + body),
        *((200, beat % query) for query in (b"user_id=a", b"user_id=%61", "user_id=王".encode(),
                                            b"user_id=%E7%8E%8B", b"user_id=a@b.c_d-e")),
    )


class Requests(unittest.TestCase):
    """HTTP without a server."""

    def test_raw_requests_get_their_status_from_functions_of_bytes_alone(self) -> None:
        for status, raw in raw_requests():
            with self.subTest(raw[:120]):
                found = 200
                try:
                    request, rest = playground.take_head(raw)
                    assert request
                    request, _, whole = playground.take_body(request, rest)
                    assert whole
                    playground.route(request)
                except playground.ApiError as error:
                    found = error.status
                self.assertEqual(found, status)

    def test_chunked_body_is_the_same_in_whatever_pieces_it_comes(self) -> None:
        head = b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        start, _ = playground.take_head(head)
        assert start
        most = b"%X\r\n%s\r\n0\r\n\r\n" % (playground.MAX_BODY_BYTES, b"x" * playground.MAX_BODY_BYTES)
        for chunks, body in ((b'6\r\n{"a":1\r\n1\r\n}\r\n0\r\n\r\n', b'{"a":1}'), (most, most[6:-7]),
                             (b'01;a;b="\\"\\\\;" ; c = d\r\n0\r\n0\r\n\r\n', b"0"), (b"0\r\n\r\n", b""),
                             (b"4\r\n\r\n0\r\r\n2\r\n\n\r\r\n00\r\nA: b\r\nC:\r\n\r\n", b"\r\n0\r\n\r")):
            stream = chunks + b"GET"
            for size in (1, 2, 3, 7, 4096, len(stream)):
                request, buffer, at, whole = start, b"", 0, False
                while not whole:
                    self.assertLess(at, len(chunks), chunks[:50])
                    request, buffer, whole = playground.take_body(request, buffer + stream[at:at + size])
                    at += size
                self.assertEqual((request.body, buffer + stream[at:]), (body, b"GET"), (chunks[:50], size))

    def test_head_that_is_meant_to_take_long_to_parse_does_not(self) -> None:
        started = time.monotonic()
        # 0.8 s each, and nobody else is served meanwhile, where a pattern tries every split of the spaces.
        for _ in range(20):
            with self.assertRaises(playground.ApiError):
                playground.parse_head(b"GET / HTTP/1.1\r\nX:" + b" " * 16000 + b"\x01")
            with self.assertRaises(playground.ApiError):
                playground.parse_head(b"GET /" + b"%aa" * 2700 + b"# HTTP/1.1\r\nHost: x")
        self.assertLess(time.monotonic() - started, 5)


class Wire(WithoutCluster):
    """The network and HTTP, at a server whose cluster does not answer."""

    def test_cluster_that_does_not_answer_is_503_to_what_needs_it_and_beats_are_200(self) -> None:
        eventually(lambda: "does not answer" in self.server.call("alice", "status")[1]["cluster"],
                   "the server has tried")
        for api in ("create_db", "delete_db", "list_db"):
            status, answer, headers = self.server.call("alice", api, None if api == "list_db" else "alice")
            self.assertEqual((status, answer["error"]), (503, "the cluster does not answer: ask again"))
            self.assertGreater(int(headers["retry-after"]), 0)
        self.assertEqual(self.server.call("alice", "heart_beat", "alice")[:2],
                         (200, {"user_id": "alice", "status": "unknown"}))

    def test_answers_are_json_and_say_nothing_of_the_server(self) -> None:
        answer = self.server.raw(b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        self.assertEqual(json.loads(body)["version"], playground.__version__)
        for field in (b"Content-Type: application/json", b"Cache-Control: no-store",
                      b"X-Content-Type-Options: nosniff", b"Date: "):
            self.assertIn(b"\r\n" + field, head)
        self.assertNotRegex(head.lower(), b"server:|python|ssl")

    def test_raw_requests_get_the_status_that_rfc_9112_gives_them(self) -> None:
        for status, request in raw_requests():
            with self.subTest(request[:120]):
                answer = self.server.raw(request)
                self.assertEqual(answer[:12], b"HTTP/1.1 %d" % status, answer)
                self.assertEqual(len(re.findall(rb"HTTP/1.1 \d", answer)), 1, "nothing else is a request")
                content = answer.partition(b"\r\n\r\n")[2]
                if request.lstrip().startswith(b"HEAD "):
                    self.assertEqual(content, b"")
                else:
                    self.assertEqual("error" in json.loads(content), status != 200)

    def ask(self, line: str, *fields: str, body: str = "") -> tuple[int, dict[str, str], str]:
        """Return the status, the header fields and the content."""
        lines = [f"{line} HTTP/1.1", "Host: x", "Connection: close", *fields, "", body]
        head, _, content = self.server.raw("\r\n".join(lines).encode()).decode().partition("\r\n\r\n")
        status, *given = head.split("\r\n")
        return int(status.split()[1]), dict(field.lower().split(": ", 1) for field in given), content

    def test_head_is_answered_as_get_without_the_body(self) -> None:
        for name in ("status", "none", "create_db", "list_db", "heart_beat", "heart_beat?user_id=a"):
            with self.subTest(name):
                status, fields, content = self.ask(f"HEAD /api/{name}")
                self.assertEqual(content, "")
                got_status, got, content = self.ask(f"GET /api/{name}")
                self.assertEqual((status, fields["content-length"]), (got_status, str(len(content))))
                for field in ("date", "retry-after"):  # The time, and what is spread a little.
                    self.assertEqual(fields.pop(field, None) is None, got.pop(field, None) is None)
                self.assertEqual(fields, got)

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
                    self.assertEqual((status, headers.get("allow")), (405, "get, head"), content)
                    self.assertIn("GET", json.loads(content)["error"])
        self.assertEqual(self.ask("POST /api/create_db")[0], 411)

    def test_plus_in_a_query_is_400_that_says_what_to_write_instead(self) -> None:
        status, _, content = self.ask("GET /api/heart_beat?user_id=alice+smith")
        self.assertEqual(status, 400)
        self.assertRegex(json.loads(content)["error"], r"\+|%2B")

    def test_refused_beat_is_held_back_so_that_a_loop_without_pause_stays_slow(self) -> None:
        queries = (b"", b"user_id", b"user_id=", b"user_id=a&user_id=a", b"user_id=a&x=1", b"user_id=%zz",
                   b"user_id=%ff", b"user_id=a+b", b"&user_id=a")

        def beat(query: bytes) -> bytes:
            return self.server.raw(
                b"GET /api/heart_beat?%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % query)
        started = time.monotonic()
        with ThreadPoolExecutor(len(queries)) as pool:
            for query, answer in zip(queries, pool.map(beat, queries)):
                self.assertEqual(answer[:12], b"HTTP/1.1 400", query)
        self.assertGreaterEqual(time.monotonic() - started, playground.REFUSED_BEAT_SECONDS)

    def test_content_type_decides_nothing_and_connections_are_kept(self) -> None:
        connection = http.client.HTTPSConnection("localhost", self.server.port, context=tls("alice"),
                                                 timeout=PATIENCE_SECONDS)
        with contextlib.closing(connection):
            for kind in ("application/x-www-form-urlencoded", "application/json", "text/plain"):
                connection.request("POST", "/api/delete_db", '{"user_id": "a"}', {"Content-Type": kind})
                response = connection.getresponse()
                self.assertEqual(response.status, 503, response.read())
                response.read()
            for body in (iter([b'{"user_', b'id": "a"}']), iter([b'{"user_id": "a"}'])):  # In chunks.
                connection.request("POST", "/api/delete_db", body, encode_chunked=True,
                                   headers={"Transfer-Encoding": "chunked"})
                response = connection.getresponse()
                self.assertEqual((response.status, response.headers["Keep-Alive"]), (503, "timeout=75"))
                response.read()
            socket_used = connection.sock
            connection.request("GET", "/api/status")
            self.assertEqual(connection.getresponse().status, 200)
            self.assertIs(connection.sock, socket_used)

    def test_requests_sent_ahead_are_answered_in_order_and_none_follows_a_framing_error(self) -> None:
        status = b"GET /api/status HTTP/1.1\r\nHost: x\r\n"
        chunked = b"POST /api/delete_db HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunked += b'0005\r\n{"use\r\nb;x\r\nr_id": "a"}\r\n0\r\nA: b\r\n\r\n'
        answers = self.server.raw(chunked * 2 + status + b"Connection: close\r\n\r\n")
        self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answers), [b"503", b"503", b"200"])
        answers = self.server.raw(status + b"\r\n" + status
                                  + b"\r\nGET /api/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answers), [b"200", b"200", b"404"])
        answers = self.server.raw(b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n"
                                  + status + b"\r\n")
        self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answers), [b"400"])

    def test_http_1_0_is_kept_if_it_asks_for_it(self) -> None:
        old = b"GET /api/status HTTP/1.0\r\n%s\r\n"
        answers = self.server.raw(old % b"Connection: x, Keep-Alive\r\n" + old % b"" + old % b"")
        self.assertEqual(re.findall(rb"HTTP/1.1 200|\nConnection: .+|\nKeep-Alive: .+", answers), [
            b"HTTP/1.1 200", b"\nConnection: keep-alive\r", b"\nKeep-Alive: timeout=75\r",
            b"HTTP/1.1 200", b"\nConnection: close\r"])
        for fields in (b"", b"Connection: keep-alive, close\r\n", b"Keep-Alive: timeout=9\r\n"):
            self.assertEqual(self.server.raw(old % fields + old % b"").count(b"HTTP/1.1 200"), 1, fields)

    def test_requests_are_answered_however_records_carry_them(self) -> None:
        request, answers = b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n", b""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = tls("alice").wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", self.server.port), PATIENCE_SECONDS) as plain:
            def until_done(action: Any) -> Any:
                while True:
                    try:
                        return action()
                    except ssl.SSLWantReadError:
                        plain.sendall(outgoing.read())
                        incoming.write(plain.recv(65536))
            until_done(client.do_handshake)
            for part in (request, request, request[:9], request[9:], request + request[:5], request[5:]):
                client.write(part)
            records = outgoing.read()
            # Inside a record's head, and inside a record.
            for start, end in ((0, 3), (3, -20), (-20, len(records))):
                plain.sendall(records[start:end])
                time.sleep(0.2)
            while answers.count(b"HTTP/1.1 200") < 5:
                answers += until_done(lambda: client.read(65536))

    def test_expecting_client_is_told_to_go_on(self) -> None:
        with self.server.connect() as connection:
            connection.sendall(
                b"POST /api/delete_db HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n"
                b"Expect: 100-continue\r\n\r\n")
            self.assertEqual(connection.recv(1000), b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(b'{"user_id": "a"}')
            self.assertTrue(connection.recv(1000).startswith(b"HTTP/1.1 503"))

    def test_a_byte_a_second_ends_at_the_deadline(self) -> None:
        requests = (b"GET /api/status HTTP/1.1\r\n",
                    b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n")

        def trickle(start: bytes) -> bytes:
            with self.server.connect() as connection:
                connection.sendall(start)
                with contextlib.suppress(OSError):
                    for _ in range(int(playground.HEAD_SECONDS) + 5):
                        connection.settimeout(1)
                        with contextlib.suppress(socket.timeout):
                            return connection.recv(1000)
                        connection.sendall(b"x")
            return b""
        with ThreadPoolExecutor(2) as pool:
            for answer in pool.map(trickle, requests):
                self.assertEqual(answer[:12], b"HTTP/1.1 408")


# ---- On a cluster -------------------------------------------------------------------------------------


@unittest.skipUnless(KUBECONFIG, "no cluster: PLAYGROUND_TEST_KUBECONFIG is not set")
class Databases(unittest.TestCase):
    """What users are given by one server with a spare, and by another that makes each database anew."""

    server: ClassVar[Running]
    other: ClassVar[Running]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Running("--sweep_interval=1").known()
        cls.addClassCleanup(cls.server.__exit__, None)
        cls.other = Running("--spare_databases=0", "--sweep_interval=3600").known()
        cls.addClassCleanup(cls.other.__exit__, None)

    def create(self, user_id: str, client: str = "alice", server: Running | None = None) -> str:
        status, answer, _ = (server or self.server).call(client, "create_db", user_id)
        self.assertEqual(status, 200, answer)
        self.assertEqual((answer["user_id"], answer.get("note")), (user_id, None))
        return str(answer["data_source"])

    def wait_for(self, user_id: str, status: str, server: Running | None = None) -> None:
        one = server or self.server
        eventually(lambda: one.call("alice", "heart_beat", user_id)[1]["status"] == status,
                   f"the server knows that it is {status}")

    def create_lost(self, user_id: str, lost: str, server: Running | None = None) -> str:
        """Create a database in the place of one that was lost, which is said once; return its name."""
        status, answer, _ = (server or self.server).call("alice", "create_db", user_id)
        self.assertEqual((status, answer.get("note")), (200, playground.LOST), answer)
        self.assertEqual(self.create(user_id, server=server), answer["data_source"])
        self.assertNotEqual(database_of(user_id), lost)
        return database_of(user_id)

    def test_data_source_is_what_sqlflow_parses_and_the_cluster_holds(self) -> None:
        match = DATA_SOURCE.fullmatch(self.create("plain"))
        assert match
        lease, name = lease_of("plain"), database_of("plain")
        self.assertRegex(name, r"^mysql-[a-z0-9]{16,}$")
        secret, pod = (json.loads(kubectl("get", kind, name, "-o", "json")) for kind in ("secret", "pod"))
        self.assertEqual(match.group(1, 2, 4, 5, 6, 7),
                         ("mysql", "root", pod["status"]["podIP"], "3306", "", "?maxAllowedPacket=0"))
        self.assertEqual(match[3], password_of(name))
        self.assertRegex(match[3], r"^[A-Za-z0-9_-]{24,}$")
        self.assertTrue(secret["immutable"])
        database, user = {playground.DATABASE: name[len("mysql-"):]}, {playground.USER: "plain"}
        for item, labels in ((lease, user), (secret, {**user, **database}), (pod, database)):
            self.assertLessEqual({**labels, **playground.OURS}.items(), item["metadata"]["labels"].items())
            self.assertIn("app.kubernetes.io/name", item["metadata"]["labels"])
        self.assertNotIn(playground.DATABASE, lease["metadata"]["labels"])  # By which databases are deleted.
        noted = lease["metadata"]["annotations"]
        self.assertEqual((noted[playground.USER_ID], noted[playground.CLIENT]), ("plain", "alice"))
        for moment in ("acquireTime", "renewTime"):
            self.assertRegex(lease["spec"][moment], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")

    def test_warm_request_starts_no_process(self) -> None:
        first = self.create("warm", server=self.other)
        count = self.other.kubectls()
        self.assertEqual([self.create("warm", server=self.other) for _ in range(5)], [first] * 5)
        self.assertEqual(self.other.call("alice", "heart_beat", "warm")[1],
                         {"user_id": "warm", "status": "ready"})
        self.assertEqual(self.other.kubectls(), count)

    def test_users_at_once_get_databases_of_their_own_and_one_user_twice_gets_one(self) -> None:
        users = ["twin-a", "twin-b", "same", "same", "same"]
        with ThreadPoolExecutor(len(users)) as pool:
            sources = list(pool.map(self.create, users))
        self.assertEqual(len(set(sources)), 3)
        self.assertEqual(len(set(sources[2:])), 1)

    def test_create_delete_create_ends_in_one_new_database(self) -> None:
        first = self.create("again")
        self.assertEqual(self.server.call("alice", "delete_db", "again")[:2],
                         (200, {"user_id": "again", "status": "absent"}))
        self.assertNotEqual(self.create("again"), first)
        eventually(lambda: len(objects_of("again")) == 3, "the first one is gone")
        for _ in range(2):  # The second click is safe.
            self.assertEqual(self.server.call("alice", "delete_db", "again")[0], 200)
        eventually(lambda: not objects_of("again"), "the objects are gone")
        self.assertEqual(self.server.call("alice", "heart_beat", "again")[1]["status"], "absent")

    def test_ids_of_any_script_have_objects_of_their_own(self) -> None:
        users = ["case", "Case", "CASE", "x" * 64, "小明", "user@example.org", "a--b", "é", "9"]
        with ThreadPoolExecutor(len(users)) as pool:
            self.assertEqual(len(set(pool.map(self.create, users))), len(users))
        for user in users:
            self.assertEqual(len(objects_of(user)), 3, user)
            self.assertEqual(self.server.call("alice", "heart_beat", user)[1],
                             {"user_id": user, "status": "ready"})

    def test_another_client_gets_403_and_learns_nothing_until_a_maintainer_hands_over(self) -> None:
        source = self.create("mine")
        for api in ("create_db", "heart_beat", "delete_db"):
            self.assertEqual(self.server.call("bob", api, "mine")[:2],
                             (403, {"error": "this user_id belongs to another client"}))
        self.assertNotIn("mine",
                         [entry["user_id"] for entry in self.server.call("bob", "list_db")[1]["databases"]])
        kubectl("annotate", "lease", "user-mine", "--overwrite", f"{playground.CLIENT}=bob")
        eventually(lambda: self.server.call("bob", "heart_beat", "mine")[0] == 200,
                   "the maintainer's hand-over is known")
        self.assertEqual(self.create("mine", "bob"), source)
        self.assertEqual(self.server.call("alice", "create_db", "mine")[0], 403)

    def test_list_tells_the_last_beat(self) -> None:
        self.create("listed", "bob")
        self.server.call("bob", "heart_beat", "listed")
        entries = {entry["user_id"]: entry for entry in self.server.call("bob", "list_db")[1]["databases"]}
        self.assertEqual(entries["listed"]["status"], "ready")
        self.assertRegex(entries["listed"]["last_heart_beat"], r"^20..-..-..T..:..:..Z$")

    def test_class_of_60_is_served_in_a_few_kubectls(self) -> None:
        before = len(self.other.lines("kubectl verb=create"))
        answers = self.other.create_at_once([f"class-{number}" for number in range(60)])
        self.assertEqual({status for status, _ in answers}, {200})
        self.assertEqual(len({answer["data_source"] for _, answer in answers}), 60)
        self.assertLessEqual(len(self.other.lines("kubectl verb=create")) - before, 3)
        answers = self.other.call_at_once("delete_db", [f"class-{number}" for number in range(60)])
        self.assertEqual({status for status, _ in answers}, {200})

    def test_lease_that_is_not_ours_is_409_for_its_user_alone_and_stays(self) -> None:
        make_leases("taken")
        kubectl("label", "lease", "user-taken", "app.kubernetes.io/managed-by-")
        before = lease_of("taken")
        answers = self.server.create_at_once([*(f"beside-{number}" for number in range(8)), "taken"])
        self.assertEqual([status for status, _ in answers], [200] * 8 + [409])
        self.assertIn("user-taken", answers[-1][1]["error"])
        self.assertEqual(self.server.call("alice", "delete_db", "taken")[0], 409)
        eventually(lambda: objects_of("taken") == ["lease/user-taken"], "what was made beside it is removed")
        self.assertEqual(lease_of("taken"), before)

    def test_id_whose_name_is_another_ids_is_409(self) -> None:
        make_leases("Collides")
        kubectl("annotate", "lease", f"user-{playground.slug('Collides')}", "--overwrite",
                f"{playground.USER_ID}=collided")
        before = lease_of("Collides")
        for api in ("create_db", "delete_db"):
            eventually(lambda api=api: self.server.call("alice", api, "Collides")[0] == 409, "it is known")
        self.assertEqual(self.server.call("bob", "create_db", "Collides")[0], 403)
        self.assertEqual(lease_of("Collides"), before)

    def test_failure_to_look_whose_a_name_is_fails_nobody_else(self) -> None:
        make_leases("foreign")
        kubectl("label", "lease", "user-foreign", "app.kubernetes.io/managed-by-")
        option = stand_in("blind", 'case "$*" in *" get -f "*) '
                          'echo "Error from server (Forbidden): no" >&2; exit 1;; esac')
        with Running(option).known() as server:
            answers = server.create_at_once([*(f"around-{number}" for number in range(8)), "foreign"])
            self.assertEqual([status for status, _ in answers], [200] * 8 + [502])

    def test_two_clients_who_race_for_an_id_on_two_servers_are_one_owner_and_one_403(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            for number in range(10):
                racers = {client: pool.submit(server.call, client, "create_db", f"raced-{number}")
                          for client, server in (("alice", self.server), ("bob", self.other))}
                statuses = {client: answer.result()[0] for client, answer in racers.items()}
                owner = lease_of(f"raced-{number}")["metadata"]["annotations"][playground.CLIENT]
                self.assertEqual(statuses, {**dict.fromkeys(racers, 403), owner: 200})
        for number in range(10):
            eventually(lambda number=number: len(objects_of(f"raced-{number}")) == 3,
                       "what the other one made is removed")

    def test_pod_that_was_deleted_or_evicted_is_absent_and_its_user_is_told_of_another_database_once(
        self) -> None:
        for user in ("deleted", "evicted"):
            with self.subTest(user):
                self.create(user)
                lost = database_of(user)
                if user == "deleted":
                    delete_by_hand(f"pod/{lost}")
                else:
                    change_pod(lost, phase="Failed", reason="Evicted")
                self.wait_for(user, "absent")
                listed = self.server.call("alice", "list_db")[1]["databases"]
                self.assertIn((user, "absent"), [(entry["user_id"], entry["status"]) for entry in listed])
                self.create_lost(user, lost)
                eventually(lambda user=user: len(objects_of(user)) == 3, "the sweep removes what is left")

    def test_note_of_a_lost_database_stays_until_a_client_could_take_it(self) -> None:
        creating = Holding("creating", '*" create "*--validate=false*', now=False)
        # Of a template of its own: another server's spare would be given without making anything.
        own = template("untold.yaml", Pod=lambda item: item["metadata"].update(annotations={"for": "one"}))
        with Running("--spare_databases=0", *own, creating.option).known() as one:
            one.call("alice", "create_db", "untold")
            delete_by_hand(f"pod/{(lost := database_of('untold'))}")
            self.wait_for("untold", "absent", one)
            creating.begin()
            with one.begin("create_db", "untold"):
                eventually(lambda: database_of("untold") != lost, "another one is under way")
            creating.let_go()
            self.wait_for("untold", "ready", one)  # Whoever asked has hung up before.
            self.create_lost("untold", lost, one)

    def test_secret_deleted_by_hand_beside_its_pod_is_put_back_with_its_password(self) -> None:
        source, name = self.create("unlocked"), database_of("unlocked")
        delete_by_hand(f"secret/{name}")
        self.wait_for("unlocked", "starting")
        self.assertEqual(self.create("unlocked"), source)
        self.assertEqual(sorted(objects_of("unlocked")),
                         ["lease/user-unlocked", f"pod/{name}", f"secret/{name}"])

    def test_secret_deleted_while_no_server_ran_costs_the_data_and_the_answer_says_so(self) -> None:
        with Running("--spare_databases=0").known() as one:
            self.create("forgotten", server=one)
        delete_by_hand(f"secret/{(lost := database_of('forgotten'))}")
        program = altered("playground.HALF_A_SPARE_SECONDS = 0.1")
        with Running("--spare_databases=0", "--sweep_interval=0.5", program=program).known() as another:
            self.create_lost("forgotten", lost, another)
            eventually(lambda: not kubectl("get", "pod", lost, "--ignore-not-found"), "its Pod is removed")

    def test_secret_whose_user_label_was_removed_by_hand_is_nobody_elses_and_gets_it_again(self) -> None:
        source, name = self.create("relabelled"), database_of("relabelled")
        kubectl("label", "secret", name, f"{playground.USER}-")
        self.create("next-comer")
        self.assertNotEqual(database_of("next-comer"), name)
        self.assertEqual(self.create("relabelled"), source)
        self.assertIn(f"secret/{name}", objects_of("relabelled"))

    def test_secret_without_the_label_of_all_that_is_ours_is_named_and_untouched(self) -> None:
        source, name = self.create("unlabelled"), database_of("unlabelled")
        kubectl("label", "secret", name, "app.kubernetes.io/managed-by-")
        self.wait_for("unlabelled", "starting")
        before = self.server.kubectls()
        status, answer, _ = self.server.call("alice", "create_db", "unlabelled")
        self.assertEqual((status, "label" in answer.get("error", "")), (409, True), answer)
        self.assertLess(self.server.kubectls(), before + 10)
        kubectl("label", "secret", name, "app.kubernetes.io/managed-by=sqlflow-playground")
        self.wait_for("unlabelled", "ready")
        self.assertEqual(self.create("unlabelled"), source)

    def test_address_that_moves_is_told_by_beats_of_all_servers_until_it_was_answered_with_a_note(
        self) -> None:
        def beats() -> list[Any]:
            return [server.call("alice", "heart_beat", "moving")[1] for server in (self.server, self.other)]
        self.create("moving")
        eventually(lambda: lease_of("moving")["metadata"]["annotations"].get(playground.ADDRESS),
                   "the address that was answered is written down")
        change_pod(database_of("moving"), podIP="127.99.0.1", podIPs=[{"ip": "127.99.0.1"}])
        stays = {"user_id": "moving", "status": "ready"}
        eventually(lambda: beats() == [{**stays, "moved": True}] * 2, "both tell")
        status, answer, _ = self.server.call("alice", "create_db", "moving")
        self.assertEqual((status, answer["note"]), (200, playground.MOVED))
        self.assertIn("@tcp(127.99.0.1:3306)", answer["data_source"])
        self.assertEqual(self.create("moving"), answer["data_source"])
        eventually(lambda: beats() == [stays] * 2, "it is written down")

    def test_table_that_is_late_answers_no_old_password_and_takes_nothing_from_anybody(self) -> None:
        with Running("--spare_databases=0").known() as late:
            old = self.create("stale", server=late)
            stopped = [late.blind("secrets"), late.blind("pods")]
            self.assertEqual(self.server.call("alice", "delete_db", "stale")[0], 200)
            new = self.create("stale")
            self.assertNotEqual(new, old)
            eventually(lambda: late.call("alice", "create_db", "stale")[1].get("data_source") == new,
                       "the new one is answered")
            stopped.append(late.blind("leases"))
            self.create("unseen")
            self.assertEqual(late.call("bob", "delete_db", "unseen")[0], 403)
            self.assertEqual(late.call("bob", "create_db", "unseen")[0], 403)
            self.assertEqual(late.call("alice", "delete_db", "unseen")[0], 200)
            eventually(lambda: not objects_of("unseen"), "it is deleted")
            kill(stopped)

    def test_restart_loses_nothing_and_another_server_answers_the_same(self) -> None:
        source = self.create("shared")
        self.assertEqual(self.create("shared", server=self.other), source)
        with Running().known() as restarted:
            self.assertEqual(self.create("shared", server=restarted), source)
            self.assertEqual(restarted.call("bob", "create_db", "shared")[0], 403)

    def test_limits_on_databases_are_429_and_name_themselves(self) -> None:
        self.create("counted")
        for option, words in (("--max_databases=1", "this playground may have 1"),
                              ("--max-databases-per-client=1", "one client may have 1")):
            with Running(option).known() as other:
                status, answer, headers = other.call("alice", "create_db", "one-too-many")
                self.assertEqual((status, words in answer["error"], "retry-after" in headers),
                                 (429, True, True), answer)
                self.assertEqual(other.call("alice", "create_db", "counted")[0], 200)

    def test_api_servers_error_that_quotes_a_password_reaches_neither_client_nor_log(self) -> None:
        template("number.yaml", Secret=lambda item: item["stringData"].update(port=3306))
        made = playground.Template(path("number.yaml"))
        cluster = playground.Cluster(playground.Kubectl("kubectl", "", harness.namespace), made,
                                     playground.Settings(0, 0, 0, 60, 0))
        order = playground.Order(lambda _: None, "quoted")
        order.creates = made.objects_of("quoted", "5ecret0123456789abcdef5ecret0123")[:1]
        with unittest.mock.patch.dict(os.environ, KUBECONFIG=KUBECONFIG), \
                self.assertLogs("playground") as logs:
            cluster.api.carry_out([order])
        [(_, outcome)] = order.failures
        told = playground.told(outcome).message
        self.assertIn("outcome=invalid", logs.output[0])
        self.assertIn("***", logs.output[0])
        for text in (str(outcome), told, *logs.output):
            self.assertNotIn("5ecret", text)
        self.assertIn("invalid", told)

    def test_stopping_server_finishes_what_is_in_flight(self) -> None:
        creating = Holding("creating-last", '*" create "*--validate=false*')
        with Running("--sweep_interval=3600", creating.option).known() as one, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(one.call, "alice", "create_db", "last-minute")
            creating.wait()
            one.process.send_signal(signal.SIGTERM)
            eventually(lambda: one.lines("event=stop"), "it has been told to stop")
            creating.let_go()
            self.assertEqual(answer.result()[0], 200)
            self.assertEqual(answer.result()[2]["connection"], "close")
            self.assertEqual(one.process.wait(PATIENCE_SECONDS), 0)


if __name__ == "__main__":
    unittest.main(warnings="error")
