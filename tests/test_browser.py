"""No web page acts for a user whose browser holds the certificate: raw requests, and a real Chromium."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest
from collections.abc import Iterator
from typing import Any

from tests import harness
from tests.harness import KUBECONFIG, Running, WithoutCluster, eventually, path

setUpModule = harness.set_up
tearDownModule = harness.tear_down

POLICIES = "/etc/chromium/policies/managed"


class HostilePages(WithoutCluster):
    def ask(self, api: str, *fields: str, host: str, version: str = "1.1") -> tuple[int, str]:
        """Ask with a browser's header fields; return the status and the error."""
        body = '{"user_id": "mallory"}' if api in ("create_db", "delete_db") else ""
        lines = [f"{'POST' if body else 'GET'} /api/{api} HTTP/{version}", f"Host: {host}", *fields,
                 "Connection: close", *([f"Content-Length: {len(body)}"] if body else [])]
        head, _, content = self.server.raw("\r\n".join([*lines, "", body]).encode()).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(content).get("error", "")

    def test_what_a_page_of_another_origin_asks_is_403_that_says_why_and_nothing_is_done(self) -> None:
        own, port = f"localhost:{self.server.port}", self.server.port
        hostile = (
            ["Sec-Fetch-Site: cross-site"], ["Sec-Fetch-Site: same-site"], ["sec-fetch-site:cross-site"],
            ["Origin: null"], ["Origin:"], ["Origin: https://evil.example"],
            # A scheme and a port are part of an origin: on the way, anybody can answer for http://.
            [f"Origin: http://{own}"], ["Origin: https://localhost"],
            [f"Origin: https://localhost:{port + 1}"], [f"Origin: https://{own}.evil.example"],
            [f"Origin: https://evil.example/{own}"],
            [f"Origin: https://{own}", "Origin: https://evil.example"],
            ["Sec-Fetch-Site: same-origin", "Origin: https://evil.example"],
            ["Sec-Fetch-Site: cross-site", f"Origin: https://{own}"])
        requests = [(fields, api) for fields in hostile for api in ("status", "delete_db")]
        requests += [(hostile[0], api) for api in (
            "create_db", "list_db", "metrics", "none", "heart_beat?user_id=mallory")]
        for fields, api in requests:
            with self.subTest(fields, api=api):
                status, error = self.ask(api, *fields, host=own)
                self.assertEqual(status, 403, error)
                self.assertRegex(error, "[Oo]rigin|page|site")
        self.assertEqual(self.ask("status", *hostile[0], host=own, version="1.0")[0], 403)
        self.assertEqual([line for line in self.server.lines("mallory") if "status=403" not in line], [])

    def test_what_this_servers_own_page_or_no_page_at_all_asks_is_answered(self) -> None:
        own = f"localhost:{self.server.port}"
        for host, fields in (
                (own, []), ("x", []), (own, ["Sec-Fetch-Site: none"]), (own, ["Sec-Fetch-Site: same-origin"]),
                (own, [f"Origin: https://{own}"]), (own, [f"Origin: https://{own.upper()}"]),
                (own.upper(), [f"Origin: https://{own}"]), ("x", ["Origin: https://x"]),
                ("[::1]:1", ["Origin: https://[::1]:1"]),
                (own, [f"Origin: https://{own}", "Sec-Fetch-Site: same-origin"])):
            with self.subTest(host=host, fields=fields):
                # The cluster does not answer; else it would have been done.
                self.assertEqual([self.ask(api, *fields, host=host)[0] for api in ("status", "delete_db")],
                                 [200, 503])

    @unittest.skipUnless(shutil.which("chromium"), "chromium is missing")
    @unittest.skipUnless(shutil.which("pk12util"), "libnss3-tools is missing")
    @unittest.skipUnless(os.access("/etc", os.W_OK), f"{POLICIES} can be written by root only")
    @unittest.skipUnless(KUBECONFIG, "PLAYGROUND_TEST_KUBECONFIG is not set")
    def test_page_of_another_origin_in_chromium_cannot_delete_a_database(self) -> None:
        fetch = "fetch({!r}, {}).then(answer => answer.status + answer.type, String)"
        post = "{{method: 'POST', mode: '{}', credentials: 'include', body: '{{\"user_id\": \"{}\"}}'}}"
        with Running() as server, hostile_page() as port, Chromium(f"https://localhost:{server.port}") as tab:
            self.assertEqual(server.known().call("alice", "create_db", "alice")[0], 200)
            own, get = f"https://localhost:{server.port}", "{mode: 'no-cors', credentials: 'include'}"
            self.assertIn('"version"', tab.go_to(f"{own}/api/status"))
            self.assertEqual(tab.run(fetch.format("/api/status", "{}")), "200basic")
            self.assertEqual(tab.run(fetch.format("/api/delete_db", post.format("cors", "nobody"))),
                             "200basic")
            for name in ("127.0.0.1", "localhost"):  # The latter is of the same site, but for its scheme.
                self.assertEqual(tab.go_to(f"http://{name}:{port}/"), "hostile")
                tab.run(fetch.format(f"{own}/api/delete_db", post.format("no-cors", "alice")))
                tab.run(fetch.format(f"{own}/api/list_db", get))
            eventually(lambda: len(server.lines("status=403")) == 4, "all are refused")
            answer = server.call("alice", "list_db")[1]
            self.assertIn(("alice", "ready"),
                          [(one["user_id"], one["status"]) for one in answer["databases"]])
            server.call("alice", "delete_db", "alice")


