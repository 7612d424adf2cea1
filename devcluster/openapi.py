"""The OpenAPI document that kubectl validates objects with before it sends them."""

from __future__ import annotations

import functools
import json
from typing import Any

from devcluster.kinds import FULL_NAMES, KINDS, REQUIRED, SHAPES, VERSION, Kind


def pack(number: int, *values: bytes | str) -> bytes:
    """Return a protocol buffer's field that holds so many bytes, strings or messages."""
    data = b"".join(value.encode() if isinstance(value, str) else value for value in values)

    def varint(value: int) -> bytes:
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])
    return varint(number << 3 | 2) + varint(len(data)) + data


def extension(number: int, name: str, value: Any) -> bytes:
    """Return a vendor's extension, whose value is YAML."""
    return pack(number, pack(1, name), pack(2, pack(2, json.dumps(value))))


def schema(shape: str) -> bytes:
    """Return a shape as a Schema of gnostic's OpenAPIv2.proto; the numbers here and below are its fields'."""
    if shape[0] == "[":
        item, merged, key = shape[1:-1].partition("/")
        return pack(22, pack(1, "array")) + pack(23, pack(1, schema(item))) + (
            extension(31, "x-kubernetes-patch-strategy", "merge") if merged else b"") + (
            extension(31, "x-kubernetes-patch-merge-key", key) if key else b"")
    if shape[0] == "{":
        return pack(22, pack(1, "object")) + pack(21, pack(1, schema(shape[1:-1])))
    if shape in SHAPES:
        return pack(1, f"#/definitions/{FULL_NAMES[shape]}")
    if shape == "*":
        return b""
    name = {"i": "integer", "b": "boolean"}.get(shape, "string")
    return pack(22, pack(1, name)) + (pack(2, "int-or-string") if shape == "x" else b"")


@functools.lru_cache
def openapi() -> bytes:
    """Return the document with which kubectl validates: the types, and that the kinds' PATCH knows dryRun."""
    kinds = {kind.name: {"group": kind.group, "kind": kind.name, "version": "v1"}
             for kind in (*KINDS.values(), Kind("authorization.k8s.io", "SelfSubjectAccessReview"))}
    types = [pack(1, pack(1, FULL_NAMES[name]), pack(
        2, *(pack(19, field) for field in REQUIRED[name]), pack(22, pack(1, "object")),
        pack(25, *(pack(1, pack(1, field), pack(2, schema(shape))) for field, shape in fields.items())),
        extension(31, "x-kubernetes-group-version-kind", [kinds[name]] if name in kinds else [])))
        for name, fields in SHAPES.items()]
    dry_run = pack(8, pack(1, pack(2, pack(3, pack(2, "query"), pack(4, "dryRun"), pack(6, "string")))))
    paths = [pack(2, pack(1, f"/{name}"), pack(
        2, pack(8, dry_run, extension(13, "x-kubernetes-group-version-kind", kind))))
        for name, kind in kinds.items()]
    about = pack(2, pack(1, "Kubernetes"), pack(2, VERSION))
    return pack(1, "2.0") + about + pack(8, *paths) + pack(9, *types)
