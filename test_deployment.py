"""Tests of what a maintainer runs in a cluster: the objects in k8s_templates/, the image, the documents.

Environment as for test_playground.py, whose server these tests run, too.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, ClassVar, NamedTuple

import kubernetes_validate  # type: ignore[import-untyped]
import yaml
from prometheus_client.parser import text_string_to_metric_families

import playground
import test_playground as test

HERE = test.HERE
TEMPLATES = os.path.join(HERE, "k8s_templates")


def setUpModule() -> None:
    test.setUpModule()


def tearDownModule() -> None:
    unittest.doModuleCleanups()  # pytest leaves that to us.


def read(*names: str) -> str:
    with open(os.path.join(HERE, *names), encoding="utf-8") as file:
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
    return {item["kind"] if kinds.count(item["kind"]) == 1 else f"{item['kind']}/{item['metadata']['name']}": item for item in objects}


def moved(item: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Return an object of playground.yaml as it is in another namespace."""
    name = applied_once()["Namespace"]["metadata"]["name"]
    result: dict[str, Any] = json.loads(re.sub(rf'"(name(?:space)?)": "{name}"', rf'"\1": "{namespace}"', json.dumps(item)))
    return result


def databases() -> dict[str, list[dict[str, Any]]]:
    """Return the objects that each template of a database makes, by its file's name."""
    names = sorted(set(os.listdir(TEMPLATES)) - {"playground.yaml", "__pycache__"})
    for name in names:
        list(yaml.load_all(read(TEMPLATES, name), Unique))
    values = {**playground.EXAMPLE, "now": playground.rfc3339(0)}
    return {name: playground.Template(os.path.join(TEMPLATES, name)).fill(values) for name in names}


