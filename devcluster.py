#!/usr/bin/env python3
"""A Kubernetes API in one process, for trying and testing without a cluster; its one node runs the MariaDB of its pods.

    python devcluster.py [--port N] [--state DIR] [--hollow]

prints `export KUBECONFIG=...` once it serves, and ends on Ctrl-C or SIGTERM, leaving neither a process nor a file (but
for what is in a --state that was given). It speaks TLS on 127.0.0.1 to any kubectl from 1.20 on, with the words and the
fields of a Kubernetes 1.20. The kubeconfig has two contexts: `admin`, who may do anything, and `nobody`, who may not.

The node runs a pod whose image is called after mariadb or mysql with the `mariadbd` on the PATH, as the image's entry
script would: environment, Secret references, arguments, *.sql files in /docker-entrypoint-initdb.d, volumes, probes. A
pod has an address in 127.97.0.0/16 and a Service one in 127.96.0.0/16, which lead to it from this machine. In arguments
and probes the pod's 127.0.0.1 stands for its address, and a mount path for the folder that is mounted there. Any other
pod, and with --hollow or without a mariadbd every pod, is hollow: nothing runs, it is ready after a second, and a
Warning event says why. A pod whose image is "never-ready" waits with ImagePullBackOff.

What happens to whom, and who waits:

    thread             waits for                        bounded by
    one a connection   its client, the store's changes  HANDSHAKE_SECONDS, timeoutSeconds of a watch
    controllers        the store's changes              RESYNC_SECONDS
    one a pod          its process, the next probe      the pod's own probes and grace period
    proxy              connections to Services          asyncio

Faults are ordered by the admin, and hold until others are: what is not named ends, and {} heals all.

    echo '{"latency_seconds": 2, "errors": 5}' | kubectl create --raw /devcluster/faults -f -

    latency_seconds   every answer comes so much later
    errors            so many requests from now on are answered 500
    drop_connections  true: every connection ends at its next request, unanswered
    silence_watches   true: watches stay open and say nothing, bookmarks neither
    never_ready       the pods whose name matches this pattern are not ready
    end_watches       true, once: every open watch ends
    expire_watches    true, once: the history of changes is lost; watches from earlier versions get 410 Gone
    kill_pods         a pattern, once: the processes of the pods whose name matches get SIGKILL; hollow ones as if

Unlike a real cluster: objects are gone when it ends. There are no other kinds than those in KINDS, and of their
subresources only log and scale; no service accounts, Endpoints, ControllerRevisions, managedFields or server-side apply,
so no exec, port-forward or rollout undo. Validation knows the fields and their types, names, labels, and what makes a
StatefulSet, Service or Pod impossible, and no more; rarer fields ("*" in SHAPES) are taken as they come. OpenAPI has no
descriptions, so that `kubectl explain` shows fields alone. Lists are never cut. Every claim is bound at once to a folder
that lives as long as the claim. In a pod one container runs, the first of a database; of /docker-entrypoint-initdb.d only
*.sql counts; there are no limits on memory and CPU, and no Endpoints stand between a Service and its pods.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import calendar
import contextlib
import fnmatch
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
from typing import Any, Callable, NamedTuple

import yaml

# ---- Limits -------------------------------------------------------------------------------------------

# The TLS handshake, and a request from its first byte to its last; the connection ends beyond each.
HANDSHAKE_SECONDS = 10.0
# A kept connection without a request. kubectl keeps none; Go's client closes them after 90 s by itself.
IDLE_SECONDS = 120.0
# A request's body; 413 beyond it. etcd takes 1.5 MiB, so a real API server takes 3.
MAX_BODY_BYTES = 3 * 1024 * 1024
# Changes that a watch can resume from; 410 Gone for what is older. One user's database makes about 20.
MAX_HISTORY = 10_000
# A watch without a timeoutSeconds of its own. A real API server takes something between this and twice as much.
WATCH_SECONDS = 1800
# Between bookmarks, and before the end of a watch, as a real API server sends them.
BOOKMARK_SECONDS, LAST_BOOKMARK_SECONDS = 60.0, 2.0
# What could not be done, such as a pod that a quota refuses, is tried again this often.
RESYNC_SECONDS = 1.0
# A hollow pod is ready so long after it was made.
HOLLOW_SECONDS = 1.0
# A container that ended is started again at once, then after these, doubling; ten minutes of peace begin anew (kubelet's).
FIRST_RESTART_SECONDS, LAST_RESTART_SECONDS, PEACE_SECONDS = 10.0, 300.0, 600.0
# The databases' own ends, when this process ends; they are killed beyond it. A small MariaDB takes 50 ms.
STOP_SECONDS = 5.0

SERVICES, PODS = ipaddress.ip_network("127.96.0.0/16"), ipaddress.ip_network("127.97.0.0/16")
NODE = "devcluster"
VERSION = "v1.20.2+devcluster"
RFC_3339 = "%Y-%m-%dT%H:%M:%SZ"
Object = dict[str, Any]


# ---- Kinds --------------------------------------------------------------------------------------------

class Kind(NamedTuple):
    """A kind of object: its group and name, its name in paths, what kubectl shortens it to, and where it belongs."""

    group: str
    name: str
    plural: str
    short: str = ""
    namespaced: bool = True
    in_all: bool = False
    selectable: str = ""  # Fields, besides the name and the namespace, that a fieldSelector may name.

    @property
    def resource(self) -> str:
        """Return the name that errors call it by: statefulsets.apps."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """Return what its objects have as apiVersion."""
        return f"{self.group}/v1" if self.group else "v1"


KINDS = {kind.plural: kind for kind in (
    Kind("", "Namespace", "namespaces", "ns", namespaced=False, selectable="status.phase"),
    Kind("", "Secret", "secrets", selectable="type"),
    Kind("", "ConfigMap", "configmaps", "cm"),
    Kind("", "Service", "services", "svc", in_all=True),
    Kind("", "Pod", "pods", "po", in_all=True, selectable="spec.nodeName spec.restartPolicy spec.schedulerName "
         "spec.serviceAccountName status.phase status.podIP status.nominatedNodeName"),
    Kind("", "Event", "events", "ev", selectable="involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid "
         "involvedObject.apiVersion involvedObject.resourceVersion involvedObject.fieldPath reason source type"),
    Kind("", "ResourceQuota", "resourcequotas", "quota"),
    Kind("", "PersistentVolumeClaim", "persistentvolumeclaims", "pvc"),
    Kind("apps", "StatefulSet", "statefulsets", "sts", in_all=True),
)}

# What the objects look like (from Kubernetes 1.20's OpenAPI): fields and their shapes, "!" behind those that must be there.
# s string, y base64, i integer, b boolean, q quantity, x integer or string, t time, * anything; [S] a list, [S/key] one that
# a strategic merge patch merges by that key; {S} a map. A heading starts the types of one package.
SHAPES_TEXT = """
= io.k8s.apimachinery.pkg.apis.meta.v1
ObjectMeta annotations:{s} clusterName:s creationTimestamp:t deletionGracePeriodSeconds:i deletionTimestamp:t finalizers:[s/]
  generateName:s generation:i labels:{s} managedFields:[*] name:s namespace:s ownerReferences:[OwnerReference/uid] resourceVersion:s
  selfLink:s uid:s
OwnerReference apiVersion!:s blockOwnerDeletion:b controller:b kind!:s name!:s uid!:s
LabelSelector matchExpressions:[LabelSelectorRequirement] matchLabels:{s}
LabelSelectorRequirement key!:s operator!:s values:[s]
= io.k8s.api.core.v1
Namespace metadata:ObjectMeta spec:NamespaceSpec status:NamespaceStatus
NamespaceSpec finalizers:[s]
NamespaceStatus conditions:[*/type] phase:s
Secret data:{y} immutable:b metadata:ObjectMeta stringData:{s} type:s
ConfigMap binaryData:{y} data:{s} immutable:b metadata:ObjectMeta
Event action:s count:i eventTime:t firstTimestamp:t involvedObject!:ObjectReference lastTimestamp:t message:s metadata!:ObjectMeta reason:s
  related:ObjectReference reportingComponent:s reportingInstance:s series:* source:EventSource type:s
EventSource component:s host:s
ObjectReference apiVersion:s fieldPath:s kind:s name:s namespace:s resourceVersion:s uid:s
ResourceQuota metadata:ObjectMeta spec:ResourceQuotaSpec status:ResourceQuotaStatus
ResourceQuotaSpec hard:{q} scopeSelector:* scopes:[s]
ResourceQuotaStatus hard:{q} used:{q}
PersistentVolumeClaim metadata:ObjectMeta spec:PersistentVolumeClaimSpec status:PersistentVolumeClaimStatus
PersistentVolumeClaimSpec accessModes:[s] dataSource:* resources:ResourceRequirements selector:LabelSelector storageClassName:s
  volumeMode:s volumeName:s
PersistentVolumeClaimStatus accessModes:[s] capacity:{q} conditions:[*/type] phase:s
Service metadata:ObjectMeta spec:ServiceSpec status:ServiceStatus
ServiceSpec allocateLoadBalancerNodePorts:b clusterIP:s clusterIPs:[s] externalIPs:[s] externalName:s externalTrafficPolicy:s
  healthCheckNodePort:i ipFamilies:[s] ipFamilyPolicy:s loadBalancerIP:s loadBalancerSourceRanges:[s] ports:[ServicePort/port]
  publishNotReadyAddresses:b selector:{s} sessionAffinity:s sessionAffinityConfig:* topologyKeys:[s] type:s
ServicePort appProtocol:s name:s nodePort:i port!:i protocol:s targetPort:x
ServiceStatus conditions:[*/type] loadBalancer:*
Pod metadata:ObjectMeta spec:PodSpec status:PodStatus
PodTemplateSpec metadata:ObjectMeta spec:PodSpec
PodSpec activeDeadlineSeconds:i affinity:* automountServiceAccountToken:b containers!:[Container/name] dnsConfig:* dnsPolicy:s
  enableServiceLinks:b ephemeralContainers:[*/name] hostAliases:[*/ip] hostIPC:b hostNetwork:b hostPID:b hostname:s
  imagePullSecrets:[LocalObjectReference/name] initContainers:[Container/name] nodeName:s nodeSelector:{s} overhead:{q}
  preemptionPolicy:s priority:i priorityClassName:s readinessGates:[*] restartPolicy:s runtimeClassName:s schedulerName:s
  securityContext:PodSecurityContext serviceAccount:s serviceAccountName:s setHostnameAsFQDN:b shareProcessNamespace:b subdomain:s
  terminationGracePeriodSeconds:i tolerations:[Toleration] topologySpreadConstraints:[*/topologyKey] volumes:[Volume/name]
PodStatus conditions:[PodCondition/type] containerStatuses:[*] ephemeralContainerStatuses:[*] hostIP:s initContainerStatuses:[*]
  message:s nominatedNodeName:s phase:s podIP:s podIPs:[*/ip] qosClass:s reason:s startTime:t
PodCondition lastProbeTime:t lastTransitionTime:t message:s reason:s status!:s type!:s
PodSecurityContext fsGroup:i fsGroupChangePolicy:s runAsGroup:i runAsNonRoot:b runAsUser:i seLinuxOptions:* seccompProfile:SeccompProfile
  supplementalGroups:[i] sysctls:[*] windowsOptions:*
SeccompProfile localhostProfile:s type!:s
LocalObjectReference name:s
Toleration effect:s key:s operator:s tolerationSeconds:i value:s
Container args:[s] command:[s] env:[EnvVar/name] envFrom:[EnvFromSource] image:s imagePullPolicy:s lifecycle:* livenessProbe:Probe name!:s
  ports:[ContainerPort/containerPort] readinessProbe:Probe resources:ResourceRequirements securityContext:SecurityContext
  startupProbe:Probe stdin:b stdinOnce:b terminationMessagePath:s terminationMessagePolicy:s tty:b volumeDevices:[*/devicePath]
  volumeMounts:[VolumeMount/mountPath] workingDir:s
EnvVar name!:s value:s valueFrom:EnvVarSource
EnvVarSource configMapKeyRef:KeySelector fieldRef:ObjectFieldSelector resourceFieldRef:* secretKeyRef:KeySelector
EnvFromSource configMapRef:EnvSource prefix:s secretRef:EnvSource
EnvSource name:s optional:b
KeySelector key!:s name:s optional:b
ObjectFieldSelector apiVersion:s fieldPath!:s
ContainerPort containerPort!:i hostIP:s hostPort:i name:s protocol:s
Probe exec:ExecAction failureThreshold:i httpGet:HTTPGetAction initialDelaySeconds:i periodSeconds:i successThreshold:i
  tcpSocket:TCPSocketAction timeoutSeconds:i
ExecAction command:[s]
HTTPGetAction host:s httpHeaders:[*] path:s port!:x scheme:s
TCPSocketAction host:s port!:x
ResourceRequirements limits:{q} requests:{q}
SecurityContext allowPrivilegeEscalation:b capabilities:Capabilities privileged:b procMount:s readOnlyRootFilesystem:b runAsGroup:i
  runAsNonRoot:b runAsUser:i seLinuxOptions:* seccompProfile:SeccompProfile windowsOptions:*
Capabilities add:[s] drop:[s]
VolumeMount mountPath!:s mountPropagation:s name!:s readOnly:b subPath:s subPathExpr:s
Volume awsElasticBlockStore:* azureDisk:* azureFile:* cephfs:* cinder:* configMap:ConfigMapVolumeSource csi:* downwardAPI:*
  emptyDir:EmptyDirVolumeSource ephemeral:* fc:* flexVolume:* flocker:* gcePersistentDisk:* gitRepo:* glusterfs:* hostPath:* iscsi:*
  name!:s nfs:* persistentVolumeClaim:PersistentVolumeClaimVolumeSource photonPersistentDisk:* portworxVolume:* projected:* quobyte:*
  rbd:* scaleIO:* secret:SecretVolumeSource storageos:* vsphereVolume:*
