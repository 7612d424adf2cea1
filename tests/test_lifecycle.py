"""Tests of heart beats, sweeps, replicas, the server's end, and what the cluster refuses or fails to do."""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import unittest
import unittest.mock
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml

import playground
from tests import harness
from tests.harness import (
    DATA_SOURCE,
    KUBECONFIG,
    KUBECTL,
    PATIENCE_SECONDS,
    REAL,
    ROOT,
    STATUS,
    Holding,
    Running,
    altered,
    change_pod,
    create_by_hand,
    database_of,
    delete_by_hand,
    descendants,
    empty_cluster,
    eventually,
    is_answered,
    kill,
    kubectl,
    last_beats,
    lease_of,
    make_leases,
    make_namespace,
    objects_of,
    our_ca,
    password_of,
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
            while written + dropped < 15_000:
                line = server.stderr.readline()
                written += len(re.findall(r"event=request .*api=status", line))
                dropped = int((re.findall(r"event=log dropped=(\d+)", line) or [dropped])[0])
            self.assertGreater(dropped, 0)  # Else nothing has been bounded.
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

    # Ends what was not heard of for 3 s; writes beats every 0.5 s.
    HASTY = ("--idle_timeout=2", "--sweep_interval=0.5", "--spare_databases=0")
    WRITING = ("--idle_timeout=60", "--sweep_interval=0.5", "--spare_databases=0")  # Every 1.2 s.

    def setUp(self) -> None:
        harness.use_another_namespace(self)

    def quiet(self, server: Running) -> None:
        for line in server.log().splitlines():
            self.assertNotRegex(line, "level=(WARNING|ERROR)")

    def beat(self, server: Running, *user_ids: str) -> None:
        """Beat for many users at once: a few are in one round for sure."""
        with server.connect() as connection:
            connection.sendall(b"".join(b"GET /api/heart_beat?user_id=%s HTTP/1.1\r\nHost: x\r\n\r\n"
                                        % user_id.encode() for user_id in user_ids))
            answers = b""
            while answers.count(b"HTTP/1.1 200") < len(user_ids):
                answers += connection.recv(65536) or self.fail(f"not all were answered: {answers!r}")

    @contextlib.contextmanager
    def beating(self, server: Running, *user_ids: str) -> Iterator[None]:
        """Beat for users twice a second."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(0.5):
                self.beat(server, *user_ids)
        with ThreadPoolExecutor(1) as pool:
            beats = pool.submit(beat)
            try:
                yield
            finally:
                done.set()
            beats.result()

    def test_beats_of_a_round_are_written_by_one_kubectl_and_a_lease_that_has_gone_fails_alone(self) -> None:
        users = ["round-a", "round-b", "round-c"]
        make_leases(*users)
        with Running(*self.WRITING).known() as server:
            blinded = server.blind("leases")
            delete_by_hand("lease/user-round-b")
            before = last_beats()
            self.beat(server, *users)
            eventually(lambda: last_beats()["round-a"] > before["round-a"], "the beats are in the cluster")
            self.assertEqual(last_beats()["round-c"], last_beats()["round-a"])
            self.assertEqual([line for line in server.lines("verb=patch") if "NotFound" not in line], [])
            kill([blinded])

    def slow_beats(self, name: str, command: str) -> tuple[str, Callable[[], list[int]]]:
        """Make a kubectl that runs a command before it writes beats, $count of them.

        Return its option, and what tells how many beats each was to write.
        """
        asked = path(f"{name}.asked")
        with open(asked, "w", encoding="utf-8"):
            option = stand_in(name, f"""case "$*" in *" patch "*) given=$(mktemp); cat >$given
  count=$(grep -o '"user-' $given | wc -l); echo $count >>{asked}
  {command}; exec {shutil.which(KUBECTL)} "$@" <$given;; esac""")

        def told() -> list[int]:
            with open(asked, encoding="utf-8") as file:
                return [int(line) for line in file]
        return option, told

    def test_group_of_beats_that_was_killed_is_smaller_the_next_time_and_the_oldest_go_first(self) -> None:
        users = [f"slow-{number}" for number in range(30)]
        make_leases(*users)
        program = altered("playground.Kubectl.__call__.__kwdefaults__['seconds'] = 3")
        option, told = self.slow_beats("slow", "[ $count -lt 12 ] || exec sleep 60")
        with Running(*self.WRITING, option, program=program).known() as server:
            before = last_beats()
            self.beat(server, *users)
            eventually(lambda: all(last_beats()[user] > before[user] for user in users), "all are written")
            killed = itertools.dropwhile(lambda size: size < 12, told())  # A round may have come early.
            first, *others = dict.fromkeys(killed)
            halves = dict.fromkeys((max(first // 2, 10), max(first // 4, 10)))
            self.assertEqual(others[:len(halves)], list(halves))

    def test_active_user_is_not_swept_while_beats_cannot_be_written_and_idle_ones_are_afterwards(
        self) -> None:
        make_leases("unwritten", "unheard-of")
        failing = path("failing")
        option = stand_in("refusing", f'case "$*" in *" patch "*) [ -e {failing} ] && '
                          'echo "Error from server (InternalError): no" >&2 && exit 1;; esac')
        with open(failing, "w", encoding="utf-8"), Running(*self.HASTY, option).known() as server, \
                self.beating(server, "unwritten"):
            eventually(lambda: len(server.lines("verb=patch")) > 8, "beats fail for longer than the timeout")
            self.assertTrue(lease_of("unwritten") and lease_of("unheard-of"))
            os.remove(failing)
            eventually(lambda: not lease_of("unheard-of"), "the idle one is swept")
            self.assertTrue(lease_of("unwritten"))

    def test_sigterm_writes_150_pending_beats_at_a_tenth_of_a_second_each(self) -> None:
        users = [f"pending-{number}" for number in range(150)]
        make_leases(*users)
        option, _ = self.slow_beats("last", "sleep $((count / 15))")
        with Running("--sweep_interval=3600", option).known() as server:
            before = last_beats()
            self.beat(server, *users)
        after = last_beats()
        self.assertEqual([user for user in users if after[user] <= before[user]], [])

    def test_sigterm_in_the_middle_of_a_round_loses_no_beat(self) -> None:
        users = [f"midway-{number}" for number in range(20)]
        make_leases(*users)
        option, told = self.slow_beats("midway", "sleep 1")
        with Running(*self.WRITING, option).known() as server:
            before = last_beats()
            self.beat(server, *users)
            eventually(lambda: sum(told()) == 20, "the last of them are being written")
            self.beat(server, *users[:10])
        self.assertEqual(sum(told()), 30)
        after = last_beats()
        self.assertEqual([user for user in users if after[user] <= before[user]], [])
        self.assertLess(after[users[-1]], after[users[0]])

    def test_beats_before_the_cluster_is_known_are_held_for_their_owner(self) -> None:
        make_leases("early", "not-bobs")
        shutil.copy(path("dead.kubeconfig"), path("early.kubeconfig"))
        with Running(*self.WRITING, kubeconfig=path("early.kubeconfig")) as server:
            self.assertEqual(server.call("bob", "heart_beat", "not-bobs")[1]["status"], "unknown")
            self.assertEqual(server.call("alice", "heart_beat", "early")[1]["status"], "unknown")
            before = last_beats()
            shutil.copy(KUBECONFIG, path("early.new"))
            os.replace(path("early.new"), path("early.kubeconfig"))
            eventually(lambda: last_beats()["early"] > before["early"], "the beat that was held is written")
            self.assertEqual(last_beats()["not-bobs"], before["not-bobs"])

    def test_idle_database_is_deleted_and_logged_while_an_active_one_stays(self) -> None:
        with Running(*self.HASTY).known() as server, self.beating(server, "active"):
            self.assertEqual({status for status, _ in server.create_at_once(["idle", "active"])}, {200})
            eventually(lambda: not objects_of("idle"), "it is swept")
            time.sleep(3)
            self.assertEqual(len(objects_of("active")), 3)
            self.assertRegex(server.lines("sweep user=idle")[0], r"client=alice last_beat=\d{4}-\d\d-\d\dT")
            self.quiet(server)

    def test_timeout_of_0_never_deletes_and_a_new_server_does_not_count_what_was_before_it(self) -> None:
        make_leases("eternal")
        with Running("--idle_timeout=0", "--sweep_interval=0.2").known():
            time.sleep(2)
        with Running("--idle_timeout=60", "--sweep_interval=0.2").known():
            time.sleep(2)
        self.assertTrue(lease_of("eternal"))

    def test_servers_agree_on_what_is_there_who_is_active_and_what_is_swept(self) -> None:
        with Running(*self.HASTY).known() as one, Running(*self.HASTY).known() as other, \
                self.beating(one, "both"):
            with ThreadPoolExecutor(2) as pool:
                both = [pool.submit(server.call, "alice", "create_db", "both") for server in (one, other)]
            self.assertEqual(*(future.result()[1]["data_source"] for future in both))
            self.assertEqual({status for status, _ in one.create_at_once(["gone", "left"])}, {200})
            one.call("alice", "delete_db", "gone")
            eventually(lambda: other.call("alice", "heart_beat", "gone")[1]["status"] == "absent",
                       "the other knows")
            eventually(lambda: not objects_of("left"), "one of them swept it")
            self.assertEqual(len(objects_of("both")), 3)
            self.quiet(one)
            self.quiet(other)

    @staticmethod
    def holding(user_id: str) -> Holding:
        """Return a kubectl that waits before it deletes the user's lease."""
        return Holding(f"holding-{user_id}", f"*' delete '*'/leases/user-{user_id} '*")

    def test_beat_that_is_written_while_another_server_sweeps_saves_the_database(self) -> None:
        make_leases("saved")
        deleting = self.holding("saved")
        with Running(*self.WRITING).known() as other, \
                Running(*self.HASTY, deleting.option).known() as hasty:
            deleting.wait()
            before = last_beats()["saved"]
            self.beat(other, "saved")
            eventually(lambda: last_beats()["saved"] > before, "the beat is written")
            deleting.let_go()
            eventually(lambda: hasty.lines("outcome=conflict"), "the API server refuses")
            self.assertTrue(lease_of("saved"))

    def test_user_who_returns_on_one_server_while_another_one_sweeps_keeps_the_database_that_is_answered(
        self) -> None:
        deleting = self.holding("back")
        with Running("--idle_timeout=1", "--sweep_interval=3600").known() as other:
            first = other.call("alice", "create_db", "back")[1]["data_source"]
            with Running(*self.HASTY, deleting.option).known() as hasty:
                deleting.wait()
                self.assertEqual(other.call("alice", "create_db", "back")[1]["data_source"], first)
                deleting.let_go()
                eventually(lambda: hasty.lines("kubectl verb=delete"), "it has deleted or not")
                self.assertTrue(hasty.lines("outcome=conflict"), hasty.log())

    def test_user_who_returns_while_being_swept_gets_a_whole_database(self) -> None:
        deleting = self.holding("returned")
        with Running(*self.HASTY, deleting.option).known() as server:
            server.call("alice", "create_db", "returned")
            deleting.wait()
            with ThreadPoolExecutor(1) as pool:
                returned = pool.submit(server.call, "alice", "create_db", "returned")
                time.sleep(0.5)
                deleting.let_go()
                status, answer, _ = returned.result()
            self.assertEqual(status, 200, answer)
            self.assertIn(f":{password_of(database_of('returned'))}@", answer["data_source"])
            eventually(lambda: len(objects_of("returned")) == 3, "it is whole, and alone")

    def test_late_deletes_take_nothing_of_the_users_next_database(self) -> None:
        for user, deleting in (("late-lease", self.holding("late-lease")),
                               ("late-database", Holding("holding-late", "*' delete '*' -l '*"))):
            with self.subTest(user), Running("--spare_databases=0").known() as other, \
                    Running("--spare_databases=0", deleting.option).known() as late:
                first = other.call("alice", "create_db", user)[1]["data_source"]
                with late.begin("delete_db", user):  # Whose client hangs up.
                    deleting.wait()
                self.assertEqual(other.call("alice", "delete_db", user)[0], 200)
                second = other.call("alice", "create_db", user)[1]["data_source"]
                self.assertNotEqual(second, first)
                deleting.let_go()
                eventually(lambda late=late: late.lines("verb=delete"), "it has deleted what it could")
                time.sleep(1)
                for server in (late, other):
                    self.assertEqual(server.call("alice", "create_db", user)[1]["data_source"], second)
                eventually(lambda user=user: len(objects_of(user)) == 3, "it is whole, and alone")

    def test_table_that_is_late_sweeps_nobody_who_is_active(self) -> None:
        make_leases("unheard")
        with Running(*self.WRITING).known() as other, Running(*self.HASTY).known() as late:
            blinded = late.blind("leases")
            with self.beating(other, "unheard"):
                time.sleep(6)
                self.assertTrue(lease_of("unheard"))
            kill([blinded])

    def test_clocks_that_are_apart_or_step_neither_end_an_active_user_nor_keep_an_idle_one(self) -> None:
        offsets = [path("offset-a"), path("offset-b")]

        def step(*seconds: int) -> None:
            for name, number in zip(offsets, seconds):
                with open(name, "w", encoding="utf-8") as file:
                    file.write(str(number))
        step(-600, 60)
        with Running(*self.HASTY, program=stepping(offsets[0])).known() as one, \
                Running(*self.HASTY, program=stepping(offsets[1])).known() as other, \
                self.beating(one, "steady"):
            for number, seconds in enumerate(((-600, 60), (3600, 0), (-7 * 3600, 60))):
                step(*seconds)
                silent = f"silent-{number}"
                self.assertEqual({status for status, _ in other.create_at_once(["steady", silent])}, {200})
                eventually(lambda silent=silent: not objects_of(silent), "the silent one is swept")
                self.assertEqual(len(objects_of("steady")), 3)
                self.assertNotIn("note", one.call("alice", "create_db", "steady")[1])

    def gets_in(self, server: Running) -> bool:
        with contextlib.suppress(OSError), server.connect() as connection:
            return is_answered(connection)
        return False

    def test_pause_of_the_process_for_longer_than_the_timeout_ends_nobody(self) -> None:
        make_leases("asleep")
        with Running("--idle_timeout=5", "--sweep_interval=0.3").known() as server:
            self.beat(server, "asleep")
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(7)
            server.process.send_signal(signal.SIGCONT)
            time.sleep(3)
            self.assertTrue(lease_of("asleep"))
            eventually(lambda: not lease_of("asleep"), "it is swept in the end")

    def test_while_a_revocation_list_has_ended_nobody_is_swept_and_idle_times_start_anew_afterwards(
        self) -> None:
        authority, crl = our_ca(), path("ending.crl")
        make_leases("shut-out")
        authority.list_for(90 * 86400, crl)
        with Running("--idle_timeout=5", "--sweep_interval=0.3", f"--crl={crl}").known() as server:
            authority.list_for(5, crl)
            with contextlib.suppress(AssertionError, OSError):
                while True:  # Until nobody gets in.
                    self.beat(server, "shut-out")
                    time.sleep(0.5)
            eventually(lambda: server.lines("nobody gets in after its end"), "it has ended")
            time.sleep(7)
            self.assertTrue(lease_of("shut-out"))
            authority.list_for(90 * 86400, crl)
            eventually(lambda: self.gets_in(server), "it is taken up")
            time.sleep(2)
            self.assertTrue(lease_of("shut-out"))
            eventually(lambda: not lease_of("shut-out"), "it is swept in the end")

    @unittest.skipUnless(REAL, "needs finalizers, which devcluster does not know")
    def test_pod_that_is_stuck_in_its_end_is_replaced_by_another_database(self) -> None:
        with Running("--spare_databases=0").known() as server:
            first = server.call("alice", "create_db", "stuck")[1]["data_source"]
            pod = database_of("stuck")
            kubectl("patch", "pod", pod, "-p", '{"metadata": {"finalizers": ["playground.test/stuck"]}}')
            delete_by_hand(f"pod/{pod}")
            eventually(lambda: server.call("alice", "heart_beat", "stuck")[1]["status"] == "absent",
                       "it is known")
            status, answer, _ = server.call("alice", "create_db", "stuck")
            kubectl("patch", "pod", pod, "-p", '{"metadata": {"finalizers": null}}')
            self.assertEqual((status, answer.get("note")), (200, playground.LOST), answer)
            self.assertNotEqual(answer["data_source"], first)

    def test_namespace_that_goes_is_named_and_one_that_comes_back_is_used(self) -> None:
        name = f"{harness.namespace}-going"
        make_namespace(name)
        with Running(f"--namespace={name}", "--spare_databases=0").known() as server:
            self.assertEqual(server.call("alice", "create_db", "there")[0], 200)
            kubectl("delete", "namespace", name)
            eventually(lambda: server.call("alice", "heart_beat", "there")[1]["status"] == "absent",
                       "its objects are known to have gone")
            status, answer, _ = server.call("alice", "create_db", "there")
            self.assertEqual((status, "namespace" in answer["error"]), (502, True), answer)
            make_namespace(name)  # Its ServiceAccount comes a moment later.
            self.assertEqual(server.call("alice", "create_db", "there")[0], 200)

    def test_server_killed_at_any_moment_of_a_create_leaves_nothing_that_the_next_create_does_not_complete(
        self) -> None:
        program = altered("playground.HALF_MADE_SECONDS = playground.HALF_A_SPARE_SECONDS = "
                          "playground.YOUNG_SECONDS = 1")
        options = ("--idle_timeout=0", "--sweep_interval=1", "--spare_databases=0")
        for attempt in range(2):
            users = [f"half-{attempt}-{number}" for number in range(12)]
            with Running(f"--spare_databases={6 * attempt}").known() as victim, \
                    contextlib.ExitStack() as stack:
                # Before the other one is here: that one would remove them, since it wants none.
                eventually(lambda victim=victim, count=6 * attempt: victim.call(
                    "alice", "status")[1]["spares_ready"] >= count, "spares are ready")
                survivor = stack.enter_context(Running(*options, program=program).known())
                for user in users:  # Each is at another moment of its creation when the server is killed.
                    stack.enter_context(victim.begin("create_db", user))
                    time.sleep(0.05 + 0.05 * attempt)
                victim.process.kill()
                victim.process.wait()
                answers = survivor.create_at_once(users)
                self.assertEqual({status for status, _ in answers}, {200}, answers)
                self.assertEqual(len({answer["data_source"] for _, answer in answers}), 12)
                for user, (_, answer) in zip(users, answers):
                    self.assertIn(f":{password_of(database_of(user))}@", answer["data_source"])
                for kind, label in (("lease", playground.USER), ("secret,pod", playground.DATABASE)):
                    count = 12 * (attempt + 1) * len(kind.split(","))
                    eventually(lambda kind=kind, label=label, count=count: len(kubectl(
                        "get", kind, "-l", label, "-o", "name").split()) == count, "nothing else is left")

    def test_what_is_nobodys_is_swept_and_a_spare_only_once_it_was_half_made_for_long(self) -> None:
        template = playground.Template(os.path.join(ROOT, "k8s_templates", "mysql.yaml"))

        def make(name: str, slug: str, *kinds: str) -> None:
            create_by_hand(*(item for item in template.objects_of(name, "0" * 32, slug)
                             if item["kind"] in kinds))
        make("unclaimed", "gone-with-its-lease", "Secret", "Pod")
        make("podless", "", "Secret")
        make("secretless", "", "Pod")
        make("whole", "", "Secret", "Pod")
        program = altered("playground.HALF_A_SPARE_SECONDS = 4")
        with Running("--sweep_interval=0.5", program=program).known():
            started = time.monotonic()

            def left() -> set[str]:
                return set(kubectl("get", "secret,pod", "-l", playground.DATABASE, "-o",
                                   "jsonpath={.items[*].metadata.name}").split())
            eventually(lambda: "mysql-unclaimed" not in left(), "what a user had is destroyed at once")
            if time.monotonic() < started + 3:
                self.assertLessEqual({"mysql-podless", "mysql-secretless"}, left())
            eventually(lambda: not {"mysql-podless", "mysql-secretless"} & left(), "halves go later")
            self.assertIn("mysql-whole", left())

    def test_what_120_users_have_left_is_swept_within_some_rounds(self) -> None:
        create_by_hand(*({"apiVersion": "v1", "kind": "Secret", "metadata": {
            "name": f"mysql-left{number}", "labels": {
                **playground.OURS, playground.DATABASE: f"left{number}", playground.USER: f"gone-{number}"}}}
            for number in range(120)))
        with Running("--sweep_interval=0.5", "--spare_databases=0").known():
            eventually(lambda: "mysql-left" not in kubectl("get", "secret", "-o", "name"), "all is swept")

    @unittest.skipUnless(REAL, "needs admission webhooks, which devcluster does not know")
    def test_delete_that_a_webhook_refuses_fails_only_its_user(self) -> None:
        users = [f"guarded-{number}" for number in range(5)]
        with Running("--spare_databases=0").known() as server:
            self.assertEqual({status for status, _ in server.create_at_once(users)}, {200})
            guarded = database_of(users[2])
            with Webhook("DELETE", "pods", lambda request: request["name"] != guarded):
                answers = server.call_at_once("delete_db", users)
                self.assertEqual([status for status, _ in answers], [200, 200, 502, 200, 200], answers)
            self.assertEqual(server.call("alice", "delete_db", users[2])[0], 200)
            for user in users:
                eventually(lambda user=user: not objects_of(user), "all are deleted")

    @unittest.skipUnless(REAL, "needs admission webhooks, which devcluster does not know")
    def test_webhook_that_knows_no_dry_run_makes_the_template_no_wrong_one(self) -> None:
        with Webhook("CREATE", "pods", lambda request: True, version="v1beta1", side_effects="Some"), \
                Running("--spare_databases=0").known() as server:
            self.assertTrue(server.lines("does not support dry run"))
            self.assertEqual(server.call("alice", "create_db", "beside-a-webhook")[0], 200)

    def test_api_description_that_cannot_be_had_for_a_moment_stops_no_creation_and_blames_no_template(
        self) -> None:
        option = stand_in("undescribed", """case "$*" in *--dry-run*)
  echo 'error: error validating "STDIN": error validating data: the server is currently unable to' \\
    'handle the request; if you choose to ignore these errors, turn validation off with' \\
    '--validate=false' >&2; exit 1;; esac""")
        with Running("--spare_databases=0", option) as server:
            eventually(lambda: server.lines("event=template"), "the server has tried")
            status, answer, _ = server.call("alice", "create_db", "undescribed")
            self.assertEqual(status, 200, answer)
            self.assertNotIn("template", server.call("alice", "status")[1]["cluster"])

    @unittest.skipUnless(REAL, "devcluster shares its one thread with its node")
    def test_200_users_at_once_are_served_before_the_plug_in_gives_up_by_as_many_threads_as_ever(
        self) -> None:
        with Running("--spare_databases=0").known() as server:
            def threads() -> int:
                return len(os.listdir(f"/proc/{server.process.pid}/task"))
            before, most = threads(), [0]
            with ThreadPoolExecutor(1) as pool:
                answers = pool.submit(server.create_at_once, [f"crowd-{number}" for number in range(200)])
                while not answers.done():
                    most.append(threads())
                    time.sleep(0.05)
            self.assertEqual({status for status, _ in answers.result()}, {200})
            self.assertEqual(len({answer["data_source"] for _, answer in answers.result()}), 200)
            self.assertEqual(max(most), before)


