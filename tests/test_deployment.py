"""Tests of what a maintainer installs: the packages, the image, the objects of k8s_templates/."""

from __future__ import annotations

import contextlib
import copy
import glob
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
from collections.abc import Iterator
from typing import Any, Callable, ClassVar

import kubernetes_validate  # type: ignore[import-untyped]
import yaml

import playground
from tests import harness
from tests.harness import (
    KUBECONFIG,
    KUBECTL,
    PATIENCE_SECONDS,
    REAL,
    ROOT,
    TEMPLATES,
    Running,
    applied_once,
    databases,
    eventually,
    gen_cert,
    kubectl,
    moved,
    path,
    read,
    stand_in,
    template,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down


def everything() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of every template, and where it is from."""
    for name, objects in {"playground.yaml": list(applied_once().values()), **databases()}.items():
        for item in objects:
            yield f"{name}: {item['kind']} {item['metadata']['name']}", item


def pods() -> dict[str, dict[str, Any]]:
    """Return the specification of every pod, and where it is from."""
    return {place: item["spec"]["template"]["spec"] if item["kind"] == "Deployment" else item["spec"]
            for place, item in everything() if item["kind"] in ("Deployment", "Pod")}


# ---- The objects ---------------------------------------------------------------------------------------

# Kubernetes' Pod Security Standards, profile "restricted", which includes "baseline": the controls by their
# names in the documentation, and what must hold for each pod, or for each container c. What concerns Windows
# is left out.
POD_CONTROLS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "Host Namespaces": lambda pod: not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
    "Volume Types": lambda pod: all(volume.keys() - {"name"} <= {
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
        "projected", "secret"}
        for volume in pod.get("volumes", ())),
    "SELinux": lambda pod: "seLinuxOptions" not in pod.get("securityContext", {}),
    "Sysctls": lambda pod: not pod.get("securityContext", {}).get("sysctls"),
    "AppArmor": lambda pod: pod.get("securityContext", {}).get("appArmorProfile", {}).get("type") in (
        None, "RuntimeDefault", "Localhost"),
    "HostProcess": lambda pod: "windowsOptions" not in pod.get("securityContext", {}),
    "Running as Non-root": lambda pod: pod.get("securityContext", {}).get("runAsNonRoot") is True,
    "Running as Non-root user": lambda pod: pod.get("securityContext", {}).get("runAsUser") != 0,
    "Seccomp": lambda pod: pod.get("securityContext", {}).get("seccompProfile", {}).get("type") in (
        "RuntimeDefault", "Localhost"),
}
CONTAINER_CONTROLS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "Privileged Containers": lambda c: not c.get("securityContext", {}).get("privileged"),
    "Privilege Escalation": lambda c: c.get("securityContext", {}).get("allowPrivilegeEscalation") is False,
    "Capabilities": lambda c: "ALL" in c.get("securityContext", {}).get("capabilities", {}).get("drop", ())
        and set(c["securityContext"]["capabilities"].get("add", ())) <= {"NET_BIND_SERVICE"},
    "Host Ports": lambda c: not any(port.get("hostPort") for port in c.get("ports", ())),
    "Host Probes / Lifecycle Hooks": lambda c: not re.search(
        r'"(httpGet|tcpSocket)": {[^{}]*"host"', json.dumps(c)),
    "/proc Mount Type": lambda c: c.get("securityContext", {}).get("procMount", "Default") == "Default",
    # A container may say otherwise than its pod does.
    "Running as Non-root, Running as Non-root user, Seccomp, SELinux, AppArmor": lambda c: not c.get(
        "securityContext", {}).keys() & {
        "runAsNonRoot", "runAsUser", "seccompProfile", "seLinuxOptions", "appArmorProfile", "windowsOptions"},
}
# For each control something that breaks it; "c" stands for the first container.
BREACHES: dict[str, tuple[str, Any]] = {
    "Host Namespaces": ("hostPID", True),
    "Volume Types": ("volumes", [{"name": "x", "hostPath": {"path": "/"}}]),
    "SELinux": ("securityContext.seLinuxOptions", {"type": "x"}),
    "Sysctls": ("securityContext.sysctls", [{"name": "x", "value": "1"}]),
    "AppArmor": ("securityContext.appArmorProfile", {"type": "Unconfined"}),
    "HostProcess": ("securityContext.windowsOptions", {}),
    "Running as Non-root": ("securityContext.runAsNonRoot", False),
    "Running as Non-root user": ("securityContext.runAsUser", 0),
    "Seccomp": ("securityContext.seccompProfile", {"type": "Unconfined"}),
    "Privileged Containers": ("c.securityContext.privileged", True),
    "Privilege Escalation": ("c.securityContext.allowPrivilegeEscalation", True),
    "Capabilities": ("c.securityContext.capabilities.add", ["SYS_ADMIN"]),
    "Host Ports": ("c.ports", [{"containerPort": 1, "hostPort": 1}]),
    "Host Probes / Lifecycle Hooks": ("c.readinessProbe", {"tcpSocket": {"port": 1, "host": "x"}}),
    "/proc Mount Type": ("c.securityContext.procMount", "Unmasked"),
    "Running as Non-root, Running as Non-root user, Seccomp, SELinux, AppArmor": (
        "c.securityContext.runAsUser", 0),
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
                self.assertTrue(all(container["securityContext"]["readOnlyRootFilesystem"]
                                    for container in pod["containers"]))

    def test_each_control_of_that_standard_is_found_broken_where_it_is(self) -> None:
        self.assertEqual(BREACHES.keys(), POD_CONTROLS.keys() | CONTAINER_CONTROLS.keys())
        for control, (where, value) in BREACHES.items():
            pod = copy.deepcopy(next(iter(pods().values())))
            *outer, last = where.split(".")
            inner = pod
            for key in outer:
                inner = pod["containers"][0] if key == "c" else inner[key]
            inner[last] = value
            with self.subTest(control):
                self.assertEqual(broken_controls(pod), [control])

    def test_every_container_states_what_it_needs_and_the_most_it_may_take(self) -> None:
        for place, pod in pods().items():
            for container in pod["containers"]:
                for kind in ("requests", "limits"):
                    self.assertEqual(set(container["resources"][kind]),
                                     {"cpu", "memory", "ephemeral-storage"}, place)

    def test_quota_has_room_for_users_databases_and_spares_and_for_the_servers(self) -> None:
        objects = applied_once()
        hard, deployment = objects["ResourceQuota"]["spec"]["hard"], objects["Deployment"]["spec"]
        server = deployment["template"]["spec"]["containers"][0]
        servers = deployment["replicas"] + deployment["strategy"]["rollingUpdate"]["maxSurge"]
        options = playground.parse_arguments(server["args"])
        users, count = options.max_databases, options.max_databases + options.spare_databases
        # Servers that count apart may let in a group each too many; the quota does not.
        self.assertEqual(int(hard["count/leases.coordination.k8s.io"]), users)
        for name, items in databases().items():
            made = {item["kind"]: item["spec"] for item in items if "spec" in item}
            database = made["Pod"]["containers"][0]
            for kind in ("requests.cpu", "requests.memory", "limits.memory", "requests.ephemeral-storage"):
                one, several = (container["resources"][kind.split(".")[0]][kind.split(".")[1]]
                                for container in (database, server))
                with self.subTest(name, kind=kind):
                    self.assertGreaterEqual(number(hard[kind]),
                                            count * number(one) + servers * number(several))
            if claim := made.get("PersistentVolumeClaim"):
                self.assertGreaterEqual(number(hard["requests.storage"]),
                                        users * number(claim["resources"]["requests"]["storage"]))
        for kind, least in (("pods", count + servers), ("secrets", count + 1), ("services", users + 2),
                            ("persistentvolumeclaims", users)):
            self.assertGreaterEqual(int(hard[kind]), least, kind)

    def test_databases_agree_on_ways_in_and_on_how_long_they_wait(self) -> None:
        wanted = {"extra-port": 3307, "extra-max-connections": 3, "tcp-keepalive-time": 300,
                  "tcp-keepalive-interval": 30, "tcp-keepalive-probes": 4, "ignore-db-dirs": "lost+found",
                  "init-file": "/run/mysqld/init.sql", "max-connections": 50, **dict.fromkeys(
                      ("net-read-timeout", "net-write-timeout", "wait-timeout", "interactive-timeout"),
                      playground.parse_arguments([]).idle_timeout)}
        for name, items in databases().items():
            pod = next(item["spec"] for item in items if item["kind"] == "Pod")
            container, mebi = pod["containers"][0], 2**20
            options = dict(re.findall(r"--([a-z-]+)=(\S+)", " ".join(container["args"])))
            for option, value in wanted.items():
                with self.subTest(name, option=option):
                    self.assertEqual(options.get(option), str(value).replace(".0", ""))
            with self.subTest(name):
                self.assertEqual(container["terminationMessagePolicy"], "FallbackToLogsOnError")
                for probe in ("startupProbe", "readinessProbe"):
                    self.assertIn("--port=3307", container[probe]["exec"]["command"][-1])
                ends = [number(options[f"innodb-{which}-file-path"].rpartition(":")[2] + "i")
                        for which in ("data", "temp-data")]
                room = min(number(str(asks)) for asks in re.findall(
                    r"'(?:sizeLimit|storage)': '(\d+Gi)'", str(items)))
                # The rest is for the log, and for what is in no file of InnoDB's.
                self.assertLess(sum(ends) + number(options["innodb-log-file-size"] + "i"), 0.9 * room)
                (tmp,) = (one["emptyDir"] for one in pod["volumes"] if one["name"] == "tmp")
                self.assertEqual(tmp["medium"], "Memory")
                self.assertLess(number(options["tmp-disk-table-size"] + "i"), number(tmp["sizeLimit"]))
                # 100 MiB are MariaDB's own, and a large packet is held twice.
                self.assertLess(number(tmp["sizeLimit"]) + (100 + 2 * 64) * mebi,
                                number(container["resources"]["limits"]["memory"]))

    def test_server_has_the_time_to_end_before_it_is_killed(self) -> None:
        pod = applied_once()["Deployment"]["spec"]["template"]["spec"]
        command, wait = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        self.assertEqual(command, "sleep")
        self.assertGreaterEqual(pod["terminationGracePeriodSeconds"],
                                int(wait) + playground.STOP_SECONDS + playground.LAST_BEATS_SECONDS)

    def test_databases_are_what_their_network_policy_selects_and_the_server_is_not(self) -> None:
        objects = applied_once()
        policy = objects["NetworkPolicy/databases"]["spec"]
        selected = policy["podSelector"]["matchLabels"].items()
        for name, items in databases().items():
            (pod,) = (item for item in items if item["kind"] == "Pod")
            self.assertLessEqual(selected, pod["metadata"]["labels"].items(), name)
            for service in (item for item in items if item["kind"] == "Service"):
                chosen = service["spec"]["selector"]
                self.assertLessEqual(chosen.items(), pod["metadata"]["labels"].items())
                self.assertIn(playground.DATABASE, chosen)  # And no other database's.
        labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
        self.assertFalse(selected <= labels.items())
        for name in ("NetworkPolicy/playground", "Service/playground", "Service/playground-servers",
                     "PodDisruptionBudget"):
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
                self.assertEqual(item["metadata"]["namespace"], objects["Namespace"]["metadata"]["name"],
                                 name)

    def test_sample_data_alone_can_be_taken_out_of_the_file(self) -> None:
        (item,) = yaml.safe_load_all(read(TEMPLATES,
                                          "playground.yaml").partition("# ---- Sample data")[2].partition(
                                              "\n")[2])
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
        self.assertIn(
            f"\nUSER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n", lines)
        (workdir,) = re.findall(r"^WORKDIR (\S+)", lines, re.M)
        self.assertEqual(pod["containers"][0]["volumeMounts"][0]["mountPath"], f"{workdir}/key_store")
        sources = [source for copied in re.findall(r"^COPY (?!--)(.+)", lines, re.M)
                   for source in copied.split()[:-1]]
        allowed = [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]
        self.assertEqual(sources, allowed)

    def test_role_grants_what_check_looks_for_and_what_it_looks_at(self) -> None:
        more = dict.fromkeys(("services", "persistentvolumeclaims"), playground.MORE_RIGHTS)
        wanted = {(kind.partition(".")[2], kind.partition(".")[0], verb)
                  for kind, verbs in {**playground.RIGHTS, **more}.items() for verb in verbs}
        self.assertEqual(granted(), wanted | {("", "resourcequotas", "list"), ("", "configmaps", "get")})


def granted() -> set[tuple[str, str, str]]:
    """Return the group, resource and verb of each right that the Role grants."""
    return {(group, resource, verb) for rule in applied_once()["Role"]["rules"] for group in rule["apiGroups"]
            for resource in rule["resources"] for verb in rule["verbs"]}


LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "key_store", "build", "*.egg-info")


class Packaging(unittest.TestCase):
    def test_drop_in_copy_runs_from_any_folder(self) -> None:
        os.makedirs(path("dropped"))
        shutil.copy(os.path.join(ROOT, "playground.py"), path("dropped"))
        shutil.copytree(os.path.join(ROOT, "k8s_templates"), path("dropped/k8s_templates"))
        with Running(program=(path("dropped/playground.py"),), kubeconfig=path("dead.kubeconfig")) as server:
            self.assertIn(f"template={path('dropped/k8s_templates/mysql.yaml')}", server.log())

    def test_links_of_the_readme_lead_somewhere_in_the_sdist_and_on_a_package_index(self) -> None:
        shutil.copytree(ROOT, path("to_pack"), ignore=LEFT_OUT)
        build = f"import setuptools.build_meta as build; build.build_sdist({path('sdist')!r})"
        subprocess.run([sys.executable, "-c", build], cwd=path("to_pack"), check=True, capture_output=True)
        with tarfile.open(glob.glob(path("sdist/*.tar.gz"))[0]) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
            info = archive.extractfile(archive.getnames()[0] + "/PKG-INFO")
            assert info
            metadata = info.read().decode()
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", read("README.md"))]
        links = [link for link in links if link and "://" not in link]
        self.assertEqual({*links, "SECURITY.md", "docs/user.md", "gen_cert.sh"} - names, set())
        self.assertEqual([link for link in re.findall(r"\]\(([^)]+)\)", metadata)
                          if not link.startswith(("https://", "#"))], [])
        for field in ("Author", "Project-URL", "Classifier"):
            self.assertIn(f"\n{field}: ", metadata)
        self.assertTrue(os.access(os.path.join(ROOT, "playground.py"), os.X_OK))

    def test_wheel_brings_the_command_the_certificate_tool_and_the_templates(self) -> None:
        shutil.copytree(ROOT, path("source"), ignore=LEFT_OUT)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", path("wheels"), path("source")],
                       check=True, capture_output=True)
        subprocess.run([sys.executable, "-m", "venv", path("env")], check=True)
        python = path("env/bin/python")
        subprocess.run([python, *pip[1:], "install", *glob.glob(path("wheels/*.whl"))], check=True,
                       capture_output=True)
        for command in ([path("env/bin/sqlflow_playground"), "--version"],
                        [python, "-m", "playground", "--version"]):
            output = subprocess.run(command, cwd=path(), capture_output=True, text=True, check=True).stdout
            self.assertEqual(output, f"sqlflow_playground {playground.__version__}\n")
        found = subprocess.run([python, "-c", "import playground; print(len(playground.Template("
                                "playground.parse_arguments([]).templates + '/mysql.yaml').objects))"],
                               cwd=path(), capture_output=True, text=True, check=True).stdout
        self.assertEqual(found, "2\n")
        self.assertEqual(subprocess.run([path("env/bin/gen_cert.sh"), "-h"], capture_output=True).returncode,
                         0)


# ---- The server and a database as their pods run them ---------------------------------------------------


def mount(store: str, folder: str) -> None:
    """Lay a key store's files as the kubelet does: behind a link, by which it swaps all of them at once."""
    pod = applied_once()["Deployment"]["spec"]["template"]["spec"]
    os.makedirs(folder, exist_ok=True)
    data = tempfile.mkdtemp(prefix="..", dir=folder)
    for item in pod["volumes"][0]["secret"]["items"]:
        top = item["path"].split("/")[0]
        os.makedirs(os.path.join(data, top), exist_ok=True)
        source = "server" if item["key"].startswith("server") else "ca"
        shutil.copy(path(store, source, item["key"]), os.path.join(data, item["path"]))
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.join("..data", top), os.path.join(folder, top))
    os.symlink(os.path.basename(data), os.path.join(folder, "..new"))
    os.rename(os.path.join(folder, "..new"), os.path.join(folder, "..data"))


