"""Tests of devcluster: kubectl's words beside a real API server's, its databases, its faults, its end.

PLAYGROUND_TEST_KUBECONFIG names the kubeconfig of a real cluster (Kubernetes 1.20) to compare with; without
it, the comparison is skipped, by name. It runs with the kubectl on the PATH and, where apt-get can fetch it,
with Debian's 1.20.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import yaml

from tests.harness import KUBECONFIG, PATIENCE_SECONDS, REAL, ROOT, TEMPLATES, applied_once, eventually

CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "devcluster-test")
SETTLE_SECONDS = 5.0  # What is still under way on one of two clusters may differ for so long.
MARIADB = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class DevCluster:
    """A devcluster in a process of its own. Its end must be clean: no output, no file, no process."""

    def __init__(self, *options: str) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 Closed at the end.
        self.process = subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-m", "devcluster",
                                         *options],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=ROOT)
        assert self.process.stdout
        self.first_line = self.process.stdout.readline()
        self.kubeconfig = self.first_line.strip().partition("export KUBECONFIG=")[2]

    def __enter__(self) -> DevCluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(PATIENCE_SECONDS)
        assert self.process.stdout
        self.process.stdout.close()
        self.log.seek(0)
        said = self.log.read().decode()
        self.log.close()
        assert (code, said) == (0, ""), (code, said)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        result = kubectl(self.kubeconfig, *arguments, stdin=stdin)
        if result.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {result.stderr}")
        return result.stdout

    def faults(self, **faults: Any) -> None:
        self.kubectl("create", "--raw", "/devcluster/faults", "-f", "-", stdin=json.dumps(faults))


def kubectl(kubeconfig: str, *arguments: str, stdin: str = "",
            program: str = "kubectl") -> subprocess.CompletedProcess[str]:
    # What kubectl keeps of a server: every devcluster is another one, and the home folder is none of theirs.
    cache = os.path.join(tempfile.gettempdir(), "devcluster-test-kubectl")
    return subprocess.run([program, f"--kubeconfig={kubeconfig}", f"--cache-dir={cache}", *arguments],
                          input=stdin, capture_output=True,
                          text=True, timeout=2 * PATIENCE_SECONDS)


def database(name: str = "mysql-demo", image: str = "mariadb:10.11.18", template: str = "mysql.yaml") -> str:
    """Return a template's objects of one user, as YAML."""
    with open(os.path.join(TEMPLATES, template), encoding="utf-8") as file:
        text = file.read().replace("mariadb:10.11.18", image)
    values = {"name": name, "slug": name.partition("-")[2], "user_id": "demo", "client": "c", "set": '"1"',
              "password": "secret-word", "now": '"2026-01-01T00:00:00Z"'}
    return re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)


# ---- The comparison ------------------------------------------------------------------------------------

SECRET = '{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"%s}, "stringData": {"password": %s}}'
SERVICE = '{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "%s"}, "spec": {"ports": [%s]}}'
SET = ('{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "n"}, "spec": '
       '{"serviceName": "n", "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": '
       '{"a": "%s"}}, "spec": {"containers": [%s]}}}}')
LEASE = ('{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "user-%s"%s}, '
         '"spec": {"holderIdentity": "mysql-a", "renewTime": %s}}')
TIME = '"2026-01-01T00:00:00.000000Z"'
LEASES = "/apis/coordination.k8s.io/v1/namespaces/NS/leases"
TOKEN = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJ4XHUwMDAwIn0"
STALE = ', "resourceVersion": "1"'
FIXED = ('{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "%s"%s}, "immutable": true, '
         '"data": {"password": "%s"}}')
REVIEW = ('{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": '
          '{"resourceAttributes": {"namespace": "NS", "verb": "create", "resource": "leases", '
          '"group": "coordination.k8s.io"}}}')
WATCH = "/api/v1/namespaces/NS/secrets?watch=1&timeoutSeconds=1&resourceVersion="
UID = "00000000-0000-0000-0000-000000000000"
CREATE = "create -f - --validate=false"


