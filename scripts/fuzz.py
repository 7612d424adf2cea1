"""Fuzz what reads a client's bytes, guided by coverage: scripts/fuzz starts it.

Each target takes any bytes and raises if a property does not hold. Where the rule is simple it is
written down here a second time, in other words than the server's; for HTTP, h11 is that second opinion.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
import urllib.parse
from typing import Any, Callable

import h11

import playground

HERE = os.path.dirname(os.path.abspath(__file__))
# One input, in the thread's own processor time; 16 KiB are parsed in 2 ms, with coverage counted in 10 ms.
PARSE_SECONDS = 0.1
TEMPLATES = [playground.Template(path)
             for path in sorted(glob.glob(os.path.join(HERE, "..", "k8s_templates", "*mysql*.yaml")))]
LABELS: dict[str, str] = {}  # The slugs seen so far, and whose they are.
MAX_LABELS = 200_000


def fuzz_head(data: bytes) -> None:
    """What parse_head accepts h11 reads in the same way; what it refuses h11 refuses, or the list below."""
    head = (data + b"\r\n\r\n").partition(b"\r\n\r\n")[0]
    request, event, rest = outcome(playground.parse_head, head), *h11_reads(head)
    if isinstance(request, playground.ApiError):
        assert request.status != 400 or event is None or stricter(head, event), request.message
        return
    assert event, "h11 refuses it"
    assert event.method == request.method.encode()
    assert asks_for_a_path(head)
    target = re.sub(rb"^https?://[^/?]+/?", b"/", event.target, flags=re.I)
    path, query = escaped(request.path.encode("latin-1")), escaped(request.query)
    assert target in (path + b"?" + query, path if not query else b""), (path, query)
    fields: dict[str, str] = {}
    for name, value in event.headers:
        key, text = name.decode(), value.decode("latin-1")
        fields[key] = f"{fields[key]}, {text}" if key in fields else text
    if event.http_version == b"1.0":
        fields.pop("expect", None)
    if "transfer-encoding" in fields:
        fields["transfer-encoding"] = request.headers["transfer-encoding"]  # h11 has it in lower case.
    assert request.headers == fields, (request.headers, fields)
    length = playground.CHUNKED if "transfer-encoding" in fields else int(fields.get("content-length", 0))
    assert request.length == length <= playground.MAX_BODY_BYTES
    assert isinstance(rest, h11.EndOfMessage) == (not request.length), rest
    options = [option.strip() for option in fields.get("connection", "").lower().split(",")]
    bounded = event.method in (b"GET", b"HEAD") or fields.keys() & {"content-length", "transfer-encoding"}
    asked = event.http_version >= b"1.1" or "keep-alive" in options
    assert request.keep_alive == bool(bounded and asked and "close" not in options)
    assert request.expects == ("expect" in fields)


def h11_reads(head: bytes) -> tuple[h11.Request | None, Any]:
    """Return h11's request and its next event, or None if it refuses.

    The notebook plug-in sends raw bytes above 0x7f in the target; h11 is given them percent-encoded.
    """
    line, end, fields = head.partition(b"\r\n")
    method, space, target = line.partition(b" ")
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        connection.receive_data(method + space + escaped(target) + end + fields + b"\r\n\r\n")
        event = connection.next_event()
        return (event, connection.next_event()) if isinstance(event, h11.Request) else (None, None)
    except h11.RemoteProtocolError:
        return None, None


def stricter(head: bytes, event: h11.Request) -> bool:
    """Tell whether the server refuses what h11 lets pass, as it should: the whole list."""
    names = [name for name, _ in event.headers]
    # Controls, a CR or LF alone, a folded line.
    return (re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n)|\r\n[ \t]", head) is not None
            or event.http_version > b"1.1" and b"host" not in names
            or not asks_for_a_path(head)
            or b"transfer-encoding" in names and (event.http_version < b"1.1" or b"content-length" in names)
            or any(names.count(name) > 1 for name in (b"transfer-encoding", b"expect"))
            or any(name == b"host" and not playground.HOST.fullmatch(value.decode("latin-1"))
                   or name == b"content-length"
                   and (len(value) > 16 or head.lower().count(b"content-length") > 1)
                   for name, value in event.headers))


def asks_for_a_path(head: bytes) -> bool:
    """Tell whether a request's target is a path, or http or https, a host and perhaps a path; and a query."""
    target = head.split(b" ")[1]
    before = escaped(target.partition(b"?")[0]).decode()
    if not before.startswith("/"):
        scheme, found, rest = before.partition("://")
        authority, slash, path = rest.partition("/")
        before = slash + path
        host = target.partition(b"://")[2][:len(authority)].decode("latin-1")
        if not found or scheme.lower() not in ("http", "https") or not playground.HOST.fullmatch(host):
            return False
    plain = urllib.parse.quote(before, safe="/%~!$&'()*+,;=:@") == before
    return plain and b"#" not in target and not re.search("%(?![0-9A-Fa-f]{2})", before)