class Quiet(http.server.BaseHTTPRequestHandler):
    """Serves one page, without a word."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><title>hostile</title>hostile")

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def hostile_page() -> Iterator[int]:
    """Serve a page of another origin; return its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield site.server_port
        finally:
            site.shutdown()
            thread.join()


class Chromium:
    """A tab of a headless Chromium, told what to do by the DevTools protocol over a pipe."""

    def __init__(self, url: str) -> None:
        """Start it with alice's certificate, which it sends to the URL by itself."""
        self.session: dict[str, str] = {}
        self.numbers, self.heard = itertools.count(1), b""
        with contextlib.ExitStack() as stack:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="playground-chromium-"))
            give_certificate(home)
            os.makedirs(POLICIES, exist_ok=True)
            policy = os.path.join(POLICIES, f"playground-test-{os.getpid()}.json")
            stack.callback(os.remove, policy)
            with open(policy, "w", encoding="utf-8") as file:
                rule = json.dumps({"pattern": url, "filter": {}})
                json.dump({"AutoSelectCertificateForUrls": [rule]}, file)
            (told, self.tell), (self.hear, telling) = os.pipe(), os.pipe()
            # It reads what it is told from descriptor 3, and answers on 4.
            self.process = subprocess.Popen(
                ["bash", "-c", f'exec chromium "$@" 3<&{told} 4>&{telling}', "-", "--headless=new",
                 "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
                 f"--user-data-dir={home}/profile"], env={**os.environ, "HOME": home}, start_new_session=True,
                pass_fds=(told, telling), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(self.end)
            for descriptor in (told, telling):
                os.close(descriptor)
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self.closing = stack.pop_all()

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.close()

    def end(self) -> None:
        """End it with all its processes: its folder can go."""
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        os.close(self.tell)
        os.close(self.hear)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters, **self.session}
        os.write(self.tell, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.heard:
                data = os.read(self.hear, 65536)
                assert data, "chromium ended"
                self.heard += data
            first, _, self.heard = self.heard.partition(b"\0")
            answer = json.loads(first)
            if answer.get("id") == number:
                return answer["result"]

    def go_to(self, url: str) -> str:
        """Open a page; return its text."""
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        eventually(lambda: self.run("location.href + document.readyState") == url + "complete", url)
        return str(self.run("document.body.innerText"))

    def run(self, script: str) -> Any:
        """Run a script in the page; return what it comes to."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return answer["result"]["value"]


def give_certificate(home: str) -> None:
    """Give the browser of a home folder alice's certificate, and its trust to the CA."""
    store, database = path("key_store"), f"sql:{home}/.pki/nssdb"
    os.makedirs(f"{home}/.pki/nssdb")
    for command in (
            ["certutil", "-d", database, "-N", "--empty-password"],
            ["certutil", "-d", database, "-A", "-n", "CA", "-t", "C,,", "-i", f"{store}/ca/ca.crt"],
            ["openssl", "pkcs12", "-export", "-in", f"{store}/alice/alice.crt", "-inkey",
             f"{store}/alice/alice.key", "-passout", "pass:", "-out", f"{home}/alice.p12"],
            ["pk12util", "-d", database, "-i", f"{home}/alice.p12", "-W", "", "-K", ""]):
        subprocess.run(command, check=True, capture_output=True)
