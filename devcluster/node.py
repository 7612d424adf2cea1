"""The node: runs the pods, as a kubelet does."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shutil
import threading
import time

from devcluster.addresses import Range
from devcluster.container import Container, NotYet
from devcluster.errors import ApiError
from devcluster.kinds import NODE, Object
from devcluster.store import Change, Store, now

# A hollow pod is ready so long after its start.
HOLLOW_SECONDS = 1.0
# A pod goes no sooner than this after its container has ended. `kubectl delete pod` waits for ever for one
# that has gone, and come again by its name, between two of its looks; no real node is quick enough for that.
LINGER_SECONDS = 0.3
# A container's first probe comes this long after its start; the kubelet's does within the first period.
FIRST_PROBE_SECONDS = 0.3
# A container that ended starts again at once, then after pauses that double from the first to the last; one
# that ran for the third begins anew. These are the kubelet's.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, PEACE_SECONDS = 10.0, 300.0, 600.0
# What could not be started, or has no room, is tried again after this.
RETRY_SECONDS = 1.0
# Of the log's end that a container's state shows; the kubelet's is this many bytes, or 80 lines.
MESSAGE_CHARACTERS = 2048
# From SIGTERM to SIGKILL for all databases, when this process ends. A small MariaDB takes 50 ms.
STOP_SECONDS = 5.0

# So many containers a core start at once, each for no longer than this: one machine has fewer cores than a
# cluster, and the probes of 50 that start together would take more than MariaDB.
STARTING_A_CORE, STARTING_SECONDS = 8, 10.0

KILLED = 128 + 9  # The exit code of a process that SIGKILL ended.


class Node:
    """Runs the pods: a thread for each, which does what a kubelet does."""

    def __init__(self, store: Store, state: str, hollow: bool, addresses: Range) -> None:
        self.store, self.state, self.addresses, self.stopping = store, state, addresses, False
        self.path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
        self.mariadbd = "" if hollow else shutil.which("mariadbd", path=self.path) or ""
        self.why_hollow = "--hollow was given" if hollow else \
            "for databases that run: apt-get install mariadb-server-core mariadb-client-core, and start anew"
        self.pods: dict[str, Pod] = {}
        self.never_ready, self.room = "", float("inf")
        self.starting = threading.Semaphore(STARTING_A_CORE * (os.cpu_count() or 1))

    def react(self, change: Change) -> None:
        """Start a pod that is new, and end one that is to go."""
        if change.kind.name == "PersistentVolumeClaim" and not change.after:
            shutil.rmtree(self.claim_path(change.item), ignore_errors=True)
        if change.kind.name == "Pod":
            uid = change.item["metadata"]["uid"]
            if change.after and not change.before:
                self.pods[uid] = Pod(self, change.item, self.free_address())
                self.pods[uid].start()
            elif uid in self.pods and (not change.after or "deletionTimestamp" in change.item["metadata"]):
                self.pods[uid].stop()

    def free_address(self) -> str:
        """Return an address that no pod has."""
        return self.addresses.take({pod.address for pod in list(self.pods.values())})

    def admit(self, pod: Pod) -> bool:
        """Return whether there is room for a pod, which then takes it."""
        with self.store.changed:
            pod.bound = pod.bound or sum(other.bound for other in list(self.pods.values())) < self.room
            return pod.bound

    def claim_path(self, claim: Object) -> str:
        """Return the folder of a claim, which lives as long as the claim."""
        return f"{self.state}/claims/{claim['metadata']['uid']}"

    def log_path(self, pod: Object, container: str) -> str:
        """Return the file of what a container prints."""
        return os.path.join(self.state, "pods", pod["metadata"]["uid"], f"{container}.log")

    def order(self, faults: Object) -> None:
        """Have these faults from now on, and let befall the pods what is ordered once."""
        self.never_ready, self.room = faults.get("never_ready", ""), faults.get("room", float("inf"))
        fates = {fate: faults.pop(f"{fate}_pods", "") for fate in ("kill", "oom", "evict", "move")}
        for pod in list(self.pods.values()):
            pod.meet(next((fate for fate, names in fates.items() if fnmatch.fnmatch(pod.name, names)), ""))

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


class Pod(threading.Thread):
    """One pod on the node, from its binding to its end."""

    def __init__(self, node: Node, pod: Object, address: str) -> None:
        super().__init__(name=pod["metadata"]["name"], daemon=True)
        self.node, self.store, self.item, self.address = node, node.store, pod, address
        containers = pod["spec"]["containers"]
        self.spec = next((container for container in containers
                          if re.search("mariadb|mysql", container["image"])), containers[0])
        self.folder = os.path.join(node.state, "pods", pod["metadata"]["uid"])
        self.container: Container | None = None
        self.bound = self.stopping = self.started = False
        self.fate = ""  # What was ordered to befall it: kill, oom, evict or move.
        self.poked = threading.Event()
        self.runs = 0
        self.last_state: Object = {}
        self.conditions: dict[str, Object] = {}
        self.claims: list[Object] = []

    # -- what others ask of it

    def stop(self) -> None:
        """Have it end."""
        self.stopping = True
        self.poked.set()

    def meet(self, fate: str) -> None:
        """Let this befall it, if anything; and in any case have it look whether it may be ready."""
        self.fate = fate or self.fate
        self.poked.set()

    def kill(self) -> None:
        """Kill its processes."""
        if self.container:
            self.container.kill()

    # -- its life

    def run(self) -> None:
        """Run the pod until it is deleted."""
        if self.bind():
            self.live()
        self.bound = False
        while not self.stopping:  # It is over, and there to be looked at.
            self.poked.wait()
            self.poked.clear()
        time.sleep(0 if self.node.stopping else LINGER_SECONDS)
        self.clear()
        meta = self.item["metadata"]
        with contextlib.suppress(ApiError):
            if not self.node.stopping:  # Else a watch that is still open would tell that it has gone.
                self.store.delete("pods", meta["namespace"], meta["name"],
                                  {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})

    def bind(self) -> bool:
        """Wait for room on the node; return whether the pod is to start."""
        meta = self.item["metadata"]
        if not self.node.admit(self):
            message = "0/1 nodes are available: 1 Too many pods."
            self.record("Warning", "FailedScheduling", message, "default-scheduler")
            self.condition("PodScheduled", False, "Unschedulable", message)
            self.store.set_status("pods", self.item, conditions=list(self.conditions.values()))
        while not self.stopping and not self.node.admit(self):
            self.poked.wait(RETRY_SECONDS)
            self.poked.clear()
        if self.stopping:
            return False
        with contextlib.suppress(ApiError):
            self.item = self.store.update("pods", meta["namespace"], meta["name"], lambda pod: {
                **pod, "spec": {**pod["spec"], "nodeName": NODE}})
        message = f"Successfully assigned {meta['namespace']}/{meta['name']} to {NODE}"
        self.record("Normal", "Scheduled", message, "default-scheduler")
        return True

    def live(self) -> None:
        """Run the container again and again, with a kubelet's pauses, until the pod is to end."""
        database, pause = re.search("mariadb|mysql", self.spec["image"]), 0.0
        runs = database and self.node.mariadbd
        if not (runs or "never-ready" in self.spec["image"]):
            why = self.node.why_hollow if database else "its image is no database"
            self.record("Warning", "Hollow", f"nothing runs in this pod: {why}")
        self.report({"waiting": {"reason": "ContainerCreating"}})
        while self.survives() and not self.stopping:
            started, began = now(), time.monotonic()
            try:
                if "never-ready" in self.spec["image"]:
                    raise NotYet("ImagePullBackOff", f'Back-off pulling image "{self.spec["image"]}"')
                code = self.run_container() if runs else self.run_hollow()
            except NotYet as error:
                self.report({"waiting": {"reason": error.args[0], "message": error.args[1]}})
                self.pause(RETRY_SECONDS)
                continue
            reason = "OOMKilled" if self.fate == "oom" else "Error" if code else "Completed"
            self.last_state = {"terminated": {
                "exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now(),
                **({"message": self.last_words()} if runs and code else {})}}
            policy = self.item["spec"]["restartPolicy"]
            if self.stopping or policy == "Never" or policy == "OnFailure" and not code:
                self.report(self.last_state, phase="Failed" if code else "Succeeded")
                return
            pause = 0.0 if time.monotonic() - began > PEACE_SECONDS else pause
            if pause and self.fate not in ("move", "evict"):
                self.back_off(pause)
            else:
                self.report(self.last_state)
            pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)

    def last_words(self) -> str:
        """Return the end of its container's log, which the kubelet shows if it is told to."""
        if self.spec["terminationMessagePolicy"] != "FallbackToLogsOnError":
            return ""
        path = self.node.log_path(self.item, self.spec["name"])
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()[-MESSAGE_CHARACTERS:]

    def survives(self) -> bool:
        """Have done what was ordered for the pod as a whole; return whether it lives on."""
        fate, self.fate = self.fate, ""
        if fate == "move":
            self.address = self.node.free_address()
            self.record("Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
        if fate == "evict":
            message = "The node was low on resource: memory. "
            self.record("Warning", "Evicted", message)
            self.report(self.last_state, phase="Failed", reason="Evicted", message=message)
            shutil.rmtree(self.folder, ignore_errors=True)
        return fate != "evict"

    def back_off(self, seconds: float) -> None:
        """Wait before the container starts again."""
        meta = self.item["metadata"]
        self.record("Warning", "BackOff", "Back-off restarting failed container")
        self.report({"waiting": {"reason": "CrashLoopBackOff", "message": (
            f"back-off {seconds:.0f}s restarting failed container={self.spec['name']} "
            f"pod={self.name}_{meta['namespace']}({meta['uid']})")}})
        self.pause(seconds)

    def run_hollow(self) -> int:
        """Be ready after a moment, and until the end; return an exit code."""
        self.runs, self.started, running = self.runs + 1, True, {"running": {"startedAt": now()}}
        self.report(running)
        self.pause(HOLLOW_SECONDS)
        while not (self.stopping or self.fate):
            self.report(running, ready=True)
            self.poked.wait()
            self.poked.clear()
        return KILLED if self.fate else 0

    def run_container(self) -> int:
        """Run the container once; return its exit code. Raises NotYet."""
        namespace = self.item["metadata"]["namespace"]
        container = Container(self.item, self.spec, self.address, self.folder, self.node.path,
                              lambda plural, name: self.store.find(plural, namespace, name), self.claim)
        while not (granted := self.node.starting.acquire(timeout=0.1)) and not self.stopping:
            pass
        path = self.node.log_path(self.item, self.spec["name"])
        with open(path, "ab") as log, contextlib.ExitStack() as turn:
            if granted:
                turn.callback(self.node.starting.release)
            try:
                container.start(log)
            except OSError as error:
                raise NotYet("RunContainerError", str(error)) from None
            self.container, self.runs = container, self.runs + 1
            self.record("Normal", "Started", f"Started container {self.spec['name']}")
            self.watch(container, turn)
            return container.stop(min(self.item["spec"]["terminationGracePeriodSeconds"], STOP_SECONDS))

    def watch(self, container: Container, turn: contextlib.ExitStack) -> None:
        """Run the container's probes until its process ends, or has to; its turn to start ends before."""
        probes = {name: self.spec[f"{name}Probe"] for name in ("startup", "readiness", "liveness")
                  if f"{name}Probe" in self.spec}
        begun, running = time.monotonic(), {"running": {"startedAt": now()}}
        due = {name: begun + probe.get("initialDelaySeconds", FIRST_PROBE_SECONDS)
               for name, probe in probes.items()}
        failures, ready = dict.fromkeys(probes, 0), False
        self.started = "startup" not in probes
        self.report(running)
        while not (container.exited() or self.stopping or self.fate):
            if self.started or time.monotonic() > begun + STARTING_SECONDS:
                turn.close()
            for name in list(probes) if self.started else ["startup"]:
                if time.monotonic() < due[name]:
                    continue
                due[name] = time.monotonic() + probes[name]["periodSeconds"]
                wrong = container.probe(probes[name])
                failures[name] = failures[name] + 1 if wrong else 0
                if wrong:
                    self.record("Warning", "Unhealthy", f"{name.capitalize()} probe failed: {wrong}")
                if name == "startup" and not wrong:
                    del probes[name]
                    self.started = True
                elif name == "readiness":
                    ready = not wrong or ready and failures[name] < probes[name]["failureThreshold"]
                elif failures[name] >= probes[name]["failureThreshold"]:
                    self.record("Normal", "Killing",
                                f"Container {self.spec['name']} failed {name} probe, will be restarted")
                    return
            self.report(running, ready or self.started and "readiness" not in probes)
            self.poked.wait(0.05)
            self.poked.clear()
        if self.fate:
            container.kill()

    def claim(self, name: str) -> str:
        """Return the folder of a PersistentVolumeClaim. Raises NotYet."""
        claim = self.store.find("persistentvolumeclaims", self.item["metadata"]["namespace"], name)
        if not claim:
            raise NotYet("CreateContainerConfigError", f'persistentvolumeclaim "{name}" not found')
        self.claims.append(claim)
        path = self.node.claim_path(claim)
        if not os.path.exists(path):
            os.makedirs(f"{path}/lost+found")  # As a new volume has it.
        return path

    def pause(self, seconds: float) -> None:
        """Wait so long, or until the pod is to end or to be moved."""
        deadline = time.monotonic() + seconds
        while not (self.stopping or self.fate in ("move", "evict")) and time.monotonic() < deadline:
            self.poked.wait(max(deadline - time.monotonic(), 0))
            self.poked.clear()

    def clear(self) -> None:
        """Leave the node as if the pod had never been there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for claim in self.claims:  # One that was deleted while the database still wrote into it.
            if claim["metadata"]["uid"] not in self.store.uids:
                shutil.rmtree(self.node.claim_path(claim), ignore_errors=True)
        self.node.pods.pop(self.item["metadata"]["uid"], None)

    # -- what the API is told

    def report(self, state: Object, ready: bool = False, phase: str = "", **more: str) -> None:
        """Write the pod's status; the state is the container's."""
        ready = ready and not fnmatch.fnmatch(self.name, self.node.never_ready)
        self.condition("PodScheduled", True)
        self.condition("Initialized", True)
        for name in ("ContainersReady", "Ready"):
            self.condition(name, ready, *(() if ready else (
                "ContainersNotReady", f"containers with unready status: [{self.spec['name']}]")))
        statuses = [{"name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
                     "started": self.started and "running" in state, "restartCount": max(self.runs - 1, 0),
                     "state": state, "lastState": self.last_state}
                    for container in self.item["spec"]["containers"]]
        phase = phase or ("Running" if self.runs else "Pending")
        self.store.set_status(
            "pods", self.item, phase=phase, hostIP="127.0.0.1", podIP=self.address,
            podIPs=[{"ip": self.address}], containerStatuses=statuses,
            startTime=self.conditions["PodScheduled"]["lastTransitionTime"],
            conditions=list(self.conditions.values()), **more)

    def condition(self, name: str, holds: bool, reason: str = "", message: str = "") -> None:
        """Note whether a condition holds, and why."""
        before = self.conditions.get(name, {})
        since = before["lastTransitionTime"] if before.get("status") == str(holds) else now()
        self.conditions[name] = {"type": name, "status": str(holds), "lastProbeTime": None,
                                 "lastTransitionTime": since, **({"reason": reason} if reason else {}),
                                 **({"message": message} if message else {})}

    def record(self, category: str, reason: str, message: str, component: str = "kubelet") -> None:
        """Record an Event on the pod."""
        self.store.event(self.item, component, category, reason, message,
                         f"spec.containers{{{self.spec['name']}}}" if component == "kubelet" else "")