def escaped(text: bytes) -> bytes:
    """Percent-encode what is not ASCII."""
    return re.sub(rb"[\x80-\xff]", lambda byte: b"%%%02X" % byte[0][0], text)


def read_all(stream: bytes, sizes: bytes) -> tuple[list[tuple[playground.Request, int]], bool]:
    """Read requests as a connection does, from pieces of these sizes, again and again.

    Return them, each with where it ends in the stream, and whether what follows was refused.
    """
    head: playground.Request | None = None
    buffer, searched, at, each, read = b"", 0, 0, itertools.cycle(sizes or b"\xff"), []
    try:
        while at < len(stream):
            start, at = at, min(at + 1 + next(each), len(stream))
            buffer += stream[start:at]
            while True:
                if not head:
                    head, buffer = playground.take_head(buffer, searched)
                    searched = 0 if head else len(buffer)
                if not head:
                    break
                head, buffer, whole = playground.take_body(head, buffer)
                if not whole:
                    break
                read.append((head, at - len(buffer)))
                head = None
    except playground.ApiError:
        return read, True
    return read, False


def fuzz_reading(data: bytes) -> None:
    """However a stream is cut, the same requests are read, and no byte is lost, added or read twice."""
    sizes, stream = data[:4], data[4:]
    read, refused = read_all(stream, sizes)
    assert (read, refused) == read_all(stream, b""), "another reading in other pieces"
    start = 0
    for request, end in read:
        head, rest = playground.take_head(stream[start:end])
        assert head and playground.take_body(head, rest) == (request, b"", True), (start, end, head)
        start = end


def fuzz_chunks(data: bytes) -> None:
    """What take_body reads from chunks h11 reads too, and both end at the same byte."""
    head, _ = playground.take_head(POST + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    assert head
    found = outcome(playground.take_body, head, data)
    # h11 does not take white space before an extension, which section 7.1.1 allows, and reads trailer fields
    # that would frame a body, if they stood at its head; section 7.1.2 lets the server drop them all.
    if (isinstance(found, playground.ApiError) or not found[2]
            or re.search(rb"[ \t];|(?i:transfer-encoding|content-length):", data)):
        return
    connection, body = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), b""
    connection.receive_data(POST + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + data)
    connection.next_event()
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage) and body == found[0].body, (event, body)
    assert connection.trailing_data[0] == found[1], (connection.trailing_data, found[1])


