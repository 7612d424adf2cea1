"""Tests of the cluster's table: events and requests go in, answers and orders come out; without a cluster."""

from __future__ import annotations

import base64
import collections
import contextlib
import copy
import functools
import heapq
import itertools
import json
import logging
import os
import re
import sys
import tempfile
import time
import unittest
from typing import Any, Callable

import playground
from playground import key_of

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IDLE_SECONDS = 600.0


class Loop:
    """In the loop's place: what is started waits until a test has it done, and time passes when told to."""

    def url(self) -> str:
        return "https://here"

    def __init__(self) -> None:
        self.now, self.order = 1000.0, itertools.count()
        self.timers: list[tuple[float, int, Callable[[], object]]] = []
        self.started: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []

    def start(self, work: Callable[[], Any], then: Callable[[Any], object]) -> None:
        self.started.append((work, then))

    def call_at(self, moment: float, step: Callable[..., object], *arguments: Any) -> None:
        due: Callable[[], object] = functools.partial(step, *arguments)
        heapq.heappush(self.timers, (moment, next(self.order), due))

    def post(self, step: Callable[..., object], *arguments: Any) -> None:
        self.call_at(self.now, step, *arguments)

    def attempt(self, step: Callable[[], object]) -> None:
        with contextlib.suppress(ZeroDivisionError):  # A test's own.
            step()

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.timers and self.timers[0][0] <= until:
            self.now, _, step = heapq.heappop(self.timers)
            step()
        self.now = until


class Kubectl:
    """Says yes to everything, and remembers what it was asked; a version is the number of a write."""

    namespace = "classroom"

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[dict[str, Any]]]] = []
        self.there: dict[tuple[str, str], dict[str, Any]] = {}
        self.versions = itertools.count(1)
        self.failures: dict[str, playground.KubectlError] = {}  # By what a reason starts with.

    def __call__(self, *arguments: str, reason: str, stdin: bytes = b"", **_: Any) -> bytes:
        for start, failure in self.failures.items():
            if reason.startswith(start):
                self.asked.append((f"refused {arguments[0]}", []))
                raise failure
        if "--dry-run=server" in arguments:
            return b""
        items = json.loads(stdin).get("items", []) if stdin else []
        if "--raw" in arguments:
            plural, name = arguments[2].split("/")[-2:]
            kinds = {names[0]: kind for kind, names in playground.KINDS.items()}
            self.there.pop((kinds[plural], name), None)
        self.asked.append((arguments[0], items))
        if arguments[0] == "get":
            keys = [key_of(item) for item in items]
            return playground.listed([self.there[key] for key in keys if key in self.there])
        for item in items:
            if arguments[0] == "patch":
                before, patch = self.there[key_of(item)], json.loads(arguments[arguments.index("-p") + 1])
                item = {**before, "spec": {**before["spec"], **patch["spec"]}}
            version = str(next(self.versions))
            metadata = {**item["metadata"], "uid": item["metadata"].get("uid", f"uid-{version}")}
            password = item.get("stringData", {}).get("password", "")
            data = {"data": {"password": base64.b64encode(password.encode()).decode()}} if password else {}
            self.there[key_of(item)] = {**item, **data, "metadata": {**metadata, "resourceVersion": version}}
        return playground.listed([self.there[key_of(item)] for item in items])


