"""Several servers' clusters on one simulated API server, under one seeded scheduler that owns the time.

    python -m tests.simulation --seed 7          tell one story, a line a step
    python -m tests.simulation --seeds 0 1000    live those stories; the first that fails is told
    python -m tests.simulation --seconds 600     live new stories for so long
    python -m tests.simulation --volume ...      the same of databases on volumes, as mysql-persistent.yaml's

The clusters are playground.Cluster. Simulated is what they stand on: the loop, kubectl (each request is a
step of its own), the watches (each with its own lag), the clocks, the API server, the containers; the users,
the hands and the accidents that meddle. A story has a time of faults, then a calm one. What must hold
is checked where it can break: every write (Story.applied), every answer (Story.answered), and Story.calm.
With volumes a name is used again: what must hold is of a claim, by its uid, which has the data.

A seed's story is the same each time in a process with PYTHONHASHSEED=0, without which sets have no order.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import gc
import heapq
import itertools
import json
import logging
import os
import random
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Generator, Iterable
from typing import Any, Callable, ClassVar

import playground
from playground import CLIENT, ENDS, KEPT, KINDS, NOBODY, OURS, USER, ApiError, KubectlError, password_in

Item = dict[str, Any]
Step = Callable[[], object]

CLAIM = "PersistentVolumeClaim"
RESOURCES = {resource: kind for kind, (resource, _) in KINDS.items()}
FAULT_SECONDS, CALM_SECONDS = 100.0, 4000.0  # At most, each; a story is calm long before.
LATE_SECONDS = 40.0  # A request of a killed kubectl arrives so much later at most.
TEMPLATE = """
apiVersion: v1
kind: Secret
metadata: {name: "${name}"}
immutable: true
type: "%s"
stringData: {password: "${password}"}
---
{apiVersion: v1, kind: Pod, metadata: {name: "${name}"}, spec: {}}
"""
VOLUME_TEMPLATE = TEMPLATE + """
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: "${name}"}, spec: {}}
---
{apiVersion: v1, kind: Service, metadata: {name: "${name}"}, spec: {}}
"""


class Broken(Exception):
    """What must hold does not."""


class Refused(Exception):
    """A request that the API server refuses."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class Killed(BaseException):
    """Ends a thread whose server was killed."""


class Tokens:
    """Stands for the module `secrets`: ids and passwords that a story repeats."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.count = rng, 0

    def token_hex(self, size: int) -> str:
        """Return an id or a password that is used once."""
        self.count += 1
        return f"{self.rng.getrandbits(12):03x}x{self.count}" if size == 8 else f"{self.count:032x}"


# ---- The API server -----------------------------------------------------------------------------------

class Api:
    """Objects of one namespace, and each kind's history; none is changed, another takes its place."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.version, self.uids = 100, itertools.count(1)
        self.objects: dict[tuple[str, str], Item] = {}
        self.history: dict[str, list[tuple[int, str, Item | None, float]]] = {kind: [] for kind in KINDS}
        self.max_pods = 10 ** 6
        self.refuses_pods = False  # As a webhook does.

    def of(self, kind: str) -> list[Item]:
        """Return the objects of a kind."""
        return [item for (one, _), item in self.objects.items() if one == kind]

    def put(self, item: Item, by: str) -> Item:
        """Store an object as the next version."""
        self.version += 1
        key = item["kind"], item["metadata"]["name"]
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        before, self.objects[key] = self.objects.get(key), item
        self.tell(key, before, item, by)
        if key[0] == "Pod" and failed(item):
            self.release(key[1])
        return item

    def drop(self, key: tuple[str, str], by: str) -> None:
        """Remove an object."""
        self.version += 1
        self.tell(key, self.objects.pop(key), None, by)
        if key[0] == "Pod":
            self.release(key[1])

    def release(self, name: str) -> None:
        """Let a claim go that is being deleted, now that its Pod is over."""
        claim = self.objects.get((CLAIM, name))
        if claim and is_ending(claim) and not self.story.is_in_use(claim):
            self.drop((CLAIM, name), "kubelet")

    def tell(self, key: tuple[str, str], before: Item | None, item: Item | None, by: str) -> None:
        """Enter a write into the history: for the watches, what lost our labels has gone."""
        shown = item if item and ours(item) else None
        if shown or before and ours(before):
            self.history[key[0]].append((self.version, key[1], shown, self.story.now))
            for watch in self.story.watches[key[0]]:
                watch.hear()
        self.story.applied(key[0], key[1], before, item, by)

    def get(self, kind: str, name: str) -> Item:
        """Return an object. Raises Refused."""
        if item := self.objects.get((kind, name)):
            return item
        raise Refused("NotFound", f'{KINDS[kind][0]} "{name}" not found')

    def create(self, item: Item, by: str) -> Item:
        """Make an object. Raises Refused."""
        kind, name = item["kind"], item["metadata"]["name"]
        if (kind, name) in self.objects:
            raise Refused("AlreadyExists", f'{KINDS[kind][0]} "{name}" already exists')
        if "resourceVersion" in item["metadata"] or "uid" in item["metadata"]:
            raise Refused("BadRequest", "resourceVersion should not be set on objects to be created")
        if kind == "Pod":
            if self.refuses_pods:
                raise Refused("Forbidden", 'admission webhook "no.pods" denied the request')
            if sum(not failed(pod) for pod in self.of("Pod")) >= self.max_pods:
                raise Refused("Forbidden", f'pods "{name}" is forbidden: exceeded quota: pods')
        item = {**item, "metadata": {**item["metadata"], "uid": f"u{next(self.uids)}"}}
        if given := item.pop("stringData", None):
            item["data"] = {key: base64.b64encode(value.encode()).decode() for key, value in given.items()}
        if kind == "Service":
            address = f"11.{item['metadata']['uid'][1:]}"
            item = {**item, "spec": {**item["spec"], "clusterIP": address}}
            pod = self.objects.get(("Pod", name))
            self.story.addresses[address] = self.story.pods[pod["metadata"]["uid"]].running() if pod else None
        item = self.put(item, by)
        if kind == "Pod":
            self.story.pods[item["metadata"]["uid"]] = Container(self.story, item)
        return item

    def replace(self, item: Item, by: str) -> Item:
        """Put an object in the place of the version that it names. Raises Refused."""
        kind, metadata = item["kind"], item["metadata"]
        now = self.objects.get((kind, metadata["name"]))
        if not now and "uid" in metadata and kind == "Lease":
            raise Refused("Conflict", "Precondition failed: UID in precondition")
        if not now and kind == "Lease":
            raise Broken("a replace without uid makes a Lease anew")
        now = self.get(kind, metadata["name"])
        if "resourceVersion" not in metadata:
            raise Broken("a replace without resourceVersion")
        if (metadata["resourceVersion"] != now["metadata"]["resourceVersion"]
                or metadata.get("uid", now["metadata"]["uid"]) != now["metadata"]["uid"]):
            raise Refused("Conflict", "the object has been modified; please apply your changes again")
        if now.get("immutable") and item.get("data") != now.get("data"):
            raise Refused("Invalid", f'The Secret "{metadata["name"]}" is invalid: data: field is immutable')
        after = {**item, "metadata": {**metadata, "uid": now["metadata"]["uid"]}}
        if without_empty(after) == without_empty(now):
            return now  # What changes nothing is no write.
        return self.put(after, by)

    def patch(self, name: str, renewed: str, by: str) -> Item:
        """Renew a Lease. Raises Refused."""
        now = self.get("Lease", name)
        return self.put({**now, "spec": {**now["spec"], "renewTime": renewed}}, by)

    def delete(self, kind: str, name: str, by: str, uid: str = "", version: str = "") -> None:
        """Remove an object, a Pod that runs in its own time. Raises Refused."""
        item = self.get(kind, name)
        metadata = item["metadata"]
        if uid not in ("", metadata["uid"]) or version not in ("", metadata["resourceVersion"]):
            raise Refused("Conflict", "Precondition failed")
        if (kind == "Pod" and not self.story.pods[metadata["uid"]].end(by)
                or kind == CLAIM and self.story.is_in_use(item)):
            if "deletionTimestamp" not in metadata:
                self.put({**item, "metadata": {**metadata, "deletionTimestamp": "now"}}, by)
            return
        self.drop((kind, name), by)


def failed(pod: Item) -> bool:
    """Tell whether a Pod has ended for good."""
    return bool((pod.get("status") or {}).get("phase") == "Failed")


def is_ending(item: Item) -> bool:
    """Tell whether an object is being deleted."""
    return "deletionTimestamp" in item["metadata"]