@unittest.skipUnless(KUBECONFIG, "no cluster: PLAYGROUND_TEST_KUBECONFIG is not set")
class Persistent(unittest.TestCase):
    """Databases on volumes."""

    OPTIONS = ("--db_template=mysql-persistent.yaml", "--sweep_interval=0.5")

    def setUp(self) -> None:
        harness.use_another_namespace(self)

    def create(self, server: Running, user_id: str) -> str:
        """Return the password that is answered; the address may have moved."""
        status, answer, _ = server.call("alice", "create_db", user_id)
        self.assertEqual(status, 200, answer)
        self.assertNotEqual(answer.get("note"), playground.LOST)
        return DATA_SOURCE.sub(r"\3", answer["data_source"])

    def wait_for(self, server: Running, user_id: str, *statuses: str) -> None:
        eventually(lambda: server.call("alice", "heart_beat", user_id)[1]["status"] in statuses,
                   f"it is {statuses}")

    @staticmethod
    def objects(user_id: str, *kinds: str) -> list[str]:
        return [f"lease/user-{user_id}", *(f"{kind}/mysql-user-{user_id}" for kind in kinds)]

    WHOLE = ("persistentvolumeclaim", "pod", "secret", "service")
    KEPT = ("persistentvolumeclaim", "secret")

    def test_sweep_keeps_the_data_and_create_db_brings_it_back_with_its_password(self) -> None:
        with Running(*self.OPTIONS).known() as server:
            password = self.create(server, "keeper")
            self.assertEqual(objects_of("keeper"), self.objects("keeper", *self.WHOLE))
            service = json.loads(kubectl("get", "service", "mysql-user-keeper", "-o", "json"))
            self.assertIn(f"@tcp({service['spec']['clusterIP']}:3306)",
                          server.call("alice", "create_db", "keeper")[1]["data_source"])
        with Running(*self.OPTIONS, "--idle_timeout=2").known() as server:
            eventually(lambda: objects_of("keeper") == self.objects("keeper", *self.KEPT), "it is swept")
            self.assertIn(playground.KEPT, lease_of("keeper")["metadata"]["annotations"])
            [entry] = server.call("alice", "list_db")[1]["databases"]
            self.assertEqual(entry["status"], "kept")
            self.wait_for(server, "keeper", "absent")
            self.assertEqual(server.call("bob", "create_db", "keeper")[0], 403)
        with Running(*self.OPTIONS).known() as server:
            self.assertEqual(self.create(server, "keeper"), password)
            self.assertEqual(objects_of("keeper"), self.objects("keeper", *self.WHOLE))
            self.assertNotIn(playground.KEPT, lease_of("keeper")["metadata"].get("annotations"))
            self.assertEqual(server.call("alice", "delete_db", "keeper")[0], 200)
            eventually(lambda: not objects_of("keeper"), "all of it is deleted")
            self.assertNotEqual(self.create(server, "keeper"), password)

    def test_pod_that_has_gone_is_made_again_within_a_round_though_nobody_asks(self) -> None:
        with Running(*self.OPTIONS).known() as server:
            for user in ("drained", "evicted"):
                with self.subTest(user):
                    password, pod = self.create(server, user), f"mysql-user-{user}"
                    uid = ["get", "pod", pod, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}"]
                    before = kubectl(*uid)
                    if user == "drained":
                        delete_by_hand(f"pod/{pod}")
                    else:
                        change_pod(pod, phase="Failed", reason="Evicted")
                    eventually(lambda uid=uid, before=before: kubectl(*uid) not in ("", before),
                               "there is another Pod")
                    self.assertEqual(self.create(server, user), password)

    @unittest.skipUnless(REAL, "needs finalizers, which devcluster does not know")
    def test_pod_that_is_stuck_in_its_end_is_named_and_no_other_is_made_on_its_volume(self) -> None:
        with Running(*self.OPTIONS).known() as server:
            password, pod = self.create(server, "stuck"), "mysql-user-stuck"
            kubectl("patch", "pod", pod, "-p", '{"metadata": {"finalizers": ["playground.test/stuck"]}}')
            delete_by_hand(f"pod/{pod}")
            self.wait_for(server, "stuck", "starting", "absent")
            status, answer, headers = server.call("alice", "create_db", "stuck")
            self.assertEqual((status, "Terminating" in answer["error"], "retry-after" in headers),
                             (503, True, True), answer)
            kubectl("patch", "pod", pod, "-p", '{"metadata": {"finalizers": null}}')
            self.assertEqual(self.create(server, "stuck"), password)

    def test_lost_secret_is_put_back_from_memory_or_409_and_never_another_password(self) -> None:
        with Running(*self.OPTIONS).known() as server:
            password = self.create(server, "locked")
            delete_by_hand("secret/mysql-user-locked")
            self.wait_for(server, "locked", "starting", "absent")
            self.assertEqual(self.create(server, "locked"), password)
        delete_by_hand("secret/mysql-user-locked")
        with Running(*self.OPTIONS).known() as server:
            status, answer, _ = server.call("alice", "create_db", "locked")
            self.assertEqual((status, "delete_db gives the data up" in answer["error"]), (409, True), answer)
            time.sleep(1.5)  # Some rounds of the sweep.
            left = set(self.objects("locked", *self.WHOLE)) - {"secret/mysql-user-locked"}
            self.assertEqual(set(objects_of("locked")), left)
            self.assertEqual(server.call("alice", "delete_db", "locked")[0], 200)
            self.assertNotEqual(self.create(server, "locked"), password)

    def test_databases_stay_what_they_are_when_the_template_changes_and_changes_back(self) -> None:
        with Running("--spare_databases=0").known() as server:
            plain = self.create(server, "plain")
        with Running(*self.OPTIONS).known() as server:
            self.assertEqual(self.create(server, "plain"), plain)
            self.assertEqual(len(objects_of("plain")), 3)
            kept, deleted = self.create(server, "kept"), self.create(server, "deleted")
        with Running("--spare_databases=0", "--idle_timeout=4", "--sweep_interval=0.5").known() as server:
            self.assertEqual((self.create(server, "kept"), self.create(server, "deleted")), (kept, deleted))
            self.assertEqual(server.call("alice", "delete_db", "deleted")[0], 200)
            eventually(lambda: not objects_of("deleted"), "its volume is deleted with it")
            eventually(lambda: objects_of("kept") == self.objects("kept", *self.KEPT), "the other's is kept")
            eventually(lambda: not objects_of("plain"), "the one without a volume is swept as a whole")
            status, answer, _ = server.call("alice", "create_db", "kept")
            self.assertEqual((status, "mysql-persistent.yaml" in answer["error"]), (409, True), answer)
        with Running(*self.OPTIONS).known() as server:
            self.assertEqual(self.create(server, "kept"), kept)