def everything() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of every template, and where it is from."""
    for name, objects in {"playground.yaml": list(applied_once().values()), **databases()}.items():
        for item in objects:
            yield f"{name}: {item['kind']} {item['metadata']['name']}", item


def pods() -> dict[str, dict[str, Any]]:
    """Return the specification of every pod, and where it is from."""
    return {place: item["spec"]["template"]["spec"] for place, item in everything() if "template" in item.get("spec", {})}


# ---- The objects ---------------------------------------------------------------------------------------

# Kubernetes' Pod Security Standards, profile "restricted", which includes "baseline": the controls by their names in
# the documentation, and what must hold for each pod, or for each container c. What concerns Windows is left out.
POD_CONTROLS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "Host Namespaces": lambda pod: not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
    "Volume Types": lambda pod: all(volume.keys() - {"name"} <= {
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"}
        for volume in pod.get("volumes", ())),
    "SELinux": lambda pod: "seLinuxOptions" not in pod.get("securityContext", {}),
    "Sysctls": lambda pod: not pod.get("securityContext", {}).get("sysctls"),
    "AppArmor": lambda pod: pod.get("securityContext", {}).get("appArmorProfile", {}).get("type") in (None, "RuntimeDefault", "Localhost"),
    "HostProcess": lambda pod: "windowsOptions" not in pod.get("securityContext", {}),
    "Running as Non-root": lambda pod: pod.get("securityContext", {}).get("runAsNonRoot") is True,
    "Running as Non-root user": lambda pod: pod.get("securityContext", {}).get("runAsUser") != 0,
    "Seccomp": lambda pod: pod.get("securityContext", {}).get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
}
CONTAINER_CONTROLS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "Privileged Containers": lambda c: not c.get("securityContext", {}).get("privileged"),
    "Privilege Escalation": lambda c: c.get("securityContext", {}).get("allowPrivilegeEscalation") is False,
    "Capabilities": lambda c: "ALL" in c.get("securityContext", {}).get("capabilities", {}).get("drop", ())
        and set(c["securityContext"]["capabilities"].get("add", ())) <= {"NET_BIND_SERVICE"},
    "Host Ports": lambda c: not any(port.get("hostPort") for port in c.get("ports", ())),
    "Host Probes / Lifecycle Hooks": lambda c: not re.search(r'"(httpGet|tcpSocket)": {[^{}]*"host"', json.dumps(c)),
    "/proc Mount Type": lambda c: c.get("securityContext", {}).get("procMount", "Default") == "Default",
    # A container may say otherwise than its pod does.
    "Running as Non-root, Running as Non-root user, Seccomp, SELinux, AppArmor": lambda c: not c.get("securityContext", {}).keys() & {
        "runAsNonRoot", "runAsUser", "seccompProfile", "seLinuxOptions", "appArmorProfile", "windowsOptions"},
}
# For each control something that breaks it; "c" stands for the first container.
BREACHES: dict[str, tuple[str, Any]] = {
    "Host Namespaces": ("hostPID", True), "Volume Types": ("volumes", [{"name": "x", "hostPath": {"path": "/"}}]),
    "SELinux": ("securityContext.seLinuxOptions", {"type": "x"}), "Sysctls": ("securityContext.sysctls", [{"name": "x", "value": "1"}]),
    "AppArmor": ("securityContext.appArmorProfile", {"type": "Unconfined"}), "HostProcess": ("securityContext.windowsOptions", {}),
    "Running as Non-root": ("securityContext.runAsNonRoot", False), "Running as Non-root user": ("securityContext.runAsUser", 0),
    "Seccomp": ("securityContext.seccompProfile", {"type": "Unconfined"}), "Privileged Containers": ("c.securityContext.privileged", True),
    "Privilege Escalation": ("c.securityContext.allowPrivilegeEscalation", True),
    "Capabilities": ("c.securityContext.capabilities.add", ["SYS_ADMIN"]), "Host Ports": ("c.ports", [{"containerPort": 1, "hostPort": 1}]),
    "Host Probes / Lifecycle Hooks": ("c.readinessProbe", {"tcpSocket": {"port": 1, "host": "x"}}),
    "/proc Mount Type": ("c.securityContext.procMount", "Unmasked"),
    "Running as Non-root, Running as Non-root user, Seccomp, SELinux, AppArmor": ("c.securityContext.runAsUser", 0),
}


def broken_controls(pod: dict[str, Any]) -> list[str]:
    """Return the names of the controls of the restricted profile that a pod does not keep to."""
    containers = [*pod["containers"], *pod.get("initContainers", ()), *pod.get("ephemeralContainers", ())]
    return [name for name, holds in POD_CONTROLS.items() if not holds(pod)] + [
        name for name, holds in CONTAINER_CONTROLS.items() if not all(map(holds, containers))]


def number(quantity: str | int) -> float:
    """Read a quantity of Kubernetes, such as 50m or 27Gi."""
    match = re.fullmatch(r"([0-9.]+)(m|[KMG]i)?", str(quantity))
    assert match, quantity
    return float(match[1]) * {None: 1, "m": 0.001, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[match[2]]


class Objects(unittest.TestCase):
    """What the templates hold, without a cluster."""

    def test_every_object_is_valid_for_the_newest_kubernetes_that_is_known(self) -> None:
        for place, item in everything():
            with self.subTest(place):
                kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)

    def test_every_pod_keeps_to_the_restricted_pod_security_standard(self) -> None:
        self.assertEqual(len(pods()), 4)
        for place, pod in pods().items():
            with self.subTest(place):
                self.assertEqual(broken_controls(pod), [])
                self.assertTrue(all(container["securityContext"]["readOnlyRootFilesystem"] for container in pod["containers"]))

    def test_each_control_of_that_standard_is_found_broken_where_it_is(self) -> None:
        self.assertEqual(BREACHES.keys(), POD_CONTROLS.keys() | CONTAINER_CONTROLS.keys())
        for control, (where, value) in BREACHES.items():
            pod = copy.deepcopy(next(iter(pods().values())))
            *path, last = where.split(".")
            inner = pod
            for key in path:
                inner = pod["containers"][0] if key == "c" else inner[key]
            inner[last] = value
            with self.subTest(control):
                self.assertEqual(broken_controls(pod), [control])

    def test_every_container_states_what_it_needs_and_the_most_it_may_take(self) -> None:
        for place, pod in pods().items():
            for container in pod["containers"]:
                for kind in ("requests", "limits"):
                    self.assertEqual(set(container["resources"][kind]), {"cpu", "memory", "ephemeral-storage"}, place)

    def test_quota_has_room_for_as_many_databases_as_the_server_makes_and_for_itself(self) -> None:
        objects = applied_once()
        hard, deployment = objects["ResourceQuota"]["spec"]["hard"], objects["Deployment"]["spec"]
        server = deployment["template"]["spec"]["containers"][0]
        servers = deployment["replicas"] + deployment["strategy"]["rollingUpdate"]["maxSurge"]
        (count,) = (int(argument.split("=")[1]) for argument in server["args"] if argument.startswith("--max_databases="))
        for name, template in databases().items():
            made = {item["kind"]: item["spec"] for item in template if "spec" in item}
            database = made["StatefulSet"]["template"]["spec"]["containers"][0]
            for kind in ("requests.cpu", "requests.memory", "limits.memory", "requests.ephemeral-storage"):
                one, several = (container["resources"][kind.split(".")[0]][kind.split(".")[1]] for container in (database, server))
                with self.subTest(name, kind=kind):
                    self.assertGreaterEqual(number(hard[kind]), count * number(one) + servers * number(several))
            if claim := made.get("PersistentVolumeClaim"):
                self.assertGreaterEqual(number(hard["requests.storage"]), count * number(claim["resources"]["requests"]["storage"]))
        for kind, more in (("pods", servers), ("services", 2), ("count/statefulsets.apps", 0), ("persistentvolumeclaims", 0)):
            self.assertGreaterEqual(int(hard[kind]), count + more, kind)

    def test_server_has_the_time_to_end_before_it_is_killed(self) -> None:
        pod = applied_once()["Deployment"]["spec"]["template"]["spec"]
        command, wait = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        self.assertEqual(command, "sleep")
        self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], int(wait) + playground.STOP_SECONDS + playground.LAST_BEATS_SECONDS)

    def test_databases_are_what_their_network_policy_selects_and_the_server_is_not(self) -> None:
        objects = applied_once()
        policy = objects["NetworkPolicy/databases"]["spec"]
        selected = policy["podSelector"]["matchLabels"].items()
        for name, template in databases().items():
            (labels,) = (item["spec"]["template"]["metadata"]["labels"] for item in template if item["kind"] == "StatefulSet")
            self.assertLessEqual(selected, labels.items(), name)
        labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
        self.assertFalse(selected <= labels.items())
        for name in ("NetworkPolicy/playground", "Service/playground", "Service/playground-servers", "PodDisruptionBudget"):
            selector = objects[name]["spec"].get("podSelector", objects[name]["spec"].get("selector"))
            self.assertEqual(selector.get("matchLabels", selector), labels, name)
        (allowed,) = policy["ingress"]
        self.assertEqual(allowed["ports"], [{"protocol": "TCP", "port": 3306}])
        clients = allowed["from"][0]["namespaceSelector"]["matchLabels"]
        self.assertLessEqual(clients.items(), objects["Namespace"]["metadata"]["labels"].items())
        self.assertEqual(policy["egress"], [])

    def test_all_but_the_namespace_is_in_it(self) -> None:
        objects = applied_once()
        for name, item in objects.items():
            if name != "Namespace":
                self.assertEqual(item["metadata"]["namespace"], objects["Namespace"]["metadata"]["name"], name)

    def test_sample_data_alone_can_be_taken_out_of_the_file(self) -> None:
        (item,) = yaml.safe_load_all(read(TEMPLATES, "playground.yaml").partition("# ---- Sample data")[2].partition("\n")[2])
        self.assertEqual(item, applied_once()["ConfigMap"])
        self.assertEqual(item["metadata"]["name"], playground.SAMPLE_DATA)

    def test_image_is_of_this_version_pinned_and_runs_as_its_user(self) -> None:
        lines = read("Dockerfile")
        pod = applied_once()["Deployment"]["spec"]["template"]["spec"]
        image = pod["containers"][0]["image"]
        self.assertEqual(image.partition(":")[2], playground.__version__)
        for name in ("Dockerfile", "docs/maintainer.md"):
            self.assertEqual(set(re.findall(r"sqlflow-playground:[0-9.]*[0-9]", read(name))), {image}, name)
        for base in re.findall(r"^FROM (\S+)", lines, re.M):
            self.assertRegex(base, r":v?\d+\.\d+\.\d+")
        self.assertIn(f"\nUSER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n", lines)
        (workdir,) = re.findall(r"^WORKDIR (\S+)", lines, re.M)
        self.assertEqual(pod["containers"][0]["volumeMounts"][0]["mountPath"], f"{workdir}/key_store")
        sources = [source for copied in re.findall(r"^COPY (?!--)(.+)", lines, re.M) for source in copied.split()[:-1]]
        allowed = [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]
        self.assertEqual(sources, allowed)

    def test_role_grants_what_check_looks_for_and_what_it_looks_at(self) -> None:
        wanted = {(kind.partition(".")[2], kind.partition(".")[0], verb)
                  for kind, verbs in {**playground.RIGHTS, **playground.CLAIM_RIGHTS}.items() for verb in verbs}
        self.assertEqual(granted(), wanted | {("", "resourcequotas", "list"), ("", "configmaps", "get")})


def granted() -> set[tuple[str, str, str]]:
    """Return the group, resource and verb of each right that the Role grants."""
    return {(group, resource, verb) for rule in applied_once()["Role"]["rules"] for group in rule["apiGroups"]
            for resource in rule["resources"] for verb in rule["verbs"]}


# ---- The server and a database as their pods run them ---------------------------------------------------


def mount(folder: str) -> None:
    """Lay the TLS files as the kubelet does: behind a link, by which it swaps all of them at once."""
    pod = applied_once()["Deployment"]["spec"]["template"]["spec"]
    os.makedirs(folder, exist_ok=True)
    data = tempfile.mkdtemp(prefix="..", dir=folder)
    for item in pod["volumes"][0]["secret"]["items"]:
        top = item["path"].split("/")[0]
        os.makedirs(os.path.join(data, top), exist_ok=True)
        source = "server" if item["key"].startswith("server") else "ca"
        shutil.copy(test.path("key_store", source, item["key"]), os.path.join(data, item["path"]))
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.join("..data", top), os.path.join(folder, top))
    os.symlink(os.path.basename(data), os.path.join(folder, "..new"))
    os.rename(os.path.join(folder, "..new"), os.path.join(folder, "..data"))


def as_deployed(folder: str) -> list[str]:
    """Return the options that the Deployment's server has, given or by default, with the TLS files in a folder."""
    container = applied_once()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    default = vars(playground.parse_arguments([]))
    options = [*(f"--{name}={default[name]}" for name in ("ca_crt", "server_key", "server_crt")), *container["args"]]
    return [option.replace("=key_store/", f"={folder}/").replace("=/tmp/ready", f"={folder}-ready") for option in options]


