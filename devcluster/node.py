"""The node: runs the pods, as a kubelet does."""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from typing import IO, Any

from devcluster.errors import ApiError
from devcluster.kinds import NODE, Object
from devcluster.store import Change, Store, now

# A hollow pod is ready so long after its start.
HOLLOW_SECONDS = 1.0
# A pod goes no sooner than this after its container has ended. `kubectl delete pod` waits on for one that
# has gone, and come again by its name, between two of its looks, which no real node is quick enough for.
LINGER_SECONDS = 0.3
# A container's first probe comes so long after its start; the kubelet's within the first period.
FIRST_PROBE_SECONDS = 0.3
# A container that ended starts again at once, then after pauses that double from the first to the last; one
# that ran for the third begins anew. These are the kubelet's.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, PEACE_SECONDS = 10.0, 300.0, 600.0
# What could not be started is tried again after this.
RETRY_SECONDS = 1.0
# From SIGTERM to SIGKILL for all databases, when this process ends. A small MariaDB takes 50 ms.
STOP_SECONDS = 5.0

POD_ADDRESSES = ipaddress.ip_network("127.97.0.0/16")


class Node:
    """Runs the pods: a thread for each, which does what a kubelet does."""

    def __init__(self, store: Store, state: str, hollow: bool) -> None:
        self.store, self.state, self.never_ready, self.stopping = store, state, "", False
        self.path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
        self.mariadbd = "" if hollow else shutil.which("mariadbd", path=self.path) or ""
        self.why_hollow = "--hollow was given" if hollow else \
            "for databases that run: apt-get install mariadb-server-core mariadb-client-core, and start anew"
        self.pods: dict[str, Pod] = {}
        self.addresses = POD_ADDRESSES.hosts()

    def react(self, change: Change) -> bool:
        """Start a pod that is new, and end one that is to go."""
        if change.kind.name == "PersistentVolumeClaim" and not change.after:
            shutil.rmtree(self.claim_path(change.item), ignore_errors=True)
        if change.kind.name == "Pod":
            uid = change.item["metadata"]["uid"]
            if change.after and not change.before:
                self.pods[uid] = Pod(self, change.item, str(next(self.addresses)))
                self.pods[uid].start()
            elif uid in self.pods and (not change.after or "deletionTimestamp" in change.item["metadata"]):
                self.pods[uid].stop()
        return True

    def claim_path(self, claim: Object) -> str:
        """Return the folder of a claim, which lives as long as the claim."""
        return f"{self.state}/claims/{claim['metadata']['uid']}"

    def log_path(self, pod: Object, container: str) -> str:
        """Return the file of what a container prints."""
        return os.path.join(self.state, "pods", pod["metadata"]["uid"], f"{container}.log")

    def order(self, never_ready: str, kill: str) -> None:
        """Let the pods of these names never be ready, and kill those of those names."""
        self.never_ready = never_ready
        for pod in list(self.pods.values()):
            pod.crash(fnmatch.fnmatch(pod.name, kill))

    def stop(self) -> None:
        """End all pods, within STOP_SECONDS."""
        self.stopping = True
        pods, deadline = list(self.pods.values()), time.monotonic() + STOP_SECONDS
        for pod in pods:
            pod.stop()
        for pod in pods:
            pod.join(max(deadline - time.monotonic(), 0))
        for pod in pods:
            pod.kill()
            pod.join(1)


class NotYet(Exception):
    """A container that cannot be started so far: a kubelet's reason, and words."""