ConfigMapVolumeSource defaultMode:i items:[KeyToPath] name:s optional:b
SecretVolumeSource defaultMode:i items:[KeyToPath] optional:b secretName:s
EmptyDirVolumeSource medium:s sizeLimit:q
PersistentVolumeClaimVolumeSource claimName!:s readOnly:b
KeyToPath key!:s mode:i path!:s
= io.k8s.api.authorization.v1
SelfSubjectAccessReview spec:SelfSubjectAccessReviewSpec
SelfSubjectAccessReviewSpec nonResourceAttributes:NonResourceAttributes resourceAttributes:ResourceAttributes
ResourceAttributes group:s name:s namespace:s resource:s subresource:s verb:s version:s
NonResourceAttributes path:s verb:s
= io.k8s.api.autoscaling.v1
Scale metadata:ObjectMeta spec:ScaleSpec
ScaleSpec replicas:i
= io.k8s.api.apps.v1
StatefulSet metadata:ObjectMeta spec:StatefulSetSpec status:StatefulSetStatus
StatefulSetSpec podManagementPolicy:s replicas:i revisionHistoryLimit:i selector!:LabelSelector serviceName!:s template!:PodTemplateSpec
  updateStrategy:StatefulSetUpdateStrategy volumeClaimTemplates:[PersistentVolumeClaim]
StatefulSetUpdateStrategy rollingUpdate:RollingUpdateStatefulSetStrategy type:s
RollingUpdateStatefulSetStrategy partition:i
StatefulSetStatus collisionCount:i conditions:[*/type] currentReplicas:i currentRevision:s observedGeneration:i readyReplicas:i replicas!:i
  updateRevision:s updatedReplicas:i
"""


def read_shapes() -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, list[str]]]:
    """Read the table above: each type's fields, its full name, and those of its fields that must be there."""
    shapes: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    required: dict[str, list[str]] = {}
    package = ""
    for line in SHAPES_TEXT.replace("\n  ", " ").split("\n")[1:-1]:
        shape, *fields = line.split()
        if shape == "=":
            package = fields[0]
            continue
        pairs = [field.partition(":") for field in fields]
        names[shape] = f"{package}.{shape}"
        required[shape] = [field[:-1] for field, _, _ in pairs if field.endswith("!")]
        shapes[shape] = {field.rstrip("!"): value for field, _, value in pairs}
    for kind in KINDS.values():
        shapes[kind.name] = {"apiVersion": "s", "kind": "s", **shapes[kind.name]}
    return shapes, names, required


SHAPES, SHAPE_NAMES, REQUIRED = read_shapes()

# What the API server fills in where nothing is given.
DEFAULTS: dict[str, Object] = {
    "Namespace": {"spec": {"finalizers": ["kubernetes"]}},
    "Secret": {"type": "Opaque"},
    "Event": {"eventTime": None, "reportingComponent": "", "reportingInstance": "", "source": {}},
    "PersistentVolumeClaim": {"status": {"phase": "Pending"}},
    "PersistentVolumeClaimSpec": {"volumeMode": "Filesystem"},
    "Service": {"spec": {}, "status": {"loadBalancer": {}}},
    "ServiceSpec": {"sessionAffinity": "None", "type": "ClusterIP"},
    "ServicePort": {"protocol": "TCP"},
    "StatefulSet": {"spec": {}},
    "StatefulSetSpec": {"podManagementPolicy": "OrderedReady", "replicas": 1, "revisionHistoryLimit": 10, "template": {},
                        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}},
    "PodTemplateSpec": {"metadata": {"creationTimestamp": None}, "spec": {}},
    "PodSpec": {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {},
                "terminationGracePeriodSeconds": 30},
    "Container": {"resources": {}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"},
    "ContainerPort": {"protocol": "TCP"},
    "Probe": {"failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1},
    "HTTPGetAction": {"path": "/", "scheme": "HTTP"},
    "ObjectFieldSelector": {"apiVersion": "v1"},
    "ConfigMapVolumeSource": {"defaultMode": 0o644},
    "SecretVolumeSource": {"defaultMode": 0o644},
}


# ---- Errors: the API's Status objects -----------------------------------------------------------------

# kubectl writes some objects as protocol buffers: of the types that it does, the numbers of the fields (Kubernetes' generated.proto).
WIRE = {shape: {int(number): name for number, name in re.findall(r"(\d+):(\w+)", fields)} for shape, fields in {
    "ObjectMeta": "1:name 2:generateName 3:namespace 11:labels 12:annotations",
    "Namespace": "1:metadata 2:spec", "NamespaceSpec": "1:finalizers",
    "Secret": "1:metadata 2:data 3:type 4:stringData 5:immutable", "ConfigMap": "1:metadata 2:data 3:binaryData 4:immutable",
    "ResourceQuota": "1:metadata 2:spec", "ResourceQuotaSpec": "1:hard 2:scopes",
    "Service": "1:metadata 2:spec", "ServiceSpec": "1:ports 2:selector 3:clusterIP 4:type 7:sessionAffinity 10:externalName",
    "ServicePort": "1:name 2:protocol 3:port 4:targetPort 5:nodePort",
    "SelfSubjectAccessReview": "2:spec", "SelfSubjectAccessReviewSpec": "1:resourceAttributes 2:nonResourceAttributes",
    "ResourceAttributes": "1:namespace 2:verb 3:group 4:version 5:resource 6:subresource 7:name", "NonResourceAttributes": "1:path 2:verb",
    "Scale": "1:metadata 2:spec", "ScaleSpec": "1:replicas",
}.items()}


def wire_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protocol buffer: its number, and an integer or bytes."""
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
    """Return what a protocol buffer of a shape holds."""
    if shape == "y":
        return base64.b64encode(data).decode()
    if shape == "q":
        return from_wire("s", dict(wire_fields(data)).get(1, b""))
    if shape == "x":
        parts = dict(wire_fields(data))
        return parts.get(3, b"").decode() if parts.get(1) else parts.get(2, 0)
    if shape not in WIRE:
        return data.decode() if isinstance(data, bytes) else bool(data) if shape == "b" else data
    result: Object = {}
    for number, value in wire_fields(data):
        name = WIRE[shape].get(number, "")
        inner = SHAPES[shape].get(name, "")
        if inner[:1] == "[":
            result.setdefault(name, []).append(from_wire(inner[1:-1].partition("/")[0], value))
        elif inner[:1] == "{":
            entry = dict(wire_fields(value))
            result.setdefault(name, {})[entry[1].decode()] = from_wire(inner[1:-1], entry.get(2, b""))
        elif inner and value != b"" and (inner in WIRE or inner in "syqtxib"):
            result[name] = from_wire(inner, value)
    return result


class ApiError(Exception):
    """A Status of failure: HTTP's code, Kubernetes' reason, and words like a real API server's."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                       **({"reason": reason} if reason else {}), **({"details": details} if details is not None else {}), "code": code}


def details(kind: Kind, name: str = "", **more: Any) -> Object:
    """Return a Status's details."""
    return {**({"name": name} if name else {}), **({"group": kind.group} if kind.group else {}), "kind": kind.plural, **more}


def not_found(kind: Kind, name: str) -> ApiError:
    """Return the error of an object that is not there."""
    return ApiError(404, "NotFound", f'{kind.resource} "{name}" not found', details(kind, name))


def nowhere() -> ApiError:
    """Return the error of a path that nothing is at."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def bad_request(message: str) -> ApiError:
    """Return the error of a request that is not understood."""
    return ApiError(400, "BadRequest", message)


def forbidden(kind: Kind, name: str, why: str) -> ApiError:
    """Return the error of an object that must not be made."""
    return ApiError(403, "Forbidden", f'{kind.resource} "{name}" is forbidden: {why}', details(kind, name))


def conflict(kind: Kind, name: str, why: str, called: str = "") -> ApiError:
    """Return the error of an object that is not any more what the client thinks."""
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on {called or kind.resource} "{name}": {why}',
                    {**details(kind, name), "kind": called or kind.plural})


def invalid(kind: Kind, name: str, causes: list[tuple[str, str, str]]) -> ApiError:
    """Return the error of an object that cannot be; a cause is a reason, a field and words."""
    called = f"{kind.name}.{kind.group}" if kind.group else kind.name
    words = [f"{field}: {message}" for _, field, message in causes]
    return ApiError(422, "Invalid", f'{called} "{name}" is invalid: ' + (words[0] if len(words) == 1 else f"[{', '.join(words)}]"), {
        **details(kind, name), "kind": kind.name,
        "causes": [{"reason": reason, "message": message, "field": field} for reason, field, message in causes]})


# ---- Objects: decoding, checking, selecting, patching -------------------------------------------------

class Malformed(Exception):
    """A value of the wrong type: words as Go's decoder has them, the field, and the value."""

    def __init__(self, words: str, field: str, value: Any) -> None:
        super().__init__(words)
        self.words, self.field, self.value = words, field, value

    def where(self, body: str) -> str:
        """Return the words with what stands around the value in the body, cut as Go's decoder cuts it."""
        match = re.search(rf'"{re.escape(self.field)}"\s*:\s*(?={re.escape(json.dumps(self.value)[:1])})', body)
        head = match.end() + (1 if not self.words.endswith(tuple("0123456789")) or "base64" not in self.words else len(str(self.value)) + 2) \
            if match else len(body)
        near, wide = body[max(head - 10, 0):head + 10], body[max(head - 50, 0):head + 50]
        return f"{self.words}, error found in #{min(head, 10)} byte of ...|{near}|..., bigger context ...|{wide}|..."


EXPECTED = {"s": (str, 'ReadString: expects " or n, but found '), "t": (str, 'ReadString: expects " or n, but found '),
            "i": (int, "readUint32: unexpected character: \ufffd"), "b": (bool, "ReadBool: expect t or f, but found ")}


def decode(shape: str, value: Any, where: str = "", field: str = "") -> Any:
    """Return a value as the API keeps it: without fields that it does not know, and with what it fills in. Raises Malformed."""
    if value is None or shape in "*qx":
        return str(value) if shape == "q" and isinstance(value, (int, float)) else value
    found = json.dumps(value)[:1]
    if shape[0] == "[":
        if not isinstance(value, list):
            raise Malformed(f"{where}decode slice: expect [ or n, but found {found}", field, value)
        return [decode(shape[1:-1].partition("/")[0], item, where, field) for item in value]
    if shape[0] == "{":
        if not isinstance(value, dict):
            raise Malformed(f"{where}ReadMapCB: expect {{ or n, but found {found}", field, value)
        return {key: decode(shape[1:-1], item, where, key) for key, item in value.items() if item is not None}
    if shape == "y":
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, TypeError, ValueError):
            valid = re.match(r"[A-Za-z0-9+/]*", str(value))
            raise Malformed(f"{where}decode base64: illegal base64 data at input byte {valid.end() if valid else 0}", field, value) from None
        return value
    if shape in EXPECTED:
        python, words = EXPECTED[shape]
        if not isinstance(value, python) or shape == "i" and isinstance(value, bool):
            raise Malformed(f"{where}{words}{'' if shape == 'i' else found}", field, value)
        return value
    if not isinstance(value, dict):
        raise Malformed(f"{where}readObjectStart: expect {{ or n, but found {found}", field, value)
    result: Object = {}
    for name, inner in SHAPES[shape].items():
        if name in value and value[name] is not None:
            result[name] = decode(inner, value[name], f"{where}v1.{shape}.{name[0].upper()}{name[1:]}: ", name)
        if name in DEFAULTS.get(shape, ()):
            default = DEFAULTS[shape][name]
            if isinstance(default, dict) and (name not in result or inner == "ObjectMeta"):
                result[name] = {**decode(inner, default), **default, **result.get(name, {})} if inner != "*" else default
            else:
                result.setdefault(name, default)
    if shape == "Container":
        tag = str(result.get("image", "")).rpartition("/")[2].partition(":")[2]
        result.setdefault("imagePullPolicy", "Always" if tag in ("", "latest") else "IfNotPresent")
    elif shape == "ServicePort":
        result.setdefault("targetPort", result.get("port"))
    return result


SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
NAMES = {  # How a kind's objects may be called: the pattern, and what is said of it.
    "": (SUBDOMAIN, "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end "
         "with an alphanumeric character (e.g. 'example.com', regex used for validation is '{}')"),
    "Service": (r"[a-z]([-a-z0-9]*[a-z0-9])?", "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
                "alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
                "'{}')"),
    "Namespace": (r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
                  "and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{}')"),
}
LABEL_NAME, LABEL_VALUE = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]", r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"