def ours(item: Item) -> bool:
    """Tell whether the server's selector finds an object."""
    return OURS.items() <= (item["metadata"].get("labels") or {}).items()


class Container:
    """A Pod's container and its kubelet.

    Its data, which may be on a volume, keeps the password that the Secret has when it starts first.
    """

    def __init__(self, story: Story, item: Item) -> None:
        self.story, self.name, self.uid = story, item["metadata"]["name"], item["metadata"]["uid"]
        self.id = self.name[len("mysql-"):]
        self.password, self.ends = "", False
        self.claim = ""  # The uid of the claim that its data is on.
        rng = story.rng
        self.never = story.may("slow pods") and rng.random() < 0.1
        story.after(rng.expovariate(1 / story.pod_seconds), self.start)
        if self.never and rng.random() < 0.5:
            unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            story.after(0.1, lambda: self.say({"phase": "Pending", "conditions": [unschedulable]}))

    def item(self) -> Item | None:
        """Return its Pod, if that is there still, and not over."""
        item = self.story.api.objects.get(("Pod", self.name))
        return item if item and item["metadata"]["uid"] == self.uid and not failed(item) else None

    def running(self) -> Container | None:
        """Return it, if it has ever run."""
        return self if self.password else None

    def say(self, status: Item) -> None:
        """Write the Pod's status."""
        if item := self.item():
            self.story.api.put({**item, "status": status}, "kubelet")

    def start(self) -> None:
        """Start with what the Secret says now; the data keeps the password of the first time."""
        item, secret = self.item(), self.story.api.objects.get(("Secret", self.name))
        if not item or self.ends:
            return
        if not secret or self.never or not self.mount():
            self.story.after(5, self.start)
            return
        password = password_in(secret)
        self.password = self.password or password
        if self.claim:
            self.password = self.story.volumes.setdefault(self.claim, password)
        address = f"10.{len(self.story.addresses)}"
        self.story.addresses[address] = self
        if service := self.story.api.objects.get(("Service", self.name)):
            self.story.addresses[service["spec"]["clusterIP"]] = self
        ready = "True" if password == self.password else "False"
        self.say({"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": ready}]})

    def mount(self) -> bool:
        """Return whether there is a volume, if there has to be one; no two use it at once."""
        if not self.story.volume or self.claim:
            return True
        claim = self.story.api.objects.get((CLAIM, self.name))
        if not claim or is_ending(claim):
            return False
        if self.story.is_in_use(claim):
            raise Broken(f"two Pods are on the volume of {self.name}")
        self.claim = claim["metadata"]["uid"]
        return True

    def stop(self, phase: str) -> None:
        """Stop for now, or for good."""
        self.say({"phase": phase, "conditions": [{"type": "Ready", "status": "False"}]})
        if phase == "Running":
            self.story.after(self.story.rng.uniform(0.5, 3), self.start)

    def end(self, by: str) -> bool:
        """Begin to end; return whether it has ended already."""
        if not self.password or not self.item():
            return True
        if not self.ends:
            self.ends, rng = True, self.story.rng
            stuck = self.story.may("stuck pods") and rng.random() < 0.2
            self.story.after(rng.uniform(30, 60) if stuck else rng.uniform(0.1, 3), self.ended)
        return False

    def ended(self) -> None:
        """Be gone."""
        item = self.story.api.objects.get(("Pod", self.name))
        if item and item["metadata"]["uid"] == self.uid:
            self.story.api.drop(("Pod", self.name), "kubelet")


# ---- kubectl ------------------------------------------------------------------------------------------

Requests = Generator[Callable[[], Any], Any, None]


class Process:
    """One kubectl: it can be killed between any two of its requests, or one arrives too late."""

    def __init__(self, story: Story, server: Server, arguments: tuple[str, ...], stdin: bytes,
                 then: Callable[[KubectlError | None, bytes], object]) -> None:
        self.story, self.server, self.then = story, server, then
        self.number = next(story.numbers)
        self.by = f"{server.name} kubectl {self.number}"
        self.arguments, self.verb = arguments, arguments[0]
        self.printed: list[str] = []
        self.words: list[str] = []
        self.over = False
        self.requests = self.run(arguments, stdin)
        rng, self.fault, self.sent = story.rng, "", 0
        if story.may("kubectl") and rng.random() < story.kubectl_faults:
            self.fault = rng.choice(("refused", "killed", "killed", "hung", "error", "slow"))
        self.fault_at = rng.choice((0, 0, 1, 1, 2, 3, 5))
        story.say(self.by, " ".join(arguments)[:300], self.fault)
        if story.down or self.fault == "refused":
            self.fault = "refused"
            self.words.append("The connection to the server was refused")
            story.after(0.05, self.finish)
            return
        story.after(playground.KUBECTL_SECONDS, self.kill)
        self.send(None)

    def run(self, arguments: tuple[str, ...], stdin: bytes) -> Requests:
        """Make the requests that kubectl makes for a command."""
        verb, api = self.verb, self.story.api
        options = zip(arguments, arguments[1:])
        values = {name: value for name, value in options if name in ("-f", "-o", "-l", "-p")}
        names = [one for one in arguments[1:] if one[0] != "-" and one not in values.values()]
        if arguments[1] == "resourcequotas":  # Its Pods are counted without one.
            try:
                yield lambda: None
                self.printed.append('{"kind": "List", "items": []}')
            except Refused as refused:
                self.words.append(f"Error from server ({refused.reason}): {refused.message}")
            return
        if verb == "get":
            items = json.loads(stdin)["items"]
            names = [f"{KINDS[item['kind']][0]}/{item['metadata']['name']}" for item in items]
        if "--raw" in arguments:  # delete
            kind, name = RESOURCES[names[0].split("/")[-2]], names[0].split("/")[-1]
            sure = json.loads(stdin)["preconditions"]
            try:
                yield lambda: api.delete(kind, name, self.by, sure["uid"], sure.get("resourceVersion", ""))
            except Refused as refused:
                self.words.append(f"Error from server ({refused.reason}): {refused.message}")
        elif verb == "delete":
            yield from self.delete_labelled(names[0], values["-l"])
        elif verb == "get":
            found = []
            for kind, name in map(playground.key_of, json.loads(stdin)["items"]):
                try:
                    found.append((yield functools.partial(api.get, kind, name)))
                except Refused as refused:
                    if refused.reason != "NotFound":
                        self.words.append(f"Error from server ({refused.reason}): {refused.message}")
            if found:
                self.printed.append(json.dumps({"kind": "List", "items": found}))
        elif "--dry-run=server" in arguments:
            try:
                yield lambda: None
            except Refused as refused:
                self.words.append(f"Error from server ({refused.reason}): {refused.message}")
        else:
            renewed = json.loads(values["-p"])["spec"]["renewTime"] if verb == "patch" else ""
            doing = {"create": "creating", "replace": "replacing", "patch": "patching"}[verb]
            for item in json.loads(stdin)["items"]:
                try:
                    done = yield (functools.partial(api.create, item, self.by) if verb == "create" else
                                  functools.partial(api.replace, item, self.by) if verb == "replace" else
                                  functools.partial(api.patch, item["metadata"]["name"], renewed, self.by))
                    name = f"lease.coordination.k8s.io/{item['metadata']['name']}"
                    self.printed.append(name if verb == "patch" else json.dumps(done))
                except Refused as refused:
                    start = f'Error from server ({refused.reason}): error when {doing} "STDIN": '
                    self.words.append(("" if refused.reason == "Invalid" else start) + refused.message)

    def delete_labelled(self, resources: str, selector: str) -> Requests:
        """List each kind, and then delete what was listed by name, whatever bears the name by then."""
        match = re.search(r"(\S+) in \(([^)]*)\)$", selector)
        label, values = (match[1], match[2].split(",")) if match else (selector.split(",")[-1].split("=")[0],
                                                                       [selector.split("=")[-1]])
        label = label.split(",")[-1]
        for resource in resources.split(","):
            kind = RESOURCES[resource]
            listed = functools.partial(self.listed, kind, label, values)
            try:
                names = yield listed
                for name in names:
                    try:
                        yield functools.partial(self.story.api.delete, kind, name, self.by)
                        self.printed.append(f"{kind.lower()}/{name}")
                    except Refused as refused:
                        if refused.reason != "NotFound":
                            self.words.append(f"Error from server ({refused.reason}): {refused.message}")
            except Refused as refused:
                self.words.append(f"Error from server ({refused.reason}): {refused.message}")

    def listed(self, kind: str, label: str, values: list[str]) -> list[str]:
        """Return the names of objects with a label."""
        return [item["metadata"]["name"] for item in self.story.api.of(kind)
                if ours(item) and item["metadata"]["labels"].get(label) in values]

    def send(self, answer: Any, refused: Refused | None = None) -> None:
        """Take an answer and send the next request."""
        if self.over:
            return
        try:
            request = self.requests.throw(refused) if refused else self.requests.send(answer)
        except StopIteration:
            self.finish()
            return
        rng, fault, self.sent = self.story.rng, self.fault, self.sent + 1
        if fault == "killed" and self.sent > self.fault_at:
            if pause := rng.choice((0, rng.uniform(0, 0.1), rng.uniform(0, LATE_SECONDS))):
                self.story.after(pause, lambda: self.arrive(request))
            self.story.after(0.01, self.kill)
        elif fault == "hung" and self.sent > self.fault_at:
            killed = playground.KUBECTL_SECONDS
            if pause := rng.choice((0, rng.uniform(0, 1), killed + rng.uniform(0, LATE_SECONDS))):
                self.story.after(pause, lambda: self.arrive(request))
        elif fault == "error" and self.sent == self.fault_at + 1:
            if rng.random() < 0.5:
                self.arrive(request)
            self.story.after(self.latency(), lambda: self.send(None, Refused(*rng.choice((
                ("InternalError", "an error on the server"), ("Timeout", "request timed out"),
                ("ServiceUnavailable", "the server is currently unable to handle the request"))))))
        else:
            pause = 6.0 if fault == "slow" else self.latency()
            self.story.after(pause, lambda: self.arrive(request, self.send))

    def latency(self) -> float:
        """Return how long a request takes."""
        rng = self.story.rng
        return rng.expovariate(1 / self.story.request_seconds) * (
            20 if rng.random() < 0.05 and not self.story.ending else 1)

    def arrive(self, request: Callable[[], Any], then: Callable[..., None] = lambda *_: None) -> None:
        """Have the API server do what is asked, whether or not anybody waits for it still."""
        if self.story.down and not self.story.ending:
            return  # The process hangs until its time is up.
        try:
            answer = request()
        except Refused as refused:
            self.story.say(self.by, f"{refused.reason}: {refused.message}")
            then(None, refused)
        else:
            then(answer)

    def kill(self) -> None:
        """Be killed, by the time limit or anybody."""
        if not self.over:
            self.story.say(self.by, "is killed")
            self.over = True
            self.then(KubectlError("timeout", "", self.output()), b"")

    def finish(self) -> None:
        """Exit."""
        self.over = True
        words = "\n".join(self.words)
        self.then(KubectlError(playground.why(words), words, self.output()) if words else None, self.output())

    def output(self) -> bytes:
        """Return what it has printed."""
        return "\n".join(self.printed).encode()


