"""Objects: decoding, checking, selecting, patching."""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Iterator
from typing import Any, Callable

from devcluster.errors import ApiError, Malformed, about, bad_request
from devcluster.kinds import DEFAULTS, NUMBERS, SHAPES, Kind, Object

STRING = (str, 'ReadString: expects " or n, but found ')
# Go's layout of a time with microseconds, in the pieces that its parser tells apart.
MICRO_TIME = (("2006", r"\d{4}"), ("-", "-"), ("01", r"\d\d"), ("-", "-"), ("02", r"\d\d"), ("T", "T"),
              ("15", r"\d\d"), (":", ":"), ("04", r"\d\d"), (":", ":"), ("05", r"\d\d"),
              (".000000", r"\.\d{6}"), ("Z07:00", r"Z|[+-]\d\d:\d\d"))
SCALARS: dict[str, tuple[type[Any], str]] = {
    "s": STRING, "t": STRING, "y": STRING, "i": (int, "readUint32: unexpected character: "),
    "b": (bool, "ReadBool: expect t or f, but found "),
    "[": (list, "decode slice: expect [ or n, but found "),
    "{": (dict, "ReadMapCB: expect { or n, but found "),
    "object": (dict, "readObjectStart: expect { or n, but found ")}


def decode(shape: str, value: Any, where: str = "", field: str = "") -> Any:
    """Return a value as it is kept: without unknown fields, with the defaults filled in. Raises Malformed."""
    if value is None or shape in ("*", "x", "q"):
        return str(value) if shape == "q" and value is not None else value
    if shape == "m":
        return micro_time(value, where + "unmarshalerDecoder: ", field)
    expected, words = SCALARS["object" if shape in SHAPES else shape[0]]
    if not isinstance(value, expected) or shape == "i" and isinstance(value, bool):
        raise Malformed(where + words + json.dumps(value)[0], field, json.dumps(value)[0])
    if shape[0] == "[":
        return [decode(shape[1:-1].partition("/")[0], item, where, field) for item in value]
    if shape[0] == "{":
        return {key: decode(shape[1:-1], item, where, key) for key, item in value.items()}
    if shape == "y" and not re.fullmatch(r"(?:[\w+/]{4})*(?:[\w+/]{2}==|[\w+/]{3}=)?", value, re.A):
        valid = re.match(r"[A-Za-z0-9+/]*", value)
        words = f"{where}decode base64: illegal base64 data at input byte {valid.end() if valid else 0}"
        raise Malformed(words, field, json.dumps(value))
    if shape not in SHAPES:
        return value
    value = {**DEFAULTS.get(shape, {}), **{name: item for name, item in value.items() if item is not None}}
    result = {name: decode(inner, value[name], f"{where}v1.{shape}.{name[0].upper()}{name[1:]}: ", name)
              for name, inner in SHAPES[shape].items() if name in value}
    if shape == "Container":
        tag = str(result.get("image", "")).rpartition("/")[2].partition(":")[2]
        result.setdefault("imagePullPolicy", "Always" if tag in ("", "latest") else "IfNotPresent")
    elif shape == "ServicePort":
        result.setdefault("targetPort", result.get("port"))
    return result


