"""Tests of gen_cert.sh, also when it is cut short, and of what the server makes of TLS files."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import unittest
import unittest.mock
from concurrent.futures import ThreadPoolExecutor

from tests import harness
from tests.harness import (
    PATIENCE_SECONDS,
    ROOT,
    Ca,
    Running,
    another_ca,
    eventually,
    gen_cert,
    is_answered,
    our_ca,
    path,
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
                '#!/bin/sh\ncase "$1 $2" in "x509 -req") sleep 5;; esac\n'
                'exec /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin openssl "$@"\n')
        os.chmod(path("slow/openssl"), 0o755)
        process = subprocess.Popen([os.path.join(ROOT, "gen_cert.sh"), "eve"], start_new_session=True,
                                   stderr=subprocess.DEVNULL,
                                   env={**os.environ, "KEY_STORE": path("slow_store"),
                                        "PATH": path("slow") + ":" + os.environ["PATH"]})
        eventually(lambda: glob.glob(path("slow_store/.making.*/eve/request"))
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

    def test_killed_at_any_step_it_leaves_a_pair_and_every_revocation_and_the_next_run_goes_on(self) -> None:
        os.mkdir(path("killing"))
        with open(path("killing/mv"), "w", encoding="utf-8") as file:  # All that changes what is there.
            file.write('#!/bin/sh\nread -r left <"$STEPS"\necho $((left - 1)) >"$STEPS"\n'
                       '[ "$left" != 0 ] || { kill -9 $PPID; exit 1; }\n'
                       'PATH=/usr/bin:/bin exec "${0##*/}" "$@"\n')
        os.chmod(path("killing/mv"), 0o755)
        os.symlink("mv", path("killing/rmdir"))
        for name in ("alice", "eve"):
            gen_cert(name, store="whole")
        gen_cert("--revoke", "eve", store="whole")
        for action in ("--renew", "--revoke"):
            for step in range(100):
                shutil.copytree(path("whole"), path("killed"))
                with open(path("steps"), "w", encoding="utf-8") as file:
                    file.write(f"{step}\n")
                result = gen_cert(action, "alice", store="killed", STEPS=path("steps"),
                                  PATH=path("killing") + ":" + os.environ["PATH"])
                pairs = [self.matching("killed", name) for name in os.listdir(path("killed"))
                         if name.startswith("alice")]
                self.assertIn(True, pairs, (action, step))
                self.assertIn("certificate revoked", self.verdict("killed", "eve/eve.crt"), (action, step))
                if result.returncode == 0:
                    break
                self.assertEqual(result.returncode, -signal.SIGKILL, result)
                self.assertEqual(gen_cert("frank", store="killed").returncode, 0)
                self.assertTrue(self.matching("killed", "alice"), (action, step))
                self.assertEqual(self.verdict("killed", "frank/frank.crt"), "OK")
                self.assertEqual(glob.glob(path("killed/.making*")) + glob.glob(path("killed/.renewing*")),
                                 [], (action, step))
                self.assertEqual(gen_cert("--revoke", "alice", store="killed").returncode, 0)
                for name in os.listdir(path("killed")):
                    if name.startswith("alice"):
                        self.assertIn("certificate revoked", self.verdict("killed", f"{name}/alice.crt"),
                                      (action, step))
                shutil.rmtree(path("killed"))
            self.assertGreater(step, 0)
            shutil.rmtree(path("killed"))

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
                store = path("key_store/server")
                check = subprocess.run(
                    [sys.executable, os.path.join(ROOT, "playground.py"), "--check", "--namespace=x",
                     f"--ca_crt={path('two.crt')}", f"--crl={lists}", f"--server_key={store}/server.key",
                     f"--server_crt={store}/server.crt"], capture_output=True, text=True, timeout=60,
                    env={**os.environ, "KUBECONFIG": path("dead.kubeconfig")}).stdout
                self.assertEqual(len(re.findall(r"(?m)^WRONG .*\b(?:list|crl)\b", check)), int(told), check)

    def test_certificate_that_is_no_cas_is_refused_in_words(self) -> None:
        certificate = path("key_store/server/server.crt")
        line = refused(f"--ca_crt={certificate}")
        self.assertIn(f"--ca_crt {certificate}", line)
        self.assertRegex(line, "name the CA's certificate")
        self.assertNotRegex(line, r"min\(|argument|empty")