class Thread:
    """A thread for a server's work: of all these and the scheduler one runs, and hands over to another."""

    free: ClassVar[list[Thread]] = []

    def __init__(self) -> None:
        self.go, self.back = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.back.acquire()
        self.work: Callable[[], Any] = lambda: None
        self.result: Any = None
        self.call: tuple[tuple[str, ...], bytes] | None = None
        self.reply: tuple[BaseException | None, bytes] = None, b""
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """Do what is given, for ever."""
        while True:
            self.go.acquire()
            try:
                self.result = self.work()
            except BaseException as error:
                self.result = error
            self.call = None
            self.back.release()

    def resume(self) -> tuple[tuple[str, ...], bytes] | None:
        """Let it run, until its work is done, or to the kubectl that is returned."""
        self.go.release()
        self.back.acquire()
        return self.call

    def kubectl(self, arguments: tuple[str, ...], stdin: bytes) -> bytes:
        """Have the scheduler run a kubectl, as the thread itself."""
        self.call = arguments, stdin
        self.back.release()
        self.go.acquire()
        error, printed = self.reply
        if error:
            raise error
        return printed


class Job:
    """What a server has a thread do."""

    def __init__(self, server: Server, work: Callable[[], Any], then: Callable[[Any], object]) -> None:
        self.server, self.work, self.then, self.ordered = server, work, then, server.story.now
        self.verb = ""
        self.process: Process | None = None

    def begin(self) -> None:
        """Begin, with a thread that is free."""
        self.thread = Thread.free.pop() if Thread.free else Thread()
        self.thread.work = self.work
        self.go_on()

    def go_on(self) -> None:
        """Let the thread run to its next kubectl, or its end."""
        self.server.story.thread = self.thread
        if call := self.thread.resume():
            self.verb = call[0][0]
            self.process = Process(self.server.story, self.server, *call, self.take)
            return
        result = self.thread.result
        Thread.free.append(self.thread)
        self.server.jobs.remove(self)
        if isinstance(result, Killed):
            return
        if isinstance(result, BaseException) and not isinstance(result, KubectlError):
            raise Broken("work crashed") from result
        self.server.worked(self, result)

    def take(self, error: KubectlError | None, printed: bytes) -> None:
        """Take what came of a kubectl."""
        process, self.process = self.process, None
        if self.server.dead:
            return
        now = self.server.story.now
        failed = error and error.reason != "not found"
        if process and process.verb == "patch" and (failed or now > self.ordered + self.server.margin):
            self.server.troubled_at = now
        self.thread.reply = error, printed
        self.go_on()

    def kill(self) -> None:
        """End together with the server; its kubectl may live on for its while."""
        if self.process:
            if self.server.story.rng.random() < 0.5:
                self.process.over = True
            self.process.then = lambda *_: None
            self.thread.reply = Killed(), b""
            self.server.story.thread = self.thread
            self.thread.resume()
            Thread.free.append(self.thread)


# ---- A server -----------------------------------------------------------------------------------------

class Watch:
    """A server's watch of a kind: lists, and then tells what happened in its own time. It can be cut."""

    def __init__(self, server: Server, kind: str) -> None:
        self.server, self.kind, self.story = server, kind, server.story
        self.lag = self.story.rng.choice(self.story.lags)
        self.at, self.state, self.deaf_until = 0, "cut", 0.0
        self.list()

    def do(self, pause: float, step: Step) -> None:
        """Have the server take a step after a pause."""
        self.story.after(pause, lambda: self.server.do(step))

    def list(self) -> None:
        """Tell of everything there is: as it is at one moment, in portions."""
        rng, kind, cluster = self.story.rng, self.kind, self.server.cluster
        if self.story.down:
            self.server.do(lambda: cluster.health.report(kind, "unreachable"))
            self.story.after(2, self.list)
            return
        pause = self.story.request_seconds * rng.random() + self.lag * rng.random()
        if self.server.dead:
            return
        self.do(0, lambda: cluster.begin_listing(kind))

        def snapshot() -> None:
            items = [item for item in self.story.api.of(kind) if ours(item)]
            cut, version = rng.randint(0, len(items)), self.story.api.version
            self.at = len(self.story.api.history[kind])

            def take(portion: list[Item]) -> None:
                cluster.take_portion(kind, [(item["metadata"]["name"], playground.seen_of(item))
                                            for item in portion])

            def end() -> None:
                self.story.say(self.server.name, f"has listed {kind}")
                cluster.end_listing(kind, version)
                cluster.health.report(kind, "")
                self.state = "idle"
                self.hear()
            second = self.lag * rng.random()
            self.do(0, lambda: take(items[:cut]))
            self.do(second, lambda: take(items[cut:]))
            self.do(second, end)
        self.story.after(pause, snapshot)

    def hear(self) -> None:
        """Tell later of what has happened."""
        if self.state == "idle" and self.at < len(self.story.api.history[self.kind]):
            self.state = "telling"
            lag = (0.01 if self.story.ending else self.lag) * self.story.rng.expovariate(1)
            self.do(max(lag, self.deaf_until - self.story.now), self.tell)

    def tell(self) -> None:
        """Tell of one event or of some, and go on."""
        if self.state != "telling":
            return
        self.state, rng, cluster = "idle", self.story.rng, self.server.cluster
        history = self.story.api.history[self.kind]
        if self.lags() > min(self.server.margin, 2):
            self.server.stale_at = self.story.now  # What it hears now it takes for news.
        for version, name, item, _ in history[self.at:self.at + (1 if rng.random() < 0.5 else 5)]:
            self.at += 1
            if self.story.telling:
                what = "" if item else "gone "
                self.story.say(self.server.name, f"hears of {self.kind} {name} {what}@{version}")
            cluster.take_event(self.kind, name, playground.seen_of(item) if item else None, version)
        if self.at == len(history) and rng.random() < 0.1:
            cluster.take_event(self.kind, "", None, self.story.api.version)
        self.hear()

    def lags(self) -> float:
        """Return how late it is."""
        history = self.story.api.history[self.kind]
        return self.story.now - history[self.at][3] if self.at < len(history) else 0.0

    def cut(self) -> None:
        """Break; go on from there later, or list anew."""
        if self.state == "cut":
            return
        self.state, rng, cluster = "cut", self.story.rng, self.server.cluster
        if rng.random() < 0.5:
            self.server.do(lambda: cluster.health.report(self.kind, "unreachable"))
        expired = rng.random() < 0.4
        self.story.say(self.server.name, f"watch {self.kind} is cut", "expired" if expired else "")
        self.story.after(rng.uniform(0.2, 10), self.list if expired else self.resume)

    def resume(self) -> None:
        """Go on from where it was cut."""
        if self.story.down:
            self.story.after(2, self.resume)
            return

        def on() -> None:
            self.server.cluster.health.report(self.kind, "")
            self.state = "idle"
            self.hear()
        self.server.do(on)


