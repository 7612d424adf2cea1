"""What the tests share: certificates and a namespace for each process, and servers that must end cleanly.

PLAYGROUND_TEST_KUBECONFIG names the kubeconfig of a cluster whose pods become ready (namespaces are
made there and removed at the end); without it the tests that need a cluster are skipped, by name.
PLAYGROUND_TEST_KUBECTL is the server's kubectl, if it is not to be the one on the PATH.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import ctypes
import glob
import json
import os
import re
import secrets
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import yaml

import playground

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEMPLATES = os.path.join(ROOT, "k8s_templates")
KUBECONFIG = os.environ.get("PLAYGROUND_TEST_KUBECONFIG", "")
REAL = bool(KUBECONFIG) and "PLAYGROUND_TEST_DEVCLUSTER" not in os.environ  # A whole Kubernetes API.
KUBECTL = os.environ.get("PLAYGROUND_TEST_KUBECTL", "kubectl")
# SQLFlow's own.
DATA_SOURCE = re.compile(r"^(\w+)://(.*):(.*)@tcp\(([.a-zA-Z0-9\-]*):?([0-9]*)\)/(\w*)(\?.*)?$")
STATUS = b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENCE_SECONDS = 60.0  # Generous: machines are slow at times. No test waits for it unless it fails.

# Of this process, which may run several modules, and one of them twice (pytest --dist=worksteal).
folder = ""  # Certificates, kubeconfigs, stand-ins for kubectl, logs.
namespace = ""
# What all its servers answered, and what their processes showed of themselves to others.
passwords: set[str] = set()
refusals: list[str] = []
shown: set[bytes] = set()
servers: set[int] = set()


def set_up() -> None:
    """Make what this process's tests share, once, and watch their servers: setUpModule of each module."""
    if not folder:
        make_folder()
    unittest.addModuleCleanup(no_secret_leaked)
    done = threading.Event()
    looker = threading.Thread(target=look_at_processes, args=(done,))
    looker.start()
    unittest.addModuleCleanup(looker.join)
    unittest.addModuleCleanup(done.set)


tear_down = unittest.case.doModuleCleanups  # As tearDownModule: pytest leaves that to us.


def make_folder() -> None:
    """Make the folder and the namespace, which go when the process ends."""
    global folder, namespace
    folder = tempfile.mkdtemp(prefix="playground-test-")
    atexit.register(shutil.rmtree, folder)
    os.mkdir(path("tmp"))
    for name in ("server", "alice", "bob"):
        gen_cert(name)
    with open(path("dead.kubeconfig"), "w", encoding="utf-8") as file:  # Nothing listens on port 1.
        yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "dead",
                        "clusters": [{"name": "dead", "cluster": {"server": "https://127.0.0.1:1"}}],
                        "users": [{"name": "dead", "user": {"token": "none"}}],
                        "contexts": [{"name": "dead", "context": {"cluster": "dead", "user": "dead"}}]}, file)
    namespace = f"playground-test-{os.getpid()}-{secrets.token_hex(4)}"
    if KUBECONFIG:
        atexit.register(kubectl, "delete", "namespace", "-l", f"playground-test={os.getpid()}",
                        "--wait=false")
        make_namespace(namespace)


def path(*names: str) -> str:
    return os.path.join(folder, *names)


def look_at_processes(done: threading.Event) -> None:
    """Gather the servers' and their kubectls' command lines and environments, as anybody here can."""
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
    """Look for this run's passwords and private keys in logs, refusals, processes and temporary files."""
    secret = passwords | {base64.b64encode(password.encode()).decode() for password in passwords}
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


def use_another_namespace(test: unittest.TestCase | type[unittest.TestCase]) -> None:
    """Give a test, or a class of them, a namespace of its own: what it does there would disturb others."""
    patched = unittest.mock.patch(f"{__name__}.namespace", f"{namespace}-{secrets.token_hex(4)}")
    patched.start()
    (test.addClassCleanup if isinstance(test, type) else test.addCleanup)(patched.stop)
    make_namespace(namespace)
    if REAL:  # A controller makes the ServiceAccount a moment later, and without it no Pod is let in.
        eventually(lambda: kubectl("get", "serviceaccount", "default", "--ignore-not-found"),
                   "it can be used")


