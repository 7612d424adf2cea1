"""Scan a server with sslyze, and compare what it finds with what SECURITY.md answers: see scripts/tls."""

from __future__ import annotations

import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests import harness as test


def main() -> int:
    test.make_folder()
    store = test.path("key_store")
    with test.Running(test.empty_cluster("steady", "sleep 1000")[0]) as server:
        said = subprocess.run(
            ["sslyze", "--mozilla_config=intermediate", f"--certinfo_ca_file={store}/ca/ca.crt",
             f"--cert={store}/alice/alice.crt", f"--key={store}/alice/alice.key", f"localhost:{server.port}"],
            capture_output=True, text=True, timeout=300).stdout
    answers = test.read("SECURITY.md").partition("## What scanners say")[2].partition("\n## ")[0]
    notes = re.findall(r"(?m)^ +\* (\w+): (.+)$", said.partition("COMPLIANCE AGAINST")[2])
    # That public CAs do not know ours is as it should be; the one supplied does.
    wrong = [line.strip() for line in said.splitlines()
             if re.search(r"VULNERABLE|FAILED|WARNING|ERROR", line)
             and not re.search(r" CA Store |Not compliant|contains the anchor certificate", line)]
    wrong += [f"{name}: {text}" for name, text in notes if f"**{name}**" not in answers]
    if not re.search(r"Supplied CA file CA Store .*OK - Certificate is trusted", said):
        wrong.append("the certificate is not trusted, or nothing was scanned")
    for name, text in notes:
        print(f"{'answered' if f'**{name}**' in answers else 'WRONG   '} {name}: {text}")
    if wrong:
        print(said, *wrong, sep="\n")
    print(f"tls: {len(wrong)} findings that SECURITY.md does not answer")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