def check(kind: Kind, item: Object, before: Object | None = None) -> None:
    """Raise ApiError 422 if an object cannot be, or cannot have become this from what it was."""
    causes: list[tuple[str, str, str]] = []

    def wrong(field: str, value: str, why: str) -> None:
        causes.append(("FieldValueInvalid", field, f"Invalid value: {value}: {why}"))

    def need(field: str, value: Any, why: str = "") -> None:
        if not value:
            causes.append(("FieldValueRequired", field, f"Required value{why}"))
    meta, spec = item["metadata"], item.get("spec", {})
    name = meta.get("name", "")
    need("metadata.name", name, ": name or generateName is required")
    pattern, words = NAMES.get(kind.name, NAMES[""])
    limit = 253 if kind.name not in NAMES else 63
    if len(name) > limit:
        wrong("metadata.name", json.dumps(name), f"must be no more than {limit} characters")
    elif name and not re.fullmatch(pattern, name):
        wrong("metadata.name", json.dumps(name), words.format(pattern))
    for key, value in meta.get("labels", {}).items():
        if not re.fullmatch(LABEL_NAME, key.rpartition("/")[2]):
            wrong("metadata.labels", json.dumps(key), "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and "
                  f"end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{LABEL_NAME}')")
        if len(value) > 63:
            wrong("metadata.labels", json.dumps(value), "must be no more than 63 characters")
        elif not re.fullmatch(LABEL_VALUE, value):
            wrong("metadata.labels", json.dumps(value), "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
                  "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for "
                  f"validation is '{LABEL_VALUE}')")
    if kind.name == "Service":
        need("spec.ports", spec.get("ports") or spec["type"] == "ExternalName" or spec.get("clusterIP") == "None")
        if before and before["spec"].get("clusterIP") != spec.get("clusterIP"):
            wrong("spec.clusterIPs[0]", f"[]string{{{json.dumps(spec.get('clusterIP'))}}}", "may not change once set")
    elif kind.name == "Pod":
        need("spec.containers", spec.get("containers"))
        for number, container in enumerate(spec.get("containers", ())):
            need(f"spec.containers[{number}].name", container.get("name"))
            need(f"spec.containers[{number}].image", container.get("image"))
    elif kind.name == "StatefulSet":
        selector, labels = spec.get("selector", {}), spec["template"]["metadata"].get("labels")
        need("spec.selector", selector.get("matchLabels") or selector.get("matchExpressions"))
        if not selector or not label_selector(selector)(spec["template"]):
            shown = "(nil)" if labels is None else "{" + ", ".join(f'"{key}":"{labels[key]}"' for key in sorted(labels)) + "}"
            wrong("spec.template.metadata.labels", f"map[string]string{shown}", "`selector` does not match template `labels`")
        if before and any(before["spec"].get(field) != spec.get(field) for field in SHAPES["StatefulSetSpec"]
                          if field not in ("replicas", "template", "updateStrategy")):
            causes.append(("FieldValueForbidden", "spec", "Forbidden: updates to statefulset spec for fields other than 'replicas', 'template', "
                           "and 'updateStrategy' are forbidden"))
    if causes:
        raise invalid(kind, name, causes)


Match = Callable[[Object], bool]
TERM = re.compile(r"\s*(?:!\s*(?P<absent>[\w./-]+)|(?P<key>[\w./-]+)\s*(?:(?P<operator>==?|!=)\s*(?P<value>[\w.-]*)"
                  r"|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?)\s*(?:,|$)")


def labels_of(item: Object) -> dict[str, str]:
    """Return an object's labels."""
    labels: dict[str, str] = item.get("metadata", {}).get("labels") or {}
    return labels


def requirement(key: str, operator: str, values: set[str]) -> Match:
    """Return whether an object's label is In, NotIn, Exists or DoesNotExist."""
    if operator in ("Exists", "DoesNotExist"):
        return lambda item: (key in labels_of(item)) == (operator == "Exists")
    return lambda item: (labels_of(item).get(key) in values) == (operator == "In")


def label_selector(selector: Object) -> Match:
    """Return what a StatefulSet's selector selects."""
    terms = [requirement(key, "In", {value}) for key, value in (selector.get("matchLabels") or {}).items()]
    terms += [requirement(term["key"], term["operator"], set(term.get("values") or ())) for term in selector.get("matchExpressions") or ()]
    return lambda item: all(term(item) for term in terms)


def selection(kind: Kind, labels: str, fields: str) -> Match:
    """Return what a labelSelector and a fieldSelector of a request select. Raises ApiError 400."""
    terms: list[Match] = []
    position = 0
    while position < len(labels):
        match = TERM.match(labels, position)
        if not match:
            raise bad_request(f"unable to parse requirement: found '{labels[position:]}', expected: a label selector")
        position = match.end()
        absent, key, operator, value, in_set, values = match.group("absent", "key", "operator", "value", "set", "values")
        if absent or not (operator or in_set):
            terms.append(requirement(absent or key, "DoesNotExist" if absent else "Exists", set()))
        elif in_set:
            terms.append(requirement(key, "In" if in_set == "in" else "NotIn", {word.strip() for word in values.split(",")}))
        else:
            terms.append(requirement(key, "NotIn" if operator == "!=" else "In", {value}))
    for term in filter(None, fields.split(",")):
        path, operator, value = re.split(r"(!=|==?)", term, maxsplit=1) if "=" in term else (term, "", "")
        if path not in ("metadata.name", "metadata.namespace", *kind.selectable.split()):
            raise bad_request(f"field label not supported: {path}")
        terms.append(lambda item, path=path, value=value, equal=operator != "!=":  # type: ignore[misc]
                     (str(at(item, "source.component" if path == "source" else path) or "") == value) == equal)
    return lambda item: all(term(item) for term in terms)


def at(item: Any, path: str) -> Any:
    """Return what is at a dotted path, or None."""
    for name in path.split("."):
        item = item.get(name) if isinstance(item, dict) else None
    return item


def merge(old: Any, patch: Any, shape: str = "*") -> Any:
    """Return what a patch makes of a value: a JSON merge patch (RFC 7386), or by its shape a strategic one."""
    if isinstance(patch, list) and "/" in shape:
        return merge_list(old or [], patch, *shape[1:-1].split("/"))
    if not isinstance(patch, dict):
        return patch
    result: Object = dict(old) if isinstance(old, dict) and patch.get("$patch") != "replace" else {}
    if shape != "*" and "$retainKeys" in patch:
        result = {key: value for key, value in result.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if shape != "*" and key.startswith("$"):
            if key.startswith("$deleteFromPrimitiveList/"):
                field = key.partition("/")[2]
                result[field] = [item for item in result.get(field, ()) if item not in value]
        elif value is None:
            result.pop(key, None)
        else:
            inner = shape[1:-1] if shape[0] == "{" else SHAPES.get(shape, {}).get(key, "*")
            result[key] = merge(result.get(key), value, inner)
    return result


def merge_list(old: list[Any], patch: list[Any], shape: str, key: str) -> list[Any]:
    """Return a list after a strategic merge patch; items are known by their key, or by themselves."""
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if item.get("$patch") != "replace"]
    result = list(old)
    for item in patch:
        places = [number for number, known in enumerate(result) if (known.get(key) == item.get(key) if key else known == item)]
        if isinstance(item, dict) and item.get("$patch") == "delete":
            result = [known for number, known in enumerate(result) if number not in places]
        elif places:
            result[places[0]] = merge(result[places[0]], item, shape)
        else:
            result.append(merge(None, item, shape))
    return result


def json_patch(item: Any, operations: list[Object]) -> Any:
    """Return an object after a JSON patch (RFC 6902) of add, replace, remove and test. Raises ApiError 422."""
    item = json.loads(json.dumps(item))
    for operation in operations:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        try:
            target = item
            for part in parents:
                target = target[int(part) if isinstance(target, list) else part]
            place: Any = (len(target) if last == "-" else int(last)) if isinstance(target, list) else last
            if operation["op"] == "add":
                target.insert(place, operation["value"]) if isinstance(target, list) else target.update({place: operation["value"]})
            elif operation["op"] == "remove":
                del target[place]
            elif operation["op"] == "replace":
                target[place] = (target[place], operation["value"])[1]
            elif operation["op"] != "test" or target[place] != operation["value"]:
                raise LookupError
        except (LookupError, TypeError, ValueError):
            raise ApiError(422, "Invalid", "the server rejected our request due to an error in our request", {}) from None
    return item


# ---- The store: every object, and every change so far -------------------------------------------------

class Change(NamedTuple):
    """One change of one object: what it was, None if it is new, and what it is, None if it has gone."""

    kind: Kind
    before: Object | None
    after: Object | None
    version: int

    @property
    def item(self) -> Object:
        """Return the object as it is now, or as it was when it went."""
        item = self.after or self.before
        assert item
        return item


def now() -> str:
    """Return the time as the API writes it."""
    return time.strftime(RFC_3339, time.gmtime())