class Server:
    """What a Cluster lives in, for playground.Server: the loop with its timers and threads, and clocks."""

    def __init__(self, story: Story, name: str) -> None:
        self.story, self.name = story, name
        rng = story.rng
        self.offset = rng.uniform(0, 10 ** 5) - story.now
        self.skew = 1.7e9 + rng.choice(story.skews) + rng.random()  # No two clocks agree.
        self.dead = self.stopping = self.settling = False
        self.paused_until = 0.0
        self.troubled_at = -1.0  # When it could not write beats;
        self.stale_at = float("-inf")  # when it heard of leases too late;
        self.stopped_at = float("inf")  # when it was told to stop.
        self.batching = rng.choice((0, 0, 0.3))
        self.jobs: list[Job] = []
        self.queue: list[Job] = []
        self.requests: dict[Request, None] = {}
        self.ended: set[str] = set()  # Databases, and claims, of which it said that they are gone.
        kubectl: Any = self
        cluster = self.cluster = playground.Cluster(kubectl, story.template(rng), story.settings)
        cluster.loop, cluster.clock, cluster.wall = self, self.clock, self.wall
        cluster.random = random.Random(rng.getrandbits(32))
        cluster.sweep.idle_since = self.clock()
        self.margin = cluster.sweep.spacing() / 2
        self.namespace = "test"
        story.say(name, "starts", f"wall clock {self.skew - 1.7e9:+.0f} s")
        self.watches = {kind: Watch(self, kind) for kind in cluster.kinds}
        for kind, watch in self.watches.items():
            story.watches[kind].append(watch)
        self.do(cluster.sweep.begin_round)
        self.do(cluster.spares.tend)

    # What Cluster uses.

    def url(self) -> str:
        """Return where it listens."""
        return f"https://{self.name}"

    def clock(self) -> float:
        """Return its monotonic time."""
        return self.story.now + self.offset

    def wall(self) -> float:
        """Return what it takes for the time of day."""
        return self.story.now + self.skew

    def __call__(self, *arguments: str, stdin: bytes = b"", **_: object) -> bytes:
        """Run kubectl, as the thread that runs."""
        return self.story.thread.kubectl(arguments, stdin)

    def start(self, work: Callable[[], Any], then: Callable[[Any], object]) -> None:
        """Have a thread do something."""
        job = Job(self, work, then)
        if len(self.jobs) < playground.WORK_THREADS:
            self.give(job)
        else:
            self.queue.append(job)

    def give(self, job: Job) -> None:
        """Give work to a thread."""
        self.jobs.append(job)
        self.story.after(0, lambda: None if self.dead else job.begin())

    def worked(self, job: Job, result: Any) -> None:
        """Take up what a thread has done, and give the next to it."""
        self.story.after(0, lambda: self.do(lambda: job.then(result)))
        if self.queue:
            self.give(self.queue.pop(0))

    def call_at(self, moment: float, step: Callable[..., object], *arguments: Any) -> None:
        """Take a step at a moment."""
        self.story.at(moment - self.offset + 1e-6, lambda: self.do(functools.partial(step, *arguments)))

    def post(self, step: Callable[..., object], *arguments: Any) -> None:
        """Take a step soon."""
        self.story.after(0, lambda: self.do(functools.partial(step, *arguments)))

    def attempt(self, step: Step) -> None:
        """Take a step now; what goes wrong in it is a crash."""
        step()

    # What happens to it.

    def do(self, step: Step) -> None:
        """Take a step, and then, or together with the next ones, tell who waits."""
        if self.dead:
            return
        if self.paused_until > self.story.now:
            self.story.at(self.paused_until, lambda: self.do(step))
            return
        try:
            step()
            if not self.batching or self.story.rng.random() > self.batching:
                self.cluster.settle()
            elif not self.settling:
                self.settling = True
                self.story.after(0.003, self.settle)
        except Broken:
            raise
        except Exception as error:
            raise Broken(f"{self.name} crashed") from error
        if self.stopping and not self.requests and self.cluster.sweep.last_beats():
            self.story.stopped(self)

    def settle(self) -> None:
        """Tell those who wait."""
        self.settling = False
        self.do(lambda: None)

    def kill(self) -> None:
        """End at once."""
        self.dead = True
        for watch in self.watches.values():
            self.story.watches[watch.kind].remove(watch)
        for job in self.jobs:
            job.kill()
        for request in list(self.requests):
            request.hang_up()

    def is_stale(self) -> bool:
        """Tell whether it may take for new what it has heard of leases too late."""
        return (self.watches["Lease"].lags() > min(self.margin, 2)
                or self.story.now < self.stale_at + max(self.cluster.settings.idle_timeout, 20))

    def is_troubled_since(self, moment: float) -> bool:
        """Tell whether it may have been unable to write a beat of that moment."""
        return (self.dead or self.stopping or self.troubled_at >= moment or self.story.now < self.paused_until
                or any(self.story.now > job.ordered + self.margin for job in (*self.jobs, *self.queue)
                       if job.verb in ("patch", "")))


class Request:
    """A request that may have to wait, as a Connection has it."""

    def __init__(self, server: Server, what: str, person: Person, client: str) -> None:
        self.server, self.what, self.person, self.client = server, what, person, client
        self.story, self.began = server.story, server.story.now
        self.waiting = self.over = False
        self.outcome: Any = None
        self.claim = self.story.claim_of(person)  # That was there.
        if what == "delete" and client == person.client:
            self.story.condemn(person, self)
        server.requests[self] = None
        self.story.say(person.slug, f"{what}_db at {server.name} as {client}")
        server.do(self.begin)

    def begin(self) -> None:
        """Ask for the first time."""
        self.started = self.server.clock()
        self.server.call_at(self.started + playground.CREATE_SECONDS, functools.partial(self.ask, True))
        self.ask()

    def ask(self, late: bool = False) -> None:
        """Ask, and wait if there is no answer yet."""
        if self.over:
            return
        cluster, person = self.server.cluster, self.person
        try:
            answer: Any = (cluster.create if self.what == "create" else cluster.delete)(
                person.user_id, self.client, self.started, late)
        except (ApiError, KubectlError) as error:
            answer = error
        if answer:
            self.end(answer)
        elif late:
            raise Broken("no answer at the deadline")
        elif not self.waiting:
            self.waiting = True
            cluster.wait(person.slug, self, self.ask)

    def end(self, answer: Any) -> None:
        """Take the answer."""
        self.outcome = answer
        self.hang_up()
        self.story.say(self.person.slug, f"{self.what}_db is answered by {self.server.name}",
                       f"{type(answer).__name__} {answer}" if isinstance(answer, Exception) else answer)
        if not isinstance(answer, Exception):
            (self.story.answered if self.what == "create" else self.story.deleted)(self, answer)
        elif isinstance(answer, ApiError):
            is_owner = self.client == self.person.client and self.began > self.story.calm_at
            if answer.status == 403 and is_owner:
                raise Broken("the owner is taken for somebody else")
            # A claim without data may have been made too late, by a request of before its user's delete_db.
            claim = self.story.claim_of(self.person)
            lost = answer.message == playground.PASSWORD_LOST and (
                self.person.spoilt or claim != "" and claim not in self.story.volumes or self.has_slept())
            if answer.status == 409 and self.began > self.person.foreign_until + 30 and not lost:
                raise Broken(f"a false 409: {answer}")

    def has_slept(self) -> bool:
        """Tell whether its server has slept, and may take what it did before for what it does now."""
        return self.server.paused_until > self.began

    def hang_up(self) -> None:
        """Wait no more."""
        self.over = True
        self.person.deleting.pop(self, None)
        self.server.requests.pop(self, None)
        self.server.cluster.wait(self.person.slug, self, None)


