"""Tests of gen_cert.sh, also when it is cut short, and of what the server makes of TLS files."""

from __future__ import annotations

import base64
import contextlib
import glob
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
import unittest
import unittest.mock
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import playground
from tests import harness
from tests.harness import (
    PATIENCE_SECONDS,
    ROOT,
    STATUS,
    Ca,
    Running,
    another_ca,
    checked,
    eventually,
    from_now,
    gen_cert,
    is_answered,
    our_ca,
    path,
    read,
    receive_all,
    refused,
    tls,
)

setUpModule = harness.set_up
tearDownModule = harness.tear_down


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout


class Certificates(unittest.TestCase):
    def text(self, name: str, store: str = "key_store") -> str:
        return openssl("x509", "-in", path(store, name, f"{name}.crt"), "-noout", "-text")

    def serial(self, name: str, store: str) -> str:
        return openssl("x509", "-in", path(store, name, f"{name}.crt"), "-noout",
                       "-serial").strip().partition("=")[2]

    def verdict(self, store: str, certificate: str) -> str:
        """Return what openssl, as strict as it can be, says of a file of the store."""
        result = subprocess.run(["openssl", "verify", "-x509_strict", "-crl_check", "-CAfile",
                                 path(store, "ca/ca.crt"),
                                 "-CRLfile", path(store, "ca/ca.crl"), path(store, certificate)],
                                capture_output=True, text=True)
        return result.stdout.partition(": ")[2].strip() or result.stderr

    def matching(self, store: str, name: str) -> bool:
        """Tell whether a folder's key and certificate are a pair."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(*(
                path(store, name, f"{name.partition('+')[0]}.{ending}") for ending in ("crt", "key")))
        except ssl.SSLError:
            return False
        return True

    def test_client_certificate_is_for_clients_only_and_carries_its_name(self) -> None:
        text = self.text("alice")
        for expected in ("Version: 3", "Subject: CN = alice\n", "prime256v1", "CA:FALSE",
                         "TLS Web Client Authentication\n",
                         "Digital Signature\n", "X509v3 Subject Key Identifier",
                         "X509v3 Authority Key Identifier"):
            self.assertIn(expected, text)

    def test_server_certificate_names_localhost_this_host_and_what_was_given(self) -> None:
        self.assertEqual(gen_cert("server", "play.example.org", "10.1.2.3", "fe80::1", "localhost",
                                  store="named").returncode, 0)
        text = self.text("server", "named")
        self.assertIn("TLS Web Server Authentication\n", text)
        for name in ("DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1",
                     f"DNS:{os.uname().nodename}",
                     "DNS:play.example.org", "IP Address:10.1.2.3", "IP Address:FE80:0:0:0:0:0:0:1"):
            self.assertIn(name, text)
        self.assertEqual(text.count("DNS:localhost"), 1)

    def test_strict_verification_accepts_each_for_its_purpose_and_no_other(self) -> None:
        for name, purpose, other in (("server", "sslserver", "sslclient"),
                                     ("alice", "sslclient", "sslserver")):
            for wanted, status in ((purpose, 0), (other, 2)):
                command = ["openssl", "verify", "-x509_strict", "-purpose", wanted, "-CAfile",
                           path("key_store/ca/ca.crt"),
                           path("key_store", name, f"{name}.crt")]
                self.assertEqual(subprocess.run(command, capture_output=True).returncode, status,
                                 (name, wanted))

    def test_keys_are_their_owners_alone_and_the_ca_travels_with_each(self) -> None:
        for name in ("ca", "server", "alice"):
            self.assertEqual(os.stat(path("key_store", name, f"{name}.key")).st_mode & 0o777, 0o600)
        with open(path("key_store/ca/ca.crt"), "rb") as one, \
                open(path("key_store/alice/ca.crt"), "rb") as other:
            self.assertEqual(one.read(), other.read())

    def test_nothing_is_overwritten(self) -> None:
        before = self.text("alice")
        result = gen_cert("alice")
        self.assertEqual(result.returncode, 2)
        self.assertIn("there already", result.stderr)
        self.assertEqual(self.text("alice"), before)

    def test_half_made_state_is_named_and_refused(self) -> None:
        gen_cert("carol", store="half")
        os.remove(path("half/carol/carol.key"))
        result = gen_cert("carol", store="half")
        self.assertEqual((result.returncode, "not its carol.key" in result.stderr), (2, True), result.stderr)
        os.remove(path("half/ca/ca.key"))
        result = gen_cert("dave", store="half")
        self.assertEqual((result.returncode, "not its ca.key" in result.stderr), (2, True), result.stderr)
        self.assertFalse(os.path.exists(path("half/dave")))

    def test_names_that_are_no_plain_file_names_are_refused(self) -> None:
        for name in ("ca", "..", "a/b", "-x", ".hidden", "a b", "x" * 65, "a\nb", "$(id)", ""):
            result = gen_cert(name, store="refused")
            self.assertEqual(result.returncode, 2, name)
        self.assertEqual(gen_cert("server", "not a name", store="refused").returncode, 2)
        self.assertFalse(os.path.exists(path("refused")))

    def test_interrupted_run_leaves_nothing_half_made(self) -> None:
        os.mkdir(path("slow"))
        with open(path("slow/openssl"), "w", encoding="utf-8") as file:
            file.write(
                '#!/bin/sh\ncase "$1 $2" in "ca -batch") sleep 5;; esac\n'
                'exec /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin openssl "$@"\n')
        os.chmod(path("slow/openssl"), 0o755)
        process = subprocess.Popen([os.path.join(ROOT, "gen_cert.sh"), "eve"], start_new_session=True,
                                   stderr=subprocess.DEVNULL,
                                   env={**os.environ, "KEY_STORE": path("slow_store"),
                                        "PATH": path("slow") + ":" + os.environ["PATH"]})
        eventually(lambda: glob.glob(path("slow_store/.making.*/eve/eve.key"))
                   or os.path.exists(path("slow_store/ca/ca.crt")), "it is at work")
        # SIGINT is ignored by what a script started in the background.
        os.killpg(process.pid, signal.SIGTERM)
        self.assertNotEqual(process.wait(PATIENCE_SECONDS), 0)
        self.assertLessEqual(set(os.listdir(path("slow_store"))), {".lock", "ca"})
        self.assertEqual(gen_cert("eve", store="slow_store").returncode, 0)

    def test_last_lines_say_what_to_do_next(self) -> None:
        output = gen_cert("frank").stdout
        store = path("key_store/frank")
        self.assertIn(
            f"curl --cacert {store}/ca.crt --cert {store}/frank.crt --key {store}/frank.key https://", output)
        for variable in ("SQLFLOW_SERVER", "SQLFLOW_PLAYGROUND_USER_ID_ENV=SQLFLOW_USER_ID",
                         "SQLFLOW_USER_ID", "SQLFLOW_PLAYGROUND_SERVRE",
                         "SQLFLOW_PLAYGROUND_SERVER_CA", "SQLFLOW_PLAYGROUND_CLIENT_KEY",
                         "SQLFLOW_PLAYGROUND_CLIENT_CERT"):
            self.assertRegex(output, rf"(?m)^  {variable}\b")
        self.assertIn("gen_cert.sh server [NAME-OR-IP...]", gen_cert("-h").stdout)
        store = path("last lines").replace(" ", "\\ ")
        self.assertIn(
            f"--ca_crt={store}/ca/ca.crt --crl={store}/ca/ca.crl --server_key={store}/server/server.key "
                      f"--server_crt={store}/server/server.crt\n",
            gen_cert("server", store="last lines").stdout)

    def test_missing_openssl_comes_with_its_install_command(self) -> None:
        os.mkdir(path("bin"))
        for tool in ("bash", "sed", "env", "mkdir"):
            os.symlink(str(shutil.which(tool)), path("bin", tool))
        result = gen_cert("gina", PATH=path("bin"))
        self.assertEqual((result.returncode, "apt-get install openssl" in result.stderr), (2, True),
                         result.stderr)

    def test_revocation_list_is_there_from_the_start_and_good_as_long_as_the_ca(self) -> None:
        gen_cert("alice", store="new")
        for certificate in ("ca/ca.crt", "alice/alice.crt"):
            self.assertEqual(self.verdict("new", certificate), "OK")
        text = openssl("crl", "-in", path("new/ca/ca.crl"), "-noout", "-text")
        for expected in ("Version 2", "X509v3 CRL Number", "X509v3 Authority Key Identifier",
                         "No Revoked Certificates"):
            self.assertIn(expected, text)
        ends = [ssl.cert_time_to_seconds(openssl(kind, "-in", path(f"new/ca/ca.{ending}"), "-noout",
                                                 option).strip().partition("=")[2])
                for kind, ending, option in (("x509", "crt", "-enddate"), ("crl", "crl", "-nextupdate"))]
        self.assertIn(ends[1] - ends[0], range(6))

    def test_revoking_ends_all_certificates_of_one_name_and_no_other(self) -> None:
        for arguments in (("alice",), ("alice.2",), ("server",), ("--renew", "alice")):
            gen_cert(*arguments, store="revoked")
        renewed, = (name for name in os.listdir(path("revoked")) if name.startswith("alice+old-"))
        os.chmod(path("revoked/ca/ca.crl"), 0o644)  # So that a server which is not root reads it.
        result = gen_cert("--revoke", "alice", store="revoked")
        self.assertEqual((result.returncode, "alice is revoked" in result.stdout), (0, True), result)
        for certificate in ("alice/alice.crt", f"{renewed}/alice.crt"):
            self.assertIn("certificate revoked", self.verdict("revoked", certificate))
        for certificate in ("alice.2/alice.2.crt", "server/server.crt"):
            self.assertEqual(self.verdict("revoked", certificate), "OK")
        self.assertEqual(os.stat(path("revoked/ca/ca.crl")).st_mode & 0o777, 0o644)

        before = openssl("crl", "-in", path("revoked/ca/ca.crl"))
        again = gen_cert("--revoke", "alice", store="revoked")
        self.assertEqual((again.returncode, "revoked already" in again.stdout), (0, True), again)
        self.assertEqual(openssl("crl", "-in", path("revoked/ca/ca.crl")), before)
        self.assertIn("gen_cert.sh alice makes a new one",
                      gen_cert("--renew", "alice", store="revoked").stderr)

        shutil.rmtree(path("revoked/alice.2"))  # Sent away, with the key, as it should be.
        self.assertEqual(gen_cert("--revoke", "alice.2", store="revoked").returncode, 0)
        self.assertIn("clients do not look at the list",
                      gen_cert("--revoke", "server", store="revoked").stdout)
        old = self.serial("alice", "revoked")
        self.assertEqual(gen_cert("alice", store="revoked").returncode, 0)
        self.assertEqual(self.verdict("revoked", "alice/alice.crt"), "OK")
        self.assertIn("certificate revoked", self.verdict("revoked", f"alice+old-{old}/alice.crt"))
        text = openssl("crl", "-in", path("revoked/ca/ca.crl"), "-noout", "-text")
        self.assertEqual((text.count("Serial Number:"), re.findall(r"CRL Number: \n *(\d+)", text)),
                         (4, ["4"]), text)

    def test_renewal_keeps_the_names_and_changes_key_and_serial_number(self) -> None:
        gen_cert("server", "play.example.org", store="renewed")
        names, serial, key = self.text("server", "renewed"), self.serial("server", "renewed"), openssl(
            "pkey", "-in", path("renewed/server/server.key"), "-pubout")
        os.chmod(path("renewed/server/server.key"), 0o640)
        result = gen_cert("--renew", "server", "10.1.2.3", store="renewed")
        self.assertEqual(result.returncode, 0, result)
        self.assertRegex(result.stdout, r"server\.crt   until .+ GMT\n")
        expected = re.findall(r"(?:DNS|IP Address):[^,\n]+|Subject: .+|TLS Web .+", names)
        found = re.findall(r"(?:DNS|IP Address):[^,\n]+|Subject: .+|TLS Web .+",
                           self.text("server", "renewed"))
        self.assertEqual(sorted(found), sorted([*expected, "IP Address:10.1.2.3"]))
        self.assertEqual(self.verdict("renewed", "server/server.crt"), "OK")
        self.assertTrue(self.matching("renewed", "server"))
        self.assertNotEqual(self.serial("server", "renewed"), serial)
        self.assertNotEqual(openssl("pkey", "-in", path("renewed/server/server.key"), "-pubout"), key)
        self.assertEqual(openssl("pkey", "-in", path("renewed", f"server+old-{serial}", "server.key"),
                                 "-pubout"), key)
        self.assertEqual(os.stat(path("renewed/server/server.key")).st_mode & 0o777, 0o640)

    def test_key_store_of_an_older_version_gets_its_list_and_knows_whom_it_has(self) -> None:
        for name in ("alice", "bob"):
            gen_cert(name, store="older")
        os.remove(path("older/ca/ca.crl"))
        shutil.rmtree(path("older/ca/issued"))
        os.rename(path("older/bob"), path("older/bob moved away"))
        result = gen_cert("carol", store="older")
        self.assertEqual((result.returncode, "had no revocation list" in result.stderr), (0, True), result)
        for name in ("alice", "bob"):
            self.assertEqual(gen_cert("--revoke", name, store="older").returncode, 0)
        self.assertIn("certificate revoked", self.verdict("older", "bob moved away/bob.crt"))
        self.assertEqual(self.verdict("older", "carol/carol.crt"), "OK")
        # It is never begun anew by itself.
        for harm, words in (("cut", "is damaged"), ("remove", "restore it from a backup")):
            if harm == "cut":
                os.truncate(path("older/ca/ca.crl"), 300)
            else:
                os.remove(path("older/ca/ca.crl"))
            result = gen_cert("dave", store="older")
            self.assertEqual((result.returncode, words in result.stderr), (2, True), result)

    def test_killed_at_any_command_it_leaves_a_pair_and_all_revocations_and_the_next_goes_on(self) -> None:
        os.mkdir(path("killing"))
        with open(path("killing/mv"), "w", encoding="utf-8") as file:
            file.write('#!/bin/sh\nread -r left <"$STEPS"\necho $((left - 1)) >"$STEPS"\n'
                       '[ "$left" != 0 ] || kill -9 0\nPATH=/usr/bin:/bin exec "${0##*/}" "$@"\n')
        os.chmod(path("killing/mv"), 0o755)
        for tool in ("rmdir", "openssl", "mkdir", "cp", "cat", "rm", "mktemp", "date"):
            os.symlink("mv", path("killing", tool))
        for name in ("alice", "eve"):
            gen_cert(name, store="whole")
        gen_cert("--revoke", "eve", store="whole")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.kill, (["--renew", "alice"], ["--revoke", "alice"], ["alice"],
                                      ["alice", "--pkcs12"])))

    def kill(self, arguments: list[str]) -> None:
        """Kill a run, and all that it started, at one command after the other."""
        store, steps = f"killed-{''.join(arguments)}", path(f"steps-{''.join(arguments)}")
        first = arguments == ["alice"]  # In an empty key store.
        for step in range(500):
            if not first:
                shutil.copytree(path("whole"), path(store))
            with open(steps, "w", encoding="utf-8") as file:
                file.write(f"{step}\n")
            killed = subprocess.run([os.path.join(ROOT, "gen_cert.sh"), *arguments], capture_output=True,
                                    start_new_session=True, env={
                **os.environ, "KEY_STORE": path(store), "STEPS": steps,
                "PATH": path("killing") + ":" + os.environ["PATH"]})
            if not first:
                pairs = [self.matching(store, name) for name in os.listdir(path(store))
                         if name.startswith("alice")]
                self.assertIn(True, pairs, (arguments, step))
                self.assertIn("certificate revoked", self.verdict(store, "eve/eve.crt"), (arguments, step))
            if killed.returncode == 0:
                break
            self.assertEqual(killed.returncode, -signal.SIGKILL, killed)
            result = gen_cert("frank", store=store)
            self.assertEqual(result.returncode, 0, (arguments, step, result))
            self.assertEqual(self.verdict(store, "frank/frank.crt"), "OK")
            self.assertTrue(first or self.matching(store, "alice"), (arguments, step))
            self.assertEqual(glob.glob(path(store, ".making*")) + glob.glob(path(store, ".renewing*")),
                             [], (arguments, step))
            if "--revoke" in arguments or "--renew" in arguments:
                self.assertEqual(gen_cert("--revoke", "alice", store=store).returncode, 0)
                for name in os.listdir(path(store)):
                    if name.startswith("alice"):
                        self.assertIn("certificate revoked", self.verdict(store, f"{name}/alice.crt"),
                                      (arguments, step))
            shutil.rmtree(path(store))
        self.assertGreater(step, 5)
        shutil.rmtree(path(store))

    def test_disk_that_is_full_at_any_step_leaves_what_the_next_run_completes(self) -> None:
        os.mkdir(path("small"))
        script = """mount -t tmpfs -o size="$1"k tmpfs "$2" || exit 77
