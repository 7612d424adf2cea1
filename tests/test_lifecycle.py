"""Tests of heart beats, sweeps, replicas, the server's end, and what the cluster refuses or fails to do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest
import unittest.mock
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import playground
from tests import harness
from tests.harness import (
    KUBECONFIG,
    KUBECTL,
    PATIENCE_SECONDS,
    REAL,
    ROOT,
    Running,
    eventually,
    kill,
    kubectl,
    make_namespace,
    objects_of,
    path,
    receive_all,
    running,
    stand_in,
    stepping,
    template,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down


class Errors(unittest.TestCase):
    def test_each_object_gets_its_own_error_and_none_another_ones(self) -> None:
        exists = ('Error from server (AlreadyExists): error when creating "STDIN": '
                  'secrets "a" already exists\n')
        broken = 'error: error when creating "STDIN": Post "https://x/api": EOF\n'
        quota = ('Error from server (Forbidden): error when creating "STDIN": '
                 'services "b" is forbidden: exceeded quota: q\n')

        def reasons(words: str, count: int) -> list[str]:
            error = playground.KubectlError(playground.why(words), words)
            return [each.reason for each in error.each(count)]
        self.assertEqual(reasons(exists + broken + quota, 3), ["exists", "unreachable", "quota"])
        self.assertEqual(reasons(exists + "something else\n", 3), ["unreachable"] * 3)
        self.assertEqual(reasons(quota, 2), ["unreachable"] * 2)
        self.assertEqual(reasons("The connection to the server x was refused\n", 3), ["unreachable"] * 3)
        self.assertEqual(reasons('The Service "a" is invalid: spec.ports: Required value\n', 1), ["invalid"])


def hanging() -> list[str]:
    return [stand_in("hanging", "exec sleep 1000")]


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
                eventually(lambda children=children: not any(map(running, children)),
                           "its kubectls have ended")

    @unittest.skipUnless(shutil.which("setpriv"),
                         "setpriv is missing: kubectls end with their next output or time limit")
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
            eventually(lambda: "cannot run kubectl" in server.call("alice", "status")[1]["cluster"],
                       "it notices")
            status, answer, _ = server.call("alice", "create_db", "alice")
            self.assertEqual((status, "cannot run kubectl" in answer["error"]), (503, True))


@unittest.skipUnless(KUBECONFIG, "no cluster: PLAYGROUND_TEST_KUBECONFIG is not set")
class Lifecycle(unittest.TestCase):
    """Heart beats, the sweep, several servers, and people with kubectl, among hasty sweeps."""

    HASTY = ("--idle_timeout=2", "--sweep_interval=0.5")  # Deletes what was not heard of for 3 s.

    @classmethod
    def setUpClass(cls) -> None:
        harness.use_another_namespace(cls)

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

    def test_beats_of_a_round_are_written_by_one_kubectl_and_a_database_that_has_gone_fails_alone(
        self) -> None:
        users = ["round-a", "round-b", "round-c"]
        with Running("--idle_timeout=0", "--sweep_interval=2").known() as server:
            self.assertEqual({status for status, _ in server.create_at_once(users)}, {200})
            blinded = server.blind("statefulsets")
            kubectl("delete", "statefulset", "mysql-round-b")
            before = {user: self.last_beat(user) for user in ("round-a", "round-c")}
            time.sleep(1)  # So that the time to the second is another one.
            for user in users:
                self.assertEqual(server.call("alice", "heart_beat", user)[0], 200)
            eventually(lambda: all(self.last_beat(user) > beat for user, beat in before.items()),
                       "the beats are in the cluster")
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
            kubectl("annotate", "statefulset", "mysql-eternal", "--overwrite",
                    f"{playground.LAST_BEAT}=2001-01-01T00:00:00Z")
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
                eventually(lambda: other.call("alice", "list_db")[1] == one.call("alice", "list_db")[1],
                           "they list the same")
                one.call("alice", "delete_db", "gone")
                started = time.monotonic()
                eventually(lambda: other.call("alice", "heart_beat", "gone")[1]["status"] == "absent",
                           "the other knows")
                self.assertLess(time.monotonic() - started, 5)
                eventually(lambda: not objects_of("left"), "one of them swept it")
                self.assertEqual(len(objects_of("both")), 3)
            eventually(lambda: not objects_of("both"), "it is swept")
            self.quiet(one)
            self.quiet(other)

    def holding(self, user_id: str) -> tuple[str, str]:
        """Return a kubectl that waits before it deletes the user's StatefulSet, and the file that says so."""
        held, hold = path(f"held-{user_id}"), path(f"hold-{user_id}")
        with open(hold, "w", encoding="utf-8"):
            return stand_in(f"holding-{user_id}",
                            f"case \"$*\" in *'delete --raw'*/statefulsets/mysql-{user_id}\\ *) "
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
                    eventually(lambda: hasty.lines("/statefulsets/mysql-saved outcome=conflict"),
                               "the API server refuses the deletion")
                    self.assertEqual(len(objects_of("saved")), 3)

    def test_user_who_returns_on_one_server_while_another_one_sweeps_keeps_the_database_that_is_answered(
        self) -> None:
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
        with Running("--idle_timeout=0", "--sweep_interval=0.2").known() as other, \
                Running(*self.HASTY).known() as late:
            other.call("alice", "create_db", "unheard")
            eventually(lambda: late.call("alice", "heart_beat", "unheard")[1]["status"] == "ready",
                       "it is seen")
            blinded = late.blind("statefulsets")
            with self.beating(other, "unheard"):
                time.sleep(6)
                self.assertEqual(len(objects_of("unheard")), 3)
            kill([blinded])

    def test_wall_clock_that_steps_neither_deletes_an_active_database_nor_keeps_an_idle_one(self) -> None:
        with open(path("offset"), "w", encoding="utf-8") as file:
            file.write("0")
        with Running(*self.HASTY, program=stepping(path("offset"))).known() as server, \
                self.beating(server, "steady"):
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
                kubectl("annotate", "statefulset", "mysql-garbled", "--overwrite",
                        f"{playground.LAST_BEAT}=about noon {number}")
                time.sleep(1)
            self.assertEqual(len(objects_of("garbled")), 3)
            self.assertTrue(server.lines(
                'level=WARNING event=heart_beat user=garbled client=alice last_beat="about noon 0"'))
            [entry] = [entry for entry in server.call("alice", "list_db")[1]["databases"]
                       if entry["user_id"] == "garbled"]
            self.assertRegex(entry["last_heart_beat"], r"^20..-..-..T..:..:..Z$")
            eventually(lambda: not objects_of("garbled"), "it is swept in the end")

    def test_database_stopped_or_relabelled_or_without_its_pod_comes_back_or_says_why_not(self) -> None:
        with Running().known() as server:
            source = server.call("alice", "create_db", "handled")[1]["data_source"]
            kubectl("patch", "statefulset", "mysql-handled", "-p", '{"spec": {"replicas": 0}}')
            eventually(lambda: server.call("alice", "heart_beat", "handled")[1]["status"] == "starting",
                       "it has stopped")
            status, answer, headers = server.call("alice", "create_db", "handled")
            self.assertEqual((status, "scaled to 0" in answer["error"], "retry-after" in headers),
                             (503, True, True), answer)
            kubectl("patch", "statefulset", "mysql-handled", "-p", '{"spec": {"replicas": 1}}')
            self.assertEqual(server.call("alice", "create_db", "handled")[1].get("data_source"), source)
            kubectl("delete", "pod", "mysql-handled-0", "--wait=false")
            self.assertEqual(server.call("alice", "create_db", "handled")[1].get("data_source"), source)
            for kind in ("service", "statefulset"):
                kubectl("label", kind, "mysql-handled", "--overwrite", "playground.sqlflow.org/user=somebody")
            self.assertEqual(server.call("alice", "create_db", "handled")[1].get("data_source"), source)
            self.assertEqual(server.call("alice", "delete_db", "handled")[0], 200)
            kinds = "statefulset,service,secret"
            eventually(lambda: "mysql-handled" not in kubectl("get", kinds, "-o", "name"), "all is deleted")

    @unittest.skipUnless(REAL, "needs finalizers, which devcluster does not know")
    def test_pod_that_is_stuck_in_its_end_is_named(self) -> None:
        with Running().known() as server:
            server.call("alice", "create_db", "stuck")
            kubectl("patch", "pod", "mysql-stuck-0", "-p",
                    '{"metadata": {"finalizers": ["playground.test/stuck"]}}')
            kubectl("delete", "statefulset", "mysql-stuck", "--wait=false")
            eventually(lambda: "deletionTimestamp" in kubectl("get", "pod", "mysql-stuck-0", "-o", "json"),
                       "the pod is ending")
            eventually(lambda: server.call("alice", "heart_beat", "stuck")[1]["status"] == "absent",
                       "the server knows")
            status, answer, _ = server.call("alice", "create_db", "stuck")
            self.assertEqual((status, "Terminating" in answer["error"]), (503, True), answer)
            kubectl("patch", "pod", "mysql-stuck-0", "-p", '{"metadata": {"finalizers": null}}')
            self.assertEqual(server.call("alice", "create_db", "stuck")[0], 200)

    def test_namespace_that_goes_is_named_and_one_that_comes_back_is_used(self) -> None:
        name = f"{harness.namespace}-going"
        make_namespace(name)
        with Running(f"--namespace={name}").known() as server:
            self.assertEqual(server.call("alice", "create_db", "there")[0], 200)
            kubectl("delete", "namespace", name)
            eventually(lambda: server.call("alice", "heart_beat", "there")[1]["status"] == "absent",
                       "its objects are known to have gone")
            status, answer, _ = server.call("alice", "create_db", "there")
            self.assertEqual((status, "namespace" in answer["error"]), (502, True), answer)
            make_namespace(name)
            self.assertEqual(server.call("alice", "create_db", "there")[0], 200)

    def test_server_killed_at_any_moment_of_a_create_leaves_nothing_that_the_next_create_does_not_complete(
        self) -> None:
        with Running("--idle_timeout=0").known() as survivor:
            for attempt in range(3):
                users = [f"half-{attempt}-{number}" for number in range(12)]
                with Running().known() as victim, contextlib.ExitStack() as stack:
                    for user in users:  # Each is at another moment of its creation when the server is killed.
                        connection = stack.enter_context(victim.connect())
                        body = json.dumps({"user_id": user}).encode()
                        connection.sendall(
                            b"POST /api/create_db HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(
                                body) + body)
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
            return kubectl("get", "statefulset,service,secret,persistentvolumeclaim", "-l",
                           "playground.sqlflow.org/user=keeper", "-o", "name").split()
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
            self.assertEqual(server.call("alice", "create_db", "keeper")[1]["data_source"].split("@")[0],
                             source.split("@")[0])
            kubectl("delete", "secret", "mysql-keeper")
            eventually(lambda: server.call("alice", "heart_beat", "keeper")[1]["status"] != "ready",
                       "the server has seen it go")
            self.assertEqual(server.call("alice", "create_db", "keeper")[1]["data_source"].split("@")[0],
                             source.split("@")[0])
        kubectl("delete", "secret", "mysql-keeper")
        with Running(persistent).known() as server:
            status, answer, _ = server.call("alice", "create_db", "keeper")
            self.assertEqual((status, "delete_db gives the data up" in answer["error"]), (409, True), answer)
            self.assertEqual(len(kept()), 3)
            self.assertEqual(server.call("alice", "delete_db", "keeper")[0], 200)
            self.assertNotEqual(server.call("alice", "create_db", "keeper")[1]["data_source"].split("@")[0],
                                source.split("@")[0])
            server.call("alice", "delete_db", "keeper")
            eventually(lambda: not kept(), "all of it is deleted")

    def test_database_made_from_a_template_without_a_claim_stays_as_it_is_under_one_with_a_claim(
        self) -> None:
        def objects() -> list[str]:
            return kubectl("get", "statefulset,service,secret,persistentvolumeclaim", "-l",
                           "playground.sqlflow.org/user=changed", "-o", "name").split()
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
        eventually(lambda: "999" in kubectl("get", "quota", "full", "-o", "jsonpath={.status.hard}"),
                   "the quota counts")

        def check(**options: str) -> tuple[int, str]:
            store = path("key_store")
            files = {"ca_crt": f"{store}/ca/ca.crt", "server_key": f"{store}/server/server.key",
                     "server_crt": f"{store}/server/server.crt", **options}
            result = subprocess.run([sys.executable, os.path.join(ROOT, "playground.py"), "--check",
                                     f"--namespace={harness.namespace}",
                                     f"--kubectl={KUBECTL}",
                                     *(f"--{name}={value}" for name, value in files.items())],
                                    capture_output=True, text=True,
                                    env={**os.environ, "KUBECONFIG": KUBECONFIG})
            self.assertEqual(result.stderr, "")
            return result.returncode, result.stdout
        code, said = check()
        self.assertEqual((code, re.findall("^WRONG .*", said, re.M)), (1, [
            "WRONG  quota full: " + re.search("count/configmaps .*, count/secrets .* of 999",
                                              said)[0]  # type: ignore[index]
            + ": nothing is left of count/configmaps; raise it, or delete databases"]))
        code, said = check(crl="/lost.crl", db_template="lost.yaml")
        wrong = re.findall("^WRONG  start: (.*)", said, re.M)
        self.assertEqual((code, [line.partition(" cannot be ")[0] for line in wrong]),
                         (1, ["--crl /lost.crl",
                              f"the template {os.path.join(ROOT, 'k8s_templates/lost.yaml')}"]))
        self.assertIn("ok     right to list events", said)  # All the rest is tried all the same.

    def test_pod_that_never_gets_ready_is_503_with_the_reason_in_time(self) -> None:
        def never_ready(item: Any) -> None:
            item["spec"]["template"]["spec"]["containers"][0]["image"] = "never-ready"
        with Running(*template("never.yaml", StatefulSet=never_ready)).known() as server:
            started = time.monotonic()
            with ThreadPoolExecutor(5) as pool:
                answers = list(pool.map(lambda number: server.call("alice", "create_db", f"never-{number}"),
                                        range(5)))
            self.assertLess(time.monotonic() - started, 20)
            for status, answer, headers in answers:
                self.assertEqual((status, "ImagePullBackOff" in answer["error"], "retry-after" in headers),
                                 (503, True, True), answer)
            # Listed, read back, asked why.
            self.assertLessEqual(len(server.lines("kubectl verb=get")), 3 + 5 + 2)
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
                    self.assertEqual((status, "quota" in answer["error"], "retry-after" in headers),
                                     (429, True, True), answer)
                    server.call("alice", "delete_db", f"full-{number}")
            finally:
                kubectl("delete", "quota", "full")

    def test_rights_that_lack_and_a_namespace_that_lacks_are_502(self) -> None:
        with Running("--context=nobody") as server:
            eventually(lambda: "lacks a right" in server.call("alice", "status")[1]["cluster"],
                       "the server has tried")
            self.assertEqual(server.call("alice", "create_db", "alice")[0], 502)
            self.assertEqual(server.call("alice", "heart_beat", "alice")[0], 200)
        with Running("--namespace=playground-nowhere") as server:
            eventually(lambda: "not in the cluster" in server.call("alice", "status")[1]["cluster"],
                       "the server has tried")
            self.assertEqual(server.call("alice", "create_db", "alice")[0], 502)

    def test_misspelt_field_in_the_template_is_found_once_at_the_start(self) -> None:
        def misspell(item: Any) -> None:
            item["spec"]["template"]["spec"]["containers"][0]["resuorces"] = {}
        with Running(*template("misspelt.yaml", StatefulSet=misspell)) as server:
            eventually(lambda: server.lines("resuorces"), "the log names the field")
            eventually(lambda: "template" in server.call("alice", "status")[1]["cluster"],
                       "the status says so")
            self.assertEqual(server.call("alice", "create_db", "alice")[0], 502)
            with Running().known() as other:
                source = other.call("alice", "create_db", "untouched")[1]["data_source"]
            # What is there needs no template.
            eventually(lambda: server.call("alice", "create_db",
                                           "untouched")[1].get("data_source") == source, "it is answered")
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
            eventually(lambda: "does not answer" in server.call("alice", "status")[1]["cluster"],
                       "the cluster is gone")
            # Known and running: answered from memory.
            self.assertEqual(server.call("alice", "create_db", "late")[0], 200)
            self.assertEqual(server.call("alice", "create_db", "later")[0], 503)