class Person:
    """A user: what is theirs, and when they were heard."""

    def __init__(self, user_id: str, client: str) -> None:
        self.user_id, self.client, self.slug = user_id, client, playground.slug(user_id)
        self.database = ""  # That they were answered, and nobody but a sweep may take.
        self.beats: list[tuple[float, Server]] = []  # Heard while the time of the one before was not up.
        self.renewed_at = self.written_order = float("-inf")  # In the cluster; and when the server began to.
        self.deleting: dict[Request, None] = {}
        self.quiet_until = self.served_at = 0.0
        self.foreign_until = 0.0  # A hand took the labels from their lease.
        # A hand deleted the Secret or the claim of a volume that is there still, or a lease before its end.
        self.spoilt = False
        self.server: Server | None = None  # The one they turn to, mostly.


# ---- A story -------------------------------------------------------------------------------------------

class Story:
    """One seed's story: the scheduler, who meddles, and what must hold."""

    FAULTS = ("kubectl", "slow pods", "stuck pods", "templates",
              "kill", "term", "clock", "pause", "cut", "deaf", "quota", "policy", "outage",
              # What a hand does.
              "hand secret", "unlabel", "hand pod", "hand lease", "evict", "move", "restart", "relabel",
              "future")
    VOLUME_FAULTS: ClassVar[dict[str, str]] = {"hand claim": CLAIM, "hand service": "Service"}

    def __init__(self, seed: int, telling: bool = False, volume: bool = False) -> None:
        self.seed, self.telling, self.volume = seed, telling, volume
        rng = self.rng = random.Random(seed)
        self.now, self.order, self.numbers = 0.0, itertools.count(), itertools.count(1)
        self.steps: list[tuple[float, int, Step]] = []
        self.lines: list[str] = []
        self.watches: dict[str, list[Watch]] = {kind: [] for kind in KINDS}
        self.pods: dict[str, Container] = {}
        self.addresses: dict[str, Container | None] = {}  # A Service's is that of its last Pod.
        self.volumes: dict[str, str] = {}  # The data's passwords, by the claim's uid.
        self.thread: Thread = None  # type: ignore[assignment]
        self.down = self.ending = False
        self.people_are_gone = False
        self.calm_at = float("inf")  # When everybody has heard of everything.
        # Each seed has its own mixture: what never happens in it lets the rest go further.
        self.may_be = (*self.FAULTS, *(self.VOLUME_FAULTS if volume else ()))
        self.faults = {fault for fault in self.may_be if rng.random() < rng.choice((0.1, 0.4))}
        self.kubectl_faults = rng.choice((0.05, 0.2))
        self.request_seconds = rng.choice((0.01, 0.05, 0.3))
        self.lags = rng.choice(((0.02,), (0.02, 0.5), (0.02, 0.5, 4), (0.02, 12)))
        self.skews = rng.choice(((0.0,), (0.0, 2.5, -2.5), (0.0, 600.0, -600.0, 3600.0)))
        self.pod_seconds = rng.choice((0.5, 2, 6))
        self.settings = playground.Settings(0, 0, rng.choice((20.0, 30.0, 30.0, 0.0)), rng.choice((2.0, 4.0)),
                                            rng.choice((0, 1, 1, 2, 3)) * (not volume))
        self.api = Api(self)
        self.owners: dict[str, str] = {}  # Slugs, by the id of the database that was given to them, ever.
        self.given: dict[str, tuple[str, str]] = {}  # Slug and client, by the id or claim that was answered.
        self.passwords: dict[str, str] = {}  # As first made, by id.
        # Ids of what a hand, an accident or its owner has ended; on a volume, until there is another claim.
        self.tainted: set[str] = set()
        self.condemned: set[str] = set()  # Claims that their owners want to be deleted.
        self.swept: set[str] = set()  # Pods and Services of leases that were marked.
        self.are_kept = False  # All users' data, and nothing else.
        people = [("anna", "one"), ("Ben@x", "one"), ("carl", "two"), ("dora", "two")]
        self.people = [Person(*one) for one in people[:rng.choice((1, 2, 2, 3, 4))]]
        self.servers = [self.new_server("ABC"[number]) for number in range(rng.choice((2, 2, 2, 3)))]

    def new_server(self, name: str) -> Server:
        """Start a server."""
        return Server(self, name)

    def template(self, rng: random.Random) -> playground.Template:
        """Return a server's template; in some stories, while faults last, it may be another one."""
        return templates(self.volume)[self.may("templates") and rng.random() < 0.3]

    def may(self, fault: str) -> bool:
        """Tell whether this may happen now."""
        return not self.ending and fault in self.faults

    def say(self, who: str, what: str, more: object = "") -> None:
        """Write a line of the story, if it is told."""
        if self.telling:
            self.lines.append(f"{self.now:9.3f}  {who:14} {what}{f'  [{more}]' if more else ''}")

    def at(self, moment: float, step: Step) -> None:
        """Have a step taken at a moment."""
        heapq.heappush(self.steps, (max(moment, self.now), next(self.order), step))

    def after(self, pause: float, step: Step) -> None:
        """Have a step taken after a pause."""
        heapq.heappush(self.steps, (self.now + pause, next(self.order), step))

    def run_until(self, moment: float) -> None:
        """Take all steps that are due until a moment."""
        steps, pop = self.steps, heapq.heappop
        while steps and steps[0][0] <= moment:
            self.now, _, step = pop(steps)
            step()
        self.now = moment

    def tell(self) -> None:
        """Live the whole story. Raises Broken."""
        module: Any = playground
        secrets, module.secrets = module.secrets, Tokens(random.Random(self.seed))
        try:
            self.meddle()
            for person in self.people:
                self.after(self.rng.random(), functools.partial(self.live, person))
            self.run_until(self.rng.uniform(30, FAULT_SECONDS) * (1.5 if "deaf" in self.faults else 1))
            self.calm()
        finally:
            module.secrets = secrets
            for server in self.servers:
                if not server.dead:
                    server.kill()

    # -- what happens

    def some_server(self, person: Person) -> Server | None:
        """Return the server that a person turns to, or another."""
        alive = [server for server in self.servers if not (server.dead or server.stopping)]
        if not person.server or person.server not in alive or self.rng.random() < 0.3:
            person.server = self.rng.choice(alive) if alive else None
        return person.server

    def live(self, person: Person) -> None:
        """Have a person do something, and something else later."""
        if self.ending:
            return
        rng = self.rng
        self.after(rng.expovariate(1 / 3), functools.partial(self.live, person))
        server, chance = self.some_server(person), rng.random()
        if not server or self.now < person.quiet_until:
            return
        if chance < 0.03 and self.settings.idle_timeout:
            person.quiet_until = self.now + self.settings.idle_timeout * rng.uniform(0.5, 2)
        elif chance < 0.35:
            Request(server, "create", person, person.client)
        elif chance < 0.42:
            Request(server, "create", person, "one" if person.client == "two" else "two")
        elif chance < 0.5:
            Request(server, "delete", person, person.client)
        elif chance < 0.53:
            for request in list(server.requests):
                if request.person is person:
                    request.hang_up()
        else:
            self.beat(person, server)

    def beat(self, person: Person, server: Server) -> None:
        """Have a person's beat heard."""
        calm = self.now > self.calm_at

        def beat() -> None:
            known = server.cluster.users.get(person.slug)
            try:
                said = server.cluster.beat(person.user_id, person.client)
            except ApiError as error:
                if calm:
                    raise Broken(f"the owner's beat is refused: {error}") from error
                return  # The lease was another client's, as far as that server has heard.
            self.say(person.slug, f"beats at {server.name}", said)
            if known and known.lease and said["status"] != "unknown":
                self.heard(person, server)
        server.do(beat)

    def heard(self, person: Person, server: Server) -> None:
        """Note a beat, unless it came too late."""
        limit = self.settings.idle_timeout
        if server.is_stale():
            return  # It does not know whether somebody ends the lease just now.
        if person.beats and self.now <= person.beats[-1][0] + limit:
            person.beats = [beat for beat in person.beats if self.now <= beat[0] + limit]
            person.beats.append((self.now, server))

    def meddle(self) -> None:
        """Do one of the things that go wrong in this story, and another later."""
        if self.ending:
            return
        rng = self.rng
        self.after(rng.expovariate(1 / 4), self.meddle)
        alive = [server for server in self.servers if not (server.dead or server.stopping)]
        faults = [fault for fault in self.may_be[4:] if fault in self.faults]
        if not faults or not alive:
            return
        fault, server, person = rng.choice(faults), rng.choice(alive), rng.choice(self.people)
        lease = self.api.objects.get(("Lease", f"user-{person.slug}"))
        name = lease["spec"]["holderIdentity"] if lease and rng.random() < 0.8 else ""
        pods = self.api.of("Pod")
        pod = self.api.objects.get(("Pod", name)) or (rng.choice(pods) if pods else None)
        container = self.pods[pod["metadata"]["uid"]] if pod else None
        if fault == "kill":
            self.say(server.name, "is killed")
            server.kill()
            self.after(rng.uniform(0.1, 10), functools.partial(self.restart, server))
        elif fault == "term":
            self.say(server.name, "is told to stop")
            server.stopping = True
            server.cluster.sweep.stopped = True
            server.stopped_at = self.now
            bound = playground.STOP_SECONDS + playground.LAST_BEATS_SECONDS
            self.after(bound, functools.partial(self.stopped, server, True))
            server.do(lambda: None)
        elif fault == "clock":
            step = rng.choice((-3600, -60, -1, 1, 60, 3600))
            self.say(server.name, f"wall clock steps by {step}")
            server.skew += step
        elif fault == "pause" and server.paused_until < self.now:
            self.say(server.name, "sleeps")
            server.paused_until = self.now + rng.choice((2, 10, 50))
            if server.paused_until > self.now + 5:
                self.at(server.paused_until, functools.partial(self.wake, server))
            server.troubled_at = server.paused_until
        elif fault == "cut":
            rng.choice(list(server.watches.values())).cut()
        elif fault == "deaf":  # A connection that died silently.
            watch = rng.choice(list(server.watches.values()))
            self.say(server.name, f"watch {watch.kind} is deaf")
            watch.deaf_until = self.now + playground.WATCH_SECONDS + playground.WATCH_GRACE_SECONDS
        elif fault == "quota":
            self.api.max_pods = rng.choice((len(pods), len(pods) + 1, 10 ** 6))
            self.say("hand", f"quota: {self.api.max_pods} Pods")
        elif fault == "policy":
            self.api.refuses_pods = rng.random() < 0.3
            self.say("hand", "webhook", "refuses" if self.api.refuses_pods else "allows")
        elif fault == "outage" and not self.down:
            self.down = True
            self.say("api server", "is down")
            for one in self.servers:
                for watch in one.watches.values():
                    watch.cut()
            self.after(rng.uniform(1, 40), self.recover)
        elif fault == "hand lease" and lease:
            self.api.delete("Lease", lease["metadata"]["name"], "hand")
        elif fault == "future" and lease:
            self.api.patch(lease["metadata"]["name"], playground.micro_time(1.7e9 + self.now + 3600), "hand")
        elif fault == "relabel" and lease and ours(lease):
            person.foreign_until = float("inf")
            self.api.put({**lease, "metadata": {**lease["metadata"], "labels": {}}}, "hand")
            self.after(rng.uniform(1, 20), functools.partial(self.label_again, person))
        elif fault == "hand secret" and name and ("Secret", name) in self.api.objects:
            secret = playground.bare(self.api.objects["Secret", name])
            self.api.delete("Secret", name, "hand")
            if container and container.name == name and container.password and rng.random() < 0.5:
                metadata = {key: secret["metadata"][key] for key in ("name", "labels", "annotations")}
                another = {"password": base64.b64encode(b"another one").decode()}
                self.api.create({**secret, "metadata": metadata, "data": another}, "hand")
        elif fault == "unlabel" and name and ("Secret", name) in self.api.objects:
            secret = playground.bare(self.api.objects["Secret", name])
            labels = {key: value for key, value in secret["metadata"]["labels"].items() if key != USER}
            self.api.put({**secret, "metadata": {**secret["metadata"], "labels": labels}}, "hand")
        elif fault == "hand pod" and pod:
            self.api.delete("Pod", pod["metadata"]["name"], "hand")
        elif fault == "evict" and container and container.password and not container.ends:
            self.say("hand", f"evicts {container.name}")
            self.spoil(container.id)
            container.stop("Failed")
        elif fault in ("move", "restart") and container and container.password and not container.ends:
            self.say("hand", f"{fault}s {container.name}")
            container.stop("Running")
        elif fault in self.VOLUME_FAULTS and rng.random() < 0.5:
            with contextlib.suppress(Refused):
                self.api.delete(self.VOLUME_FAULTS[fault], name, "hand")

    def recover(self) -> None:
        """Have the API server come back."""
        self.down = False
        self.say("api server", "is up")

    def restart(self, server: Server) -> None:
        """Start a server in the place of one that has ended."""
        self.servers[self.servers.index(server)] = self.new_server(server.name)

    def wake(self, server: Server) -> None:
        """Have a server find that it has slept, as playground.Server.keep_house does."""
        server.cluster.sweep.idle_since = server.clock()
        server.troubled_at = self.now

    def stopped(self, server: Server, late: bool = False) -> None:
        """Have a server end that was told to; it has written all beats, if it could."""
        if server.dead:
            return
        self.say(server.name, "has stopped", "late" if late else "")
        server.kill()
        for person in self.people if not late and server.troubled_at < server.stopped_at else ():
            beats = [moment for moment, one in person.beats
                     if one is server and moment > person.foreign_until]
            if beats and person.database and person.written_order < max(beats) and not self.down:
                raise Broken(f"the last beat of {person.slug} was not written")
        self.after(self.rng.uniform(0.1, 5), functools.partial(self.restart, server))

    def label_again(self, person: Person) -> None:
        """Put back what the hand took from a lease."""
        if lease := self.api.objects.get(("Lease", f"user-{person.slug}")):
            labels = {**OURS, "app.kubernetes.io/name": "sqlflow-playground", USER: person.slug}
            self.api.put({**lease, "metadata": {**lease["metadata"], "labels": labels}}, "hand")
        person.foreign_until = self.now

    # -- what must hold

    def claim_of(self, person: Person) -> str:
        """Return the uid of the claim that a person's data is on, or would be; empty if there is none."""
        claim = self.api.objects.get((CLAIM, f"mysql-user-{person.slug}"))
        return str(claim["metadata"]["uid"]) if claim else ""

    def is_in_use(self, claim: Item) -> bool:
        """Tell whether a Pod that is there has a claim's volume."""
        return any(one.claim == claim["metadata"]["uid"] and one.item() for one in self.pods.values())

    def spoil(self, id: str) -> None:
        """Note that a hand or an accident ends a database; one on a volume may be answered again."""
        if not self.volume:
            self.tainted.add(id)
        for person in self.people if self.volume else ():
            if person.database == id:
                person.database, person.beats = "", []

    def person_of(self, slug: str) -> Person:
        """Return who has a slug."""
        return next(person for person in self.people if person.slug == slug)

    def applied(self, kind: str, name: str, before: Item | None, item: Item | None, by: str) -> None:
        """Check a write that the API server has taken."""
        if self.telling:
            what = "deleted" if not item else "created" if not before else "replaced"
            more = "" if not item else item.get("status", {}) if kind == "Pod" else (
                playground.user_of(item) or "-") if kind == "Secret" else (
                item["spec"]["holderIdentity"], item["spec"]["renewTime"],
                *marks_of(item)) if kind == "Lease" else ""
            self.say(by, f"{kind} {name} {what} @{self.api.version}", more)
        id = name.partition("-")[2]
        if kind == "Lease":
            self.lease_written(self.person_of(id), before, item, by)
            return
        if self.volume:
            self.volume_written(kind, self.person_of(id.partition("-")[2]), before, item, by)
        if by == "hand":
            self.spoil(id)
            self.passwords.pop(id, None)
        if kind == "Secret" and item and by != "hand":
            user, was = playground.user_of(item), playground.user_of(before)
            if was not in ("", user):
                raise Broken(f"{name} was {was}'s and is {user or 'nobody'}'s")
            if id in self.owners and user != self.owners[id]:
                raise Broken(f"{name} was given to {self.owners[id]}, and is {user or 'nobody'}'s now")
            if user and user != NOBODY:
                self.owners[id] = user
            if self.passwords.setdefault(id, item["data"]["password"]) != item["data"]["password"]:
                raise Broken(f"{name} has another password than it was made with")
        ended, ends = ("deletionTimestamp" in one.get("metadata", ()) for one in (before or {}, item or {}))
        if (not item or ends and not ended) and by != "kubelet" and not (
                before and before["metadata"]["uid"] in self.swept):
            for person in self.people:
                if person.database == id:
                    self.lost(person, by)

    def volume_written(self, kind: str, person: Person, before: Item | None, item: Item | None,
                       by: str) -> None:
        """Check a write to a part of a database that is on a volume."""
        id = f"user-{person.slug}"
        claim, secret = (self.api.objects.get((one, f"mysql-{id}")) for one in (CLAIM, "Secret"))
        uid, ends = claim["metadata"]["uid"] if claim else "", claim is not None and is_ending(claim)
        has_data = uid in self.volumes and not ends
        if kind == CLAIM and item and not before:
            self.tainted.discard(id)
            if person.deleting:
                self.condemned.add(uid)
                self.tainted.add(id)
        elif kind == CLAIM and before and by not in ("hand", "kubelet") and (
                before["metadata"]["uid"] in self.volumes.keys() - self.condemned):
            raise Broken(f"the data of {person.slug} is deleted by {by}")
        if kind == "Secret" and not item:
            self.passwords.pop(id, None)
        if kind == "Secret" and by != "hand" and has_data and not person.spoilt:
            if not item and uid not in self.condemned:
                raise Broken(f"the password of {person.slug}'s data is deleted by {by}")
            if item and password_in(item) != self.volumes[uid]:
                raise Broken(f"{person.slug}'s data has another password than the Secret")
        if kind in ("Secret", CLAIM) and (not item or ends):
            person.spoilt = by == "hand" or person.spoilt and bool(claim or secret)

    def lease_written(self, person: Person, before: Item | None, item: Item | None, by: str) -> None:
        """Check a write to a user's lease."""
        if before and (not item or item["spec"]["holderIdentity"] != before["spec"]["holderIdentity"]):
            if by == "hand":
                self.spoil(person.database)
                person.spoilt |= ENDS in marks_of(before)
            if before["spec"]["holderIdentity"] == f"mysql-{person.database}":
                self.lost(person, by)
        if item and marks_of(item):
            if before and not marks_of(before) and person.database:
                self.lost(person, by)
            self.swept.update(part["metadata"]["uid"] for kind in ("Pod", "Service")
                              if (part := self.api.objects.get((kind, item["spec"]["holderIdentity"]))))
        if item and before and by != "hand" and client_of(item) != client_of(before):
            raise Broken(f"{person.slug}'s lease was {client_of(before)}'s and is {client_of(item)}'s")
        if item and (not before or item["spec"]["renewTime"] != before["spec"]["renewTime"]):
            person.renewed_at = self.now
            person.written_order = max(person.written_order, self.ordered(by))
        if item and not before:
            person.client = client_of(item)

    def ordered(self, by: str) -> float:
        """Return when a server's kubectl was ordered."""
        return next((job.ordered for server in self.servers for job in server.jobs
                     if job.process and job.process.by == by), self.now)

    def lost(self, person: Person, by: str) -> None:
        """Check that a person may lose their database."""
        id, person.database = person.database, ""
        beats, person.beats = person.beats, []
        if id in self.tainted:
            return
        limit = self.settings.idle_timeout
        if not limit or self.now <= person.renewed_at + limit:
            ago = self.now - person.renewed_at
            raise Broken(f"{person.slug} loses {id} to {by}, renewed {ago:.1f} s ago")
        for moment, server in beats:
            if self.now <= moment + limit and not server.is_troubled_since(moment):
                ago = self.now - moment
                raise Broken(f"{person.slug} loses {id} to {by}, heard by {server.name} {ago:.1f} s ago")

    def condemn(self, person: Person, request: Request) -> None:
        """Note that an owner wants what there is to be deleted."""
        person.deleting[request] = None
        self.tainted.add(person.database)
        self.condemned.add(request.claim)
        self.tainted.update(id for id, slug in self.owners.items() if slug == person.slug)

    def answered(self, request: Request, answer: Item) -> None:
        """Check a data source."""
        person, client = request.person, request.client
        match = re.match(r"mysql://root:(.*)@tcp\((.*):3306\)/", answer["data_source"])
        if not match or match[2] not in self.addresses:
            raise Broken(f"no database has the address of {answer}")
        container = self.addresses[match[2]]
        if self.volume and match[1] != self.password_behind(match[2], match[1]):
            raise Broken(f"{person.slug}'s data has another password than {answer}")
        if not container or container.password != match[1] and not self.is_served(match[2]):
            return  # The Service was made a moment ago; or has gone, and leads nobody to other data.
        id, data = container.id, container.claim or container.id
        if container.password != match[1]:
            raise Broken(f"{id} did not start with the password of {answer}")
        if self.owners.get(id) != person.slug:
            raise Broken(f"{id} is answered to {person.slug}, and is {self.owners.get(id, 'nobody')}'s")
        if self.given.setdefault(data, (person.slug, client)) != (person.slug, client):
            raise Broken(f"{id} is answered to {person.slug} of {client}, and was to {self.given[data]}")
        if data in request.server.ended and not request.server.is_stale():
            raise Broken(f"{id} is answered by {request.server.name}, which said that it was deleted")
        person.served_at = self.now
        if person.deleting:
            self.tainted.add(id)
        lease = self.api.objects.get(("Lease", f"user-{person.slug}"))
        held = lease and lease["spec"]["holderIdentity"] == f"mysql-{id}"
        if held and id not in self.tainted and container.item():
            until = person.beats[-1][0] + self.settings.idle_timeout if person.beats else 0.0
            if person.database != id or self.now > until:
                person.beats = [] if request.server.is_stale() else [(self.now, request.server)]
            person.database = id
            self.heard(person, request.server)

    def is_served(self, address: str) -> bool:
        """Tell whether anything may be reached at an address: a Service's ends with it."""
        return not self.volume or any(one["spec"]["clusterIP"] == address for one in self.api.of("Service"))

    def password_behind(self, address: str, default: str) -> str:
        """Return the password of the data behind a Service, or that it will have."""
        for service in self.api.of("Service"):
            name = service["metadata"]["name"]
            claim, secret = (self.api.objects.get((kind, name)) for kind in (CLAIM, "Secret"))
            if service["spec"]["clusterIP"] == address and claim and not is_ending(claim):
                return self.volumes.get(claim["metadata"]["uid"], password_in(secret) if secret else default)
        return default

    def deleted(self, request: Request, answer: bool) -> None:
        """Note what a server said to be gone."""
        if request.client == request.person.client:
            slug = request.person.slug
            claim = self.api.objects.get((CLAIM, f"mysql-user-{slug}"))
            if claim and request.claim == claim["metadata"]["uid"] and not (
                    is_ending(claim) or request.person.spoilt or request.has_slept()):
                raise Broken(f"the data of {slug} is said to be deleted")
            request.server.ended |= set() if request.has_slept() else {request.claim}
            if ("Lease", f"user-{slug}") not in self.api.objects:
                request.server.ended |= {id for id in self.tainted if self.owners.get(id) == slug}

    # -- the end

    def calm(self) -> None:
        """End the faults; everybody is served, and nothing is left that is nobody's."""
        self.ending, self.down = True, False
        self.say("calm", "the faults end")
        beating = True

        def beat() -> None:
            if beating:
                for person in self.people:
                    if self.now > person.served_at > calm:
                        self.beat(person, self.rng.choice(self.servers))
                self.after(5, beat)
        self.api.max_pods, self.api.refuses_pods = 10 ** 6, False
        for server in self.servers:
            if server.cluster.template is not templates(self.volume)[0] and not server.dead:
                server.kill()
                self.restart(server)
        for person in self.people:
            if person.foreign_until > self.now:
                self.label_again(person)
        for container in self.pods.values():
            container.never = False
        self.run_until(self.now + LATE_SECONDS + 2 * playground.KUBECTL_SECONDS + 10)
        served = []
        for person in self.people:
            record = (self.api.objects.get(("Lease", f"user-{person.slug}"))
                      or self.api.objects.get(("Secret", f"mysql-user-{person.slug}")))
            served.append((person, client_of(record) if record else person.client))
        calm, until = self.now, self.now + CALM_SECONDS
        self.calm_at = calm
        beat()
        for person, client in served:
            self.insist("create", person, client)
        self.wait_for(lambda: self.unserved(calm), calm + 150)
        self.wait_for(self.what_is_wrong, until)
        for person, client in served:
            other = "one" if client == "two" else "two"
            request = Request(self.rng.choice(self.servers), "create", person, other)
            if not isinstance(request.outcome, ApiError) or request.outcome.status != 403:
                raise Broken(f"{person.slug}'s database is not refused to {other}: {request.outcome}")
        beating = False
        if self.volume and self.settings.idle_timeout:
            self.come_back(served, until)
        if self.volume or not self.settings.idle_timeout:
            for person, client in served:
                self.insist("delete", person, client)
        self.people_are_gone = True
        self.wait_for(self.what_is_wrong, until)

    def come_back(self, served: list[tuple[Person, str]], until: float) -> None:
        """Have all be swept, and find their data again."""
        self.are_kept, claims = True, list(map(self.claim_of, self.people))
        self.wait_for(self.what_is_wrong, until)
        self.are_kept, back = False, self.now
        for person, client in served:
            self.insist("create", person, client)
        self.wait_for(lambda: self.unserved(back), back + 60)
        if claims != list(map(self.claim_of, self.people)):
            raise Broken("who comes back has other data")

    def unserved(self, since: float) -> str:
        """Return who has got no database; empty if all have."""
        slugs = ", ".join(person.slug for person in self.people if person.served_at < since)
        return slugs and f"no database for {slugs}"

    def insist(self, what: str, person: Person, client: str, request: Request | None = None) -> None:
        """Ask until it is answered; give up first what a hand has spoilt, if create_db says so."""
        last, outcome = (request.what, request.outcome) if request else ("", None)
        if not request or last != what or isinstance(outcome, Exception):
            gives_up = self.volume and last == what == "create" and "delete_db" in str(outcome)
            request = Request(self.rng.choice(self.servers), "delete" if gives_up else what, person, client)
            self.after(19, lambda: self.insist(what, person, client, request))

    def wait_for(self, wrong: Callable[[], str], until: float) -> None:
        """Wait until nothing is wrong. Raises Broken."""
        while why := wrong():
            if self.now > until:
                raise Broken(why)
            self.run_until(self.now + 5)

    def what_is_wrong(self) -> str:
        """Return what is not yet as it should be; empty if all is."""
        there = {kind: {item["metadata"]["name"]: item for item in self.api.of(kind)} for kind in KINDS}
        leases, secrets, pods = there["Lease"], there["Secret"], there["Pod"]
        named = {item["spec"]["holderIdentity"]: name for name, item in leases.items()}
        if len(leases) != (0 if self.people_are_gone else len(self.people)):
            return f"leases: {list(leases)}"
        spares = 0
        for name, secret in secrets.items():
            user = playground.user_of(secret)
            if name not in pods and not self.are_kept:
                return f"{name} has no Pod"
            if user and named.get(name) != f"user-{user}":
                return f"{name} is {user}'s, whose lease does not name it"
            spares += not user
        for name, pod in pods.items():
            if name not in secrets:
                return f"{name} has no Secret"
            if '"Ready", "status": "True"' not in json.dumps(pod.get("status")):
                return f"{name} is not ready"
        for kind in ("Pod", "Service", CLAIM) if self.volume else ():
            wanted = {} if self.are_kept and kind != CLAIM else secrets
            if wanted.keys() != there[kind].keys():
                return f"{kind}: {list(there[kind])}"
        if ends := [name for items in there.values() for name, item in items.items() if is_ending(item)]:
            return f"{ends[0]} is being deleted"
        if spares != self.settings.spare_databases:
            return f"spares: {spares}"
        for server in self.servers:
            if wrong := self.wrong_at(server, there):
                return f"{server.name}: {wrong}"
        return ""

    def wrong_at(self, server: Server, there: dict[str, dict[str, Item]]) -> str:
        """Return what is wrong in a server's memory."""
        cluster, leases, secrets = server.cluster, there["Lease"], there["Secret"]
        if cluster.waiting:
            return f"waiting: {cluster.waiting}"
        known = {f"user-{user.slug}": f"mysql-{user.lease.holder}"
                 for user in cluster.users.values() if user.lease}
        if known != {name: item["spec"]["holderIdentity"] for name, item in leases.items()}:
            return f"leases: {known}"
        for kind in cluster.kinds[1:]:
            items = there[kind]
            seen = {f"mysql-{id}": one.objects[kind].version
                    for id, one in cluster.databases.items() if kind in one.objects}
            if seen != {name: int(item["metadata"]["resourceVersion"]) for name, item in items.items()}:
                return f"{kind}: {seen}"
        for slug, user in cluster.users.items():
            if not user.lease or user.order or user.failure:
                return f"the entry of {slug}: {vars(user)}"
        if set(cluster.databases) != {name[len("mysql-"):] for name in secrets}:
            return f"databases: {set(cluster.databases)}"
        if any(one.promised or one.going for one in cluster.databases.values()):
            return "a database is promised or going"
        clients = {client: set(users) for client, users in cluster.by_client.items() if users}
        if sorted(itertools.chain(*clients.values())) != sorted(cluster.users):
            return f"by client: {clients}"
        for client in clients:
            for entry in cluster.databases_of(client, True) or ():
                person = next(person for person in self.people if person.user_id == entry["user_id"])
                if client_of(leases[f"user-{person.slug}"]) != client:
                    return f"{client} is shown {entry}"
        kept = len(leases) * self.are_kept
        if cluster.count() != {"ready": float(len(leases) - kept), "starting": 0.0, "kept": float(kept),
                               "spare": float(len(secrets) - len(leases))}:
            return f"counts: {cluster.count()}"
        return ""