KEY_STORE=$2/store "$3" $4 >&2; echo $?
mount -o remount,size=4m "$2"
KEY_STORE=$2/store "$3" bob >&2 && KEY_STORE=$2/store "$3" --revoke bob >&2 &&
    openssl crl -in "$2/store/ca/ca.crl" -noout -CAfile "$2/store/ca/ca.crt" >&2 && ls -A "$2/store" """
        ended = set()
        for size in range(4, 68, 4):
            for arguments in ("server", "alice --pkcs12"):
                result = subprocess.run(
                    ["unshare", "--map-root-user", "--mount", "bash", "-c", script, "-", str(size),
                     path("small"), os.path.join(ROOT, "gen_cert.sh"), arguments],
                    capture_output=True, text=True)
                if result.returncode in (1, 77) and not result.stdout:
                    self.skipTest(f"needs the right to mount a small file system: {result.stderr}")
                self.assertEqual(result.returncode, 0, (size, arguments, result.stderr))
                status, *left = result.stdout.split()
                ended.add(status)
                self.assertLessEqual(set(left), {".lock", "ca", "bob", "alice", "server"}, (size, arguments))
                self.assertTrue(status == "0" or "gen_cert.sh: " in result.stderr, (size, result.stderr))
        self.assertIn("0", ended)
        self.assertGreater(len(ended), 1)

    def test_new_ca_is_said_and_none_is_made_beside_the_certificates_of_another(self) -> None:
        self.assertIn(f"a new CA, in {path('first')}/ca", gen_cert("alice", store="first").stdout)
        self.assertNotIn("a new CA", gen_cert("bob", store="first").stdout)
        shutil.move(path("first/ca"), path("first ca"))
        result = gen_cert("server", store="first")
        self.assertEqual((result.returncode, "restore" in result.stderr), (2, True), result)
        self.assertEqual(set(os.listdir(path("first"))), {".lock", "alice", "bob"})

    def test_all_that_is_made_began_an_hour_ago(self) -> None:
        gen_cert("alice", store="hour")
        gen_cert("--revoke", "alice", store="hour")
        for kind, name, option, expected in (("x509", "ca/ca.crt", "-startdate", 0),
                                             ("x509", "alice/alice.crt", "-startdate", 0),
                                             ("x509", "alice/alice.crt", "-enddate", 825 * 86400),
                                             ("crl", "ca/ca.crl", "-lastupdate", 0)):
            moment = openssl(kind, "-in", path("hour", name), "-noout", option).strip().partition("=")[2]
            offset = ssl.cert_time_to_seconds(moment) - time.time()
            self.assertLess(abs(offset + 3600 - expected), 300, (name, option))

    def test_list_has_a_line_for_each_certificate(self) -> None:
        for arguments in (("alice",), ("bob",), ("--revoke", "bob"), ("server",), ("--renew", "alice")):
            self.assertEqual(gen_cert(*arguments, store="listed").returncode, 0)
        self.assertEqual(re.findall(r"(?m)^(\S+) +until \w{3} .{2} .{8} \d{4} GMT   (\w+)$",
                                    gen_cert("--list", store="listed").stdout),
                         [("alice", "good"), ("alice", "good"), ("bob", "revoked"), ("server", "good")])

    def test_server_that_is_there_or_was_revoked_comes_with_the_command_that_keeps_its_names(self) -> None:
        gen_cert("server", "play.example.org", "10.1.2.3", store="hinted")
        self.assertIn("--renew server NAME...", gen_cert("server", "x.org", store="hinted").stderr)
        gen_cert("--revoke", "server", store="hinted")
        self.assertIn("gen_cert.sh --renew server play.example.org 10.1.2.3\n",
                      gen_cert("server", store="hinted").stderr)

    def test_key_store_that_may_not_be_made_written_or_entered_is_one_line(self) -> None:
        gen_cert("alice", store="foreign")
        os.mkdir(path("foreign/empty"))
        with open(path("foreign/file"), "w", encoding="utf-8"):
            pass
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
        os.chmod(path(), 0o711)
        self.addCleanup(os.chmod, path(), 0o700)
        for folder, mode in (("foreign/file/x", 0), ("foreign/empty", 0o555), ("foreign/empty", 0o666),
                             ("foreign/empty/new", 0o555), ("foreign", 0o777)):
            if mode:
                os.chmod(path("foreign"), 0o711)
                os.chmod(path(*folder.removesuffix("/new").split("/")), mode)
            with self.subTest(folder, mode=mode):
                result = subprocess.run([*nobody, "bash", "-s", "carol"], input=read("gen_cert.sh"),
                                        text=True, capture_output=True, cwd="/",
                                        env={**os.environ, "KEY_STORE": path(folder)})
                self.assertEqual((result.returncode, result.stderr.count("\n")), (2, 1), result)
                self.assertRegex(result.stderr, f"^gen_cert.sh: .*{path(folder)}.*KEY_STORE=FOLDER")

    def test_pkcs12_is_taken_by_curl_with_the_password_that_is_shown_once(self) -> None:
        first = gen_cert("zoe", "--pkcs12")
        file, password = path("key_store/zoe/zoe.p12"), first.stdout.split()[-1]
        again = gen_cert("zoe", "--pkcs12")
        self.assertEqual((first.returncode, again.returncode), (0, 2))
        self.assertIn("is there already", again.stderr)
        with Running() as server:
            said = subprocess.run(["curl", "-sS", "--cacert", path("key_store/ca/ca.crt"), "--cert-type",
                                   "P12", "--cert", f"{file}:{password}",
                                   f"https://localhost:{server.port}/api/status"],
                                  capture_output=True, text=True)
            self.assertEqual(json.loads(said.stdout)["version"], playground.__version__, said)
        self.assertEqual(os.stat(file).st_mode & 0o777, 0o600)
        self.assertEqual(gen_cert("--renew", "zoe").returncode, 0)
        self.assertFalse(os.path.exists(file))  # It had the old one.
        self.assertEqual(gen_cert("zoe", "--pkcs12").returncode, 0)

    def test_two_at_once_wait_for_one_another_and_neither_revocation_is_lost(self) -> None:
        os.mkdir(path("without_flock"))
        for folder_of_tools in ("/usr/bin", "/bin"):
            for tool in ("bash", "sed", "env", "mkdir", "openssl", "cut", "paste", "rm", "mv", "cp",
                         "mktemp", "date", "cat", "grep", "rmdir",
                         "sleep", "uname"):
                with contextlib.suppress(FileExistsError):
                    os.symlink(os.path.join(folder_of_tools, tool), path("without_flock", tool))
        said = ""
        for tools in (os.environ["PATH"], path("without_flock")):
            names = [f"{number}.of.{os.path.basename(tools)}" for number in range(3)]
            with ThreadPoolExecutor(len(names)) as pool:
                for arguments in ((), ("--revoke",)):
                    runs = [pool.submit(gen_cert, *arguments, name, store="at_once", PATH=tools)
                            for name in names]
                    self.assertEqual([run.result().returncode for run in runs], [0] * len(runs),
                                     [run.result() for run in runs])
                    said += "".join(run.result().stderr for run in runs)
            for name in names:
                self.assertIn("certificate revoked", self.verdict("at_once", f"{name}/{name}.crt"))
        self.assertIn("waiting for another", said)

    def test_what_cannot_be_renewed_or_revoked_is_refused_and_changes_nothing(self) -> None:
        before = openssl("crl", "-in", path("key_store/ca/ca.crl"))
        for arguments, words in ((["--revoke", "ca"], "new key store"), (["--renew", "ca"], "new key store"),
                                 (["--revoke"], "takes a name"),
                                 (["--renew"], "takes a name"),
                                 (["--revoke", "nobody"], "no certificate of nobody is known"),
                                 (["--renew", "nobody"], "gen_cert.sh nobody makes one"),
                                 (["--revoke", "alice", "bob"], "one name"),
                                 (["--renew", "alice", "bob"], "only a server"),
                                 (["--revoke", "../alice"], "cannot be a name"),
                                 (["--renew", "server", "not a name"], "neither a DNS name"),
                                 (["--revok", "alice"], "cannot be a name")):
            result = gen_cert(*arguments)
            self.assertEqual((result.returncode, words in result.stderr), (2, True), (arguments, result))
        self.assertEqual(gen_cert("--revoke", "alice", store="no_such").returncode, 2)
        self.assertFalse(os.path.exists(path("no_such")))
        self.assertEqual(openssl("crl", "-in", path("key_store/ca/ca.crl")), before)


class Strict(unittest.TestCase):
    """What gen_cert.sh makes, before those who look most closely."""

    def test_python_3_13s_default_takes_both_sides(self) -> None:
        strict = ssl.VERIFY_X509_STRICT | ssl.VerifyFlags(0x80000)  # The latter has no name before 3.10.
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client, server = tls("alice"), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.verify_mode = ssl.CERT_REQUIRED
        server.load_verify_locations(path("key_store/ca/ca.crt"))
        server.load_verify_locations(path("key_store/ca/ca.crl"))
        server.load_cert_chain(*(path(f"key_store/server/server.{ending}") for ending in ("crt", "key")))
        client.verify_flags |= strict
        server.verify_flags |= strict | ssl.VERIFY_CRL_CHECK_LEAF
        ours = client.wrap_bio(to_client, to_server, server_hostname="localhost")
        theirs = server.wrap_bio(to_server, to_client, server_side=True)
        for side in (ours, theirs, ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        self.assertTrue(theirs.getpeercert() and ours.getpeercert())

    @unittest.skipUnless(shutil.which("javac"), "no javac: apt-get install default-jdk-headless")
    def test_java_takes_both_sides_as_the_guide_for_users_says(self) -> None:
        guide = read("docs/user.md")
        password = gen_cert("java", "--pkcs12").stdout.split()[-1]
        program, = re.findall(r"```\n(import java.*?)```", guide, re.S)
        with open(path("key_store/java/Ask.java"), "w", encoding="utf-8") as file, Running() as server:
            file.write(program.replace("50052", str(server.port)).replace("play.example.org", "localhost"))
            file.flush()
            commands, = re.findall(r"```\n(keytool .*?)```", guide, re.S)
            said = subprocess.run(["bash", "-ec", commands.replace("PASSWORD", password).replace(
                "some_client", "java")], cwd=path("key_store/java"), capture_output=True, text=True)
            self.assertIn('"version"', said.stdout, said)

    @unittest.skipUnless(shutil.which("go"), "no go: apt-get install golang-go")
    def test_go_takes_both_sides(self) -> None:
        with open(path("ask.go"), "w", encoding="utf-8") as file, Running() as server:
            file.write("""package main
