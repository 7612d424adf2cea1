"""Tests of docs/openapi.yaml: against the dispatch table, and against a server by schemathesis."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import unittest

import yaml

import playground
from tests import harness
from tests.harness import KUBECONFIG, ROOT, Running, path, read

setUpModule = harness.set_up
tearDownModule = harness.tear_down

DOCUMENT = yaml.safe_load(read("docs/openapi.yaml"))
OPERATIONS = {(route, method.upper()): operation for route, methods in DOCUMENT["paths"].items()
              for method, operation in methods.items()}


class Interface(unittest.TestCase):
    """What docs/openapi.yaml says of the API."""

    def test_document_has_each_api_with_its_method_and_parameters_and_no_other(self) -> None:
        described = {}
        for (route, method), operation in OPERATIONS.items():
            body = operation.get("requestBody")
            self.assertIn(body, (None, {"$ref": "#/components/requestBodies/User"}))
            described[operation["operationId"]] = (
                route, method, tuple(one["name"] for one in operation.get("parameters", ()))
                + (("user_id",) if body else ()))
        self.assertEqual(described, {name: (playground.path_of(name), method, takes)
                                     for name, (method, _, takes) in playground.API.items()})
        self.assertEqual(DOCUMENT["info"]["version"], playground.__version__)
        self.assertEqual(DOCUMENT["components"]["schemas"]["UserId"]["maxLength"],
                         playground.MAX_USER_ID_CHARACTERS)

    def test_document_has_each_status_that_the_server_answers(self) -> None:
        source = {node.args[0].value for node in ast.walk(ast.parse(read("playground.py")))
                  if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ApiError"
                  and isinstance(node.args[0], ast.Constant)}
        statuses = {str(status) for status in (*source, 200, 503,
                                               *(status for status, _ in playground.SENTENCES.values()))}
        documented = {status for operation in OPERATIONS.values() for status in operation["responses"]}
        self.assertEqual(documented, statuses)

    def test_root_says_what_there_is_and_a_path_that_is_not_found_points_there(self) -> None:
        with Running(kubeconfig=path("dead.kubeconfig")) as server:
            for target in (b"/", b"//"):
                head, _, content = server.raw(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                                              % target).partition(b"\r\n\r\n")
                self.assertIn(b"\r\nContent-Type: application/json\r\n", head)
                answer = json.loads(content)
                self.assertEqual(answer["version"], playground.__version__)
                self.assertEqual({(one["path"], one["method"]): sorted(one["takes"])
                                  for one in answer["apis"]},
                                 {key: ["user_id"] if key[0][5:] in ("create_db", "heart_beat", "delete_db")
                                  else [] for key in OPERATIONS})
            self.assertIn("GET / says more", server.call("alice", "nothing")[1]["error"])
            self.assertIn(b'"/ takes GET"', server.raw(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
                                                       b"Connection: close\r\n\r\n"))

    def test_those_who_are_told_together_to_come_back_do_not_come_back_together(self) -> None:
        waits = {int(playground.failed(playground.unavailable("x", 10)).headers["Retry-After"])
                 for _ in range(200)}
        self.assertEqual(waits, set(range(10, 16)))

    @unittest.skipUnless(KUBECONFIG, "PLAYGROUND_TEST_KUBECONFIG is not set")
    @unittest.skipIf(sys.version_info < (3, 10), "the generator is for Python 3.10 and later")
    def test_client_that_the_guide_generates_gets_a_database(self) -> None:
        text = read("docs/frontend.md").partition("## With a generated client")[2]
        steps = "\n".join(re.findall(r"^\$ (.*)$", text, re.M))
        (program,) = re.findall(r"```python\n(.*?)```", text, re.S)
        with Running("--spare_databases=0").known() as server:
            stage = path("generated")
            shutil.copytree(path("key_store", "alice"), stage)
            program = program.replace("50052", str(server.port)).replace("some_client.", "alice.")
            result = subprocess.run(["bash", "-euo", "pipefail", "-c", f"{steps}\npython -c '{program}'"],
                                    cwd=stage, capture_output=True, text=True,
                                    env={**os.environ, "PLAYGROUND": ROOT})
            server.call("alice", "delete_db", "alice")
        self.assertEqual(result.returncode, 0, result.stderr[-3000:])
        self.assertIn("data_source='mysql://root:", result.stdout)

    @unittest.skipUnless(KUBECONFIG, "PLAYGROUND_TEST_KUBECONFIG is not set")
    @unittest.skipUnless(importlib.util.find_spec("schemathesis"), "no schemathesis: scripts/test has it")
    @unittest.skipIf(sys.version_info < (3, 10), "schemathesis of Python 3.9 knows no \\p in a pattern")
    def test_schemathesis_finds_nothing_in_a_server_with_good_data_and_bad(self) -> None:
        store = path("key_store")
        with Running("--spare_databases=0").known() as server:
            program = shutil.which("schemathesis", path=os.path.dirname(sys.executable)) or "schemathesis"
            result = subprocess.run(
                [program, "run", os.path.join(ROOT, "docs", "openapi.yaml"), "--no-color", "--mode=all",
                 f"--url=https://localhost:{server.port}", f"--tls-verify={store}/ca/ca.crt",
                 f"--request-cert={store}/alice/alice.crt", f"--request-cert-key={store}/alice/alice.key",
                 "--max-examples=20", "--generation-database=none", "--continue-on-failure", "--seed=1",
                 "--request-timeout=60"],
                capture_output=True, text=True, cwd=path(),
                env={**os.environ, "PYTHONPATH": ROOT, "SCHEMATHESIS_HOOKS": "tests.hooks"})
            for entry in server.call("alice", "list_db")[1]["databases"]:
                server.call("alice", "delete_db", entry["user_id"])
        self.assertEqual(result.returncode, 0, result.stdout[-10_000:] + result.stderr)
