#!/usr/bin/env python3
"""A Kubernetes API in one process, for trying and testing without a cluster; its one node runs the MariaDB of its pods.

    python devcluster.py [--port N] [--state DIR] [--hollow]

prints `export KUBECONFIG=...` once it serves, and ends on Ctrl-C or SIGTERM, leaving neither a process nor a file (but for
a --state that was given). It speaks TLS on 127.0.0.1 with any kubectl from 1.20 on, in the words of a Kubernetes 1.20. The
kubeconfig has two contexts: `admin` may do anything, `nobody` only look what kinds there are.

A pod whose image is called after mariadb or mysql is run with the `mariadbd` on the PATH as the image's entry script would:
environment, Secret references, arguments, volumes, *.sql in /docker-entrypoint-initdb.d, probes. It listens on an address
of 127.97.0.0/16; connections to its Service's, of 127.96.0.0/16, are led there. In its commands 127.0.0.1 stands for the
former, and a mount path for the folder that is mounted there, as the pod has no network and no root of its own. Every other
pod, and with --hollow or without a mariadbd every pod, is hollow: nothing runs, it is ready after a second, and a Warning
event says why. One whose image is "never-ready" stays in ImagePullBackOff.

    thread             waits for                        bounded by
    one a connection   its client, the store's changes  HANDSHAKE_SECONDS, IDLE_SECONDS; a watch by its timeoutSeconds
    controllers        the store's changes              RESYNC_SECONDS
    one a pod          its process, its next probe      the probes' timeoutSeconds, the pod's grace period
    proxy              connections to Services          their clients

The admin orders faults, which hold until others are ordered: what is not named ends, and {} heals all.

    echo '{"latency_seconds": 2, "errors": 5}' | kubectl create --raw /devcluster/faults -f -

    latency_seconds   every answer comes so much later
    errors            so many requests under /api and /apis are answered 500
    drop_connections  true: every connection ends with its next request, which gets no answer
    silence_watches   true: watches stay open and say nothing, no bookmarks either
    never_ready       a pattern: the pods of these names are not ready
    end_watches       true, once: every open watch ends
    expire_watches    true, once: the history is lost, and watches from where it was get 410 Gone
    kill_pods         a pattern, once: the containers of the pods of these names are killed with SIGKILL

Unlike a real cluster: there are no other kinds than those of KINDS and no subresources but a pod's log; no service accounts,
endpoints, finalizers, managedFields, JSON patch or server-side apply. Objects end with the process, lists are never cut, and
deleting in the foreground is as in the background. Only what would be nonsense in a name, a label, a StatefulSet, a Service
or a Pod is Invalid. A claim is bound from the start, to a folder that goes with it at once. Fields whose shape is * are taken
as they come; OpenAPI has no descriptions for `kubectl explain`. A pod lacks what admission adds to it, runs one container,
and has no limits of memory and CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import calendar
import contextlib
import fnmatch
import functools
import hashlib
import http.server
import ipaddress
import json
import os
import queue
import random
import re
import secrets
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import IO, Any, Callable, NamedTuple

import yaml

# ---- Limits -------------------------------------------------------------------------------------------

# A TLS handshake, and a kept connection without a request; the connection ends beyond each.
HANDSHAKE_SECONDS, IDLE_SECONDS = 10.0, 120.0
# A request's body; 413 beyond it. As much as a real API server takes; a Secret or ConfigMap holds 1 MiB.
MAX_BODY_BYTES = 3 * 1024 * 1024
# Changes that a watch can resume from; 410 Gone beyond it. A database makes about 20 from its creation to its deletion.
MAX_HISTORY = 10_000
# A watch that asks for no timeoutSeconds ends between this and twice as much, as on a real API server.
WATCH_SECONDS = 1800.0
# Between a watch's bookmarks, and from the last one to its end, as on a real API server.
BOOKMARK_SECONDS, LAST_BOOKMARK_SECONDS = 60.0, 2.0
# What a controller or the node could not do is tried again after this.
RESYNC_SECONDS = 1.0
# A hollow pod is ready so long after its start.
HOLLOW_SECONDS = 1.0
# A pod goes no sooner than this after its container has ended. `kubectl delete pod` waits for ever for one that
# has gone, and come again by its name, between two of its looks, which no real node is quick enough for.
LINGER_SECONDS = 0.3
# A container's first probe comes this long after its start; the kubelet's does at some moment within the first period.
FIRST_PROBE_SECONDS = 0.3
# A container that ended starts again at once, then after pauses that double from the first to the last; one that ran for the
# third begins anew. These are the kubelet's.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, PEACE_SECONDS = 10.0, 300.0, 600.0
# From SIGTERM to SIGKILL for all databases, when this process ends. A small MariaDB takes 50 ms.
STOP_SECONDS = 5.0

SERVICE_ADDRESSES, POD_ADDRESSES = ipaddress.ip_network("127.96.0.0/16"), ipaddress.ip_network("127.97.0.0/16")
NODE, VERSION, RFC_3339 = "devcluster", "v1.20.2+devcluster", "%Y-%m-%dT%H:%M:%SZ"
Object = dict[str, Any]


# ---- Kinds: what there is, and what it looks like -----------------------------------------------------

class Kind(NamedTuple):
    """A kind: group, name, what kubectl shortens it to, whether `get all` shows it, the fields that a fieldSelector may name."""

    group: str
    name: str
    short: str = ""
    in_all: bool = False
    fields: str = ""

    @property
    def plural(self) -> str:
        """Return its name in paths."""
        return self.name.lower() + "s"

    @property
    def resource(self) -> str:
        """Return its name in errors."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """Return its objects' apiVersion."""
        return f"{self.group}/v1" if self.group else "v1"


KINDS = {kind.plural: kind for kind in (
    Kind("", "ConfigMap", "cm"),
    Kind("", "Event", "ev",
         fields="involvedObject.kind involvedObject.name involvedObject.namespace involvedObject.uid reason source type"),
    Kind("", "Namespace", "ns", fields="status.phase"),
    Kind("", "PersistentVolumeClaim", "pvc"),
    Kind("", "Pod", "po", in_all=True, fields="spec.nodeName spec.restartPolicy status.phase status.podIP"),
    Kind("", "ResourceQuota", "quota"),
    Kind("", "Secret", fields="type"),
    Kind("", "Service", "svc", in_all=True),
    Kind("apps", "StatefulSet", "sts", in_all=True),
)}

# Types and their fields, from Kubernetes 1.20's OpenAPI and generated.proto: name, "!" if it must be there, @number in the
# protocol buffers that kubectl sends, shape. Shapes: s string, y base64, i integer, b boolean, q quantity, x integer or string,
# t time, * anything, [S] list, [S/key] list that a strategic merge patch merges by that key, {S} map. "=" starts a package.
SHAPES_TEXT = """
= io.k8s.apimachinery.pkg.apis.meta.v1
ObjectMeta annotations@12:{s} clusterName:s creationTimestamp:t deletionGracePeriodSeconds:i deletionTimestamp:t finalizers:[s/]
  generateName@2:s generation:i labels@11:{s} managedFields:[*] name@1:s namespace@3:s ownerReferences:[OwnerReference/uid]
  resourceVersion:s selfLink:s uid:s
OwnerReference apiVersion!:s blockOwnerDeletion:b controller:b kind!:s name!:s uid!:s
LabelSelector matchExpressions:[LabelSelectorRequirement] matchLabels:{s}
LabelSelectorRequirement key!:s operator!:s values:[s]
= io.k8s.api.authorization.v1
SelfSubjectAccessReview spec@2:*
= io.k8s.api.core.v1
Namespace metadata@1:ObjectMeta spec:NamespaceSpec status:NamespaceStatus
NamespaceSpec finalizers:[s]
NamespaceStatus conditions:[*/type] phase:s
Secret data@2:{y} immutable:b metadata@1:ObjectMeta stringData@4:{s} type@3:s
ConfigMap binaryData@3:{y} data@2:{s} immutable:b metadata@1:ObjectMeta
Event action:s count:i eventTime:t firstTimestamp:t involvedObject!:ObjectReference lastTimestamp:t message:s metadata!:ObjectMeta reason:s
  related:ObjectReference reportingComponent:s reportingInstance:s series:* source:EventSource type:s
EventSource component:s host:s
ObjectReference apiVersion:s fieldPath:s kind:s name:s namespace:s resourceVersion:s uid:s
ResourceQuota metadata@1:ObjectMeta spec@2:ResourceQuotaSpec status:*
PersistentVolumeClaim metadata:ObjectMeta spec:PersistentVolumeClaimSpec status:*
PersistentVolumeClaimSpec accessModes:[s] dataSource:* resources:ResourceRequirements selector:LabelSelector storageClassName:s
  volumeMode:s volumeName:s
PersistentVolumeClaimVolumeSource claimName!:s readOnly:b
ResourceQuotaSpec hard@1:{q} scopeSelector:* scopes:[s]
Service metadata@1:ObjectMeta spec@2:ServiceSpec status:*
ServiceSpec allocateLoadBalancerNodePorts:b clusterIP@3:s clusterIPs:[s] externalIPs:[s] externalName@10:s externalTrafficPolicy:s
  healthCheckNodePort:i ipFamilies:[s] ipFamilyPolicy:s loadBalancerIP:s loadBalancerSourceRanges:[s] ports@1:[ServicePort/port]
  publishNotReadyAddresses:b selector@2:{s} sessionAffinity@7:s sessionAffinityConfig:* topologyKeys:[s] type@4:s
ServicePort appProtocol:s name@1:s nodePort:i port!@3:i protocol@2:s targetPort@4:x
Pod metadata:ObjectMeta spec:PodSpec status:*
PodTemplateSpec metadata:ObjectMeta spec:PodSpec
PodSpec activeDeadlineSeconds:i affinity:* automountServiceAccountToken:b containers!:[Container/name] dnsConfig:* dnsPolicy:s
  enableServiceLinks:b ephemeralContainers:[*/name] hostAliases:[*/ip] hostIPC:b hostNetwork:b hostPID:b hostname:s
  imagePullSecrets:[*/name] initContainers:[Container/name] nodeName:s nodeSelector:{s} overhead:{q} preemptionPolicy:s priority:i
  priorityClassName:s readinessGates:[*] restartPolicy:s runtimeClassName:s schedulerName:s securityContext:PodSecurityContext
  serviceAccount:s serviceAccountName:s setHostnameAsFQDN:b shareProcessNamespace:b subdomain:s terminationGracePeriodSeconds:i
  tolerations:[*] topologySpreadConstraints:[*/topologyKey] volumes:[Volume/name]
PodSecurityContext fsGroup:i fsGroupChangePolicy:s runAsGroup:i runAsNonRoot:b runAsUser:i seLinuxOptions:* seccompProfile:SeccompProfile
  supplementalGroups:[i] sysctls:[*] windowsOptions:*
SeccompProfile localhostProfile:s type!:s
Container args:[s] command:[s] env:[EnvVar/name] envFrom:[*] image:s imagePullPolicy:s lifecycle:* livenessProbe:Probe name!:s
  ports:[ContainerPort/containerPort] readinessProbe:Probe resources:ResourceRequirements securityContext:SecurityContext
  startupProbe:Probe stdin:b stdinOnce:b terminationMessagePath:s terminationMessagePolicy:s tty:b volumeDevices:[*/devicePath]
  volumeMounts:[VolumeMount/mountPath] workingDir:s
EnvVar name!:s value:s valueFrom:EnvVarSource
EnvVarSource configMapKeyRef:KeySelector fieldRef:* resourceFieldRef:* secretKeyRef:KeySelector
KeySelector key!:s name:s optional:b
ContainerPort containerPort!:i hostIP:s hostPort:i name:s protocol:s
Probe exec:ExecAction failureThreshold:i httpGet:* initialDelaySeconds:i periodSeconds:i successThreshold:i tcpSocket:TCPSocketAction
  timeoutSeconds:i
ExecAction command:[s]
TCPSocketAction host:s port!:x
ResourceRequirements limits:{q} requests:{q}
SecurityContext allowPrivilegeEscalation:b capabilities:Capabilities privileged:b procMount:s readOnlyRootFilesystem:b runAsGroup:i
  runAsNonRoot:b runAsUser:i seLinuxOptions:* seccompProfile:SeccompProfile windowsOptions:*
Capabilities add:[s] drop:[s]
VolumeMount mountPath!:s mountPropagation:s name!:s readOnly:b subPath:s subPathExpr:s
Volume awsElasticBlockStore:* azureDisk:* azureFile:* cephfs:* cinder:* configMap:ConfigMapVolumeSource csi:* downwardAPI:*
  emptyDir:EmptyDirVolumeSource ephemeral:* fc:* flexVolume:* flocker:* gcePersistentDisk:* gitRepo:* glusterfs:* hostPath:* iscsi:*
  name!:s nfs:* persistentVolumeClaim:PersistentVolumeClaimVolumeSource photonPersistentDisk:* portworxVolume:* projected:* quobyte:* rbd:*
  scaleIO:*
  secret:SecretVolumeSource storageos:* vsphereVolume:*
ConfigMapVolumeSource defaultMode:i items:[KeyToPath] name:s optional:b
SecretVolumeSource defaultMode:i items:[KeyToPath] optional:b secretName:s
EmptyDirVolumeSource medium:s sizeLimit:q
KeyToPath key!:s mode:i path!:s
= io.k8s.api.apps.v1
StatefulSet metadata:ObjectMeta spec:StatefulSetSpec status:*
StatefulSetSpec podManagementPolicy:s replicas:i revisionHistoryLimit:i selector!:LabelSelector serviceName!:s template!:PodTemplateSpec
  updateStrategy:StatefulSetUpdateStrategy volumeClaimTemplates:[*]
StatefulSetUpdateStrategy rollingUpdate:* type:s
"""
SHAPES: dict[str, dict[str, str]] = {}
FULL_NAMES: dict[str, str] = {}
REQUIRED: dict[str, list[str]] = {}
NUMBERS: dict[str, dict[int, str]] = {}
for _line in SHAPES_TEXT.replace("\n  ", " ").strip().split("\n"):
    _type, *_fields = _line.split()
    if _type == "=":
        _package = _fields[0]
        continue
    _parts = [re.findall(r"(\w+)(!?)(?:@(\d+))?:(.+)", _field)[0] for _field in _fields]
    SHAPES[_type] = {name: shape for name, _, _, shape in _parts}
    FULL_NAMES[_type] = f"{_package}.{_type}"
    REQUIRED[_type] = [name for name, required, _, _ in _parts if required]
    NUMBERS[_type] = {int(number): name for name, _, number, _ in _parts if number}
    if _type.lower() + "s" in KINDS:
        SHAPES[_type].update(apiVersion="s", kind="s")