import ("crypto/tls"; "crypto/x509"; "fmt"; "io"; "os")
func main() {
    pair, err := tls.LoadX509KeyPair("alice.crt", "alice.key")
    if err != nil { panic(err) }
    ca, _ := os.ReadFile("ca.crt")
    pool := x509.NewCertPool()
    pool.AppendCertsFromPEM(ca)
    config := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
    connection, err := tls.Dial("tcp", os.Args[1], config)
    if err != nil { panic(err) }
    fmt.Fprint(connection, "GET /api/status HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    io.Copy(os.Stdout, connection)
}
""")
            file.flush()
            said = subprocess.run(["go", "run", file.name, f"localhost:{server.port}"], capture_output=True,
                                  text=True, cwd=path("key_store/alice"), timeout=200,
                                  env={**os.environ, "GOCACHE": path("go"), "GOPATH": path("gopath")})
            self.assertIn("HTTP/1.1 200", said.stdout, said)


class TlsFiles(unittest.TestCase):
    def lifetime(self, server: Running, context: ssl.SSLContext) -> float:
        """Beat on one connection, keep another one idle, until both have ended; return how long it took."""
        def connected() -> ssl.SSLSocket:
            plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS)
            return context.wrap_socket(plain, server_hostname="localhost")
        started = time.monotonic()
        with connected() as beating, connected() as idle:
            while is_answered(beating):
                self.assertLess(time.monotonic() - started, 20)
                time.sleep(0.25)
            ended = time.monotonic() - started
            idle.settimeout(2)
            self.assertEqual(receive_all(idle), b"")
            return ended

    def test_kept_connection_ends_with_its_certificate(self) -> None:
        with Running() as server:
            context = our_ca().certify("/CN=alice", 4)
            self.assertLess(abs(self.lifetime(server, context) - 4), 2.5)
            self.assertEqual(server.call("alice", "status")[0], 200)

    def test_kept_connection_ends_with_the_revocation_list(self) -> None:
        crl = our_ca().list_for(8, path("short.crl"))
        with Running(f"--crl={crl}") as server:
            # Of the eight seconds, the start took some.
            self.assertLess(self.lifetime(server, tls("alice")), 8 + 2.5)

    def test_list_whose_issuer_only_occurs_somewhere_in_the_cas_certificate_is_refused(self) -> None:
        other = another_ca("Another CA")
        named = another_ca("Named CA", "subjectAltName = dirName:other\n[other]\nCN = Another CA")
        crl = Ca(f"{other}.key", f"{other}.crt").list_for(90 * 86400, path("another.crl"))
        self.assertIn(f"--crl {crl}", refused(f"--ca_crt={named}.crt", f"--crl={crl}"))

    def test_ca_without_a_list_while_another_one_has_one_is_told_at_start_and_by_check(self) -> None:
        other = another_ca("Listless CA")
        with open(path("two.crt"), "w", encoding="utf-8") as bundle:
            for name in (path("key_store/ca/ca.crt"), f"{other}.crt"):
                with open(name, encoding="utf-8") as file:
                    bundle.write(file.read())
        crl, both = path("key_store/ca/ca.crl"), path("both.crl")
        with open(both, "w", encoding="utf-8") as bundle:
            for name in (crl, Ca(f"{other}.key", f"{other}.crt").list_for(90 * 86400, path("other.crl"))):
                with open(name, encoding="utf-8") as file:
                    bundle.write(file.read())
        for lists, told in ((crl, True), (both, False)):
            with self.subTest(told=told):
                with Running(f"--ca_crt={path('two.crt')}", f"--crl={lists}") as server:
                    self.assertEqual(server.call("alice", "status")[0], 200)
                warnings = server.lines("level=WARNING event=tls")
                self.assertEqual(len(warnings), int(told), warnings)
                check = checked(f"--ca_crt={path('two.crt')}", f"--crl={lists}").stdout
                self.assertEqual(len(re.findall(r"(?m)^WRONG .*\b(?:list|crl)\b", check)), int(told), check)

    def test_certificate_that_is_no_cas_is_refused_in_words(self) -> None:
        certificate = path("key_store/server/server.crt")
        line = refused(f"--ca_crt={certificate}")
        self.assertIn(f"--ca_crt {certificate}", line)
        self.assertRegex(line, "name the CA's certificate")
        self.assertNotRegex(line, r"min\(|argument|empty")


class Future(unittest.TestCase):
    """Files whose time has not come are judged again when it comes; at a start and by --check as well."""

    SECONDS = 9  # Until they begin: longer than a server needs to start and to see that they have changed.

    def admitted(self, server: Running, client: str | ssl.SSLContext) -> bool:
        context = tls(client) if isinstance(client, str) else client
        plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS)
        with plain, contextlib.suppress(OSError), \
                context.wrap_socket(plain, server_hostname="localhost") as connection:
            return is_answered(connection)
        return False

    def revoking_alice(self, name: str) -> Ca:
        authority = our_ca()
        with open(f"{authority.folder}/index", "w", encoding="utf-8") as file:
            serial = openssl("x509", "-in", path("key_store/alice/alice.crt"), "-noout", "-serial")
            file.write(f"R\t{from_now(0)[2:]}\t{from_now(0)[2:]}\t{serial.strip().partition('=')[2]}\tunknown\t"
                       "/CN=alice\n")
        authority.list_for(90 * 86400, name, self.SECONDS)
        return authority

    def test_list_of_the_future_shuts_out_at_once_and_is_openssls_when_its_time_comes(self) -> None:
        crl = our_ca().list_for(90 * 86400, path("future.crl"))
        with Running(f"--crl={crl}") as server, server.connect("alice") as kept:
            self.assertTrue(is_answered(kept))
            self.revoking_alice(crl)
            begin = time.time() + self.SECONDS
            eventually(lambda: not self.admitted(server, "alice"), "it is shut out")
            self.assertLess(time.time(), begin)
            self.assertEqual(receive_all(kept), b"")
            self.assertTrue(self.admitted(server, "bob"))
            self.assertEqual(len(server.lines(f"level=WARNING event=tls file={crl} begins=")), 1)
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: len(server.lines("outcome=reloaded")) == 2, "it is judged again")
            self.assertEqual([self.admitted(server, client) for client in ("alice", "bob")], [False, True])
            eventually(lambda: len(server.lines("outcome=reloaded")) == 3, "its time has come")
            self.assertGreaterEqual(time.time(), begin - 1)
            with self.assertRaisesRegex(ssl.SSLError, "(?i)certificate.revoked"), \
                    server.connect("alice") as heard:
                heard.sendall(STATUS)
                heard.recv(1)
            self.assertTrue(self.admitted(server, "bob"))

    def test_start_and_check_take_a_list_and_a_pair_of_the_future_as_a_reload_does(self) -> None:
        crl, pair = path("early.crl"), path("early.crt")
        self.revoking_alice(crl)
        self.pair(pair)
        said = checked(f"--crl={crl}", f"--server_crt={pair}").stdout
        self.assertEqual(re.findall(r"(?m)^WRONG  (\S+) begins at ", said), [pair, crl], said)
        with Running(f"--crl={crl}", f"--server_crt={pair}") as server:
            unverified = tls("bob")
            unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
            self.assertTrue(self.admitted(server, unverified))
            self.assertEqual(len(server.lines(" begins=")), 2)
            eventually(lambda: self.admitted(server, "bob"), "its time has come")
            self.assertFalse(self.admitted(server, "alice"))

    def pair(self, name: str) -> None:
        """Certify the server's key for the future."""
        with open(f"{name}.ext", "w", encoding="utf-8") as file:
            file.write("extendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost\n")
        our_ca().sign("/CN=server", path("key_store/server/server.key"), self.SECONDS, 86400, name,
                      "-extfile", f"{name}.ext")

    def test_pair_of_the_future_leaves_the_good_one_in_use_until_its_time_comes(self) -> None:
        pair = path("later.crt")
        shutil.copy(path("key_store/server/server.crt"), pair)
        with Running(f"--server_crt={pair}") as server:
            self.pair(pair)
            begin = time.time() + self.SECONDS
            eventually(lambda: server.lines(f"level=WARNING event=tls file={pair} begins="), "it is noticed")
            lost = server.lines(f"level=WARNING event=tls file={pair} lacks=")  # Its names: see below.
            self.assertEqual((len(lost), "127.0.0.1" in lost[0]), (1, True))

            def serial() -> Any:
                with server.connect() as connection:
                    certificate = connection.getpeercert()
                    assert certificate
                    return certificate["serialNumber"]
            self.assertNotEqual(serial(), "77000001")
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: serial() == "77000001", "its time has come")
            self.assertGreaterEqual(time.time(), begin - 1)

    def test_ca_and_client_of_the_future_are_let_in_when_their_time_comes(self) -> None:
        with Running() as server:
            early = our_ca().certify("/CN=alice", 86400, 4)
            self.assertFalse(self.admitted(server, early))
            eventually(lambda: self.admitted(server, early), "the client's time has come")
            self.assertTrue(server.lines("certificate is not yet valid"))
        other, bundle = another_ca("Early CA"), path("early-ca.crt")
        with open(f"{other}.ext", "w", encoding="utf-8") as file:
            file.write("basicConstraints = critical, CA:TRUE\n")
        shutil.copy(path("key_store/ca/ca.crt"), bundle)
        ours = Ca(f"{other}.key", f"{other}.crt")
        client = ours.certify("/CN=alice", 86400)
        with Running(f"--ca_crt={bundle}", f"--server_crt={self.with_root()}") as server:
            ours.sign("/CN=Early CA", f"{other}.key", self.SECONDS, 86400, bundle, "-selfsign", "-extfile",
                      f"{other}.ext")
            eventually(lambda: server.lines(f"event=tls file={bundle} begins="), "it is noticed")
            self.assertEqual([self.admitted(server, one) for one in ("alice", client)], [True, False])
            eventually(lambda: self.admitted(server, client), "the CA's time has come")
            self.assertFalse(self.admitted(server, "alice"))

    def with_root(self) -> str:
        """Return the server's certificate with its CA's behind it."""
        with open(path("with-root.crt"), "w", encoding="utf-8") as file:
            file.write(read(path("key_store/server/server.crt")) + read(path("key_store/ca/ca.crt")))
        return file.name


