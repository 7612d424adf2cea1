"""Tests of README.md and docs/: links, messages, alerts, and the commands as a reader runs them."""

from __future__ import annotations

import ast
import contextlib
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import yaml
from prometheus_client.parser import text_string_to_metric_families

import playground
from tests import harness
from tests.harness import (
    PATIENCE_SECONDS,
    REAL,
    ROOT,
    TEMPLATES,
    Running,
    applied_once,
    databases,
    eventually,
    gen_cert,
    kubectl,
    make_namespace,
    moved,
    path,
    read,
    stand_in,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md",
             *(f"docs/{name}" for name in sorted(os.listdir(os.path.join(ROOT, "docs")))
               if name.endswith(".md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
                   re.M | re.S)

# Around the commands of a document: what the tests put in the place of what they have not.
STAGE = r"""
set -Eeuo pipefail
shopt -s expand_aliases
trap 'echo "line $LINENO failed: $BASH_COMMAND" >&2' ERR
serve() { exec "$PYTHON" "$STAGE/playground.py" --host=127.0.0.1 --port="$PORT" "$@" >&2; } # A log.
python() {
  if [[ $* == "-m playground" ]]; then serve; fi # In the background.
  "$PYTHON" "$@"
}
sqlflow_playground() { if [[ $* == *--check* ]]; then python playground.py "$@"; else serve "$@"; fi; }
# The server is just starting.
curl() { command curl --retry 30 --retry-connrefused --retry-delay 1 --fail-with-body "$@"; }
kubectl() {
  if [[ $1 == port-forward ]]; then
    serve --crl=key_store/ca/ca.crl
  elif [[ $1 == exec ]]; then
    while [[ $1 != -- ]]; do shift; done
    shift
    "$@"
  else
    command kubectl "$@"
  fi
}
"""


class Command(NamedTuple):
    """A command of a document, or a program in Python, and what it is said to print."""

    text: str
    prints: str


def commands(document: str) -> Iterator[Command]:
    """Yield what a document has its reader run, in order, without what is marked as not run."""
    programs = {"python": "", "js": ""}  # They grow from block to block.
    for block in BLOCK.finditer(read(document)):
        if block["reason"]:
            continue
        if block["language"] == "sh":
            yield Command(block["text"], "")
        elif block["language"] in programs:
            programs[block["language"]] += block["text"] + "\n\n"
        elif block["language"] == "console":
            for text in re.split(r"^\$ ", block["text"], flags=re.M)[1:]:
                match = re.match(r"(?:.*(?:\\|\|)\n)*.*\n", text)
                assert match
                yield Command(match[0], text[match.end():])
    for language, program in programs.items():
        if program:
            command = {"python": "python -", "js": "node --input-type=module -"}[language]
            yield Command(f"{command} <<'END'\n{program}END\n", "")


def anchor(title: str) -> str:
    """Return what a heading is linked by."""
    return re.sub(r"[^\w -]", "", title).strip().replace(" ", "-").lower()


def alike(text: str) -> str:
    """Return an answer without what differs each time."""
    return re.sub(r"[0-9a-f]{32}|[0-9]+(?:[.:T-][0-9]+)*Z?", "…", text.strip())


def said() -> Iterator[str]:
    """Yield what the server tells people, from its source; \0 stands for what is not known there."""
    def texts(node: ast.expr) -> Iterator[str]:
        if isinstance(node, ast.JoinedStr):
            yield "".join(next(texts(value)) for value in node.values)
        elif isinstance(node, ast.IfExp):
            yield from (*texts(node.body), *texts(node.orelse))
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                yield from texts(value)
        elif isinstance(node, ast.Name):
            yield str(getattr(playground, node.id, "\0"))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "format":
            assert isinstance(node.func, ast.Attribute)
            yield from (text.replace("{}", "\0") for text in texts(node.func.value))
        else:
            yield node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "\0"
    tellers = {"ApiError": 1, "unavailable": 0, "Refusal": 0, "blaming": 0, "spare_failed": 0}
    for node in ast.walk(ast.parse(read("playground.py"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in tellers:
                yield from texts(node.args[tellers[name]])
        elif isinstance(node, ast.FunctionDef) and node.name == "reason_of":
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value:
                    yield from texts(inner.value)
    yield from (message for _, message in playground.SENTENCES.values())
    yield from (playground.LOST, playground.MOVED)


class Documents(unittest.TestCase):
    """What README.md and docs/ say."""

    def test_commands_stand_in_blocks_that_are_run_or_say_why_not(self) -> None:
        for document in DOCUMENTS:
            for block in BLOCK.finditer(read(document)):
                self.assertIn(block["language"], ("console", "sh", "python", "js", "yaml", ""), document)
                self.assertEqual("$ " in block["text"], block["language"] == "console", block["text"])
                self.assertTrue(block["language"] or block["reason"], block["text"])
            self.assertEqual(len(re.findall(r"^```", read(document), re.M)),
                             2 * len(BLOCK.findall(read(document))), document)

    def test_links_lead_somewhere(self) -> None:
        anchors = {document: {anchor(title) for title in re.findall(r"^#+ (.+)$", read(document), re.M)}
                   for document in DOCUMENTS}
        for document in DOCUMENTS:
            for link in re.findall(r"\]\(([^)]+)\)", read(document)):
                target, _, place = link.partition("#")
                with self.subTest(document, link=link):
                    if not target.startswith("https:"):
                        beside = os.path.join(os.path.dirname(document), target)
                        target = os.path.normpath(beside) if target else document
                        self.assertTrue(os.path.exists(os.path.join(ROOT, target)))
                        self.assertTrue(not place or place in anchors[target])

    def test_every_message_of_the_server_is_explained(self) -> None:
        explained = " ".join((read("docs/maintainer.md") + read("docs/frontend.md")).split())
        messages = sorted(set(said()) - {"\0"})
        self.assertGreater(len(messages), 50)
        for message in messages:
            piece = max(re.split(r"[\0:(]", message), key=len).strip() if "\0" in message else message
            with self.subTest(message.replace("\0", "…")):
                self.assertTrue(piece in explained,
                                f"neither docs/maintainer.md nor docs/frontend.md explains: {piece}")

    def test_every_test_that_security_md_names_is_there(self) -> None:
        names = re.findall(r"`(\w+)`", read("SECURITY.md"))
        self.assertGreater(len(names), 20)
        modules = ["test_playground.py", *glob.glob(os.path.join(ROOT, "tests", "*.py"))]
        defined = set(re.findall(r"^ *def (\w+)", "".join(map(read, modules)), re.M))
        self.assertEqual(set(names) - defined, set())

    def test_pages_fit_a_window_and_long_ones_begin_with_their_contents(self) -> None:
        for document in DOCUMENTS:
            lines = read(document).splitlines()
            self.assertEqual([line for line in lines if len(line) > 110], [])
            titles = [line[3:] for line in lines if line.startswith("## ")]
            if len(lines) > 150 and document != "CHANGELOG.md":
                contents = read(document).partition("\n## ")[0]
                missing = [title for title in titles if f"](#{anchor(title)})" not in contents]
                self.assertEqual(missing, [], document)
        self.assertLessEqual(len(read("README.md").splitlines()), 250)

    def test_readmes_first_screen_has_the_demo_and_the_table_of_the_api(self) -> None:
        screen = "\n".join(read("README.md").splitlines()[:50])
        for what in ("create_db | python3", "SELECT", "heart_beat?", *playground.API):
            self.assertIn(what, screen.replace("GET /`", "index"))

    def test_every_placeholder_and_template_is_in_their_page(self) -> None:
        known = {"name", "database", *playground.EXAMPLE} - {"id"}
        for name in (*(f"${{{name}}}" for name in sorted(known)), *databases()):
            self.assertIn(name, read("docs/templates.md"))

    @unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze: apt-get install systemd")
    def test_systemd_takes_the_example_of_a_unit_and_it_has_the_time_to_end(self) -> None:
        unit = read("docs/sqlflow-playground.service")
        with open(path("sqlflow-playground.service"), "w", encoding="utf-8") as file:
            file.write(re.sub(r"(?<=ExecStart=)\S+", sys.executable, unit))
        result = subprocess.run(["systemd-analyze", "verify", file.name], capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        (arguments,) = re.findall(r"ExecStart=\S+ ((?:.*\\\n)*.*)\n", unit)
        playground.parse_arguments(arguments.replace("\\\n", " ").split())
        (stop,) = re.findall(r"TimeoutStopSec=(\d+)", unit)
        self.assertGreater(int(stop), playground.STOP_SECONDS + playground.LAST_BEATS_SECONDS)
        (files,) = re.findall(r"LimitNOFILE=(\d+)", unit)
        self.assertGreater(int(files), playground.MAX_OPEN_FILES)


@unittest.skipUnless(shutil.which("promtool"),
                     "no promtool: scripts/test unpacks it from Debian's prometheus")
class Watching(unittest.TestCase):
    """The examples for Prometheus."""

    # What each alert is for: series of a minute each, and how long they last. "{}" stands for the labels.
    FIRING: ClassVar[dict[str, tuple[dict[str, str], str]]] = {
        "PlaygroundGone": ({"up{}": "0x20"}, "10m"),
        "PlaygroundServerDown": ({"up{}": "0x20"}, "15m"),
        "PlaygroundClusterUnknown": ({"playground_cluster_synchronised{}": "0x20"}, "10m"),
        "PlaygroundFails": ({'playground_requests_total{api="create_db",status="502"}': "0x10 10x10"},
                            "15m"),  # The first ones, at once.
        "PlaygroundNotReady": ({'playground_requests_total{api="create_db",status="503"}': "0+2x40",
                                'playground_requests_total{api="create_db",status="200"}': "0+1x40"}, "35m"),
        "PlaygroundKubectlFails": (
            {'playground_kubectl_seconds_count{verb="create",outcome="timeout"}': "0+1x40"}, "30m"),
        "PlaygroundHeartBeatsNotWritten": ({"playground_last_beat_write_timestamp_seconds{}": "0x40"}, "20m"),
        "PlaygroundSweepsMany": ({"playground_databases_swept_total{}": "0x30 90x30"}, "60m"),
        "PlaygroundSlow": ({'playground_data_source_seconds_bucket{from="new",le="10"}': "0x60",
                            'playground_data_source_seconds_bucket{from="new",le="18"}': "0+1x60",
                            'playground_data_source_seconds_bucket{from="new",le="+Inf"}': "0+1x60"}, "50m"),
        "PlaygroundNoSpares": ({'playground_databases{status="spare"}': "0x90"}, "70m"),
        "PlaygroundNearlyFull": ({'playground_databases{status="ready"}': "180x30",
                                  'playground_databases{status="starting"}': "5x30"}, "20m"),
        "PlaygroundCertificateEnds": (
            {'playground_certificate_expiry_timestamp_seconds{file="server_crt"}': "1000000x90"}, "80m"),
        "PlaygroundCertificateEndsNow": (
            {'playground_certificate_expiry_timestamp_seconds{file="crl"}': "100000x30"}, "20m"),
        "PlaygroundStrangers": ({'playground_handshakes_refused_total{reason="unknown ca"}': "0+600x40"},
                                "30m"),
    }
    # A playground on a good day, which fires none of them.
    QUIET: ClassVar[dict[str, str]] = {
        "up{}": "1x90", "playground_cluster_synchronised{}": "1x90",
        'playground_requests_total{api="create_db",status="200"}': "0+5x90",
        'playground_requests_total{api="create_db",status="503"}': "0+1x90",
        'playground_kubectl_seconds_count{verb="watch",outcome="ok"}': "0+3x90",
        "playground_last_beat_write_timestamp_seconds{}": "0+60x90",
        "playground_databases_swept_total{}": "0x90",
        'playground_data_source_seconds_bucket{from="spare",le="0.5"}': "0+1x90",
        'playground_data_source_seconds_bucket{from="spare",le="+Inf"}': "0+1x90",
        'playground_databases{status="ready"}': "100x90", 'playground_databases{status="spare"}': "99x90",
        'playground_certificate_expiry_timestamp_seconds{file="server_crt"}': "10000000x90",
        'playground_handshakes_refused_total{reason="peer did not return a certificate"}': "0+1x90"}

    def promtool(self, *arguments: str, stdin: str = "") -> None:
        result = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)

    def test_prometheus_takes_the_example_of_a_configuration(self) -> None:
        gen_cert("prometheus")
        shutil.copy(os.path.join(ROOT, "docs", "alerts.yml"), path())
        with open(path("prometheus.yml"), "w", encoding="utf-8") as file:
            example = read("docs/prometheus.yml")
            file.write(example.replace("/etc/prometheus/playground", path("key_store/prometheus")))
        self.promtool("check", "config", file.name)

    def test_each_alert_fires_when_it_should_and_none_on_a_good_day(self) -> None:
        alerts = [rule["alert"] for group in yaml.safe_load(read("docs/alerts.yml"))["groups"]
                  for rule in group["rules"]]
        self.assertEqual(alerts, list(self.FIRING))
        maintainer = read("docs/maintainer.md")
        self.assertEqual([name for name in alerts if f"`{name}`" not in maintainer], [])

        def series(values: dict[str, str]) -> list[dict[str, str]]:
            return [{"series": name.replace("}", ',job="playground",instance="a"}').replace("{,", "{"),
                     "values": value} for name, value in values.items()]

        def fires(name: str, values: dict[str, str], moment: str, often: int) -> dict[str, Any]:
            # promtool compares labels and annotations; counting what fires leaves them out.
            query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
            return {"interval": "1m", "input_series": series(values),
                    "promql_expr_test": [{"expr": query, "eval_time": moment,
                                          "exp_samples": [{"labels": "{}", "value": often}]}]}
        tests = [fires(name, values, moment, 1) for name, (values, moment) in self.FIRING.items()]
        tests += [fires(name, self.QUIET, "85m", 0) for name in alerts]
        with open(path("alerts-yml"), "w", encoding="utf-8") as file:
            yaml.safe_dump({"rule_files": [os.path.join(ROOT, "docs", "alerts.yml")],
                            "evaluation_interval": "1m", "tests": tests}, file)
        self.promtool("test", "rules", file.name)

    def test_metrics_are_what_the_examples_ask_for_and_follow_the_conventions(self) -> None:
        with Running(kubeconfig=path("dead.kubeconfig")) as server:
            exposed = server.raw(
                b"GET /api/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").decode().partition(
                    "\r\n\r\n")[2]
        self.promtool("check", "metrics", stdin=exposed)
        families = {family.name: family for family in text_string_to_metric_families(exposed)}
        self.assertEqual(families["playground_kubectl_seconds"].type, "histogram")
        self.assertEqual({family.type for family in families.values()}, {"counter", "gauge", "histogram"})
        # What grows from nothing would show no increase.
        self.assertIn("playground_databases_swept_total 0\n", exposed)
        self.assertIn('playground_requests_total{api="create_db",status="500"} 0\n', exposed)
        self.assertIn('playground_databases_given_total{from="spare"} 0\n', exposed)
        for name in set(re.findall(r"\bplayground_\w+", read("docs/alerts.yml"))):
            self.assertIn(f"# TYPE {re.sub('_(count|bucket)$', '', name)} ", exposed)


@unittest.skipUnless(harness.KUBECONFIG, "PLAYGROUND_TEST_KUBECONFIG is not set")
@unittest.skipUnless(shutil.which("prometheus"), "no prometheus: scripts/test unpacks it")
class Dashboard(unittest.TestCase):
    """docs/grafana.json, and a Prometheus that has scraped a server."""

    def test_each_query_of_the_dashboard_has_an_answer(self) -> None:
        queries = [target["expr"] for panel in json.loads(read("docs/grafana.json"))["panels"]
                   for target in panel["targets"]]
        gen_cert("prometheus")
        no_patch = stand_in("no-patch", 'case "$*" in *" patch "*) echo no >&2; exit 1;; esac')
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        with Running(no_patch, "--sweep_interval=1", "--idle_timeout=50").known() as server:
            config = yaml.safe_load(read("docs/prometheus.yml").replace("/etc/prometheus/playground",
                                                                        path("key_store/prometheus")))
            del config["rule_files"]
            (job,) = config["scrape_configs"]
            del job["dns_sd_configs"]
            job.update(scrape_interval="1s", static_configs=[{"targets": [f"127.0.0.1:{server.port}"]}])
            with open(path("scrape.yml"), "w", encoding="utf-8") as file:
                yaml.safe_dump(config, file)
            with open(path("prometheus.log"), "wb") as log:
                prometheus = subprocess.Popen(
                    ["prometheus", f"--config.file={file.name}", f"--storage.tsdb.path={path('tsdb')}",
                     f"--web.listen-address={address}"], stdout=log, stderr=log)
            self.addCleanup(prometheus.wait)
            self.addCleanup(prometheus.terminate)

            def answer(query: str) -> Any:
                url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
                try:
                    with urllib.request.urlopen(url) as response:
                        return json.load(response)["data"]["result"]
                except urllib.error.HTTPError as error:
                    if error.code == 503:
                        return []  # It is just starting.
                    raise AssertionError(f"{query}: {error.read().decode()}") from error
                except OSError:
                    return []  # As above.
            eventually(lambda: answer("playground_build_info"), "it has scraped the server")
            for user_id in ("plot", "plot2"):
                server.call("alice", "create_db", user_id)
                with contextlib.suppress(OSError), harness.tls("").wrap_socket(
                        socket.create_connection(("127.0.0.1", server.port)),
                        server_hostname="localhost") as stranger:
                    stranger.recv(1)
            for query in queries:
                query = query.replace("$job", ".*").replace("[30m]", "[1m]")
                eventually(lambda query=query: answer(query), query)
            for user_id in ("plot", "plot2"):
                server.call("alice", "delete_db", user_id)


@unittest.skipUnless(harness.KUBECONFIG, "PLAYGROUND_TEST_KUBECONFIG is not set")
class Examples(unittest.TestCase):
    """The programs of docs/frontend.md and what docs/user.md has a student install, run as they stand."""

    def run_program(self, text: str, server: Running, *command: str) -> str:
        gen_cert("some_client")
        result = subprocess.run(command, input=text.replace("localhost:50052", f"localhost:{server.port}"),
                                cwd=path("key_store", "some_client"), capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def test_front_ends_in_python_and_node_get_and_give_back_a_database(self) -> None:
        programs = [command.text.split("\n", 1)[1].rpartition("END\n")[0]
                    for command in commands("docs/frontend.md") if "<<'END'" in command.text]
        with Running("--spare_databases=0").known() as server:
            said = self.run_program(programs[0], server, sys.executable, "-")
            self.assertRegex(said, r"^mysql://root:\w+@tcp")
            if shutil.which("node"):
                said = self.run_program(programs[1], server, "node", "--input-type=module", "-")
                self.assertRegex(said, r"^mysql://root:\w+@tcp")
                self.assertIn("{ user_id: 'carol', status: 'ready' }", said)
                self.assertIn("{ user_id: 'carol', status: 'absent' }", said)
            self.assertEqual(server.call("some_client", "list_db")[1], {"databases": []})
        if not shutil.which("node"):
            self.skipTest("no node: apt-get install nodejs")


class Notebook(unittest.TestCase):
    """What docs/user.md has a student install."""

    @unittest.skipIf(sys.version_info < (3, 10), "the guide is for Python 3.10 and later")
    def test_what_the_guide_installs_loads_in_ipython(self) -> None:
        text = read("docs/user.md")
        steps = "".join(re.sub(r"^\$ ", "", line) + "\n"
                        for block in BLOCK.finditer(text.partition("Put this into")[0])
                        if block["language"] == "console" and "of its own" in block["reason"]
                        for line in block["text"].splitlines())
        (load,) = re.findall("^%load_ext .*$", text, re.M)
        stage = path("notebook")
        for name, content in {
                "setup.py": "from setuptools import setup\nsetup(name='sqlflow', version='0.16.0', "
                            "packages=['sqlflow', 'sqlflow.proto'], install_requires=['ipython==7.9.0'])\n",
                "sqlflow/__init__.py": "", "sqlflow/proto/__init__.py": "",
                "sqlflow/magic.py": "import dotenv, grpc, nest_asyncio, pandas, tornado.ioloop\n"
                                    "from sqlflow.proto import sqlflow_pb2, sqlflow_pb2_grpc\n"
                                    "def load_ipython_extension(ipython):\n"
                                    "    print('loaded', sqlflow_pb2.Session(user_id='alice').user_id)\n",
                "proto/sqlflow/proto/sqlflow.proto": 'syntax = "proto3";\npackage proto;\n'
                                                     "message Session { string user_id = 1; }\n"
                                                     "service SQLFlow { rpc Run (Session) "
                                                     "returns (Session); }\n"}.items():
            file = os.path.join(stage, "pysqlflow", name)
            os.makedirs(os.path.dirname(file), exist_ok=True)
            with open(file, "w", encoding="utf-8") as out:
                out.write(content)
        result = subprocess.run(["bash", "-euo", "pipefail", "-c", f"{steps}\nipython -c '{load}'"],
                                cwd=stage, capture_output=True, text=True,
                                env={**os.environ, "IPYTHONDIR": os.path.join(stage, "ipython")})
        self.assertEqual(result.returncode, 0, result.stderr[-3000:])
        self.assertIn("loaded alice", result.stdout)


class Kustomizations(unittest.TestCase):
    """What is set without editing playground.yaml."""

    def objects(self, folder: str) -> list[dict[str, Any]]:
        printed = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
        self.assertEqual(printed.returncode, 0, printed.stderr)
        return list(yaml.safe_load_all(printed.stdout))

    def test_plain_one_is_playground_yaml_and_the_guides_sets_all_that_is_ones_own(self) -> None:
        plain = self.objects(TEMPLATES)
        key = {(one["kind"], one["metadata"]["name"]): one for one in plain}
        self.assertEqual(key, {(one["kind"], one["metadata"]["name"]): one
                               for one in yaml.safe_load_all(read(TEMPLATES, "playground.yaml"))})
        stage = path("kustomized")
        shutil.copytree(TEMPLATES, os.path.join(stage, "k8s_templates"))
        os.mkdir(os.path.join(stage, "mine"))
        text = read("docs/maintainer.md").partition("### Set what is yours")[2]
        overlay, sed, *_ = BLOCK.finditer(text)
        with open(os.path.join(stage, "mine", "kustomization.yaml"), "w", encoding="utf-8") as file:
            file.write(overlay["text"])
        subprocess.run(sed["text"].splitlines()[0][2:], shell=True, cwd=stage, check=True)
        mine = {(one["kind"], one["metadata"]["name"]): one
                for one in self.objects(os.path.join(stage, "mine"))}
        pod = mine["Deployment", "playground"]["spec"]["template"]["spec"]
        image = f"registry.example.org/sqlflow-playground:{playground.__version__}"
        self.assertEqual(pod["containers"][0]["image"], image)
        self.assertIn("--spare_databases=0", pod["containers"][0]["args"])
        self.assertNotIn("--spare_databases=2", pod["containers"][0]["args"])
        playground.parse_arguments(pod["containers"][0]["args"])
        self.assertEqual(pod["volumes"][-1]["configMap"]["name"].rpartition("-")[0], "playground-templates")
        with open(os.path.join(stage, "mine", "my.yaml"), encoding="utf-8") as file:
            (claim,) = [one for one in yaml.safe_load_all(file) if one["kind"] == "PersistentVolumeClaim"]
        self.assertEqual(claim["spec"]["storageClassName"], "fast")
        playground.Template(file.name)
        self.assertEqual(mine["Service", "playground"]["spec"]["type"], "LoadBalancer")
        self.assertEqual(mine["Service", "playground-servers"], key["Service", "playground-servers"])


class Wheel(unittest.TestCase):
    """What pip installs."""

    def test_wheel_passes_those_who_look_at_wheels(self) -> None:
        source, bin = path("wheel-source"), os.path.dirname(sys.executable)
        subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
        shutil.copy(os.path.join(ROOT, "pyproject.toml"), source)
        for command in (["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir=dist", "."],
                        ["twine", "check", "--strict", "dist/*.whl"], ["check-wheel-contents", "dist"]):
            if not os.path.exists(os.path.join(bin, command[0])):
                self.skipTest(f"no {command[0]}: scripts/test has it")
            result = subprocess.run([os.path.join(bin, command[0]), *command[1:]], cwd=source,
                                    capture_output=True, text=True)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)


class Claims(unittest.TestCase):
    """What is claimed of the sources as a whole."""

    def test_playground_needs_no_python_newer_than_is_claimed(self) -> None:
        vermin = os.path.join(os.path.dirname(sys.executable), "vermin")
        if not os.path.exists(vermin):
            self.skipTest("no vermin: scripts/test has it")
        # The first line that needs 3.8 is there for what is older; see OLDEST_PYTHON.
        result = subprocess.run([vermin, "--target=3.9-", "--no-tips", "--eval-annotations", "--backport",
                                 "typing", "--violations", os.path.join(ROOT, "playground.py")],
                                capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout)


@unittest.skipUnless(REAL, "needs a whole Kubernetes API, and devcluster is none")
class Commands(unittest.TestCase):
    """The commands of each document, run in their order."""

    def run_all(self, document: str, prepare: str = "") -> None:
        """Run a document's commands in a folder and a namespace of its own, and compare what they answer."""
        number = DOCUMENTS.index(document)
        stage, namespace = path(f"stage-{number}"), f"{harness.namespace}-{number}"
        os.mkdir(stage)
        for name in ("playground.py", "gen_cert.sh", "CHANGELOG.md"):
            os.symlink(os.path.join(ROOT, name), os.path.join(stage, name))
        shutil.copytree(TEMPLATES, os.path.join(stage, "k8s_templates"))
        known = kubectl("api-versions").split()
        with open(os.path.join(stage, "k8s_templates", "playground.yaml"), "w", encoding="utf-8") as file:
            yaml.safe_dump_all([moved(item, namespace) for item in applied_once().values()
                                if item["apiVersion"] in known], file)
        make_namespace(namespace)
        self.addCleanup(kubectl, "delete", "namespace", f"{namespace}-other", "--ignore-not-found",
                        "--wait=false")
        config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify"))
        config["contexts"][0]["context"]["namespace"] = namespace
        with open(os.path.join(stage, "kubeconfig"), "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        steps = list(commands(document))
        script = STAGE + prepare + "".join(f"echo '@@@{index}'\n{step.text}" for index,
                                           step in enumerate(steps))
        for name, here in (("50052", port), ("sqlflow-playground", namespace),
                           ("other-playground", f"{namespace}-other")):
            script = script.replace(name, here)
        environment = {**os.environ, "KUBECONFIG": os.path.join(stage, "kubeconfig"),
                       "PATH": f"{stage}:{os.environ['PATH']}", "PORT": port,
                       "STAGE": stage, "PYTHON": sys.executable, "PYTHONPATH": stage}
        with open(os.path.join(stage, "log"), "w+", encoding="utf-8") as log:
            bash = subprocess.Popen(["bash", "-c", script], cwd=stage, env=environment,
                                    stdout=subprocess.PIPE, stderr=log, text=True,
                                    start_new_session=True)
            try:
                answers = bash.communicate(timeout=3 * PATIENCE_SECONDS)[0]
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(bash.pid, signal.SIGTERM)
                    while True:
                        os.killpg(bash.pid, 0)
                        time.sleep(0.05)
            log.seek(0)
            self.assertEqual(bash.returncode, 0, log.read() + answers)
        for index, step in enumerate(steps):
            answer = answers.partition(f"@@@{index}\n")[2].partition("@@@")[0]
            if step.prints.startswith("{"):
                self.assertEqual(alike(answer), alike(step.prints), step.text)

    # Where a document takes for granted that somebody has started the server and made certificates.
    SERVED = "./gen_cert.sh server >&2; ./gen_cert.sh some_client >&2; serve & cd key_store/some_client\n"

    def test_readme(self) -> None:
        self.run_all("README.md")

    def test_guide_for_front_ends(self) -> None:
        self.run_all("docs/frontend.md", self.SERVED)

    def test_guide_for_maintainers(self) -> None:
        self.run_all("docs/maintainer.md")

    def test_guide_for_users(self) -> None:
        self.run_all("docs/user.md", self.SERVED)

    def test_every_document_with_commands_is_among_these(self) -> None:
        self.assertEqual([document for document in DOCUMENTS if list(commands(document))],
                         ["README.md", "docs/frontend.md", "docs/maintainer.md", "docs/user.md"])
