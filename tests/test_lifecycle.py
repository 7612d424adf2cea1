"""Tests of heart beats, sweeps, replicas, the server's end, and what the cluster refuses or fails to do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
import unittest.mock
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml

import playground
from tests import harness
from tests.harness import (
    KUBECONFIG,
    KUBECTL,
    PATIENCE_SECONDS,
    REAL,
    ROOT,
    STATUS,
    Running,
    altered,
    descendants,
    empty_cluster,
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
    tls,
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

    def test_log_that_nobody_reads_stops_nobody_and_what_was_dropped_is_counted(self) -> None:
        with Unread() as server:
            self.assertEqual(server.answers(15_000), 15_000)
            written, dropped = 0, 0
            while not dropped and written < 15_000:
                line = server.stderr.readline()
                written += len(re.findall(r"event=request .*api=status", line))
                dropped = int((re.findall(r"\bdropped=(\d+)", line) or "0")[0])
            self.assertLess(written, 15_000)  # Else nothing has been bounded.
            self.assertGreaterEqual(written + dropped, 15_000)
            self.assertEqual(server.answers(50), 50)
            while "api=status" not in server.stderr.readline():
                pass  # It goes on.

    def test_sigterm_ends_a_server_whose_log_nobody_reads(self) -> None:
        with Unread() as server:
            server.answers(2000)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(30), 0)

    def test_sigterm_is_a_clean_end_again_and_again(self) -> None:
        option = stand_in("patient", "exec sleep 1000")

        def start_and_stop(_: int) -> float:
            with Running(option) as server, server.connect() as connection:
                connection.sendall(STATUS * 200)  # Some are in flight when it is told to stop.
                connection.recv(1)
                started = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                server.process.wait(PATIENCE_SECONDS)
                return time.monotonic() - started
        with ThreadPoolExecutor(4) as pool:
            self.assertLess(max(pool.map(start_and_stop, range(20))), 10)

    @unittest.skipUnless(os.geteuid() == 0, "a namespace of processes can be made by root only")
    def test_orphan_of_a_kubectl_is_reaped_by_a_server_that_is_pid_1(self) -> None:
        program = altered(
            "import ctypes, os, signal\n"
            "libc = ctypes.CDLL(None)\n"
            "assert not libc.unshare(0x20000000)\n"  # CLONE_NEWPID
            "child = os.fork()\n"
            "if child:\n"
            "    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))\n"
            "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
            "assert os.getpid() == 1 and not libc.prctl(1, signal.SIGKILL)")  # PR_SET_PDEATHSIG
        kubectl = stand_in("leaving", 'case "$*" in *watch=1*|*--raw*) setsid sleep 1.5 & '
                           "sleep 0.1; echo 'connection refused' >&2; exit 1;; esac")
        with Running(kubectl, program=program) as server:
            child = descendants(server.process.pid)[0]
            orphans: set[int] = set()

            def look() -> bool:
                with open(f"/proc/{child}/task/{child}/children", encoding="utf-8") as children:
                    for pid in map(int, children.read().split()):
                        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", "rb") as comm:
                            orphans.update({pid} if comm.read() == b"sleep\n" else ())
                return len(orphans) >= 4
            eventually(look, "kubectls leave orphans")
            time.sleep(5)
            self.assertEqual([pid for pid in orphans if os.path.exists(f"/proc/{pid}")], [])
            # Who reaps must not take kubectl's exit status away from who waits for it.
            self.assertEqual([line for line in server.lines("verb=watch") if "outcome=ok" in line], [])
            self.assertTrue(server.lines("outcome=unreachable"))


class Unread:
    """A server whose log goes into a small pipe, which is read at the start and then when told."""

    def __init__(self) -> None:
        store = path("key_store")
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "playground.py"), "--host=127.0.0.1", "--port=0",
             "--namespace=x", f"--ca_crt={store}/ca/ca.crt", f"--server_key={store}/server/server.key",
             f"--server_crt={store}/server/server.crt"], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "KUBECONFIG": path("dead.kubeconfig")})
        assert self.process.stderr
        self.stderr = self.process.stderr
        self.port = 0
        while not self.port:
            line = self.stderr.readline()
            assert line, "it ended"
            self.port = int((re.findall(r"event=start .*port=(\d+)", line) or "0")[0])

    def __enter__(self) -> Unread:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.stderr.close()

    def answers(self, count: int) -> int:
        """Send so many requests; return how many were answered before one was not, within 10 s."""
        plain = socket.create_connection(("127.0.0.1", self.port), 10)
        answered = 0
        with tls("alice").wrap_socket(plain, server_hostname="localhost") as connection, \
                contextlib.suppress(OSError):
            while answered < count:
                connection.sendall(STATUS * 50)
                answers = b""
                while answers.count(b'"version"') < 50:
                    data = connection.recv(65536)
                    if not data:
                        return answered
                    answers += data
                answered += 50
        return answered


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
        users, started = ["round-a", "round-b", "round-c"], time.monotonic()
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
            self.assertLessEqual(len(server.lines("verb=annotate")), 1 + (time.monotonic() - started) / 2)
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


class Watches(unittest.TestCase):
    def status(self, server: Running) -> Any:
        return server.call("alice", "status")[1]["cluster"]

    def test_watch_that_meets_what_no_api_server_says_is_told_by_status_and_goes_on(self) -> None:
        said, listed, deep = path("said"), path("listed"), b"[" * 100_000
        kubectl, _ = empty_cluster(
            "garbage", f"while sleep 0.2; do [ -e {said} ] && cat {said} && exec sleep 60; done",
            f"[ -e {listed} ] && cat {listed} && exit;")
        server = Running(kubectl)
        self.addCleanup(server.__exit__, AssertionError)  # Its log may hold tracebacks.
        eventually(lambda: self.status(server) == "ok", "the cluster is known")
        gone = b'{"type": "ERROR", "object": {"code": 410}}'
        for event, listing in (
                (deep, b""), (b'{"type": "ADDED", "object": 7}', b""), (b"\xff\xfe", b""), (gone, deep),
                (gone, b'{"metadata": {"resourceVersion": "8"}, "items": 7}'),
                (b'{"type": [], "object": {"metadata": {"resourceVersion": {}, "name": 1}}}', b"null")):
            for name, content in ((listed, listing), (said, event)):
                if content:
                    with open(name, "wb") as file:
                        file.write(content + b"\n")
            eventually(lambda: self.status(server) != "ok", f"status tells: {event[:60]!r}, {listing[:9]!r}")
            os.remove(said)
            with contextlib.suppress(FileNotFoundError):
                os.remove(listed)
            eventually(lambda: self.status(server) == "ok", "it goes on")
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(PATIENCE_SECONDS), 0)

    def test_watch_that_was_cut_resumes_and_does_not_list_anew(self) -> None:
        bookmark = '{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "42"}}}'
        for number, words in enumerate((
                "unexpected EOF", "http2: client connection lost",
                "http2: server sent GOAWAY and closed the connection; LastStreamID=1, ErrCode=NO_ERROR")):
            kubectl, asked = empty_cluster(
                f"cut-{number}", f"echo '{bookmark}'; sleep 0.5; echo 'error: {words}' >&2; exit 1")
            with self.subTest(words), Running(kubectl) as server:
                eventually(lambda server=server: self.status(server) == "ok", "the cluster is known")
                while sum("watch=1" in line for line in asked()) < 9:
                    self.assertEqual(self.status(server), "ok")
                requests = [line.partition("--raw ")[2] for line in asked() if "--raw" in line]
                lists = [request for request in requests if "watch=1" not in request]
                self.assertEqual(len(lists), len(set(lists)), lists)
                resumed = [request for request in requests if "resourceVersion=42&" in request + "&"]
                self.assertGreaterEqual(len(resumed), 6)

    @unittest.skipUnless(KUBECONFIG, "PLAYGROUND_TEST_KUBECONFIG is not set")
    def test_watch_whose_connection_was_really_cut_resumes_and_does_not_list_anew(self) -> None:
        with Cuttable() as proxy, Running(kubeconfig=proxy.kubeconfig).known() as server:
            def listed() -> list[str]:
                return [line for line in server.lines("event=kubectl verb=get") if "outcome=ok" in line]
            time.sleep(1)
            before, watches = listed(), len(proxy.open)
            for _ in range(3):
                proxy.cut()
                self.assertEqual(self.status(server), "ok")
                eventually(lambda: len(proxy.open) == watches, "the watches run again")
                time.sleep(0.5)
            self.assertEqual((listed(), self.status(server)), (before, "ok"))
            self.assertGreaterEqual(len(server.lines("event=kubectl verb=watch")), 3 * watches)
            self.assertEqual(server.call("alice", "create_db", "cut")[0], 200)
            server.call("alice", "delete_db", "cut")

    def test_lists_come_in_pages(self) -> None:
        page = '{"kind": "List", "metadata": {"resourceVersion": "6", "continue": "TOKEN"}, "items": []}'
        kubectl, asked = empty_cluster(
            "pages", "sleep 60", f"case \"$*\" in *continue=TOKEN*);; *) echo '{page}'; exit;; esac;")
        with Running(kubectl) as server:
            eventually(lambda: self.status(server) == "ok", "the cluster is known")
            eventually(lambda: any("watch=1" in line for line in asked()), "it watches")
        lists = [line for line in asked() if "--raw" in line and "watch=1" not in line]
        self.assertEqual([line for line in lists if "limit=500" not in line], [])
        first = [line for line in lists if "continue=" not in line]
        self.assertEqual((len(lists), len(set(first))), (2 * len(first), len(first)), lists)


class Cuttable:
    """A way to the cluster whose connections can be cut."""

    def __init__(self) -> None:
        with open(KUBECONFIG, encoding="utf-8") as file:
            config = yaml.safe_load(file)
        cluster = config["clusters"][0]["cluster"]
        self.target = urllib.parse.urlsplit(cluster["server"])
        self.listener = socket.create_server(("127.0.0.1", 0))
        cluster["server"] = f"{self.target.scheme}://127.0.0.1:{self.listener.getsockname()[1]}"
        self.kubeconfig = path("cuttable.kubeconfig")
        with open(self.kubeconfig, "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)
        self.open: set[socket.socket] = set()  # Our ends towards kubectl.
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def __enter__(self) -> Cuttable:
        return self

    def __exit__(self, *_: Any) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.threads[0].join()
        self.listener.close()
        self.cut()
        for thread in self.threads:
            thread.join()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self.listener.accept()[0]
                self.open.add(near)
                self.threads.append(threading.Thread(target=self.carry, args=(near,)))
                self.threads[-1].start()

    def carry(self, near: socket.socket) -> None:
        """Carry bytes both ways until either end has ended."""
        with near, contextlib.suppress(OSError), \
                socket.create_connection((self.target.hostname or "", self.target.port or 443)) as far:
            while near in self.open:
                for one in select.select([near, far], [], [])[0]:
                    data = one.recv(65536)
                    (far if one is near else near).sendall(data)
                    if not data:
                        self.open.discard(near)
        self.open.discard(near)

    def cut(self) -> None:
        for connection in (those := set(self.open)):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        eventually(lambda: not those & self.open, "they have been cut")


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
