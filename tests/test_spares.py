"""Tests of spares: databases that run without a user, and what they give way to."""

from __future__ import annotations

import json
import re
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from tests import harness
from tests.harness import (
    KUBECONFIG,
    REAL,
    Running,
    altered,
    change_pod,
    database_of,
    delete_by_hand,
    eventually,
    kill,
    kubectl,
    objects_of,
    path,
    refused,
    spares,
    template,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down


def never_ready(pod: Any) -> None:
    pod["spec"]["containers"][0]["image"] = "never-ready"


@unittest.skipUnless(KUBECONFIG, "no cluster: PLAYGROUND_TEST_KUBECONFIG is not set")
class Spares(unittest.TestCase):
    def setUp(self) -> None:
        harness.use_another_namespace(self)

    def wait_for_spares(self, server: Running, count: int) -> list[str]:
        eventually(lambda: self.ready(server) == count == len(spares()), f"{count} spares are ready")
        return spares()

    def ready(self, server: Running) -> int:
        return int(server.call("alice", "status")[1]["spares_ready"])

    def create(self, server: Running, user_id: str) -> str:
        status, answer, _ = server.call("alice", "create_db", user_id)
        self.assertEqual((status, answer.get("note")), (200, None), answer)
        return str(answer["data_source"])

    def metrics(self, server: Running) -> str:
        return server.raw(b"GET /api/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").decode()

    def test_ready_spare_is_given_by_one_create_and_one_replace_and_another_takes_its_place(self) -> None:
        with Running().known() as server:
            [spare] = self.wait_for_spares(server, 1)
            self.assertIn('playground_databases{status="spare"} 1', self.metrics(server))
            address = json.loads(kubectl("get", "pod", spare, "-o", "json"))["status"]["podIP"]
            before = server.kubectls()
            self.assertIn(f"@tcp({address}:3306)", self.create(server, "first"))
            verbs = re.findall("event=kubectl verb=([a-z]+)", server.log())[before:]
            self.assertEqual(verbs, ["create", "replace"])
            self.assertEqual(database_of("first"), spare)
            self.assertEqual(objects_of("first"), ["lease/user-first", f"pod/{spare}", f"secret/{spare}"])
            self.assertNotEqual(self.wait_for_spares(server, 1), [spare])
            self.assertIn('playground_databases_given_total{from="spare"} 1', self.metrics(server))
            self.assertEqual(server.call("alice", "delete_db", "first")[0], 200)
            eventually(lambda: not kubectl("get", f"pod/{spare}", f"secret/{spare}", "--ignore-not-found"),
                       "what was given is destroyed, and never given again")

    def test_class_of_20_gets_the_ready_spares_first_and_each_user_another_database(self) -> None:
        with Running("--spare_databases=8").known() as server:
            ready = self.wait_for_spares(server, 8)
            answers = server.create_at_once([f"class-{number}" for number in range(20)])
            self.assertEqual({status for status, _ in answers}, {200})
            self.assertEqual(len({answer["data_source"] for _, answer in answers}), 20)
            self.assertLessEqual(set(ready), {database_of(f"class-{number}") for number in range(20)})
            self.assertIn('playground_databases_given_total{from="spare"} 8', self.metrics(server))

    def test_spare_that_is_starting_is_given_if_none_is_ready(self) -> None:
        with Running(*template("never.yaml", Pod=never_ready)).known() as server:
            eventually(lambda: len(spares()) == 1, "a spare is made")
            [spare] = spares()
            with server.begin("create_db", "hasty"):
                eventually(lambda: database_of("hasty") == spare, "it is given")
                server.process.kill()  # It would wait for the database to get ready.

    def test_spare_that_another_server_gave_meanwhile_is_given_to_nobody_else(self) -> None:
        with Running().known() as server, Running("--spare_databases=0").known() as late:
            [spare] = self.wait_for_spares(server, 1)
            eventually(lambda: self.ready(late) == 1, "it is seen")
            blinded = [late.blind("secrets"), late.blind("leases")]
            sources = {self.create(server, "one"), self.create(late, "another")}
            self.assertEqual((len(sources), database_of("one")), (2, spare))
            kill(blinded)
            for user in ("one", "another"):
                eventually(lambda user=user: len(objects_of(user)) == 3, "it is whole, and nothing is left")

    def test_two_servers_with_few_spares_give_each_user_another_database(self) -> None:
        with Running("--spare_databases=3").known() as one, Running("--spare_databases=3").known() as other:
            for server in (one, other):
                eventually(lambda server=server: self.ready(server) >= 3, "they are ready")
            with ThreadPoolExecutor(2) as pool:
                answers = [answer for half in pool.map(lambda server: server.create_at_once(
                    [f"{server.port}-{number}" for number in range(6)]), (one, other)) for answer in half]
            self.assertEqual({status for status, _ in answers}, {200})
            self.assertEqual(len({answer["data_source"] for _, answer in answers}), 12)

    def test_too_many_spares_are_trimmed_and_users_databases_are_not(self) -> None:
        with Running("--spare_databases=4").known() as server:
            self.wait_for_spares(server, 4)
            source = self.create(server, "somebody")
            self.wait_for_spares(server, 4)
        program = altered("playground.YOUNG_SECONDS = 1")
        with Running("--spare_databases=1", program=program).known() as server:
            self.wait_for_spares(server, 1)
            self.assertEqual(self.create(server, "somebody"), source)

    ANOTHER: ClassVar[dict[str, Any]] = {"Pod": lambda pod: pod["metadata"]["labels"].update(another="one")}

    def test_other_templates_spares_are_not_given_and_removed_after_a_while(self) -> None:
        with Running("--spare_databases=2").known() as server:
            others = self.wait_for_spares(server, 2)
        options = template("another.yaml", **self.ANOTHER)
        program = altered("playground.OTHERS_SECONDS = 5")
        with Running(*options, "--spare_databases=1", program=program).known() as server:
            self.create(server, "picky")
            self.assertNotIn(database_of("picky"), others)
            self.assertEqual(len(set(others) & set(spares())), 2)  # So far.
            eventually(lambda: not set(others) & set(spares()), "they are removed")
            self.wait_for_spares(server, 1)

    def test_spares_that_never_get_ready_are_removed_and_tried_again_later_one_at_a_time(self) -> None:
        program = altered("playground.SPARE_SECONDS = 3")
        options = (*template("never.yaml", Pod=never_ready), "--spare_databases=3")
        with Running(*options, program=program).known() as server:
            eventually(lambda: server.lines("event=spare"), "they have failed")
            eventually(lambda: not spares(), "they are removed")
            self.assertIn("ImagePullBackOff", server.call("alice", "status")[1]["spares_trouble"])
            # Three at once are one attempt.
            pauses = {line.rpartition("=")[2] for line in server.lines("event=spare")}
            self.assertEqual(pauses, {"60"})

    def test_spare_that_was_evicted_or_lost_its_pod_or_secret_is_given_to_nobody_and_removed(self) -> None:
        program = altered("playground.HALF_A_SPARE_SECONDS = 1")
        with Running("--spare_databases=3", "--sweep_interval=0.5", program=program).known() as server:
            evicted, podless, secretless = lost = self.wait_for_spares(server, 3)
            change_pod(evicted, phase="Failed", reason="Evicted")
            delete_by_hand(f"pod/{podless}", f"secret/{secretless}")
            eventually(lambda: not self.ready(server), "they are known to be none")
            self.create(server, "served")
            self.assertNotIn(database_of("served"), lost)
            eventually(lambda: not [name for name in lost if name in kubectl("get", "pod,secret")],
                       "they have gone")

    def limit_pods(self, count: int) -> None:
        """Set a quota, and wait until it counts."""
        kubectl("create", "quota", "full", f"--hard=pods={count}")
        eventually(lambda: kubectl("get", "quota", "full", "-o", "jsonpath={.status.used}"), "it counts")

    def test_user_refused_for_quota_is_429_and_leaves_nothing_that_counts(self) -> None:
        self.limit_pods(0)
        with Running("--spare_databases=0").known() as server:
            for _ in range(2):
                status, answer, headers = server.call("alice", "create_db", "too-many")
                self.assertEqual((status, "quota" in answer["error"], "retry-after" in headers),
                                 (429, True, True), answer)
                eventually(lambda: not objects_of("too-many"), "nothing is left")
            # Not again for the Retry-After.
            refused = [line for line in server.lines("outcome=quota") if "check the template" not in line]
            self.assertEqual(len(refused), 1)
            kubectl("delete", "quota", "full")
            self.create(server, "somebody-else")

    def test_users_come_before_spares_when_the_quota_is_used_up(self) -> None:
        self.limit_pods(2)
        with Running("--spare_databases=2").known() as server:
            old = self.wait_for_spares(server, 2)
        options = template("another.yaml", **self.ANOTHER)
        with Running(*options, "--spare_databases=1").known() as server:
            self.create(server, "urgent")
            self.assertNotIn(database_of("urgent"), old)
            eventually(lambda: len(spares()) == 1 and set(spares()) < set(old), "one spare made room")

    def test_spares_do_not_count_as_databases_that_are_limited(self) -> None:
        with Running("--spare_databases=2", "--max_databases=1").known() as server:
            self.wait_for_spares(server, 2)
            self.create(server, "only")
            self.assertEqual(server.call("alice", "create_db", "second")[0], 429)

    @unittest.skipUnless(REAL, "needs a scheduler's conditions")
    def test_database_that_no_node_has_room_for_makes_a_spare_go(self) -> None:
        with Running("--spare_databases=1").known() as server:
            [spare] = self.wait_for_spares(server, 1)
        options = template("another.yaml", Pod=never_ready)
        with Running(*options, "--spare_databases=0").known() as server, \
                server.begin("create_db", "homeless"):
            eventually(lambda: len(objects_of("homeless")) == 3, "it has a Pod")
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            change_pod(database_of("homeless"), conditions=[condition])
            eventually(lambda: spare not in spares(), "the spare makes room")
            server.process.kill()

    def test_spares_of_a_template_that_is_made_for_its_user_are_refused_at_the_start(self) -> None:
        self.assertIn("--spare_databases",
                      refused("--db_template=mysql-persistent.yaml", "--spare_databases=2"))
        options = template("named.yaml", Pod=lambda pod: pod["metadata"]["labels"].update(user="${slug}"))
        self.assertIn(path("named.yaml"), refused(*options, "--spare_databases=2"))
        with Running(*options).known():
            self.assertEqual(spares(), [])


if __name__ == "__main__":
    unittest.main(warnings="error")