# What is filled in where nothing is given.
DEFAULTS: dict[str, Object] = {
    "Namespace": {"spec": {}},
    "NamespaceSpec": {"finalizers": ["kubernetes"]},
    "Secret": {"type": "Opaque"},
    "Event": {"eventTime": None, "reportingComponent": "", "reportingInstance": "", "source": {}},
    "ResourceQuota": {"spec": {}, "status": {}},
    "Service": {"spec": {}, "status": {"loadBalancer": {}}},
    "ServiceSpec": {"sessionAffinity": "None", "type": "ClusterIP"},
    "ServicePort": {"protocol": "TCP"},
    "StatefulSet": {"spec": {}},
    "StatefulSetSpec": {"podManagementPolicy": "OrderedReady", "replicas": 1, "revisionHistoryLimit": 10, "template": {},
                        "updateStrategy": {"type": "RollingUpdate"}},
    "StatefulSetUpdateStrategy": {"rollingUpdate": {"partition": 0}},
    "PersistentVolumeClaim": {"status": {"phase": "Bound"}},
    "PersistentVolumeClaimSpec": {"volumeMode": "Filesystem"},
    "Pod": {"spec": {}},
    "PodTemplateSpec": {"metadata": {}, "spec": {}},
    "PodSpec": {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {},
                "terminationGracePeriodSeconds": 30},
    "Container": {"resources": {}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"},
    "ContainerPort": {"protocol": "TCP"},
    "Probe": {"failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1},
    "ConfigMapVolumeSource": {"defaultMode": 0o644},
    "SecretVolumeSource": {"defaultMode": 0o644},
}


# ---- Errors: the API's Status objects -----------------------------------------------------------------

class ApiError(Exception):
    """A Status of failure: HTTP's code, Kubernetes' reason, a real API server's words."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                       "reason": reason, **({"details": details} if details is not None else {}), "code": code}


def about(kind: Kind, name: str = "", **more: Any) -> Object:
    """Return a Status's details."""
    return {**({"name": name} if name else {}), **({"group": kind.group} if kind.group else {}), "kind": kind.plural, **more}


def not_found(kind: Kind, name: str) -> ApiError:
    """Return the error of an object that is not there."""
    return ApiError(404, "NotFound", f'{kind.resource} "{name}" not found', about(kind, name))


def forbidden(kind: Kind, name: str, why: str) -> ApiError:
    """Return the error of what must not be done."""
    return ApiError(403, "Forbidden", (f'{kind.resource} "{name}"' if name else kind.resource) + f" is forbidden: {why}", about(kind, name))


def conflict(kind: Kind, name: str, called: str, why: str) -> ApiError:
    """Return the error of an object that is not any more what the client thinks."""
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on {called} "{name}": {why}', about(kind, name))


def bad_request(message: str) -> ApiError:
    """Return the error of what is not understood."""
    return ApiError(400, "BadRequest", message)


NOWHERE = ApiError(404, "NotFound", "the server could not find the requested resource", {})


class Malformed(Exception):
    """A value of the wrong type: words as Go's decoder has them, the field, and the value's text up to where it gave up."""

    def __init__(self, words: str, field: str, text: str) -> None:
        super().__init__(words)
        self.words, self.field, self.text = words, field, text

    def error(self, kind: str, body: str) -> ApiError:
        """Return the error, which quotes the body around the place as a real API server does."""
        match = re.search(rf'"{re.escape(self.field)}"\s*:\s*{re.escape(self.text)}', body)
        end = match.end() if match else len(body)
        near, wide = (body[max(end - size, 0):end + size] for size in (10, 50))
        return bad_request(f'{kind} in version "v1" cannot be handled as a {kind}: {self.words}, error found in #{min(end, 10)} byte of '
                           f"...|{near}|..., bigger context ...|{wide}|...")


# ---- Objects: decoding, checking, selecting, patching -------------------------------------------------

STRING = (str, 'ReadString: expects " or n, but found ')
SCALARS: dict[str, tuple[type[Any], str]] = {
    "s": STRING, "t": STRING, "y": STRING, "i": (int, "readUint32: unexpected character: "),
    "b": (bool, "ReadBool: expect t or f, but found "), "[": (list, "decode slice: expect [ or n, but found "),
    "{": (dict, "ReadMapCB: expect { or n, but found "), "object": (dict, "readObjectStart: expect { or n, but found ")}


def decode(shape: str, value: Any, where: str = "", field: str = "") -> Any:
    """Return a value as it is kept: without fields that nobody knows, and with the defaults filled in. Raises Malformed."""
    if value is None or shape in ("*", "x", "q"):
        return str(value) if shape == "q" and value is not None else value
    expected, words = SCALARS["object" if shape in SHAPES else shape[0]]
    if not isinstance(value, expected) or shape == "i" and isinstance(value, bool):
        raise Malformed(where + words + json.dumps(value)[0], field, json.dumps(value)[0])
    if shape[0] == "[":
        return [decode(shape[1:-1].partition("/")[0], item, where, field) for item in value]
    if shape[0] == "{":
        return {key: decode(shape[1:-1], item, where, key) for key, item in value.items()}
    if shape == "y" and not re.fullmatch(r"(?:[\w+/]{4})*(?:[\w+/]{2}==|[\w+/]{3}=)?", value, re.A):
        valid = re.match(r"[A-Za-z0-9+/]*", value)
        raise Malformed(f"{where}decode base64: illegal base64 data at input byte {valid.end() if valid else 0}", field, json.dumps(value))
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
    elif shape == "PodTemplateSpec":
        result["metadata"] = {"creationTimestamp": None, **result["metadata"]}
    return result


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
    """Return what a protocol buffer of a shape holds; kubectl sends them since 1.32 where it makes the object itself."""
    if shape in ("q", "x"):  # A message of a string; or of which it is, an integer, a string.
        parts = dict(wire_fields(data))
        return parts.get(1, b"").decode() if shape == "q" else parts.get(3, b"").decode() if parts.get(1) else parts.get(2, 0)
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


LABEL_NAME, LABEL_VALUE = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]", r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
DNS_LABEL, DNS_1035 = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", r"[a-z]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{DNS_LABEL}(\.{DNS_LABEL})*"
LETTERS, ENDS = "lower case alphanumeric characters", "start and end with an alphanumeric character"
PATTERNS = {  # What a name or a label must match: how many characters at most, and what is said of it.
    SUBDOMAIN: (253, f"a lowercase RFC 1123 subdomain must consist of {LETTERS}, '-' or '.', and must {ENDS} (e.g. 'example.com'"),
    DNS_LABEL: (63, f"a lowercase RFC 1123 label must consist of {LETTERS} or '-', and must {ENDS} (e.g. 'my-name',  or '123-abc'"),
    DNS_1035: (63, f"a DNS-1035 label must consist of {LETTERS} or '-', start with an alphabetic character, and end with an alphanumeric "
               "character (e.g. 'my-name',  or 'abc-123'"),
    LABEL_NAME: (63, f"name part must consist of alphanumeric characters, '-', '_' or '.', and must {ENDS} (e.g. 'MyName',  or 'my.name',  "
                 "or '123-abc'"),
    LABEL_VALUE: (63, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
                  f"{ENDS} (e.g. 'MyValue',  or 'my_value',  or '12345'"),
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
            wrong("Invalid", field, f'Invalid value: "{shown or value}": must be no more than {most} characters')
        elif not re.fullmatch(pattern, value):
            wrong("Invalid", field, f'Invalid value: "{shown or value}": {words}, regex used for validation is \'{pattern}\')')
    meta, spec = item["metadata"], item.get("spec", {})
    name = meta.get("name", "")
    need(name, "metadata.name", ": name or generateName is required")
    if name:
        match({"Service": DNS_1035, "Namespace": DNS_LABEL}.get(kind.name, SUBDOMAIN), "metadata.name", name)
    for key, value in meta.get("labels", {}).items():
        match(LABEL_NAME, "metadata.labels", key.rpartition("/")[2], key)
        match(LABEL_VALUE, "metadata.labels", value)
    if kind.name == "Service":
        need(spec.get("ports") or spec["type"] == "ExternalName" or spec.get("clusterIP") == "None", "spec.ports")
    for number, container in enumerate(spec.get("containers", ()) if kind.name == "Pod" else ()):
        need(container.get("name"), f"spec.containers[{number}].name")
        need(container.get("image"), f"spec.containers[{number}].image")
    if kind.name == "Pod":
        need(spec.get("containers"), "spec.containers")
    if kind.name == "StatefulSet":
        selector, labels = spec.get("selector"), spec["template"]["metadata"].get("labels")
        need(selector, "spec.selector")
        if not selector or not label_selector(selector)(spec["template"]):
            shown = "(nil)" if labels is None else "{" + ", ".join(f'"{key}":"{labels[key]}"' for key in sorted(labels)) + "}"
            wrong("Invalid", "spec.template.metadata.labels",
                  f"Invalid value: map[string]string{shown}: `selector` does not match template `labels`")
        if before and any(before["spec"].get(field) != spec.get(field) for field in SHAPES["StatefulSetSpec"].keys()
                          - {"replicas", "template", "updateStrategy"}):
            wrong("Forbidden", "spec", "Forbidden: updates to statefulset spec for fields other than 'replicas', 'template', and "
                  "'updateStrategy' are forbidden")
    if causes:
        invalid(kind, name, causes)


def invalid(kind: Kind, name: str, causes: list[Object]) -> None:
    """Raise the error of an object that cannot be, for these causes."""
    called = f"{kind.name}.{kind.group}" if kind.group else kind.name
    words = ", ".join(f"{cause['field']}: {cause['message']}" for cause in causes)
    raise ApiError(422, "Invalid", f'{called} "{name}" is invalid: ' + (words if len(causes) == 1 else f"[{words}]"),
                   {**about(kind, name), "kind": kind.name, "causes": causes})


Match = Callable[[Object], bool]
TERM = re.compile(r"\s*(?:!\s*(?P<absent>[\w./-]+)|(?P<key>[\w./-]+)\s*(?:(?P<operator>==?|!=)\s*(?P<value>[\w.-]*)"
                  r"|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?)\s*")


def labels_of(item: Object) -> dict[str, str]:
    """Return an object's labels."""
    labels: dict[str, str] = item.get("metadata", {}).get("labels") or {}
    return labels


def requirement(key: str, operator: str, values: set[str]) -> Match:
    """Return what a label that is In, NotIn, Exists or DoesNotExist selects."""
    if operator in ("Exists", "DoesNotExist"):
        return lambda item: (key in labels_of(item)) == (operator == "Exists")
    return lambda item: (labels_of(item).get(key) in values) == (operator == "In")


def every(terms: list[Match]) -> Match:
    """Return what all terms select."""
    return lambda item: all(term(item) for term in terms)


def label_selector(selector: Object) -> Match:
    """Return what a StatefulSet's selector selects."""
    return every([requirement(key, "In", {value}) for key, value in (selector.get("matchLabels") or {}).items()] + [
        requirement(term["key"], term["operator"], set(term.get("values") or ())) for term in selector.get("matchExpressions") or ()])


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
        absent, key, operator, value, in_set, values = match.group("absent", "key", "operator", "value", "set", "values")
        if in_set:
            terms.append(requirement(key, "In" if in_set == "in" else "NotIn", {word.strip() for word in values.split(",")}))
        elif operator:
            terms.append(requirement(key, "NotIn" if operator == "!=" else "In", {value}))
        else:
            terms.append(requirement(absent or key, "DoesNotExist" if absent else "Exists", set()))

    def field_is(path: str, value: str, equal: bool) -> Match:
        if path not in ("metadata.name", "metadata.namespace", *kind.fields.split()):
            raise bad_request(f"field label not supported: {path}")
        return lambda item: (str(at(item, "source.component" if path == "source" else path) or "") == value) == equal
    for term in filter(None, fields.split(",")):
        path, operator, value = [*re.split(r"(!=|==?)", term, maxsplit=1), "", ""][:3]
        terms.append(field_is(path, value, operator != "!="))
    return every(terms)


def at(item: Any, path: str) -> Any:
    """Return what is at a dotted path, or None."""
    for name in path.split("."):
        item = item.get(name) if isinstance(item, dict) else None
    return item


def merge(old: Any, patch: Any, shape: str = "*") -> Any:
    """Return what a patch makes of a value: a JSON merge patch (RFC 7386), or with a shape a strategic one."""
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
            result[key] = merge(result.get(key), value, shape[1:-1] if shape[0] == "{" else SHAPES.get(shape, {}).get(key, "*"))
    return result


def merge_list(old: list[Any], patch: list[Any], shape: str, key: str) -> list[Any]:
    """Return a list after a strategic merge patch, which knows its items by a key, or by themselves."""
    result = list(old)
    for item in patch:
        places = [place for place, known in enumerate(result) if (known.get(key) == item.get(key) if key else known == item)]
        if isinstance(item, dict) and item.get("$patch") == "delete":
            result = [known for place, known in enumerate(result) if place not in places]
        elif places:
            result[places[0]] = merge(result[places[0]], item, shape)
        else:
            result.append(merge(None, item, shape))
    return result


# ---- The store: every object, and every change so far -------------------------------------------------

class Change(NamedTuple):
    """What happened to one object: what it was, None if it is new; what it is, None if it has gone; and it, either way."""

    kind: Kind
    before: Object | None
    after: Object | None
    item: Object


def now(later: float = 0) -> str:
    """Return the time, or so many seconds later, as the API writes it."""
    return time.strftime(RFC_3339, time.gmtime(time.time() + later))


class Store:
    """The objects, of which none is ever changed in place, and the changes that made them; one lock guards both."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[str, dict[tuple[str, str], Object]] = {plural: {} for plural in KINDS}
        self.uids: set[str] = set()
        self.history: list[Change] = []
        self.oldest = self.version = 1  # Before the first change of the history, and after the last.
        self.followers: queue.SimpleQueue[Change] = queue.SimpleQueue()  # All changes, for the controllers.
        for name in ("default", "kube-node-lease", "kube-public", "kube-system"):
            self.create("namespaces", "", {"metadata": {"name": name}})

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        with self.changed:
            return self.objects[plural].get((namespace, name))

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """Return an object. Raises ApiError 404."""
        item = self.find(plural, namespace, name)
        if not item:
            raise not_found(KINDS[plural], name)
        return item

    def select(self, plural: str, namespace: str = "", match: Match = bool) -> list[Object]:
        """Return the objects that match, sorted; of all namespaces if none is given."""
        with self.changed:
            return [item for key, item in sorted(self.objects[plural].items()) if namespace in ("", key[0]) and match(item)]

    def owned(self, uid: str) -> list[tuple[str, Object]]:
        """Return the kinds and objects that an object owns."""
        with self.changed:
            return [(plural, item) for plural, items in self.objects.items() for item in items.values()
                    if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", ()))]

    def put(self, kind: Kind, before: Object | None, after: Object | None) -> Object:
        """Make a change. The lock must be held."""
        self.version += 1
        item = after or before or {}
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        meta = item["metadata"]
        if after:
            self.objects[kind.plural][meta.get("namespace", ""), meta["name"]] = item
            self.uids.add(meta["uid"])
        else:
            del self.objects[kind.plural][meta.get("namespace", ""), meta["name"]]
            self.uids.discard(meta["uid"])
        change = Change(kind, before, item if after else None, item)
        self.history.append(change)
        if len(self.history) > 2 * MAX_HISTORY:
            del self.history[:MAX_HISTORY]
            self.oldest += MAX_HISTORY
        self.followers.put(change)
        self.changed.notify_all()
        return item

    def expire(self) -> None:
        """Lose the history, as by etcd's compaction."""
        with self.changed:
            self.history, self.oldest, self.version = [], self.version + 1, self.version + 1
            self.changed.notify_all()

    def create(self, plural: str, namespace: str, item: Object, dry_run: bool = False) -> Object:
        """Add an object. Raises ApiError 403, 404, 409 or 422, and Malformed."""
        kind = KINDS[plural]
        item = decode(kind.name, {"metadata": {}, **item, "kind": kind.name, "apiVersion": kind.api_version})
        given = item["metadata"]
        name = given.get("name") or given.get("generateName", "") + "".join(
            secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5 if "generateName" in given else 0))
        item["metadata"] = {
            **{key: given[key] for key in ("annotations", "generateName", "labels", "ownerReferences") if given.get(key)},
            **({"name": name} if name else {}), **({"namespace": namespace} if namespace else {}),
            **({"generation": 1} if kind.group else {}), "creationTimestamp": now(), "uid": str(uuid.uuid4())}
        with self.changed:
            if namespace and "deletionTimestamp" in self.get("namespaces", "", namespace)["metadata"]:
                raise forbidden(kind, name, f"unable to create new content in namespace {namespace} because it is being terminated")
            self.check_quotas(kind, namespace, name)
            self.complete(kind, item)
            check(kind, item)
            if self.find(plural, namespace, name):
                raise ApiError(409, "AlreadyExists", f'{kind.resource} "{name}" already exists', about(kind, name))
            return item if dry_run else self.put(kind, None, item)

    def complete(self, kind: Kind, item: Object) -> None:
        """Fill in what does not come from the client. Raises ApiError 422."""
        if kind.name == "Secret":
            plain = {key: base64.b64encode(value.encode()).decode() for key, value in item.pop("stringData", {}).items()}
            if plain or "data" in item:
                item["data"] = {**item.get("data", {}), **plain}
        elif kind.name in ("Namespace", "Pod", "StatefulSet"):
            item["status"] = {"Namespace": {"phase": "Active"}, "Pod": {"phase": "Pending"}, "StatefulSet": {"replicas": 0}}[kind.name]
        elif kind.name == "Service" and item["spec"]["type"] != "ExternalName":
            taken = {service["spec"].get("clusterIP") for service in self.objects["services"].values()} - {"None"}
            address = item["spec"].get("clusterIP", "")
            while not address or address in taken and "clusterIP" not in item["spec"]:
                address = str(SERVICE_ADDRESSES[random.randrange(1, SERVICE_ADDRESSES.num_addresses - 1)])
            if address in taken or address != "None" and ipaddress.ip_address(address) not in SERVICE_ADDRESSES:
                why = "provided IP is already allocated" if address in taken else \
                    f"provided IP is not in the valid range. The range of valid IPs is {SERVICE_ADDRESSES}"
                invalid(kind, item["metadata"]["name"], [{"reason": "FieldValueInvalid", "field": "spec.clusterIPs", "message":
                        f'Invalid value: []string{{"{address}"}}: failed to allocated ip:{address} with error:{why}'}])
            item["spec"].update(clusterIP=address, clusterIPs=[address])

    def used(self, namespace: str, resource: str) -> int:
        """Return how many there are of what a quota calls services or count/statefulsets.apps."""
        plural = resource.rpartition("count/")[2].partition(".")[0]
        return len(self.select(plural, namespace)) if plural in KINDS else 0

    def check_quotas(self, kind: Kind, namespace: str, name: str) -> None:
        """Raise ApiError 403 if one more of a kind would be too many."""
        for quota in self.select("resourcequotas", namespace) if namespace else ():
            hard = quota["spec"].get("hard", {})
            for resource in hard.keys() & {kind.plural, f"count/{kind.resource}"}:
                used = self.used(namespace, resource)
                if used + 1 > int(hard[resource]):
                    raise forbidden(kind, name, f"exceeded quota: {quota['metadata']['name']}, requested: {resource}=1, "
                                    f"used: {resource}={used}, limited: {resource}={hard[resource]}")

    def update(self, plural: str, namespace: str, name: str, change: Callable[[Object], Object], dry_run: bool = False) -> Object:
        """Change all of an object but its status, through a function of what it is. Raises ApiError 404, 409 or 422, and Malformed."""
        with self.changed:
            kind, before = KINDS[plural], self.get(plural, namespace, name)
            old = before["metadata"]
            after = decode(kind.name, {**change(before), "kind": kind.name, "apiVersion": kind.api_version})
            new = after.setdefault("metadata", {})
            if new.get("resourceVersion", old["resourceVersion"]) != old["resourceVersion"]:
                raise conflict(kind, name, kind.resource,
                               "the object has been modified; please apply your changes to the latest version and try again")
            if new.get("uid", old["uid"]) != old["uid"]:
                raise conflict(kind, name, kind.resource, f"Precondition failed: UID in precondition: {new['uid']}, UID in object meta: "
                               f"{old['uid']}")
            after["metadata"] = {**{key: value for key, value in old.items() if key not in ("annotations", "labels", "ownerReferences")},
                                 **{key: new[key] for key in ("annotations", "labels", "ownerReferences") if new.get(key)}}
            if kind.name == "Service":
                for field in before["spec"].keys() & {"clusterIP", "clusterIPs"}:
                    after["spec"].setdefault(field, before["spec"][field])
            elif kind.name == "Secret":
                self.complete(kind, after)
            if "status" in before:
                after["status"] = before["status"]
            check(kind, after, before)
            if "generation" in old and after["spec"] != before["spec"]:
                after["metadata"]["generation"] += 1
            return after if dry_run or after == before else self.put(kind, before, after)

    def set_status(self, plural: str, item: Object, **status: Any) -> None:
        """Set parts of an object's status, and remove those that are None, if it is still there."""
        with self.changed:
            before = self.find(plural, item["metadata"].get("namespace", ""), item["metadata"]["name"])
            if before and before["metadata"]["uid"] == item["metadata"]["uid"]:
                wanted = {key: value for key, value in {**before.get("status", {}), **status}.items() if value is not None}
                if wanted != before.get("status"):
                    self.put(KINDS[plural], before, {**before, "status": wanted})

    def delete(self, plural: str, namespace: str, name: str, options: Object) -> Object:
        """Delete an object, or begin to; return it while it is still there, or else a Status. Raises ApiError 404 or 409."""
        with self.changed:
            kind, item = KINDS[plural], self.get(plural, namespace, name)
            meta = item["metadata"]
            for field, called, why in (("uid", "UID", "deleted and then recreated"), ("resourceVersion", "ResourceVersion", "modified")):
                wanted = (options.get("preconditions") or {}).get(field, meta[field])
                if wanted != meta[field]:
                    raise conflict(kind, name, kind.name, f"the {called} in the precondition ({wanted}) does not match the {called} in "
                                   f"record ({meta[field]}). The object might have been {why}")
            grace = options.get("gracePeriodSeconds")
            grace = item["spec"]["terminationGracePeriodSeconds"] if kind.name == "Pod" and grace is None else int(grace or 0)
            if options.get("dryRun"):
                grace = 0
            elif options.get("propagationPolicy") == "Orphan":
                for other, dependent in self.owned(meta["uid"]):
                    owners = [owner for owner in dependent["metadata"]["ownerReferences"] if owner["uid"] != meta["uid"]]
                    self.put(KINDS[other], dependent, {**dependent, "metadata": {**dependent["metadata"], "ownerReferences": owners}})
            if grace and kind.name == "Pod" and item["spec"].get("nodeName") or kind.name == "Namespace" and not options.get("dryRun"):
                if "deletionTimestamp" in meta:
                    return item
                ending = {"deletionTimestamp": now(grace), **({"deletionGracePeriodSeconds": grace} if kind.name == "Pod" else {})}
                return self.put(kind, item, {**item, "metadata": {**meta, **ending}, "status": item["status"] if kind.name == "Pod" else {
                    "phase": "Terminating"}})
            if not options.get("dryRun"):
                self.put(kind, item, None)
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": about(kind, name, uid=meta["uid"])}

    def event(self, plural: str, item: Object, component: str, category: str, reason: str, message: str, field: str = "") -> None:
        """Record an Event on an object, or count it once more."""
        meta, kind = item["metadata"], KINDS[plural]
        name = f"{meta['name']}.{hashlib.sha256(' '.join((meta['uid'], reason, message)).encode()).hexdigest()[:16]}"
        with self.changed, contextlib.suppress(ApiError):
            if self.find("events", meta["namespace"], name):
                self.update("events", meta["namespace"], name, lambda event: {**event, "count": event["count"] + 1, "lastTimestamp": now()})
                return
            self.create("events", meta["namespace"], {
                "metadata": {"name": name}, "type": category, "reason": reason, "message": message, "count": 1, "firstTimestamp": now(),
                "lastTimestamp": now(), "source": {"component": component, **({"host": NODE} if component == "kubelet" else {})},
                "involvedObject": {"apiVersion": kind.api_version, "kind": kind.name, "resourceVersion": meta["resourceVersion"],
                                   **{key: meta[key] for key in ("name", "namespace", "uid")}, **({"fieldPath": field} if field else {})}})


# ---- What kubectl asks for: Tables to print, and the OpenAPI document to validate with ----------------

def age(timestamp: str) -> str:
    """Return how long ago a time was, as kubectl has it."""
    seconds = max(int(time.time() - calendar.timegm(time.strptime(timestamp, RFC_3339))), 0)
    minute, hour, day = 60, 3600, 86400
    for limit, size, unit, part, part_unit in (
            (2 * minute, 1, "s", 1, ""), (10 * minute, minute, "m", 1, "s"), (3 * hour, minute, "m", 1, ""),
            (8 * hour, hour, "h", minute, "m"), (2 * day, hour, "h", 1, ""), (8 * day, day, "d", hour, "h")):
        if seconds < limit:
            rest = seconds % size // part if part_unit else 0
            return f"{seconds // size}{unit}" + (f"{rest}{part_unit}" if rest else "")
    return f"{seconds // day}d"


def born(item: Object) -> str:
    """Return an object's age."""
    return age(item["metadata"]["creationTimestamp"])


def pod_cells(pod: Object) -> list[Any]:
    """Return what is shown of a pod."""
    status, containers = pod["status"], pod["status"].get("containerStatuses", [])
    reasons = [at(container, f"state.{state}.reason") for container in containers for state in ("waiting", "terminated")]
    shown = "Terminating" if "deletionTimestamp" in pod["metadata"] else next(filter(None, reasons), status["phase"])
    return [f"{sum(container['ready'] for container in containers)}/{len(pod['spec']['containers'])}", shown,
            sum(container["restartCount"] for container in containers), born(pod), status.get("podIP", "<none>"),
            pod["spec"].get("nodeName", "<none>"), "<none>", "<none>"]


def joined(items: Any) -> str:
    """Return cells in one."""
    return ",".join(items) or "<none>"


# Of each kind the columns of `kubectl get`, between bars those of -o wide alone, and what is in them behind the name.
COLUMNS: dict[str, tuple[str, Callable[[Object], list[Any]]]] = {
    "namespaces": ("Name,Status,Age", lambda item: [item["status"]["phase"], born(item)]),
    "secrets": ("Name,Type,Data,Age", lambda item: [item["type"], len(item.get("data", {})), born(item)]),
    "persistentvolumeclaims": ("Name,Status,Age", lambda item: [item["status"]["phase"], born(item)]),
    "configmaps": ("Name,Data,Age", lambda item: [len(item.get("data", {})) + len(item.get("binaryData", {})), born(item)]),
    "services": ("Name,Type,Cluster-IP,External-IP,Port(s),Age|Selector", lambda item: [
        item["spec"]["type"], item["spec"].get("clusterIP", "<none>"), item["spec"].get("externalName", "<none>"),
        joined(f"{port['port']}/{port['protocol']}" for port in item["spec"].get("ports", ())), born(item),
        joined(f"{key}={value}" for key, value in sorted(item["spec"].get("selector", {}).items()))]),
    "pods": ("Name,Ready,Status,Restarts,Age|IP,Node,Nominated Node,Readiness Gates", pod_cells),
    "events": ("Last Seen,Type,Reason,Object|Subobject,Source|Message|First Seen,Count,Name", lambda item: [
        age(item["lastTimestamp"]), item.get("type", ""), item.get("reason", ""),
        f"{item['involvedObject'].get('kind', '').lower()}/{item['involvedObject'].get('name')}",
        item["involvedObject"].get("fieldPath", ""),
        ", ".join(filter(None, (item["source"].get("component"), item["source"].get("host")))), item.get("message", ""),
        age(item["firstTimestamp"]), item.get("count", 1), item["metadata"]["name"]]),
    "resourcequotas": ("Name,Age,Request,Limit", lambda item: [born(item), *(", ".join(
        f"{name}: {item['status']['used'].get(name, 0)}/{hard}" for name, hard in sorted(item["status"].get("hard", {}).items())
        if name.startswith("limits.") == limits) for limits in (False, True))]),
    "statefulsets": ("Name,Ready,Age|Containers,Images", lambda item: [
        f"{item['status'].get('readyReplicas', 0)}/{item['spec']['replicas']}", born(item),
        *(joined(container[key] for container in item["spec"]["template"]["spec"]["containers"]) for key in ("name", "image"))]),
}


def table(kind: Kind, items: list[Object], version: str, whole: bool) -> Object:
    """Return objects as the Table from which kubectl prints, with whole objects in it or just their metadata."""
    header, cells = COLUMNS[kind.plural]
    columns = [{"name": name, "type": "integer" if name == "Restarts" else "string", "format": "name" if name == "Name" else "",
                "description": "", "priority": number % 2} for number, part in enumerate(header.split("|")) for name in part.split(",")]
    rows = [{"cells": ([] if kind.name == "Event" else [item["metadata"]["name"]]) + cells(item), "object": item if whole else {
             "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}} for item in items]
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version}, "columnDefinitions": columns,
            "rows": rows}


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
    return b"" if shape == "*" else pack(22, pack(1, {"i": "integer", "b": "boolean"}.get(shape, "string"))) + (
        pack(2, "int-or-string") if shape == "x" else b"")


@functools.lru_cache
def openapi() -> bytes:
    """Return the document that kubectl validates with before it sends: the types, and that the kinds' PATCH knows dryRun."""
    kinds = {kind.name: {"group": kind.group, "kind": kind.name, "version": "v1"} for kind in KINDS.values()}
    types = [pack(1, pack(1, FULL_NAMES[name]), pack(2, *(pack(19, field) for field in REQUIRED[name]), pack(22, pack(1, "object")),
                  pack(25, *(pack(1, pack(1, field), pack(2, schema(shape))) for field, shape in fields.items())),
                  extension(31, "x-kubernetes-group-version-kind", [kinds[name]] if name in kinds else [])))
             for name, fields in SHAPES.items()]
    dry_run = pack(8, pack(1, pack(2, pack(3, pack(2, "query"), pack(4, "dryRun"), pack(6, "string")))))
    paths = [pack(2, pack(1, f"/{name}"), pack(2, pack(8, dry_run, extension(13, "x-kubernetes-group-version-kind", kind))))
             for name, kind in kinds.items()]
    return pack(1, "2.0") + pack(2, pack(1, "Kubernetes"), pack(2, VERSION)) + pack(8, *paths) + pack(9, *types)


# ---- HTTP ---------------------------------------------------------------------------------------------

def encoded(body: Object) -> bytes:
    """Return an object as the API sends it."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class Server(socketserver.ThreadingTCPServer):
    """Accepts connections on loopback; a thread each does the rest, the TLS handshake included."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int, context: ssl.SSLContext, tokens: dict[str, str], store: Store, node: Node) -> None:
        """Listen on a port of 127.0.0.1; each user has a token. Raises OSError."""
        self.context, self.users, self.store, self.node = context, {token: user for user, token in tokens.items()}, store, node
        self.faults: Object = {}
        self.watches_ended = 0.0
        super().__init__(("127.0.0.1", port), Connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection, without a byte read or written."""
        connection, address = super().get_request()
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def order(self, faults: Object) -> Object:
        """Have these faults from now on, and do what is ordered once."""
        if unknown := faults.keys() - {"latency_seconds", "errors", "drop_connections", "silence_watches", "never_ready", "end_watches",
                                       "expire_watches", "kill_pods"}:
            raise bad_request(f"unknown fault: {', '.join(sorted(unknown))}")
        with self.store.changed:
            self.faults = faults
            if faults.pop("expire_watches", False):
                self.store.expire()
            if faults.pop("end_watches", False):
                self.watches_ended = time.monotonic()
            self.store.changed.notify_all()
        self.node.order(faults.get("never_ready", ""), faults.pop("kill_pods", ""))
        return faults


class Connection(http.server.BaseHTTPRequestHandler):
    """One client's connection: its requests, one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        """Shake hands."""
        self.request.settimeout(HANDSHAKE_SECONDS)
        self.request.do_handshake()
        self.request.settimeout(IDLE_SECONDS)
        super().setup()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: kubectl -v=8 shows what was asked and answered."""

    def take_request(self) -> None:
        """Answer one request, or go wrong as ordered."""
        self.store, faults = self.server.store, self.server.faults
        self.url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(self.url.query, keep_blank_values=True))
        try:
            self.body = self.read_body()
            if self.url.path != "/devcluster/faults":
                time.sleep(faults.get("latency_seconds", 0))
                if faults.get("drop_connections"):
                    self.close_connection = True
                    return
                if faults.get("errors", 0) > 0 and self.url.path.startswith("/api"):
                    faults["errors"] -= 1
                    raise ApiError(500, "InternalError", "Internal error occurred: as ordered", {"causes": [{"message": "as ordered"}]})
            self.route([urllib.parse.unquote(part) for part in self.url.path.strip("/").split("/")])
        except ApiError as error:
            self.answer(error.status, error.code)
        except Malformed as error:
            error_of = re.findall(r"v1\.(\w+)", error.words)
            failure = error.error(error_of[0] if error_of else "object", self.body.decode(errors="replace"))
            self.answer(failure.status, failure.code)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = take_request

    def read_body(self) -> bytes:
        """Return the request's body; kubectl sends what comes from its stdin in chunks. Raises ApiError 413."""
        chunked, body, size = "chunked" in self.headers.get("Transfer-Encoding", ""), b"", int(self.headers.get("Content-Length") or 0)
        while size and not chunked or chunked and (size := int(self.rfile.readline().partition(b";")[0], 16)):
            if len(body) + size > MAX_BODY_BYTES:
                self.close_connection = True
                raise ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {MAX_BODY_BYTES}")
            body += self.rfile.read(size)
            if not chunked:
                return body
            self.rfile.readline()
        if chunked:
            self.rfile.readline()
        return body

    def read_object(self) -> Object:
        """Return the object in the body. Raises ApiError 400."""
        try:
            if self.body.startswith(b"k8s\0"):
                envelope = dict(wire_fields(self.body[4:]))
                api_version, kind = (dict(wire_fields(envelope[1]))[number].decode() for number in (1, 2))
                return {"apiVersion": api_version, "kind": kind, **from_wire(kind, envelope.get(2, b""))}
            item = json.loads(self.body)
            if isinstance(item, dict):
                return item
            raise ValueError("not an object")
        except (ValueError, KeyError) as error:
            raise bad_request(f"the object provided is unrecognized: couldn't get version/kind; json parse error: {error}") from None

    def answer(self, body: Object | bytes, code: int = 200) -> None:
        """Send a whole answer."""
        data = body if isinstance(body, bytes) else encoded(body)
        content_type = "application/octet-stream" if body is data else "application/json"
        self.wfile.write(f"HTTP/1.1 {code} {self.responses.get(code, ('',))[0]}\r\nContent-Type: {content_type}\r\n"
                         f"Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def begin(self, content_type: str) -> None:
        """Begin an answer that has no length."""
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())

    def send(self, data: bytes) -> None:
        """Send a piece of it; an empty one ends it."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def user(self) -> str:
        """Return who asks. Raises ApiError 401."""
        token = self.headers.get("Authorization", "").rpartition(" ")[2]
        if token and token not in self.server.users:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return self.server.users.get(token, "system:anonymous")

    def route(self, parts: list[str]) -> None:
        """Answer a request by its path and the user's rights (Kubernetes, "API Concepts")."""
        user, path = self.user(), self.url.path
        core, group = parts[0] == "api", parts[1] if parts[0] == "apis" and len(parts) > 1 else ""
        version, *rest = parts[1 if core else 2:] or [""]
        namespace, rest = (rest[1], rest[2:]) if rest[:1] == ["namespaces"] and len(rest) > 2 else ("", rest)
        plural, name, sub = (*rest, "", "", "")[:3]
        kind = KINDS.get(plural)
        if not (core or group) or version != "v1" or not kind or kind.group != group or len(rest) > 3:
            public = ("/version", "/healthz", "/livez", "/readyz") + (("/api", "/openapi") if user == "nobody" else ())
            if user != "admin" and not path.startswith(public):
                raise ApiError(403, "Forbidden", f'forbidden: User "{user}" cannot {self.command.lower()} path "{path}"', {})
            return self.answer(self.static(path, user))
        several = "watch" if self.query.get("watch") in ("1", "true") else "list"
        verb = {"GET": "get" if name else several, "POST": "create", "PUT": "update", "PATCH": "patch",
                "DELETE": "delete" if name else "deletecollection"}[self.command]
        if user != "admin":
            where = namespace or (name if plural == "namespaces" else "")
            raise forbidden(kind, name, f'User "{user}" cannot {verb} resource "{plural}{sub and "/" + sub}" in API group "{group}" '
                            + (f'in the namespace "{where}"' if where else "at the cluster scope"))
        if (plural, sub, verb) == ("pods", "log", "get"):
            return self.log(self.store.get(plural, namespace, name))
        if sub:
            raise NOWHERE
        if verb in ("list", "watch", "deletecollection"):
            return self.several(kind, namespace, verb)
        if (verb == "create") == bool(name) or bool(namespace) == (plural == "namespaces"):
            raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})
        return self.one(kind, namespace, name, verb)

    def one(self, kind: Kind, namespace: str, name: str, verb: str) -> None:
        """Create, read, change or delete one object."""
        plural, dry_run, code = kind.plural, "dryRun" in self.query, 200
        content_type = self.headers.get("Content-Type", "").partition(";")[0]
        body = self.read_object() if self.body else {}
        if verb == "delete":
            self.answer(self.store.delete(plural, namespace, name, {**self.query, **body}))
            return
        if verb == "create":
            if body.get("kind", kind.name) != kind.name:
                raise bad_request(f'{body["kind"]} in version "v1" cannot be handled as a {kind.name}: converting (v1.{body["kind"]}) to '
                                  f"(core.{kind.name}): unknown conversion")
            if at(body, "metadata.namespace") not in (None, "", namespace):
                raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
            item, code = self.store.create(plural, namespace, body, dry_run), 201
        elif verb == "update":
            item = self.store.update(plural, namespace, name, lambda old: body, dry_run)
        elif verb == "get":
            item = self.store.get(plural, namespace, name)
        elif content_type in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
            shape = kind.name if "strategic" in content_type else "*"
            item = self.store.update(plural, namespace, name, lambda old: merge(old, body, shape), dry_run)
        else:
            raise ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
        self.answer(self.shown(kind, item), code)

    def shown(self, kind: Kind, item: Object) -> Object:
        """Return an object, as a Table if the client asks for one."""
        if "as=Table" not in self.headers.get("Accept", ""):
            return item
        return table(kind, [item], item["metadata"].get("resourceVersion", ""), self.query.get("includeObject") == "Object")

    def several(self, kind: Kind, namespace: str, verb: str) -> None:
        """List, watch or delete objects."""
        match = selection(kind, self.query.get("labelSelector", ""), self.query.get("fieldSelector", ""))
        version, exact = self.query.get("resourceVersion") or "0", self.query.get("resourceVersionMatch")
        if not version.isdigit():
            raise ApiError(500, "", f'resourceVersion: Invalid value: "{version}": strconv.ParseUint: parsing "{version}": invalid syntax')
        if verb == "watch" and exact:  # Go's newer clients ask for the list in the watch, and do without after this.
            message = "Forbidden: resourceVersionMatch is forbidden for watch"
            raise ApiError(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: {message}', {
                "group": "meta.k8s.io", "kind": "ListOptions", "causes": [
                    {"reason": "FieldValueForbidden", "message": message, "field": "resourceVersionMatch"}]})
        if verb == "watch":
            return self.watch(kind, namespace, match, int(version))
        with self.store.changed:
            current, items = self.store.version, self.store.select(kind.plural, namespace, match)
            if int(version) > current:
                raise ApiError(504, "Timeout", f"Timeout: Too large resource version: {version}, current: {current}", {
                    "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1})
            if exact == "Exact" and int(version) < self.store.oldest or self.query.get("continue"):
                raise ApiError(410, "Expired", "The resourceVersion for the provided list is too old.")
            for item in items if verb == "deletecollection" else ():
                self.store.delete(kind.plural, item["metadata"].get("namespace", ""), item["metadata"]["name"],
                                  {**self.query, **(self.read_object() if self.body else {})})
        if "as=Table" in self.headers.get("Accept", ""):
            return self.answer(table(kind, items, str(current), self.query.get("includeObject") == "Object"))
        return self.answer({"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": {"resourceVersion": str(current)},
                            "items": items})

    def watch(self, kind: Kind, namespace: str, match: Match, version: int) -> None:
        """Send what happens from a version on, or from the present state on if that is 0."""
        store, server, started = self.store, self.server, time.monotonic()
        ends = started + float(self.query.get("timeoutSeconds") or WATCH_SECONDS * random.uniform(1, 2))
        bookmarks = self.query.get("allowWatchBookmarks") in ("1", "true")
        bookmark_at = min(started + BOOKMARK_SECONDS, ends - LAST_BOOKMARK_SECONDS) if bookmarks else ends

        def tell(category: str, item: Object) -> None:
            self.send(encoded({"type": category, "object": item if "code" in item else self.shown(kind, item)}))

        def selected(item: Object | None) -> bool:
            return bool(item and namespace in ("", item["metadata"].get("namespace")) and match(item))
        self.begin("application/json")
        with store.changed:
            present = [] if version else store.select(kind.plural, namespace, match)
            version = version or store.version
        for item in present:
            tell("ADDED", item)
        while time.monotonic() < ends and server.watches_ended < started:
            with store.changed:
                if store.version == version and server.watches_ended < started:
                    store.changed.wait(max(min(bookmark_at, ends) - time.monotonic(), 0))
                changes, oldest, current = store.history[max(version - store.oldest, 0):], store.oldest, store.version
            if server.faults.get("silence_watches"):
                time.sleep(0.1)
                continue
            if version < oldest:
                tell("ERROR", ApiError(410, "Expired", f"too old resource version: {version} ({oldest})").status)
                break
            version = max(version, current)
            for change in changes:
                was, still = selected(change.before), selected(change.after)
                if change.kind is kind and (was or still):
                    tell("MODIFIED" if was and still else "ADDED" if still else "DELETED", change.item)
            if bookmarks and bookmark_at <= time.monotonic() < ends:
                last = ends - LAST_BOOKMARK_SECONDS
                bookmark_at = min(bookmark_at + BOOKMARK_SECONDS, last) if bookmark_at < last else ends
                self.send(encoded({"type": "BOOKMARK", "object": {
                    "kind": kind.name, "apiVersion": kind.api_version, "metadata": {"resourceVersion": str(version)}}}))
        self.send(b"")

    def log(self, pod: Object) -> None:
        """Send what a pod's container printed."""
        names = [container["name"] for container in pod["spec"]["containers"]]
        name = self.query.get("container") or names[0]
        if name not in names:
            raise bad_request(f"container {name} is not valid for pod {pod['metadata']['name']}")
        self.begin("text/plain")
        with contextlib.suppress(FileNotFoundError), open(self.server.node.log_path(pod, name), "rb") as file:
            lines = file.readlines()
            following = True
            while lines or following:
                data = b"".join(lines[-int(self.query.get("tailLines", 0)):])
                self.query.pop("tailLines", None)
                if data:
                    self.send(data)
                following = self.query.get("follow") == "true" and pod["metadata"]["uid"] in self.store.uids
                time.sleep(0.2 if following else 0)
                lines = file.readlines()
        self.send(b"")

    def static(self, path: str, user: str) -> Object | bytes:
        """Return what is not an object's: what there is, who may do what, the faults. Raises ApiError 404."""
        if path == "/devcluster/faults":
            return self.server.order(self.read_object()) if self.command == "POST" else self.server.faults
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" and self.command == "POST":
            return {**self.read_object(), "metadata": {}, "status": {"allowed": user == "admin"}}

        def resources(group: str, *more: Object) -> Object:
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{group}/v1".strip("/"), "resources": [
                *({"name": kind.plural, "singularName": "", "namespaced": kind.name != "Namespace", "kind": kind.name,
                   "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                   "shortNames": kind.short.split(), "categories": ["all"] if kind.in_all else []}
                  for kind in KINDS.values() if kind.group == group), *more]}
        groups = [{"name": group, "versions": [version], "preferredVersion": version} for group in ("apps", "authorization.k8s.io")
                  for version in [{"groupVersion": f"{group}/v1", "version": "v1"}]]
        answers: dict[str, Object | bytes] = {
            "/version": {"major": "1", "minor": "20", "gitVersion": VERSION, "platform": sys.platform},
            "/healthz": b"ok", "/livez": b"ok", "/readyz": b"ok", "/openapi/v2": openapi(),
            "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
            "/api/v1": resources("", {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get"]}),
            "/apis/apps/v1": resources("apps"),
            "/apis/authorization.k8s.io/v1": resources("authorization.k8s.io", {
                "name": "selfsubjectaccessreviews", "singularName": "", "namespaced": False, "kind": "SelfSubjectAccessReview",
                "verbs": ["create"]}),
        }
        if path not in answers:
            raise NOWHERE
        return answers[path]


# ---- Controllers --------------------------------------------------------------------------------------

def is_ready(pod: Object) -> bool:
    """Return whether a pod is ready, and is to stay."""
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in pod["status"].get("conditions", ()))


class Controllers:
    """What a cluster does by itself: StatefulSets get their pods, garbage goes, namespaces end, quotas count. One thread does it all."""

    def __init__(self, store: Store, reactors: list[Callable[[Change], None]]) -> None:
        self.store, self.reactors = store, [self.sync, self.collect, self.finalize, self.count, *reactors]
        self.failed: list[Change] = []

    def run(self) -> None:
        """Follow the changes for ever."""
        while True:
            try:
                changes = [self.store.followers.get(timeout=RESYNC_SECONDS)]
            except queue.Empty:
                changes, self.failed = self.failed, []
            for change in changes:
                for react in self.reactors:
                    react(change)

    def delete(self, plural: str, item: Object) -> None:
        """Delete an object, if it is still the same one."""
        with contextlib.suppress(ApiError):
            self.store.delete(plural, item["metadata"].get("namespace", ""), item["metadata"]["name"],
                              {"preconditions": {"uid": item["metadata"]["uid"]}})

    def collect(self, change: Change) -> None:
        """Delete what belonged to an object that has gone."""
        meta = change.item["metadata"]
        for plural, item in self.store.owned(meta["uid"]) if not change.after else ():
            self.delete(plural, item)
        if change.after and any(owner["uid"] not in self.store.uids for owner in meta.get("ownerReferences", ())):
            self.delete(change.kind.plural, change.item)

    def finalize(self, change: Change) -> None:
        """Empty a namespace that ends, and let it go when it is empty."""
        meta = change.item["metadata"]
        home = self.store.find("namespaces", "", meta.get("namespace", meta["name"]))
        if home and "deletionTimestamp" in home["metadata"]:
            with self.store.changed:
                left = [(plural, item) for plural in KINDS for item in self.store.select(plural, home["metadata"]["name"])]
                for plural, item in left:
                    self.delete(plural, item)
                if not left:
                    self.store.put(KINDS["namespaces"], home, None)

    def count(self, change: Change) -> None:
        """Keep the status of a namespace's quotas."""
        for quota in self.store.select("resourcequotas", change.item["metadata"].get("namespace", "-")):
            hard = quota["spec"].get("hard", {})
            self.store.set_status("resourcequotas", quota, hard=hard, used={
                resource: str(self.store.used(quota["metadata"]["namespace"], resource)) for resource in hard})

    def sync(self, change: Change) -> None:
        """Bring a StatefulSet's pods nearer to what it asks for, and its status to what they are."""
        meta = change.item["metadata"]
        names = [meta["name"]] if change.kind.name == "StatefulSet" else [
            owner["name"] for owner in meta.get("ownerReferences", ()) if owner["kind"] == "StatefulSet"]
        item = self.store.find("statefulsets", meta.get("namespace", ""), names[0]) if names else None
        if not item:
            return
        meta, spec = item["metadata"], item["spec"]
        revision = f"{meta['name']}-{hashlib.sha256(json.dumps(spec['template'], sort_keys=True).encode()).hexdigest()[:10]}"
        pods = {int(pod["metadata"]["name"].rpartition("-")[2]): pod for plural, pod in self.store.owned(meta["uid"]) if plural == "pods"}
        ready = {number for number, pod in pods.items() if is_ready(pod)}
        updated = {number for number, pod in pods.items() if labels_of(pod).get("controller-revision-hash") == revision}
        for number in range(spec["replicas"]):
            if number not in pods and not self.make_pod(item, number, revision):
                self.failed.append(change)
            if spec["podManagementPolicy"] != "Parallel" and number not in ready:
                break
        surplus = sorted((number for number in pods if number >= spec["replicas"]), reverse=True)
        outdated = sorted(pods.keys() - updated - set(surplus), reverse=True) if len(ready) == len(pods) else []
        for number in surplus or outdated[:1]:
            if "deletionTimestamp" not in pods[number]["metadata"]:
                self.delete("pods", pods[number])
                self.record(item, "Normal", "SuccessfulDelete",
                            f"delete Pod {meta['name']}-{number} in StatefulSet {meta['name']} successful")
        current = revision if pods.keys() == updated & ready else item["status"].get("currentRevision", revision)
        of_current = pods.keys() if current == revision else pods.keys() - updated
        self.store.set_status("statefulsets", item, collisionCount=0, observedGeneration=meta["generation"], replicas=len(pods),
                              readyReplicas=len(ready) or None, updatedReplicas=len(updated) or None, updateRevision=revision,
                              currentReplicas=len(of_current) or None, currentRevision=current)

    def record(self, item: Object, category: str, reason: str, message: str) -> None:
        """Record an Event on a StatefulSet."""
        self.store.event("statefulsets", item, "statefulset-controller", category, reason, message)

    def make_pod(self, item: Object, number: int, revision: str) -> bool:
        """Make a StatefulSet's pod, or record why not; return whether that is done."""
        meta, template = item["metadata"], item["spec"]["template"]
        name = f"{meta['name']}-{number}"
        try:
            self.store.create("pods", meta["namespace"], {
                "metadata": {**template["metadata"], "name": name, "generateName": f"{meta['name']}-", "labels": {
                    **labels_of(template), "controller-revision-hash": revision, "statefulset.kubernetes.io/pod-name": name},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": meta["name"], "uid": meta["uid"],
                                         "controller": True, "blockOwnerDeletion": True}]},
                "spec": {**template["spec"], "hostname": name, "subdomain": item["spec"].get("serviceName", "")}})
        except ApiError as error:
            self.record(item, "Warning", "FailedCreate", f"create Pod {name} in StatefulSet {meta['name']} failed error: {error}")
            return False
        self.record(item, "Normal", "SuccessfulCreate", f"create Pod {name} in StatefulSet {meta['name']} successful")
        return True


