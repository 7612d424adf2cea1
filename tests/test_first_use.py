"""Tests of what stands in the way of a first start, and of what the log tells."""

from __future__ import annotations

import ast
import glob
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import unittest

import yaml

from tests import harness
from tests.harness import (
    KUBECONFIG,
    PATIENCE_SECONDS,
    ROOT,
    Running,
    altered,
    empty_cluster,
    eventually,
    path,
    read,
    refused,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down

DEFAULT = "--log_level=info"


def other_pythons() -> dict[tuple[int, ...], str]:
    """Return the Pythons of this machine that are of other versions than this one, by version."""
    names = [f"python3.{minor}" for minor in range(6, 20)]
    found: dict[tuple[int, ...], str] = {}
    for name in [*filter(None, map(shutil.which, names)),
                 *glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python3"))]:
        result = subprocess.run([name, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True)
        if not result.returncode:
            major, minor = map(int, result.stdout.split())
            found[major, minor] = name
    found.pop(sys.version_info[:2], None)
    return found


def refused_by_script(script: str, *arguments: str, **environment: str) -> str:
    """Start a script that must not start; return the line that it says."""
    result = subprocess.run([os.path.join(ROOT, "scripts", script), *arguments], capture_output=True,
                            text=True, timeout=PATIENCE_SECONDS, env={**os.environ, **environment})
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result
    return result.stderr


class Start(unittest.TestCase):
    """What keeps the server from starting is one line with the remedy, and exit status 2."""

    def test_python_that_is_too_old_is_told_so_even_by_what_it_cannot_parse(self) -> None:
        if sys.version_info >= (3, 10):  # 3.9 itself does not look at the version.
            with self.assertRaises(SyntaxError) as caught:
                ast.parse(read("playground.py"), feature_version=(3, 7))
            line = read("playground.py").splitlines()[(caught.exception.lineno or 0) - 1]
            self.assertIn("needs Python 3.9", line)
        result = subprocess.run(
            [sys.executable, "-c", "import runpy, sys; sys.version_info = (3, 8, 18, 'final', 0)\n"
             f"runpy.run_path({os.path.join(ROOT, 'playground.py')!r}, run_name='__main__')"],
            capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)
        self.assertIn("needs Python 3.9", result.stderr)
        for version, python in other_pythons().items():
            if version < (3, 9):
                with self.subTest(python):
                    said = subprocess.run([python, os.path.join(ROOT, "playground.py")], capture_output=True)
                    self.assertIn(b"needs Python 3.9", said.stderr)

    def test_server_runs_on_every_other_python_of_this_machine(self) -> None:
        modules = os.path.dirname(os.path.dirname(yaml.__file__))
        for version, python in other_pythons().items():
            if version >= (3, 9):
                with self.subTest(python):
                    result = subprocess.run(
                        [python, "-m", "unittest", "-q", "tests.test_table", "test_playground.Requests",
                         "test_playground.Names",
                         "test_playground.Wire.test_answers_are_json_and_say_nothing_of_the_server"],
                        cwd=ROOT,
                        env={**os.environ, "PYTHONPATH": modules, "PYTHONDONTWRITEBYTECODE": "yes"},
                        capture_output=True, text=True)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    self.assertRegex(result.stderr, r"Ran [3-9]\d tests")

    def test_python_without_pyyaml_is_told_how_to_get_it(self) -> None:
        result = subprocess.run(
            [sys.executable, "-c", "import runpy, sys; sys.modules['yaml'] = None\n"
             f"runpy.run_path({os.path.join(ROOT, 'playground.py')!r}, run_name='__main__')"],
            capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result.stderr)
        self.assertIn("pip install PyYAML", result.stderr)

    def test_what_is_wrong_with_a_port_or_a_flag_has_the_remedy_that_fits(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.assertIn("free --port", refused(f"--port={taken.getsockname()[1]}"))
        self.assertIn("see --help", refused("--prot=1"))
        low = "import socket\ndef bind(*_): raise PermissionError(13, 'Permission denied')\n" \
              "socket.socket.bind = bind"
        with self.assertRaisesRegex(AssertionError, "--port from 1024 on.*CAP_NET_BIND_SERVICE"):
            Running(program=altered(low))

    def test_check_whose_reader_goes_ends_without_a_word(self) -> None:
        check = subprocess.Popen([sys.executable, os.path.join(ROOT, "playground.py"), "--check"],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 env={**os.environ, "KUBECONFIG": path("dead.kubeconfig")})
        assert check.stdout and check.stderr
        check.stdout.close()
        self.assertEqual(check.stderr.read(), b"")
        check.stderr.close()
        check.wait(PATIENCE_SECONDS)

    def test_demo_whose_port_is_in_use_says_how_to_name_another(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            result = subprocess.run([os.path.join(ROOT, "scripts", "demo"), "--once"], capture_output=True,
                                    text=True, env={**os.environ, "PLAYGROUND_DEMO_PORT":
                                                    str(taken.getsockname()[1])})
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertIn("PLAYGROUND_DEMO_PORT=", result.stderr)

    def test_scripts_refuse_what_they_do_not_take_in_one_line(self) -> None:
        for script, *arguments in (["siege", "abc"], ["siege", "--bogus"], ["siege", "5", "6"], ["soak"],
                                   ["soak", "abc"], ["fuzz", "abc"], ["fuzz", "--bogus"],
                                   ["simulate", "abc"], ["simulate", "5", "6"], ["demo", "--bogus"]):
            with self.subTest(script, arguments=arguments):
                self.assertIn("takes", refused_by_script(script, *arguments))
        for port in ("abc", "0", "99999"):
            with self.subTest(port):
                self.assertIn("PLAYGROUND_DEMO_PORT", refused_by_script("demo", PLAYGROUND_DEMO_PORT=port))

    def test_half_of_a_virtual_environment_is_made_anew(self) -> None:
        scripts = path("half", "scripts")
        os.makedirs(scripts)
        shutil.copy(f"{ROOT}/scripts/environment", scripts)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", path("half", ".venv")], check=True)
        result = subprocess.run(["bash", "-c", f"source {scripts}/environment; python_packages pip"],
                                capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertTrue(os.path.exists(path("half", ".venv", "bin", "pip")))

    def test_installing_what_makes_virtual_environments_is_told(self) -> None:
        scripts, bin = path("told", "scripts"), path("told", "bin")
        for folder in (scripts, bin):
            os.makedirs(folder)
        shutil.copy(f"{ROOT}/scripts/environment", scripts)
        for name, script in (("python3", "exit 1"), ("apt-get", "exit 0"), ("id", "echo 0")):
            with open(os.path.join(bin, name), "w", encoding="utf-8") as file:
                file.write(f"#!/bin/sh\n{script}\n")
            os.chmod(file.name, 0o755)
        result = subprocess.run(["bash", "-c", f"source {scripts}/environment; python_packages pip"],
                                capture_output=True, text=True,
                                env={**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"})
        self.assertIn("installing python3-venv, which takes a moment", result.stdout)

    @unittest.skipUnless(sys.prefix == os.path.join(ROOT, ".venv"), "it is not scripts/test that runs this")
    def test_tests_leave_nothing_in_the_temporary_folder(self) -> None:
        folder = path("left")
        os.mkdir(folder)
        result = subprocess.run(
            [os.path.join(ROOT, "scripts", "test"), "--numprocesses=1", "-k", "slow_answers",
             "tests/test_devcluster.py"], capture_output=True, text=True,
            env={**os.environ, "TMPDIR": folder})
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEqual(os.listdir(folder), [])

    def test_package_that_cannot_be_had_is_left_out_by_name_and_leaves_no_folder(self) -> None:
        bin, temporary = path("apt-bin"), path("apt-tmp")
        for folder in (bin, temporary):
            os.mkdir(folder)
        with open(os.path.join(bin, "apt-get"), "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nexit 100\n")
        os.chmod(file.name, 0o755)
        result = subprocess.run(
            ["bash", "-c", f"source {ROOT}/scripts/environment; unpack a-package no-such-program; echo on"],
            capture_output=True, text=True,
            env={**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "TMPDIR": temporary})
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, "(?s)takes a moment.*no no-such-program to be had.*on\n$")
        self.assertEqual(os.listdir(temporary), [])


class Log(unittest.TestCase):
    """What the log tells, as it is by itself: at the level info."""

    def test_cluster_that_goes_and_is_back_is_a_line_each_and_an_idle_server_is_silent(self) -> None:
        gone = path("gone")
        fail = f"if [ -e {gone} ]; then echo 'Unable to connect to the server' >&2; exit 1; fi;"
        option, _ = empty_cluster("coming", f"{fail} sleep 0.2; exit", fail)
        with Running(option, DEFAULT, "--sweep_interval=0.5", "--spare_databases=0") as server:
            def lines(what: str) -> list[str]:
                return [line for line in server.lines(what) if "api=status" not in line]
            eventually(lambda: lines("event=ready"), "it is ready")
            (ready,) = lines("event=ready")
            self.assertIn(f"address=https://127.0.0.1:{server.port} databases=0 users=0", ready)
            idle = server.log()
            time.sleep(2)
            self.assertEqual(server.log(), idle)
            with open(gone, "w", encoding="utf-8"):
                pass
            eventually(lambda: lines("outcome=lost"), "it is lost")
            time.sleep(3)
            os.remove(gone)
            eventually(lambda: lines("outcome=back"), "it is back")
            said = server.log()[len(idle):].splitlines()
        self.assertEqual(len(said), 2, said)
        self.assertRegex(said[0], 'reason="the cluster does not answer.* remedy=".*--check.*Unable to')
        self.assertIn("remedy=", said[1])

    def test_request_that_failed_tells_why_in_its_own_line(self) -> None:
        with Running(DEFAULT, kubeconfig=path("dead.kubeconfig")) as server:
            server.call("alice", "nothing")
            server.call("alice", "status")
            self.assertEqual(server.call("alice", "create_db", "x")[0], 503)
            (unknown,), (answered,) = server.lines("status=404"), server.lines("api=status")
            self.assertIn(r'error="there is no \"/api/nothing\" here', unknown)
            self.assertNotIn("error=", answered)
            self.assertRegex(server.lines("api=create_db")[0], '=503 .*error="the cluster does not answer')

    def test_json_lines_have_the_same_fields_and_a_level_leaves_out_what_is_below(self) -> None:
        with Running(DEFAULT, kubeconfig=path("dead.kubeconfig")) as plain, \
                Running("--log_format=json", "--log_level=WARNING", kubeconfig=path("dead.kubeconfig"),
                        program=altered("import logging\n"
                                        "playground.log.info = playground.log.warning")) as server:
            for one in (plain, server):
                one.call("alice", "create_db", "x")
            (line,) = plain.lines("api=create_db")
            entries = [json.loads(text) for text in server.log().splitlines()]
        (entry,) = [entry for entry in entries if entry.get("api") == "create_db"]
        self.assertEqual(list(entry), re.findall(r'(?:^| )([a-z]+)=', re.sub('"[^"]*"', "", line)))
        self.assertEqual((entry["status"], entry["level"], type(entry["ms"])), (503, "WARNING", float))

    @unittest.skipUnless(KUBECONFIG, "PLAYGROUND_TEST_KUBECONFIG is not set")
    def test_what_a_kubectl_was_run_for_tells_users_spares_and_the_dry_run_apart(self) -> None:
        with Running(DEFAULT, "--spare_databases=0").known() as server:
            server.call("alice", "create_db", "told-apart")
            reasons = re.findall(r'verb=create reason="?([^"=]*)"? ', server.log())
            server.call("alice", "delete_db", "told-apart")
        self.assertEqual(reasons[0], "check the template, in a dry run")
        self.assertRegex(reasons[1], "^create [13] objects for told-apart$")  # One of a spare that was left.