class Pod(threading.Thread):
    """One pod on the node, from its binding to its end."""

    def __init__(self, node: Node, pod: Object, address: str) -> None:
        super().__init__(name=pod["metadata"]["name"], daemon=True)
        self.node, self.store, self.item, self.address = node, node.store, pod, address
        containers = pod["spec"]["containers"]
        self.container = next((container for container in containers
                               if re.search("mariadb|mysql", container["image"])), containers[0])
        self.folder = os.path.join(node.state, "pods", pod["metadata"]["uid"])
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping, self.crashed, self.poked = False, False, threading.Event()
        self.restarts = 0
        self.last_state: Object = {}
        self.conditions: dict[str, Object] = {}
        self.paths: dict[str, str] = {}
        self.claims: list[Object] = []

    def stop(self) -> None:
        """Have it end."""
        self.stopping = True
        self.poked.set()

    def crash(self, killed: bool) -> None:
        """Kill its container if so ordered, and in any case look whether it may be ready."""
        self.crashed = killed or self.crashed
        self.poked.set()
        if killed:
            self.kill()

    def kill(self) -> None:
        """Kill its process."""
        with contextlib.suppress(ProcessLookupError):
            if self.process and self.process.returncode is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def run(self) -> None:
        """Run the container again and again, with a kubelet's pauses, until the pod is deleted."""
        meta, image = self.item["metadata"], self.container["image"]
        database, pause = re.search("mariadb|mysql", image), 0.0
        with contextlib.suppress(ApiError):
            self.store.update("pods", meta["namespace"], meta["name"],
                              lambda pod: {**pod, "spec": {**pod["spec"], "nodeName": NODE}})
        self.record("Normal", "Scheduled",
                    f"Successfully assigned {meta['namespace']}/{meta['name']} to {NODE}",
                    "default-scheduler")
        if not (database and self.node.mariadbd or "never-ready" in image):
            why = self.node.why_hollow if database else "its image is no database"
            self.record("Warning", "Hollow", f"nothing runs in this pod: {why}")
        while not self.stopping:
            started, began = now(), time.monotonic()
            try:
                if "never-ready" in image:
                    raise NotYet("ImagePullBackOff", "Back-off pulling image")
                code = self.run_database() if database and self.node.mariadbd else self.run_hollow()
            except NotYet as error:
                self.report({"waiting": {"reason": error.args[0], "message": error.args[1]}})
                self.pause(RETRY_SECONDS)
                continue
            if self.stopping:
                break
            self.crashed = False
            self.restarts += 1
            self.last_state = {"terminated": {"exitCode": code if code >= 0 else 128 - code,
                                              "reason": "Error" if code else "Completed",
                                              "startedAt": started, "finishedAt": now()}}
            pause = 0.0 if time.monotonic() - began > PEACE_SECONDS else pause
            if pause:
                self.record("Warning", "BackOff", "Back-off restarting failed container")
            self.report({"waiting": {"reason": "CrashLoopBackOff",
                                     "message": f"back-off {pause:.0f}s restarting failed container"}}
                        if pause else self.last_state)
            self.pause(pause)
            pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)
        time.sleep(0 if self.node.stopping else LINGER_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)
        for claim in self.claims:  # One that was deleted while the database still wrote into it.
            if claim["metadata"]["uid"] not in self.store.uids:
                shutil.rmtree(self.node.claim_path(claim), ignore_errors=True)
        self.node.pods.pop(meta["uid"], None)
        with contextlib.suppress(ApiError):
            if not self.node.stopping:  # Else its StatefulSet would make it anew.
                self.store.delete("pods", meta["namespace"], meta["name"],
                                  {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})

    def pause(self, seconds: float) -> None:
        """Wait so long, or until the pod is to end or its container to crash."""
        deadline = time.monotonic() + seconds
        while not (self.stopping or self.crashed) and (left := deadline - time.monotonic()) > 0:
            self.poked.wait(left)
            self.poked.clear()

    def run_hollow(self) -> int:
        """Be ready after a moment, and until the end; return the exit code of a process that was killed."""
        running = {"running": {"startedAt": now()}}
        self.report(running)
        self.pause(HOLLOW_SECONDS)
        while not (self.stopping or self.crashed):
            self.report(running, ready=True)
            self.poked.wait()
            self.poked.clear()
        return -signal.SIGKILL

    def report(self, state: Object, ready: bool = False) -> None:
        """Write the pod's status; the state is the container's."""
        ready = ready and not fnmatch.fnmatch(self.name, self.node.never_ready)
        for name, holds in (("PodScheduled", True), ("Initialized", True), ("ContainersReady", ready),
                            ("Ready", ready)):
            if self.conditions.get(name, {}).get("status") != str(holds):
                self.conditions[name] = {"type": name, "status": str(holds), "lastProbeTime": None,
                                         "lastTransitionTime": now()}
        statuses = [{"name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
                     "started": "running" in state,
                     "restartCount": self.restarts, "state": state, "lastState": self.last_state}
                    for container in self.item["spec"]["containers"]]
        self.store.set_status("pods", self.item, phase="Running" if "running" in state
                              or self.restarts else "Pending",
                              hostIP="127.0.0.1", podIP=self.address, podIPs=[{"ip": self.address}],
                              containerStatuses=statuses,
                              startTime=self.conditions["PodScheduled"]["lastTransitionTime"],
                              conditions=list(self.conditions.values()))

    def record(self, category: str, reason: str, message: str, component: str = "kubelet") -> None:
        """Record an Event on the pod."""
        self.store.event("pods", self.item, component, category, reason, message,
                         f"spec.containers{{{self.container['name']}}}" if component == "kubelet" else "")

    # -- the database

    def run_database(self) -> int:
        """Run the container once, as the image's entry script does; return its exit code. Raises NotYet."""
        environment, self.paths = self.environment(), self.mount()
        data = self.paths["/var/lib/mysql"]
        options = [self.localise(word) for word in self.container.get("args", []) if word not in ("mysqld",
                                                                                                  "mariadbd")]
        options += ["--user=root"] if os.geteuid() == 0 else []
        # SQL must not read and write this machine's files, least of all when root runs it.
        options += ["--basedir=/usr", f"--secure-file-priv={self.folder}",
                    f"--socket={self.folder}/mysqld.sock",
                    f"--pid-file={self.folder}/mysqld.pid"]
        with open(self.node.log_path(self.item, self.container["name"]), "ab") as log:
            if not os.path.exists(f"{data}/mysql") and (code := self.initialise(options, data, environment,
                                                                                log)):
                return code
            self.process = self.start_process([
                self.node.mariadbd, "--no-defaults", f"--datadir={data}", *options,
                f"--bind-address={self.address}"], environment, log)
            self.record("Normal", "Started", f"Started container {self.container['name']}")
            self.probe(environment)
            if self.process.poll() is None:
                self.process.terminate()
            try:
                return self.process.wait(min(self.item["spec"]["terminationGracePeriodSeconds"],
                                             STOP_SECONDS))
            except subprocess.TimeoutExpired:
                self.kill()
                return self.process.wait()

    def start_process(self, command: list[str], environment: dict[str, str],
                      log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a process that ends with this one, however that ends."""
        # Its signal comes when the thread ends that started the process: this one.
        setpriv = shutil.which("setpriv")
        command = [*([setpriv, "--pdeathsig=KILL"] if setpriv else []), *command]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True)

    def needed(self, plural: str, source: Object, name: str) -> Object:
        """Return a Secret's or ConfigMap's data, decoded. Raises NotYet if it is missing."""
        item = self.store.find(plural, self.item["metadata"]["namespace"], name)
        if not item and not source.get("optional"):
            raise NotYet("CreateContainerConfigError", f'{plural[:-1]} "{name}" not found')
        data = (item or {}).get("data", {})
        return {key: base64.b64decode(value) if plural == "secrets" else value.encode()
                for key, value in data.items()}

    def environment(self) -> dict[str, str]:
        """Return the container's environment. Raises NotYet."""
        result = {"PATH": self.node.path, "HOME": self.folder, "HOSTNAME": self.name}
        for variable in self.container.get("env", ()):
            value = variable.get("value", "").encode()
            for reference, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
                if source := variable.get("valueFrom", {}).get(reference):
                    data = self.needed(plural, source, source.get("name", ""))
                    if source["key"] not in data and not source.get("optional"):
                        raise NotYet("CreateContainerConfigError",
                                     f"couldn't find key {source['key']} in {plural[:-1]} {source['name']}")
                    value = data.get(source["key"], b"")
            result[variable["name"]] = value.decode()
        return result

    def mount(self) -> dict[str, str]:
        """Make the folders of the pod's volumes; return them by their mount paths. Raises NotYet."""
        volumes = {volume["name"]: volume for volume in self.item["spec"].get("volumes", ())}
        paths = {"/var/lib/mysql": f"{self.folder}/data"}
        for mount in self.container.get("volumeMounts", ()):
            folder, volume = f"{self.folder}/volumes/{mount['name']}", volumes[mount["name"]]
            if "persistentVolumeClaim" in volume:
                name = volume["persistentVolumeClaim"]["claimName"]
                claim = self.store.find("persistentvolumeclaims", self.item["metadata"]["namespace"], name)
                if not claim:
                    raise NotYet("CreateContainerConfigError", f'persistentvolumeclaim "{name}" not found')
                folder = self.node.claim_path(claim)
                self.claims.append(claim)
            paths[mount["mountPath"].rstrip("/")] = folder
            os.makedirs(folder, exist_ok=True)
            for plural, kind, key in (("configmaps", "configMap", "name"),
                                      ("secrets", "secret", "secretName")):
                for name, content in (self.needed(plural, volume[kind], volume[kind][key]) if kind in volume
                                      else {}).items():
                    with open(f"{folder}/{name}", "wb") as file:
                        file.write(content)
        os.makedirs(paths["/var/lib/mysql"], exist_ok=True)
        return paths

    def localise(self, word: str) -> str:
        """Return a word of a command with the pod's address and folders in it."""
        word = re.sub(r"\b127\.0\.0\.1\b", self.address, word)
        for path, folder in self.paths.items():
            word = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w.-])", folder, word)
        return word

    def initialise(self, options: list[str], data: str, environment: dict[str, str], log: IO[bytes]) -> int:
        """Make the system tables, the users and what the SQL makes; return an exit code."""
        def variable(name: str) -> str:
            return environment.get(f"MARIADB_{name}") or environment.get(f"MYSQL_{name}", "")
        password, database, user = variable("ROOT_PASSWORD"), variable("DATABASE"), variable("USER")
        if not (password or variable("ALLOW_EMPTY_ROOT_PASSWORD") or variable("ALLOW_EMPTY_PASSWORD")):
            log.write(b"[ERROR] [Entrypoint]: Database is uninitialized, password option is not specified\n")
            return 1
        # A crash in the middle of it leaves nothing that looks like a database.
        fresh = f"{self.folder}/fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        quoted, own = (word.replace("\\", "\\\\").replace("'", "\\'")
                       for word in (password, variable("PASSWORD")))
        statements = f"""SET @@SESSION.SQL_LOG_BIN=0; DROP USER IF EXISTS root@'127.0.0.1', root@'::1';
            EXECUTE IMMEDIATE CONCAT('DROP USER IF EXISTS root@\\'', @@hostname, '\\'');
            ALTER USER root@localhost IDENTIFIED BY '{quoted}'; CREATE USER root@'%' IDENTIFIED BY '{quoted}';
            GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;""" + (
            f"CREATE DATABASE `{database}`;" if database else "") + (
            f"CREATE USER '{user}'@'%' IDENTIFIED BY '{own}';" if user else "") + (
            f"GRANT ALL ON `{database}`.* TO '{user}'@'%';" if user and database else "")
        scripts = [statements.encode()]
        folder = self.paths.get("/docker-entrypoint-initdb.d", "")
        for name in sorted(os.listdir(folder)) if folder else ():
            if name.endswith(".sql"):
                with open(f"{folder}/{name}", "rb") as file:
                    scripts.append(file.read())
        self.process = self.start_process([
            "mariadb-install-db", "--no-defaults", "--skip-test-db",
            "--auth-root-authentication-method=normal", f"--datadir={fresh}",
            *(word for word in options if word.startswith(("--innodb", "--user", "--character")))],
            environment, log)
        if self.process.wait() or self.stopping:
            return self.process.returncode or 1
        self.process = process = self.start_process([
            self.node.mariadbd, "--no-defaults", f"--datadir={fresh}", *options, "--skip-networking"],
            environment, log)
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={self.folder}/mysqld.sock"]
        while subprocess.run([*client, "--execute=SELECT 1"], env=environment,
                             capture_output=True).returncode and process.poll() is None:
            time.sleep(0.02)
        for number, script in enumerate(scripts):
            run = subprocess.run([*client, *([database] if database and number else [])], input=script,
                                 stdout=log, stderr=log,
                                 env={**environment, **({"MYSQL_PWD": password} if number else {})})
            if run.returncode:
                self.kill()
                return process.wait() and run.returncode
        process.terminate()
        if process.wait():
            return process.returncode
        for name in os.listdir(fresh):
            shutil.move(f"{fresh}/{name}", data)
        return 0

    def probe(self, environment: dict[str, str]) -> None:
        """Run the container's probes until its process ends or has to."""
        assert self.process
        probes = {name: self.container[f"{name}Probe"]
                  for name in ("startup", "readiness", "liveness") if f"{name}Probe" in self.container}
        begun, running = time.monotonic(), {"running": {"startedAt": now()}}
        due = {name: begun + probe.get("initialDelaySeconds", FIRST_PROBE_SECONDS)
               for name, probe in probes.items()}
        failures, ready = dict.fromkeys(probes, 0), False
        self.report(running)
        while self.process.poll() is None and not self.stopping:
            for name in ["startup"] if "startup" in probes else list(probes):
                if time.monotonic() < due[name]:
                    continue
                due[name] = time.monotonic() + probes[name]["periodSeconds"]
                wrong = self.try_probe(probes[name], environment)
                failures[name] = failures[name] + 1 if wrong else 0
                if wrong:
                    self.record("Warning", "Unhealthy", f"{name.capitalize()} probe failed: {wrong}")
                if name == "startup" and not wrong:
                    del probes[name]
                elif name == "readiness":
                    ready = not wrong or ready and failures[name] < probes[name]["failureThreshold"]
                elif failures[name] >= probes[name]["failureThreshold"]:
                    self.record("Normal", "Killing",
                                f"Container {self.container['name']} failed {name} probe, will be restarted")
                    return
            self.report(running, ready or not probes)
            self.poked.wait(0.05)
            self.poked.clear()

    def try_probe(self, probe: Object, environment: dict[str, str]) -> str:
        """Run a probe once; return what is wrong, or nothing."""
        try:
            if "tcpSocket" in probe:
                socket.create_connection((self.address, port_of(self.item, probe["tcpSocket"]["port"])),
                                         probe["timeoutSeconds"]).close()
            elif "exec" in probe:
                command = [self.localise(word) for word in probe["exec"]["command"]]
                run = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                                     timeout=probe["timeoutSeconds"])
                said = (run.stdout + run.stderr).decode(errors="replace").strip()
                return (said or f"exit {run.returncode}") if run.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return ""


def port_of(pod: Object, port: Any) -> int:
    """Return a pod's port by its number or its name. Raises ValueError."""
    named = {item.get("name"): item["containerPort"] for container in pod["spec"]["containers"]
             for item in container.get("ports", ())}
    return int(named.get(port, port))
