"""Tests of the SQLFlow Playground Server, seen from outside: real processes, certificates, kubectl and API server.

PLAYGROUND_TEST_KUBECONFIG names the kubeconfig of a cluster whose pods become ready (a namespace is
made there and removed at the end); without it the tests that need a cluster are skipped, by name.
PLAYGROUND_TEST_KUBECTL is the server's kubectl, if it is not to be the one on the PATH.
"""

from __future__ import annotations

import base64
import calendar
import contextlib
import glob
import http.client
import importlib.util
import json
import os
import re
import resource
import secrets
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import yaml

import playground

HERE = os.path.dirname(os.path.abspath(__file__))
KUBECONFIG = os.environ.get("PLAYGROUND_TEST_KUBECONFIG", "")
REAL = bool(KUBECONFIG) and "PLAYGROUND_TEST_DEVCLUSTER" not in os.environ  # A whole Kubernetes API.
KUBECTL = os.environ.get("PLAYGROUND_TEST_KUBECTL", "kubectl")
DATA_SOURCE = re.compile(r"^(\w+)://(.*):(.*)@tcp\(([.a-zA-Z0-9\-]*):?([0-9]*)\)/(\w*)(\?.*)?$")  # SQLFlow's own
PATIENCE_SECONDS = 60.0  # Generous: machines are slow at times. No test waits for it unless it fails.

folder = ""  # Of this run: certificates, kubeconfigs, stand-ins for kubectl, logs.
# What all servers of this run answered, and what their processes showed of themselves to others: see no_secret_leaked.
passwords: set[str] = set()
refusals: list[str] = []
shown: set[bytes] = set()
servers: set[int] = set()
namespace = ""


def setUpModule() -> None:
    global folder, namespace
    folder = tempfile.mkdtemp(prefix="playground-test-")
    namespace = f"playground-test-{os.getpid()}-{secrets.token_hex(4)}"  # pytest may come here again, while the last one still goes.
    unittest.addModuleCleanup(shutil.rmtree, folder)
    unittest.addModuleCleanup(no_secret_leaked)
    os.mkdir(path("tmp"))
    done = threading.Event()
    looker = threading.Thread(target=look_at_processes, args=(done,))
    looker.start()
    unittest.addModuleCleanup(looker.join)
    unittest.addModuleCleanup(done.set)
    for name in ("server", "alice", "bob"):
        gen_cert(name)
    with open(path("dead.kubeconfig"), "w", encoding="utf-8") as file:  # Nothing listens on port 1.
        yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "dead",
                        "clusters": [{"name": "dead", "cluster": {"server": "https://127.0.0.1:1"}}],
                        "users": [{"name": "dead", "user": {"token": "none"}}],
                        "contexts": [{"name": "dead", "context": {"cluster": "dead", "user": "dead"}}]}, file)
    if KUBECONFIG:
        unittest.addModuleCleanup(kubectl, "delete", "namespace", "-l", f"playground-test={os.getpid()}", "--wait=false")
        make_namespace(namespace)


def tearDownModule() -> None:
    unittest.doModuleCleanups()  # pytest leaves that to us.


def look_at_processes(done: threading.Event) -> None:
    """Gather the command lines and environments of the servers and their kubectls, as anybody on the machine can."""
    while not done.wait(0.05):
        for pid in [process for server in list(servers) for process in (server, *descendants(server))]:
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
                    shown.add(file.read())


def answered(answer: Any) -> Any:
    """Remember a server's answer for no_secret_leaked, and return it."""
    if isinstance(answer, dict) and "data_source" in answer:
        passwords.add(DATA_SOURCE.sub(r"\3", answer["data_source"]))
    else:
        refusals.append(json.dumps(answer))
    return answer


def no_secret_leaked() -> None:
    """Look for every password and private key of this run in its logs, errors, process lists and temporary files."""
    secret = {form for password in passwords for form in (password, base64.b64encode(password.encode()).decode())}
    for name in glob.glob(path("*/*/*.key")):
        with open(name, encoding="utf-8") as key:
            secret.update(line for line in key.read().splitlines() if len(line) > 40)
    places = {"a refusal": "\n".join(refusals), "a process": b"\n".join(shown).decode(errors="replace")}
    for name in (*glob.glob(path("log-*")), *glob.glob(path("tmp", "**"), recursive=True)):
        if os.path.isfile(name):
            with open(name, encoding="utf-8", errors="replace") as file:
                places[name] = file.read()
    for place, text in places.items():
        for leaked in secret:
            assert leaked not in text, f"a secret is in {place}"


def make_namespace(name: str) -> None:
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, f"playground-test={os.getpid()}")


def path(*names: str) -> str:
    return os.path.join(folder, *names)