class Webhook:
    """An admission webhook of this namespace (Kubernetes API, ValidatingWebhookConfiguration)."""

    def __init__(self, operation: str, resource: str, allows: Callable[[Any], bool], version: str = "v1",
                 side_effects: str = "None") -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
                answer = json.dumps({
                    "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                    "response": {"uid": request["uid"], "allowed": allows(request)}}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path("key_store/server/server.crt"), path("key_store/server/server.key"))
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever)
        with open(path("key_store/ca/ca.crt"), "rb") as file:
            ca = base64.b64encode(file.read()).decode()
        self.manifest = {
            "apiVersion": f"admissionregistration.k8s.io/{version}", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": harness.namespace}, "webhooks": [{
                "name": "webhook.playground.test", "admissionReviewVersions": ["v1"],
                "sideEffects": side_effects,
                "namespaceSelector": {"matchLabels": {"webhook": harness.namespace}},
                "clientConfig": {"url": f"https://127.0.0.1:{self.server.server_port}/", "caBundle": ca},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": [operation],
                           "resources": [resource]}]}]}

    def __enter__(self) -> Webhook:
        self.thread.start()
        kubectl("label", "namespace", harness.namespace, f"webhook={harness.namespace}")
        kubectl("create", "-f", "-", stdin=json.dumps(self.manifest))
        time.sleep(2)  # The API server takes it up by its own watch, and gives it up so.
        return self

    def __exit__(self, *_: Any) -> None:
        kubectl("label", "namespace", harness.namespace, "webhook-")
        kubectl("delete", "validatingwebhookconfiguration", harness.namespace)
        time.sleep(2)
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Watches(unittest.TestCase):
    def status(self, server: Running) -> Any:
        return server.call("alice", "status")[1]["cluster"]

    def test_watch_that_meets_what_no_api_server_says_is_told_by_status_and_goes_on(self) -> None:
        said, listed, deep = path("garbage.said"), path("garbage.listed"), b"[" * 100_000
        kubectl, _ = empty_cluster(
            "garbage", f"while sleep 0.2; do [ -e {said} ] && cat {said} && exec sleep 60; "
            'case "$*" in *timeoutSeconds=1) exit 0;; esac; done',
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
            watches = 3  # Of Leases, Secrets and Pods; all else that is asked at the start has ended.
            eventually(lambda: len(proxy.open) == watches and server.lines("verb=create"), "they run")
            before = listed()
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
        kubectl("create", "quota", "full", "--hard=count/configmaps=0,count/secrets=9999")
        self.addCleanup(kubectl, "delete", "quota", "full")
        eventually(lambda: "9999" in kubectl("get", "quota", "full", "-o", "jsonpath={.status.hard}"),
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
            "WRONG  quota full: " + re.search("count/configmaps .*, count/secrets .* of 9999",
                                              said)[0]  # type: ignore[index]
            + ": nothing is left of count/configmaps; raise it, or delete databases"]))
        code, said = check(crl="/lost.crl", db_template="lost.yaml")
        wrong = re.findall("^WRONG  start: (.*)", said, re.M)
        self.assertEqual((code, [line.partition(" cannot be ")[0] for line in wrong]),
                         (1, ["--crl /lost.crl",
                              f"the template {os.path.join(ROOT, 'k8s_templates/lost.yaml')}"]))
        self.assertIn("ok     right to list pods", said)  # All the rest is tried all the same.

    def test_pod_that_never_gets_ready_is_503_with_the_reason_in_time(self) -> None:
        def never_ready(item: Any) -> None:
            item["spec"]["containers"][0]["image"] = "never-ready"
        with Running(*template("never.yaml", Pod=never_ready), "--spare_databases=0").known() as server:
            started = time.monotonic()
            with ThreadPoolExecutor(5) as pool:
                answers = list(pool.map(lambda number: server.call("alice", "create_db", f"never-{number}"),
                                        range(5)))
            self.assertLess(time.monotonic() - started, 20)
            for status, answer, headers in answers:
                self.assertEqual((status, "ImagePullBackOff" in answer["error"], "retry-after" in headers),
                                 (503, True, True), answer)
            gets = server.lines("kubectl verb=get")  # Of the start; the watches tell why.
            self.assertEqual([line for line in gets if "list " not in line and "quota" not in line], [])
            self.assertEqual(server.call("alice", "heart_beat", "never-0")[1]["status"], "starting")

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
            item["spec"]["containers"][0]["resuorces"] = {}
        with Running(*template("misspelt.yaml", Pod=misspell)) as server:
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