def as_deployed(folder: str) -> list[str]:
    """Return the options of the Deployment's server, given or by default, with the TLS files in a folder."""
    container = applied_once()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    default = vars(playground.parse_arguments([]))
    options = [*(f"--{name}={default[name]}" for name in ("ca_crt", "server_key", "server_crt")),
               *container["args"]]
    return [option.replace("=key_store/", f"={folder}/").replace("=/tmp/ready", f"={folder}-ready")
            for option in options]


def two_ports() -> int:
    """Return a free port, of which the next one is free, too, below those that connections are given."""
    for port in random.sample(range(20_000, 30_000, 2), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)), \
                socket.create_server(("127.0.0.1", port + 1)):
            return port
    raise AssertionError("no free ports")


class Pods(unittest.TestCase):
    """What the containers run, run here."""

    def test_server_starts_with_the_secrets_files_and_takes_them_up_when_the_kubelet_swaps_them(self) -> None:
        shutil.copytree(path("key_store"), path("deployed"))
        mount("deployed", path("mounted"))
        with Running(*as_deployed(path("mounted")), kubeconfig=path("dead.kubeconfig")) as server:
            self.assertEqual(server.call("bob", "status")[0], 200)
            gen_cert("--revoke", "bob", store="deployed")
            mount("deployed", path("mounted"))
            eventually(lambda: server.lines("tls outcome=reloaded"), "the files are taken up")
            with self.assertRaises(subprocess.CalledProcessError):
                server.call("bob", "status")
            self.assertEqual(server.call("alice", "status")[0], 200)

    def test_readiness_probe_waits_until_the_cluster_is_known_and_no_longer(self) -> None:
        container = applied_once()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
        options = as_deployed(path("key_store"))
        (ready,) = [option.partition("=")[2] for option in options if option.startswith("--ready_file=")]
        self.assertEqual(container["readinessProbe"]["exec"]["command"], ["test", "-e", "/tmp/ready"])
        with open(ready, "w", encoding="utf-8"):
            pass  # As a server before this one left it.
        with Running(*options, kubeconfig=path("dead.kubeconfig")) as server:
            eventually(lambda: "does not answer" in server.call("alice", "status")[1]["cluster"],
                       "the server has tried")
            time.sleep(2 * playground.RELOAD_SECONDS)
            self.assertFalse(os.path.exists(ready))
        if KUBECONFIG:
            with Running(*options):
                eventually(lambda: os.path.exists(ready), "the probe passes")

    def test_liveness_probe_fails_once_the_server_does_not_shake_hands(self) -> None:
        container = applied_once()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
        python, *arguments = container["livenessProbe"]["exec"]["command"]
        self.assertEqual(python, "python")
        with Running(kubeconfig=path("dead.kubeconfig")) as server:
            arguments = [argument.replace("50052), 10", f"{server.port}), 2") for argument in arguments]

            def probe() -> int:
                return subprocess.run([sys.executable, *arguments], capture_output=True,
                                      timeout=PATIENCE_SECONDS).returncode
            self.assertEqual(probe(), 0)
            server.process.send_signal(signal.SIGSTOP)  # The kernel goes on accepting connections.
            self.assertNotEqual(probe(), 0)
            server.process.send_signal(signal.SIGCONT)

    def test_first_start_that_was_killed_is_made_anew_and_what_was_ready_is_kept(self) -> None:
        os.makedirs(path("image"))
        # In place of the image's: a first start makes a folder and, if it comes to its end, a table in it.
        for name, script in (("docker-entrypoint.sh", """
                [ -e "$DATA"/mysql ] || first=yes
                mkdir -p "$DATA"/mysql
                [ ! "$first" ] || [ "$KILLED" ] || touch "$DATA"/mysql/table
                [ "$*" = "$EXPECTED" ]"""), ("mariadb", '[ "$MYSQL_PWD" = "$TAKEN" ]')):
            with open(path("image", name), "w", encoding="utf-8") as file:
                file.write(f"#!/bin/sh\n{script}\n")
            os.chmod(file.name, 0o755)
        for place, pod in pods().items():
            if place.startswith(("mysql.yaml", "mysql-persistent.yaml")):
                with self.subTest(place):
                    self.kill_a_first_start(pod["containers"][0], tempfile.mkdtemp(dir=path()))

    def kill_a_first_start(self, container: dict[str, Any], data: str) -> None:
        def run(command: list[str], **variables: str) -> int:
            environment = {"PATH": f"{path('image')}:{os.environ['PATH']}", "MARIADB_ROOT_PASSWORD": "p",
                           "EXPECTED": " ".join(container["args"]), "DATA": data, **variables}
            return subprocess.run([word.replace("/var/lib/mysql", data).replace("/run/mysqld", f"{data}/..")
                                   for word in command[:4]] + command[4:], env=environment).returncode

        def start(**variables: str) -> list[str]:
            self.assertEqual(run(container["command"] + container["args"], **variables), 0)
            return os.listdir(f"{data}/mysql")
        ready = container["startupProbe"]["exec"]["command"]
        self.assertEqual(start(KILLED="yes"), [])
        self.assertEqual(start(), ["table"])
        self.assertNotEqual(run(ready, TAKEN="another"), 0)  # Its server is not up so far.
        os.remove(f"{data}/mysql/table")  # As if it had been killed before that.
        self.assertEqual(start(), ["table"])
        self.assertEqual(run(ready, TAKEN="p"), 0)
        os.rename(f"{data}/mysql/table", f"{data}/mysql/of-its-user")
        self.assertEqual(start(), ["of-its-user"])

    @unittest.skipUnless(shutil.which("mysqld") and shutil.which("mysql_install_db"),
                         "no MariaDB: apt-get install mariadb-server-core")
    def test_sqlflow_image_gets_the_users_password_and_is_ready_when_its_data_is_there(self) -> None:
        (pod,) = (pod for place, pod in pods().items() if place.startswith("sqlflow-mysql"))
        container = pod["containers"][0]
        password = playground.EXAMPLE["password"]
        root = os.geteuid() == 0  # MariaDB refuses to run as root.
        # A short path: a socket's has at most 107 characters.
        folder = tempfile.mkdtemp(prefix="playground-mysql-")
        self.addCleanup(shutil.rmtree, folder)
        os.chmod(folder, 0o755)
        port = two_ports()

        def here(text: str) -> str:
            """Return a command of the container with this machine's paths and a port that is free."""
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            text = re.sub(rf"({'|'.join(mounts)})\b", lambda match: f"{folder}/{mounts[match[1]]}", text)
            text = text.replace("/datasets/", f"{folder}/datasets/").replace("3307", str(port + 1))
            text = text.replace("--protocol=tcp ", f"--protocol=tcp --port={port} ")
            return text.replace("mysqld --no-defaults",
                                f"mysqld --no-defaults --bind-address=127.0.0.1 --port={port}")
        for name in (*(mount["name"] for mount in container["volumeMounts"]), "datasets"):
            os.mkdir(os.path.join(folder, name))
            if root:
                os.chown(os.path.join(folder, name), pod["securityContext"]["runAsUser"],
                         pod["securityContext"]["runAsGroup"])
        with open(os.path.join(folder, "datasets", "iris.sql"), "w", encoding="utf-8") as file:
            file.write(applied_once()["ConfigMap"]["data"]["iris.sql"] + "SELECT SLEEP(2);\n")
        ids: dict[str, Any] = {"user": pod["securityContext"]["runAsUser"],
                               "group": pod["securityContext"]["runAsGroup"]} if root else {}

        def run(command: list[str]) -> subprocess.Popen[str]:
            return subprocess.Popen([here(word) for word in command], stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True, cwd="/",
                                    env={"PATH": os.environ["PATH"] + ":/usr/sbin", "PASSWORD": password},
                                    **ids)

        def answer(command: list[str]) -> tuple[int, str]:
            with run(command) as process:
                return process.wait(), process.communicate()[0]
        sql = ["mysql", "--no-defaults", "--protocol=tcp", f"--port={port}", "--host=127.0.0.1",
               "--user=root", "--skip-column-names"]
        ready = container["readinessProbe"]["exec"]["command"]
        for start in ("first", "after its container ended"):
            with self.subTest(start), run(container["command"] + container["args"]) as server:
                try:
                    if start == "first":  # While the data is loaded, the port is closed.
                        eventually(lambda: os.path.exists(f"{folder}/data/iris/train.frm"),
                                   "data is being loaded")
                        self.assertNotEqual(answer(ready)[0], 0)
                        self.assertNotEqual(answer([*sql, "--password=root"])[0], 0)
                    eventually(lambda: server.poll() is not None or answer(ready)[0] == 0, "it is ready")
                    self.assertIsNone(server.poll(), server.poll() is None or server.communicate()[0])
                    told = answer([*sql, f"--password={password}",
                                   "--execute=SELECT COUNT(*) FROM iris.train; "
                                   "SELECT User, Host FROM mysql.user WHERE User IN ('root', '')"])
                    self.assertEqual(told[1].split(), ["110", "root", "%"])
                    self.assertIn("Access denied", answer([*sql, "--password=root"])[1])
                finally:
                    server.send_signal(signal.SIGTERM)
                    ended = time.monotonic()
                    server.communicate(timeout=PATIENCE_SECONDS)
                self.assertLess(time.monotonic() - ended, pod["terminationGracePeriodSeconds"])