def gen_cert(*arguments: str, store: str = "key_store", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([os.path.join(HERE, "gen_cert.sh"), *arguments], capture_output=True, text=True,
                          env={**os.environ, "KEY_STORE": path(store), **environment})


def kubectl(*arguments: str, stdin: str = "") -> str:
    return subprocess.run(["kubectl", f"--kubeconfig={KUBECONFIG}", f"--namespace={namespace}", *arguments],
                          input=stdin, capture_output=True, text=True, check=True).stdout


def eventually(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_SECONDS:.0f} s: {what}")
        time.sleep(0.02)


def template(name: str, **changes: Any) -> list[str]:
    """Write a changed copy of mysql.yaml; return the options that name it. A change is a function of the three objects."""
    with open(os.path.join(HERE, "k8s_templates", "mysql.yaml"), encoding="utf-8") as file:
        objects = {item["kind"]: item for item in yaml.safe_load_all(file)}
    for kind, change in changes.items():
        change(objects[kind])
    with open(path(name), "w", encoding="utf-8") as file:
        yaml.safe_dump_all(objects.values(), file)
    return [f"--templates={folder}", f"--db_template={name}"]


class Running:
    """A server process on a free port. Its end must be clean, and its log without tracebacks, warnings and passwords."""

    def __init__(self, *options: str, kubeconfig: str = "", program: tuple[str, ...] = (os.path.join(HERE, "playground.py"),),
                 python: tuple[str, ...] = ("-X", "dev", "-W", "error")) -> None:
        self.log_path = tempfile.mktemp(prefix="log-", dir=folder)
        store = path("key_store")
        command = [sys.executable, *python, *program, "--host=127.0.0.1", "--port=0", f"--ca_crt={store}/ca/ca.crt",
                   f"--server_key={store}/server/server.key", f"--server_crt={store}/server/server.crt", f"--namespace={namespace}",
                   f"--kubectl={KUBECTL}", *options]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, cwd=folder,
                                            env={**os.environ, "TMPDIR": path("tmp"), "KUBECONFIG": kubeconfig or KUBECONFIG or path("dead.kubeconfig")})
        servers.add(self.process.pid)
        self.wait_for(lambda: self.lines("event=start ") or self.process.poll() is not None, "the server starts")
        started = self.lines("event=start ")
        if not started:
            raise AssertionError(f"the server ended: {self.log()}")
        self.port = int(re.findall(r"port=(\d+)", started[0])[0])

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        servers.discard(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # In development mode it says where each of its threads is.
            code = self.process.wait()
        if kind is None:
            log = self.log()
            assert code in (0, -signal.SIGKILL), f"exit status {code}: {log}"
            for unwanted in ("Traceback", "Warning", "Exception ignored"):
                assert unwanted not in log, log

    def log(self) -> str:
        with open(self.log_path, encoding="utf-8") as file:
            return file.read()

    def lines(self, text: str) -> list[str]:
        return [line for line in self.log().splitlines() if text in line]

    def kubectls(self) -> int:
        return len(self.lines("event=kubectl verb="))

    def known(self) -> Running:
        """Wait until the server knows the cluster."""
        self.wait_for(lambda: self.call("alice", "status")[1].get("cluster") == "ok", "the cluster is known")
        return self

    def wait_for(self, condition: Any, what: str) -> None:
        """Wait for the server to get ready, before a with statement can end it."""
        try:
            eventually(condition, what)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def children(self) -> list[int]:
        return descendants(self.process.pid)

    def blind(self, resource: str) -> int:
        """Stop the kubectl that watches a resource, so that the table gets late; return its pid."""
        for pid in self.children():
            with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
                if re.search(rf"/{resource}\?.*watch=1", file.read()):
                    os.kill(pid, signal.SIGSTOP)
                    return pid
        raise AssertionError(f"no watch of {resource}")

    def connect(self, client: str = "alice") -> ssl.SSLSocket:
        return tls(client).wrap_socket(socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS), server_hostname="localhost")

    def call(self, client: str, api: str, user_id: str | None = None) -> tuple[int, Any, dict[str, str]]:
        """Call an API with curl as the README says, with a POST where one is due; return status, answer, header fields."""
        store, url = path("key_store"), f"https://localhost:{self.port}/api/{api}"
        command = ["curl", "-sS", "-D", "-", "--max-time", "60", "--cacert", f"{store}/ca/ca.crt",
                   "--cert", f"{store}/{client}/{client}.crt", "--key", f"{store}/{client}/{client}.key"]
        if api in ("create_db", "delete_db"):
            command += ["-d", json.dumps({"user_id": user_id})]
        elif user_id is not None:
            url += f"?user_id={user_id}"
        result = subprocess.run([*command, url], capture_output=True, text=True, check=True)
        head, _, body = result.stdout.replace("\r\n", "\n").partition("\n\n")
        status, *fields = head.splitlines()
        return int(status.split()[1]), answered(json.loads(body)), dict(field.lower().split(": ", 1) for field in fields)

    def create_at_once(self, user_ids: list[str]) -> list[tuple[int, Any]]:
        """Ask for many databases in the same moment, each on a connection that is open already."""
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(self.connect()) for _ in user_ids]
            for connection, user_id in zip(connections, user_ids):
                body = json.dumps({"user_id": user_id}).encode()
                connection.sendall(b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                                   b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answers = [receive_all(connection).partition(b"\r\n\r\n") for connection in connections]
        return [(int(head.split()[1]), answered(json.loads(content))) for head, _, content in answers]

    def raw(self, request: bytes) -> bytes:
        """Send bytes on a connection of its own; return all that comes back until the server closes it."""
        with self.connect() as connection:
            connection.sendall(request)
            return receive_all(connection)


def receive_all(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
        while data := connection.recv(65536):
            answer += data
    return answer


def tls(client: str) -> ssl.SSLContext:
    store = path("key_store")
    context = ssl.create_default_context(cafile=f"{store}/ca/ca.crt")
    if client:
        context.load_cert_chain(f"{store}/{client}/{client}.crt", f"{store}/{client}/{client}.key")
    return context


def stepping(offset: str) -> tuple[str, str]:
    """Return the server as a program whose wall clock is off by the seconds in a file; nothing else of the machine is."""
    return "-c", ("import sys, time\nreal = time.time\n"
                  f"def stepped():\n    with open({offset!r}) as file: return real() + float(file.read() or 0)\n"
                  f"time.time = stepped\nsys.path.insert(0, {HERE!r})\nimport playground\nsys.exit(playground.main())\n")


def descendants(pid: int) -> list[int]:
    found = []
    for task in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(task, encoding="utf-8") as file:  # A thread may have ended meanwhile.
            found += [int(child) for child in file.read().split()]
    return found + [grandchild for child in found for grandchild in descendants(child)]


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # It may have ended by itself meanwhile.
            os.kill(pid, signal.SIGKILL)


def objects_of(user_id: str) -> list[str]:
    listing = kubectl("get", "statefulset,service,secret", "-l", f"playground.sqlflow.org/user={playground.slug(user_id)}", "-o", "name")
    return listing.split()


# ---- Certificates ------------------------------------------------------------------------------------


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout


class Certificates(unittest.TestCase):
    def text(self, name: str, store: str = "key_store") -> str:
        return openssl("x509", "-in", path(store, name, f"{name}.crt"), "-noout", "-text")

    def serial(self, name: str, store: str) -> str:
        return openssl("x509", "-in", path(store, name, f"{name}.crt"), "-noout", "-serial").strip().partition("=")[2]

    def verdict(self, store: str, certificate: str) -> str:
        """Return what openssl, as strict as it can be, says of a file of the store."""
        result = subprocess.run(["openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", path(store, "ca/ca.crt"),
                                 "-CRLfile", path(store, "ca/ca.crl"), path(store, certificate)], capture_output=True, text=True)
        return result.stdout.partition(": ")[2].strip() or result.stderr

    def matching(self, store: str, name: str) -> bool:
        """Tell whether a folder's key and certificate are a pair."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(*(
                path(store, name, f"{name.partition('+')[0]}.{ending}") for ending in ("crt", "key")))
        except ssl.SSLError:
            return False
        return True

    def test_client_certificate_is_for_clients_only_and_carries_its_name(self) -> None:
        text = self.text("alice")
        for expected in ("Version: 3", "Subject: CN = alice\n", "prime256v1", "CA:FALSE", "TLS Web Client Authentication\n",
                         "Digital Signature\n", "X509v3 Subject Key Identifier", "X509v3 Authority Key Identifier"):
            self.assertIn(expected, text)

    def test_server_certificate_names_localhost_this_host_and_what_was_given(self) -> None:
        self.assertEqual(gen_cert("server", "play.example.org", "10.1.2.3", "fe80::1", "localhost", store="named").returncode, 0)
        text = self.text("server", "named")
        self.assertIn("TLS Web Server Authentication\n", text)
        for name in ("DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1", f"DNS:{os.uname().nodename}",
                     "DNS:play.example.org", "IP Address:10.1.2.3", "IP Address:FE80:0:0:0:0:0:0:1"):
            self.assertIn(name, text)
        self.assertEqual(text.count("DNS:localhost"), 1)

    def test_strict_verification_accepts_each_for_its_purpose_and_no_other(self) -> None:
        for name, purpose, other in (("server", "sslserver", "sslclient"), ("alice", "sslclient", "sslserver")):
            for wanted, status in ((purpose, 0), (other, 2)):
                command = ["openssl", "verify", "-x509_strict", "-purpose", wanted, "-CAfile", path("key_store/ca/ca.crt"),
                           path("key_store", name, f"{name}.crt")]
                self.assertEqual(subprocess.run(command, capture_output=True).returncode, status, (name, wanted))

    def test_keys_are_their_owners_alone_and_the_ca_travels_with_each(self) -> None:
        for name in ("ca", "server", "alice"):
            self.assertEqual(os.stat(path("key_store", name, f"{name}.key")).st_mode & 0o777, 0o600)
        with open(path("key_store/ca/ca.crt"), "rb") as one, open(path("key_store/alice/ca.crt"), "rb") as other:
            self.assertEqual(one.read(), other.read())

    def test_nothing_is_overwritten(self) -> None:
        before = self.text("alice")
        result = gen_cert("alice")
        self.assertEqual(result.returncode, 2)
        self.assertIn("there already", result.stderr)
        self.assertEqual(self.text("alice"), before)

    def test_half_made_state_is_named_and_refused(self) -> None:
        gen_cert("carol", store="half")
        os.remove(path("half/carol/carol.key"))
        result = gen_cert("carol", store="half")
        self.assertEqual((result.returncode, "not its carol.key" in result.stderr), (2, True), result.stderr)
        os.remove(path("half/ca/ca.key"))
        result = gen_cert("dave", store="half")
        self.assertEqual((result.returncode, "not its ca.key" in result.stderr), (2, True), result.stderr)
        self.assertFalse(os.path.exists(path("half/dave")))

    def test_names_that_are_no_plain_file_names_are_refused(self) -> None:
        for name in ("ca", "..", "a/b", "-x", ".hidden", "a b", "x" * 65, "a\nb", "$(id)", ""):
            result = gen_cert(name, store="refused")
            self.assertEqual(result.returncode, 2, name)
        self.assertEqual(gen_cert("server", "not a name", store="refused").returncode, 2)
        self.assertFalse(os.path.exists(path("refused")))

    def test_interrupted_run_leaves_nothing_half_made(self) -> None:
        os.mkdir(path("slow"))
        with open(path("slow/openssl"), "w", encoding="utf-8") as file:
            file.write('#!/bin/sh\ncase "$1 $2" in "x509 -req") sleep 5;; esac\nexec /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin openssl "$@"\n')
        os.chmod(path("slow/openssl"), 0o755)
        process = subprocess.Popen([os.path.join(HERE, "gen_cert.sh"), "eve"], start_new_session=True, stderr=subprocess.DEVNULL,
                                   env={**os.environ, "KEY_STORE": path("slow_store"), "PATH": path("slow") + ":" + os.environ["PATH"]})
        eventually(lambda: glob.glob(path("slow_store/.making.*/eve/request")) or os.path.exists(path("slow_store/ca/ca.crt")), "it is at work")
        os.killpg(process.pid, signal.SIGTERM)  # SIGINT is ignored by what a script started in the background.
        self.assertNotEqual(process.wait(PATIENCE_SECONDS), 0)
        self.assertLessEqual(set(os.listdir(path("slow_store"))), {".lock", "ca"})
        self.assertEqual(gen_cert("eve", store="slow_store").returncode, 0)

    def test_last_lines_say_what_to_do_next(self) -> None:
        output = gen_cert("frank").stdout
        store = path("key_store/frank")
        self.assertIn(f"curl --cacert {store}/ca.crt --cert {store}/frank.crt --key {store}/frank.key https://", output)
        for variable in ("SQLFLOW_SERVER", "SQLFLOW_PLAYGROUND_USER_ID_ENV=SQLFLOW_USER_ID", "SQLFLOW_USER_ID", "SQLFLOW_PLAYGROUND_SERVRE",
                         "SQLFLOW_PLAYGROUND_SERVER_CA", "SQLFLOW_PLAYGROUND_CLIENT_KEY", "SQLFLOW_PLAYGROUND_CLIENT_CERT"):
            self.assertRegex(output, rf"(?m)^  {variable}\b")
        self.assertIn("gen_cert.sh server [NAME-OR-IP...]", gen_cert("-h").stdout)
        store = path("last lines").replace(" ", "\\ ")
        self.assertIn(f"--ca_crt={store}/ca/ca.crt --crl={store}/ca/ca.crl --server_key={store}/server/server.key "
                      f"--server_crt={store}/server/server.crt\n", gen_cert("server", store="last lines").stdout)

    def test_missing_openssl_comes_with_its_install_command(self) -> None:
        os.mkdir(path("bin"))
        for tool in ("bash", "sed", "env", "mkdir"):
            os.symlink(str(shutil.which(tool)), path("bin", tool))
        result = gen_cert("gina", PATH=path("bin"))
        self.assertEqual((result.returncode, "apt-get install openssl" in result.stderr), (2, True), result.stderr)

    def test_revocation_list_is_there_from_the_start_and_good_as_long_as_the_ca(self) -> None:
        gen_cert("alice", store="new")
        for certificate in ("ca/ca.crt", "alice/alice.crt"):
            self.assertEqual(self.verdict("new", certificate), "OK")
        text = openssl("crl", "-in", path("new/ca/ca.crl"), "-noout", "-text")
        for expected in ("Version 2", "X509v3 CRL Number", "X509v3 Authority Key Identifier", "No Revoked Certificates"):
            self.assertIn(expected, text)
        ends = [ssl.cert_time_to_seconds(openssl(kind, "-in", path(f"new/ca/ca.{ending}"), "-noout", option).strip().partition("=")[2])
                for kind, ending, option in (("x509", "crt", "-enddate"), ("crl", "crl", "-nextupdate"))]
        self.assertIn(ends[1] - ends[0], range(6))

    def test_revoking_ends_all_certificates_of_one_name_and_no_other(self) -> None:
        for arguments in (("alice",), ("alice.2",), ("server",), ("--renew", "alice")):
            gen_cert(*arguments, store="revoked")
        renewed, = (name for name in os.listdir(path("revoked")) if name.startswith("alice+old-"))
        os.chmod(path("revoked/ca/ca.crl"), 0o644)  # So that a server which is not root reads it.
        result = gen_cert("--revoke", "alice", store="revoked")
        self.assertEqual((result.returncode, "alice is revoked" in result.stdout), (0, True), result)
        for certificate in ("alice/alice.crt", f"{renewed}/alice.crt"):
            self.assertIn("certificate revoked", self.verdict("revoked", certificate))
        for certificate in ("alice.2/alice.2.crt", "server/server.crt"):
            self.assertEqual(self.verdict("revoked", certificate), "OK")
        self.assertEqual(os.stat(path("revoked/ca/ca.crl")).st_mode & 0o777, 0o644)

        before = openssl("crl", "-in", path("revoked/ca/ca.crl"))
        again = gen_cert("--revoke", "alice", store="revoked")
        self.assertEqual((again.returncode, "revoked already" in again.stdout), (0, True), again)
        self.assertEqual(openssl("crl", "-in", path("revoked/ca/ca.crl")), before)
        self.assertIn("gen_cert.sh alice makes a new one", gen_cert("--renew", "alice", store="revoked").stderr)

        shutil.rmtree(path("revoked/alice.2"))  # Sent away, with the key, as it should be.
        self.assertEqual(gen_cert("--revoke", "alice.2", store="revoked").returncode, 0)
        self.assertIn("clients do not look at the list", gen_cert("--revoke", "server", store="revoked").stdout)
        old = self.serial("alice", "revoked")
        self.assertEqual(gen_cert("alice", store="revoked").returncode, 0)
        self.assertEqual(self.verdict("revoked", "alice/alice.crt"), "OK")
        self.assertIn("certificate revoked", self.verdict("revoked", f"alice+old-{old}/alice.crt"))
        text = openssl("crl", "-in", path("revoked/ca/ca.crl"), "-noout", "-text")
        self.assertEqual((text.count("Serial Number:"), re.findall(r"CRL Number: \n *(\d+)", text)), (4, ["4"]), text)

    def test_renewal_keeps_the_names_and_changes_key_and_serial_number(self) -> None:
        gen_cert("server", "play.example.org", store="renewed")
        names, serial, key = self.text("server", "renewed"), self.serial("server", "renewed"), openssl(
            "pkey", "-in", path("renewed/server/server.key"), "-pubout")
        os.chmod(path("renewed/server/server.key"), 0o640)
        result = gen_cert("--renew", "server", "10.1.2.3", store="renewed")
        self.assertEqual(result.returncode, 0, result)
        self.assertRegex(result.stdout, r"server\.crt   until .+ GMT\n")
        expected = re.findall(r"(?:DNS|IP Address):[^,\n]+|Subject: .+|TLS Web .+", names)
        found = re.findall(r"(?:DNS|IP Address):[^,\n]+|Subject: .+|TLS Web .+", self.text("server", "renewed"))
        self.assertEqual(sorted(found), sorted([*expected, "IP Address:10.1.2.3"]))
        self.assertEqual(self.verdict("renewed", "server/server.crt"), "OK")
        self.assertTrue(self.matching("renewed", "server"))
        self.assertNotEqual(self.serial("server", "renewed"), serial)
        self.assertNotEqual(openssl("pkey", "-in", path("renewed/server/server.key"), "-pubout"), key)
        self.assertEqual(openssl("pkey", "-in", path("renewed", f"server+old-{serial}", "server.key"), "-pubout"), key)
        self.assertEqual(os.stat(path("renewed/server/server.key")).st_mode & 0o777, 0o640)

    def test_key_store_of_an_older_version_gets_its_list_and_knows_whom_it_has(self) -> None:
        for name in ("alice", "bob"):
            gen_cert(name, store="older")
        os.remove(path("older/ca/ca.crl"))
        shutil.rmtree(path("older/ca/issued"))
        os.rename(path("older/bob"), path("older/bob moved away"))
        result = gen_cert("carol", store="older")
        self.assertEqual((result.returncode, "had no revocation list" in result.stderr), (0, True), result)
        for name in ("alice", "bob"):
            self.assertEqual(gen_cert("--revoke", name, store="older").returncode, 0)
        self.assertIn("certificate revoked", self.verdict("older", "bob moved away/bob.crt"))
        self.assertEqual(self.verdict("older", "carol/carol.crt"), "OK")
        for harm, words in (("cut", "is damaged"), ("remove", "restore it from a backup")):  # It is never begun anew by itself.
            if harm == "cut":
                os.truncate(path("older/ca/ca.crl"), 300)
            else:
                os.remove(path("older/ca/ca.crl"))
            result = gen_cert("dave", store="older")
            self.assertEqual((result.returncode, words in result.stderr), (2, True), result)

    def test_killed_at_any_step_it_leaves_a_pair_and_every_revocation_and_the_next_run_goes_on(self) -> None:
        os.mkdir(path("killing"))
        with open(path("killing/mv"), "w", encoding="utf-8") as file:  # All that changes what is there.
            file.write('#!/bin/sh\nread -r left <"$STEPS"\necho $((left - 1)) >"$STEPS"\n'
                       '[ "$left" != 0 ] || { kill -9 $PPID; exit 1; }\nPATH=/usr/bin:/bin exec "${0##*/}" "$@"\n')
        os.chmod(path("killing/mv"), 0o755)
        os.symlink("mv", path("killing/rmdir"))
        for name in ("alice", "eve"):
            gen_cert(name, store="whole")
        gen_cert("--revoke", "eve", store="whole")
        for action in ("--renew", "--revoke"):
            for step in range(100):
                shutil.copytree(path("whole"), path("killed"))
                with open(path("steps"), "w", encoding="utf-8") as file:
                    file.write(f"{step}\n")
                result = gen_cert(action, "alice", store="killed", STEPS=path("steps"), PATH=path("killing") + ":" + os.environ["PATH"])
                pairs = [self.matching("killed", name) for name in os.listdir(path("killed")) if name.startswith("alice")]
                self.assertIn(True, pairs, (action, step))
                self.assertIn("certificate revoked", self.verdict("killed", "eve/eve.crt"), (action, step))
                if result.returncode == 0:
                    break
                self.assertEqual(result.returncode, -signal.SIGKILL, result)
                self.assertEqual(gen_cert("frank", store="killed").returncode, 0)
                self.assertTrue(self.matching("killed", "alice"), (action, step))
                self.assertEqual(self.verdict("killed", "frank/frank.crt"), "OK")
                self.assertEqual(glob.glob(path("killed/.making*")) + glob.glob(path("killed/.renewing*")), [], (action, step))
                self.assertEqual(gen_cert("--revoke", "alice", store="killed").returncode, 0)
                for name in os.listdir(path("killed")):
                    if name.startswith("alice"):
                        self.assertIn("certificate revoked", self.verdict("killed", f"{name}/alice.crt"), (action, step))
                shutil.rmtree(path("killed"))
            self.assertGreater(step, 0)
            shutil.rmtree(path("killed"))

    def test_two_at_once_wait_for_one_another_and_neither_revocation_is_lost(self) -> None:
        os.mkdir(path("without_flock"))
        for folder_of_tools in ("/usr/bin", "/bin"):
            for tool in ("bash", "sed", "env", "mkdir", "openssl", "cut", "paste", "rm", "mv", "cp", "mktemp", "date", "cat", "grep", "rmdir",
                         "sleep", "uname"):
                with contextlib.suppress(FileExistsError):
                    os.symlink(os.path.join(folder_of_tools, tool), path("without_flock", tool))
        said = ""
        for tools in (os.environ["PATH"], path("without_flock")):
            names = [f"{number}.of.{os.path.basename(tools)}" for number in range(3)]
            with ThreadPoolExecutor(len(names)) as pool:
                for arguments in ((), ("--revoke",)):
                    runs = [pool.submit(gen_cert, *arguments, name, store="at_once", PATH=tools) for name in names]
                    self.assertEqual([run.result().returncode for run in runs], [0] * len(runs), [run.result() for run in runs])
                    said += "".join(run.result().stderr for run in runs)
            for name in names:
                self.assertIn("certificate revoked", self.verdict("at_once", f"{name}/{name}.crt"))
        self.assertIn("waiting for another", said)

    def test_what_cannot_be_renewed_or_revoked_is_refused_and_changes_nothing(self) -> None:
        before = openssl("crl", "-in", path("key_store/ca/ca.crl"))
        for arguments, words in ((["--revoke", "ca"], "new key store"), (["--renew", "ca"], "new key store"), (["--revoke"], "takes a name"),
                                 (["--renew"], "takes a name"), (["--revoke", "nobody"], "no certificate of nobody is known"),
                                 (["--renew", "nobody"], "gen_cert.sh nobody makes one"), (["--revoke", "alice", "bob"], "one name"),
                                 (["--renew", "alice", "bob"], "only a server"), (["--revoke", "../alice"], "cannot be a name"),
                                 (["--renew", "server", "not a name"], "neither a DNS name"), (["--revok", "alice"], "cannot be a name")):
            result = gen_cert(*arguments)
            self.assertEqual((result.returncode, words in result.stderr), (2, True), (arguments, result))
        self.assertEqual(gen_cert("--revoke", "alice", store="no_such").returncode, 2)
        self.assertFalse(os.path.exists(path("no_such")))
        self.assertEqual(openssl("crl", "-in", path("key_store/ca/ca.crl")), before)


# ---- What needs no cluster ----------------------------------------------------------------------------


class Names(unittest.TestCase):
    def test_each_id_has_a_name_of_its_own_that_kubernetes_takes(self) -> None:
        ids = ["alice", "Alice", "ALICE", "a.b", "a-b", "a_b", "a--b", "a@b", "x" * 40, "x" * 41, "x" * 64, "小明", "小红", "é", "1", "A", "٣", "9-"]
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
        self.assertEqual(playground.strike_out('secrets "mysql-alice" already exists', [password]), 'secrets "mysql-alice" already exists')


class Errors(unittest.TestCase):
    def test_each_object_gets_its_own_error_and_none_another_ones(self) -> None:
        exists = 'Error from server (AlreadyExists): error when creating "STDIN": secrets "a" already exists\n'
        broken = 'error: error when creating "STDIN": Post "https://x/api": EOF\n'
        quota = 'Error from server (Forbidden): error when creating "STDIN": services "b" is forbidden: exceeded quota: q\n'

        def reasons(words: str, count: int) -> list[str]:
            return [error.reason for error in playground.KubectlError(playground.why(words), words).each(count)]
        self.assertEqual(reasons(exists + broken + quota, 3), ["exists", "unreachable", "quota"])
        self.assertEqual(reasons(exists + "something else\n", 3), ["unreachable"] * 3)
        self.assertEqual(reasons(quota, 2), ["unreachable"] * 2)
        self.assertEqual(reasons("The connection to the server x was refused\n", 3), ["unreachable"] * 3)
        self.assertEqual(reasons('The Service "a" is invalid: spec.ports: Required value\n', 1), ["invalid"])


# What scripts/fuzz has found, as it prints it. Bytes in which the server and h11 differ on purpose are of use here as well.
FOUND = (
    ("head", b"G / HTTP/1.1\r\nHost:x\r\nA:\r\n "), ("head", b"T h HTTP/1.5"), ("head", b"\xad b HTTP/1.1\r\nHost:x\r\nE:"),
    ("parameters", b"\x01=%E7%8E\x92"), ("parameters", b"\x01" + b"&".join(b"%d=" % number for number in range(300))),
)


@unittest.skipUnless(importlib.util.find_spec("h11"), "needs h11, which scripts/test installs")
class Fuzzed(unittest.TestCase):
    def test_what_the_fuzzer_starts_from_and_has_found_once_holds(self) -> None:
        specification = importlib.util.spec_from_file_location("fuzz", os.path.join(HERE, "scripts", "fuzz.py"))
        assert specification and specification.loader
        fuzz = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(fuzz)
        for name, data in (*FOUND, *((name, seed) for name, (_, seeds) in fuzz.TARGETS.items() for seed in seeds)):
            with self.subTest(name, data=data):
                fuzz.TARGETS[name][0](data)


class Start(unittest.TestCase):
    def refused(self, *options: str, **environment: str) -> str:
        command = [sys.executable, os.path.join(HERE, "playground.py"), "--host=127.0.0.1", "--port=0", f"--namespace={namespace}"]
        for option in ("ca_crt=ca/ca.crt", "server_key=server/server.key", "server_crt=server/server.crt"):
            command.append("--" + option.replace("=", "=" + path("key_store/")))
        result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=PATIENCE_SECONDS,
                                env={**os.environ, "KUBECONFIG": path("dead.kubeconfig"), **environment})
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        return result.stderr

    def test_each_tls_file_that_is_missing_unreadable_or_wrong_is_named_with_a_remedy(self) -> None:
        with open(path("garbage"), "w", encoding="utf-8") as file:
            file.write("-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n")
        subprocess.run(["openssl", "ec", "-in", path("key_store/server/server.key"), "-aes128", "-passout", "pass:x", "-out", path("locked")],
                       check=True, capture_output=True)
        for option in ("ca_crt", "server_key", "server_crt", "crl"):
            for name, remedy in (("nowhere", "gen_cert.sh server"), ("", "gen_cert.sh server"), ("dead.kubeconfig", "PEM"), ("garbage", "PEM")):
                with self.subTest(option=option, name=name):
                    line = self.refused(f"--{option}={path(name)}")
                    self.assertIn(f"--{option} {path(name)}", line)
                    self.assertIn(remedy, line)
        self.assertIn("KEY_VALUES_MISMATCH", self.refused(f"--server_key={path('key_store/alice/alice.key')}"))
        self.assertIn("without a password", self.refused(f"--server_key={path('locked')}"))

    def test_template_that_does_not_parse_or_lacks_a_placeholder_is_named(self) -> None:
        def lacking(kind: str, change: Any, expected: str) -> None:
            line = self.refused(*template("changed.yaml", **{kind: change}))
            self.assertIn(expected, line)
            self.assertIn(path("changed.yaml"), line)
        lacking("Secret", lambda item: item["stringData"].clear(), "stringData: password: ${password}")
        lacking("Service", lambda item: item["metadata"].update(name="mysql"), "metadata: name: ${name}")
        lacking("StatefulSet", lambda item: item["metadata"]["annotations"].popitem(), "last-heart-beat: ${now}")
        lacking("Service", lambda item: item["metadata"]["annotations"].popitem(), "set: ${set}")
        lacking("StatefulSet", lambda item: item["spec"]["template"]["metadata"].clear(), "spec: template: metadata: labels")
        lacking("StatefulSet", lambda item: item["spec"].update(serviceName="${pasword}"), "unknown placeholder ${pasword}")
        lacking("StatefulSet", lambda item: item.update(kind="Deployment"), "one StatefulSet")
        with open(path("broken.yaml"), "w", encoding="utf-8") as file:
            file.write("a: [")
        self.assertIn("is not YAML", self.refused(f"--templates={folder}", "--db_template=broken.yaml"))
        self.assertIn("No such file", self.refused(f"--templates={folder}", "--db_template=none.yaml"))

    def test_missing_kubectl_and_port_in_use_are_named(self) -> None:
        self.assertIn("install kubectl", self.refused("--kubectl=no-such-program"))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            self.assertIn(f"--port {port}", self.refused(f"--port={port}"))
        self.assertIn("--context", self.refused("--namespace=", "--context=nowhere"))
        self.assertIn("--namespace", self.refused("--namespace=Not_One"))

    def test_help_gives_defaults_and_dashes_work_for_underscores(self) -> None:
        output = subprocess.run([sys.executable, os.path.join(HERE, "playground.py"), "--help"], capture_output=True, text=True, check=True).stdout
        self.assertIn("50052", output)
        self.assertIn("cannot be read", self.refused("--ca-crt=nowhere"))


class Wire(unittest.TestCase):
    """The network and HTTP, at a server whose cluster does not answer."""

    server: ClassVar[Running]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Running(kubeconfig=path("dead.kubeconfig"))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.__exit__(None)

    def test_cluster_that_does_not_answer_is_503_to_what_needs_it_and_beats_are_200(self) -> None:
        eventually(lambda: "does not answer" in self.server.call("alice", "status")[1]["cluster"], "the server has tried")
        for api in ("create_db", "delete_db", "list_db"):
            status, answer, headers = self.server.call("alice", api, None if api == "list_db" else "alice")
            self.assertEqual((status, answer["error"]), (503, "the cluster does not answer: ask again"))
            self.assertGreater(int(headers["retry-after"]), 0)
        self.assertEqual(self.server.call("alice", "heart_beat", "alice")[:2], (200, {"user_id": "alice", "status": "unknown"}))

    def test_stranger_without_a_certificate_of_our_ca_for_clients_is_refused(self) -> None:
        gen_cert("alice", store="other_store")
        other = tls("")
        other.load_cert_chain(path("other_store/alice/alice.crt"), path("other_store/alice/alice.key"))
        for name, context in (("none", tls("")), ("another CA's", other), ("the server's own", tls("server"))):
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context.maximum_version = version
                plain = socket.create_connection(("127.0.0.1", self.server.port))
                with self.subTest(name, version=version), self.assertRaises((ssl.SSLError, ConnectionError)), \
                        plain, context.wrap_socket(plain, server_hostname="localhost") as connection:
                    connection.sendall(b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n")
                    if not connection.recv(1):
                        raise ConnectionError
        for reason in ("peer did not return a certificate", "self-signed certificate in certificate chain|unable to get", "unsuitable certificate purpose"):
            def logged(reason: str = reason) -> bool:
                return any(re.search(reason, line) for line in self.server.lines("handshake outcome=refused"))
            eventually(logged, f"the log says {reason}")

    def test_certificate_needs_exactly_one_common_name(self) -> None:
        for subject, outcome in (("/O=nobody", False), ("/CN=one/CN=two", False), ("/O=class/CN=carol", True)):
            command = ["openssl", "req", "-new", "-key", path("key_store/alice/alice.key"), "-subj", subject]
            request = subprocess.run(command, capture_output=True, check=True).stdout
            with open(path("named.crt"), "wb") as file:
                file.write(subprocess.run(["openssl", "x509", "-req", "-CA", path("key_store/ca/ca.crt"), "-CAkey", path("key_store/ca/ca.key"),
                                           "-set_serial", "7"], input=request, capture_output=True, check=True).stdout)
            context = tls("")
            context.load_cert_chain(path("named.crt"), path("key_store/alice/alice.key"))
            with context.wrap_socket(socket.create_connection(("127.0.0.1", self.server.port)), server_hostname="localhost") as connection:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                self.assertEqual(receive_all(connection).startswith(b"HTTP/1.1 200 "), outcome, subject)

    def test_session_is_resumed_only_while_the_certificate_is_good(self) -> None:
        with open(path("later"), "w", encoding="utf-8") as file:
            file.write("0")
        ask = b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        with Running(program=stepping(path("later"))) as server:
            store = path("key_store/alice")
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-CAfile", f"{store}/ca.crt", "-quiet", "-ign_eof"]
            answers = []
            for version, offset in (("-tls1_2", "0"), ("-tls1_2", str(1000 * 86400)), ("-tls1_3", "0")):
                with open(path("later"), "w", encoding="utf-8") as file:
                    file.write("0")
                for options in (["-cert", f"{store}/alice.crt", "-key", f"{store}/alice.key", "-sess_out", path("session")], ["-sess_in", path("session")]):
                    if os.path.exists(path("session")) or "-cert" in options:
                        result = subprocess.run([*command, version, *options], input=ask, capture_output=True, timeout=PATIENCE_SECONDS)
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
            eventually(lambda: self.server.lines('reason="made room for others"'), "the log says what became of the oldest")

    def test_answers_are_json_and_say_nothing_of_the_server(self) -> None:
        answer = self.server.raw(b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        self.assertEqual(json.loads(body)["version"], playground.__version__)
        for field in (b"Content-Type: application/json", b"Cache-Control: no-store", b"X-Content-Type-Options: nosniff", b"Date: "):
            self.assertIn(b"\r\n" + field, head)
        self.assertNotRegex(head.lower(), b"server:|python|ssl")

    def test_raw_requests_get_the_status_that_rfc_9112_gives_them(self) -> None:
        good, line = b"Host: x\r\n\r\n", b"GET /api/status HTTP/1.1\r\n"
        post, body = b"POST /api/create_db HTTP/1.1\r\nHost: x\r\n", b'{"user_id": "a"}'
        length = b"Content-Length: %d\r\n" % len(body)
        # What the API itself refuses leaves the connection open; the requests close it by a header field.
        close = b"Connection: close\r\n"
        fields = playground.MAX_HEADER_FIELDS - 2
        filler = b"A: " + b"x" * (playground.MAX_HEAD_BYTES - len(line) - len(b"Host: x\r\n" + close + b"A: "))
        path_of = b"/api/status?" + b"x" * (playground.MAX_REQUEST_LINE_BYTES - len(b"GET /api/status? HTTP/1.1"))
        beat = b"GET /api/heart_beat?%s HTTP/1.1\r\n" + close + good
        for status, request in (
            (200, line + close + good), (200, b"\r\n" + line + close + good), (200, b"GET https://x:1/api/status HTTP/1.1\r\n" + close + good),
            (200, b"GET /api/status HTTP/1.0\r\n\r\n"), (200, line + b"Host: [::1]:50052\r\n" + close + b"\r\n"),
            (200, line + b"X:\tspaced \t\r\n" + close + good), (200, line + b"A: b\r\n" * fields + close + good),
            (431, line + b"A: b\r\n" * (fields + 1) + close + good), (200, line + close + b"Host: x\r\n" + filler + b"\r\n\r\n"),
            (431, line + close + b"Host: x\r\n" + filler + b"x\r\n\r\n"), (431, line + b"A: " + b"x" * 99999),
            (400, b"GET %s HTTP/1.1\r\n" % path_of + close + good), (414, b"GET %sx HTTP/1.1\r\n" % path_of + close + good), (414, b"G" * 99999),
            (400, b"GET /api/status\r\n\r\n"), (400, b"GET  /api/status HTTP/1.1\r\n" + good), (400, b"GET /api/status HTTP/1.1 \r\n" + good),
            (400, b"get\t/api/status HTTP/1.1\r\n" + good), (400, b"GET /api/status http/1.1\r\n" + good), (400, b"GET /a b HTTP/1.1\r\n" + good),
            (505, b"GET /api/status HTTP/2.0\r\n" + good), (400, b"\x16\x03\x01\x02\x00\x01\r\n\r\n"), (400, b"GET / HTTP/11\r\n" + good),
            (400, line + b"\r\n"), (400, line + b"Host: x\r\nHost: x\r\n\r\n"), (400, line + b"Host: a b\r\n\r\n"), (400, line + b"Host: x/y\r\n\r\n"),
            (400, line + b"Host:\r\n\r\n"), (400, line + b" folded: x\r\n" + good), (400, line + b"A: b\r\n c\r\n" + good),
            (400, line + b"A : b\r\n" + good), (400, line + b": b\r\n" + good), (400, line + b"A\r\n" + good), (400, line + b"A(: b\r\n" + good),
            (400, line.replace(b"\r", b"") + good), (400, line + b"A: b\n" + good), (400, line + b"A: b\rc\r\n" + good),
            (400, line + b"A: b\x00c\r\n" + good), (400, line + b"A: \x01\r\n" + good), (400, b"GET /api/status\x00 HTTP/1.1\r\n" + good),
            (501, b"BREW /api/status HTTP/1.1\r\n" + good), (405, b"DELETE /api/status HTTP/1.1\r\n" + close + good),
            (405, b"HEAD /api/status HTTP/1.1\r\n" + close + good), (405, b"OPTIONS /api/status HTTP/1.1\r\n" + close + good),
            (404, b"OPTIONS * HTTP/1.1\r\n" + close + good), (404, b"GET / HTTP/1.1\r\n" + close + good),
            (404, b"GET /api/ HTTP/1.1\r\n" + close + good), (404, b"GET /api/status/ HTTP/1.1\r\n" + close + good),
            (404, b"GET /api/__init__ HTTP/1.1\r\n" + close + good), (405, b"GET /api/create_db HTTP/1.1\r\n" + close + good),
            (411, post + b"\r\n"), (501, post + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            (501, post + length + b"Transfer-Encoding: identity\r\n\r\n" + body), (417, post + length + b"Expect: tea\r\n\r\n" + body),
            *((400, post + b"Content-Length: %s\r\n\r\n" % value + body) for value in (
                b"", b"+16", b"-1", b"1_6", b"16, 16", b"0x10", b"16.0", "١٦".encode(), b"9" * 30)),
            (400, post + length + length + b"\r\n" + body), (413, post + b"Content-Length: %d\r\n\r\n" % (playground.MAX_BODY_BYTES + 1)),
            (413, post + b"Content-Length: 999999\r\n\r\n" + b"x" * 999999),
            *((400, post + close + b"Content-Length: %d\r\n\r\n" % len(text) + text) for text in (
                b"", b"user_id=a", b"[]", b"null", b'"a"', b'{"user_id": "a"', b'{"user_id": 1}', b'{"user_id": ["a"]}', b'{"user_id": null}', b"{}",
                b'{"user_id": "a", "user_id": "b"}', b'{"user_id": "a", "x": NaN}', b'{"user_id": "a", "image": "b"}', b"[" * 9999, b"{'user_id': 'a'}",
                b'\xef\xbb\xbf{"user_id": "a"}', '{"user_id": "a"}'.encode("utf-16"), b'{"user_id": "\xff"}', b'{"user_id": "\\ud800"}',
                b'{"user_id": ""}', b'{"user_id": "-a"}', b'{"user_id": ".a"}', b'{"user_id": "a b"}', b'{"user_id": "a/b"}',
                b'{"user_id": "a\\u0000"}', b'{"user_id": "a\\n"}', '{"user_id": "²"}'.encode(), b'{"user_id": "%s"}' % (b"x" * 65),
                b'{"user_id": "\\u0301a"}', b'{"user_id": "a$(id)"}', b'{"user_id": ' + b"9" * 9999 + b"}")),
            (400, b"GET /api/status?x=1 HTTP/1.1\r\n" + close + good), (400, line + close + b"Content-Length: 1\r\n" + good + b"x"),
            (400, b"POST /api/create_db?user_id=a HTTP/1.1\r\n" + close + length + good + body),
            *((200, beat % query) for query in (b"user_id=a", b"user_id=%61", "user_id=王".encode(), b"user_id=%E7%8E%8B", b"user_id=a@b.c_d-e")),
        ):
            with self.subTest(request[:120]):
                answer = self.server.raw(request)
                self.assertEqual(answer[:12], b"HTTP/1.1 %d" % status, answer)
                content = answer.partition(b"\r\n\r\n")[2]
                if request.startswith(b"HEAD"):
                    self.assertEqual(content, b"")
                else:
                    self.assertEqual("error" in json.loads(content), status != 200)

    def test_head_that_is_meant_to_take_long_to_parse_does_not(self) -> None:
        started = time.monotonic()
        for _ in range(20):  # 0.8 s each, and nobody else is served meanwhile, where a pattern tries every split of the spaces.
            with self.assertRaises(playground.ApiError):
                playground.parse_head(b"GET / HTTP/1.1\r\nX:" + b" " * 16000 + b"\x01")
        self.assertLess(time.monotonic() - started, 5)

    def test_refused_beat_is_held_back_so_that_a_loop_without_pause_stays_slow(self) -> None:
        queries = (b"", b"user_id", b"user_id=", b"user_id=a&user_id=a", b"user_id=a&x=1", b"user_id=%zz", b"user_id=%ff", b"user_id=a+b", b"&user_id=a")

        def beat(query: bytes) -> bytes:
            return self.server.raw(b"GET /api/heart_beat?%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % query)
        started = time.monotonic()
        with ThreadPoolExecutor(len(queries)) as pool:
            for query, answer in zip(queries, pool.map(beat, queries)):
                self.assertEqual(answer[:12], b"HTTP/1.1 400", query)
        self.assertGreaterEqual(time.monotonic() - started, playground.REFUSED_BEAT_SECONDS)

    def test_content_type_decides_nothing_and_connections_are_kept(self) -> None:
        connection = http.client.HTTPSConnection("localhost", self.server.port, context=tls("alice"), timeout=PATIENCE_SECONDS)
        with contextlib.closing(connection):
            for kind in ("application/x-www-form-urlencoded", "application/json", "text/plain"):
                connection.request("POST", "/api/delete_db", '{"user_id": "a"}', {"Content-Type": kind})
                response = connection.getresponse()
                self.assertEqual(response.status, 503, response.read())
                response.read()
            socket_used = connection.sock
            connection.request("GET", "/api/status")
            self.assertEqual(connection.getresponse().status, 200)
            self.assertIs(connection.sock, socket_used)

    def test_requests_sent_ahead_are_answered_in_order_and_none_follows_a_framing_error(self) -> None:
        status = b"GET /api/status HTTP/1.1\r\nHost: x\r\n"
        answers = self.server.raw(status + b"\r\n" + status + b"\r\nGET /api/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answers), [b"200", b"200", b"404"])
        answers = self.server.raw(b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n" + status + b"\r\n")
        self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answers), [b"400"])

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
            for start, end in ((0, 3), (3, -20), (-20, len(records))):  # Inside a record's head, and inside a record.
                plain.sendall(records[start:end])
                time.sleep(0.2)
            while answers.count(b"HTTP/1.1 200") < 5:
                answers += until_done(lambda: client.read(65536))

    def test_expecting_client_is_told_to_go_on(self) -> None:
        with self.server.connect() as connection:
            connection.sendall(b"POST /api/delete_db HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\nExpect: 100-continue\r\n\r\n")
            self.assertEqual(connection.recv(1000), b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(b'{"user_id": "a"}')
            self.assertTrue(connection.recv(1000).startswith(b"HTTP/1.1 503"))

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
            for byte in b"\x16\x03\x01\x02\x00\x01\x00" + bytes(99):  # A ClientHello that would be 512 bytes long.
                stranger.sendall(bytes([byte]))
                with contextlib.suppress(socket.timeout):
                    self.assertEqual(stranger.recv(1), b"")
                    break
        self.assertGreater(time.monotonic() - started, playground.HANDSHAKE_SECONDS - 1)
        self.assertLess(time.monotonic() - started, playground.HANDSHAKE_SECONDS + 10)
        eventually(lambda: self.server.lines('reason="timed out"'), "the log says why")

    def test_a_byte_a_second_ends_at_the_deadline(self) -> None:
        requests = (b"GET /api/status HTTP/1.1\r\n", b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n")

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


class Fortress(unittest.TestCase):
    """Strangers, hostile clients, and TLS files that change."""

    STATUS = b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n"

    def burden(self, server: Running) -> tuple[int, int]:
        return len(os.listdir(f"/proc/{server.process.pid}/task")), len(os.listdir(f"/proc/{server.process.pid}/fd"))

    def settled(self, server: Running) -> tuple[int, int]:
        """Return the burden once it stays the same: while the kubectls of a start come and go it is more or less."""
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
                        connection = stack.enter_context(tls("alice").wrap_socket(plain, server_hostname="localhost"))
                        connection.sendall((b"", b"GET /api", post, post + b"x", self.STATUS, self.STATUS * 50)[number % 6])
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
            resource.prlimit(server.process.pid, resource.RLIMIT_AS, (size + 2 ** 21, resource.RLIM_INFINITY))  # No new thread's stack fits.
            for connection in connections:  # Some get the stack of a thread that has ended.
                connection.sendall(self.STATUS[:half])
            refused, _, _ = select.select(connections, [], [], PATIENCE_SECONDS)  # The others are waited for, for HEAD_SECONDS.
            answer = receive_all(refused[0])
            self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
            self.assertIn(b"\r\nRetry-After: ", answer)
            self.assertEqual(server.call("bob", "status")[0], 200)
            resource.prlimit(server.process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
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
                    while True:  # Until its answers fill every buffer between us, and it reads no more requests.
                        connection.sendall(self.STATUS * 100)
                eventually(lambda: self.burden(server)[1] < files, "the connection has ended")

    def key_store(self, name: str) -> list[str]:
        """Copy the key store; return the options that name the copy."""
        shutil.copytree(path("key_store"), path(name))
        return [f"--ca_crt={path(name)}/ca/ca.crt", f"--server_key={path(name)}/server/server.key", f"--server_crt={path(name)}/server/server.crt"]

    def serial(self, server: Running) -> Any:
        with server.connect() as connection:
            certificate = connection.getpeercert()
            assert certificate
            return certificate["serialNumber"]

    def test_server_certificate_is_taken_up_when_both_its_files_have_changed(self) -> None:
        options = self.key_store("renewed")
        shutil.move(path("renewed/server"), path("old_server"))
        self.assertEqual(gen_cert("server", store="renewed").returncode, 0)
        shutil.move(path("renewed/server"), path("new_server"))
        shutil.copytree(path("old_server"), path("renewed/server"))
        with Running(*options) as server:
            old = self.serial(server)
            os.replace(path("new_server/server.key"), path("renewed/server/server.key"))  # Renamed over.
            eventually(lambda: server.lines('tls outcome="kept as it was"'), "the pair that does not match is noticed")
            self.assertEqual(self.serial(server), old)
            with server.connect() as connection:
                self.assertTrue(self.is_answered(connection))
                shutil.copyfile(path("new_server/server.crt"), path("renewed/server/server.crt"))  # Written in place.
                eventually(lambda: self.serial(server) != old, "the new one is served")
                self.assertTrue(self.is_answered(connection))  # Nobody else is let in than before: it goes on.

    def test_sighup_takes_the_files_up_and_a_new_ca_lets_its_clients_in(self) -> None:
        options = self.key_store("joined")
        gen_cert("carol", store="joining")
        other = tls("")
        other.load_cert_chain(path("joining/carol/carol.crt"), path("joining/carol/carol.key"))
        with Running(*options) as server, server.connect() as connection:
            self.assertTrue(self.is_answered(connection))
            with open(path("joining/ca/ca.crt"), encoding="utf-8") as file, open(path("joined/ca/ca.crt"), "a", encoding="utf-8") as bundle:
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
        with Running(*options, f"--crl={crl}") as server, server.connect("alice") as idle, server.connect("alice") as busy:
            self.assertTrue(self.is_answered(idle))
            busy.sendall(b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")  # Its body is awaited for 10 s.
            done = threading.Event()
            self.addCleanup(done.set)
            lost: list[int] = []

            def ask() -> None:
                connection = http.client.HTTPSConnection("localhost", server.port, context=tls("bob"), timeout=PATIENCE_SECONDS)
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
            self.assertLess(time.monotonic() - started, 10)  # 2 to 3 s, on a machine that is not busy with other tests.
            with contextlib.suppress(OSError), server.connect("alice") as again:
                self.assertFalse(self.is_answered(again))
            done.set()
            for other in others:
                other.join()
            self.assertEqual(lost, [])
            self.assertEqual(server.call("bob", "status")[0], 200)
        self.assertTrue(server.lines('reason="certificate revoked"'))

    def test_revocation_list_that_cannot_be_read_or_has_ended_keeps_the_last_good_one_and_then_nobody_gets_in(self) -> None:
        options = self.key_store("ending")
        gen_cert("--revoke", "alice", store="ending")
        crl, good = path("ending/ca/ca.crl"), path("good.crl")

        def list_for(seconds: int) -> None:
            with open(path("index.txt"), "w", encoding="utf-8"), open(path("ca.conf"), "w", encoding="utf-8") as file:
                file.write(f"[ca]\ndefault_ca = a\n[a]\ndatabase = {path('index.txt')}\ndefault_md = sha256\n")
            command = ["openssl", "ca", "-gencrl", "-config", path("ca.conf"), "-cert", path("ending/ca/ca.crt"), "-keyfile",
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
            eventually(lambda: server.lines("it holds no X509 CRL"), "the list that cannot be read is refused")
            self.assertEqual([admitted(client) for client in ("alice", "bob")], [False, True])
            list_for(6)
            eventually(lambda: admitted("alice"), "the new list revokes nobody")
            eventually(lambda: not admitted("alice") and not admitted("bob"), "it has ended, and nobody gets in")
            eventually(lambda: server.lines(f"level=ERROR event=tls file={crl}"), "the log says so")
            os.replace(good, crl)
            eventually(lambda: admitted("bob"), "a good one is taken up")

    def test_resumed_session_of_a_revoked_certificate_is_refused(self) -> None:
        options, store = self.key_store("resuming"), path("key_store/alice")
        ask = b"GET /api/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        with Running(*options, f"--crl={path('resuming/ca/ca.crl')}") as server:
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-CAfile", f"{store}/ca.crt", "-quiet", "-ign_eof", "-tls1_2"]
            first = [*command, "-cert", f"{store}/alice.crt", "-key", f"{store}/alice.key", "-sess_out", path("revoked-session")]
            for arguments, status in ((first, True), ([*command, "-sess_in", path("revoked-session")], True)):
                self.assertEqual(b"HTTP/1.1 200" in subprocess.run(arguments, input=ask, capture_output=True).stdout, status)
            gen_cert("--revoke", "alice", store="resuming")
            eventually(lambda: server.lines("tls outcome=reloaded"), "the list is taken up")
            self.assertNotIn(b"HTTP/1.1", subprocess.run([*command, "-sess_in", path("revoked-session")], input=ask, capture_output=True).stdout)


class Ending(unittest.TestCase):
    def test_sigterm_and_ctrl_c_end_it_with_its_kubectls(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with Running(*hanging(), kubeconfig=path("dead.kubeconfig")) as server:
                eventually(lambda server=server: len(server.children()) >= 3, "the watches run")
                children = server.children()
                with server.connect() as connection:  # Idle: it is closed at once.
                    server.process.send_signal(number)
                    self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)
                    self.assertEqual(receive_all(connection), b"")
                eventually(lambda children=children: not any(map(running, children)), "its kubectls have ended")

    @unittest.skipUnless(shutil.which("setpriv"), "setpriv is missing: kubectls end with their next output or time limit")
    def test_kill_9_ends_its_kubectls_too(self) -> None:
        with Running(*hanging(), kubeconfig=path("dead.kubeconfig")) as server:
            eventually(lambda: len(server.children()) >= 3, "the watches run")
            children = server.children()
            server.process.kill()
            server.process.wait()
            eventually(lambda: not any(map(running, children)), "its kubectls have ended")

    def test_hanging_kubectl_is_503_in_time_and_a_missing_one_too(self) -> None:
        with Running(*hanging(), kubeconfig=path("dead.kubeconfig")) as server:
            started = time.monotonic()
            status, answer, headers = server.call("alice", "create_db", "alice")
            self.assertEqual((status, "retry-after" in headers), (503, True), answer)
            self.assertLess(time.monotonic() - started, 20)
            self.assertEqual(server.call("alice", "heart_beat", "alice")[0], 200)
        shutil.copy(path("hanging"), path("vanishing"))
        with Running(f"--kubectl={path('vanishing')}") as server:
            eventually(lambda: len(server.children()) >= 3, "the watches run")
            os.remove(path("vanishing"))
            kill(server.children())
            eventually(lambda: "cannot run kubectl" in server.call("alice", "status")[1]["cluster"], "it notices")
            status, answer, _ = server.call("alice", "create_db", "alice")
            self.assertEqual((status, "cannot run kubectl" in answer["error"]), (503, True))


def stand_in(name: str, script: str) -> str:
    """Make a program that runs a shell script and then, unless that ended it, kubectl; return the option that names it."""
    with open(path(name), "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\n{script}\nexec {shutil.which(KUBECTL)} "$@"\n')
    os.chmod(path(name), 0o755)
    return f"--kubectl={path(name)}"


def hanging() -> list[str]:
    return [stand_in("hanging", "exec sleep 1000")]


class Packaging(unittest.TestCase):
    def test_drop_in_copy_runs_from_any_folder(self) -> None:
        os.makedirs(path("dropped"))
        shutil.copy(os.path.join(HERE, "playground.py"), path("dropped"))
        shutil.copytree(os.path.join(HERE, "k8s_templates"), path("dropped/k8s_templates"))
        with Running(program=(path("dropped/playground.py"),), kubeconfig=path("dead.kubeconfig")) as server:
            self.assertIn(f"template={path('dropped/k8s_templates/mysql.yaml')}", server.log())

    def test_wheel_brings_the_command_the_certificate_tool_and_the_templates(self) -> None:
        shutil.copytree(HERE, path("source"), ignore=shutil.ignore_patterns(".git", ".venv", "key_store", "build"))
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", path("wheels"), path("source")], check=True, capture_output=True)
        subprocess.run([sys.executable, "-m", "venv", path("env")], check=True)
        python = path("env/bin/python")
        subprocess.run([python, *pip[1:], "install", *glob.glob(path("wheels/*.whl"))], check=True, capture_output=True)
        for command in ([path("env/bin/sqlflow_playground"), "--version"], [python, "-m", "playground", "--version"]):
            output = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
            self.assertEqual(output, f"sqlflow_playground {playground.__version__}\n")
        found = subprocess.run([python, "-c", "import playground; print(len(playground.Template("
                                "playground.parse_arguments([]).templates + '/mysql.yaml').objects))"],
                               cwd=folder, capture_output=True, text=True, check=True).stdout
        self.assertEqual(found, "3\n")
        self.assertEqual(subprocess.run([path("env/bin/gen_cert.sh"), "-h"], capture_output=True).returncode, 0)


# ---- On a cluster -------------------------------------------------------------------------------------


@unittest.skipUnless(KUBECONFIG, "no cluster: PLAYGROUND_TEST_KUBECONFIG is not set")
class Databases(unittest.TestCase):
    """The main job, at one server."""

    server: ClassVar[Running]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Running().known()
        cls.server.call("alice", "create_db", "swapped")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.__exit__(None)

    def create(self, user_id: str, client: str = "alice") -> str:
        status, answer, _ = self.server.call(client, "create_db", user_id)
        self.assertEqual(status, 200, answer)
        self.assertEqual(answer["user_id"], user_id)
        return str(answer["data_source"])

    def test_data_source_is_what_sqlflow_parses_and_the_cluster_holds(self) -> None:
        match = DATA_SOURCE.fullmatch(self.create("plain"))
        assert match
        secret, service, stateful_set = (json.loads(kubectl("get", kind, "mysql-plain", "-o", "json")) for kind in ("secret", "service", "statefulset"))
        self.assertEqual(match.group(1, 2, 4, 5, 6, 7), ("mysql", "root", service["spec"]["clusterIP"], "3306", "", "?maxAllowedPacket=0"))
        self.assertEqual(match[3], playground.decoded(secret["data"]["password"]))
        self.assertRegex(match[3], r"^[A-Za-z0-9_-]{24,}$")
        labels = {"app.kubernetes.io/name": "mysql", "app.kubernetes.io/managed-by": "sqlflow-playground", "playground.sqlflow.org/user": "plain"}
        for item in (secret, service, stateful_set, stateful_set["spec"]["template"]):
            self.assertLessEqual(labels.items(), item["metadata"]["labels"].items())
        annotations = stateful_set["metadata"]["annotations"]
        self.assertEqual((annotations["playground.sqlflow.org/user-id"], annotations["playground.sqlflow.org/client"]), ("plain", "alice"))
        self.assertRegex(annotations["playground.sqlflow.org/last-heart-beat"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")

    def test_warm_request_starts_no_process(self) -> None:
        first = self.create("warm")
        count = self.server.kubectls()
        self.assertEqual([self.create("warm") for _ in range(5)], [first] * 5)
        self.assertEqual(self.server.call("alice", "heart_beat", "warm")[1]["status"], "ready")
        self.assertEqual(len([line for line in self.server.lines("kubectl verb=")[count:] if "verb=get" not in line]), 0)

    def test_users_at_once_get_databases_of_their_own_and_one_user_twice_gets_one(self) -> None:
        users = ["twin-a", "twin-b", "same", "same", "same"]
        with ThreadPoolExecutor(len(users)) as pool:
            sources = list(pool.map(self.create, users))
        self.assertEqual(len(set(sources)), 3)
        self.assertEqual(len(set(sources[2:])), 1)

    def test_create_delete_create_ends_in_one_new_database(self) -> None:
        first = self.create("again")
        self.assertEqual(self.server.call("alice", "delete_db", "again")[:2], (200, {"user_id": "again", "status": "absent"}))
        self.assertNotEqual(self.create("again"), first)
        self.assertEqual(len(objects_of("again")), 3)
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
            self.assertEqual(self.server.call("alice", "heart_beat", user)[1], {"user_id": user, "status": "ready"})
        self.assertEqual(self.create("e\u0301".encode().decode().replace("e\u0301", "é")), self.create("é"))

    def test_another_client_gets_403_and_learns_nothing(self) -> None:
        self.create("mine")
        for api in ("create_db", "heart_beat", "delete_db"):
            self.assertEqual(self.server.call("bob", api, "mine")[:2], (403, {"error": "this user_id belongs to another client"}))
        self.assertNotIn("mine", [entry["user_id"] for entry in self.server.call("bob", "list_db")[1]["databases"]])
        kubectl("annotate", "statefulset", "mysql-mine", "--overwrite", "playground.sqlflow.org/client=bob")
        eventually(lambda: self.server.call("bob", "heart_beat", "mine")[0] == 200, "the maintainer's hand-over is known")
        self.assertEqual(self.server.call("alice", "create_db", "mine")[0], 403)

    def test_list_tells_the_last_beat(self) -> None:
        self.create("listed", "bob")
        self.server.call("bob", "heart_beat", "listed")
        entries = {entry["user_id"]: entry for entry in self.server.call("bob", "list_db")[1]["databases"]}
        self.assertEqual(entries["listed"]["status"], "ready")
        self.assertRegex(entries["listed"]["last_heart_beat"], r"^20..-..-..T..:..:..Z$")

    def test_class_of_60_is_served_in_a_few_kubectls(self) -> None:
        before = len(self.server.lines("kubectl verb=create"))
        answers = self.server.create_at_once([f"class-{number}" for number in range(60)])
        self.assertEqual({status for status, _ in answers}, {200})
        self.assertEqual(len({answer["data_source"] for _, answer in answers}), 60)
        self.assertLessEqual(len(self.server.lines("kubectl verb=create")) - before, 4)
        with ThreadPoolExecutor(60) as pool:
            statuses = pool.map(lambda number: self.server.call("alice", "delete_db", f"class-{number}")[0], range(60))
        self.assertEqual(set(statuses), {200})

    def test_object_that_is_not_ours_is_409_for_its_user_alone_and_stays(self) -> None:
        kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mysql-taken"},
                                                       "spec": {"ports": [{"port": 1}]}}))
        answers = self.server.create_at_once([*(f"beside-{number}" for number in range(8)), "taken"])
        self.assertEqual([status for status, _ in answers], [200] * 8 + [409])
        eventually(lambda: not objects_of("taken"), "what was made beside it is removed")
        kubectl("get", "service", "mysql-taken")

    def test_failure_to_look_whose_a_name_is_fails_nobody_else(self) -> None:
        kubectl("create", "service", "clusterip", "mysql-foreign", "--tcp=1")
        option = stand_in("blind", 'case "$*" in *" get "*/mysql-*) echo "Error from server (Forbidden): no" >&2; exit 1;; esac')
        with Running(option).known() as server:
            answers = server.create_at_once([*(f"around-{number}" for number in range(8)), "foreign"])
            self.assertEqual([status for status, _ in answers], [200] * 8 + [502])

    def test_service_or_secret_or_stateful_set_deleted_by_hand_is_made_anew(self) -> None:
        source = self.create("broken")
        for kind in ("service", "secret", "statefulset"):
            kubectl("delete", kind, "mysql-broken")
            eventually(lambda: self.server.call("alice", "heart_beat", "broken")[1]["status"] != "ready", "the server has seen it go")
            again = self.create("broken")
            # The database keeps its password: this server remembers it.
            self.assertEqual(again.split("@")[0], source.split("@")[0], kind)
            self.assertEqual(len(objects_of("broken")), 3)

    def test_secret_lost_while_no_server_ran_costs_the_data_and_the_answer_says_so(self) -> None:
        with Running().known() as other:
            old = other.call("alice", "create_db", "lost")[1]["data_source"]
        uid = kubectl("get", "statefulset", "mysql-lost", "-o", "jsonpath={.metadata.uid}")
        kubectl("delete", "secret", "mysql-lost")
        with Running().known() as other:
            status, answer, _ = other.call("alice", "create_db", "lost")
            self.assertEqual((status, "made anew" in answer.get("note", "")), (200, True), (answer, other.log()))
            self.assertNotEqual(answer["data_source"], old)
            self.assertNotEqual(kubectl("get", "statefulset", "mysql-lost", "-o", "jsonpath={.metadata.uid}"), uid)
            self.assertTrue(other.lines("deletes=statefulset.apps/mysql-lost"))

    def replace_secret(self, user_id: str) -> None:
        secret = json.loads(kubectl("get", "secret", f"mysql-{user_id}", "-o", "json"))
        kubectl("delete", "secret", f"mysql-{user_id}")
        secret["metadata"] = {key: secret["metadata"][key] for key in ("name", "labels", "annotations")}
        secret["metadata"]["annotations"][playground.SET] = "another"
        secret["data"]["password"] = "bm90LXRoZS1vbmUtaXQtc3RhcnRlZC13aXRo"
        kubectl("create", "-f", "-", stdin=json.dumps(secret))

    def test_replaced_secret_is_never_answered_and_delete_db_gets_rid_of_it(self) -> None:
        created = json.loads(kubectl("get", "statefulset", "mysql-swapped", "-o", "json"))["metadata"]["creationTimestamp"]
        old = calendar.timegm(time.strptime(created, playground.RFC_3339)) + playground.KUBECTL_SECONDS
        eventually(lambda: time.time() > old + 2, "it is no new database any more")
        self.replace_secret("swapped")
        eventually(lambda: self.server.call("alice", "create_db", "swapped")[0] == 409, "the server has seen it")
        self.assertIn("replaced", self.server.call("alice", "create_db", "swapped")[1]["error"])
        self.assertEqual(self.server.call("alice", "delete_db", "swapped")[0], 200)
        self.create("swapped")

    def test_database_in_use_is_not_deleted_for_an_edited_annotation(self) -> None:
        source = self.create("annotated")
        uid = kubectl("get", "statefulset", "mysql-annotated", "-o", "jsonpath={.metadata.uid}")
        time.sleep(playground.KUBECTL_SECONDS + 2)  # It is no new database any more.
        kubectl("annotate", "secret", "mysql-annotated", playground.SET + "-")
        eventually(lambda: self.server.call("alice", "create_db", "annotated")[0] == 409, "the server has seen it")
        self.assertEqual(kubectl("get", "statefulset", "mysql-annotated", "-o", "jsonpath={.metadata.uid}"), uid)
        set_id = kubectl("get", "service", "mysql-annotated", "-o", r"jsonpath={.metadata.annotations.playground\.sqlflow\.org/set}")
        kubectl("annotate", "secret", "mysql-annotated", f"{playground.SET}={set_id}")
        eventually(lambda: self.server.call("alice", "create_db", "annotated")[1].get("data_source") == source, "put back, it is answered")

    def test_new_database_that_was_not_made_for_its_secret_is_made_anew(self) -> None:
        """Two servers that create and delete at once can leave such a set."""
        self.create("crossed")
        self.replace_secret("crossed")
        eventually(lambda: "not-the-one" in self.create("crossed"), "it has the new password")
        sets = kubectl("get", "secret,service,statefulset", "-l", "playground.sqlflow.org/user=crossed", "-o",
                       r"jsonpath={.items[*].metadata.annotations.playground\.sqlflow\.org/set}")
        self.assertEqual(sets.split(), ["another"] * 3)

    def test_table_that_is_late_neither_answers_an_old_password_nor_deletes_or_spares_wrongly(self) -> None:
        with Running().known() as late:
            old = late.call("alice", "create_db", "stale")[1]["data_source"]

            stopped = [late.blind("secrets")]
            self.assertEqual(self.server.call("alice", "delete_db", "stale")[0], 200)
            new = self.create("stale")
            self.assertNotEqual(new, old)
            eventually(lambda: late.call("alice", "create_db", "stale")[1].get("data_source") == new, "the new one is answered")
            stopped += [late.blind("services"), late.blind("statefulsets")]
            self.create("unseen")
            self.assertEqual(late.call("bob", "delete_db", "unseen")[0], 403)
            self.assertEqual(late.call("bob", "create_db", "unseen")[0], 403)
            self.assertEqual(late.call("alice", "delete_db", "unseen")[0], 200)
            eventually(lambda: not objects_of("unseen"), "it is deleted")
            kill(stopped)

    def test_secret_without_its_label_is_not_lost_and_nothing_is_deleted(self) -> None:
        self.create("unlabelled")
        kubectl("label", "secret", "mysql-unlabelled", "app.kubernetes.io/managed-by-")
        uid = kubectl("get", "statefulset", "mysql-unlabelled", "-o", "jsonpath={.metadata.uid}")
        with Running().known() as other:
            status, answer, _ = other.call("alice", "create_db", "unlabelled")
            self.assertEqual((status, "labels" in answer["error"]), (409, True), answer)
            self.assertEqual(kubectl("get", "statefulset", "mysql-unlabelled", "-o", "jsonpath={.metadata.uid}"), uid)
            kubectl("label", "secret", "mysql-unlabelled", "app.kubernetes.io/managed-by=sqlflow-playground")
            eventually(lambda: other.call("alice", "create_db", "unlabelled")[0] == 200, "labelled again, it is answered")

    def test_secret_edited_in_place_is_read_again(self) -> None:
        self.create("edited")
        kubectl("patch", "secret", "mysql-edited", "-p", '{"stringData": {"password": "edited-by-the-maintainer-0123"}}')
        eventually(lambda: "edited-by-the-maintainer-0123" in self.create("edited"), "what the cluster holds is answered")

    def test_restart_loses_nothing_and_another_server_answers_the_same(self) -> None:
        source = self.create("shared")
        with Running().known() as other:
            self.assertEqual(other.call("alice", "create_db", "shared")[1]["data_source"], source)
            self.assertEqual(other.call("bob", "create_db", "shared")[0], 403)
            with ThreadPoolExecutor(2) as pool:
                both = [pool.submit(server.call, "alice", "create_db", "raced") for server in (self.server, other)]
            self.assertEqual(*(future.result()[1]["data_source"] for future in both))

    def test_limits_on_databases_are_429_and_name_themselves(self) -> None:
        self.create("counted")
        for option, words in (("--max_databases=1", "this playground may have 1"), ("--max-databases-per-client=1", "one client may have 1")):
            with Running(option).known() as other:
                status, answer, headers = other.call("alice", "create_db", "one-too-many")
                self.assertEqual((status, words in answer["error"], "retry-after" in headers), (429, True, True), answer)
                self.assertEqual(other.call("alice", "create_db", "counted")[0], 200)

    def test_api_servers_error_that_quotes_a_password_reaches_neither_client_nor_log(self) -> None:
        options = template("number.yaml", Secret=lambda item: item["stringData"].update(port=3306))
        cluster = playground.Cluster(playground.Kubectl("kubectl", "", namespace), playground.Template(path("number.yaml")), 0, 0, 0, 60)
        self.assertIn("number.yaml", options[1])
        work = playground.Work(playground.Database(cluster, "mysql-quoted"), ("quoted", "alice"), cluster.creating)
        with unittest.mock.patch.dict(os.environ, KUBECONFIG=KUBECONFIG), self.assertLogs("playground") as logs, \
                unittest.mock.patch("secrets.token_hex", return_value="5ecret0123456789abcdef5ecret0123"):
            cluster.create_group([work])
            outcome = work.failure
        assert outcome
        self.assertIn("outcome=invalid", logs.output[0])
        self.assertIn("***", logs.output[0])
        for text in (str(outcome), outcome.message, *logs.output):
            self.assertNotIn("5ecret", text)
        self.assertIn("invalid", outcome.message)

    def test_stopping_server_finishes_what_is_in_flight(self) -> None:
        with Running().known() as other:
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(other.call, "alice", "create_db", "last-minute")
                eventually(lambda: other.lines("verb=create") and len(objects_of("last-minute")) == 3, "it is under way")
                other.process.send_signal(signal.SIGTERM)
                self.assertEqual(answer.result()[0], 200)
                self.assertEqual(answer.result()[2]["connection"], "close")
            self.assertEqual(other.process.wait(PATIENCE_SECONDS), 0)


@unittest.skipUnless(KUBECONFIG, "no cluster: PLAYGROUND_TEST_KUBECONFIG is not set")
class Lifecycle(unittest.TestCase):
    """Heart beats, the sweep, several servers, and people with kubectl; in a namespace of its own, since the sweeps are hasty."""

    HASTY = ("--idle_timeout=2", "--sweep_interval=0.5")  # Deletes what was not heard of for 3 s.

    @classmethod
    def setUpClass(cls) -> None:
        patched = unittest.mock.patch(f"{__name__}.namespace", f"{namespace}-{secrets.token_hex(4)}")  # pytest may come here again.
        patched.start()
        cls.addClassCleanup(patched.stop)
        make_namespace(namespace)

    def last_beat(self, user_id: str) -> str:
        return kubectl("get", "statefulset", f"mysql-{playground.slug(user_id)}", "-o",
                       r"jsonpath={.metadata.annotations.playground\.sqlflow\.org/last-heart-beat}")

    def quiet(self, server: Running) -> None:
        for line in server.log().splitlines():
            if "event=repair " not in line:  # Two that create for one user at once may say so.
                self.assertNotRegex(line, "level=(WARNING|ERROR)")

    @contextlib.contextmanager
    def beating(self, server: Running, user_id: str) -> Iterator[None]:
        """Beat for a user twice a second."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(0.5):
                server.call("alice", "heart_beat", user_id)
        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def test_beats_of_a_round_are_written_by_one_kubectl_and_a_database_that_has_gone_fails_alone(self) -> None:
        users = ["round-a", "round-b", "round-c"]
        with Running("--idle_timeout=0", "--sweep_interval=2").known() as server:
            self.assertEqual({status for status, _ in server.create_at_once(users)}, {200})
            blinded = server.blind("statefulsets")
            kubectl("delete", "statefulset", "mysql-round-b")
            before = {user: self.last_beat(user) for user in ("round-a", "round-c")}
            time.sleep(1)  # So that the time to the second is another one.
            for user in users:
                self.assertEqual(server.call("alice", "heart_beat", user)[0], 200)
            eventually(lambda: all(self.last_beat(user) > beat for user, beat in before.items()), "the beats are in the cluster")
            self.assertLessEqual(len(server.lines("verb=annotate")), 3)
            kill([blinded])

    def test_sigterm_writes_the_beats_that_are_pending(self) -> None:
        with Running("--sweep_interval=3600").known() as server:
            server.call("alice", "create_db", "pending")
            before = self.last_beat("pending")
            time.sleep(1)
            server.call("alice", "heart_beat", "pending")
        self.assertGreater(self.last_beat("pending"), before)

    def test_beats_before_the_cluster_is_known_are_not_lost(self) -> None:
        with Running().known() as server:
            server.call("alice", "create_db", "early")
        shutil.copy(path("dead.kubeconfig"), path("early.kubeconfig"))
        with Running("--sweep_interval=0.5", kubeconfig=path("early.kubeconfig")) as server:
            self.assertEqual(server.call("bob", "heart_beat", "early")[1]["status"], "unknown")
            self.assertEqual(server.call("alice", "heart_beat", "early")[1]["status"], "unknown")
            before = self.last_beat("early")
            time.sleep(1)  # So that the time to the second is another one.
            shutil.copy(KUBECONFIG, path("early.new"))
            os.replace(path("early.new"), path("early.kubeconfig"))
            eventually(lambda: self.last_beat("early") > before, "the beat that was held is written")

    def test_idle_database_is_deleted_and_logged_while_an_active_one_stays(self) -> None:
        with Running(*self.HASTY).known() as server:
            self.assertEqual({status for status, _ in server.create_at_once(["idle", "active"])}, {200})
            with self.beating(server, "active"):
                eventually(lambda: not objects_of("idle"), "it is swept")
                time.sleep(3)
                self.assertEqual(len(objects_of("active")), 3)
            eventually(lambda: not objects_of("active"), "it is swept, too")
            self.assertRegex(server.lines("sweep user=idle")[0], r"client=alice last_beat=\d{4}-\d\d-\d\dT")
            self.quiet(server)

    def test_timeout_of_0_never_deletes_and_a_new_server_does_not_count_what_was_before_it(self) -> None:
        with Running(*self.HASTY[1:], "--idle_timeout=0").known() as server:
            server.call("alice", "create_db", "eternal")
            kubectl("annotate", "statefulset", "mysql-eternal", "--overwrite", f"{playground.LAST_BEAT}=2001-01-01T00:00:00Z")
            time.sleep(4)
        self.assertEqual(len(objects_of("eternal")), 3)
        with Running("--idle_timeout=60", "--sweep_interval=0.2").known() as server:
            time.sleep(2)
            self.assertEqual(server.call("alice", "heart_beat", "eternal")[1]["status"], "ready")

    def test_servers_agree_on_what_is_there_who_is_active_and_what_is_swept(self) -> None:
        with Running(*self.HASTY).known() as one, Running(*self.HASTY).known() as other:
            with ThreadPoolExecutor(2) as pool:
                both = [pool.submit(server.call, "alice", "create_db", "both") for server in (one, other)]
            self.assertEqual(*(future.result()[1]["data_source"] for future in both))
            with self.beating(one, "both"):
                one.create_at_once(["gone", "left"])
                eventually(lambda: other.call("alice", "list_db")[1] == one.call("alice", "list_db")[1], "they list the same")
                one.call("alice", "delete_db", "gone")
                started = time.monotonic()
                eventually(lambda: other.call("alice", "heart_beat", "gone")[1]["status"] == "absent", "the other knows")
                self.assertLess(time.monotonic() - started, 5)
                eventually(lambda: not objects_of("left"), "one of them swept it")
                self.assertEqual(len(objects_of("both")), 3)
            eventually(lambda: not objects_of("both"), "it is swept")
            self.quiet(one)
            self.quiet(other)

    def holding(self, user_id: str) -> tuple[str, str]:
        """Return a kubectl that makes one file, and waits for another one to go, before it deletes the user's StatefulSet."""
        held, hold = path(f"held-{user_id}"), path(f"hold-{user_id}")
        with open(hold, "w", encoding="utf-8"):
            return stand_in(f"holding-{user_id}", f"case \"$*\" in *'delete --raw'*/statefulsets/mysql-{user_id}\\ *) "
                            f": >{held}; while [ -e {hold} ]; do sleep 0.05; done;; esac"), held

    def test_beat_that_is_written_while_another_server_sweeps_saves_the_database(self) -> None:
        option, held = self.holding("saved")
        with Running("--idle_timeout=0", "--sweep_interval=0.2").known() as other:
            other.call("alice", "create_db", "saved")
            with Running(*self.HASTY, option).known() as hasty:
                eventually(lambda: os.path.exists(held), "it has read, and is about to delete")
                before = self.last_beat("saved")
                time.sleep(1)
                other.call("alice", "heart_beat", "saved")
                eventually(lambda: self.last_beat("saved") > before, "the beat is written")
                with self.beating(other, "saved"):
                    os.remove(path("hold-saved"))
                    eventually(lambda: hasty.lines("/statefulsets/mysql-saved outcome=conflict"), "the API server refuses the deletion")
                    self.assertEqual(len(objects_of("saved")), 3)

    def test_user_who_returns_on_one_server_while_another_one_sweeps_keeps_the_database_that_is_answered(self) -> None:
        option, held = self.holding("back")
        with Running("--idle_timeout=1", "--sweep_interval=3600").known() as other:
            first = other.call("alice", "create_db", "back")[1]["data_source"]
            with Running(*self.HASTY, option).known() as hasty:
                eventually(lambda: os.path.exists(held), "it has read, and is about to delete")
                self.assertEqual(other.call("alice", "create_db", "back")[1]["data_source"], first)
                os.remove(path("hold-back"))
                eventually(lambda: hasty.lines("/statefulsets/mysql-back outcome="), "it has deleted or not")
                self.assertTrue(hasty.lines("/statefulsets/mysql-back outcome=conflict"), hasty.log())

    def test_user_who_returns_while_being_swept_gets_a_whole_database(self) -> None:
        option, held = self.holding("returned")
        with Running(*self.HASTY, option).known() as server:
            first = server.call("alice", "create_db", "returned")[1]["data_source"]
            eventually(lambda: os.path.exists(held), "it is about to delete")
            with ThreadPoolExecutor(1) as pool:
                returned = pool.submit(server.call, "alice", "create_db", "returned")
                time.sleep(0.5)
                os.remove(path("hold-returned"))
                status, answer, _ = returned.result()
            self.assertEqual(status, 200, answer)
            self.assertNotEqual(answer["data_source"], first)
            self.assertEqual(len(objects_of("returned")), 3)

    def test_table_that_is_late_sweeps_nobody_who_is_active(self) -> None:
        with Running("--idle_timeout=0", "--sweep_interval=0.2").known() as other, Running(*self.HASTY).known() as late:
            other.call("alice", "create_db", "unheard")
            eventually(lambda: late.call("alice", "heart_beat", "unheard")[1]["status"] == "ready", "it is seen")
            blinded = late.blind("statefulsets")
            with self.beating(other, "unheard"):
                time.sleep(6)
                self.assertEqual(len(objects_of("unheard")), 3)
            kill([blinded])

    def test_wall_clock_that_steps_neither_deletes_an_active_database_nor_keeps_an_idle_one(self) -> None:
        with open(path("offset"), "w", encoding="utf-8") as file:
            file.write("0")
        with Running(*self.HASTY, program=stepping(path("offset"))).known() as server, self.beating(server, "steady"):
            for hours in (5, -7, 0):
                server.create_at_once(["steady", f"silent{hours}"])
                with open(path("offset"), "w", encoding="utf-8") as file:
                    file.write(str(hours * 3600))
                eventually(lambda hours=hours: not objects_of(f"silent{hours}"), "the silent one is swept")
                self.assertEqual(len(objects_of("steady")), 3)

    def test_beat_that_is_no_time_counts_as_one_now_with_a_warning(self) -> None:
        with Running("--idle_timeout=3", "--sweep_interval=0.5").known() as server:
            server.call("alice", "create_db", "garbled")
            for number in range(8):
                kubectl("annotate", "statefulset", "mysql-garbled", "--overwrite", f"{playground.LAST_BEAT}=about noon {number}")
                time.sleep(1)
            self.assertEqual(len(objects_of("garbled")), 3)
            self.assertTrue(server.lines('level=WARNING event=heart_beat user=garbled client=alice last_beat="about noon 0"'))
            [entry] = [entry for entry in server.call("alice", "list_db")[1]["databases"] if entry["user_id"] == "garbled"]
            self.assertRegex(entry["last_heart_beat"], r"^20..-..-..T..:..:..Z$")
            eventually(lambda: not objects_of("garbled"), "it is swept in the end")

    def test_database_stopped_or_relabelled_or_without_its_pod_comes_back_or_says_why_not(self) -> None:
        with Running().known() as server:
            source = server.call("alice", "create_db", "handled")[1]["data_source"]
            kubectl("patch", "statefulset", "mysql-handled", "-p", '{"spec": {"replicas": 0}}')
            eventually(lambda: server.call("alice", "heart_beat", "handled")[1]["status"] == "starting", "it has stopped")
            status, answer, headers = server.call("alice", "create_db", "handled")
            self.assertEqual((status, "scaled to 0" in answer["error"], "retry-after" in headers), (503, True, True), answer)
            kubectl("patch", "statefulset", "mysql-handled", "-p", '{"spec": {"replicas": 1}}')
            self.assertEqual(server.call("alice", "create_db", "handled")[1].get("data_source"), source)
            kubectl("delete", "pod", "mysql-handled-0", "--wait=false")
            self.assertEqual(server.call("alice", "create_db", "handled")[1].get("data_source"), source)
            for kind in ("service", "statefulset"):
                kubectl("label", kind, "mysql-handled", "--overwrite", "playground.sqlflow.org/user=somebody")
            self.assertEqual(server.call("alice", "create_db", "handled")[1].get("data_source"), source)
            self.assertEqual(server.call("alice", "delete_db", "handled")[0], 200)
            eventually(lambda: "mysql-handled" not in kubectl("get", "statefulset,service,secret", "-o", "name"), "all of it is deleted")

    @unittest.skipUnless(REAL, "needs finalizers, which devcluster does not know")
    def test_pod_that_is_stuck_in_its_end_is_named(self) -> None:
        with Running().known() as server:
            server.call("alice", "create_db", "stuck")
            kubectl("patch", "pod", "mysql-stuck-0", "-p", '{"metadata": {"finalizers": ["playground.test/stuck"]}}')
            kubectl("delete", "statefulset", "mysql-stuck", "--wait=false")
            eventually(lambda: "deletionTimestamp" in kubectl("get", "pod", "mysql-stuck-0", "-o", "json"), "the pod is ending")
            eventually(lambda: server.call("alice", "heart_beat", "stuck")[1]["status"] == "absent", "the server knows")
            status, answer, _ = server.call("alice", "create_db", "stuck")
            self.assertEqual((status, "Terminating" in answer["error"]), (503, True), answer)
            kubectl("patch", "pod", "mysql-stuck-0", "-p", '{"metadata": {"finalizers": null}}')
            self.assertEqual(server.call("alice", "create_db", "stuck")[0], 200)

    def test_namespace_that_goes_is_named_and_one_that_comes_back_is_used(self) -> None:
        name = f"{namespace}-going"
        make_namespace(name)
        with Running(f"--namespace={name}").known() as server:
            self.assertEqual(server.call("alice", "create_db", "there")[0], 200)
            kubectl("delete", "namespace", name)
            eventually(lambda: server.call("alice", "heart_beat", "there")[1]["status"] == "absent", "its objects are known to have gone")
            status, answer, _ = server.call("alice", "create_db", "there")
            self.assertEqual((status, "namespace" in answer["error"]), (502, True), answer)
            make_namespace(name)
            self.assertEqual(server.call("alice", "create_db", "there")[0], 200)

    def test_server_killed_at_any_moment_of_a_create_leaves_nothing_that_the_next_create_does_not_complete(self) -> None:
        with Running("--idle_timeout=0").known() as survivor:
            for attempt in range(3):
                users = [f"half-{attempt}-{number}" for number in range(12)]
                with Running().known() as victim, contextlib.ExitStack() as stack:
                    for user in users:  # Each is at another moment of its creation when the server is killed.
                        connection = stack.enter_context(victim.connect())
                        body = json.dumps({"user_id": user}).encode()
                        connection.sendall(b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                        time.sleep(0.05 + 0.05 * attempt)
                    victim.process.kill()
                    victim.process.wait()
                answers = survivor.create_at_once(users)
                self.assertEqual({status for status, _ in answers}, {200}, answers)
                for user, (_, answer) in zip(users, answers):
                    data = kubectl("get", "secret", f"mysql-{user}", "-o", "jsonpath={.data.password}")
                    self.assertIn(f":{playground.decoded(data)}@", answer["data_source"])

    def test_half_made_set_goes_with_its_sweep(self) -> None:
        with Running().known() as server:
            server.call("alice", "create_db", "left-over")
        kubectl("delete", "statefulset", "mysql-left-over")
        with Running(*self.HASTY).known() as server:
            eventually(lambda: not objects_of("left-over"), "its Secret and Service are swept")

    def test_persistent_database_outlives_the_sweep_with_its_password_and_delete_db_deletes_it(self) -> None:
        def kept() -> list[str]:
            return kubectl("get", "statefulset,service,secret,persistentvolumeclaim", "-l", "playground.sqlflow.org/user=keeper", "-o", "name").split()
        persistent = "--db_template=mysql-persistent.yaml"
        with Running(*self.HASTY, persistent).known() as server:
            source = server.call("alice", "create_db", "keeper")[1]["data_source"]
            self.assertEqual(len(kept()), 4)
            eventually(lambda: len(kept()) == 2, "it is swept")
            self.assertEqual(kept(), ["secret/mysql-keeper", "persistentvolumeclaim/mysql-keeper"])
            self.assertEqual(server.call("bob", "create_db", "keeper")[0], 403)
            listed = {"user_id": "keeper", "status": "kept", "last_heart_beat": None}
            self.assertIn(listed, server.call("alice", "list_db")[1]["databases"])
        with Running(persistent).known() as server:
            self.assertEqual(server.call("alice", "create_db", "keeper")[1]["data_source"].split("@")[0], source.split("@")[0])
            kubectl("delete", "secret", "mysql-keeper")
            eventually(lambda: server.call("alice", "heart_beat", "keeper")[1]["status"] != "ready", "the server has seen it go")
            self.assertEqual(server.call("alice", "create_db", "keeper")[1]["data_source"].split("@")[0], source.split("@")[0])
        kubectl("delete", "secret", "mysql-keeper")
        with Running(persistent).known() as server:
            status, answer, _ = server.call("alice", "create_db", "keeper")
            self.assertEqual((status, "delete_db gives the data up" in answer["error"]), (409, True), answer)
            self.assertEqual(len(kept()), 3)
            self.assertEqual(server.call("alice", "delete_db", "keeper")[0], 200)
            self.assertNotEqual(server.call("alice", "create_db", "keeper")[1]["data_source"].split("@")[0], source.split("@")[0])
            server.call("alice", "delete_db", "keeper")
            eventually(lambda: not kept(), "all of it is deleted")

    def test_database_made_from_a_template_without_a_claim_stays_as_it_is_under_one_with_a_claim(self) -> None:
        def objects() -> list[str]:
            return kubectl("get", "statefulset,service,secret,persistentvolumeclaim", "-l", "playground.sqlflow.org/user=changed", "-o", "name").split()
        with Running().known() as server:
            source = server.call("alice", "create_db", "changed")[1]["data_source"]
        with Running(*self.HASTY, "--db_template=mysql-persistent.yaml").known() as server:
            self.assertEqual(server.call("alice", "create_db", "changed")[1]["data_source"], source)
            self.assertEqual(len(objects()), 3)
            eventually(lambda: not objects(), "it is swept as a whole")
            self.assertEqual(server.call("alice", "create_db", "changed")[0], 200)
            self.assertEqual(len(objects()), 4)
            self.assertEqual(server.call("alice", "delete_db", "changed")[0], 200)


@unittest.skipUnless(KUBECONFIG, "no cluster: PLAYGROUND_TEST_KUBECONFIG is not set")
class Troubles(unittest.TestCase):
    """What the cluster refuses or fails to do."""

    def test_check_names_a_quota_that_is_used_up_and_files_that_lack(self) -> None:
        kubectl("create", "quota", "full", "--hard=count/configmaps=0,count/secrets=999")
        self.addCleanup(kubectl, "delete", "quota", "full")
        eventually(lambda: "999" in kubectl("get", "quota", "full", "-o", "jsonpath={.status.hard}"), "the quota counts")

        def check(**options: str) -> tuple[int, str]:
            store = path("key_store")
            files = {"ca_crt": f"{store}/ca/ca.crt", "server_key": f"{store}/server/server.key", "server_crt": f"{store}/server/server.crt", **options}
            result = subprocess.run([sys.executable, os.path.join(HERE, "playground.py"), "--check", f"--namespace={namespace}",
                                     f"--kubectl={KUBECTL}", *(f"--{name}={value}" for name, value in files.items())],
                                    capture_output=True, text=True, env={**os.environ, "KUBECONFIG": KUBECONFIG})
            self.assertEqual(result.stderr, "")
            return result.returncode, result.stdout
        code, said = check()
        self.assertEqual((code, re.findall("^WRONG .*", said, re.M)), (1, [
            "WRONG  quota full: " + re.search("count/configmaps .*, count/secrets .* of 999", said)[0]  # type: ignore[index]
            + ": nothing is left of count/configmaps; raise it, or delete databases"]))
        code, said = check(crl="/lost.crl", db_template="lost.yaml")
        wrong = re.findall("^WRONG  start: (.*)", said, re.M)
        self.assertEqual((code, [line.partition(" cannot be ")[0] for line in wrong]),
                         (1, ["--crl /lost.crl", f"the template {os.path.join(HERE, 'k8s_templates/lost.yaml')}"]))
        self.assertIn("ok     right to list events", said)  # All the rest is tried all the same.

    def test_pod_that_never_gets_ready_is_503_with_the_reason_in_time(self) -> None:
        def never_ready(item: Any) -> None:
            item["spec"]["template"]["spec"]["containers"][0]["image"] = "never-ready"
        with Running(*template("never.yaml", StatefulSet=never_ready)).known() as server:
            started = time.monotonic()
            with ThreadPoolExecutor(5) as pool:
                answers = list(pool.map(lambda number: server.call("alice", "create_db", f"never-{number}"), range(5)))
            self.assertLess(time.monotonic() - started, 20)
            for status, answer, headers in answers:
                self.assertEqual((status, "ImagePullBackOff" in answer["error"], "retry-after" in headers), (503, True, True), answer)
            self.assertLessEqual(len(server.lines("kubectl verb=get")), 3 + 5 + 2)  # Listed, read back, asked why.
            self.assertEqual(server.call("alice", "heart_beat", "never-0")[1]["status"], "starting")

    def test_quota_of_the_namespace_is_429_whether_it_refuses_an_object_or_a_pod(self) -> None:
        tried = {"services": {"kind": "Service", "spec": {"ports": [{"port": 1}]}},
                 "pods": {"kind": "Pod", "spec": {"containers": [{"name": "a", "image": "a"}]}}}

        def counts(resource: str) -> bool:
            manifest = json.dumps({"apiVersion": "v1", "metadata": {"name": "one-more"}, **tried[resource]})
            try:
                kubectl("create", "-f", "-", "--dry-run=server", stdin=manifest)
            except subprocess.CalledProcessError as error:
                return "exceeded quota" in error.stderr
            return False
        for number, limited in enumerate(tried):
            kubectl("create", "quota", "full", f"--hard={limited}=0")
            try:
                eventually(lambda limited=limited: counts(limited), "the quota counts")
                with Running().known() as server:
                    status, answer, headers = server.call("alice", "create_db", f"full-{number}")
                    self.assertEqual((status, "quota" in answer["error"], "retry-after" in headers), (429, True, True), answer)
                    server.call("alice", "delete_db", f"full-{number}")
            finally:
                kubectl("delete", "quota", "full")

    def test_rights_that_lack_and_a_namespace_that_lacks_are_502(self) -> None:
        with Running("--context=nobody") as server:
            eventually(lambda: "lacks a right" in server.call("alice", "status")[1]["cluster"], "the server has tried")
            self.assertEqual(server.call("alice", "create_db", "alice")[0], 502)
            self.assertEqual(server.call("alice", "heart_beat", "alice")[0], 200)
        with Running("--namespace=playground-nowhere") as server:
            eventually(lambda: "not in the cluster" in server.call("alice", "status")[1]["cluster"], "the server has tried")
            self.assertEqual(server.call("alice", "create_db", "alice")[0], 502)

    def test_misspelt_field_in_the_template_is_found_once_at_the_start(self) -> None:
        def misspell(item: Any) -> None:
            item["spec"]["template"]["spec"]["containers"][0]["resuorces"] = {}
        with Running(*template("misspelt.yaml", StatefulSet=misspell)) as server:
            eventually(lambda: server.lines("resuorces"), "the log names the field")
            eventually(lambda: "template" in server.call("alice", "status")[1]["cluster"], "the status says so")
            self.assertEqual(server.call("alice", "create_db", "alice")[0], 502)
            with Running().known() as other:
                source = other.call("alice", "create_db", "untouched")[1]["data_source"]
            # What is there needs no template.
            eventually(lambda: server.call("alice", "create_db", "untouched")[1].get("data_source") == source, "it is answered")
            self.assertEqual(server.call("alice", "delete_db", "untouched")[0], 200)

    def test_cluster_that_comes_back_is_noticed(self) -> None:
        shutil.copy(path("dead.kubeconfig"), path("kubeconfig"))
        with Running(kubeconfig=path("kubeconfig")) as server:
            eventually(lambda: server.call("alice", "create_db", "late")[0] == 503, "the cluster is down")
            shutil.copy(KUBECONFIG, path("new.kubeconfig"))
            os.replace(path("new.kubeconfig"), path("kubeconfig"))
            server.known()
            self.assertEqual(server.call("alice", "create_db", "late")[0], 200)
            shutil.copy(path("dead.kubeconfig"), path("kubeconfig"))
            kill(server.children())  # The watches end, and find nothing there any more.
            eventually(lambda: "does not answer" in server.call("alice", "status")[1]["cluster"], "the cluster is gone")
            self.assertEqual(server.call("alice", "create_db", "late")[0], 200)  # Known and running: answered from memory.
            self.assertEqual(server.call("alice", "create_db", "later")[0], 503)


if __name__ == "__main__":
    unittest.main(warnings="error")