def micro_time(value: Any, where: str, field: str) -> str:
    """Return a time with microseconds as it is kept, in UTC. Raises Malformed."""
    if not isinstance(value, str):
        kind = "bool" if isinstance(value, bool) else "number" if isinstance(value, (int, float)) else "value"
        raise Malformed(f"{where}json: cannot unmarshal {kind} into Go value of type string", field,
                        json.dumps(value))
    rest, layout = value, "".join(piece for piece, _ in MICRO_TIME)
    for piece, pattern in MICRO_TIME:
        match = re.match(pattern, rest, re.A)
        if not match:
            words = f'{where}parsing time "{value}" as "{layout}": cannot parse "{rest}" as "{piece}"'
            raise Malformed(words, field, json.dumps(value))
        rest = rest[match.end():]
    try:
        time = datetime.datetime.strptime(value.replace("Z", "+00:00"), "%Y-%m-%dT%H:%M:%S.%f%z")
    except ValueError as error:
        raise Malformed(f'{where}parsing time "{value}": {error}', field, json.dumps(value)) from None
    return time.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def admit(spec: Object) -> str:
    """Fill in what a cluster gives a new pod; return its class of service."""
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec["serviceAccount"] = spec.setdefault("serviceAccountName", "default")
    tolerations = spec.setdefault("tolerations", [])
    for trouble in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{trouble}"
        if not any(toleration.get("key") == key for toleration in tolerations):
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute",
                                "tolerationSeconds": 300})
    resources = [container["resources"] for container in spec.get("containers", ())]
    for each in resources:
        if limits := each.get("limits"):
            each["requests"] = {**limits, **each.get("requests", {})}
    if not any(each.get("requests") for each in resources):
        return "BestEffort"
    whole = all(each.get("limits", {}).get(name) == each.get("requests", {}).get(name, "")
                for each in resources for name in ("cpu", "memory"))
    return "Guaranteed" if whole else "Burstable"


def wire_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protocol buffer: a number, and an integer or bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte, position = data[position], position + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
    while position < len(data):
        tag = varint()
        value: Any = varint()
        if tag & 7 == 2:
            value, position = data[position:position + value], position + value
        yield tag >> 3, value


def from_wire(shape: str, data: Any) -> Any:
    """Return what a protocol buffer holds; kubectl sends them since 1.32 where it makes the object itself."""
    if shape in ("q", "x"):  # A message of a string; or of which it is, an integer, a string.
        parts = dict(wire_fields(data))
        if shape == "q":
            return parts.get(1, b"").decode()
        return parts.get(3, b"").decode() if parts.get(1) else parts.get(2, 0)
    if shape == "y":
        return base64.b64encode(data).decode()
    if shape not in SHAPES:
        return data.decode() if isinstance(data, bytes) else bool(data) if shape == "b" else data
    result: Object = {}
    for number, value in wire_fields(data):
        name = NUMBERS[shape].get(number, "")
        inner = SHAPES[shape].get(name, "*")
        if inner[0] == "[":
            result.setdefault(name, []).append(from_wire(inner[1:-1].partition("/")[0], value))
        elif inner[0] == "{":
            entry = dict(wire_fields(value))
            result.setdefault(name, {})[entry[1].decode()] = from_wire(inner[1:-1], entry.get(2, b""))
        elif inner != "*" and value != b"":
            result[name] = from_wire(inner, value)
    return result


LABEL_NAME = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
LABEL_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
DNS_LABEL, DNS_1035 = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", r"[a-z]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{DNS_LABEL}(\.{DNS_LABEL})*"
LETTERS, ENDS = "lower case alphanumeric characters", "start and end with an alphanumeric character"
PATTERNS = {  # What a name or a label must match: how many characters at most, and what is said of it.
    SUBDOMAIN: (253, f"a lowercase RFC 1123 subdomain must consist of {LETTERS}, '-' or '.', and must {ENDS} "
                     "(e.g. 'example.com'"),
    DNS_LABEL: (63, f"a lowercase RFC 1123 label must consist of {LETTERS} or '-', and must {ENDS} "
                    "(e.g. 'my-name',  or '123-abc'"),
    DNS_1035: (63, f"a DNS-1035 label must consist of {LETTERS} or '-', start with an alphabetic character, "
                   "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123'"),
    LABEL_NAME: (63, f"name part must consist of alphanumeric characters, '-', '_' or '.', and must {ENDS} "
                     "(e.g. 'MyName',  or 'my.name',  or '123-abc'"),
    LABEL_VALUE: (63, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' "
                      f"or '.', and must {ENDS} (e.g. 'MyValue',  or 'my_value',  or '12345'"),
}