class Store:
    """The objects, of which none is ever changed in place, and the changes that made them; one lock guards both."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 1
        self.objects: dict[str, dict[tuple[str, str], Object]] = {plural: {} for plural in KINDS}
        self.history: list[Change] = []
        self.oldest = 1  # The version before the first change in the history.
        self.followers: list[queue.SimpleQueue[Change]] = []
        for name in ("default", "kube-node-lease", "kube-public", "kube-system"):
            self.create(KINDS["namespaces"], "", {"metadata": {"name": name}})

    def list(self, kind: Kind, namespace: str = "", match: Match = lambda item: True) -> list[Object]:
        """Return the objects that match, by namespace and name; of all namespaces if none is given."""
        with self.changed:
            found = [key for key, item in self.objects[kind.plural].items() if (not namespace or key[0] == namespace) and match(item)]
            return [self.objects[kind.plural][key] for key in sorted(found)]

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Return an object. Raises ApiError 404."""
        with self.changed:
            try:
                return self.objects[kind.plural][namespace, name]
            except KeyError:
                raise not_found(kind, name) from None

    def owned(self, uid: str) -> list[tuple[Kind, Object]]:
        """Return the objects of an owner."""
        with self.changed:
            return [(KINDS[plural], item) for plural, items in self.objects.items() for item in items.values()
                    if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", ()))]

    def put(self, kind: Kind, before: Object | None, after: Object | None) -> Object:
        """Make one change. The lock must be held."""
        self.version += 1
        item = after or before
        assert item
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        key = item["metadata"].get("namespace", ""), item["metadata"]["name"]
        if after:
            self.objects[kind.plural][key] = item
        else:
            del self.objects[kind.plural][key]
        change = Change(kind, before if after else item, item if after else None, self.version)
        self.history.append(change)
        if len(self.history) > 2 * MAX_HISTORY:
            del self.history[:MAX_HISTORY]
            self.oldest = self.history[0].version - 1
        for follower in self.followers:
            follower.put(change)
        self.changed.notify_all()
        return item

    def follow(self) -> queue.SimpleQueue[Change]:
        """Return a queue of all changes from the first object on, which forgets none."""
        with self.changed:
            follower: queue.SimpleQueue[Change] = queue.SimpleQueue()
            for plural, items in self.objects.items():
                for item in items.values():
                    follower.put(Change(KINDS[plural], None, item, self.version))
            self.followers.append(follower)
            return follower

    def expire(self) -> None:
        """Lose the history, as etcd's compaction does."""
        with self.changed:
            self.version += 1
            self.history, self.oldest = [], self.version
            self.changed.notify_all()

    def create(self, kind: Kind, namespace: str, item: Object, dry_run: bool = False) -> Object:
        """Add an object. Raises ApiError: 403, 404, 409, 422, and Malformed."""
        item = decode(kind.name, {**item, "kind": kind.name, "apiVersion": kind.api_version})
        meta = item["metadata"] = dict(item.get("metadata", {}))
        name = meta.get("name") or (meta["generateName"] + "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))
                                    if meta.get("generateName") else "")
        meta.update({"creationTimestamp": now(), "uid": str(uuid.uuid4()), **({"name": name} if name else {}),
                     **({"namespace": namespace} if namespace else {}), **({"generation": 1} if kind.group else {})})
        for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"):
            meta.pop(field, None)
        with self.changed:
            if kind.namespaced:
                home = self.get(KINDS["namespaces"], "", namespace)
                if "deletionTimestamp" in home["metadata"]:
                    raise forbidden(kind, name, f"unable to create new content in namespace {namespace} because it is being terminated")
            self.check_quotas(kind, namespace, name)
            self.complete(kind, item)
            check(kind, item)
            if (namespace, name) in self.objects[kind.plural]:
                raise ApiError(409, "AlreadyExists", f'{kind.resource} "{name}" already exists', details(kind, name))
            return item if dry_run else self.put(kind, None, item)

    def complete(self, kind: Kind, item: Object) -> None:
        """Fill in what comes from elsewhere than the object itself, in place."""
        if kind.name == "Secret":
            encoded = {key: base64.b64encode(value.encode()).decode() for key, value in item.pop("stringData", {}).items()}
            if encoded or "data" in item:
                item["data"] = {**item.get("data", {}), **encoded}
        elif kind.name == "Namespace":
            item["status"] = {"phase": "Active"}
        elif kind.name == "StatefulSet":
            item["status"] = {"replicas": 0}
        elif kind.name == "Pod":
            item["status"] = {"phase": "Pending", "qosClass": quality(item["spec"].get("containers", []))}
            item["spec"] = {"enableServiceLinks": True, "preemptionPolicy": "PreemptLowerPriority", "priority": 0, "serviceAccount": "default",
                            "serviceAccountName": "default", **item["spec"], "tolerations": item["spec"].get("tolerations", []) + [
                                {"effect": "NoExecute", "key": f"node.kubernetes.io/{state}", "operator": "Exists", "tolerationSeconds": 300}
                                for state in ("not-ready", "unreachable")]}
        elif kind.name == "Service" and item["spec"]["type"] != "ExternalName":
            spec = item["spec"] = dict(item["spec"])
            taken = {service["spec"].get("clusterIP") for service in self.objects["services"].values()}
            address = spec.get("clusterIP")
            if address and address != "None" and (address in taken or ipaddress.ip_address(address) not in SERVICES):
                why = ("provided IP is already allocated" if address in taken
                       else f"provided IP is not in the valid range. The range of valid IPs is {SERVICES}")
                raise invalid(kind, item["metadata"]["name"], [("FieldValueInvalid", "spec.clusterIPs", "Invalid value: []string{"
                              f"{json.dumps(address)}}}: failed to allocated ip:{address} with error:{why}")])
            while not address or address in taken - {"None"}:
                address = str(SERVICES[random.randrange(1, SERVICES.num_addresses - 1)])
            spec.update({"clusterIP": address, "clusterIPs": [address]})

    def used(self, namespace: str, hard: dict[str, str]) -> dict[str, str]:
        """Return how much of what a quota counts there is: pods, services and the like, or count/statefulsets.apps."""
        used = {}
        for resource in hard:
            kind = KINDS.get(resource.rpartition("count/")[2].partition(".")[0])
            used[resource] = str(len(self.list(kind, namespace)) if kind else 0)
        return used

    def check_quotas(self, kind: Kind, namespace: str, name: str) -> None:
        """Raise ApiError 403 if one more of a kind would be too many."""
        for quota in self.list(KINDS["resourcequotas"], namespace) if namespace else ():
            hard = quota["spec"].get("hard", {})
            counted = [resource for resource in hard if resource in (kind.plural, f"count/{kind.resource}")]
            used = self.used(namespace, {resource: "" for resource in counted})
            if over := [resource for resource in counted if int(used[resource]) + 1 > int(hard[resource])]:
                requested, have, limited = (",".join(f"{resource}={numbers[resource]}" for resource in over)
                                            for numbers in (dict.fromkeys(over, 1), used, hard))
                raise forbidden(kind, name, f"exceeded quota: {quota['metadata']['name']}, requested: {requested}, used: {have}, "
                                f"limited: {limited}")

    def update(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], Object], dry_run: bool = False,
               status: bool = False) -> Object:
        """Change an object through a function of what it is; its status alone, or all but its status. Raises ApiError and Malformed."""
        with self.changed:
            before = self.get(kind, namespace, name)
            wanted = change(before)
            given = wanted.get("metadata", {}).get("resourceVersion")
            if given and given != before["metadata"]["resourceVersion"]:
                raise conflict(kind, name, "the object has been modified; please apply your changes to the latest version and try again")
            if status:
                after = {**before, "status": wanted["status"]}
            else:
                after = decode(kind.name, {**wanted, "kind": kind.name, "apiVersion": kind.api_version})
                fixed = ("uid", "creationTimestamp", "name", "namespace", "generation", "deletionTimestamp", "deletionGracePeriodSeconds",
                         "resourceVersion")
                if after["metadata"].get("uid", before["metadata"]["uid"]) != before["metadata"]["uid"]:
                    raise conflict(kind, name, f"Precondition failed: UID in precondition: {after['metadata']['uid']}, UID in object meta: "
                                   f"{before['metadata']['uid']}")
                after["metadata"] = {**{key: value for key, value in after.get("metadata", {}).items() if key not in fixed},
                                     **{field: before["metadata"][field] for field in fixed if field in before["metadata"]}}
                if "status" in before:
                    after["status"] = before["status"] if kind.plural != "persistentvolumeclaims" else after.get("status", before["status"])
                if kind.name == "Secret":
                    self.complete(kind, after)
                if kind.name == "Service":
                    after["spec"] = {**{field: before["spec"][field] for field in ("clusterIP", "clusterIPs") if field in before["spec"]},
                                     **after["spec"]}
                check(kind, after, before)
                if "generation" in after["metadata"] and after["spec"] != before["spec"]:
                    after["metadata"]["generation"] += 1
            if after == before or dry_run:
                return after
            if "deletionTimestamp" in after["metadata"] and not after["metadata"].get("finalizers") and before["metadata"].get("finalizers"):
                return self.put(kind, after, None)
            return self.put(kind, before, after)

    def delete(self, kind: Kind, namespace: str, name: str, options: Object) -> Object:
        """Delete an object, or begin to; return it while it is still there, or else a Status. Raises ApiError 404 or 409."""
        with self.changed:
            item = self.get(kind, namespace, name)
            meta = dict(item["metadata"])
            for field, called, why in (("uid", "UID", "deleted and then recreated"), ("resourceVersion", "ResourceVersion", "modified")):
                wanted = (options.get("preconditions") or {}).get(field)
                if wanted and wanted != meta[field]:
                    raise conflict(kind, name, f"the {called} in the precondition ({wanted}) does not match the {called} in record "
                                   f"({meta[field]}). The object might have been {why}", called=kind.name)
            success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details(kind, name, uid=meta["uid"])}
            if options.get("dryRun"):
                return success
            policy = options.get("propagationPolicy") or ("Orphan" if options.get("orphanDependents") else "Background")
            if policy == "Orphan":
                for other, dependent in self.owned(meta["uid"]):
                    owners = [owner for owner in dependent["metadata"]["ownerReferences"] if owner["uid"] != meta["uid"]]
                    self.put(other, dependent, {**dependent, "metadata": {**dependent["metadata"], "ownerReferences": owners}})
            elif policy == "Foreground" and self.owned(meta["uid"]):
                meta["finalizers"] = list({*meta.get("finalizers", ()), "foregroundDeletion"})
            grace = 0
            if kind.name == "Pod" and item["spec"].get("nodeName"):
                grace = options.get("gracePeriodSeconds")
                grace = item["spec"]["terminationGracePeriodSeconds"] if grace is None else grace
            if not (grace or meta.get("finalizers") or kind.name == "Namespace"):
                self.put(kind, item, None)
                return success
            after = {**item, "metadata": meta}
            if "deletionTimestamp" not in meta or grace < meta.get("deletionGracePeriodSeconds", 0):
                meta["deletionTimestamp"] = time.strftime(RFC_3339, time.gmtime(time.time() + grace))
                meta["deletionGracePeriodSeconds"] = grace
            if kind.name == "Namespace":
                meta.pop("deletionGracePeriodSeconds")
                after["status"] = {"phase": "Terminating"}
            return self.put(kind, item, after) if after != item else item

    def event(self, kind: Kind, item: Object, component: str, category: str, reason: str, message: str, field: str = "") -> None:
        """Record an Event on an object; one that was seen before is counted. In a namespace that goes there are no more."""
        meta = item["metadata"]
        about = {"apiVersion": kind.api_version, "kind": kind.name, "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
                 "resourceVersion": meta["resourceVersion"], **({"fieldPath": field} if field else {})}
        name = f"{meta['name']}.{hashlib.sha256(f'{meta}{reason}{message}'.encode()).hexdigest()[:16]}"
        same = hashlib.sha256(f"{meta['uid']} {reason} {message}".encode()).hexdigest()[:16]
        name = f"{meta['name']}.{same}"
        with self.changed, contextlib.suppress(ApiError):
            if (meta["namespace"], name) in self.objects["events"]:
                self.update(KINDS["events"], meta["namespace"], name,
                            lambda event: {**event, "count": event["count"] + 1, "lastTimestamp": now()})
            else:
                self.create(KINDS["events"], meta["namespace"], {
                    "metadata": {"name": name}, "involvedObject": about, "type": category, "reason": reason, "message": message, "count": 1,
                    "source": {"component": component, **({"host": NODE} if component == "kubelet" else {})},
                    "firstTimestamp": now(), "lastTimestamp": now()})


def quality(containers: list[Object]) -> str:
    """Return a pod's quality of service, from its containers' resources (Kubernetes, "Pod Quality of Service Classes")."""
    resources = [container.get("resources", {}) for container in containers]
    if not any(resource.get("limits") or resource.get("requests") for resource in resources):
        return "BestEffort"
    guaranteed = all({"cpu", "memory"} <= resource.get("limits", {}).keys() and
                     resource.get("requests", resource["limits"]) == resource["limits"] for resource in resources)
    return "Guaranteed" if guaranteed else "Burstable"


# ---- What kubectl prints: Tables, and the OpenAPI document --------------------------------------------

def age(timestamp: str | None) -> str:
    """Return how long ago a time was, as kubectl's tables have it."""
    if not timestamp:
        return "<unknown>"
    seconds = max(int(time.time() - calendar.timegm(time.strptime(timestamp, RFC_3339))), 0)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    return f"{days}d{hours % 24}h" if days < 8 and hours % 24 else f"{days}d"


def pod_row(pod: Object) -> list[Any]:
    """Return a pod's cells."""
    meta, spec, status = pod["metadata"], pod["spec"], pod["status"]
    states = status.get("containerStatuses", [])
    shown = status.get("reason") or status["phase"]
    for state in states:
        shown = (at(state, "state.waiting.reason") or at(state, "state.terminated.reason")) or shown
    ready = sum(bool(state["ready"]) for state in states)
    return [f"{ready}/{len(spec['containers'])}", "Terminating" if "deletionTimestamp" in meta else shown,
            sum(state["restartCount"] for state in states), age(meta["creationTimestamp"]), status.get("podIP", "<none>"),
            spec.get("nodeName", "<none>"), "<none>", "<none>"]


def service_row(service: Object) -> list[Any]:
    """Return a Service's cells."""
    spec = service["spec"]
    ports = ",".join(f"{port['port']}/{port['protocol']}" for port in spec.get("ports", ())) or "<none>"
    selector = ",".join(f"{key}={value}" for key, value in sorted(spec.get("selector", {}).items())) or "<none>"
    return [spec["type"], spec.get("clusterIP", "<none>"), spec.get("externalName", "<none>"), ports,
            age(service["metadata"]["creationTimestamp"]), selector]


def set_row(item: Object) -> list[Any]:
    """Return a StatefulSet's cells."""
    containers = item["spec"]["template"]["spec"]["containers"]
    return [f"{item['status'].get('readyReplicas', 0)}/{item['spec']['replicas']}", age(item["metadata"]["creationTimestamp"]),
            ",".join(container["name"] for container in containers), ",".join(container["image"] for container in containers)]


def event_row(event: Object) -> list[Any]:
    """Return an Event's cells."""
    about, source = event["involvedObject"], event.get("source", {})
    return [age(event.get("lastTimestamp")), event.get("type", ""), event.get("reason", ""), f"{about.get('kind', '').lower()}/{about.get('name')}",
            about.get("fieldPath", ""), ", ".join(filter(None, (source.get("component"), source.get("host")))), event.get("message", ""),
            age(event.get("firstTimestamp")), event.get("count", 1), event["metadata"]["name"]]


def quota_row(quota: Object) -> list[Any]:
    """Return a ResourceQuota's cells."""
    hard, used = (quota.get("status", {}).get(field, {}) for field in ("hard", "used"))
    shown = {limits: ", ".join(f"{resource}: {used[resource]}/{hard[resource]}" for resource in sorted(hard)
                               if resource.startswith("limits.") == limits) for limits in (False, True)}
    return [age(quota["metadata"]["creationTimestamp"]), shown[False], shown[True]]


def claim_row(claim: Object) -> list[Any]:
    """Return a PersistentVolumeClaim's cells."""
    spec, status = claim["spec"], claim["status"]
    modes = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX"}
    return ["Terminating" if "deletionTimestamp" in claim["metadata"] else status["phase"], spec.get("volumeName", ""),
            status.get("capacity", {}).get("storage", ""), ",".join(modes[mode] for mode in status.get("accessModes", ())),
            spec.get("storageClassName", ""), age(claim["metadata"]["creationTimestamp"]), spec["volumeMode"]]


# Of each kind the columns of `kubectl get`, behind "|" those of -o wide, and a function of an object's cells after its name.
COLUMNS: dict[str, tuple[str, Callable[[Object], list[Any]]]] = {
    "namespaces": ("Name,Status,Age", lambda item: [item["status"]["phase"], age(item["metadata"]["creationTimestamp"])]),
    "secrets": ("Name,Type,Data,Age", lambda item: [item["type"], len(item.get("data", {})), age(item["metadata"]["creationTimestamp"])]),
    "configmaps": ("Name,Data,Age", lambda item: [len(item.get("data", {})) + len(item.get("binaryData", {})),
                                                  age(item["metadata"]["creationTimestamp"])]),
    "services": ("Name,Type,Cluster-IP,External-IP,Port(s),Age|Selector", service_row),
    "pods": ("Name,Ready,Status,Restarts,Age|IP,Node,Nominated Node,Readiness Gates", pod_row),
    "events": ("Last Seen,Type,Reason,Object|Subobject,Source|Message|First Seen,Count,Name", event_row),
    "resourcequotas": ("Name,Age,Request,Limit", quota_row),
    "persistentvolumeclaims": ("Name,Status,Volume,Capacity,Access Modes,StorageClass,Age|VolumeMode", claim_row),
    "statefulsets": ("Name,Ready,Age|Containers,Images", set_row),
}