def without_empty(item: Item) -> Item:
    """Return an object without what is empty in its metadata."""
    return {**item, "metadata": {name: value for name, value in item["metadata"].items() if value}}


def marks_of(lease: Item) -> list[str]:
    """Return the annotations that say that a lease's database has ended, be it all or but for its volume."""
    return [mark for mark in (KEPT, ENDS) if mark in lease["metadata"]["annotations"]]


def client_of(lease: Item) -> str:
    """Return whose a lease is, or the Secret of a volume."""
    return str(lease["metadata"]["annotations"][CLIENT])


@functools.lru_cache(2)
def templates(volume: bool = False) -> list[playground.Template]:
    """Return two templates that differ."""
    found = []
    for number in range(2):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write((VOLUME_TEMPLATE if volume else TEMPLATE) % number)
            file.flush()
            found.append(playground.Template(file.name))
    return found


def find(seed: int, volume: bool = False) -> str:
    """Return what breaks in a story; empty if all holds."""
    try:
        Story(seed, volume=volume).tell()
    except Broken as broken:
        cause = broken.__cause__
        trace = traceback.format_exception(type(cause), cause, cause.__traceback__) if cause else []
        return "\n".join([str(broken), *trace])
    return ""


def main() -> int:
    """Live stories, as the command line says."""
    parser = argparse.ArgumentParser(prog="simulate", description="Live stories of several servers.")
    parser.add_argument("--seed", type=int, help="tell this story")
    parser.add_argument("--seeds", type=int, nargs=2, help="live these, and tell the first that fails")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="live new stories for so long")
    parser.add_argument("--volume", action="store_true", help="with databases on volumes")
    parser.add_argument("--mutant", help="of tests.test_simulation, in the place of what it is a kind of")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        parser.error("it needs PYTHONHASHSEED=0 in its environment: scripts/simulate sets it")
    logging.disable(logging.CRITICAL)
    gc.set_threshold(100_000, 50, 50)  # Little of a story is garbage before its end: a seventh of the time.
    if hasattr(os, "sched_setaffinity"):  # Threads of one processor hand over in a quarter of the time.
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[os.getpid() % len(processors)]})
    if options.mutant:
        from tests.test_simulation import MUTANTS
        mutant = MUTANTS[options.mutant][0]
        setattr(playground, mutant.__mro__[1].__name__, mutant)
    one, first = options.seed, random.SystemRandom().getrandbits(40)
    seeds: Iterable[int] = [one] if one is not None else range(*options.seeds) if options.seeds else (
        itertools.count(first))
    began, count = time.monotonic(), 0
    for seed in seeds:
        if time.monotonic() > began + options.seconds:
            break
        broken, count = find(seed, options.volume), count + 1
        if broken or one is not None:
            story = Story(seed, telling=True, volume=options.volume)
            with contextlib.suppress(Broken):
                story.tell()
            print(*story.lines, f"seed {seed}: {broken or 'all holds'}", sep="\n")
        if broken:
            return 1
    print(f"{count} stories hold, {count / (time.monotonic() - began):.0f} a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