RSA, EC, ED25519 = ("rsa:2048",), ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), ("ed25519",)
A_CA = "basicConstraints = critical, CA:TRUE\nkeyUsage = keyCertSign, cRLSign"
SERVER = "extendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost, IP:127.0.0.1"
CLIENT = "extendedKeyUsage = clientAuth"


def issue(name: str, extensions: str, by: str = "", key: tuple[str, ...] = EC, common_name: str = "",
          *options: str, mask: str = "utf8only") -> str:
    """Make a certificate as others do, signed by another or by itself; return the start of its paths."""
    with open(path(f"{name}.conf"), "w", encoding="utf-8") as file:
        file.write(f"[req]\ndistinguished_name = d\nx509_extensions = e\nprompt = no\nutf8 = yes\n"
                   f"string_mask = {mask}\n[d]\n"
                   f"CN = {common_name or name}\n[e]\n{extensions}\n")
    openssl("req", "-x509", "-newkey", *key, "-nodes", "-days", "90", "-config", path(f"{name}.conf"),
            "-keyout", path(f"{name}.key"), "-out", path(f"{name}.crt"), *options,
            *(("-CA", f"{by}.crt", "-CAkey", f"{by}.key") if by else ()))
    return path(name)


def joined(name: str, *parts: str, change: Callable[[str], str] = str) -> str:
    """Write several files into one; return its path."""
    with open(path(name), "w", encoding="utf-8", newline="") as file:
        file.write(change("".join(map(read, parts))))
    return file.name