def check(kind: Kind, item: Object, before: Object | None = None) -> None:
    """Raise ApiError 422 if an object cannot be, or cannot have become this from what it was."""
    causes: list[Object] = []

    def wrong(reason: str, field: str, message: str) -> None:
        causes.append({"reason": f"FieldValue{reason}", "message": message, "field": field})

    def need(value: Any, field: str, why: str = "") -> None:
        if not value:
            wrong("Required", field, f"Required value{why}")

    def match(pattern: str, field: str, value: str, shown: str = "") -> None:
        most, words = PATTERNS[pattern]
        if len(value) > most:
            wrong("Invalid", field,
                  f'Invalid value: "{shown or value}": must be no more than {most} characters')
        elif not re.fullmatch(pattern, value):
            wrong("Invalid", field,
                  f'Invalid value: "{shown or value}": {words}, regex used for validation is \'{pattern}\')')
    meta, spec = item["metadata"], item.get("spec", {})
    name = meta.get("name", "")
    need(name, "metadata.name", ": name or generateName is required")
    if name:
        match({"Service": DNS_1035, "Namespace": DNS_LABEL}.get(kind.name, SUBDOMAIN), "metadata.name", name)
    for key, value in meta.get("labels", {}).items():
        match(LABEL_NAME, "metadata.labels", key.rpartition("/")[2], key)
        match(LABEL_VALUE, "metadata.labels", value)
    if kind.name == "Service":
        need(spec.get("ports") or spec["type"] == "ExternalName" or spec.get("clusterIP") == "None",
             "spec.ports")
    for number, container in enumerate(spec.get("containers", ()) if kind.name == "Pod" else ()):
        need(container.get("name"), f"spec.containers[{number}].name")
        need(container.get("image"), f"spec.containers[{number}].image")
    if kind.name == "Pod":
        need(spec.get("containers"), "spec.containers")
        if before and pinned(before["spec"], before["spec"]) != pinned(spec, before["spec"]):
            wrong("Forbidden", "spec", "Forbidden: pod updates may not change fields other than "
                  "`spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds` "
                  "or `spec.tolerations` (only additions to existing tolerations)")
        policies = ("Always", "OnFailure", "Never")
        if spec["restartPolicy"] not in policies:
            shown = ", ".join(f'"{policy}"' for policy in policies)
            wrong("NotSupported", "spec.restartPolicy",
                  f'Unsupported value: "{spec["restartPolicy"]}": supported values: {shown}')
    if kind.name in ("Secret", "ConfigMap") and before:
        check_unchanged(before, item, wrong)
    if kind.name == "Lease" and spec.get("leaseDurationSeconds", 1) <= 0:
        wrong("Invalid", "spec.leaseDurationSeconds",
              f"Invalid value: {spec['leaseDurationSeconds']}: must be greater than 0")
    if kind.name == "Lease" and spec.get("leaseTransitions", 0) < 0:
        wrong("Invalid", "spec.leaseTransitions",
              f"Invalid value: {spec['leaseTransitions']}: must to greater or equal than 0")
    if causes:
        invalid(kind, name, causes)


def pinned(spec: Object, before: Object) -> Object:
    """Return what of a pod's spec may not become other than it was before."""
    free = {"activeDeadlineSeconds", "tolerations", *({"nodeName"} - before.keys())}
    return {**{field: value for field, value in spec.items() if field not in free}, **{
        field: [{**container, "image": ""} for container in spec.get(field, ())]
        for field in ("containers", "initContainers")}}


def check_unchanged(before: Object, item: Object, wrong: Callable[[str, str, str], None]) -> None:
    """Say what is wrong with a Secret's or ConfigMap's new self, if it is immutable."""
    if item.get("type") != before.get("type"):
        wrong("Invalid", "type", f'Invalid value: "{item["type"]}": field is immutable')
    if before.get("immutable"):
        for field in ("immutable", "data", "binaryData"):
            if item.get(field) != before.get(field):
                wrong("Forbidden", field, "Forbidden: field is immutable when `immutable` is set")


def invalid(kind: Kind, name: str, causes: list[Object]) -> None:
    """Raise the error of an object that cannot be, for these causes."""
    words = ", ".join(f"{cause['field']}: {cause['message']}" for cause in causes)
    words = words if len(causes) == 1 else f"[{words}]"
    raise ApiError(422, "Invalid", f'{kind.full_name} "{name}" is invalid: {words}',
                   {**about(kind, name), "kind": kind.name, "causes": causes})