# ---- The node -----------------------------------------------------------------------------------------

class Node:
    """Runs the pods: a thread for each, which does what a kubelet does."""

    def __init__(self, store: Store, state: str, hollow: bool) -> None:
        self.store, self.state, self.never_ready, self.stopping = store, state, "", False
        self.path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
        self.mariadbd = "" if hollow else shutil.which("mariadbd", path=self.path) or ""
        self.why_hollow = "--hollow was given" if hollow else \
            "for databases that run, apt-get install mariadb-server-core mariadb-client-core, and start devcluster again"
        self.pods: dict[str, Pod] = {}
        self.addresses = POD_ADDRESSES.hosts()

    def react(self, change: Change) -> None:
        """Start a pod that is new, and end one that is to go."""
        if change.kind.name == "PersistentVolumeClaim" and not change.after:
            shutil.rmtree(self.claim_path(change.item), ignore_errors=True)
        if change.kind.name == "Pod":
            uid = change.item["metadata"]["uid"]
            if change.after and not change.before:
                self.pods[uid] = Pod(self, change.item, str(next(self.addresses)))
                self.pods[uid].start()
            elif uid in self.pods and (not change.after or "deletionTimestamp" in change.item["metadata"]):
                self.pods[uid].stop()

    def claim_path(self, claim: Object) -> str:
        """Return the folder of a claim, which lives as long as the claim."""
        return f"{self.state}/claims/{claim['metadata']['uid']}"

    def log_path(self, pod: Object, container: str) -> str:
        """Return the file of what a container prints."""
        return os.path.join(self.state, "pods", pod["metadata"]["uid"], f"{container}.log")

    def order(self, never_ready: str, kill: str) -> None:
        """Let the pods of these names never be ready, and kill those of those names."""
        self.never_ready = never_ready
        for pod in list(self.pods.values()):
            pod.crash(fnmatch.fnmatch(pod.name, kill))

    def stop(self) -> None:
        """End all pods, within STOP_SECONDS."""
        self.stopping = True
        pods, deadline = list(self.pods.values()), time.monotonic() + STOP_SECONDS
        for pod in pods:
            pod.stop()
        for pod in pods:
            pod.join(max(deadline - time.monotonic(), 0))
        for pod in pods:
            pod.kill()
            pod.join(1)


