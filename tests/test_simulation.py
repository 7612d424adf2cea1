"""What must hold holds in thousands of stories, and code that breaks a rule is found out."""

from __future__ import annotations

import calendar
import os
import subprocess
import sys
import time
import unittest
from typing import Any

import playground
from playground import NOBODY, SELECTOR, USER, ApiServer, Database, Order, Spares, Sweep, User

STORIES, VOLUME_STORIES = 2000, 1000
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class MissingLeaseMeansFree(Spares):
    """Gives again what is a user's whose lease is not there."""

    def pick(self) -> Database | None:
        """Return a database without a lease."""
        cluster = self.cluster
        free = (one for one in cluster.databases.values() if one.id not in cluster.holders
                and one.takes_queries() and one.secret and one.secret.user not in ("", NOBODY))
        return next(free, super().pick())


class LeasesByLabel(ApiServer):
    """Deletes leases as kubectl does: lists them, and then deletes what has the name by then."""

    def delete_exactly(self, order: Order, kind: str, name: str, uid: str, version: int) -> None:
        """Delete a lease that may have been made anew meanwhile."""
        label = f"{SELECTOR},{USER} in ({name[len('user-'):]})"
        self.kubectl("delete", "leases", "-l", label, "--wait=false", "--ignore-not-found", "-o", "name",
                     reason="end a lease")


class LeasesBeforeSecrets(ApiServer):
    """Reads in the order in which they are written when it looks for garbage."""

    def find_garbage(self, suspects: dict[str, list[str]]) -> Any:
        """Read leases, and then Secrets."""
        before = self.read([("Secret", f"mysql-{id}") for id in suspects])  # To know of whom, no more.
        users = {*map(playground.user_of, before)}.union(*suspects.values()) - {"", NOBODY}
        leases = self.read([("Lease", f"user-{user}") for user in sorted(users)])
        named = {item["spec"]["holderIdentity"] for item in leases}
        names = [f"mysql-{id}" for id in suspects if f"mysql-{id}" not in named]
        items = {playground.key_of(item): item
                 for item in self.read([(kind, name) for kind in ("Secret", "Pod") for name in names])}
        secrets = {name: items.get(("Secret", name)) for name in names}
        return ([name[len("mysql-"):] for name, secret in secrets.items()
                 if not secret or playground.user_of(secret)],
                [secret for name, secret in secrets.items() if secret and not playground.user_of(secret)
                 and ("Pod", name) not in items])


class TrimsWithoutClaiming(Spares):
    """Deletes spares that somebody may have been given meanwhile."""

    def remove(self, database: Database) -> None:
        """Delete a spare by its label."""
        database.going = True
        self.cluster.destroy(database.id)


class IdleByWallClock(Sweep):
    """Takes the time that is written for the time that it was."""

    def is_idle(self, user: User) -> bool:
        """Compare this machine's clock with another's."""
        limit = self.cluster.settings.idle_timeout
        if not (limit and user.lease and not user.order):
            return False
        renewed = calendar.timegm(time.strptime(user.lease.renewed[:19], playground.SECONDS))
        return self.cluster.wall() - renewed > limit + 2 * self.spacing()


class LeaseBeforeVolume(ApiServer):
    """Deletes a lease before the volume that it names: then nobody knows that the volume is to go."""

    def carry_out(self, orders: list[Order]) -> None:
        """Delete a volume's lease first, and mark none."""
        for order in orders:
            if order.deletes and order.deletes[-1][0] == "Lease":
                order.replaces, order.deletes = [], [order.deletes[-1], *order.deletes[:-1]]
        super().carry_out(orders)


# With the seed of the story that finds it. A change of the server makes another story of each seed: then one
# of the next ones may be it.
MUTANTS: dict[str, tuple[type, int]] = {mutant.__name__: (mutant, seed) for mutant, seed in (
    (MissingLeaseMeansFree, 6), (LeasesByLabel, 894), (LeasesBeforeSecrets, 628),
    (TrimsWithoutClaiming, 52), (IdleByWallClock, 6), (LeaseBeforeVolume, 946))}


def simulate(*arguments: object) -> subprocess.Popen[str]:
    """Start a simulation, whose stories are the same each time."""
    command = [sys.executable, "-m", "tests.simulation", *map(str, arguments)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.Popen(command, cwd=PROJECT, env=environment, text=True, stdout=subprocess.PIPE)


class TestSimulation(unittest.TestCase):
    """What tests.simulation finds."""

    def test_what_must_hold_holds_in_thousands_of_stories(self) -> None:
        processors = os.cpu_count() or 1
        for stories, options in ((STORIES, ()), (VOLUME_STORIES, ("--volume",))):
            cuts = [stories * number // processors for number in range(processors + 1)]
            runs = [simulate(*options, "--seeds", first, last) for first, last in zip(cuts, cuts[1:])]
            told = [run.communicate()[0] for run in runs]
            for run, story in zip(runs, told):
                self.assertEqual(run.returncode, 0, story[-20_000:])

    def test_broken_rule_is_found(self) -> None:
        for name, (mutant, seed) in MUTANTS.items():
            options = ["--mutant", name, *(["--volume"] if mutant is LeaseBeforeVolume else [])]
            with self.subTest(name), simulate(*options, "--seeds", seed, seed + 1500) as run:
                told = run.communicate()[0].splitlines()
                self.assertEqual(run.returncode, 1, told[-1:])
                self.assertRegex(told[-1], r"^seed \d+: .* (loses|and is|is answered|is deleted) ")


if __name__ == "__main__":
    unittest.main()