def gen_cert(*arguments: str, store: str = "key_store",
             **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([os.path.join(ROOT, "gen_cert.sh"), *arguments], capture_output=True, text=True,
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
    """Write a copy of mysql.yaml, a function changing a kind's object; return the options that name it."""
    with open(os.path.join(TEMPLATES, "mysql.yaml"), encoding="utf-8") as file:
        objects = {item["kind"]: item for item in yaml.safe_load_all(file)}
    for kind, change in changes.items():
        change(objects[kind])
    with open(path(name), "w", encoding="utf-8") as file:
        yaml.safe_dump_all(objects.values(), file)
    return [f"--templates={folder}", f"--db_template={name}"]


def stand_in(name: str, script: str) -> str:
    """Make a program that runs a script and then, if that did not end it, kubectl; return its option."""
    with open(path(name), "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\n{script}\nexec {shutil.which(KUBECTL)} "$@"\n')
    os.chmod(path(name), 0o755)
    return f"--kubectl={path(name)}"


class Holding:
    """A kubectl that waits before a command of a pattern, from when it is told to until it is let go."""

    def __init__(self, name: str, pattern: str, now: bool = True) -> None:
        self.hold, self.held = path(f"{name}.hold"), path(f"{name}.held")
        self.option = stand_in(name, f"""case "$*" in {pattern})
  while [ -e {self.hold} ]; do : >{self.held}; sleep 0.05; done;; esac""")
        if now:
            self.begin()

    def begin(self) -> None:
        with open(self.hold, "w", encoding="utf-8"):
            pass

    def wait(self) -> None:
        eventually(lambda: os.path.exists(self.held), "one waits")

    def let_go(self) -> None:
        os.remove(self.hold)


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


class Running:
    """A server process on a free port. Its end must be clean, and its log without tracebacks and warnings."""

    def __init__(self, *options: str, kubeconfig: str = "",
                 program: tuple[str, ...] = (os.path.join(ROOT, "playground.py"),),
                 python: tuple[str, ...] = ("-X", "dev", "-W", "error")) -> None:
        self.log_path = tempfile.mktemp(prefix="log-", dir=folder)
        store = path("key_store")
        command = [sys.executable, *python, *program, "--host=127.0.0.1", "--port=0",
                   f"--ca_crt={store}/ca/ca.crt", f"--server_key={store}/server/server.key",
                   f"--server_crt={store}/server/server.crt", f"--namespace={namespace}",
                   f"--kubectl={KUBECTL}", "--log_level=debug", *options]
        environment = {**os.environ, "TMPDIR": path("tmp"),
                       "KUBECONFIG": kubeconfig or KUBECONFIG or path("dead.kubeconfig")}
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, cwd=folder, env=environment)
        servers.add(self.process.pid)
        start = re.compile(r'event"?[:=] ?"?start\b')
        self.wait_for(lambda: start.search(self.log()) or self.process.poll() is not None, "it starts")
        started = [line for line in self.log().splitlines() if start.search(line)]
        if not started:
            raise AssertionError(f"the server ended: {self.log()}")
        self.port = int(re.findall(r'port"?[:=] ?(\d+)', started[0])[0])

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        servers.discard(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # In development mode it says where its threads are.
            code = self.process.wait()
        if kind is None:
            log = self.log()
            assert code in (0, -signal.SIGKILL), f"exit status {code}: {log}"
            for unwanted in ("Traceback", "Warning", "Exception ignored"):
                assert unwanted not in log, log

    def log(self) -> str:
        if self.process.poll() is None:
            time.sleep(5 * playground.LOG_SECONDS)  # Its thread writes what has happened so far.
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
            with contextlib.suppress(FileNotFoundError), \
                    open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
                if re.search(rf"/{resource}\?.*watch=1", file.read()):
                    os.kill(pid, signal.SIGSTOP)
                    return pid
        raise AssertionError(f"no watch of {resource}")

    def connect(self, client: str = "alice") -> ssl.SSLSocket:
        return tls(client).wrap_socket(socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS),
                                       server_hostname="localhost")

    def call(self, client: str, api: str, user_id: str | None = None) -> tuple[int, Any, dict[str, str]]:
        """Call an API with curl as the README says; return status, answer, header fields."""
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
        headers = dict(field.lower().split(": ", 1) for field in fields)
        return int(status.split()[1]), answered(json.loads(body)), headers

    def begin(self, api: str, user_id: str) -> ssl.SSLSocket:
        """Send a request on a connection of its own, which is returned; whoever closes it hangs up."""
        connection = self.connect()
        connection.sendall(posted(api, user_id))
        return connection

    def create_at_once(self, user_ids: list[str]) -> list[tuple[int, Any]]:
        return self.call_at_once("create_db", user_ids)

    def call_at_once(self, api: str, user_ids: list[str]) -> list[tuple[int, Any]]:
        """Ask for many users in the same moment, each on a connection that is open already."""
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(self.connect()) for _ in user_ids]
            for connection, user_id in zip(connections, user_ids):
                connection.sendall(posted(api, user_id))
            answers = [receive_all(connection).partition(b"\r\n\r\n") for connection in connections]
        return [(int(head.split()[1]), answered(json.loads(content))) for head, _, content in answers]

    def raw(self, request: bytes) -> bytes:
        """Send bytes on a connection of its own; return all that comes back until the server closes it."""
        with self.connect() as connection:
            connection.sendall(request)
            return receive_all(connection)


class WithoutCluster(unittest.TestCase):
    """Tests at one server whose cluster does not answer."""

    server: ClassVar[Running]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Running(kubeconfig=path("dead.kubeconfig"))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.__exit__(None)


def posted(api: str, user_id: str) -> bytes:
    body = json.dumps({"user_id": user_id}).encode()
    return (b"POST /api/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % (api.encode(), len(body)) + body)


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


def is_answered(connection: ssl.SSLSocket) -> bool:
    """Ask on an open connection; tell whether it was answered, and not closed."""
    try:
        connection.sendall(STATUS)
        return connection.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def checked(*options: str) -> subprocess.CompletedProcess[str]:
    """Run --check, without a cluster."""
    store = path("key_store")
    return subprocess.run([sys.executable, os.path.join(ROOT, "playground.py"), "--check", "--port=0",
                           "--namespace=x", f"--ca_crt={store}/ca/ca.crt",
                           f"--server_key={store}/server/server.key",
                           f"--server_crt={store}/server/server.crt", *options], capture_output=True,
                          text=True, timeout=PATIENCE_SECONDS,
                          env={**os.environ, "KUBECONFIG": path("dead.kubeconfig")})


def refused(*options: str, **environment: str) -> str:
    """Start a server that must not start; return the line that it says."""
    store = path("key_store")
    result = subprocess.run(
        [sys.executable, os.path.join(ROOT, "playground.py"), "--host=127.0.0.1", "--port=0",
         f"--namespace={namespace}", f"--ca_crt={store}/ca/ca.crt", f"--server_key={store}/server/server.key",
         f"--server_crt={store}/server/server.crt", *options], capture_output=True, text=True,
        timeout=PATIENCE_SECONDS, env={**os.environ, "KUBECONFIG": path("dead.kubeconfig"), **environment})
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), (options, result.stderr)
    return result.stderr


def altered(change: str) -> tuple[str, str]:
    """Return the server as a program with something changed before it starts."""
    return "-c", (f"import sys\nsys.path.insert(0, {ROOT!r})\nimport playground\n{change}\n"
                  "sys.exit(playground.main())\n")


def stepping(offset: str) -> tuple[str, str]:
    """Return the server as a program whose wall clock, and nobody else's, is off by the seconds in a file."""
    return "-c", ("import sys, time\nreal = time.time\ndef stepped():\n"
                  f"    with open({offset!r}) as file: return real() + float(file.read() or 0)\n"
                  f"time.time = stepped\nsys.path.insert(0, {ROOT!r})\n"
                  "import playground\nsys.exit(playground.main())\n")


def in_a_network_of_its_own(do: Callable[[], None]) -> None:
    """Have a thread, and the processes that it starts, see a network that nobody else is in."""
    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "unshare")
        do()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter).result()