class NotYet(Exception):
    """A container that cannot be started so far: a kubelet's reason, and words."""


class Pod(threading.Thread):
    """One pod on the node, from its binding to its end."""

    def __init__(self, node: Node, pod: Object, address: str) -> None:
        super().__init__(name=pod["metadata"]["name"], daemon=True)
        self.node, self.store, self.item, self.address = node, node.store, pod, address
        containers = pod["spec"]["containers"]
        self.container = next((container for container in containers if re.search("mariadb|mysql", container["image"])), containers[0])
        self.folder = os.path.join(node.state, "pods", pod["metadata"]["uid"])
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping, self.crashed, self.poked = False, False, threading.Event()
        self.restarts = 0
        self.last_state: Object = {}
        self.conditions: dict[str, Object] = {}
        self.paths: dict[str, str] = {}
        self.claims: list[Object] = []

    def stop(self) -> None:
        """Have it end."""
        self.stopping = True
        self.poked.set()

    def crash(self, killed: bool) -> None:
        """Kill its container if so ordered, and in any case look whether it may be ready."""
        self.crashed = killed or self.crashed
        self.poked.set()
        if killed:
            self.kill()

    def kill(self) -> None:
        """Kill its process."""
        with contextlib.suppress(ProcessLookupError):
            if self.process and self.process.returncode is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def run(self) -> None:
        """Run the container again and again, with a kubelet's pauses, until the pod is deleted."""
        meta, image = self.item["metadata"], self.container["image"]
        database, pause = re.search("mariadb|mysql", image), 0.0
        with contextlib.suppress(ApiError):
            self.store.update("pods", meta["namespace"], meta["name"], lambda pod: {**pod, "spec": {**pod["spec"], "nodeName": NODE}})
        self.record("Normal", "Scheduled", f"Successfully assigned {meta['namespace']}/{meta['name']} to {NODE}", "default-scheduler")
        if not (database and self.node.mariadbd or "never-ready" in image):
            why = self.node.why_hollow if database else "its image is no database"
            self.record("Warning", "Hollow", f"nothing runs in this pod: {why}")
        while not self.stopping:
            started, began = now(), time.monotonic()
            try:
                if "never-ready" in image:
                    raise NotYet("ImagePullBackOff", "Back-off pulling image")
                code = self.run_database() if database and self.node.mariadbd else self.run_hollow()
            except NotYet as error:
                self.report({"waiting": {"reason": error.args[0], "message": error.args[1]}})
                self.pause(RESYNC_SECONDS)
                continue
            if self.stopping:
                break
            self.crashed = False
            self.restarts += 1
            self.last_state = {"terminated": {"exitCode": code if code >= 0 else 128 - code, "reason": "Error" if code else "Completed",
                                              "startedAt": started, "finishedAt": now()}}
            pause = 0.0 if time.monotonic() - began > PEACE_SECONDS else pause
            if pause:
                self.record("Warning", "BackOff", "Back-off restarting failed container")
            self.report({"waiting": {"reason": "CrashLoopBackOff", "message": f"back-off {pause:.0f}s restarting failed container"}}
                        if pause else self.last_state)
            self.pause(pause)
            pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)
        time.sleep(0 if self.node.stopping else LINGER_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)
        for claim in self.claims:  # One that was deleted while the database still wrote into it.
            if claim["metadata"]["uid"] not in self.store.uids:
                shutil.rmtree(self.node.claim_path(claim), ignore_errors=True)
        self.node.pods.pop(meta["uid"], None)
        with contextlib.suppress(ApiError):
            if not self.node.stopping:  # Else its StatefulSet would make it anew.
                self.store.delete("pods", meta["namespace"], meta["name"],
                                  {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})

    def pause(self, seconds: float) -> None:
        """Wait so long, or until the pod is to end or its container to crash."""
        deadline = time.monotonic() + seconds
        while not (self.stopping or self.crashed) and (left := deadline - time.monotonic()) > 0:
            self.poked.wait(left)
            self.poked.clear()

    def run_hollow(self) -> int:
        """Be ready after a moment, and until the end; return the exit code of a process that was killed."""
        running = {"running": {"startedAt": now()}}
        self.report(running)
        self.pause(HOLLOW_SECONDS)
        while not (self.stopping or self.crashed):
            self.report(running, ready=True)
            self.poked.wait()
            self.poked.clear()
        return -signal.SIGKILL

    def report(self, state: Object, ready: bool = False) -> None:
        """Write the pod's status; the state is the container's."""
        ready = ready and not fnmatch.fnmatch(self.name, self.node.never_ready)
        for name, holds in (("PodScheduled", True), ("Initialized", True), ("ContainersReady", ready), ("Ready", ready)):
            if self.conditions.get(name, {}).get("status") != str(holds):
                self.conditions[name] = {"type": name, "status": str(holds), "lastProbeTime": None, "lastTransitionTime": now()}
        statuses = [{"name": container["name"], "image": container["image"], "imageID": "", "ready": ready, "started": "running" in state,
                     "restartCount": self.restarts, "state": state, "lastState": self.last_state}
                    for container in self.item["spec"]["containers"]]
        self.store.set_status("pods", self.item, phase="Running" if "running" in state or self.restarts else "Pending",
                              hostIP="127.0.0.1", podIP=self.address, podIPs=[{"ip": self.address}], containerStatuses=statuses,
                              startTime=self.conditions["PodScheduled"]["lastTransitionTime"], conditions=list(self.conditions.values()))

    def record(self, category: str, reason: str, message: str, component: str = "kubelet") -> None:
        """Record an Event on the pod."""
        self.store.event("pods", self.item, component, category, reason, message,
                         f"spec.containers{{{self.container['name']}}}" if component == "kubelet" else "")

    # -- the database

    def run_database(self) -> int:
        """Run the container once, as the image's docker-entrypoint.sh does; return its exit code. Raises NotYet."""
        environment, self.paths = self.environment(), self.mount()
        data = self.paths["/var/lib/mysql"]
        options = [self.localise(word) for word in self.container.get("args", []) if word not in ("mysqld", "mariadbd")]
        options += ["--user=root"] if os.geteuid() == 0 else []
        # SQL must not read and write this machine's files, least of all when root runs it.
        options += ["--basedir=/usr", f"--secure-file-priv={self.folder}", f"--socket={self.folder}/mysqld.sock",
                    f"--pid-file={self.folder}/mysqld.pid"]
        with open(self.node.log_path(self.item, self.container["name"]), "ab") as log:
            if not os.path.exists(f"{data}/mysql") and (code := self.initialise(options, data, environment, log)):
                return code
            self.process = self.start_process([
                self.node.mariadbd, "--no-defaults", f"--datadir={data}", *options, f"--bind-address={self.address}"], environment, log)
            self.record("Normal", "Started", f"Started container {self.container['name']}")
            self.probe(environment)
            if self.process.poll() is None:
                self.process.terminate()
            try:
                return self.process.wait(min(self.item["spec"]["terminationGracePeriodSeconds"], STOP_SECONDS))
            except subprocess.TimeoutExpired:
                self.kill()
                return self.process.wait()

    def start_process(self, command: list[str], environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a process that ends with this one, however that ends."""
        setpriv = shutil.which("setpriv")  # Its signal comes when the thread ends that started the process: this one.
        command = [*([setpriv, "--pdeathsig=KILL"] if setpriv else []), *command]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def needed(self, plural: str, source: Object, name: str) -> Object:
        """Return the data of a Secret or ConfigMap, decoded. Raises NotYet if it is missing and not optional."""
        item = self.store.find(plural, self.item["metadata"]["namespace"], name)
        if not item and not source.get("optional"):
            raise NotYet("CreateContainerConfigError", f'{plural[:-1]} "{name}" not found')
        data = (item or {}).get("data", {})
        return {key: base64.b64decode(value) if plural == "secrets" else value.encode() for key, value in data.items()}

    def environment(self) -> dict[str, str]:
        """Return the container's environment. Raises NotYet."""
        result = {"PATH": self.node.path, "HOME": self.folder, "HOSTNAME": self.name}
        for variable in self.container.get("env", ()):
            value = variable.get("value", "").encode()
            for reference, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
                if source := variable.get("valueFrom", {}).get(reference):
                    data = self.needed(plural, source, source.get("name", ""))
                    if source["key"] not in data and not source.get("optional"):
                        raise NotYet("CreateContainerConfigError", f"couldn't find key {source['key']} in {plural[:-1]} {source['name']}")
                    value = data.get(source["key"], b"")
            result[variable["name"]] = value.decode()
        return result

    def mount(self) -> dict[str, str]:
        """Make the folders of the pod's volumes; return them by their mount paths. Raises NotYet."""
        volumes = {volume["name"]: volume for volume in self.item["spec"].get("volumes", ())}
        paths = {"/var/lib/mysql": f"{self.folder}/data"}
        for mount in self.container.get("volumeMounts", ()):
            folder, volume = f"{self.folder}/volumes/{mount['name']}", volumes[mount["name"]]
            if "persistentVolumeClaim" in volume:
                name = volume["persistentVolumeClaim"]["claimName"]
                claim = self.store.find("persistentvolumeclaims", self.item["metadata"]["namespace"], name)
                if not claim:
                    raise NotYet("CreateContainerConfigError", f'persistentvolumeclaim "{name}" not found')
                folder = self.node.claim_path(claim)
                self.claims.append(claim)
            paths[mount["mountPath"].rstrip("/")] = folder
            os.makedirs(folder, exist_ok=True)
            for plural, kind, key in (("configmaps", "configMap", "name"), ("secrets", "secret", "secretName")):
                for name, content in (self.needed(plural, volume[kind], volume[kind][key]) if kind in volume else {}).items():
                    with open(f"{folder}/{name}", "wb") as file:
                        file.write(content)
        os.makedirs(paths["/var/lib/mysql"], exist_ok=True)
        return paths

    def localise(self, word: str) -> str:
        """Return a word of a command with the pod's address and folders in it, for a container has a network and a root of its own."""
        word = re.sub(r"\b127\.0\.0\.1\b", self.address, word)
        for path, folder in self.paths.items():
            word = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w.-])", folder, word)
        return word

    def initialise(self, options: list[str], data: str, environment: dict[str, str], log: IO[bytes]) -> int:
        """Make the system tables, and on a server without a network the users and what the init SQL makes; return an exit code."""
        def variable(name: str) -> str:
            return environment.get(f"MARIADB_{name}") or environment.get(f"MYSQL_{name}", "")
        password, database, user = variable("ROOT_PASSWORD"), variable("DATABASE"), variable("USER")
        if not (password or variable("ALLOW_EMPTY_ROOT_PASSWORD") or variable("ALLOW_EMPTY_PASSWORD")):
            log.write(b"[ERROR] [Entrypoint]: Database is uninitialized and password option is not specified\n")
            return 1
        fresh = f"{self.folder}/fresh"  # A crash in the middle of it leaves nothing that looks like a database.
        shutil.rmtree(fresh, ignore_errors=True)
        quoted, own = (word.replace("\\", "\\\\").replace("'", "\\'") for word in (password, variable("PASSWORD")))
        statements = f"""SET @@SESSION.SQL_LOG_BIN=0; DROP USER IF EXISTS root@'127.0.0.1', root@'::1';
            EXECUTE IMMEDIATE CONCAT('DROP USER IF EXISTS root@\\'', @@hostname, '\\''); ALTER USER root@localhost IDENTIFIED BY '{quoted}';
            CREATE USER root@'%' IDENTIFIED BY '{quoted}'; GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;""" + (
            f"CREATE DATABASE `{database}`;" if database else "") + (
            f"CREATE USER '{user}'@'%' IDENTIFIED BY '{own}';" if user else "") + (
            f"GRANT ALL ON `{database}`.* TO '{user}'@'%';" if user and database else "")
        scripts = [statements.encode()]
        folder = self.paths.get("/docker-entrypoint-initdb.d", "")
        for name in sorted(os.listdir(folder)) if folder else ():
            if name.endswith(".sql"):
                with open(f"{folder}/{name}", "rb") as file:
                    scripts.append(file.read())
        self.process = self.start_process([
            "mariadb-install-db", "--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal", f"--datadir={fresh}",
            *(word for word in options if word.startswith(("--innodb", "--user", "--character")))], environment, log)
        if self.process.wait() or self.stopping:
            return self.process.returncode or 1
        self.process = process = self.start_process([
            self.node.mariadbd, "--no-defaults", f"--datadir={fresh}", *options, "--skip-networking"], environment, log)
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={self.folder}/mysqld.sock"]
        while subprocess.run([*client, "--execute=SELECT 1"], env=environment, capture_output=True).returncode and process.poll() is None:
            time.sleep(0.02)
        for number, script in enumerate(scripts):
            run = subprocess.run([*client, *([database] if database and number else [])], input=script, stdout=log, stderr=log,
                                 env={**environment, **({"MYSQL_PWD": password} if number else {})})
            if run.returncode:
                self.kill()
                return process.wait() and run.returncode
        process.terminate()
        if process.wait():
            return process.returncode
        for name in os.listdir(fresh):
            shutil.move(f"{fresh}/{name}", data)
        return 0

    def probe(self, environment: dict[str, str]) -> None:
        """Run the container's probes until its process ends, is to end because of them, or the pod is to end."""
        assert self.process
        probes = {name: self.container[f"{name}Probe"] for name in ("startup", "readiness", "liveness") if f"{name}Probe" in self.container}
        begun, running = time.monotonic(), {"running": {"startedAt": now()}}
        due = {name: begun + probe.get("initialDelaySeconds", FIRST_PROBE_SECONDS) for name, probe in probes.items()}
        failures, ready = dict.fromkeys(probes, 0), False
        self.report(running)
        while self.process.poll() is None and not self.stopping:
            for name in ["startup"] if "startup" in probes else list(probes):
                if time.monotonic() < due[name]:
                    continue
                due[name] = time.monotonic() + probes[name]["periodSeconds"]
                wrong = self.try_probe(probes[name], environment)
                failures[name] = failures[name] + 1 if wrong else 0
                if wrong:
                    self.record("Warning", "Unhealthy", f"{name.capitalize()} probe failed: {wrong}")
                if name == "startup" and not wrong:
                    del probes[name]
                elif name == "readiness":
                    ready = not wrong or ready and failures[name] < probes[name]["failureThreshold"]
                elif failures[name] >= probes[name]["failureThreshold"]:
                    self.record("Normal", "Killing", f"Container {self.container['name']} failed {name} probe, will be restarted")
                    return
            self.report(running, ready or not probes)
            self.poked.wait(0.05)
            self.poked.clear()

    def try_probe(self, probe: Object, environment: dict[str, str]) -> str:
        """Run a probe once; return what is wrong, or nothing."""
        try:
            if "tcpSocket" in probe:
                socket.create_connection((self.address, port_of(self.item, probe["tcpSocket"]["port"])), probe["timeoutSeconds"]).close()
            elif "exec" in probe:
                command = [self.localise(word) for word in probe["exec"]["command"]]
                run = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                                     timeout=probe["timeoutSeconds"])
                return (run.stdout + run.stderr).decode(errors="replace").strip() or f"exit {run.returncode}" if run.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return ""