def fuzz_parameters(data: bytes) -> None:
    """What the readers accept the standard library reads, no name twice; route accepts what rules allow."""
    if not data:
        return
    choice, text = data[0], data[1:]
    name = [*playground.API, ""][choice % (len(playground.API) + 1)]
    given = outcome(playground.read_json, text)
    if isinstance(given, dict):
        again = json.loads(text.decode("utf-8"))
        assert isinstance(again, dict) and json.dumps(again) == json.dumps(given)
        objects: list[list[tuple[str, Any]]] = []
        json.loads(text, object_pairs_hook=objects.append)
        assert all(len(dict(pairs)) == len(pairs) for pairs in objects), objects
    asked = outcome(playground.read_query, text)
    if isinstance(asked, dict):
        assert list(asked.items()) == urllib.parse.parse_qsl(
            escaped(text).decode(), keep_blank_values=True, strict_parsing=bool(text), errors="strict")
    method = "POST" if choice & 0x80 else "GET"
    query, body = (b"", text) if choice & 0x40 else (text, b"")
    fields = {"host": "x", "content-length": str(len(body))}
    found = outcome(playground.route, playground.Request(
        method, "/api/" + name, query, fields, len(body), True, False, body))
    if isinstance(found, tuple):
        wanted, function, takes = playground.API[name]
        assert (method, function, set(takes)) == (wanted, found[0], set(found[1]))
        assert all(map(keeps_to_the_rule, found[1].values())), found[1]
        assert isinstance(given if method == "POST" else asked, dict) or not takes


def keeps_to_the_rule(user_id: str) -> bool:
    """Tell whether a text is a user id: what the guide for front ends says, one character after the other."""
    if not 1 <= len(user_id) <= 64 or unicodedata.normalize("NFC", user_id) != user_id:
        return False
    for at, character in enumerate(user_id):
        category = unicodedata.category(character)
        letter_or_digit = category in ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd")
        if not letter_or_digit and (at == 0 or category not in ("Mn", "Mc", "Me")
                                    and character not in "._@-"):
            return False
    return True


def fuzz_user_id(data: bytes) -> None:
    """A user id is accepted if and only if its NFC keeps to the rule; its slug is a DNS label of its own."""
    text = data.decode("utf-8", "surrogatepass") if decodes(data) else data.decode("latin-1")
    user_id = outcome(playground.valid_user_id, text)
    if isinstance(user_id, playground.ApiError):
        normal = unicodedata.normalize("NFC", text)
        assert len(text) > 4 * playground.MAX_USER_ID_CHARACTERS or not keeps_to_the_rule(normal), ascii(text)
        return
    assert user_id == unicodedata.normalize("NFC", text) and keeps_to_the_rule(user_id), ascii(user_id)
    assert playground.valid_user_id(user_id) == user_id
    label = playground.slug(user_id)
    assert 1 <= len(label) <= 40 and label.isascii() and label == label.lower(), label
    assert label.replace("-", "").isalnum() and label[0] != "-" != label[-1], label
    assert LABELS.get(label, user_id) == user_id, f"{user_id!a} and {LABELS[label]!a} are both {label}"
    assert label == user_id or playground.slug(label) != label, f"{user_id!a} and {label} are both {label}"
    if len(LABELS) < MAX_LABELS:
        LABELS[label] = user_id
    assert len(playground.logfmt("request", user=user_id).splitlines()) == 1


def decodes(data: bytes) -> bool:
    """Tell whether these bytes are UTF-8, lone surrogates allowed."""
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def fuzz_template(data: bytes) -> None:
    """A filled template has the template's shape, and each placeholder is its value, whatever that holds."""
    texts = [text.decode("utf-8", "replace") for text in data.split(b"\n")]
    given = dict(zip(playground.EXAMPLE, itertools.chain(texts, itertools.repeat(""))))
    values = {"name": f"mysql-{given['id']}", "database": given["id"], **given}
    del values["id"]
    invented = object.__new__(playground.Template)
    invented.hash, invented.persistent, invented.objects = "", False, [{
        "kind": "Pod", "metadata": {"name": "${name}"}, "texts": texts,
        "more": [{text: text} for text in texts], "number": 1, "nothing": None}]
    for template in (*TEMPLATES, invented):
        before = json.dumps(template.objects)
        wanted = filled(template.objects, values)
        try:
            found = template.objects_of(**given)
        except KeyError:
            assert wanted is None, "a known placeholder is refused"
            continue
        for item, expected in zip(found, wanted):  # The server adds what it relies on itself.
            for name, added in item["metadata"].items():
                if isinstance(added, dict):
                    own = expected["metadata"].setdefault(name, {})
                    assert own.items() <= added.items(), (own, added)
                    expected["metadata"][name] = added
        assert found == wanted, (found, wanted)
        assert json.loads(json.dumps(found)) == found and json.dumps(template.objects) == before