def table(kind: Kind, items: list[Object], version: str, include: str) -> Object:
    """Return objects as a Table, which is what kubectl asks for when it prints for people."""
    header, cells = COLUMNS[kind.plural]
    columns = [{"name": name, "type": "integer" if name == "Restarts" else "string", "format": "name" if name == "Name" else "",
                "description": "", "priority": number % 2} for number, part in enumerate(header.split("|")) for name in part.split(",")]
    rows = [{"cells": cells(item) if kind.name == "Event" else [item["metadata"]["name"], *cells(item)],
             **({} if include == "None" else {"object": item if include == "Object" else {
                 "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}})} for item in items]
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version}, "columnDefinitions": columns, "rows": rows}


def field(number: int, *values: bytes | str) -> bytes:
    """Return a field of a protocol buffer that holds so many bytes, strings or messages."""
    data = b"".join(value.encode() if isinstance(value, str) else value for value in values)
    size, length = b"", len(data)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    head = number << 3 | 2
    return (bytes([head]) if head < 128 else bytes([head & 127 | 128, head >> 7])) + size + bytes([length]) + data


def extension(number: int, name: str, value: Any) -> bytes:
    """Return a vendor's extension, which holds YAML."""
    return field(number, field(1, name), field(2, field(2, json.dumps(value))))


def schema(shape: str) -> bytes:
    """Return a shape as a Schema of gnostic's OpenAPIv2.proto, whose numbers of fields these are."""
    if shape[0] == "[":
        item, slash, key = shape[1:-1].partition("/")
        merging = (extension(31, "x-kubernetes-patch-strategy", "merge") if slash else b"") + (
            extension(31, "x-kubernetes-patch-merge-key", key) if key else b"")
        return field(22, field(1, "array")) + field(23, field(1, schema(item))) + merging
    if shape[0] == "{":
        return field(22, field(1, "object")) + field(21, field(1, schema(shape[1:-1])))
    if shape in "syqtxib":
        return field(22, field(1, {"i": "integer", "b": "boolean"}.get(shape, "string"))) + (
            field(2, "int-or-string") if shape == "x" else b"")
    return b"" if shape == "*" else field(1, f"#/definitions/{SHAPE_NAMES[shape]}")


def openapi() -> bytes:
    """Return what kubectl reads to validate what it sends: the types, and that a kind's patch knows dryRun."""
    kinds = {kind.name: {"group": kind.group, "kind": kind.name, "version": "v1"} for kind in KINDS.values()}
    definitions = [field(1, field(1, SHAPE_NAMES[shape]), field(2, *(field(19, name) for name in REQUIRED[shape]), field(22, field(1, "object")),
                         field(25, *(field(1, field(1, name), field(2, schema(inner))) for name, inner in fields.items())),
                         extension(31, "x-kubernetes-group-version-kind", [kinds[shape]]) if shape in kinds else b""))
                   for shape, fields in SHAPES.items()]
    dry_run = field(8, field(1, field(2, field(3, field(2, "query"), field(4, "dryRun"), field(6, "string")))))
    paths = [field(2, field(1, f"/apis/{kind.api_version}/{kind.plural}"), field(2, field(8, dry_run, extension(
        13, "x-kubernetes-group-version-kind", kinds[kind.name])))) for kind in KINDS.values()]
    return field(1, "2.0") + field(2, field(1, "Kubernetes"), field(2, VERSION)) + field(8, *paths) + field(9, *definitions)


# ---- HTTP ---------------------------------------------------------------------------------------------

class Faults:
    """What goes wrong on order; see the top of this file."""

    def __init__(self) -> None:
        self.lasting: Object = {}
        self.watches_ended = 0.0

    def order(self, wanted: Object, store: Store, node: Node) -> Object:
        """Take what is to go wrong from now on, and do what is ordered once."""
        once = {name: wanted.pop(name, None) for name in ("end_watches", "expire_watches", "kill_pods")}
        if unknown := wanted.keys() - {"latency_seconds", "errors", "drop_connections", "silence_watches", "never_ready"}:
            raise bad_request(f"no such fault: {', '.join(sorted(unknown))}")
        self.lasting = wanted
        node.never_ready = wanted.get("never_ready", "")
        if once["expire_watches"]:
            store.expire()
        with store.changed:
            self.watches_ended = time.monotonic() if once["end_watches"] else self.watches_ended
            store.changed.notify_all()
        if once["kill_pods"]:
            node.kill(once["kill_pods"])
        return wanted


class Server(socketserver.ThreadingTCPServer):
    """Accepts connections on loopback; a thread each does the rest, the TLS handshake included."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int, context: ssl.SSLContext, tokens: dict[str, str], store: Store, node: Node) -> None:
        """Listen on a port of 127.0.0.1. `tokens` gives the user of each. Raises OSError."""
        self.context, self.tokens, self.store, self.node, self.faults = context, tokens, store, node, Faults()
        self.openapi = openapi()
        super().__init__(("127.0.0.1", port), Connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection, without a byte read or written."""
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Connection(http.server.BaseHTTPRequestHandler):
    """One client's connection: its requests, one after the other."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        """Shake hands."""
        self.request.settimeout(HANDSHAKE_SECONDS)
        self.request.do_handshake()
        self.request.settimeout(IDLE_SECONDS)
        super().setup()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing: kubectl -v=8 shows both sides."""

    def handle_request(self) -> None:
        """Answer one request."""
        self.store, self.begun = self.server.store, False
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        try:
            self.body = self.read_body()
            if path == "/devcluster/faults":
                self.authorize("", path)
                faults = self.server.faults
                self.answer(faults.order(self.read_object(), self.store, self.server.node) if self.command == "POST" else faults.lasting)
                return
            if not self.suffer():
                self.route(path)
        except ApiError as error:
            self.answer(error.status, error.code)
        except Malformed as error:
            known = error.words.partition("v1.")[2].partition(".")[0]
            self.answer(bad_request(f'{known} in version "v1" cannot be handled as a {known}: '
                                    f"{error.where(self.body.decode(errors='replace'))}").status, 400)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def suffer(self) -> bool:
        """Go wrong as ordered; return whether that was all."""
        faults = self.server.faults.lasting
        time.sleep(faults.get("latency_seconds", 0))
        if faults.get("drop_connections"):
            self.close_connection = True
            return True
        with self.store.changed:
            if faults.get("errors", 0) > 0:
                faults["errors"] -= 1
                raise ApiError(500, "InternalError", "Internal error occurred: it was ordered as a fault",
                               {"causes": [{"message": "it was ordered as a fault"}]})
        return False

    def read_body(self) -> bytes:
        """Return the request's body, which kubectl sends in chunks when it comes from its stdin."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            if length > MAX_BODY_BYTES:
                self.close_connection = True
                raise ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {MAX_BODY_BYTES}")
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
            if len(body) > MAX_BODY_BYTES:
                self.close_connection = True
                raise ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {MAX_BODY_BYTES}")
        self.rfile.readline()
        return body

    def read_object(self) -> Object:
        """Return the body's JSON or YAML object. Raises ApiError 400."""
        if self.body.startswith(b"k8s\0"):
            envelope = dict(wire_fields(self.body[4:]))
            kind = dict(wire_fields(envelope[1]))
            return {"apiVersion": kind[1].decode(), "kind": kind[2].decode(), **from_wire(kind[2].decode(), envelope.get(2, b""))}
        try:
            body = json.loads(self.body) if "yaml" not in self.headers.get("Content-Type", "") else yaml.safe_load(self.body)
        except (ValueError, yaml.YAMLError) as error:
            raise bad_request(f"the object provided is unrecognized: couldn't get version/kind; json parse error: {error}") from None
        if not isinstance(body, dict):
            raise bad_request("the object provided is unrecognized: expected an object")
        return body

    def answer(self, body: Object | bytes, code: int = 200, content_type: str = "application/json") -> None:
        """Send an answer whole."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() + b"\n"
        head = f"HTTP/1.1 {code} {self.responses[code][0] if code in self.responses else code}\r\nContent-Type: {content_type}\r\n" \
               f"Content-Length: {len(data)}\r\nCache-Control: no-cache, private\r\n\r\n"
        self.wfile.write(head.encode() + data)

    def stream(self, data: bytes, content_type: str = "application/json") -> None:
        """Send a piece of an answer that has no length."""
        if not self.begun:
            self.begun = True
            self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        if data:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def user(self) -> str:
        """Return who asks. Raises ApiError 401."""
        token = self.headers.get("Authorization", "").partition("Bearer ")[2]
        if token and token not in self.server.tokens:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return self.server.tokens.get(token, "system:anonymous")

    def authorize(self, what: str, path: str = "", name: str = "", kind: Kind | None = None) -> None:
        """Raise ApiError 403 unless the user may do what is asked: the admin anything, others only look what there is."""
        user = self.user()
        open_to_all = path in ("/version", "/healthz", "/livez", "/readyz") or user == "nobody" and path.startswith(("/api", "/apis", "/openapi"))
        if user == "admin" or path and open_to_all:
            return
        if kind:
            who = f'{kind.resource} "{name}"' if name else kind.resource
            raise ApiError(403, "Forbidden", f'{who} is forbidden: User "{user}" cannot {what}', details(kind, name))
        raise ApiError(403, "Forbidden", f'forbidden: User "{user}" cannot {self.command.lower()} path "{path}"', {})

    def route(self, path: str) -> None:
        """Answer a request by its path (Kubernetes, "API Concepts")."""
        parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")]
        if parts[:1] == ["api"] and len(parts) > 2:
            group, parts = "", parts[1:]
        elif parts[:1] == ["apis"] and len(parts) > 3:
            group, parts = parts[1], parts[2:]
        else:
            self.authorize("", path)
            return self.discover(path)
        if parts[0] != "v1":
            raise nowhere()
        if (group, parts[1:]) == ("authorization.k8s.io", ["selfsubjectaccessreviews"]):
            return self.review()
        namespace, rest = (parts[2], parts[3:]) if parts[1] == "namespaces" and len(parts) > 3 else ("", parts[1:])
        plural, name, sub = (*rest, "", "")[:3]
        kind = KINDS.get(plural)
        if not kind or kind.group != group or len(rest) > 3:
            self.authorize("", path)
            raise nowhere()
        watching = self.query.get("watch") in ("1", "true")
        verb = {"GET": "get" if name else "watch" if watching else "list", "POST": "create", "PUT": "update", "PATCH": "patch",
                "DELETE": "delete" if name else "deletecollection"}[self.command]
        home = namespace if kind.namespaced else name
        where = f'in the namespace "{home}"' if home else "at the cluster scope"
        self.authorize(f'{verb} resource "{plural}{sub and "/" + sub}" in API group "{group}" {where}', "", name, kind)
        if sub:
            return self.subresource(kind, namespace, name, sub)
        if verb in ("list", "watch", "deletecollection"):
            return self.several(kind, namespace, verb)
        if (verb == "create") == bool(name) or kind.namespaced and not namespace:
            raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})
        dry_run = bool(self.query.get("dryRun"))
        if verb == "create":
            item = self.read_object()
            if item.get("kind", kind.name) != kind.name:
                raise bad_request(f"{item['kind']} in version \"v1\" cannot be handled as a {kind.name}: converting (v1.{item['kind']}) to "
                                  f"(core.{kind.name}): unknown conversion")
            if at(item, "metadata.namespace") not in (None, "", namespace):
                raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
            self.show(kind, self.store.create(kind, namespace, item, dry_run), 201)
        elif verb == "get":
            self.show(kind, self.store.get(kind, namespace, name))
        elif verb == "delete":
            options = {**self.query, **(self.read_object() if self.body else {})}
            if isinstance(options.get("gracePeriodSeconds"), str):
                options["gracePeriodSeconds"] = int(options["gracePeriodSeconds"])
            self.answer(self.store.delete(kind, namespace, name, options))
        else:
            change = self.change(kind.name)
            self.show(kind, self.store.update(kind, namespace, name, change, dry_run))

    def change(self, shape: str) -> Callable[[Object], Object]:
        """Return what a PUT or a PATCH makes of an object. Raises ApiError 400 or 415."""
        content_type = self.headers.get("Content-Type", "").partition(";")[0]
        if self.command == "PUT":
            wanted = self.read_object()
            return lambda item: wanted
        if content_type == "application/json-patch+json":
            operations = json.loads(self.body)
            return lambda item: json_patch(item, operations)
        if content_type not in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
            raise ApiError(415, "UnsupportedMediaType", "the body of the request was in an unknown format - accepted media types include: "
                           "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json")
        patch = self.read_object()
        return lambda item: merge(item, patch, shape if "strategic" in content_type else "*")

    def show(self, kind: Kind, item: Object, code: int = 200) -> None:
        """Answer one object, as a Table if that is asked for."""
        self.answer(self.represent(kind, [item]) if self.wants_table() else item, code)

    def wants_table(self) -> bool:
        """Return whether the client asks for a Table."""
        return "as=Table" in self.headers.get("Accept", "")

    def represent(self, kind: Kind, items: list[Object]) -> Object:
        """Return objects as a Table."""
        version = items[0]["metadata"]["resourceVersion"] if len(items) == 1 else str(self.store.version)
        return table(kind, items, version, self.query.get("includeObject", "Metadata"))

    def several(self, kind: Kind, namespace: str, verb: str) -> None:
        """List, watch or delete objects."""
        matches = selection(kind, self.query.get("labelSelector", ""), self.query.get("fieldSelector", ""))
        version = self.query.get("resourceVersion") or "0"
        if not version.isdigit():
            raise ApiError(500, "", f'resourceVersion: Invalid value: "{version}": strconv.ParseUint: parsing "{version}": invalid syntax')
        if verb == "watch":
            if self.query.get("resourceVersionMatch"):  # Go's newer clients try it, to be sent the list first, and do without.
                raise ApiError(422, "Invalid", 'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is '
                               "forbidden for watch", {"group": "meta.k8s.io", "kind": "ListOptions", "causes": [
                                   {"reason": "FieldValueForbidden", "message": "Forbidden: resourceVersionMatch is forbidden for watch",
                                    "field": "resourceVersionMatch"}]})
            return self.watch(kind, namespace, matches, int(version))
        with self.store.changed:
            current, items = self.store.version, self.store.list(kind, namespace, matches)
            if int(version) > current:
                raise ApiError(504, "Timeout", f"Timeout: Too large resource version: {version}, current: {current}", {
                    "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1})
            if self.query.get("continue") or self.query.get("resourceVersionMatch") == "Exact" and int(version) < self.store.oldest:
                raise ApiError(410, "Expired", "The resourceVersion for the provided list is too old.")
        if verb == "deletecollection":
            for item in items:
                with contextlib.suppress(ApiError):
                    self.store.delete(kind, item["metadata"].get("namespace", ""), item["metadata"]["name"],
                                      self.read_object() if self.body else {})
        if self.wants_table():
            self.answer(table(kind, items, str(current), self.query.get("includeObject", "Metadata")))
        else:
            self.answer({"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": {"resourceVersion": str(current)},
                         "items": items if kind.name != "Secret" or verb == "list" else items})

    def watch(self, kind: Kind, namespace: str, matches: Match, version: int) -> None:
        """Send what happens to a kind's objects, from a version on; from their present state if that is 0."""
        store, faults, started = self.store, self.server.faults, time.monotonic()
        ends = started + float(self.query.get("timeoutSeconds") or WATCH_SECONDS * random.uniform(1, 2))
        bookmarks = self.query.get("allowWatchBookmarks") in ("1", "true")
        bookmark_at = min(started + BOOKMARK_SECONDS, ends - LAST_BOOKMARK_SECONDS) if bookmarks else ends

        def selected(item: Object | None) -> bool:
            return bool(item and (not namespace or item["metadata"].get("namespace") == namespace) and matches(item))

        def send(category: str, item: Object) -> None:
            shown = self.represent(kind, [item]) if self.wants_table() and category not in ("ERROR", "BOOKMARK") else item
            self.stream(json.dumps({"type": category, "object": shown}).encode() + b"\n")
        self.stream(b"")
        with store.changed:
            present = [] if version else store.list(kind, namespace, matches)
            version = version or store.version
        for item in present:
            send("ADDED", item)
        while True:
            with store.changed:
                store.changed.wait_for(lambda: store.version > version or faults.watches_ended > started,
                                       max(min(bookmark_at, ends) - time.monotonic(), 0))
                changes, oldest, current = store.history[max(version - store.oldest, 0):], store.oldest, store.version
            moment = time.monotonic()
            if faults.lasting.get("silence_watches"):
                time.sleep(0.1)
                if moment < ends:
                    continue
            if moment >= ends or faults.watches_ended > started:
                break
            if version < oldest:
                send("ERROR", ApiError(410, "Expired", f"too old resource version: {version} ({oldest})").status)
                break
            for change in changes:
                if change.kind is kind:
                    was, is_now = selected(change.before) and change.after is not None, selected(change.after)
                    if was or is_now:
                        send("MODIFIED" if was and is_now else "ADDED" if is_now else "DELETED", change.item)
                    elif change.after is None and selected(change.before):
                        send("DELETED", change.item)
            version = max(current, version)
            if bookmarks and moment >= bookmark_at:
                bookmark_at = moment + BOOKMARK_SECONDS if moment + BOOKMARK_SECONDS < ends - LAST_BOOKMARK_SECONDS else \
                    max(ends - LAST_BOOKMARK_SECONDS, moment + LAST_BOOKMARK_SECONDS)
                send("BOOKMARK", {"kind": kind.name, "apiVersion": kind.api_version,
                                  "metadata": {"resourceVersion": str(version), "creationTimestamp": None}})
        self.wfile.write(b"0\r\n\r\n")

    def subresource(self, kind: Kind, namespace: str, name: str, sub: str) -> None:
        """Answer a StatefulSet's scale or a pod's log."""
        if (kind.plural, sub) == ("pods", "log") and self.command == "GET":
            return self.log(kind, self.store.get(kind, namespace, name))
        if (kind.plural, sub) != ("statefulsets", "scale"):
            raise nowhere()

        def scale_of(item: Object) -> Object:
            meta, spec = item["metadata"], item["spec"]
            labels = spec["selector"].get("matchLabels", {})
            return {"kind": "Scale", "apiVersion": "autoscaling/v1", "spec": {"replicas": spec["replicas"]},
                    "metadata": {key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")},
                    "status": {"replicas": item["status"]["replicas"], "selector": ",".join(f"{key}={labels[key]}" for key in sorted(labels))}}
        if self.command == "GET":
            return self.answer(scale_of(self.store.get(kind, namespace, name)))
        change = self.change("Scale")

        def rescale(item: Object) -> Object:
            wanted = change(scale_of(item))
            return {**item, "metadata": {**item["metadata"], "resourceVersion": at(wanted, "metadata.resourceVersion")},
                    "spec": {**item["spec"], "replicas": wanted["spec"]["replicas"]}}
        return self.answer(scale_of(self.store.update(kind, namespace, name, rescale, bool(self.query.get("dryRun")))))

    def log(self, kind: Kind, pod: Object) -> None:
        """Send what a pod's container printed."""
        name, containers = pod["metadata"]["name"], [container["name"] for container in pod["spec"]["containers"]]
        wanted = self.query.get("container") or containers[0]
        if wanted not in containers:
            raise bad_request(f"container {wanted} is not valid for pod {name}")
        path, following = self.server.node.log_path(pod, wanted), self.query.get("follow") == "true"
        position = 0
        if os.path.exists(path) and "tailLines" in self.query:
            with open(path, "rb") as file:
                lines = file.readlines()
            position = sum(map(len, lines[:max(len(lines) - int(self.query["tailLines"]), 0)]))
        while True:
            if os.path.exists(path):
                with open(path, "rb") as file:
                    file.seek(position)
                    data = file.read()
                position += len(data)
                self.stream(data, "text/plain")
            if not following or not self.store.list(kind, pod["metadata"]["namespace"],
                                                    lambda item: bool(item["metadata"]["uid"] == pod["metadata"]["uid"])):
                break
            time.sleep(0.2)
        self.stream(b"", "text/plain")
        self.wfile.write(b"0\r\n\r\n")

    def review(self) -> None:
        """Answer `kubectl auth can-i`."""
        review = self.read_object()
        user = self.user()
        self.answer({**review, "metadata": {"creationTimestamp": None}, "status": {"allowed": user == "admin"}}, 201)

    def discover(self, path: str) -> None:
        """Answer what there is."""
        apps, reviews = ({"name": name, "versions": [{"groupVersion": f"{name}/v1", "version": "v1"}],
                          "preferredVersion": {"groupVersion": f"{name}/v1", "version": "v1"}} for name in ("apps", "authorization.k8s.io"))
        if path == "/version":
            self.answer({"major": "1", "minor": "20", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "", "buildDate": "",
                         "goVersion": "", "compiler": "", "platform": ""})
        elif path in ("/healthz", "/livez", "/readyz"):
            self.answer(b"ok", content_type="text/plain")
        elif path == "/openapi/v2":
            self.answer(self.server.openapi, content_type="application/octet-stream")
        elif path == "/api":
            self.answer({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
        elif path == "/apis":
            self.answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": [apps, reviews]})
        elif path == "/apis/apps":
            self.answer({"kind": "APIGroup", "apiVersion": "v1", **apps})
        elif path in ("/api/v1", "/apis/apps/v1"):
            group = "apps" if path == "/apis/apps/v1" else ""
            verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            resources: list[Object] = [{"name": kind.plural, "singularName": "", "namespaced": kind.namespaced, "kind": kind.name, "verbs": verbs,
                                        **({"shortNames": [kind.short]} if kind.short else {}),
                                        **({"categories": ["all"]} if kind.in_all else {})} for kind in KINDS.values() if kind.group == group]
            resources.append({"name": "statefulsets/scale", "singularName": "", "namespaced": True, "group": "autoscaling", "version": "v1",
                              "kind": "Scale", "verbs": ["get", "patch", "update"]} if group else
                             {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get"]})
            self.answer({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{group}/v1".strip("/"), "resources": resources})
        elif path == "/apis/authorization.k8s.io/v1":
            self.answer({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "authorization.k8s.io/v1", "resources": [
                {"name": "selfsubjectaccessreviews", "singularName": "", "namespaced": False, "kind": "SelfSubjectAccessReview",
                 "verbs": ["create"]}]})
        else:
            raise nowhere()


# ---- Controllers --------------------------------------------------------------------------------------

class Controllers:
    """What a cluster does by itself: StatefulSets' pods, garbage, namespaces that go, quotas, claims. One thread does it all."""

    def __init__(self, store: Store) -> None:
        self.store, self.changes = store, store.follow()
        self.unsatisfied: dict[tuple[str, str], bool] = {}

    def run(self) -> None:
        """Follow the changes for ever."""
        while True:
            try:
                change = self.changes.get(timeout=RESYNC_SECONDS)
            except queue.Empty:
                for namespace, name in list(self.unsatisfied):
                    self.sync(namespace, name)
                continue
            item, meta = change.item, change.item["metadata"]
            if change.kind.name == "StatefulSet":
                self.sync(meta["namespace"], meta["name"])
            for owner in meta.get("ownerReferences", ()):
                if owner["kind"] == "StatefulSet":
                    self.sync(meta["namespace"], owner["name"])
            self.collect(change)
            if meta.get("namespace"):
                self.count(meta["namespace"])
            if change.kind.name == "PersistentVolumeClaim" and change.after and item["status"]["phase"] == "Pending":
                self.bind(change.kind, item)
            for home in [item] if change.kind.name == "Namespace" else self.store.list(KINDS["namespaces"], "", lambda it: bool(
                    it["metadata"]["name"] == meta.get("namespace") and change.after is None)):
                self.finalize(home)

    def collect(self, change: Change) -> None:
        """Delete what a deleted object owned; end a foreground deletion when nothing is left."""
        store, meta = self.store, change.item["metadata"]
        going = change.after is None or "foregroundDeletion" in meta.get("finalizers", ())
        if going:
            for kind, item in store.owned(meta["uid"]):
                if "deletionTimestamp" not in item["metadata"]:
                    self.delete(kind, item)
        owners = [change.item] if going and change.after else [
            owner for reference in meta.get("ownerReferences", ()) if change.after is None
            for owner in store.list(KINDS["statefulsets"], meta["namespace"], lambda it: bool(it["metadata"]["uid"] == reference["uid"]))]
        for owner in owners:
            if "foregroundDeletion" in owner["metadata"].get("finalizers", ()) and not store.owned(owner["metadata"]["uid"]):
                with contextlib.suppress(ApiError):
                    store.update(KINDS["statefulsets"], owner["metadata"]["namespace"], owner["metadata"]["name"], lambda item: {
                        **item, "metadata": {**item["metadata"], "finalizers": [
                            name for name in item["metadata"].get("finalizers", ()) if name != "foregroundDeletion"]}})
        if change.after and change.before is None and meta.get("ownerReferences") and not any(
                owner["kind"] not in {kind.name for kind in KINDS.values()} or owner["uid"] == item["metadata"]["uid"]
                for owner in meta["ownerReferences"] for items in store.objects.values() for item in list(items.values())):
            self.delete(change.kind, change.item)

    def delete(self, kind: Kind, item: Object) -> None:
        """Delete an object, unless it has become another one."""
        with contextlib.suppress(ApiError):
            self.store.delete(kind, item["metadata"].get("namespace", ""), item["metadata"]["name"],
                              {"preconditions": {"uid": item["metadata"]["uid"]}})

    def finalize(self, namespace: Object) -> None:
        """Empty a namespace that goes, and let it go when it is empty."""
        name = namespace["metadata"]["name"]
        if "deletionTimestamp" not in namespace["metadata"]:
            return
        with self.store.changed:
            left = [(kind, item) for kind in KINDS.values() if kind.namespaced for item in self.store.list(kind, name)]
            for kind, item in left:
                if "deletionTimestamp" not in item["metadata"]:
                    self.delete(kind, item)
            if not left and ("", name) in self.store.objects["namespaces"]:
                self.store.put(KINDS["namespaces"], self.store.objects["namespaces"]["", name], None)

    def count(self, namespace: str) -> None:
        """Keep the status of a namespace's quotas."""
        for quota in self.store.list(KINDS["resourcequotas"], namespace):
            hard = quota["spec"].get("hard", {})
            status = {"hard": hard, "used": self.store.used(namespace, hard)}
            if quota.get("status") != status:
                with contextlib.suppress(ApiError):
                    self.store.update(KINDS["resourcequotas"], namespace, quota["metadata"]["name"],
                                      lambda item, status=status: {**item, "status": status}, status=True)  # type: ignore[misc]

    def bind(self, kind: Kind, claim: Object) -> None:
        """Bind a claim to a volume, which the node makes when a pod comes with it."""
        with contextlib.suppress(ApiError):
            self.store.update(kind, claim["metadata"]["namespace"], claim["metadata"]["name"], lambda item: {
                **item, "spec": {**item["spec"], "volumeName": f"pvc-{item['metadata']['uid']}"},
                "status": {"phase": "Bound", "accessModes": item["spec"].get("accessModes", []),
                           "capacity": at(item, "spec.resources.requests") or {}}})

    def sync(self, namespace: str, name: str) -> None:
        """Bring a StatefulSet's pods nearer to what it wants, and its status to what they are."""
        store, kind, pods_kind = self.store, KINDS["statefulsets"], KINDS["pods"]
        self.unsatisfied.pop((namespace, name), None)
        try:
            item = store.get(kind, namespace, name)
        except ApiError:
            return
        meta, spec = item["metadata"], item["spec"]
        template = json.dumps(spec["template"], sort_keys=True)
        revision = f"{name}-{hashlib.sha256(template.encode()).hexdigest()[:10]}"
        pods = {int(pod["metadata"]["name"].rpartition("-")[2]): pod for found, pod in store.owned(meta["uid"])
                if found is pods_kind and re.fullmatch(rf"{re.escape(name)}-\d+", pod["metadata"]["name"])}
        ready = {number for number, pod in pods.items() if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]}
        updated = {number for number, pod in pods.items() if labels_of(pod).get("controller-revision-hash") == revision}
        parallel = spec["podManagementPolicy"] == "Parallel"
        if "deletionTimestamp" not in meta:
            for number in range(spec["replicas"]):
                if number not in pods:
                    self.make_pod(kind, item, number, revision)
                if not parallel and number not in ready:
                    break
            surplus = sorted((number for number in pods if number >= spec["replicas"]), reverse=True)
            outdated = sorted((number for number in pods if number not in updated and number not in surplus), reverse=True)
            for number in surplus[:None if parallel else 1] or ([] if len(ready) < len(pods) - len(outdated) else outdated[:1]):
                if "deletionTimestamp" not in pods[number]["metadata"]:
                    self.delete(pods_kind, pods[number])
                    store.event(kind, item, "statefulset-controller", "Normal", "SuccessfulDelete",
                                f"delete Pod {name}-{number} in StatefulSet {name} successful")
        current = item["status"].get("currentRevision", revision)
        current = revision if len(updated & ready) >= len(pods) else current
        status = {"collisionCount": 0, "observedGeneration": meta["generation"], "replicas": len(pods), "updateRevision": revision,
                  "currentRevision": current, **({"readyReplicas": len(ready)} if ready else {}),
                  **({"currentReplicas": number} if (number := len(pods) if current == revision else len(pods) - len(updated)) else {}),
                  **({"updatedReplicas": len(updated)} if updated else {})}
        if status != item["status"]:
            with contextlib.suppress(ApiError):
                store.update(kind, namespace, name, lambda it: {**it, "status": status}, status=True)

    def make_pod(self, kind: Kind, owner: Object, number: int, revision: str) -> None:
        """Make a StatefulSet's pod and its claims, or record why not and come back."""
        store, meta, spec = self.store, owner["metadata"], owner["spec"]
        name, namespace, template = f"{meta['name']}-{number}", meta["namespace"], spec["template"]
        claims = {claim["metadata"]["name"]: claim for claim in spec.get("volumeClaimTemplates", ())}
        for claim in claims.values():
            with contextlib.suppress(ApiError):  # It may have outlived an earlier pod.
                store.create(KINDS["persistentvolumeclaims"], namespace, {
                    **claim, "metadata": {"name": f"{claim['metadata']['name']}-{name}", "labels": spec["selector"].get("matchLabels", {})}})
        volumes = [volume for volume in template["spec"].get("volumes", ()) if volume["name"] not in claims] + [
            {"name": claim, "persistentVolumeClaim": {"claimName": f"{claim}-{name}"}} for claim in claims]
        pod = {"metadata": {**{key: value for key, value in template["metadata"].items() if key in ("annotations",)},
                            "name": name, "generateName": f"{meta['name']}-", "labels": {
                                **labels_of(template), "controller-revision-hash": revision, "statefulset.kubernetes.io/pod-name": name},
                            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": meta["name"], "uid": meta["uid"],
                                                 "controller": True, "blockOwnerDeletion": True}]},
               "spec": {**template["spec"], "hostname": name, "subdomain": spec.get("serviceName", ""), "volumes": volumes}}
        try:
            store.create(KINDS["pods"], namespace, pod)
        except ApiError as error:
            if error.code != 409:
                self.unsatisfied[namespace, meta["name"]] = True
                store.event(kind, owner, "statefulset-controller", "Warning", "FailedCreate",
                            f"create Pod {name} in StatefulSet {meta['name']} failed error: {error}")
        else:
            store.event(kind, owner, "statefulset-controller", "Normal", "SuccessfulCreate",
                        f"create Pod {name} in StatefulSet {meta['name']} successful")


def is_ready(pod: Object) -> bool:
    """Return whether a pod's condition says that it is ready."""
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in pod["status"].get("conditions", ()))


# ---- The node -----------------------------------------------------------------------------------------

class Node:
    """Runs the pods: a thread for each, which does what a kubelet does."""

    def __init__(self, store: Store, state: str, hollow: bool) -> None:
        self.store, self.state, self.changes = store, state, store.follow()
        self.mariadbd = "" if hollow else shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
        self.why_hollow = "started with --hollow" if hollow else "install MariaDB to have it run: apt-get install mariadb-server-core " \
            "mariadb-client-core"
        self.never_ready = ""
        self.runners: dict[str, Runner] = {}
        self.addresses = iter(PODS.hosts())

    def run(self) -> None:
        """Follow the changes for ever."""
        while True:
            change = self.changes.get()
            meta = change.item["metadata"]
            if change.kind.name == "Pod":
                if change.after and change.before is None:
                    runner = self.runners[meta["uid"]] = Runner(self, change.after, str(next(self.addresses)))
                    runner.start()
                elif (change.after is None or "deletionTimestamp" in meta) and meta["uid"] in self.runners:
                    self.runners[meta["uid"]].stop()
            elif change.kind.name == "PersistentVolumeClaim" and change.after is None:
                shutil.rmtree(os.path.join(self.state, "volumes", meta["uid"]), ignore_errors=True)

    def log_path(self, pod: Object, container: str) -> str:
        """Return where a container's output is."""
        return os.path.join(self.state, "pods", pod["metadata"]["uid"], f"{container}.log")

    def kill(self, pattern: str) -> None:
        """Kill the processes of the pods whose name matches."""
        for runner in list(self.runners.values()):
            if fnmatch.fnmatch(runner.name, pattern):
                runner.crash()

    def stop(self) -> None:
        """End all pods' processes."""
        for runner in list(self.runners.values()):
            runner.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for runner in list(self.runners.values()):
            runner.join(max(deadline - time.monotonic(), 0.1))
            runner.kill()


class Retry(Exception):
    """A container cannot be started yet: the reason that a kubelet gives, and words."""


class Runner(threading.Thread):
    """One pod on the node, from its binding to its end."""

    def __init__(self, node: Node, pod: Object, address: str) -> None:
        super().__init__(name=pod["metadata"]["name"], daemon=True)
        self.node, self.store, self.pod, self.address = node, node.store, pod, address
        containers = pod["spec"]["containers"]
        self.container = next((container for container in containers if re.search("mariadb|mysql", container["image"])), containers[0])
        self.folder = os.path.join(node.state, "pods", pod["metadata"]["uid"])
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping, self.crashed = threading.Event(), threading.Event()
        self.restarts, self.last_state = 0, {}  # type: int, Object
        self.paths: dict[str, str] = {}

    def stop(self) -> None:
        """Have the pod end."""
        self.stopping.set()
        self.crashed.set()

    def crash(self) -> None:
        """End the container as if it had crashed."""
        self.crashed.set()
        self.kill()

    def kill(self) -> None:
        """Kill the container's process, if it has one."""
        with contextlib.suppress(ProcessLookupError):
            if self.process and self.process.returncode is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def run(self) -> None:
        """Bind the pod, run it until it is deleted, and clean up."""
        meta = self.pod["metadata"]
        with contextlib.suppress(ApiError):
            self.store.update(KINDS["pods"], meta["namespace"], meta["name"],
                              lambda pod: {**pod, "spec": {**pod["spec"], "nodeName": NODE}})
        self.event("Normal", "Scheduled", f"Successfully assigned {meta['namespace']}/{meta['name']} to {NODE}", "default-scheduler")
        if any("never-ready" in container["image"] for container in self.pod["spec"]["containers"]):
            self.report({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}})
            self.stopping.wait()
        elif self.node.mariadbd and re.search("mariadb|mysql", self.container["image"]):
            self.live(self.run_database)
        else:
            why = self.node.why_hollow if re.search("mariadb|mysql", self.container["image"]) else \
                "only images called after mariadb or mysql do"
            self.event("Warning", "Hollow", f"nothing runs in this pod: {why}")
            self.live(self.run_hollow)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.node.runners.pop(meta["uid"], None)
        with contextlib.suppress(ApiError):
            self.store.delete(KINDS["pods"], meta["namespace"], meta["name"], {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})

    def live(self, run_once: Callable[[], int]) -> None:
        """Run the container again and again, with a kubelet's pauses."""
        pause = 0.0
        while not self.stopping.is_set():
            started = now()
            began = time.monotonic()
            try:
                code = run_once()
            except Retry as error:
                reason, message = error.args
                self.report({"waiting": {"reason": reason, "message": message}})
                self.event("Warning", "Failed", message)
                self.stopping.wait(RESYNC_SECONDS)
                continue
            if self.stopping.is_set():
                break
            self.crashed.clear()
            self.restarts += 1
            self.last_state = {"terminated": {"exitCode": code if code >= 0 else 128 - code, "reason": "Error" if code else "Completed",
                                              "startedAt": started, "finishedAt": now()}}
            pause = 0.0 if time.monotonic() - began > PEACE_SECONDS else pause
            if pause:
                self.report({"waiting": {"reason": "CrashLoopBackOff", "message": f"back-off {pause:.0f}s restarting failed container"}})
                self.event("Warning", "BackOff", "Back-off restarting failed container")
            else:
                self.report(self.last_state)
            self.stopping.wait(pause)
            pause = min(max(2 * pause, FIRST_RESTART_SECONDS), LAST_RESTART_SECONDS)

    def run_hollow(self) -> int:
        """Be ready after a moment, until the end; return an exit code."""
        self.report({"running": {"startedAt": now()}})
        if not self.crashed.wait(HOLLOW_SECONDS):
            while not self.crashed.wait(RESYNC_SECONDS if self.node.never_ready else 0):
                self.report({"running": {"startedAt": now()}}, ready=True)
                if self.crashed.wait(RESYNC_SECONDS):
                    break
        return -signal.SIGKILL

    def report(self, state: Object, ready: bool = False) -> None:
        """Write the pod's status; the state is the container's."""
        meta, moment = self.pod["metadata"], now()
        ready = ready and not (self.node.never_ready and fnmatch.fnmatch(meta["name"], self.node.never_ready))

        def change(pod: Object) -> Object:
            old = {condition["type"]: condition for condition in pod["status"].get("conditions", ())}
            conditions = []
            for name, holds in (("PodScheduled", True), ("Initialized", True), ("ContainersReady", ready), ("Ready", ready)):
                wanted = "True" if holds else "False"
                if old.get(name, {}).get("status") != wanted:
                    old[name] = {"lastProbeTime": None, "lastTransitionTime": moment, "status": wanted, "type": name}
                conditions.append(old[name])
            running = state.get("running")
            containers = [{"name": container["name"], "image": container["image"], "imageID": "", "ready": ready, "started": bool(running),
                           "restartCount": self.restarts, "state": state, "lastState": self.last_state}
                          for container in pod["spec"]["containers"]]
            before = at(pod["status"].get("containerStatuses", [{}])[0], "state.running")
            if running and before and self.restarts == pod["status"]["containerStatuses"][0]["restartCount"]:
                for container in containers:
                    container["state"] = {"running": before}
            started = running or self.restarts or pod["status"]["phase"] == "Running"
            return {**pod, "status": {**pod["status"], "phase": "Running" if started else "Pending", "hostIP": "127.0.0.1",
                                      "startTime": pod["status"].get("startTime", moment), "podIP": self.address,
                                      "podIPs": [{"ip": self.address}], "conditions": conditions, "containerStatuses": containers}}
        with self.store.changed, contextlib.suppress(ApiError):
            if self.store.get(KINDS["pods"], meta["namespace"], meta["name"])["metadata"]["uid"] == meta["uid"]:
                self.store.update(KINDS["pods"], meta["namespace"], meta["name"], change, status=True)

    def event(self, category: str, reason: str, message: str, component: str = "kubelet") -> None:
        """Record an Event on the pod."""
        self.store.event(KINDS["pods"], self.pod, component, category, reason, message,
                         f"spec.containers{{{self.container['name']}}}" if component == "kubelet" else "")

    # -- the database

    def run_database(self) -> int:
        """Run the container once, as the image's entry script does; return its exit code. Raises Retry."""
        environment, self.paths = self.environment(), self.mount()
        data = self.paths["/var/lib/mysql"]
        arguments = [self.localise(word) for word in [*self.container.get("command", [])[1:], *self.container.get("args", [])]
                     if word not in ("mysqld", "mariadbd")]
        # No file of this machine can be read or written by SQL: root may be whom it runs as.
        command = [self.node.mariadbd, "--no-defaults", f"--datadir={data}", f"--socket={self.folder}/mysqld.sock",
                   f"--pid-file={self.folder}/mysqld.pid", f"--secure-file-priv={self.folder}/files", "--basedir=/usr", *arguments,
                   *(["--user=root"] if os.geteuid() == 0 else [])]
        self.crashed.clear() if not self.stopping.is_set() else None
        with open(self.node.log_path(self.pod, self.container["name"]), "ab") as log:
            if not os.path.exists(os.path.join(data, "mysql")):
                if code := self.initialise(command, data, environment, log):
                    return code
            self.start_process([*command, f"--bind-address={self.address}"], environment, log)
            self.event("Normal", "Started", f"Started container {self.container['name']}")
            self.report({"running": {"startedAt": now()}})
            self.probe(environment)
            return self.finish()

    def start_process(self, command: list[str], environment: dict[str, str], log: Any) -> None:
        """Start a process that ends with this one, however that ends."""
        setpriv = shutil.which("setpriv")  # The signal comes when the thread ends that started it: this one.
        self.process = subprocess.Popen([*([setpriv, "--pdeathsig=KILL"] if setpriv else []), *command], env=environment,
                                        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        if self.stopping.is_set():
            self.kill()

    def finish(self) -> int:
        """Wait for the process, ending it within the pod's grace if the pod is to end; return its exit code."""
        process = self.process
        assert process
        if self.stopping.is_set() and process.poll() is None:
            self.event("Normal", "Killing", f"Stopping container {self.container['name']}")
            process.terminate()
        try:
            return process.wait(min(self.pod["spec"]["terminationGracePeriodSeconds"], STOP_SECONDS))
        except subprocess.TimeoutExpired:
            self.kill()
            return process.wait()

    def environment(self) -> dict[str, str]:
        """Return the container's environment. Raises Retry while a Secret or ConfigMap it refers to is missing."""
        namespace = self.pod["metadata"]["namespace"]
        result = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin", "HOME": self.folder, "HOSTNAME": self.name}
        for variable in self.container.get("env", ()):
            source = variable.get("valueFrom", {})
            value: str | None = variable.get("value", "")
            for reference, plural in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
                if wanted := source.get(reference):
                    items = self.store.list(KINDS[plural], namespace, lambda item, wanted=wanted: bool(  # type: ignore[misc]
                        item["metadata"]["name"] == wanted["name"]))
                    value = items[0].get("data", {}).get(wanted["key"]) if items else None
                    if value is None and not wanted.get("optional"):
                        raise Retry("CreateContainerConfigError", f"{plural[:-1]} \"{wanted['name']}\" not found" if not items else
                                    f"couldn't find key {wanted['key']} in {plural} {namespace}/{wanted['name']}")
                    value = base64.b64decode(value).decode() if value and plural == "secrets" else value
            if "fieldRef" in source:
                value = str(at(self.pod, source["fieldRef"]["fieldPath"]) or self.address)
            if value is not None:
                result[variable["name"]] = value
        return result

    def mount(self) -> dict[str, str]:
        """Make the folders of the pod's volumes; return them by mount path. Raises Retry while one is missing."""
        namespace = self.pod["metadata"]["namespace"]
        os.makedirs(os.path.join(self.folder, "files"), exist_ok=True)
        volumes = {volume["name"]: volume for volume in self.pod["spec"].get("volumes", ())}
        paths = {"/var/lib/mysql": os.path.join(self.folder, "data")}
        for mount in self.container.get("volumeMounts", ()):
            volume = volumes[mount["name"]]
            path = os.path.join(self.folder, "volumes", volume["name"])
            if claim := volume.get("persistentVolumeClaim"):
                items = self.store.list(KINDS["persistentvolumeclaims"], namespace, lambda item, claim=claim: bool(  # type: ignore[misc]
                    item["metadata"]["name"] == claim["claimName"]))
                if not items:
                    raise Retry("ContainerCreating", f'persistentvolumeclaim "{claim["claimName"]}" not found')
                path = os.path.join(self.node.state, "volumes", items[0]["metadata"]["uid"])
            os.makedirs(path, exist_ok=True)
            for source, plural, key in (("configMap", "configmaps", "name"), ("secret", "secrets", "secretName")):
                if wanted := volume.get(source):
                    items = self.store.list(KINDS[plural], namespace, lambda item, wanted=wanted, key=key: bool(  # type: ignore[misc]
                        item["metadata"]["name"] == wanted[key]))
                    if not items and not wanted.get("optional"):
                        raise Retry("ContainerCreating", f'MountVolume.SetUp failed for volume "{volume["name"]}": {plural[:-1]} '
                                    f'"{wanted[key]}" not found')
                    for name, value in (items[0].get("data", {}) if items else {}).items():
                        with open(os.path.join(path, name), "wb") as file:
                            file.write(base64.b64decode(value) if source == "secret" else value.encode())
            paths[mount["mountPath"].rstrip("/")] = os.path.join(path, mount.get("subPath", ""))
        os.makedirs(paths["/var/lib/mysql"], exist_ok=True)
        return paths

    def localise(self, word: str) -> str:
        """Return a word of a command with the pod's own addresses and folders in it."""
        word = re.sub(r"\b127\.0\.0\.1\b|\blocalhost\b", self.address, word)
        for path in sorted(self.paths, key=len, reverse=True):
            word = re.sub(rf"(?<![\w./-]){re.escape(path)}(?=/|\b)", self.paths[path], word)
        return word

    def initialise(self, command: list[str], data: str, environment: dict[str, str], log: Any) -> int:
        """Make the system tables, the root user and what the init SQL asks for, on a server without a network; return an exit code.

        The order and the variables are those of docker-entrypoint.sh in the image's repository.
        """
        def variable(name: str) -> str:
            return environment.get(f"MARIADB_{name}", environment.get(f"MYSQL_{name}", ""))
        if not (variable("ROOT_PASSWORD") or variable("ALLOW_EMPTY_ROOT_PASSWORD") or variable("ALLOW_EMPTY_PASSWORD")
                or variable("RANDOM_ROOT_PASSWORD")):
            log.write(b"[ERROR] [Entrypoint]: Database is uninitialized and password option is not specified\n")
            return 1
        password = variable("ROOT_PASSWORD") or (secrets.token_hex(16) if variable("RANDOM_ROOT_PASSWORD") else "")
        quoted = password.replace("\\", "\\\\").replace("'", "\\'")
        fresh = data + ".new"  # What is cut off in the middle does not look like a database.
        shutil.rmtree(fresh, ignore_errors=True)
        log.write(b"[Note] [Entrypoint]: Initializing database files\n")
        log.flush()
        options = [word for word in command[2:] if not word.startswith("--datadir=")]
        made = subprocess.run(["mariadb-install-db", "--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal",
                               f"--datadir={fresh}", *(word for word in options if word.startswith(("--innodb", "--user", "--character")))],
                              env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        if made.returncode:
            return made.returncode
        self.start_process([*command[:2], f"--datadir={fresh}", *options, "--skip-networking"], environment, log)
        script = ["SET @@SESSION.SQL_LOG_BIN=0;", "DROP USER IF EXISTS root@'127.0.0.1', root@'::1', ''@localhost;",
                  "EXECUTE IMMEDIATE CONCAT('DROP USER IF EXISTS root@\\'', @@hostname, '\\', \\'\\'@\\'', @@hostname, '\\'');",
                  f"ALTER USER root@localhost IDENTIFIED BY '{quoted}';",
                  f"CREATE USER IF NOT EXISTS root@'{variable('ROOT_HOST') or '%'}' IDENTIFIED BY '{quoted}';",
                  f"GRANT ALL ON *.* TO root@'{variable('ROOT_HOST') or '%'}' WITH GRANT OPTION;"]
        if database := variable("DATABASE"):
            script.append(f"CREATE DATABASE IF NOT EXISTS `{database}`;")
        if variable("USER"):
            script += [f"CREATE USER '{variable('USER')}'@'%' IDENTIFIED BY '{variable('PASSWORD')}';"]
            script += [f"GRANT ALL ON `{database}`.* TO '{variable('USER')}'@'%';"] if database else []
        folder = self.paths.get("/docker-entrypoint-initdb.d", "")
        parts = [("", "\n".join(script).encode())]
        for name in sorted(os.listdir(folder)) if folder else ():
            if name.endswith(".sql"):
                with open(os.path.join(folder, name), "rb") as file:
                    parts.append((name, file.read()))
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={self.folder}/mysqld.sock"]
        while self.process and self.process.poll() is None and not self.crashed.is_set():
            if subprocess.run([*client, "--execute=SELECT 1"], env=environment, capture_output=True).returncode == 0:
                break
            time.sleep(0.02)
        for name, sql in parts:
            log.write(f"[Note] [Entrypoint]: running {name or 'the setup of users'}\n".encode())
            log.flush()
            run = subprocess.run([*client, *([database] if database and name else [])], input=sql, env={**environment, "MYSQL_PWD": password if name
                                 else ""}, stdout=log, stderr=log)
            if run.returncode:
                self.kill()
                return run.returncode
        assert self.process
        self.process.terminate()
        if self.process.wait():
            return self.process.returncode
        for name in os.listdir(fresh):
            os.rename(os.path.join(fresh, name), os.path.join(data, name))
        os.rmdir(fresh)
        return 0

    def probe(self, environment: dict[str, str]) -> None:
        """Run the container's probes until its process ends or the pod is to end."""
        assert self.process
        probes = {name: self.container.get(f"{name}Probe") for name in ("startup", "readiness", "liveness")}
        ready, failures, due = False, {"startup": 0, "readiness": 0, "liveness": 0}, {name: time.monotonic() for name in probes}
        for name, probe in probes.items():
            due[name] += (probe or {}).get("initialDelaySeconds", 0)
        shown: bool | None = None
        while self.process.poll() is None and not self.stopping.is_set():
            names = ["startup"] if probes["startup"] else ["readiness", "liveness"]
            for name in names:
                probe, moment = probes[name], time.monotonic()
                if not probe:
                    ready = ready or name == "readiness"
                elif moment >= due[name]:
                    due[name] = moment + probe["periodSeconds"]
                    words = self.try_probe(probe, environment)
                    failures[name] = failures[name] + 1 if words else 0
                    if words:
                        self.event("Warning", "Unhealthy", f"{name.capitalize()} probe failed: {words}")
                        if name != "readiness" and failures[name] >= probe["failureThreshold"]:
                            self.event("Normal", "Killing", f"Container {self.container['name']} failed {name} probe, will be restarted")
                            self.process.terminate()
                            return
                    elif name == "startup":
                        probes["startup"] = None
                    ready = ready and failures["readiness"] < probe["failureThreshold"] if name == "readiness" and words else \
                        ready or name == "readiness"
            if ready != shown or self.node.never_ready:
                shown = ready
                self.report({"running": {"startedAt": now()}}, ready)
            self.crashed.wait(0.05)

    def try_probe(self, probe: Object, environment: dict[str, str]) -> str:
        """Run one probe once; return what is wrong, or nothing."""
        try:
            if "exec" in probe:
                run = subprocess.run([self.localise(word) for word in probe["exec"]["command"]], env=environment, stdin=subprocess.DEVNULL,
                                     capture_output=True, timeout=probe["timeoutSeconds"])
                return (run.stdout + run.stderr).decode(errors="replace").strip() or f"exit code {run.returncode}" if run.returncode else ""
            port = (probe.get("tcpSocket") or probe.get("httpGet"))["port"]
            with socket.create_connection((self.address, port_number(self.container, port)), probe["timeoutSeconds"]):
                return ""
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)


def port_number(container: Object, port: Any) -> int:
    """Return a container's port by its number or name."""
    return next((named["containerPort"] for named in container.get("ports", ()) if named.get("name") == port), 0) or int(port)


class Proxy:
    """Leads connections to Services to a ready pod, as kube-proxy has a kernel do."""

    def __init__(self, store: Store) -> None:
        self.store, self.changes = store, store.follow()
        self.loop = asyncio.new_event_loop()
        self.listening: dict[str, list[asyncio.AbstractServer]] = {}
        threading.Thread(target=self.loop.run_forever, name="proxy", daemon=True).start()

    def run(self) -> None:
        """Follow the Services for ever."""
        while True:
            change = self.changes.get()
            if change.kind.name == "Service" and change.item["spec"].get("clusterIP", "None") != "None":
                asyncio.run_coroutine_threadsafe(self.listen(change), self.loop).result()

    async def listen(self, change: Change) -> None:
        """Listen on a Service's address while there is one."""
        uid = change.item["metadata"]["uid"]
        for server in self.listening.pop(uid, ()):
            server.close()
        for port in change.after["spec"].get("ports", ()) if change.after and change.item["spec"].get("selector") else ():
            def lead(reader: Any, writer: Any, service: Object = change.after, port: Object = port) -> Any:  # type: ignore[assignment]
                return self.lead(service, port, reader, writer)
            with contextlib.suppress(OSError):  # Low ports are root's.
                self.listening.setdefault(uid, []).append(await asyncio.start_server(lead, change.item["spec"]["clusterIP"], port["port"]))

    async def lead(self, service: Object, port: Object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join a connection with one to a pod."""
        pods = self.store.list(KINDS["pods"], service["metadata"]["namespace"], lambda pod: is_ready(pod) and
                               service["spec"]["selector"].items() <= labels_of(pod).items())
        try:
            pod = random.choice(pods)
            other_reader, other_writer = await asyncio.open_connection(
                pod["status"]["podIP"], port_number({"ports": [named for container in pod["spec"]["containers"]
                                                               for named in container.get("ports", ())]}, port["targetPort"]))
        except (IndexError, ValueError, OSError):
            writer.transport.abort()
            return

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            target.close()
        await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))


# ---- The command line ---------------------------------------------------------------------------------

def make_certificate(state: str) -> ssl.SSLContext:
    """Make a certificate for this machine alone; return the server's context."""
    key, certificate = os.path.join(state, "tls.key"), os.path.join(state, "tls.crt")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365",
                    "-subj", "/CN=devcluster", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def write_kubeconfig(state: str, port: int, tokens: dict[str, str]) -> str:
    """Write a kubeconfig with a context for each user; return its path."""
    path = os.path.join(state, "kubeconfig")
    with open(os.path.join(state, "tls.crt"), "rb") as file:
        authority = base64.b64encode(file.read()).decode()
    with open(path, "w", encoding="utf-8") as out:
        yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "admin",
            "clusters": [{"name": "devcluster", "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": authority}}],
            "users": [{"name": user, "user": {"token": token}} for token, user in tokens.items()],
            "contexts": [{"name": user, "context": {"cluster": "devcluster", "user": user, "namespace": "default"}}
                         for user in tokens.values()]}, out, sort_keys=False)
    return path


def main() -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    parser = argparse.ArgumentParser(prog="devcluster.py", description="A Kubernetes API in one process, on loopback.")
    parser.add_argument("--port", type=int, default=0, help="TCP port of 127.0.0.1 (default: any free one)")
    parser.add_argument("--state", default="", help="folder for the kubeconfig and the pods' data; kept (default: a temporary one)")
    parser.add_argument("--hollow", action="store_true", help="run no database: every pod is ready after a second")
    options = parser.parse_args()
    os.umask(0o077)
    state = os.path.abspath(options.state) if options.state else tempfile.mkdtemp(prefix="devcluster-")
    os.makedirs(state, mode=0o700, exist_ok=True)
    for name in ("pods", "volumes"):
        shutil.rmtree(os.path.join(state, name), ignore_errors=True)
    store = Store()
    node = Node(store, state, options.hollow)
    signalled, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        tokens = {secrets.token_urlsafe(24): user for user in ("admin", "nobody")}
        server = Server(options.port, make_certificate(state), tokens, store, node)
        runs = [server.serve_forever, Controllers(store).run, node.run, *([Proxy(store).run] if node.mariadbd else [])]
        for run in runs:
            threading.Thread(target=run, daemon=True).start()
        print(f"export KUBECONFIG={write_kubeconfig(state, server.server_address[1], tokens)}", flush=True)
        print(f"# A Kubernetes API on https://127.0.0.1:{server.server_address[1]}; pods "
              f"{'run ' + node.mariadbd if node.mariadbd else 'are hollow: ' + node.why_hollow}; Ctrl-C ends it.", flush=True)
        os.read(signalled, 1)
        server.shutdown()
        node.stop()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"devcluster.py: {error}", file=sys.stderr)
        return 2
    finally:
        if not options.state:
            shutil.rmtree(state, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