class Pods(unittest.TestCase):
    """What the containers run, run here."""

    def test_server_starts_with_the_secrets_files_and_takes_them_up_when_the_kubelet_swaps_them(self) -> None:
        mount(test.path("mounted"))
        with test.Running(*as_deployed(test.path("mounted")), kubeconfig=test.path("dead.kubeconfig")) as server:
            self.assertEqual(server.call("bob", "status")[0], 200)
            test.gen_cert("--revoke", "bob")
            mount(test.path("mounted"))
            test.eventually(lambda: server.lines("tls outcome=reloaded"), "the files are taken up")
            with self.assertRaises(subprocess.CalledProcessError):
                server.call("bob", "status")
            self.assertEqual(server.call("alice", "status")[0], 200)

    def test_readiness_probe_waits_until_the_cluster_is_known_and_no_longer(self) -> None:
        container = applied_once()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
        options = as_deployed(test.path("key_store"))
        (ready,) = [option.partition("=")[2] for option in options if option.startswith("--ready_file=")]
        self.assertEqual(container["readinessProbe"]["exec"]["command"], ["test", "-e", "/tmp/ready"])
        with open(ready, "w", encoding="utf-8"):
            pass  # As a server before this one left it.
        with test.Running(*options, kubeconfig=test.path("dead.kubeconfig")) as server:
            test.eventually(lambda: "does not answer" in server.call("alice", "status")[1]["cluster"], "the server has tried")
            time.sleep(2 * playground.RELOAD_SECONDS)
            self.assertFalse(os.path.exists(ready))
        if test.KUBECONFIG:
            with test.Running(*options):
                test.eventually(lambda: os.path.exists(ready), "the probe passes")

    def test_liveness_probe_fails_once_the_server_does_not_shake_hands(self) -> None:
        container = applied_once()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
        python, *arguments = container["livenessProbe"]["exec"]["command"]
        self.assertEqual(python, "python")
        with test.Running(kubeconfig=test.path("dead.kubeconfig")) as server:
            arguments = [argument.replace("50052), 10", f"{server.port}), 2") for argument in arguments]

            def probe() -> int:
                return subprocess.run([sys.executable, *arguments], capture_output=True, timeout=test.PATIENCE_SECONDS).returncode
            self.assertEqual(probe(), 0)
            server.process.send_signal(signal.SIGSTOP)  # The kernel goes on accepting connections.
            self.assertNotEqual(probe(), 0)
            server.process.send_signal(signal.SIGCONT)

    @unittest.skipUnless(shutil.which("mysqld") and shutil.which("mysql_install_db"), "no MariaDB: apt-get install mariadb-server-core")
    def test_sqlflow_image_gets_the_users_password_and_is_ready_when_its_data_is_there(self) -> None:
        (pod,) = (pod for place, pod in pods().items() if place.startswith("sqlflow-mysql"))
        container = pod["containers"][0]
        password = playground.EXAMPLE["password"]
        root = os.geteuid() == 0  # MariaDB refuses to run as root.
        folder = tempfile.mkdtemp(prefix="playground-mysql-")  # A short path: a socket's has at most 107 characters.
        self.addCleanup(shutil.rmtree, folder)
        os.chmod(folder, 0o755)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]

        def here(text: str) -> str:
            """Return a command of the container with this machine's paths and a port that is free."""
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            text = re.sub(rf"({'|'.join(mounts)})\b", lambda match: f"{folder}/{mounts[match[1]]}", text)
            text = text.replace("/datasets/", f"{folder}/datasets/").replace("--protocol=tcp ", f"--protocol=tcp --port={port} ")
            return text.replace("mysqld --no-defaults", f"mysqld --no-defaults --bind-address=127.0.0.1 --port={port}")
        for name in (*(mount["name"] for mount in container["volumeMounts"]), "datasets"):
            os.mkdir(os.path.join(folder, name))
            if root:
                os.chown(os.path.join(folder, name), pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"])
        with open(os.path.join(folder, "datasets", "iris.sql"), "w", encoding="utf-8") as file:
            file.write(applied_once()["ConfigMap"]["data"]["iris.sql"] + "SELECT SLEEP(2);\n")
        ids: dict[str, Any] = {"user": pod["securityContext"]["runAsUser"], "group": pod["securityContext"]["runAsGroup"]} if root else {}

        def run(command: list[str]) -> subprocess.Popen[str]:
            return subprocess.Popen([here(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
                                    env={"PATH": os.environ["PATH"] + ":/usr/sbin", "PASSWORD": password}, **ids)

        def answer(command: list[str]) -> tuple[int, str]:
            with run(command) as process:
                return process.wait(), process.communicate()[0]
        sql = ["mysql", "--no-defaults", "--protocol=tcp", f"--port={port}", "--host=127.0.0.1", "--user=root", "--skip-column-names"]
        ready = container["readinessProbe"]["exec"]["command"]
        for start in ("first", "after its container ended"):
            with self.subTest(start), run(container["command"] + container["args"]) as server:
                try:
                    if start == "first":  # While the data is loaded, the port is closed.
                        test.eventually(lambda: os.path.exists(f"{folder}/data/iris/train.frm"), "data is being loaded")
                        self.assertNotEqual(answer(ready)[0], 0)
                        self.assertNotEqual(answer([*sql, "--password=root"])[0], 0)
                    test.eventually(lambda: server.poll() is not None or answer(ready)[0] == 0, "it is ready")
                    self.assertIsNone(server.poll(), server.poll() is None or server.communicate()[0])
                    told = answer([*sql, f"--password={password}", "--execute=SELECT COUNT(*) FROM iris.train; "
                                   "SELECT User, Host FROM mysql.user WHERE User IN ('root', '')"])
                    self.assertEqual(told[1].split(), ["110", "root", "%"])
                    self.assertIn("Access denied", answer([*sql, "--password=root"])[1])
                finally:
                    server.send_signal(signal.SIGTERM)
                    ended = time.monotonic()
                    server.communicate(timeout=test.PATIENCE_SECONDS)
                self.assertLess(time.monotonic() - ended, pod["terminationGracePeriodSeconds"])


# ---- On a cluster -------------------------------------------------------------------------------------

BEAT = rf"jsonpath={{.metadata.annotations.{playground.LAST_BEAT.replace('.', chr(92) + '.')}}}"
# What kubectl says with -v=6 of each request, before version 1.33 and since.
REQUEST = re.compile(r'(?:\] |verb=")(GET|POST|PUT|PATCH|DELETE)"? (?:url=")?https?://[^/]+(/[^" ]*)')
# A request to a resource in a namespace: its group, resource and name, and its query.
RESOURCE = re.compile(r"/(?:api|apis/([^/]+))/[^/]+/namespaces/[^/]+/([^/?]+)(/[^?]+)?(?:\?(.*))?")


def right(method: str, url: str) -> tuple[str, str, str] | None:
    """Return the group, resource and verb that a request needs (Kubernetes' documentation, "Determine the Request Verb")."""
    match = RESOURCE.fullmatch(url)
    if not match:
        return None  # What every account may do, such as finding out what there is.
    group, resource, name, query = match.groups()
    reading = "get" if name else "watch" if "watch=1" in (query or "") or "watch=true" in (query or "") else "list"
    verb = {"GET": reading, "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete" if name else "deletecollection"}[method]
    return group or "", resource, verb


@unittest.skipUnless(test.REAL, "needs a whole Kubernetes API, and devcluster is none")
class InTheCluster(unittest.TestCase):
    """What playground.yaml makes, in a namespace of this run's own."""

    @classmethod
    def setUpClass(cls) -> None:
        known = test.kubectl("api-versions").split()
        cls.objects = [moved(item, test.namespace) for item in applied_once().values()]
        cls.unknown = [item for item in cls.objects if item["apiVersion"] not in known]

    objects: ClassVar[list[dict[str, Any]]]
    unknown: ClassVar[list[dict[str, Any]]]

    def test_api_server_takes_every_object_whose_version_it_knows(self) -> None:
        self.assertLessEqual({item["kind"] for item in self.unknown}, {"PodDisruptionBudget"})
        for item in [item for item in self.objects if item not in self.unknown] + [item for made in databases().values() for item in made]:
            with self.subTest(f"{item['kind']} {item['metadata']['name']}"):
                test.kubectl("apply", "--dry-run=server", "--validate=true", "-f", "-", stdin=json.dumps(item))

    def kubeconfig(self) -> str:
        """Make a kubeconfig with nothing but the token of the server's account; return its path."""
        ask = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
        path = f"/api/v1/namespaces/{test.namespace}/serviceaccounts/playground/token"
        token = json.loads(test.kubectl("create", "--raw", path, "-f", "-", stdin=ask))["status"]["token"]
        config = yaml.safe_load(test.kubectl("config", "view", "--raw", "--minify"))
        config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
        with open(test.path("account.kubeconfig"), "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)
        return file.name

    def test_server_needs_every_right_that_its_role_grants_and_no_other(self) -> None:
        wanted = ("ServiceAccount", "Role", "RoleBinding", "LimitRange", "ResourceQuota", "NetworkPolicy", "ConfigMap")
        test.kubectl("apply", "-f", "-", stdin=playground.listed([item for item in self.objects if item["kind"] in wanted]).decode())
        used = "jsonpath={.status.used.pods}"
        test.eventually(lambda: test.kubectl("get", "resourcequota", "playground", "-o", used), "the quota counts")
        os.mkdir(test.path("requests"))
        # kubectl writes down its requests between its words, which the server reads: they must not get there.
        recorder = test.stand_in("recorder", f"""
            said=$(mktemp {test.path('requests')}/XXXXXX)
            {shutil.which(test.KUBECTL)} -v=6 "$@" 2>"$said"
            code=$?
            grep -v '^I[0-9]\\{{4\\}} ' "$said" >&2
            exit $code""")

        def refused(item: Any) -> None:  # By the LimitRange, which shows as an event only.
            item["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "100Gi"

        def refused_by(server: test.Running) -> str:
            answer = {"error": ""}
            for _ in range(3):  # On a busy machine a kubectl that is recorded may not find out in time why it is not ready.
                if "refuses" not in answer["error"]:
                    status, answer, _ = server.call("alice", "create_db", "refused")
                    self.assertEqual(status, 503)
            return answer["error"]
        options = [f"--namespace={test.namespace}", recorder]
        persistent = ["--db_template=mysql-persistent.yaml", "--sweep_interval=0.5", "--idle_timeout=5"]
        account = self.kubeconfig()
        with ThreadPoolExecutor() as pool, test.Running(*options, *test.template("refused.yaml", StatefulSet=refused),
                                                        kubeconfig=account).known() as hopeless:
            refusal = pool.submit(refused_by, hopeless)
            with test.Running(*options, *persistent, kubeconfig=account).known() as server:
                for user in ("carol", "alice"):  # She beats in time.
                    self.assertEqual(server.call("alice", "create_db", user)[0], 200)
                before = test.kubectl("get", "statefulset", "mysql-alice", "-o", BEAT)
                time.sleep(1)  # It is written down in seconds.
                self.assertEqual(server.call("alice", "heart_beat", "alice")[1]["status"], "ready")
                test.eventually(lambda: test.kubectl("get", "statefulset", "mysql-alice", "-o", BEAT) > before, "the beat is written down")
                self.assertEqual(server.call("alice", "delete_db", "alice")[0], 200)
                test.eventually(lambda: server.lines("sweep user=carol"), "who is not heard of is swept")
                self.assertIn("refuses the database's pod", refusal.result())
                logs = server.log() + hopeless.log()
        self.assertNotIn("outcome=forbidden", logs)
        check = subprocess.run(
            [sys.executable, os.path.join(HERE, "playground.py"), *as_deployed(test.path("key_store")), *options, "--check"],
            capture_output=True, text=True, env={**os.environ, "KUBECONFIG": account})
        self.assertEqual((check.returncode, check.stderr), (0, ""), check.stdout)
        self.assertNotIn("not looked at", check.stdout)
        requests = "".join(map(read, glob.glob(test.path("requests", "*"))))
        self.assertEqual({right(*request) for request in REQUEST.findall(requests)} - {None}, granted())


# ---- The documents ------------------------------------------------------------------------------------

DOCUMENTS = ["README.md", *(f"docs/{name}" for name in sorted(os.listdir(os.path.join(HERE, "docs"))) if name.endswith(".md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)

# Around the commands of a document: what the tests put in the place of what they have not.
STAGE = r"""
set -Eeuo pipefail
shopt -s expand_aliases
trap 'echo "line $LINENO failed: $BASH_COMMAND" >&2' ERR
serve() { exec "$PYTHON" "$STAGE/playground.py" --host=127.0.0.1 --port="$PORT" "$@" >&2; } # Its log is no answer.
python() {
  if [[ $* == "-m playground" ]]; then serve; fi # In the background.
  "$PYTHON" "$@"
}
curl() { command curl --retry 30 --retry-connrefused --retry-delay 1 --fail-with-body "$@"; } # The server is just starting.
kubectl() {
  if [[ $1 == port-forward ]]; then
    serve --crl=key_store/ca/ca.crl
  elif [[ $1 == exec ]]; then
    while [[ $1 != -- ]]; do shift; done
    shift
    "$@"
  else
    command kubectl "$@"
  fi
}
"""


class Command(NamedTuple):
    """A command of a document, or a program in Python, and what it is said to print."""

    text: str
    prints: str


def commands(document: str) -> Iterator[Command]:
    """Yield what a document has its reader run, in order, without what is marked as not run."""
    program = ""
    for block in BLOCK.finditer(read(document)):
        if block["reason"]:
            continue
        if block["language"] == "sh":
            yield Command(block["text"], "")
        elif block["language"] == "python":  # A program grows from block to block.
            program += block["text"] + "\n\n"
        elif block["language"] == "console":
            for text in re.split(r"^\$ ", block["text"], flags=re.M)[1:]:
                match = re.match(r"(?:.*(?:\\|\|)\n)*.*\n", text)
                assert match
                yield Command(match[0], text[match.end():])
    if program:
        yield Command(f"python - <<'END'\n{program}END\n", "")


def alike(text: str) -> str:
    """Return an answer without what differs each time."""
    return re.sub(r"[0-9a-f]{32}|[0-9]+(?:[.:T-][0-9]+)*Z?", "…", text.strip())


def said() -> Iterator[str]:
    """Yield what the server tells people who do something wrong, from its source."""
    def text(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "\0"
    for node in ast.walk(ast.parse(read("playground.py"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("ApiError", "NotReady"):
                yield text(node.args[1])
            elif node.func.id in ("unavailable", "Refusal", "blaming"):
                yield text(node.args[0])
    yield from (message for _, message, _ in playground.REASONS.values())


class Documents(unittest.TestCase):
    """What README.md and docs/ say."""

    def test_commands_stand_in_blocks_that_are_run_or_say_why_not(self) -> None:
        for document in DOCUMENTS:
            for block in BLOCK.finditer(read(document)):
                self.assertIn(block["language"], ("console", "sh", "python", ""), document)
                self.assertEqual("$ " in block["text"], block["language"] == "console", block["text"])
                self.assertTrue(block["language"] or block["reason"], block["text"])
            self.assertEqual(len(re.findall(r"^```", read(document), re.M)), 2 * len(BLOCK.findall(read(document))), document)

    def test_links_lead_somewhere(self) -> None:
        anchors = {document: {re.sub(r"[^\w -]", "", title).strip().replace(" ", "-").lower()
                              for title in re.findall(r"^#+ (.+)$", read(document), re.M)} for document in DOCUMENTS}
        for document in DOCUMENTS:
            for link in re.findall(r"\]\(([^)]+)\)", read(document)):
                target, _, anchor = link.partition("#")
                with self.subTest(document, link=link):
                    if not target.startswith("https:"):
                        target = os.path.normpath(os.path.join(os.path.dirname(document), target)) if target else document
                        self.assertTrue(os.path.exists(os.path.join(HERE, target)))
                        self.assertTrue(not anchor or anchor in anchors[target])

    def test_every_message_of_the_server_is_explained(self) -> None:
        explained = " ".join((read("docs/maintainer.md") + read("docs/frontend.md")).split())
        messages = sorted(set(said()))
        self.assertGreater(len(messages), 50)
        for message in messages:
            piece = max(re.split(r"[\0:(]", message), key=len).strip() if "\0" in message else message
            with self.subTest(message.replace("\0", "…")):
                self.assertTrue(piece in explained, f"neither docs/maintainer.md nor docs/frontend.md explains: {piece}")

    def test_every_placeholder_and_template_is_in_the_readme(self) -> None:
        for name in (*(f"${{{name}}}" for name in playground.EXAMPLE), *databases()):
            self.assertIn(name, read("README.md"))

    @unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze: apt-get install systemd")
    def test_systemd_takes_the_example_of_a_unit_and_it_has_the_time_to_end(self) -> None:
        unit = read("docs/sqlflow-playground.service")
        with open(test.path("sqlflow-playground.service"), "w", encoding="utf-8") as file:
            file.write(re.sub(r"(?<=ExecStart=)\S+", sys.executable, unit))
        result = subprocess.run(["systemd-analyze", "verify", file.name], capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        (arguments,) = re.findall(r"ExecStart=\S+ ((?:.*\\\n)*.*)\n", unit)
        playground.parse_arguments(arguments.replace("\\\n", " ").split())
        (stop,) = re.findall(r"TimeoutStopSec=(\d+)", unit)
        self.assertGreater(int(stop), playground.STOP_SECONDS + playground.LAST_BEATS_SECONDS)
        (files,) = re.findall(r"LimitNOFILE=(\d+)", unit)
        self.assertGreater(int(files), playground.MAX_OPEN_FILES)


@unittest.skipUnless(shutil.which("promtool"), "no promtool: scripts/test unpacks it from Debian's prometheus")
class Watching(unittest.TestCase):
    """The examples for Prometheus."""

    # What each alert is for: series of a minute each, and how long they last. "{}" stands for the server's labels.
    FIRING: ClassVar[dict[str, tuple[dict[str, str], str]]] = {
        "PlaygroundGone": ({"up{}": "0x20"}, "10m"),
        "PlaygroundServerDown": ({"up{}": "0x20"}, "15m"),
        "PlaygroundClusterUnknown": ({"playground_cluster_synchronised{}": "0x20"}, "10m"),
        "PlaygroundFails": ({'playground_requests_total{api="create_db",status="502"}': "0x10 10x10"}, "15m"),  # The first ones, at once.
        "PlaygroundNotReady": ({'playground_requests_total{api="create_db",status="503"}': "0+2x40",
                                'playground_requests_total{api="create_db",status="200"}': "0+1x40"}, "35m"),
        "PlaygroundKubectlFails": ({'playground_kubectl_seconds_count{verb="create",outcome="timeout"}': "0+1x40"}, "30m"),
        "PlaygroundHeartBeatsNotWritten": ({"playground_last_beat_write_timestamp_seconds{}": "0x40"}, "20m"),
        "PlaygroundSweepsMany": ({"playground_databases_swept_total{}": "0x30 90x30"}, "60m"),
        "PlaygroundNearlyFull": ({'playground_databases{status="ready"}': "180x30",
                                  'playground_databases{status="starting"}': "5x30"}, "20m"),
        "PlaygroundCertificateEnds": ({'playground_certificate_expiry_timestamp_seconds{file="server_crt"}': "1000000x90"}, "80m"),
        "PlaygroundCertificateEndsNow": ({'playground_certificate_expiry_timestamp_seconds{file="crl"}': "100000x30"}, "20m"),
        "PlaygroundStrangers": ({'playground_handshakes_refused_total{reason="unknown ca"}': "0+600x40"}, "30m"),
    }
    # A playground on a good day, which fires none of them.
    QUIET: ClassVar[dict[str, str]] = {
        "up{}": "1x90", "playground_cluster_synchronised{}": "1x90", 'playground_requests_total{api="create_db",status="200"}': "0+5x90",
        'playground_requests_total{api="create_db",status="503"}': "0+1x90",
        'playground_kubectl_seconds_count{verb="watch",outcome="ok"}': "0+3x90",
        "playground_last_beat_write_timestamp_seconds{}": "0+60x90", "playground_databases_swept_total{}": "0x90",
        'playground_databases{status="ready"}': "100x90",
        'playground_certificate_expiry_timestamp_seconds{file="server_crt"}': "10000000x90",
        'playground_handshakes_refused_total{reason="peer did not return a certificate"}': "0+1x90"}

    def promtool(self, *arguments: str, stdin: str = "") -> None:
        result = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)

    def test_prometheus_takes_the_example_of_a_configuration(self) -> None:
        test.gen_cert("prometheus")
        shutil.copy(os.path.join(HERE, "docs", "alerts.yml"), test.folder)
        with open(test.path("prometheus.yml"), "w", encoding="utf-8") as file:
            file.write(read("docs/prometheus.yml").replace("/etc/prometheus/playground", test.path("key_store/prometheus")))
        self.promtool("check", "config", file.name)

    def test_each_alert_fires_when_it_should_and_none_on_a_good_day(self) -> None:
        alerts = [rule["alert"] for group in yaml.safe_load(read("docs/alerts.yml"))["groups"] for rule in group["rules"]]
        self.assertEqual(alerts, list(self.FIRING))
        maintainer = read("docs/maintainer.md")
        self.assertEqual([name for name in alerts if f"`{name}`" not in maintainer], [])

        def series(values: dict[str, str]) -> list[dict[str, str]]:
            return [{"series": name.replace("}", ',job="playground",instance="a"}').replace("{,", "{"),
                     "values": value} for name, value in values.items()]

        def fires(name: str, values: dict[str, str], moment: str, often: int) -> dict[str, Any]:
            # promtool compares labels and annotations; counting what fires leaves them out.
            query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
            return {"interval": "1m", "input_series": series(values),
                    "promql_expr_test": [{"expr": query, "eval_time": moment, "exp_samples": [{"labels": "{}", "value": often}]}]}
        tests = [fires(name, values, moment, 1) for name, (values, moment) in self.FIRING.items()]
        tests += [fires(name, self.QUIET, "85m", 0) for name in alerts]
        with open(test.path("alerts-test.yml"), "w", encoding="utf-8") as file:
            yaml.safe_dump({"rule_files": [os.path.join(HERE, "docs", "alerts.yml")], "evaluation_interval": "1m", "tests": tests}, file)
        self.promtool("test", "rules", file.name)

    def test_metrics_are_what_the_examples_ask_for_and_follow_the_conventions(self) -> None:
        with test.Running(kubeconfig=test.path("dead.kubeconfig")) as server:
            exposed = server.raw(b"GET /api/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").decode().partition("\r\n\r\n")[2]
        self.promtool("check", "metrics", stdin=exposed)
        families = {family.name: family for family in text_string_to_metric_families(exposed)}
        self.assertEqual(families["playground_kubectl_seconds"].type, "histogram")
        self.assertEqual({family.type for family in families.values()}, {"counter", "gauge", "histogram"})
        self.assertIn("playground_databases_swept_total 0\n", exposed)  # What grows from nothing would show no increase.
        self.assertIn('playground_requests_total{api="create_db",status="500"} 0\n', exposed)
        for name in set(re.findall(r"\bplayground_\w+", read("docs/alerts.yml"))):
            self.assertIn(f"# TYPE {re.sub('_count$', '', name)} ", exposed)


@unittest.skipUnless(test.REAL, "needs a whole Kubernetes API, and devcluster is none")
class Commands(unittest.TestCase):
    """The commands of each document, run in their order."""

    def run_all(self, document: str, prepare: str = "") -> None:
        """Run a document's commands in a folder and a namespace of its own, and compare what they answer."""
        number = DOCUMENTS.index(document)
        stage, namespace = test.path(f"stage-{number}"), f"{test.namespace}-{number}"
        os.mkdir(stage)
        for name in ("playground.py", "gen_cert.sh", "CHANGELOG.md"):
            os.symlink(os.path.join(HERE, name), os.path.join(stage, name))
        shutil.copytree(TEMPLATES, os.path.join(stage, "k8s_templates"))
        known = test.kubectl("api-versions").split()
        with open(os.path.join(stage, "k8s_templates", "playground.yaml"), "w", encoding="utf-8") as file:
            yaml.safe_dump_all([moved(item, namespace) for item in applied_once().values() if item["apiVersion"] in known], file)
        test.make_namespace(namespace)
        self.addCleanup(test.kubectl, "delete", "namespace", f"{namespace}-other", "--ignore-not-found", "--wait=false")
        config = yaml.safe_load(test.kubectl("config", "view", "--raw", "--minify"))
        config["contexts"][0]["context"]["namespace"] = namespace
        with open(os.path.join(stage, "kubeconfig"), "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        steps = list(commands(document))
        script = STAGE + prepare + "".join(f"echo '@@@{index}'\n{step.text}" for index, step in enumerate(steps))
        for name, here in (("50052", port), ("sqlflow-playground", namespace), ("other-playground", f"{namespace}-other")):
            script = script.replace(name, here)
        environment = {**os.environ, "KUBECONFIG": os.path.join(stage, "kubeconfig"), "PATH": f"{stage}:{os.environ['PATH']}", "PORT": port,
                       "STAGE": stage, "PYTHON": sys.executable, "PYTHONPATH": stage}
        with open(os.path.join(stage, "log"), "w+", encoding="utf-8") as log:
            bash = subprocess.Popen(["bash", "-c", script], cwd=stage, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
                                    start_new_session=True)
            try:
                answers = bash.communicate(timeout=3 * test.PATIENCE_SECONDS)[0]
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(bash.pid, signal.SIGTERM)
                    while True:
                        os.killpg(bash.pid, 0)
                        time.sleep(0.05)
            log.seek(0)
            self.assertEqual(bash.returncode, 0, log.read() + answers)
        for index, step in enumerate(steps):
            answer = answers.partition(f"@@@{index}\n")[2].partition("@@@")[0]
            expected = [line for line in step.prints.splitlines() if line.startswith("{")]
            if expected:
                self.assertEqual(alike(answer), alike("\n".join(expected)), step.text)

    # Where a document takes for granted that somebody has started the server and made certificates.
    SERVED = "./gen_cert.sh server >&2; ./gen_cert.sh some_client >&2; serve & cd key_store/some_client\n"

    def test_readme(self) -> None:
        self.run_all("README.md")

    def test_guide_for_front_ends(self) -> None:
        self.run_all("docs/frontend.md", self.SERVED)

    def test_guide_for_maintainers(self) -> None:
        self.run_all("docs/maintainer.md")

    def test_guide_for_users(self) -> None:
        self.run_all("docs/user.md", self.SERVED)

    def test_every_document_with_commands_is_among_these(self) -> None:
        self.assertEqual([document for document in DOCUMENTS if list(commands(document))],
                         ["README.md", "docs/frontend.md", "docs/maintainer.md", "docs/user.md"])