READY = {"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]}


class Case(unittest.TestCase):
    template = "mysql.yaml"

    def setUp(self) -> None:
        self.loop, self.kubectl = Loop(), Kubectl()
        template = playground.Template(os.path.join(ROOT, "k8s_templates", self.template))
        settings = playground.Settings(max_databases=3, max_databases_per_client=2, idle_timeout=IDLE_SECONDS,
                                       sweep_interval=10, spare_databases=0)
        self.cluster = playground.Cluster(self.kubectl, template, settings)  # type: ignore[arg-type]
        self.cluster.loop, self.cluster.sweep.idle_since = self.loop, self.loop.now
        self.cluster.clock, self.cluster.wall = lambda: self.loop.now, lambda: 1e9 + self.loop.now

    def known(self) -> None:
        """Have the cluster listed, empty, and the template found good."""
        for kind in self.cluster.kinds:
            self.cluster.health.report(kind, "")
        self.work()

    def work(self) -> None:
        """Let everything that was ordered be done."""
        self.loop.pass_time(1)
        while self.loop.started:
            work, then = self.loop.started.pop(0)
            try:
                result = work()
            except playground.KubectlError as error:
                result = error
            then(result)
            self.cluster.settle()

    def refusals(self, verb: str) -> int:
        """Return how often kubectl was refused a verb."""
        return [done for done, _ in self.kubectl.asked].count(f"refused {verb}")

    def create(self, user_id: str, client: str = "alice", late: bool = False) -> Any:
        return self.cluster.create(user_id, client, self.loop.now, late)

    def watch(self, kind: str, name: str, **changes: Any) -> None:
        """Let a watch tell of an object, as kubectl has written it but for the changes."""
        item, version = self.kubectl.there[kind, name], next(self.kubectl.versions)
        item = {**item, **changes, "metadata": {**item["metadata"], "resourceVersion": str(version)}}
        self.kubectl.there[kind, name] = item
        self.cluster.take_event(kind, name, playground.seen_of(item), version)
        self.cluster.settle()

    def get_ready(self, user_id: str) -> str:
        """Let the Pod of a user's database get ready; return its name."""
        lease = self.cluster.users[user_id].lease
        assert lease
        name = f"mysql-{lease.holder}"
        self.watch("Pod", name, status=READY)
        return name

    def given(self, user_id: str) -> str:
        """Give a user a database; return its Pod's name."""
        ask = functools.partial(self.cluster.create, user_id, "alice", self.loop.now, False)
        self.cluster.wait(user_id, self, ask)
        self.assertIsNone(ask())
        self.work()
        self.work()
        name = self.get_ready(user_id)
        self.loop.pass_time(playground.SERVICE_SECONDS)
        self.cluster.wait(user_id, self, None)
        self.assertEqual(self.create(user_id)["user_id"], user_id)
        return name


class Table(Case):
    def test_nothing_is_answered_before_every_kind_is_known_and_beats_are_held_till_then(self) -> None:
        self.assertIsNone(self.create("ann"))
        self.assertEqual(self.cluster.beat("ann", "alice"), {"status": "unknown"})
        with self.assertRaises(playground.KubectlError):
            self.create("ann", late=True)
        self.cluster.health.report("Pod", "unreachable")
        with self.assertRaises(playground.KubectlError):
            self.create("ann")

    def test_who_waits_is_asked_again_when_the_users_entry_changes_and_nobody_else(self) -> None:
        self.known()
        asked: collections.Counter[str] = collections.Counter()
        for user in ("ann", "ben"):
            self.create(user)
            self.cluster.wait(user, user, lambda user=user: asked.update([user]))  # type: ignore[misc]
        self.work()
        asked.clear()
        self.get_ready("ann")
        self.assertEqual(asked, {"ann": 1})

    def test_lease_comes_before_the_secret_and_the_secret_before_the_pod(self) -> None:
        self.known()
        self.create("ann")
        self.work()
        verb, items = self.kubectl.asked[-1]
        self.assertEqual((verb, [item["kind"] for item in items]), ("create", ["Lease", "Secret", "Pod"]))
        self.assertEqual(items[1]["metadata"]["labels"][playground.USER], "ann")

    def test_another_client_gets_403_of_every_kind_of_request(self) -> None:
        self.known()
        self.given("ann")
        for ask in (lambda: self.create("ann", "bob"), lambda: self.cluster.beat("ann", "bob"),
                    lambda: self.cluster.delete("ann", "bob", self.loop.now, False)):
            with self.assertRaises(playground.ApiError) as refused:
                ask()
            self.assertEqual(refused.exception.status, 403)
        self.assertEqual(self.cluster.databases_of("bob", False), [])

    def test_limits_count_those_who_are_being_given_a_database(self) -> None:
        self.known()
        self.create("ann")
        self.create("ben")
        with self.assertRaises(playground.ApiError) as refused:
            self.create("cid")
        self.assertEqual(refused.exception.status, 429)
        self.create("cid", "bob")
        with self.assertRaises(playground.ApiError):
            self.create("dan", "carol")

    def test_two_servers_exceed_the_limit_by_what_they_have_in_flight_and_no_more(self) -> None:
        self.cluster.settings = self.cluster.settings._replace(max_databases_per_client=0)
        first, settings = self.cluster, self.cluster.settings
        second = playground.Cluster(first.kubectl, first.template, settings)
        second.loop, second.clock, second.wall = self.loop, first.clock, first.wall
        for self.cluster in first, second:
            self.known()
            for number in range(3):
                self.create(f"{'ab'[self.cluster is second]}{number}")
            with self.assertRaises(playground.ApiError):
                self.create("more")
        self.work()
        self.assertEqual(len([kind for kind, _ in self.kubectl.there if kind == "Lease"]), 6)
        for self.cluster in first, second:
            for kind, name in list(self.kubectl.there):
                self.watch(kind, name)
            self.cluster.delete("a0", "alice", self.loop.now, False)
            self.work()
            with self.assertRaises(playground.ApiError) as refused:  # One less is still too many.
                self.create("more")
            self.assertEqual(refused.exception.status, 429)

    def test_late_event_does_not_bring_back_what_was_written_since(self) -> None:
        self.known()
        name = self.given("ann")
        item = self.kubectl.there["Secret", name]
        self.cluster.take_event("Secret", name, playground.seen_of({**item, "metadata": {
            **item["metadata"], "labels": {}, "resourceVersion": "1"}}), 1)
        self.assertEqual(self.cluster.standing(self.cluster.users["ann"]), "ready")

    def test_lost_database_is_replaced_with_a_note_once_and_its_lease_is_pointed_at_the_next(self) -> None:
        self.known()
        name = self.given("ann")
        self.watch("Pod", name, status={"phase": "Failed"})
        self.assertEqual(self.cluster.beat("ann", "alice"), {"status": "absent"})
        self.loop.pass_time(1)
        started = self.loop.now
        self.assertIsNone(self.cluster.create("ann", "alice", started, False))
        self.work()  # Read afresh.
        self.assertIsNone(self.cluster.create("ann", "alice", started, False))
        self.work()
        self.assertNotEqual(self.get_ready("ann"), name)
        self.assertEqual(self.create("ann")["note"], playground.LOST)
        self.assertNotIn("note", self.create("ann"))

    def test_used_database_whose_label_was_taken_away_is_no_spare_and_goes_with_its_lease(self) -> None:
        for ends in ("delete", "sweep"):
            with self.subTest(ends):
                self.setUp()
                self.known()
                name = self.given("ann")
                del self.kubectl.there["Secret", name]["metadata"]["labels"][playground.USER]
                self.watch("Secret", name)
                if ends == "delete":
                    self.cluster.delete("ann", "alice", self.loop.now, False)
                else:  # On another server, which this one hears of.
                    del self.kubectl.there["Lease", "user-ann"]
                    self.cluster.take_event("Lease", "user-ann", None, next(self.kubectl.versions))
                    self.loop.pass_time(playground.HALF_A_SPARE_SECONDS + 1)
                    self.cluster.sweep.begin_round()
                self.assertIsNone(self.cluster.spares.pick())
                for _ in range(4):
                    self.work()
                self.assertEqual(self.kubectl.asked[-1], ("delete", []))
                self.assertIsNone(self.cluster.spares.pick())

    def test_label_that_was_taken_away_comes_back_while_the_lease_names_the_database(self) -> None:
        self.known()
        name = self.given("ann")
        del self.kubectl.there["Secret", name]["metadata"]["labels"][playground.USER]
        self.watch("Secret", name)
        self.cluster.sweep.begin_round()  # Nobody asks for it.
        self.loop.pass_time(11)
        for _ in range(3):
            self.work()
        self.assertEqual(self.kubectl.there["Secret", name]["metadata"]["labels"][playground.USER], "ann")
        self.assertIn("data_source", self.create("ann"))

    def spare(self) -> str:
        """Have a spare made that gets ready; return its name."""
        self.cluster.settings = self.cluster.settings._replace(spare_databases=1)
        self.cluster.spares.tend()
        for _ in range(4):
            self.work()
        (spare,) = self.cluster.spares.free.values()
        self.watch("Pod", f"mysql-{spare.id}", status=READY)
        self.cluster.settings = self.cluster.settings._replace(spare_databases=0)
        return f"mysql-{spare.id}"

    def test_spare_that_went_to_somebody_else_is_no_loss_and_the_next_comes_at_once(self) -> None:
        self.known()
        name = self.spare()
        ask = functools.partial(self.cluster.create, "ann", "alice", self.loop.now, False)
        self.cluster.wait("ann", self, ask)
        self.kubectl.failures["replace 1 objects for ann"] = playground.KubectlError("conflict")
        self.assertIsNone(ask())
        self.work()
        self.kubectl.failures.clear()
        for kind in ("Secret", "Pod"):  # Another server had too many.
            del self.kubectl.there[kind, name]
            self.cluster.take_event(kind, name, None, next(self.kubectl.versions))
        for _ in range(4):
            self.work()
        self.assertNotEqual(self.get_ready("ann"), name)
        self.assertNotIn("note", self.create("ann"))

    def test_loss_is_told_by_whichever_server_is_asked_until_one_has_told_it(self) -> None:
        self.known()
        name = self.given("ann")
        self.kubectl.there["Lease", "user-ann"]["metadata"].update(finalizers=["a/b"])
        self.kubectl.there["Lease", "user-ann"]["metadata"]["annotations"]["whose"] = "the maintainer's"
        self.watch("Lease", "user-ann")
        self.watch("Pod", name, status={"phase": "Failed"})
        self.loop.pass_time(1)
        create = functools.partial(self.cluster.create, "ann", "alice", self.loop.now, False)
        ask = functools.partial(playground.outcome_of, create)
        self.cluster.wait("ann", self, ask)
        self.kubectl.failures["create "] = playground.KubectlError("quota", "exceeded quota")
        ask()
        for _ in range(3):
            self.work()
        self.kubectl.failures.clear()
        self.loop.pass_time(61)
        self.cluster.settle()
        ask()
        for _ in range(3):
            self.work()
        self.get_ready("ann")
        metadata = self.kubectl.there["Lease", "user-ann"]["metadata"]
        self.assertIn(playground.REPLACES, metadata["annotations"])
        self.assertEqual((metadata["finalizers"], metadata["annotations"]["whose"]),
                         (["a/b"], "the maintainer's"))
        there = self.kubectl.there
        self.setUp()  # Another server.
        self.kubectl.there, self.kubectl.versions = there, itertools.count(1000)
        for kind, name in list(there):
            self.watch(kind, name)
        self.known()
        self.assertIsNone(self.create("ann"))  # It is written down first that she is back.
        self.work()
        self.assertEqual(self.create("ann")["note"], playground.LOST)
        self.cluster.sweep.begin_round()
        for _ in range(4):
            self.work()
        self.assertNotIn(playground.REPLACES, there["Lease", "user-ann"]["metadata"]["annotations"])
        self.assertNotIn("note", self.create("ann"))

    def test_ready_database_is_answered_whatever_becomes_of_writing_down_what_was_answered(self) -> None:
        self.known()
        self.given("ann")
        self.kubectl.failures["replace "] = playground.KubectlError("policy", "denied")
        self.cluster.sweep.begin_round()
        self.loop.pass_time(1)
        self.assertTrue(self.cluster.users["ann"].order)
        self.assertIn("data_source", self.create("ann"))
        self.work()
        self.assertEqual(self.refusals("replace"), 1)
        self.assertIn("data_source", self.create("ann"))

    def test_end_of_a_lease_that_took_too_long_does_not_end_whose_the_spare_became(self) -> None:
        self.known()
        name = self.spare()
        lease = playground.lease_of("ann", "ann", "alice", name[len("mysql-"):], "", "2026-01-01T00:00:00Z")
        self.kubectl("create", reason="", stdin=playground.listed([lease]))  # A server was killed then.
        self.watch("Lease", "user-ann")
        delete = functools.partial(self.cluster.delete, "ann", "alice", self.loop.now, False)
        self.cluster.wait("ann", self, lambda: playground.outcome_of(delete))  # type: ignore[arg-type]
        delete()
        self.kubectl.failures["end Lease"] = playground.KubectlError("timeout")  # It did the work.
        for _ in range(3):
            self.work()
        self.kubectl.failures.clear()
        del self.kubectl.there["Lease", "user-ann"]
        self.cluster.take_event("Lease", "user-ann", None, next(self.kubectl.versions))
        self.create("ben", "bob")
        self.work()
        self.assertIn("data_source", self.create("ben", "bob"))
        delete = functools.partial(self.cluster.delete, "ann", "alice", self.loop.now, False)
        delete()
        for _ in range(3):
            self.work()
        self.assertTrue(delete())
        self.assertIn("data_source", self.create("ben", "bob"))

    def test_end_that_is_refused_halfway_is_no_end_and_the_next_request_goes_on(self) -> None:
        self.known()
        self.given("ann")
        told: list[playground.Outcome | None] = []

        def ask() -> None:
            told.append(playground.outcome_of(
                lambda: {} if self.cluster.delete("ann", "alice", started, False) else None))
        self.kubectl.failures["end 1 databases"] = playground.KubectlError("policy", "denied")
        for refused in (True, True, False):
            self.loop.pass_time(5)
            started = self.loop.now
            told.clear()
            if not refused:
                self.kubectl.failures.clear()
            self.cluster.wait("ann", self, ask)
            ask()
            for _ in range(4):
                self.work()
            self.cluster.wait("ann", self, None)
            outcomes = [one.status for one in told if one]
            self.assertEqual(outcomes[0] if outcomes else 0, 502 if refused else 200)

    def test_secret_with_another_password_than_its_pods_is_no_record_also_for_a_server_that_starts(
        self) -> None:
        self.known()
        name = self.given("ann")
        self.kubectl.there["Secret", name]["metadata"]["uid"] = "another"
        self.watch("Secret", name, data={"password": base64.b64encode(b"x" * 32).decode()})
        old, started = self.cluster.users["ann"].lease, self.loop.now
        self.assertEqual(self.cluster.beat("ann", "alice"), {"status": "starting"})
        self.assertIsNone(self.cluster.create("ann", "alice", started, False))
        self.work()  # Read afresh.
        self.assertIsNone(self.cluster.create("ann", "alice", started, False))
        self.work()
        self.assertNotEqual(self.get_ready("ann"), f"mysql-{old.holder if old else ''}")
        self.assertEqual(self.create("ann")["note"], playground.LOST)

    def test_refusal_for_quota_leaves_nothing_and_stands_for_a_minute(self) -> None:
        self.known()
        self.create("ann")
        words = "Error from server (Forbidden): exceeded quota\n"
        self.kubectl.failures["create "] = playground.KubectlError("quota", words * 3)
        self.work()
        for _ in range(2):
            with self.assertRaises(playground.KubectlError) as refused:
                self.create("ann")
            self.assertEqual(refused.exception.reason, "quota")
        self.loop.pass_time(61)
        self.cluster.settle()
        self.assertIsNone(self.create("ann"))

    def test_entries_of_users_of_whom_nothing_came_go(self) -> None:
        self.known()
        self.cluster.delete("ann", "alice", self.loop.now, False)
        self.work()
        self.assertEqual(self.cluster.users, {})

    def test_beat_says_why_a_database_is_not_ready_if_something_is_wrong_with_it(self) -> None:
        self.known()
        self.create("ann")
        self.work()
        self.assertEqual(self.cluster.beat("ann", "alice"), {"status": "starting"})
        self.watch("Pod", self.get_ready("ann"), status={
            "conditions": [{"type": "Ready", "status": "False",
                            "lastTransitionTime": "2026-01-01T00:01:00Z"}],
            "containerStatuses": [{"started": True, "ready": False,
                                   "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]})
        beat = self.cluster.beat("ann", "alice")
        self.assertEqual(beat["status"], "starting")
        self.assertIn("does not take the password", beat["reason"])

    def test_end_of_what_is_known_takes_two_kubectls_and_of_what_has_changed_a_reading_first(self) -> None:
        self.known()
        self.given("ann")
        self.kubectl.asked.clear()
        delete = functools.partial(self.cluster.delete, "ann", "alice", self.loop.now, False)
        self.cluster.wait("ann", self, delete)
        self.kubectl.failures["end Lease"] = playground.KubectlError("conflict")
        self.assertFalse(delete())
        self.work()
        self.kubectl.failures.clear()
        for _ in range(3):
            self.work()
        self.assertEqual([verb for verb, _ in self.kubectl.asked],
                         ["refused delete", "get", "get", "delete", "delete"])
        self.assertTrue(delete())

    def test_first_of_a_group_who_finds_no_cluster_finds_none_for_the_others(self) -> None:
        self.cluster.settings = self.cluster.settings._replace(max_databases=0, max_databases_per_client=0)
        self.known()
        users = [f"u{number}" for number in range(2 * playground.GROUP_ENDS)]
        for user in users:
            self.create(user)
        self.work()
        told: dict[str, playground.Outcome | None] = {}
        for user in users:
            self.get_ready(user)

            def ask(user: str = user) -> None:
                told[user] = told.get(user) or playground.outcome_of(
                    lambda: {} if self.cluster.delete(user, "alice", self.loop.now, False) else None)
            self.cluster.wait(user, user, ask)
            ask()
        self.kubectl.failures["end Lease"] = playground.KubectlError("timeout")
        self.work()
        self.assertEqual(self.refusals("delete"), 2)  # Of two groups.
        self.assertEqual([one and one.status for one in told.values()], [503] * len(users))

    def test_entry_of_a_user_whose_lease_a_listing_shows_to_be_gone_goes(self) -> None:
        self.known()
        self.given("ann")
        self.cluster.delete("ann", "alice", self.loop.now, False)
        self.work()
        self.cluster.delete("ann", "alice", self.loop.now - 1, False)
        self.work()
        for kind in ("Lease", "Secret", "Pod"):
            self.cluster.begin_listing(kind)
            self.cluster.end_listing(kind, next(self.kubectl.versions))
        self.cluster.settle()
        self.assertEqual((self.cluster.users, self.cluster.databases), ({}, {}))

    def test_time_to_the_data_source_ends_when_the_database_is_ready_whoever_waits(self) -> None:
        self.known()
        key = (("from", "new"),)
        before = list(playground.metrics.values["data_source_seconds"].get(key, [0.0]))
        self.create("ann")
        self.work()
        self.loop.pass_time(5)
        self.get_ready("ann")
        after = list(playground.metrics.values["data_source_seconds"][key])
        self.loop.pass_time(100)
        self.create("ann")
        self.cluster.settle()
        self.assertEqual(playground.metrics.values["data_source_seconds"][key], after)
        self.assertTrue(5 < after[-1] - before[-1] < 10)

    def test_one_who_makes_a_step_fail_keeps_nobody_else_waiting(self) -> None:
        self.known()
        given = self.cluster.given

        def failing(order: playground.Order) -> None:
            1 / (order.user is None or order.user.slug != "ann")
            given(order)
        self.cluster.given = failing  # type: ignore[method-assign]
        self.create("ann")
        self.create("ben")
        self.work()
        self.get_ready("ben")
        self.assertIn("data_source", self.create("ben"))
        self.assertIsNone(self.cluster.users["ann"].order)

    def test_user_of_whom_nonsense_was_read_is_not_stale_for_ever(self) -> None:
        self.known()
        self.given("ann")
        user = self.cluster.users["ann"]
        user.stale = True
        look = playground.Look(user, self.loop.now, user.lease, "x", {}, False)
        with self.assertRaises(LookupError):
            self.cluster.looked([look], ([{"kind": "Lease", "metadata": {}}], {}))
        self.assertFalse(user.stale)

    def test_group_leaves_when_it_is_full_or_nobody_comes(self) -> None:
        alone, company, longest = playground.GATHER_SECONDS
        group = playground.Group(self.cluster, lambda batch: None, lambda batch, _: None, size=3, most=2)
        group.add(1)
        self.loop.pass_time(alone)
        self.assertEqual(len(self.loop.started), 1)
        group.add(2)
        self.loop.pass_time(company * 0.9)
        self.assertEqual(len(self.loop.started), 1)
        self.loop.pass_time(company * 0.2)
        self.assertEqual(len(self.loop.started), 2)
        for number in range(4):  # As many run as may.
            group.add(number)
        self.loop.pass_time(2 * longest)
        self.assertEqual(len(self.loop.started), 2)
        for _ in range(2):
            work, then = self.loop.started.pop(0)
            then(work())
        self.assertEqual([len(work.args[0]) for work, _ in self.loop.started], [3, 1])  # type: ignore
        for work, then in self.loop.started[:]:
            then(work())
        self.loop.started.clear()
        for number in range(4):
            group.add(number)
        self.loop.pass_time(0)
        self.assertEqual([len(work.args[0]) for work, _ in self.loop.started], [3])  # type: ignore

    def test_last_beats_that_are_refused_are_tried_once_a_second(self) -> None:
        self.known()
        self.given("ann")
        self.cluster.beat("ann", "alice")
        self.kubectl.failures["write "] = playground.KubectlError("forbidden", "cannot patch resource")
        self.cluster.sweep.stopped = True
        for _ in range(30):
            self.assertFalse(self.cluster.sweep.last_beats())
            self.loop.pass_time(0.1)
            for work, then in self.loop.started[:]:
                then(work())
            self.loop.started.clear()
        self.assertTrue(2 <= self.refusals("patch") <= 4, self.refusals("patch"))
        self.kubectl.failures.clear()
        self.loop.pass_time(1)
        self.cluster.sweep.last_beats()
        self.work()
        self.assertTrue(self.cluster.sweep.last_beats())

    def test_spare_whose_removal_is_refused_is_tried_again_a_minute_later(self) -> None:
        self.cluster.settings = self.cluster.settings._replace(spare_databases=1)
        self.known()
        self.cluster.spares.tend()
        for _ in range(4):
            self.work()
        name, = (name for kind, name in self.kubectl.there if kind == "Pod")
        self.watch("Pod", name, status={"phase": "Failed"})
        self.kubectl.failures["replace "] = playground.KubectlError("policy", "denied")
        for _ in range(40):
            self.work()
        self.assertEqual(self.refusals("replace"), 1)
        for _ in range(40):
            self.work()
        self.assertEqual(self.refusals("replace"), 2)

    def test_spare_whose_removal_was_refused_makes_no_room(self) -> None:
        self.cluster.settings = self.cluster.settings._replace(spare_databases=1)
        self.known()
        self.cluster.spares.tend()
        for _ in range(4):
            self.work()
        spare, = self.cluster.spares.free.values()
        self.kubectl.failures["replace "] = playground.KubectlError("policy", "denied")
        self.assertTrue(self.cluster.spares.make_room())
        self.work()
        self.loop.pass_time(playground.EXPECTED_SECONDS + 1)
        self.assertFalse(self.cluster.spares.make_room())
        self.loop.pass_time(playground.REFUSED_SECONDS)
        self.kubectl.failures.clear()
        self.assertTrue(self.cluster.spares.make_room())
        self.assertTrue(spare.going)

    def test_log_tells_of_the_kind_that_is_lost(self) -> None:
        self.known()
        with self.assertLogs("playground", "WARNING") as seen:
            self.cluster.health.report("Lease", "unreachable", "refused")
            self.cluster.health.report("Pod", "forbidden", "no right")
            self.cluster.health.report("Lease", "")
            self.cluster.health.report("Lease", "unreachable", "refused")
        told = [re.findall("what=[A-Z][a-z]+|said=.*", line) for line in seen.output]
        self.assertEqual(told, [["what=Lease", "said=refused"], ["what=Pod"]])

    def test_kind_that_may_be_listed_but_not_watched_is_lost_once_and_stays_so(self) -> None:
        reports: list[str] = []
        watches = itertools.count()

        def lines(*arguments: str, **_: Any) -> Any:
            if next(watches) == 4:
                sys.exit()
            raise playground.KubectlError("forbidden", "cannot watch resource")
        page = json.dumps({"metadata": {"resourceVersion": "7"}, "items": []}).encode()
        self.cluster.kubectl = lambda *_, **__: page  # type: ignore[assignment]
        self.cluster.kubectl.lines = lines  # type: ignore[method-assign]
        self.cluster.kubectl.namespace = "classroom"
        self.cluster.health.report = lambda what, trouble, words="": reports.append(  # type: ignore
            trouble)
        with self.assertRaises(SystemExit):
            playground.Watch(self.cluster, "Pod").run()
        self.loop.pass_time(0)
        self.assertEqual(reports, ["", *["forbidden"] * 4])

    def test_beat_is_written_no_more_often_than_needed_and_the_idle_end(self) -> None:
        self.known()
        self.given("ann")
        self.cluster.sweep.begin_round()
        self.work()
        writes = [verb for verb, _ in self.kubectl.asked].count("patch")
        self.cluster.beat("ann", "alice")
        self.loop.pass_time(5)
        self.work()
        self.assertEqual([verb for verb, _ in self.kubectl.asked].count("patch"), writes)
        self.loop.pass_time(IDLE_SECONDS / 50 + 10)
        self.work()
        self.assertEqual([verb for verb, _ in self.kubectl.asked].count("patch"), writes + 1)
        for _ in range(160):  # No watch tells of the beat that was written; a look does.
            self.loop.pass_time(10)
            self.work()
        self.assertNotIn(("Lease", "user-ann"), self.kubectl.there)
        self.cluster.take_event("Lease", "user-ann", None, next(self.kubectl.versions))
        self.cluster.settle()
        self.assertEqual(self.cluster.users, {})

    def test_rounds_shorter_than_a_reading_leave_threads_for_everything_else(self) -> None:
        self.known()
        self.leave(playground.SUSPECTS_PER_ROUND + 1)
        self.cluster.sweep.begin_round()
        for _ in range(playground.WORK_THREADS):  # They read, and nothing comes of it yet.
            self.loop.pass_time(10)
        self.assertEqual(len(self.loop.started), 1)
        self.work()  # What was found is to be deleted, but the kubectls that delete take their time.
        for _ in range(playground.WORK_THREADS):
            self.loop.pass_time(10)
        self.assertLess(len(self.loop.started), playground.WORK_THREADS / 2)

    def leave(self, count: int) -> set[str]:
        """Have Secrets there of users who have no lease; return the databases' ids."""
        ids = {f"left{number}" for number in range(count)}
        for id in ids:
            secret = self.cluster.template.objects_of(id, "0" * 32, f"gone-{id}")[0]
            self.kubectl("create", reason="", stdin=playground.listed([secret]))
            self.watch("Secret", f"mysql-{id}")
        return ids

    def rounds(self, count: int) -> None:
        self.cluster.sweep.begin_round()
        for _ in range(count):
            self.loop.pass_time(10)
            self.work()

    def test_what_does_not_go_keeps_nothing_else_from_going(self) -> None:
        self.known()
        ids = self.leave(playground.SUSPECTS_PER_ROUND + 1)
        self.rounds(20)  # None of them goes.
        read = {item["metadata"]["name"].partition("-")[2] for verb, items in self.kubectl.asked
                if verb == "get" for item in items}
        self.assertLessEqual(ids, read)

    def test_beat_that_is_refused_stops_the_end_of_leases_and_nothing_else(self) -> None:
        self.known()
        self.given("ann")
        self.kubectl.failures["write"] = playground.KubectlError("policy", "denied")
        for _ in range(90):
            self.cluster.beat("ann", "alice")
            self.rounds(1)
        self.leave(1)
        self.rounds(5)
        self.assertIn("delete", [verb for verb, _ in self.kubectl.asked])
        self.assertIn(("Lease", "user-ann"), self.kubectl.there)

    def test_creation_goes_on_with_what_was_read_too_late_for_its_client(self) -> None:
        self.known()
        name = self.given("ann")
        del self.kubectl.there["Pod", name]
        self.cluster.take_event("Pod", name, None, next(self.kubectl.versions))
        self.assertIsNone(self.create("ann"))
        self.loop.pass_time(20)
        with self.assertRaises(playground.ApiError):
            self.create("ann", late=True)
        self.assertIsNone(self.create("ann"))  # It asks again, and wants what is read from now on.
        asked = len(self.kubectl.asked)
        self.work()
        self.work()
        self.assertIn("replace", [verb for verb, _ in self.kubectl.asked[asked:]])

    def test_only_a_lease_that_is_anothers_for_sure_ends_what_was_made_beside_it(self) -> None:
        self.known()
        for reason, ends in (("exists", True), ("quota", True), ("timeout", False), ("unreachable", False)):
            with self.subTest(reason):
                order = playground.Order(self.cluster.given, "made", self.cluster.user("ann"))
                order.creates = self.cluster.template.objects_of("made", "0" * 32, "ann")
                order.made, order.failures = order.creates[:], [("Lease", playground.KubectlError(reason))]
                self.cluster.given(order)
                ending = [one.id for one in self.cluster.ending.waiting if one.by_label]
                self.assertEqual(ending, ["made"] * ends)
                self.work()

    def test_lease_that_was_deleted_and_stays_is_told_and_makes_nothing(self) -> None:
        self.known()
        self.given("ann")
        lease = self.kubectl.there["Lease", "user-ann"]
        started = self.loop.now
        while not self.cluster.delete("ann", "alice", started, False):
            self.work()
        self.kubectl.there["Lease", "user-ann"] = lease  # A finalizer holds it.
        self.kubectl.failures["create"] = playground.KubectlError(
            "exists", "Error from server (AlreadyExists): it is there\n" * 3)
        started = self.loop.now
        with self.assertRaises(playground.ApiError) as refused:
            for _ in range(5):
                self.cluster.create("ann", "alice", started, False)
                self.work()
                self.work()
        self.assertEqual((refused.exception.status, refused.exception.message), (409, playground.STAYS))

    def test_spares_of_another_template_stay_longer_only_if_this_server_removed_them(self) -> None:
        self.known()
        self.cluster.spares.others_removed["flood"] = 5000
        for hash, removed in (("given", 0), ("kept", 1), ("flood", 5000)):
            with self.subTest(hash):
                secret, pod = self.cluster.template.objects_of(hash, "0" * 32)
                secret["metadata"]["annotations"][playground.TEMPLATE] = hash
                self.kubectl("create", reason="", stdin=playground.listed([secret, pod]))
                self.watch("Secret", f"mysql-{hash}")
                self.watch("Pod", f"mysql-{hash}", status=READY)
                self.cluster.spares.tend()
                self.loop.now += playground.OTHERS_SECONDS + 1 if hash == "kept" else 0
                self.cluster.spares.tend()
                for kind in ("Pod", "Secret"):
                    self.cluster.take_event(kind, f"mysql-{hash}", None, next(self.kubectl.versions))
                self.cluster.spares.tend()
                self.assertEqual(self.cluster.spares.others_removed[hash], removed)


class Persistent(Case):
    template = "mysql-persistent.yaml"

    def test_what_is_not_ours_in_a_databases_place_is_named(self) -> None:
        self.known()
        self.cluster.wait("ann", self, lambda: None)
        for kind in ("Secret", "PersistentVolumeClaim", "Service", "Pod"):
            with self.subTest(kind=kind), self.assertRaises(playground.ApiError) as refused:
                started, name = self.loop.now, "mysql-user-ann"
                metadata = {"name": name, "uid": "u", "resourceVersion": "1"}
                self.kubectl.there = {(kind, name): {"kind": kind, "metadata": metadata}}
                for _ in range(5):
                    self.assertIsNone(self.cluster.create("ann", "alice", started, False))
                    self.work()
            self.assertEqual((refused.exception.status, refused.exception.message),
                             (409, playground.FOREIGN.format(kind, name)))
            self.loop.pass_time(5)

    def test_volume_is_made_by_whoever_made_the_secret_and_nobody_else(self) -> None:
        self.known()
        self.create("ann")
        for _ in range(3):
            self.work()
        made = [[item["kind"] for item in items] for verb, items in self.kubectl.asked if verb == "create"]
        self.assertEqual(made, [["Lease", "Secret"], ["PersistentVolumeClaim", "Service", "Pod"]])
        self.kubectl.failures["create 2 objects for ben"] = playground.KubectlError(
            "exists", 'Error from server (AlreadyExists): leases "user-ben" already exists\n' * 2)
        self.create("ben")
        for _ in range(3):
            self.work()
        self.assertIn("refused create", [verb for verb, _ in self.kubectl.asked])
        self.assertEqual([kind for kind, name in self.kubectl.there if "ben" in name], [])

    def test_volume_whose_lease_was_deleted_by_hand_is_deleted_by_its_client_and_no_other(self) -> None:
        self.known()
        self.given("ann")
        del self.kubectl.there["Lease", "user-ann"]
        self.cluster.take_event("Lease", "user-ann", None, next(self.kubectl.versions))
        started = self.loop.now
        self.cluster.wait("ann", self, lambda: None)
        for ask in (self.cluster.delete, self.cluster.create):
            with self.assertRaises(playground.ApiError) as refused:
                for _ in range(3):
                    self.assertFalse(ask("ann", "bob", started, False))
                    self.work()
            self.assertEqual(refused.exception.status, 403)
        delete = functools.partial(self.cluster.delete, "ann", "alice", self.loop.now, False)
        self.cluster.wait("ann", self, delete)
        self.assertFalse(delete())
        for _ in range(4):
            self.work()
        self.assertEqual(self.kubectl.there, {})
        self.assertTrue(delete())

    def test_pod_that_takes_its_time_to_go_is_not_forgotten(self) -> None:
        self.known()
        name = self.given("ann")
        self.cluster.delete("ann", "alice", self.loop.now, False)
        self.loop.pass_time(1)
        pod = self.kubectl.there["Pod", name]
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        self.watch("Pod", name)
        for _ in range(3):
            self.work()
        self.kubectl.there["Pod", name] = pod
        ask = functools.partial(self.cluster.create, "ann", "alice", self.loop.now, False)
        self.cluster.wait("ann", self, ask)
        before = len(self.kubectl.asked)
        ask()
        for _ in range(10):
            self.work()
        self.assertLess(len(self.kubectl.asked), before + 10)
        self.assertEqual(self.cluster.standing(self.cluster.users["ann"]), "going")

    def test_label_that_was_taken_from_a_volumes_secret_comes_back(self) -> None:
        self.known()
        name = self.given("ann")
        del self.kubectl.there["Lease", "user-ann"]
        self.cluster.take_event("Lease", "user-ann", None, next(self.kubectl.versions))
        self.cluster.wall = lambda: 2e9  # The next lease is another one.
        self.create("ann")
        for _ in range(3):
            self.work()
        del self.kubectl.there["Secret", name]["metadata"]["labels"][playground.USER]
        self.watch("Secret", name)
        self.create("ann")
        for _ in range(3):
            self.work()
        self.assertEqual(self.kubectl.there["Secret", name]["metadata"]["labels"][playground.USER], "ann")

    def test_server_of_another_template_answers_the_same_address_and_forgets_what_it_read(self) -> None:
        self.known()
        self.given("ann")
        there, address = self.kubectl.there, self.create("ann")["data_source"]
        self.cluster.sweep.begin_round()
        for _ in range(4):
            self.work()
        self.template = "mysql.yaml"
        self.setUp()
        self.kubectl.there, self.kubectl.versions = there, itertools.count(1000)
        for kind, name in list(there):
            if kind in self.cluster.kinds:
                self.watch(kind, name)
        self.known()
        look = functools.partial(self.cluster.create, "ann", "alice", self.loop.now, False)
        self.cluster.wait("ann", self, look)
        look()
        for _ in range(4):
            self.work()
        self.assertEqual(self.create("ann"), {"user_id": "ann", "data_source": address})
        delete = functools.partial(self.cluster.delete, "ann", "alice", self.loop.now, False)
        self.cluster.wait("ann", self, delete)
        delete()
        for _ in range(4):
            self.work()
        self.cluster.take_event("Pod", "mysql-user-ann", None, next(self.kubectl.versions))
        self.assertEqual((there, self.cluster.databases), ({}, {}))

    def test_pod_that_was_evicted_makes_room_for_another_on_the_same_volume(self) -> None:
        self.known()
        name = self.given("ann")
        uids = {kind: self.kubectl.there[kind, name]["metadata"]["uid"] for kind, _ in self.kubectl.there
                if kind != "Lease"}
        self.watch("Pod", name, status={"phase": "Failed", "reason": "Evicted"})
        self.cluster.sweep.begin_round()  # Nobody asks for it.
        for _ in range(6):
            self.work()
            if ("Pod", name) not in self.kubectl.there and self.cluster.parts("user-ann").get("Pod"):
                self.cluster.take_event("Pod", name, None, next(self.kubectl.versions))
            self.loop.pass_time(10)
        self.get_ready("ann")
        self.loop.pass_time(playground.SERVICE_SECONDS)
        self.assertNotIn("note", self.create("ann"))
        changed = [kind for kind, uid in uids.items()
                   if self.kubectl.there[kind, name]["metadata"]["uid"] != uid]
        self.assertEqual(changed, ["Pod"])

    def test_who_was_handed_a_volume_deletes_it_and_gets_another_while_its_pod_still_goes(self) -> None:
        self.known()
        self.given("ann")
        annotations = self.kubectl.there["Lease", "user-ann"]["metadata"]["annotations"]
        annotations[playground.CLIENT] = "bob"
        self.watch("Lease", "user-ann")
        for ask in (self.cluster.delete, self.cluster.create):
            again = functools.partial(ask, "ann", "bob", self.loop.now, False)
            self.cluster.wait("ann", self, again)
            again()
            for _ in range(4):
                self.work()
        self.assertIn(("Lease", "user-ann"), self.kubectl.there)

    def test_volume_that_became_another_clients_is_not_answered_by_whoever_has_not_heard_of_it(self) -> None:
        self.known()
        name = self.given("ann")
        there = self.kubectl.there
        secret = there["Secret", name]["metadata"]["annotations"]
        secret.update({playground.ACQUIRED: "2030-01-01T00:00:00.000000Z", playground.CLIENT: "bob"})
        lease = there["Lease", "user-ann"]
        lease["spec"]["acquireTime"] = secret[playground.ACQUIRED]
        lease["metadata"]["annotations"][playground.CLIENT] = "bob"
        lease["metadata"].update(uid="next", resourceVersion=str(next(self.kubectl.versions)))
        self.watch("Secret", name)
        ask = functools.partial(self.cluster.create, "ann", "alice", self.loop.now, False)
        self.cluster.wait("ann", self, lambda: None)
        with self.assertRaises(playground.ApiError) as refused:
            for _ in range(3):
                self.assertIsNone(ask())
                self.work()
        self.assertEqual(refused.exception.status, 403)

    def test_write_that_guards_what_is_made_on_a_volume_always_changes_the_lease(self) -> None:
        self.known()
        name = self.given("ann")
        lease = copy.deepcopy(self.kubectl.there["Lease", "user-ann"])
        self.cluster.users["ann"].unwritten = False
        del self.kubectl.there["Pod", name]
        self.cluster.take_event("Pod", name, None, next(self.kubectl.versions))
        self.cluster.sweep.begin_round()
        for _ in range(4):
            self.work()
        self.assertIn(("Pod", name), self.kubectl.there)
        # The API server keeps an object's version if nothing of it changes: no other write would conflict.
        self.assertNotEqual(self.kubectl.there["Lease", "user-ann"]["spec"], lease["spec"])

    def test_volume_without_lease_and_label_is_no_spare(self) -> None:
        self.known()
        name = self.given("ann")
        del self.kubectl.there["Lease", "user-ann"]
        self.cluster.take_event("Lease", "user-ann", None, next(self.kubectl.versions))
        secret = self.kubectl.there["Secret", name]["metadata"]
        del secret["labels"][playground.USER], secret["annotations"][playground.ACQUIRED]
        self.watch("Secret", name)
        self.loop.pass_time(playground.YOUNG_SECONDS)
        self.cluster.spares.tend()
        self.work()
        self.assertNotIn(playground.USER, self.kubectl.there["Secret", name]["metadata"]["labels"])

    def test_volume_that_a_server_has_no_right_to_read_fails_nobody_else(self) -> None:
        self.known()
        self.given("ann")
        there = self.kubectl.there
        there["Lease", "user-ann"]["metadata"]["annotations"][playground.ENDS] = "true"
        self.template = "mysql.yaml"
        self.setUp()
        self.kubectl.there, self.kubectl.versions = there, itertools.count(1000)
        self.watch("Lease", "user-ann")
        self.known()
        self.given("ben")
        read = self.cluster.api.read

        def reads(keys: list[tuple[str, str]]) -> list[dict[str, Any]]:
            if "Service" in dict(keys):
                raise playground.KubectlError("forbidden", "cannot get resource")
            return read(keys)
        self.cluster.api.read = reads  # type: ignore[method-assign]
        self.cluster.sweep.begin_round()
        for _ in range(200):
            self.loop.pass_time(10)
            self.work()
        self.assertEqual([name for kind, name in there if kind == "Lease"], ["user-ann"])

    def test_delete_that_was_cut_short_is_carried_through_by_the_sweep(self) -> None:
        self.known()
        self.given("ann")
        self.kubectl.failures["end PersistentVolumeClaim"] = playground.KubectlError("policy", "denied")
        started, told = self.loop.now, list[Any]()

        def delete() -> None:
            try:
                told.append(self.cluster.delete("ann", "alice", started, False))
            except playground.KubectlError as error:
                told.append(error.reason)
        self.cluster.wait("ann", self, delete)
        delete()
        for _ in range(3):
            self.work()
        self.assertIn("policy", told)
        self.assertIn(("PersistentVolumeClaim", "mysql-user-ann"), self.kubectl.there)
        self.assertEqual(self.cluster.beat("ann", "alice"), {"status": "absent"})
        self.cluster.wait("ann", self, None)
        self.kubectl.failures.clear()
        self.cluster.sweep.begin_round()
        for _ in range(4):
            self.work()
            self.loop.pass_time(10)
        self.assertEqual(self.kubectl.there, {})

    def test_pod_that_a_sweep_could_not_delete_goes_in_a_later_round(self) -> None:
        self.known()
        self.given("ann")
        self.cluster.sweep.begin_round()
        self.kubectl.failures["end Pod"] = playground.KubectlError("policy", "denied")
        for _ in range(180):
            self.loop.pass_time(10)
            self.work()
        self.watch("Lease", "user-ann")
        self.assertIn(playground.KEPT, self.kubectl.there["Lease", "user-ann"]["metadata"]["annotations"])
        self.assertIn(("Pod", "mysql-user-ann"), self.kubectl.there)
        self.kubectl.failures.clear()
        for _ in range(3):
            self.loop.pass_time(10)
            self.work()
        left = {kind for kind, _ in self.kubectl.there}
        self.assertEqual(left, {"Lease", "Secret", "PersistentVolumeClaim"})


class Templates(unittest.TestCase):
    def test_value_of_another_form_is_refused_with_a_reason(self) -> None:
        whole = playground.Template(os.path.join(ROOT, "k8s_templates", "mysql.yaml")).objects
        for kind, path, value, reason in (
                ("Pod", "metadata", "text", "another form"), ("Pod", "spec", "text", "another form"),
                ("Pod", "spec", ["text"], "another form"), ("Secret", "stringData", "text", "another form"),
                ("Pod", "metadata.labels", "text", "another form"),
                ("Pod", "metadata.annotations", ["text"], "another form"),
                ("Pod", "spec.containers", "text", "another form"),
                ("Pod", "spec.containers", [{"resources": "text"}], "another form"),
                ("Pod", "spec.containers", [{"resources": {"limits": {"cpu": "much"}}}], "is no quantity"),
                ("Pod", "spec.hostname", "${nobody}", "unknown placeholder")):
            with self.subTest(path=path, value=value), tempfile.NamedTemporaryFile("w") as file:
                objects = copy.deepcopy(whole)
                inner = next(item for item in objects if item["kind"] == kind)
                *outer, last = path.split(".")
                for key in outer:
                    inner = inner[key]
                inner[last] = value
                file.write("\n---\n".join(map(json.dumps, objects)))
                file.flush()
                with self.assertRaisesRegex(ValueError, reason):
                    playground.Template(file.name)


class Quota(Case):
    def test_quota_without_room_for_what_the_options_allow_is_told(self) -> None:
        for hard, room in (({"pods": "4"}, ""), ({"pods": "3"}, "3"), ({"limits.memory": "1Gi"}, "2"),
                           ({"count/secrets": "4", "requests.memory": "256Mi"}, "2"),
                           ({"services": "0"}, "")):
            settings = self.cluster.settings._replace(spare_databases=1)  # And three users' databases.
            said = self.cluster.template.too_many_for({"status": {"hard": hard}}, settings)
            self.assertEqual(said, room and f"it has room for {room} databases, --max_databases and "
                             "--spare_databases are 4: raise it, or lower them")


class Words(unittest.TestCase):
    def test_password_of_any_form_is_struck_out(self) -> None:
        for password in ("pass", "0123456789abcdef0123456789abcdef", "sesame öffne dich!", "a+b/c=d$"):
            encoded = base64.b64encode(password.encode()).decode()
            secret = {"kind": "Secret", "data": {"password": encoded}}
            hide = playground.passwords_in([(None, secret)])
            words = playground.strike_out(f"Secret is invalid: {password!r} {encoded} {encoded[:-3]}", hide)
            self.assertNotIn(password, words)
            self.assertNotIn(encoded[:4], words)


class Log(unittest.TestCase):
    def test_line_waits_for_a_file_that_does_not_block(self) -> None:
        ear, mouth = os.pipe()
        os.set_blocking(mouth, False)
        lines = playground.LogQueue(mouth)
        for number in range(5000):
            lines.emit(logging.LogRecord("playground", logging.INFO, "", 0, f"event={number}", None, None))
        time.sleep(0.2)  # The pipe fills.
        read = b""
        while read.count(b"\n") < 5000:
            read += os.read(ear, 2 ** 16)
        self.assertIn(b"event=4999\n", read)
        self.assertEqual(playground.LogQueue.dropped, 0)


if __name__ == "__main__":
    unittest.main(warnings="error")