class Others(unittest.TestCase):
    """Certificates that gen_cert.sh did not make."""

    def test_what_others_make_is_taken(self) -> None:
        root = issue("root", A_CA)
        between = issue("between", A_CA, root)
        rsa, ed25519 = issue("rsa-root", A_CA, key=RSA), issue("ed-root", A_CA, key=ED25519)

        def server(name: str, by: str, key: tuple[str, ...] = EC) -> str:
            return issue(name, SERVER, by, key)

        def client(name: str, by: str, key: tuple[str, ...] = EC, common_name: str = "") -> str:
            return issue(name, CLIENT, by, key, common_name)
        plain = server("s1", root), client("c1", root)
        below = server("s2", between), client("c2", between)
        chain = joined("s2-chain.crt", f"{below[0]}.crt", f"{between}.crt")
        two = joined("two-cas.crt", f"{root}.crt", f"{rsa}.crt")
        lists = joined("lists.crl", *(Ca(f"{one}.key", f"{one}.crt").list_for(90 * 86400, f"{one}.crl")
                                      for one in (root, between)))
        bmp = issue("c4", CLIENT, root, EC, "Zoë", mask="MASK:0x800")
        for what, ca_crt, server_crt, server_key, crl, client_crt, client_key, expected in (
            ("a CA between, in both chains", f"{root}.crt", chain, below[0], "",
             joined("c2-chain.crt", f"{below[1]}.crt", f"{between}.crt"), below[1], "c2"),
            ("a CA between, known to the server", joined("both.crt", f"{root}.crt", f"{between}.crt"),
             f"{below[0]}.crt", below[0], lists, f"{below[1]}.crt", below[1], "c2"),
            ("a CA between alone", f"{between}.crt", chain, below[0], f"{between}.crl", f"{below[1]}.crt",
             below[1], "c2"),
            ("several CAs, the first", two, f"{plain[0]}.crt", plain[0], "", f"{plain[1]}.crt", plain[1],
             "c1"),
            ("several CAs, RSA", two, f"{server('s3', rsa, RSA)}.crt", path("s3"), "",
             f"{client('c3', rsa, RSA)}.crt", path("c3"), "c3"),
            ("Ed25519", f"{ed25519}.crt", f"{server('s5', ed25519, ED25519)}.crt", path("s5"), "",
             f"{client('c5', ed25519, ED25519)}.crt", path("c5"), "c5"),
            ("a name in UTF-8", f"{root}.crt", f"{plain[0]}.crt", plain[0], "",
             f"{client('c6', root, EC, 'Zoë 王')}.crt", path("c6"), "Zoë 王"),
            ("a name in BMP", f"{root}.crt", f"{plain[0]}.crt", plain[0], "", f"{bmp}.crt", bmp, "Zoë"),
            ("text before, and Windows' line ends", joined("dos-ca.crt", f"{root}.crt", change=dos),
             joined("dos.crt", f"{plain[0]}.crt", change=dos), plain[0],
             joined("dos.crl", f"{root}.crl", change=dos), f"{plain[1]}.crt", plain[1], "c1"),
        ):
            with self.subTest(what), Running(f"--ca_crt={ca_crt}", f"--server_crt={server_crt}",
                                             f"--server_key={server_key}.key", f"--crl={crl}") as running:
                context = ssl.create_default_context(cafile=two if ca_crt == two else f"{root}.crt"
                                                     if ca_crt != f"{ed25519}.crt" else ca_crt)
                context.load_cert_chain(client_crt, f"{client_key}.key")
                plain_socket = socket.create_connection(("127.0.0.1", running.port), PATIENCE_SECONDS)
                with context.wrap_socket(plain_socket, server_hostname="localhost") as connection:
                    self.assertTrue(is_answered(connection))
                eventually(lambda: running.lines("api=status"), "it is logged")
                shown = expected if expected.isascii() else json.dumps(expected)
                self.assertIn(f"client={shown} ", running.lines("api=status")[0])
                self.assertEqual(running.lines("level=WARNING"), [])

    def test_what_every_client_would_refuse_is_refused_with_the_remedy(self) -> None:
        root = issue("refused-root", A_CA)
        below = issue("refused-server", SERVER, issue("refused-between", A_CA, root))
        ours, alice = path("key_store/ca/ca.crt"), path("key_store/alice/alice")
        locked = path("refused-locked.key")
        openssl("pkcs8", "-topk8", "-in", path("key_store/server/server.key"), "-passout", "pass:x",
                "-out", locked)
        for crt, key, ca_crt, words in (
            (f"{alice}.crt", f"{alice}.key", ours,
             f"--server_crt {alice}.crt would.*gen_cert.sh server makes it"),
            (f"{below}.crt", f"{below}.key", f"{root}.crt",
             f"--server_crt {below}.crt would.*between it and its CA"),
            (path("key_store/server/server.crt"), locked, ours, f"openssl pkey -in {locked} -out"),
        ):
            with self.subTest(crt=crt, key=key):
                options = f"--server_crt={crt}", f"--server_key={key}", f"--ca_crt={ca_crt}"
                self.assertRegex(refused(*options), words)
                self.assertRegex(checked(*options).stdout, f"(?m)^WRONG  start: .*{words}")

    def test_times_are_read_as_rfc_5280_has_them(self) -> None:
        for tag, content, expected in ((0x17, b"491231235959Z", "2049-12-31T23:59:59Z"),
                                       (0x17, b"500101000000Z", "1950-01-01T00:00:00Z"),
                                       (0x18, b"20500101000000Z", "2050-01-01T00:00:00Z")):
            self.assertEqual(playground.rfc3339(playground.der_time(tag, content)), expected)
        for content in (b"", b"26", b"261301000000Z", b"2611270600xxZ"):
            with self.assertRaises(ValueError):
                playground.der_time(0x17, content)

    def test_nobody_is_let_in_and_so_nobody_idle_once_any_file_has_ended(self) -> None:
        now, context = time.time(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for ended in ("", "ca_crt", "server_crt", "crl"):
            expiries = {name: now + (-1 if name == ended else 60) for name in ("ca_crt", "server_crt", "crl")}
            held = playground.Tls(context, b"", frozenset(), frozenset(), {}, expiries, (), ())
            self.assertEqual(held.lets_nobody_in(), bool(ended), ended)

    def test_names_that_the_last_start_had_and_this_one_lacks_are_a_warning_once(self) -> None:
        root, pair = issue("named-root", A_CA), path("named")
        more = f"{SERVER}, DNS:play.example.org, IP:10.0.0.7, email:a@example.org, dirName:d\n[d]\nCN = there"
        options = f"--ca_crt={root}.crt", f"--server_crt={pair}.crt", f"--server_key={pair}.key"
        for extensions, warnings in (more, 0), (SERVER, 1), (SERVER, 0), (more, 0):
            issue("named", extensions, root)
            with self.subTest(extensions=extensions, warnings=warnings):
                check = checked(*options).stdout
                self.assertEqual(check.count("for 10.0.0.7, play.example.org at"), warnings)
                with Running(*options) as running:
                    said = running.lines(f"level=WARNING event=tls file={pair}.crt lacks=")
                    self.assertEqual([' lacks="10.0.0.7,play.example.org" ' in line for line in said],
                                     [True] * warnings)
        os.remove(f"{pair}.crt.names")
        os.mkfifo(f"{pair}.crt.names")  # Neither written nor read: whoever opens it waits.
        issue("named", SERVER, root)
        with Running(*options) as running:
            self.assertEqual(running.lines("lacks="), [])
            issue("named", "extendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost", root)
            eventually(lambda: running.lines("lacks=127.0.0.1 "), "the change of a running server is told")

    def test_list_without_an_end_has_none(self) -> None:
        root = issue("endless-root", A_CA)
        issue("endless-server", SERVER, root)
        crl = Ca(f"{root}.key", f"{root}.crt").list_for(90 * 86400, path("ending.crl"))
        (tbs, algorithm, _) = playground.der(playground.der(playground.pem(read(crl).encode(), "X509 CRL")[0])
                                             [0][1])
        fields = playground.der(tbs[1])
        del fields[[tag for tag, _ in fields].index(0x17) + 1]  # nextUpdate, behind thisUpdate.
        body = encoded(tbs[0], b"".join(encoded(*field) for field in fields))
        signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", f"{root}.key"], input=body,
                                   check=True, capture_output=True).stdout
        whole = encoded(0x30, body + encoded(*algorithm) + encoded(0x03, b"\0" + signature))
        with open(path("endless.crl"), "w", encoding="utf-8") as file:
            text = base64.encodebytes(whole).decode()
            file.write(f"-----BEGIN X509 CRL-----\n{text}-----END X509 CRL-----\n")
        options = (f"--ca_crt={root}.crt", f"--crl={file.name}", f"--server_crt={path('endless-server')}.crt",
                   f"--server_key={path('endless-server')}.key")
        self.assertIn(f"ok     {file.name} has no end\n", checked(*options).stdout)
        context = ssl.create_default_context(cafile=f"{root}.crt")
        context.load_cert_chain(f"{issue('endless-client', CLIENT, root)}.crt", path("endless-client.key"))
        with Running(*options) as running:
            plain = socket.create_connection(("127.0.0.1", running.port), PATIENCE_SECONDS)
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                self.assertTrue(is_answered(connection))

    def test_serial_number_that_another_cas_list_names_is_let_in(self) -> None:
        one, other = issue("one-root", A_CA), issue("other-root", A_CA)
        crls = []
        for root in (one, other):
            authority = Ca(f"{root}.key", f"{root}.crt")
            if root == other:
                with open(f"{authority.folder}/index", "w", encoding="utf-8") as file:
                    file.write(f"R\t{from_now(0)[2:]}\t{from_now(0)[2:]}\t05\tunknown\t/CN=x\n")
            crls.append(authority.list_for(86400, f"{root}.crl"))
        client = issue("fifth", CLIENT, one, EC, "fifth", "-set_serial", "5")
        server = issue("one-server", SERVER, one)
        with Running(f"--ca_crt={joined('one-and-other.crt', f'{one}.crt', f'{other}.crt')}",
                     f"--crl={joined('one-and-other.crl', *crls)}", f"--server_crt={server}.crt",
                     f"--server_key={server}.key") as running:
            context = ssl.create_default_context(cafile=f"{one}.crt")
            context.load_cert_chain(f"{client}.crt", f"{client}.key")
            plain = socket.create_connection(("127.0.0.1", running.port), PATIENCE_SECONDS)
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                self.assertTrue(is_answered(connection))

    def test_list_beside_the_ca_is_used_also_one_that_comes_later_and_its_lack_is_said(self) -> None:
        shutil.copytree(path("key_store"), path("beside"))
        ca, crl = path("beside/ca/ca.crt"), path("beside/ca/ca.crl")
        with Running(f"--ca_crt={ca}") as server:
            self.assertEqual(len(server.lines(f" crl={crl} ")), 1)
        self.assertEqual(gen_cert("--revoke", "alice", store="beside").returncode, 0)
        os.rename(crl, f"{crl}.away")
        self.assertRegex(checked(f"--ca_crt={ca}").stdout,
                         "(?m)^-      revocation list: none, so no certificate is")
        with Running(f"--ca_crt={ca}") as server:
            self.assertEqual(len(server.lines('crl="none, so no certificate is revoked"')), 1)
            os.rename(f"{crl}.away", crl)
            eventually(lambda: server.lines("outcome=reloaded"), "it is taken up")
            with contextlib.suppress(OSError), server.connect("alice") as connection:
                self.assertFalse(is_answered(connection))
            os.remove(crl)  # One that has gone is missed.
            eventually(lambda: server.lines('outcome="kept as it was"'), "it is missed")
            with contextlib.suppress(OSError), server.connect("alice") as connection:
                self.assertFalse(is_answered(connection))


def encoded(tag: int, content: bytes) -> bytes:
    """Return a DER element (X.690, section 8.1) of less than 64 KiB."""
    return bytes([tag, 0x82, *divmod(len(content), 256)]) + content if len(content) > 255 else (
        bytes([tag, *([0x81] if len(content) > 127 else []), len(content)]) + content)


def dos(text: str) -> str:
    return ("Subject: CN = somebody, as openssl x509 -text shows it\n" + text).replace("\n", "\r\n")