def filled(value: Any, values: dict[str, str]) -> Any:
    """Return a template's value with its placeholders replaced, or None for an unknown placeholder."""
    try:
        return json.loads(json.dumps(value),
                          object_hook=lambda item: {key: replaced(inner, values)
                                                    for key, inner in item.items()})
    except KeyError:
        return None


def replaced(value: Any, values: dict[str, str]) -> Any:
    """Replace the placeholders in a text or a list of texts. Raises KeyError."""
    if isinstance(value, list):
        return [replaced(inner, values) for inner in value]
    if not isinstance(value, str):
        return value
    before, found, rest = value.partition("${")
    name, closed, rest = rest.partition("}")
    if not found or not closed:
        return value
    return before + values[name] + str(replaced(rest, values))


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the function returns, in time, or its ApiError, which must be fit to be sent."""
    started = time.thread_time()
    try:
        return function(*arguments)
    except playground.ApiError as error:
        assert 400 <= error.status < 600 and json.dumps({"error": error.message}).isascii()
        assert error.message.isprintable() and len(error.message) < 1000, error.message
        return error
    finally:
        assert time.thread_time() - started < PARSE_SECONDS, "slow"


# Each with inputs from which the fuzzer starts.
GET, POST, HOST = b"GET /api/status HTTP/1.1\r\n", b"POST /api/create_db HTTP/1.1\r\n", b"Host: x\r\n"
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "head": (fuzz_head, [
        b"GET /api/heart_beat?user_id=%E7%8E%8B HTTP/1.1\r\nHost: localhost:50052\r\n"
        b"User-Agent: curl/7.88.1\r\nAccept: */*",
        b"POST https://x/api/create_db HTTP/1.0\r\nContent-Length: 20\r\n"
        b"Connection: keep-alive, close\r\nhost: [::1]:1",
        b"GET /\xe7 HTTP/1.1\r\nHost: x\r\nX:\t y \t\r\nx:\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked",
        POST + HOST + b"Expect: 100-continue\r\nContent-Length: 0", GET + HOST + b"A: b\r\n" * 50,
        GET + HOST + b"A: " + b"b" * 9999]),
    "reading": (fuzz_reading, [
        b"\0\0\0\0\r\n" + POST + HOST + b"Content-Length: 2\r\n\r\n{}" + GET + HOST + b"\r\n",
        b"\x01\x40\x02\x03" + POST + HOST + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n\r\n\r\n\r\n"
        + GET[:-2] + b"\n\r\n",
        b"\x01\x05\x02\x03" + 2 * (POST + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
                                 b"2;a=b\r\n{}\r\n0\r\nA: b\r\n\r\n")]),
    "chunks": (fuzz_chunks, [
        b'2\r\n{}\r\n0\r\n\r\n' + GET, b'0a;b="\\"";c=d\r\n0123456789\r\n0;e\r\nA: b\r\nC:\r\n\r\n\r\n',
        b"4000\r\n" + b"x" * 0x4000 + b"\r\n0\r\n\r\n", b"1\r\n\r\r\n1\r\n\n\r\n000\r\n\r\n"]),
    "parameters": (fuzz_parameters, [
        b'\xc0{"user_id": "alice", "a": [1, {"b": NaN, "c": "\\ud800"}]}', b'\xc6{"user_id": "\\u0041"}',
        b"\x01user_id=%E7%8E%8B&a=b%20&user_id=\xe7\x8e\x8b", b"\x04"]),
    "user_id": (fuzz_user_id, [text.encode("utf-8", "surrogatepass") for text in (
        "alice", "e\u0301-\u738b.@_\u0663", "a--b", "x" * 41, "x" * 65, "\ud800", "\ufb2c\u0958",
        "\u01c5\u00b2")]),
    "template": (fuzz_template,
                 [b"${name}\n${password}\n$${${slug}}\nmysql-${slug}.${user_id}\n\\1\\g<0>\n${}"]),
}
# What the fuzzer pastes in: it does not see into regular expressions.
WORDS = (
    b"\r\n", b"\r\n\r\n", b"\r\n ", b"\t", b"\r\nHost: ", b"\r\nContent-Length: ", b"\r\nTransfer-Encoding: ",
    b"\r\nExpect: 100-continue", b"chunked", b"\r\n0\r\n\r\n", b"\r\n1\r\n", b";a=", b"https://x/", b"#",
    b"\r\nConnection: ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"GET ", b"POST ", b"http://", b"user_id=", b"&",
    b"%", b"%C3%A9", b"\xc3\xa9",
    b"\xcc\x81", b", ", b'"user_id"', b'"', b"\\u", b"\\ud800", b"NaN", b"{", b"[", b"--", b"${", b"${name}",
    b"${password}", b"}")

# A process for each target: libFuzzer ends it. Only what is imported here is watched.
CHILD = """
import sys
import atheris
with atheris.instrument_imports(include=["playground"]):
    import fuzz