def descendants(pid: int) -> list[int]:
    found = []
    for task in glob.glob(f"/proc/{pid}/task/*/children"):
        # A thread may have ended meanwhile.
        with contextlib.suppress(OSError), open(task, encoding="utf-8") as file:
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


def lease_of(user_id: str) -> dict[str, Any]:
    """Return a user's lease as the cluster holds it, or nothing."""
    printed = kubectl("get", "lease", f"user-{playground.slug(user_id)}", "--ignore-not-found", "-o", "json")
    found: dict[str, Any] = json.loads(printed or "{}")
    return found


def database_of(user_id: str) -> str:
    """Return what a user's Pod and Secret are called; empty without a lease."""
    return str(lease_of(user_id).get("spec", {}).get("holderIdentity", ""))


def last_beats() -> dict[str, str]:
    """Return when each user was last heard of, as it is written down, by user id."""
    return {item["metadata"]["annotations"][playground.USER_ID]: item["spec"]["renewTime"]
            for item in json.loads(kubectl("get", "lease", "-l", playground.USER, "-o", "json"))["items"]}


def objects_of(user_id: str) -> list[str]:
    """Return what the cluster holds of a user: the lease, and all of each database that was given."""
    kinds, slug = "lease,secret,service,persistentvolumeclaim,pod", playground.slug(user_id)
    found = [(f"{item['kind'].lower()}/{item['metadata']['name']}", item["metadata"].get("labels", {}))
             for item in json.loads(kubectl("get", kinds, "-o", "json"))["items"]]
    theirs = {f"mysql-{labels.get(playground.DATABASE)}" for _, labels in found
              if labels.get(playground.USER) == slug} | {database_of(user_id)}
    return sorted(name for name, labels in found if name == f"lease/user-{slug}"
                  or f"mysql-{labels.get(playground.DATABASE)}" in theirs - {"mysql-None"})