def port_of(pod: Object, port: Any) -> int:
    """Return a pod's port by its number or its name. Raises ValueError."""
    named = {item.get("name"): item["containerPort"] for container in pod["spec"]["containers"] for item in container.get("ports", ())}
    return int(named.get(port, port))


class Proxy:
    """Leads connections to a Service's address to one of its pods that is ready, as kube-proxy has a kernel do."""

    def __init__(self, store: Store) -> None:
        self.store, self.loop = store, asyncio.new_event_loop()
        self.listening: dict[str, list[asyncio.AbstractServer]] = {}
        threading.Thread(target=self.loop.run_forever, name="proxy", daemon=True).start()

    def react(self, change: Change) -> None:
        """Listen for a Service as long as there is one."""
        if change.kind.name == "Service":
            asyncio.run_coroutine_threadsafe(self.listen(change), self.loop).result()

    async def listen(self, change: Change) -> None:
        """Listen anew."""
        meta, spec = change.item["metadata"], change.item["spec"]
        for server in self.listening.pop(meta["uid"], ()):
            server.close()
        if change.after and spec.get("selector") and spec.get("clusterIP", "None") != "None":
            for port in spec["ports"]:
                lead = functools.partial(self.lead, meta["namespace"], spec["selector"], port["targetPort"])
                with contextlib.suppress(OSError):  # A low port, and not root.
                    server = await asyncio.start_server(lead, spec["clusterIP"], port["port"])
                    self.listening.setdefault(meta["uid"], []).append(server)

    async def lead(self, namespace: str, selector: Object, port: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join a connection with one to a pod."""
        pods = self.store.select("pods", namespace, lambda pod: is_ready(pod) and selector.items() <= labels_of(pod).items())
        try:
            pod = random.choice(pods)
            inner_reader, inner_writer = await asyncio.open_connection(pod["status"]["podIP"], port_of(pod, port))
        except (IndexError, ValueError, OSError):
            writer.transport.abort()
            return

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            target.close()
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))


# ---- The command line ---------------------------------------------------------------------------------

def make_certificate(state: str) -> ssl.SSLContext:
    """Make a certificate for this machine alone; return a context with it. Raises OSError or CalledProcessError."""
    key, certificate = f"{state}/tls.key", f"{state}/tls.crt"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365",
                    "-subj", "/CN=devcluster", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def write_kubeconfig(state: str, port: int, tokens: dict[str, str]) -> str:
    """Write a kubeconfig with a context for each user; return its path."""
    with open(f"{state}/tls.crt", "rb") as certificate:
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": base64.b64encode(certificate.read()).decode()}
    with open(f"{state}/kubeconfig", "w", encoding="utf-8") as file:
        yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "admin", "clusters": [{"name": "devcluster", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}} for user, token in tokens.items()],
            "contexts": [{"name": user, "context": {"cluster": "devcluster", "user": user, "namespace": "default"}} for user in tokens],
        }, file)
    return f"{state}/kubeconfig"


def main() -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    parser = argparse.ArgumentParser(prog="devcluster.py", description="A Kubernetes API in one process, on loopback.")
    parser.add_argument("--port", type=int, default=0, help="TCP port of 127.0.0.1 (default: any free one)")
    parser.add_argument("--state", help="folder for the kubeconfig and the pods' data; it is kept (default: a temporary one)")
    parser.add_argument("--hollow", action="store_true", help="run no databases: every pod is ready after a second")
    options = parser.parse_args()
    os.umask(0o077)
    state = os.path.abspath(options.state) if options.state else tempfile.mkdtemp(prefix="devcluster-")
    # Any thread may be given the signal, and would not wake this one from anything but reading a file.
    signalled, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        os.makedirs(state, exist_ok=True)
        shutil.rmtree(f"{state}/pods", ignore_errors=True)
        store = Store()
        node = Node(store, state, options.hollow)
        tokens = {user: secrets.token_urlsafe(24) for user in ("admin", "nobody")}
        with Server(options.port, make_certificate(state), tokens, store, node) as server:
            controllers = Controllers(store, [node.react, *([Proxy(store).react] if node.mariadbd else [])])
            for run in (controllers.run, server.serve_forever):
                threading.Thread(target=run, daemon=True).start()
            port = server.server_address[1]
            print(f"export KUBECONFIG={write_kubeconfig(state, port, tokens)}", flush=True)
            pods = f"{node.mariadbd} runs in its pods" if node.mariadbd else f"its pods are hollow ({node.why_hollow})"
            print(f"# A Kubernetes API is on https://127.0.0.1:{port}; {pods}. Ctrl-C ends it.", flush=True)
            os.read(signalled, 1)
            server.shutdown()
        node.stop()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"devcluster.py: it cannot serve: {error}", file=sys.stderr)
        return 2
    finally:
        if not options.state:
            shutil.rmtree(state, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