# ---- On a cluster -------------------------------------------------------------------------------------

BEAT = "jsonpath={.spec.renewTime}"
# What kubectl says with -v=6 of each request, before version 1.33 and since.
REQUEST = re.compile(r'(?:\] |verb=")(GET|POST|PUT|PATCH|DELETE)"? (?:url=")?https?://[^/]+(/[^" ]*)')
# A request to a resource in a namespace: its group, resource and name, and its query.
RESOURCE = re.compile(r"/(?:api|apis/([^/]+))/[^/]+/namespaces/[^/]+/([^/?]+)(/[^?]+)?(?:\?(.*))?")


def right(method: str, url: str) -> tuple[str, str, str] | None:
    """Return the group, resource and verb that a request needs.

    As Kubernetes' documentation has it under "Determine the Request Verb".
    """
    match = RESOURCE.fullmatch(url)
    if not match:
        return None  # What every account may do, such as finding out what there is.
    group, resource, name, query = match.groups()
    watching = re.search("watch=(1|true)", query or "")
    reading = "get" if name else "watch" if watching else "list"
    verb = {"GET": reading, "POST": "create", "PUT": "update", "PATCH": "patch",
            "DELETE": "delete" if name else "deletecollection"}[method]
    return group or "", resource, verb


@unittest.skipUnless(REAL, "needs a whole Kubernetes API, and devcluster is none")
class InTheCluster(unittest.TestCase):
    """What playground.yaml makes, in a namespace of this run's own."""

    @classmethod
    def setUpClass(cls) -> None:
        harness.use_another_namespace(cls)
        known = kubectl("api-versions").split()
        cls.objects = [moved(item, harness.namespace) for item in applied_once().values()]
        cls.unknown = [item for item in cls.objects if item["apiVersion"] not in known]

    objects: ClassVar[list[dict[str, Any]]]
    unknown: ClassVar[list[dict[str, Any]]]

    def test_api_server_takes_every_object_whose_version_it_knows(self) -> None:
        self.assertLessEqual({item["kind"] for item in self.unknown}, {"PodDisruptionBudget"})
        for item in [item for item in self.objects
                     if item not in self.unknown] + [item for made in databases().values() for item in made]:
            with self.subTest(f"{item['kind']} {item['metadata']['name']}"):
                kubectl("apply", "--dry-run=server", "--validate=true", "-f", "-", stdin=json.dumps(item))

    def kubeconfig(self) -> str:
        """Make a kubeconfig with nothing but the token of the server's account; return its path."""
        ask = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
        url = f"/api/v1/namespaces/{harness.namespace}/serviceaccounts/playground/token"
        token = json.loads(kubectl("create", "--raw", url, "-f", "-", stdin=ask))["status"]["token"]
        config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify"))
        config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
        with open(path("account.kubeconfig"), "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)
        return file.name

    def test_server_needs_every_right_that_its_role_grants_and_no_other(self) -> None:
        wanted = ("ServiceAccount", "Role", "RoleBinding", "LimitRange", "ResourceQuota", "NetworkPolicy",
                  "ConfigMap")
        kubectl("apply", "-f", "-",
                stdin=playground.listed([item for item in self.objects if item["kind"] in wanted]).decode())
        used = "jsonpath={.status.used.pods}"
        eventually(lambda: kubectl("get", "resourcequota", "playground", "-o", used), "the quota counts")
        os.mkdir(path("requests"))
        # kubectl writes down its requests between its words, which the server reads: they must not get there.
        recorder = stand_in("recorder", f"""
            said=$(mktemp {path('requests')}/XXXXXX)
            {shutil.which(KUBECTL)} -v=6 "$@" 2>"$said"
            code=$?
            grep -v '^I[0-9]\\{{4\\}} ' "$said" >&2
            exit $code""")

        def too_large(pod: Any) -> None:  # For the LimitRange.
            pod["spec"]["containers"][0]["resources"]["limits"]["memory"] = "100Gi"
        options = [f"--namespace={harness.namespace}", recorder]
        persistent = ["--db_template=mysql-persistent.yaml", "--sweep_interval=0.5", "--idle_timeout=5"]
        account, logs = self.kubeconfig(), ""
        with Running(*options, "--sweep_interval=0.5", kubeconfig=account).known() as server:
            eventually(lambda: server.call("alice", "status")[1]["spares_ready"], "there is a spare")
            self.assertEqual(server.call("alice", "create_db", "alice")[0], 200)
            name = kubectl("get", "lease", "user-alice", "-o", "jsonpath={.spec.holderIdentity}")
            kubectl("delete", "pod", name, "--wait=false")
            eventually(lambda: server.call("alice", "heart_beat", "alice")[1]["status"] == "absent",
                       "the loss is seen")
            self.assertEqual(server.call("alice", "create_db", "alice")[1]["note"], playground.LOST)
            self.assertEqual(server.call("alice", "delete_db", "alice")[0], 200)
            logs += server.log()
        with Running(*options, *persistent, kubeconfig=account).known() as server:
            for user in ("carol", "alice"):  # She beats in time.
                self.assertEqual(server.call("alice", "create_db", user)[0], 200)
            before = kubectl("get", "lease", "user-alice", "-o", BEAT)
            self.assertEqual(server.call("alice", "heart_beat", "alice")[1]["status"], "ready")
            eventually(lambda: kubectl("get", "lease", "user-alice", "-o", BEAT) > before,
                       "the beat is written down")
            self.assertEqual(server.call("alice", "delete_db", "alice")[0], 200)
            eventually(lambda: server.lines("sweep user=carol"), "who is not heard of is swept")
            logs += server.log()
        impossible = template("refused.yaml", Pod=too_large)
        with Running(*options, *impossible, kubeconfig=account).known() as server:
            status, answer, _ = server.call("alice", "create_db", "refused")
            self.assertEqual((status, answer["error"]), playground.SENTENCES["policy"])
            logs += server.log()
        self.assertNotIn("outcome=forbidden", logs)
        check = subprocess.run(
            [sys.executable, os.path.join(ROOT, "playground.py"), *as_deployed(path("key_store")), *options,
             "--check"],
            capture_output=True, text=True, env={**os.environ, "KUBECONFIG": account})
        self.assertEqual((check.returncode, check.stderr), (0, ""), check.stdout)
        self.assertNotIn("not looked at", check.stdout)
        requests = "".join(map(read, glob.glob(path("requests", "*"))))
        self.assertEqual({right(*request) for request in REQUEST.findall(requests)} - {None}, granted())