def spares() -> list[str]:
    """Return what the databases without a user are called."""
    return kubectl("get", "secret", "-l", f"{playground.DATABASE},!{playground.USER}", "-o",
                   "jsonpath={.items[*].metadata.name}").split()


def delete_by_hand(*names: str) -> None:
    kubectl("delete", *names, "--wait=false")


def change_pod(name: str, **status: Any) -> None:
    """Change a Pod's status, as its node does."""
    if not REAL:
        raise unittest.SkipTest("needs Pods whose status can be written, which devcluster does not know")
    pod = json.loads(kubectl("get", "pod", name, "-o", "json"))
    pod["status"].update(status)
    del pod["metadata"]["resourceVersion"]  # Its node may have written it just now.
    kubectl("replace", "--raw", f"/api/v1/namespaces/{namespace}/pods/{name}/status", "-f", "-",
            stdin=json.dumps(pod))


def create_by_hand(*items: dict[str, Any]) -> None:
    kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def make_leases(*user_ids: str, client: str = "alice", renewed: str = "2026-01-01T00:00:00.000000Z") -> None:
    """Make users' leases by hand, of databases that nobody has ever made."""
    create_by_hand(*({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": f"user-{playground.slug(user_id)}",
                     "labels": {**playground.OURS, playground.USER: playground.slug(user_id)},
                     "annotations": {playground.USER_ID: user_id, playground.CLIENT: client}},
        "spec": {"holderIdentity": f"mysql-{secrets.token_hex(8)}", "renewTime": renewed}}
        for user_id in user_ids))


def password_of(name: str) -> str:
    """Return the password in a database's Secret."""
    return base64.b64decode(kubectl("get", "secret", name, "-o", "jsonpath={.data.password}")).decode()


# ---- Certificates that gen_cert.sh does not make -----------------------------------------------------


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

    def sign(self, subject: str, key: str, begins: float, ends: float, name: str, *options: str) -> str:
        """Make a certificate between two times, in seconds from now; return its path."""
        request = subprocess.run(["openssl", "req", "-new", "-key", key, "-subj", subject], check=True,
                                 capture_output=True).stdout
        self.run("-in", "/dev/stdin", "-out", f"{name}.new", "-preserveDN", "-startdate", from_now(begins),
                 "-enddate", from_now(ends), *options, stdin=request)
        os.replace(f"{name}.new", name)
        return name

    def certify(self, subject: str, seconds: int, begins: float = -60) -> ssl.SSLContext:
        """Return the context of a client with alice's key and a certificate for so many seconds."""
        key, context = path("key_store/alice/alice.key"), tls("")
        context.load_cert_chain(self.sign(subject, key, begins, seconds, f"{self.folder}/crt"), key)
        return context

    def list_for(self, seconds: int, name: str, begins: float = 0) -> str:
        """Make a revocation list for so many seconds; return its path."""
        self.run("-gencrl", "-crl_lastupdate", from_now(begins), "-crlsec", str(seconds),
                 "-out", f"{name}.new")
        os.replace(f"{name}.new", name)
        return name


def from_now(seconds: float) -> str:
    """Return a time as openssl takes it."""
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + seconds))


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


# ---- The templates ---------------------------------------------------------------------------------


def read(*names: str) -> str:
    with open(os.path.join(ROOT, *names), encoding="utf-8") as file:
        return file.read()


class Unique(yaml.SafeLoader):
    """YAML as version 1.2 of its specification has it (section 3.2.1.1): the keys of a mapping differ."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) != len(keys):
            raise yaml.YAMLError(f"a key comes twice in the mapping that begins{node.start_mark}")
        return super().construct_mapping(node, deep)


def applied_once() -> dict[str, Any]:
    """Return the objects of playground.yaml by kind; of several of a kind, by kind/name."""
    objects = list(yaml.load_all(read(TEMPLATES, "playground.yaml"), Unique))
    kinds = [item["kind"] for item in objects]
    return {item["kind"] if kinds.count(item["kind"]) == 1
            else f"{item['kind']}/{item['metadata']['name']}": item for item in objects}


def moved(item: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Return an object of playground.yaml as it is in another namespace."""
    name = applied_once()["Namespace"]["metadata"]["name"]
    result: dict[str, Any] = json.loads(re.sub(rf'"(name(?:space)?)": "{name}"', rf'"\1": "{namespace}"',
                                               json.dumps(item)))
    return result


def databases() -> dict[str, list[dict[str, Any]]]:
    """Return the objects that each template of a database makes, by its file's name."""
    names = sorted(set(os.listdir(TEMPLATES)) - {"playground.yaml", "kustomization.yaml", "__pycache__"})
    for name in names:
        list(yaml.load_all(read(TEMPLATES, name), Unique))
    return {name: playground.Template(os.path.join(TEMPLATES, name)).objects_of(**playground.EXAMPLE)
            for name in names}