Match = Callable[[Object], bool]
TERM = re.compile(r"\s*(?:!\s*(?P<absent>[\w./-]+)|(?P<key>[\w./-]+)\s*(?:(?P<operator>==?|!=)\s*"
                  r"(?P<value>[\w.-]*)|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?)\s*")


def labels_of(item: Object) -> dict[str, str]:
    """Return an object's labels."""
    labels: dict[str, str] = item.get("metadata", {}).get("labels") or {}
    return labels


def requirement(key: str, operator: str, values: set[str]) -> Match:
    """Return what a label that is In, NotIn, Exists or DoesNotExist selects."""
    if operator in ("Exists", "DoesNotExist"):
        return lambda item: (key in labels_of(item)) == (operator == "Exists")
    return lambda item: (labels_of(item).get(key) in values) == (operator == "In")


def selection(kind: Kind, labels: str, fields: str) -> Match:
    """Return what a request's labelSelector and fieldSelector select. Raises ApiError 400."""
    terms: list[Match] = []
    position = 0
    while position < len(labels):
        match = TERM.match(labels, position)
        end = match.end() if match else position
        if not match or labels[end:end + 1] not in ("", ","):
            raise bad_request(f"found '{labels[end:end + 1]}', expected: ',' or 'end of string'")
        position = end + 1
        absent, key, operator, value, in_set, values = match.group(
            "absent", "key", "operator", "value", "set", "values")
        if in_set:
            words = {word.strip() for word in values.split(",")}
            terms.append(requirement(key, "In" if in_set == "in" else "NotIn", words))
        elif operator:
            terms.append(requirement(key, "NotIn" if operator == "!=" else "In", {value}))
        else:
            terms.append(requirement(absent or key, "DoesNotExist" if absent else "Exists", set()))

    def field_is(path: str, value: str, equal: bool) -> Match:
        if path not in ("metadata.name", "metadata.namespace", *kind.fields.split()):
            raise bad_request(f"field label not supported: {path}")
        path = "source.component" if path == "source" else path
        return lambda item: (str(at(item, path) or "") == value) == equal
    for term in filter(None, fields.split(",")):
        path, operator, value = [*re.split(r"(!=|==?)", term, maxsplit=1), "", ""][:3]
        terms.append(field_is(path, value, operator != "!="))
    return lambda item: all(term(item) for term in terms)


def at(item: Any, path: str) -> Any:
    """Return what is at a dotted path, or None."""
    for name in path.split("."):
        item = item.get(name) if isinstance(item, dict) else None
    return item


def merge(old: Any, patch: Any, shape: str = "*") -> Any:
    """Return what a patch makes of a value: a JSON merge patch (RFC 7386); with a shape a strategic one."""
    if isinstance(patch, list) and "/" in shape:
        return merge_list(old or [], patch, *shape[1:-1].split("/"))
    if not isinstance(patch, dict):
        return patch
    result: Object = dict(old) if isinstance(old, dict) and patch.get("$patch") != "replace" else {}
    for key, value in patch.items():
        if shape != "*" and key.startswith("$"):
            continue  # What kubectl says of the order of lists changes nothing here.
        if value is None:
            result.pop(key, None)
        else:
            inner = shape[1:-1] if shape[0] == "{" else SHAPES.get(shape, {}).get(key, "*")
            result[key] = merge(result.get(key), value, inner)
    return result


def merge_list(old: list[Any], patch: list[Any], shape: str, key: str) -> list[Any]:
    """Return a list after a strategic merge patch, which knows its items by a key, or by themselves."""
    result = list(old)
    for item in patch:
        places = [place for place, known in enumerate(result)
                  if (known.get(key) == item.get(key) if key else known == item)]
        if isinstance(item, dict) and item.get("$patch") == "delete":
            result = [known for place, known in enumerate(result) if place not in places]
        elif places:
            result[places[0]] = merge(result[places[0]], item, shape)
        else:
            result.append(merge(None, item, shape))
    return result