atheris.Setup([sys.argv[0], *sys.argv[2:]], fuzz.TARGETS[sys.argv[1]][0])
atheris.Fuzz()
"""


def run(name: str, seconds: int) -> bool:
    """Fuzz one target for so long; print what was done and found. Return whether nothing was."""
    target, seeds = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "corpus"))
        for number, seed in enumerate(seeds):
            with open(os.path.join(folder, "corpus", str(number)), "wb") as file:
                file.write(seed)
        with open(os.path.join(folder, "words"), "w", encoding="ascii") as words:
            words.writelines('"{}"\n'.format("".join(f"\\x{byte:02x}" for byte in word)) for word in WORDS)
        result = subprocess.run(
            [sys.executable, "-c", CHILD, name, f"-max_total_time={seconds}", "-max_len=20000", "-timeout=20",
             "-print_final_stats=1",
             f"-artifact_prefix={folder}/found-", f"-dict={folder}/words", os.path.join(folder, "corpus")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = result.stdout.decode(errors="replace")
        found = [pathlib.Path(path).read_bytes() for path in glob.glob(f"{folder}/found-*")]
    executions = re.findall(r"number_of_executed_units: *(\d+)", output)
    features = re.findall(r"cov: (\d+) ft: (\d+)", output)
    if result.returncode == 0 and executions and features:
        print(f"{name}: {executions[-1]} executions, {features[-1][0]} branches, {features[-1][1]} features, "
              "nothing found", flush=True)
        return True
    print(f"{name}: {executions[-1] if executions else 'no'} executions, then\n{output[-3000:]}")
    for data in found:
        print(f"{name}: found with {shrunk(target, data)!r}", flush=True)
    return False


def shrunk(target: Callable[[bytes], None], data: bytes) -> bytes:
    """Leave out of an input what it fails without."""
    def fails(shorter: bytes) -> bool:
        try:
            target(shorter)
        except Exception:
            return True
        return False

    size = len(data) // 2
    while size and fails(data):
        for at in range(len(data) - size, -1, -size):
            if fails(data[:at] + data[at + size:]):
                data = data[:at] + data[at + size:]
        size = min(size, len(data)) // 2
    return data


def main() -> int:
    """Share the seconds among the targets; return 0 only if nothing was found."""
    seconds = max(int(sys.argv[1]) // len(TARGETS), 1)
    clean = [run(name, seconds) for name in TARGETS]
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