def listed(*items: str) -> str:
    """Return objects as a List."""
    return '{"apiVersion": "v1", "kind": "List", "items": [' + ", ".join(items) + "]}"



# In this order, on a namespace of its own: kubectl's arguments, and its stdin. NS is the namespace's name.
COMMANDS: list[tuple[str, str]] = [
    ("create namespace NS", ""),
    ("create namespace NS", ""),
    ("get namespace NS", ""),
    ("get namespace NS -o jsonpath={.status.phase}", ""),
    # The API's errors.
    ("get secret nope", ""),
    ("get statefulset nope -o yaml", ""),
    ("get nothing", ""),
    ("delete secret nope", ""),
    ("annotate secret nope a=b", ""),
    ("get --raw /api/v1/namespaces/NS/nothing", ""),
    ("get secret x y --ignore-not-found -o json", ""),
    (CREATE, SECRET % (', "namespace": "elsewhere"', '"a"')),
    (CREATE, SECRET.replace('"s"', '"A_b"') % ("", '"a"')),
    (CREATE, SECRET % (', "labels": {"a b": "c d"}', '"a"')),
    (CREATE, SECRET % ("", "3306")),
    (CREATE, SECRET.replace('"name": "s"%s', "").replace("%s", '"a"')),
    (CREATE, SERVICE % ("9n", "")),
    (CREATE, SERVICE.replace('"spec": {', '"spec": {"clusterIP": "1.2.3.4", ') % ("n", '{"port": 1}')),
    (CREATE, SET % ("c", "")),
    (CREATE,
     '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n"}, '
     '"spec": {"containers": [{"name": "a"}]}}'),
    ("create -f - --namespace=nowhere-at-all --validate=false", SECRET % ("", '"a"')),
    # Validation before anything is sent.
    ("create -f - --dry-run=server --validate=true", database()),
    ("create -f - --dry-run=server --validate=true", database().replace("resources:", "resuorces:")),
    ("create -f - --dry-run=server --validate=true",
     database().replace("containerPort: 3306", "containerPort: many")),
    ("create -f - --dry-run=server --validate=true", SERVICE % ("n", '{"targetPort": 1}')),
    ("apply -f - --dry-run=server", SECRET % (', "labels": ["a"]', '"a"')),
    # One user's database, as the server creates, observes, annotates and deletes it.
    ("create -f - --validate=false -o name", database()),
    ("create -f - --validate=false -o name", database()),
    ("rollout status statefulset/mysql-demo --timeout=30s", ""),
    ("wait --for=condition=Ready pod/mysql-demo-0 --timeout=30s", ""),
    ("get all", ""),
    ("get all -o wide", ""),
    ("get secret/mysql-demo service/mysql-demo statefulset/mysql-demo -o yaml", ""),
    ("get statefulset,service,secret mysql-demo --ignore-not-found -o name", ""),
    ("get pods -l app.kubernetes.io/name=mysql,!nothing -o name", ""),
    ("get pods -l 'playground.sqlflow.org/user notin (demo)'", ""),
    ("get pods --field-selector status.phase=Running --no-headers", ""),
    ("get pods --field-selector a=b", ""),
    ("get pods -l a==b=c", ""),
    ("get statefulset -L playground.sqlflow.org/user --show-labels", ""),
    ("get service -o jsonpath={.items[*].spec.ports[*].targetPort}", ""),
    ("get pods --sort-by=.metadata.name", ""),
    ("get secrets --field-selector type=Opaque", ""),
    ("get events --field-selector involvedObject.kind=StatefulSet,reason=SuccessfulCreate", ""),
    ("annotate --overwrite -f - a=b -o name", database()),
    ("annotate statefulset mysql-demo a=c", ""),
    ("annotate statefulset mysql-demo a-", ""),
    ("label secret mysql-demo app.kubernetes.io/managed-by-", ""),
    ("label secret mysql-demo app.kubernetes.io/managed-by=x", ""),
    ("label secret mysql-demo bad=a+b", ""),
    ("patch secret mysql-demo -p '{\"stringData\":{\"password\":\"edited\"}}'", ""),
    ("patch service mysql-demo --type=merge -p '{\"spec\":{\"ports\":[{\"port\":1}]}}'", ""),
    ("patch statefulset mysql-demo -p '{\"spec\":{\"serviceName\":\"x\"}}'", ""),
    ("patch statefulset mysql-demo -p '{\"metadata\":{\"resourceVersion\":\"1\"}}'", ""),
    ("get secret mysql-demo -o jsonpath={.data.password}", ""),
    ("get statefulset mysql-demo -o jsonpath={.status.readyReplicas}/{.status.observedGeneration}", ""),
    ("apply -f -", SECRET % ("", '"a"')),
    ("apply -f -", SECRET % ("", '"a"')),
    ("apply -f -", SECRET % ("", '"b"')),
    ("describe secret s", ""),
    ("create quota full --hard=pods=1,services=1", ""),
    ("create configmap c --from-literal=a=b", ""),
    ("get configmap c -o yaml", ""),
    (CREATE, SERVICE % ("more", '{"port": 1}')),
    ("get quota", ""),
    ("delete quota full", ""),
    # Leases: what the server knows of its users.
    (CREATE, listed(LEASE % ("a", "", TIME), LEASE % ("b", "", TIME))),
    (CREATE, listed(LEASE % ("a", "", TIME), LEASE % ("c", "", '"2026-01-01T01:00:00.5Z"'),
                    LEASE % ("d", "", '"2026-01-01T01:00:00.123456+01:00"'))),
    (CREATE, LEASE % ("e", "", "5")),
    (CREATE, LEASE % ("e", "", '"tomorrow"')),
    (CREATE, LEASE % ("e", "", TIME + ', "leaseDurationSeconds": 0, "leaseTransitions": -1')),
    ("create -f - --dry-run=server --validate=true", LEASE % ("e", "", TIME)),
    ("create -f - --dry-run=server --validate=true",
     LEASE.replace("renewTime", "renewedAt") % ("e", "", TIME)),
    ("get leases", ""),
    ("get leases --sort-by=.spec.renewTime -o custom-columns=N:.metadata.name,T:.spec.renewTime", ""),
    ("get lease user-d -o yaml", ""),
    ("annotate lease user-a playground.sqlflow.org/client=other", ""),
    ("patch -f - --type=merge -p '{\"spec\":{\"renewTime\":\"2026-02-01T00:00:00.000001Z\"}}'",
     listed(LEASE % ("a", "", TIME), LEASE % ("gone", "", TIME), LEASE % ("b", "", TIME))),
    ("patch lease user-a --type=merge -p '{\"metadata\":{\"resourceVersion\":\"1\"}}'", ""),
    ("patch lease user-gone --type=merge -p '{\"spec\":{\"holderIdentity\":\"x\"}}'", ""),
    ("get leases -o jsonpath={.items[*].spec.renewTime}", ""),
    ("replace -f -", LEASE.replace("mysql-a", "mysql-b") % ("a", "", TIME)),
    ("replace -f -", LEASE % ("a", STALE, TIME)),
    ("replace -f -", LEASE % ("a", f', "uid": "{UID}"', TIME)),
    ("replace --raw " + LEASES + "/user-a -f -", LEASE % ("a", "", TIME)),
    ("replace --raw " + LEASES + "/user-a -f -", LEASE % ("b", STALE, TIME)),
    # A resourceVersion does not keep a Lease that has gone from being made anew; a uid does.
    ("replace -f -", LEASE % ("new", STALE + f', "uid": "{UID}"', TIME)),
    ("replace -f -", LEASE % ("new", STALE, TIME)),
    ("get --raw " + LEASES + "?watch=1&timeoutSeconds=1&fieldSelector=metadata.name=nope", ""),
    ("delete --raw " + LEASES + "/user-a -f -", f'{{"preconditions": {{"uid": "{UID}"}}}}'),
    ("delete --raw " + LEASES + "/user-a -f -", '{"preconditions": {"resourceVersion": "1"}}'),
    ("delete --raw " + LEASES + "/user-a -f -", "{}"),
    ("delete leases -l nothing=here", ""),
    ("get leases -o name", ""),
    # Secrets that do not change, and are labelled.
    (CREATE, listed(FIXED % ("f", "", "YQ=="), FIXED % ("g", "", "YQ=="))),
    ("replace -f -", listed(FIXED % ("f", ', "labels": {"user": "a"}' + STALE, "YQ=="),
                            FIXED % ("g", ', "labels": {"user": "b"}', "YQ=="),
                            FIXED % ("gone", STALE, "YQ=="))),
    ("replace -f -", FIXED % ("f", "", "Yg==")),
    ("replace -f -", (FIXED % ("f", "", "Yg==")).replace("true", 'false, "type": "x"')),
    ("replace -f -", FIXED % ("f", f', "uid": "{UID}"', "YQ==")),
    ("replace --raw /api/v1/namespaces/NS/secrets/f -f -", FIXED % ("g", "", "YQ==")),
    ("patch secret f -p '{\"stringData\":{\"password\":\"b\"}}'", ""),
    ("label secret f a=b", ""),
    ("get secrets -l user --show-labels", ""),
    # Lists in pages.
    ("get leases --chunk-size=1 -o name", ""),
    ("get leases --chunk-size=2", ""),
    ("get --raw " + LEASES + "?limit=2", ""),
    ("get --raw " + LEASES + "?limit=1&labelSelector=!nothing", ""),
    ("get --raw " + LEASES + "?limit=x", ""),
    ("get --raw " + LEASES + f"?limit=1&continue={TOKEN}&resourceVersion=1", ""),
    # Preconditions and watches.
    ("delete --raw /api/v1/namespaces/NS/secrets/mysql-demo -f -",
     f'{{"preconditions": {{"uid": "{UID}"}}}}'),
    ("delete --raw /api/v1/namespaces/NS/secrets/mysql-demo -f -",
     '{"preconditions": {"resourceVersion": "1"}}'),
    ("delete --raw /api/v1/namespaces/NS/secrets/nope -f -", "{}"),
    ("get --raw " + WATCH + "x", ""),
    ("get --raw " + WATCH + "0&fieldSelector=metadata.name=nope", ""),
    ("get --raw /api/v1/namespaces/NS/secrets?resourceVersion=99999999999&timeoutSeconds=1", ""),
    ("delete --raw /api/v1/namespaces/NS/secrets/s -f -", "{}"),
    ("logs mysql-demo-0 -c nope", ""),
    # Rights.
    ("auth can-i create statefulsets", ""),
    ("create -f -", listed(REVIEW, REVIEW)),
    ("create -f - -o yaml", listed(REVIEW, REVIEW.replace("create", "delete"))),
    ("create -f - -o yaml --context=nobody --validate=false", REVIEW),
    ("create -f -", REVIEW.replace("verb", "verve")),
    ("create -f - --validate=false", REVIEW.replace("resourceAttributes", "attributes")),
    ("auth can-i list secrets --context=nobody", ""),
    ("get secrets --context=nobody", ""),
    ("get secret s --context=nobody", ""),
    ("get --raw /api/v1/namespaces/NS/secrets --context=nobody", ""),
    ("create -f - --validate=false --context=nobody", SECRET % ("", '"a"')),
    ("get namespaces --context=nobody", ""),
    ("get secrets --token=wrong", ""),
    # Deleting.
    ("delete secret,service,statefulset -l playground.sqlflow.org/user=demo --wait=false "
     "--ignore-not-found -o name", ""),
    ("wait --for=delete pod/mysql-demo-0 --timeout=30s", ""),
    ("get all", ""),
    (CREATE, database("mysql-never", "never-ready")),
    ("wait --for=condition=PodScheduled pod/mysql-never-0 --timeout=30s", ""),
    ("get pods", ""),
    ("rollout status statefulset/mysql-never --timeout=1s", ""),
    ("delete statefulset mysql-never --cascade=orphan", ""),
    ("get pods -o name", ""),
    ("delete pod mysql-never-0", ""),
    ("delete namespace NS --wait=false", ""),
]
# What is another each time, or on another machine, or not devcluster's: see its docstring.
MASKS = [
    (r"(?m)^( *)managedFields:\n(?:\1(?:- |  ).*\n)*", ""),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME"), (r'"continue":"[^"]*"', "CONTINUE"),
    (r'"managedFields":\[.*?\}\],', ""), (r"[IWEF]\d{4} [\d:.]+ +\d+ ", "LOG "),
    (r"\b127\.9[67]\.\d+\.\d+", "ADDRESS"), (r'(resourceVersion\\?"?: ?)\\?"?\d+\\?"?', r"\1VERSION"),
    (r"in record \(\d+\)|current: \d+|old resource version: .*?\)", "VERSION"), (r"\b\d+(m\d*)?s\b", "AGE"),
    (r"(mysql-\w+)-[0-9a-f]{8,10}\b", r"\1-HASH"), (r"\bhollow\b|\bdevcluster\b", "NODE"), (r"  +", "  "),
    (r"(?m)^Warning: batch/v1beta1 CronJob .*\n", ""), (r"ADDRESS:\d+|127\.0\.0\.1:\d+", "SERVER"),
]


def fetched_kubectl() -> str:
    """Return Debian's kubectl 1.20, fetched into a cache of the tests' own, or nothing."""
    path = os.path.join(CACHE, "usr/bin/kubectl")
    if not os.path.exists(path) and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        os.makedirs(CACHE, exist_ok=True)
        subprocess.run(["apt-get", "download", "kubernetes-client"], cwd=CACHE, capture_output=True)
        for package in glob.glob(os.path.join(CACHE, "kubernetes-client_*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, CACHE], capture_output=True)
            with contextlib.suppress(FileNotFoundError):  # Another test process fetches it as well.
                os.remove(package)
    return path if os.path.exists(path) else ""


def masked(result: subprocess.CompletedProcess[str], namespace: str) -> str:
    out = result.stdout
    with contextlib.suppress(ValueError):  # The order of fields says nothing.
        if out[:1] == "{":
            out = json.dumps(json.loads(out), sort_keys=True, separators=(",", ":")) + "\n"
    text = f"{out}-- stderr --\n{result.stderr}-- exit {result.returncode}"
    for pattern, replacement in MASKS:
        text = re.sub(pattern, replacement, text)
    return text.replace(namespace, "NS")


def run_on_both(program: str) -> list[tuple[str, str, str]]:
    """Run the commands with one kubectl; return each with what it printed for devcluster and the real one."""
    namespace, results = f"compared-{secrets.token_hex(4)}", []
    with DevCluster("--hollow") as devcluster, ThreadPoolExecutor(2) as pool:
        for arguments, stdin in COMMANDS:
            words = [f"--namespace={namespace}", *shlex.split(arguments.replace("NS", namespace))]

            def run(config: str, words: list[str] = words, stdin: str = stdin) -> str:
                return masked(kubectl(config, *words, stdin=stdin, program=program), namespace)
            deadline = time.monotonic() + SETTLE_SECONDS
            ours, real = pool.map(run, (devcluster.kubeconfig, KUBECONFIG))
            while ours != real and words[1] in ("get", "rollout", "wait") and time.monotonic() < deadline:
                time.sleep(0.2)  # Controllers need their time, on both sides.
                ours, real = pool.map(run, (devcluster.kubeconfig, KUBECONFIG))
            results.append((arguments, ours, real))
    return results


@unittest.skipUnless(REAL, "no real cluster to compare with: PLAYGROUND_TEST_KUBECONFIG is not set")
class Comparison(unittest.TestCase):
    """kubectl cannot tell devcluster from a real API server."""

    maxDiff = None
    runs: ClassVar[dict[str, Future[list[tuple[str, str, str]]]]]

    @classmethod
    def setUpClass(cls) -> None:
        pool = ThreadPoolExecutor(2)  # Most of the time both wait.
        cls.addClassCleanup(pool.shutdown)
        cls.runs = {program: pool.submit(run_on_both, program) for program in ("kubectl", fetched_kubectl())
                    if program}

    def compare(self, program: str) -> None:
        for arguments, ours, real in self.runs[program].result():
            with self.subTest(kubectl=arguments):
                self.assertEqual(ours, real)

    def test_kubectl_on_the_path(self) -> None:
        self.compare("kubectl")

    def test_debians_kubectl(self) -> None:
        if not fetched_kubectl():
            self.skipTest("Debian's kubernetes-client cannot be fetched here")
        self.compare(fetched_kubectl())


# ---- What runs ------------------------------------------------------------------------------------------

class Process(unittest.TestCase):
    def test_ctrl_c_and_sigterm_leave_neither_process_nor_file(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with DevCluster() as devcluster:
                folder = os.path.dirname(devcluster.kubeconfig)
                self.assertEqual(os.stat(folder).st_mode & 0o777, 0o700)
                devcluster.kubectl("create", "-f", "-", stdin=database())
                if MARIADB:
                    eventually(lambda folder=folder: processes(folder), "a database runs")
                devcluster.process.send_signal(number)
            self.assertFalse(os.path.exists(folder))
            self.assertEqual(processes(folder), [])

    def test_state_that_was_given_is_kept_and_used_again(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                with DevCluster("--hollow", f"--state={folder}") as devcluster:
                    self.assertEqual(devcluster.kubeconfig, os.path.join(folder, "kubeconfig"))
                    devcluster.kubectl("get", "namespaces")
            self.assertTrue(os.path.exists(os.path.join(folder, "kubeconfig")))

    def test_port_in_use_is_said_in_one_line(self) -> None:
        with DevCluster("--hollow") as devcluster:
            port = re.findall(r":(\d+)", devcluster.kubectl("config", "view"))[-1]
            result = subprocess.run([sys.executable, "-m", "devcluster", f"--port={port}"],
                                    capture_output=True, text=True, cwd=ROOT)
            self.assertEqual((result.returncode, result.stdout, result.stderr.count("\n")), (2, "", 1))
            self.assertIn("in use", result.stderr)


def processes(folder: str) -> list[int]:
    """Return the processes that were started with files of a folder."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            if f"={folder}/" in file.read():
                found.append(int(path.split("/")[2]))
    return found


@unittest.skipUnless(MARIADB,
                     "mariadbd is not installed: apt-get install mariadb-server-core mariadb-client-core")
class Database(unittest.TestCase):
    """A pod whose MariaDB runs."""

    devcluster: ClassVar[DevCluster]

    @classmethod
    def setUpClass(cls) -> None:
        cls.devcluster = DevCluster()
        cls.addClassCleanup(cls.devcluster.__exit__)
        sample_data = applied_once()["ConfigMap"]
        del sample_data["metadata"]["namespace"]
        cls.devcluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(sample_data))

    def start(self, name: str, template: str = "mysql.yaml") -> str:
        """Apply a database's objects; return the address of its Service once it is ready."""
        self.devcluster.kubectl("apply", "-f", "-", stdin=database(name, template=template))
        self.devcluster.kubectl("rollout", "status", f"statefulset/{name}", "--timeout=30s")
        return self.devcluster.kubectl("get", "service", name, "-o", "jsonpath={.spec.clusterIP}")

    def query(self, address: str, sql: str) -> str:
        return subprocess.run(["mariadb", f"--host={address}", "--user=root", "--skip-column-names",
                               f"--execute={sql}"],
                              capture_output=True, text=True, check=True,
                              env={**os.environ, "MYSQL_PWD": "secret-word"}).stdout

    def pod(self, name: str) -> Any:
        return json.loads(self.devcluster.kubectl("get", "pod", f"{name}-0", "-o", "json"))

    def restarts(self, name: str) -> int:
        return int(self.pod(name)["status"]["containerStatuses"][0]["restartCount"])

    def test_query_through_the_service_returns_rows_of_iris(self) -> None:
        address = self.start("mysql-iris")
        self.assertTrue(address.startswith("127.96."))
        self.assertEqual(self.query(address, "SELECT COUNT(*), MAX(class) FROM iris.train").split(),
                         ["110", "2"])
        self.assertEqual(self.query(address, "SELECT @@max_allowed_packet").strip(), str(64 << 20))
        with self.assertRaises(subprocess.CalledProcessError):
            self.query(address, "SELECT 1 INTO OUTFILE '/tmp/devcluster-must-not-write-here'")
        self.assertIn("ready for connections", self.devcluster.kubectl("logs", "mysql-iris-0"))
        folder = os.path.join(os.path.dirname(self.devcluster.kubeconfig), "pods",
                              self.pod("mysql-iris")["metadata"]["uid"])
        self.devcluster.kubectl("delete", "statefulset", "mysql-iris")
        eventually(lambda: not os.path.exists(folder) and not processes(folder),
                   "the process and its data are gone")

    def test_killed_database_comes_back_with_its_data_and_pauses_grow(self) -> None:
        address = self.start("mysql-killed")
        self.query(address, "CREATE TABLE iris.mine (a INT); INSERT INTO iris.mine VALUES (7)")
        self.devcluster.faults(kill_pods="mysql-killed-*")
        eventually(lambda: self.restarts("mysql-killed") == 1, "the restart is counted")
        self.devcluster.kubectl("wait", "--for=condition=Ready", "pod/mysql-killed-0", "--timeout=30s")
        self.assertEqual(self.query(address, "SELECT * FROM iris.mine").strip(), "7")
        self.devcluster.faults(kill_pods="mysql-killed-*")
        eventually(lambda: "CrashLoopBackOff" in self.devcluster.kubectl("get", "pods"),
                   "the second restart waits")
        self.assertIn("0/1", self.devcluster.kubectl("get", "pod", "mysql-killed-0"))

    def test_claim_keeps_the_tables_that_the_next_pod_finds_until_it_is_deleted(self) -> None:
        address = self.start("mysql-kept", "mysql-persistent.yaml")
        self.query(address, "CREATE TABLE iris.mine (a INT); INSERT INTO iris.mine VALUES (7)")
        self.devcluster.kubectl("delete", "statefulset,service", "mysql-kept")  # As the sweep does.
        eventually(lambda: "mysql-kept-0" not in self.devcluster.kubectl("get", "pods"), "the pod is gone")
        self.assertEqual(self.query(self.start("mysql-kept", "mysql-persistent.yaml"),
                                    "SELECT * FROM iris.mine").strip(), "7")
        self.devcluster.kubectl("delete", "statefulset,service,secret,persistentvolumeclaim", "mysql-kept")
        claims = os.path.join(os.path.dirname(self.devcluster.kubeconfig), "claims")
        eventually(lambda: not os.listdir(claims), "its data is gone")

    def test_container_waits_for_the_secret_that_it_refers_to(self) -> None:
        secret, rest = database("mysql-late").split("---", 1)
        self.devcluster.kubectl("create", "-f", "-", stdin=rest)
        eventually(lambda: "CreateContainerConfigError" in self.devcluster.kubectl("get", "pods"),
                   "the reason shows")
        self.devcluster.kubectl("create", "-f", "-", stdin=secret)
        self.devcluster.kubectl("rollout", "status", "statefulset/mysql-late", "--timeout=30s")


class Faults(unittest.TestCase):
    devcluster: ClassVar[DevCluster]

    @classmethod
    def setUpClass(cls) -> None:
        cls.devcluster = DevCluster("--hollow")
        cls.addClassCleanup(cls.devcluster.__exit__)
        cls.devcluster.kubectl("create", "-f", "-", stdin=database())
        cls.devcluster.kubectl("rollout", "status", "statefulset/mysql-demo", "--timeout=30s")

    def setUp(self) -> None:
        self.addCleanup(self.devcluster.faults)

    def raw(self, options: str) -> tuple[str, float]:
        """Return what a list or watch of Secrets prints, and how long that took."""
        started = time.monotonic()
        result = kubectl(self.devcluster.kubeconfig, "get", "--raw",
                         f"/api/v1/namespaces/default/secrets?{options}")
        return result.stdout + result.stderr, time.monotonic() - started

    def watch(self) -> subprocess.Popen[str]:
        """Start a watch that lasts; it prints what there is."""
        watch = subprocess.Popen(["kubectl", f"--kubeconfig={self.devcluster.kubeconfig}", "get", "--raw",
                                  "/api/v1/namespaces/default/secrets?watch=1&timeoutSeconds=60"],
                                 stdout=subprocess.PIPE, text=True)
        self.addCleanup(watch.wait)
        self.addCleanup(watch.kill)
        assert watch.stdout
        self.addCleanup(watch.stdout.close)
        self.assertIn("ADDED", watch.stdout.readline())
        return watch

    def test_slow_answers(self) -> None:
        self.devcluster.faults(latency_seconds=1)
        self.assertGreater(self.raw("")[1], 1)

    def test_errors_are_as_many_as_ordered(self) -> None:
        self.devcluster.faults(errors=1)
        self.assertIn("InternalError", self.raw("")[0])
        self.assertIn("SecretList", self.raw("")[0])

    def test_dropped_connections(self) -> None:
        self.devcluster.faults(drop_connections=True)
        self.assertIn("EOF", self.raw("")[0])

    def test_ended_watches(self) -> None:
        watch = self.watch()
        self.devcluster.faults(end_watches=True)
        self.assertEqual(watch.wait(PATIENCE_SECONDS), 0)

    def test_silent_watches(self) -> None:
        self.devcluster.faults(silence_watches=True)
        watch = subprocess.Popen(["kubectl", f"--kubeconfig={self.devcluster.kubeconfig}", "get", "--raw",
                                  "/api/v1/namespaces/default/secrets?watch=1&timeoutSeconds=2"
                                  "&resourceVersion=1"],
                                 stdout=subprocess.PIPE, text=True)
        self.assertEqual((watch.communicate()[0], watch.returncode), ("", 0))

    def test_lost_history(self) -> None:
        version = json.loads(self.raw("")[0])["metadata"]["resourceVersion"]
        watch = self.watch()
        self.devcluster.faults(expire_watches=True)
        assert watch.stdout
        self.assertIn('"code":410', watch.stdout.readline())
        self.assertIn('"code":410', self.raw(f"watch=1&resourceVersion={version}&timeoutSeconds=5")[0])
        self.assertIn("(Expired)", self.raw(f"resourceVersion={version}&resourceVersionMatch=Exact")[0])

    def test_bookmark_comes_before_the_end(self) -> None:
        version = json.loads(self.raw("")[0])["metadata"]["resourceVersion"]
        events = self.raw(f"watch=1&resourceVersion={version}&timeoutSeconds=3&allowWatchBookmarks=true")[0]
        self.assertEqual([json.loads(line)["type"] for line in events.splitlines()], ["BOOKMARK"])

    def test_pods_that_are_not_ready_and_pods_killed(self) -> None:
        self.devcluster.faults(never_ready="mysql-*")
        eventually(lambda: "0/1" in self.devcluster.kubectl("get", "pods"), "it is not ready any more")
        self.devcluster.faults(kill_pods="mysql-*")
        eventually(lambda: re.search(r"1/1 +Running +1", self.devcluster.kubectl("get", "pods")),
                   "it is back")

    def test_unknown_fault_is_refused_and_only_the_admin_orders(self) -> None:
        for context, words in (("admin", "unknown fault"), ("nobody", "Forbidden")):
            result = kubectl(self.devcluster.kubeconfig, f"--context={context}", "create", "--raw",
                             "/devcluster/faults", "-f", "-",
                             stdin='{"flood": true}')
            self.assertIn(words, result.stderr)
