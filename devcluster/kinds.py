"""Kinds: what there is, and what it looks like."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

NODE, VERSION = "devcluster", "v1.20.2+devcluster"
Object = dict[str, Any]


class Kind(NamedTuple):
    """A kind: group, name, short name, whether `get all` shows it, the fields of a fieldSelector."""

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
    def full_name(self) -> str:
        """Return its name in other errors."""
        return f"{self.name}.{self.group}" if self.group else self.name

    @property
    def api_version(self) -> str:
        """Return its objects' apiVersion."""
        return f"{self.group}/v1" if self.group else "v1"


KINDS = {kind.plural: kind for kind in (
    Kind("", "ConfigMap", "cm"),
    Kind("", "Event", "ev",
         fields="involvedObject.kind involvedObject.name involvedObject.namespace involvedObject.uid reason "
                "source type"),
    Kind("", "Namespace", "ns", fields="status.phase"),
    Kind("", "PersistentVolumeClaim", "pvc"),
    Kind("", "Pod", "po", in_all=True, fields="spec.nodeName spec.restartPolicy status.phase status.podIP"),
    Kind("", "ResourceQuota", "quota"),
    Kind("", "Secret", fields="type"),
    Kind("", "Service", "svc", in_all=True),
    Kind("coordination.k8s.io", "Lease"),
)}

# Types and their fields, from Kubernetes 1.20's OpenAPI and generated.proto: name, "!" if it must be there,
# @number in the protocol buffers that kubectl sends, shape. Shapes: s string, y base64, i integer, b boolean,
# q quantity, x integer or string, t time, m time with microseconds, * anything, [S] list, [S/key] list that a
# strategic merge patch merges by that key, {S} map. "=" starts a package.
SHAPES_TEXT = """
= io.k8s.apimachinery.pkg.apis.meta.v1
ObjectMeta annotations@12:{s} clusterName:s creationTimestamp:t deletionGracePeriodSeconds:i
  deletionTimestamp:t finalizers:[s/] generateName@2:s generation:i labels@11:{s} managedFields:[*] name@1:s
  namespace@3:s ownerReferences:[*/uid] resourceVersion:s selfLink:s uid:s
LabelSelector matchExpressions:[LabelSelectorRequirement] matchLabels:{s}
LabelSelectorRequirement key!:s operator!:s values:[s]
= io.k8s.api.authorization.v1
SelfSubjectAccessReview metadata:ObjectMeta spec@2:SelfSubjectAccessReviewSpec status:*
SelfSubjectAccessReviewSpec nonResourceAttributes@2:NonResourceAttributes
  resourceAttributes@1:ResourceAttributes
NonResourceAttributes path@1:s verb@2:s
ResourceAttributes group@3:s name@7:s namespace@1:s resource@5:s subresource@6:s verb@2:s version@4:s
= io.k8s.api.coordination.v1
Lease metadata:ObjectMeta spec:LeaseSpec
LeaseSpec acquireTime:m holderIdentity:s leaseDurationSeconds:i leaseTransitions:i renewTime:m
= io.k8s.api.core.v1
Namespace metadata@1:ObjectMeta spec:NamespaceSpec status:NamespaceStatus
NamespaceSpec finalizers:[s]
NamespaceStatus conditions:[*/type] phase:s
Secret data@2:{y} immutable:b metadata@1:ObjectMeta stringData@4:{s} type@3:s
ConfigMap binaryData@3:{y} data@2:{s} immutable:b metadata@1:ObjectMeta
Event action:s count:i eventTime:t firstTimestamp:t involvedObject!:ObjectReference lastTimestamp:t message:s
  metadata!:ObjectMeta reason:s related:ObjectReference reportingComponent:s reportingInstance:s series:*
  source:EventSource type:s
EventSource component:s host:s
ObjectReference apiVersion:s fieldPath:s kind:s name:s namespace:s resourceVersion:s uid:s
ResourceQuota metadata@1:ObjectMeta spec@2:ResourceQuotaSpec status:*
PersistentVolumeClaim metadata:ObjectMeta spec:PersistentVolumeClaimSpec status:*
PersistentVolumeClaimSpec accessModes:[s] dataSource:* resources:ResourceRequirements selector:LabelSelector
  storageClassName:s volumeMode:s volumeName:s
PersistentVolumeClaimVolumeSource claimName!:s readOnly:b
ResourceQuotaSpec hard@1:{q} scopeSelector:* scopes:[s]
Service metadata@1:ObjectMeta spec@2:ServiceSpec status:*
ServiceSpec allocateLoadBalancerNodePorts:b clusterIP@3:s clusterIPs:[s] externalIPs:[s] externalName@10:s
  externalTrafficPolicy:s healthCheckNodePort:i ipFamilies:[s] ipFamilyPolicy:s loadBalancerIP:s
  loadBalancerSourceRanges:[s] ports@1:[ServicePort/port] publishNotReadyAddresses:b selector@2:{s}
  sessionAffinity@7:s sessionAffinityConfig:* topologyKeys:[s] type@4:s
ServicePort appProtocol:s name@1:s nodePort:i port!@3:i protocol@2:s targetPort@4:x
Pod metadata:ObjectMeta spec:PodSpec status:*
PodSpec activeDeadlineSeconds:i affinity:* automountServiceAccountToken:b containers!:[Container/name]
  dnsConfig:* dnsPolicy:s enableServiceLinks:b ephemeralContainers:[*/name] hostAliases:[*/ip] hostIPC:b
  hostNetwork:b hostPID:b hostname:s imagePullSecrets:[*/name] initContainers:[Container/name] nodeName:s
  nodeSelector:{s} overhead:{q} preemptionPolicy:s priority:i priorityClassName:s readinessGates:[*]
  restartPolicy:s runtimeClassName:s schedulerName:s securityContext:PodSecurityContext serviceAccount:s
  serviceAccountName:s setHostnameAsFQDN:b shareProcessNamespace:b subdomain:s terminationGracePeriodSeconds:i
  tolerations:[*] topologySpreadConstraints:[*/topologyKey] volumes:[Volume/name]
PodSecurityContext fsGroup:i fsGroupChangePolicy:s runAsGroup:i runAsNonRoot:b runAsUser:i seLinuxOptions:*
  seccompProfile:SeccompProfile supplementalGroups:[i] sysctls:[*] windowsOptions:*
SeccompProfile localhostProfile:s type!:s
Container args:[s] command:[s] env:[EnvVar/name] envFrom:[*] image:s imagePullPolicy:s lifecycle:*
  livenessProbe:Probe name!:s ports:[ContainerPort/containerPort] readinessProbe:Probe
  resources:ResourceRequirements securityContext:SecurityContext startupProbe:Probe stdin:b stdinOnce:b
  terminationMessagePath:s terminationMessagePolicy:s tty:b volumeDevices:[*/devicePath]
  volumeMounts:[VolumeMount/mountPath] workingDir:s
EnvVar name!:s value:s valueFrom:EnvVarSource
EnvVarSource configMapKeyRef:KeySelector fieldRef:* resourceFieldRef:* secretKeyRef:KeySelector
KeySelector key!:s name:s optional:b
ContainerPort containerPort!:i hostIP:s hostPort:i name:s protocol:s
Probe exec:ExecAction failureThreshold:i httpGet:* initialDelaySeconds:i periodSeconds:i successThreshold:i
  tcpSocket:TCPSocketAction timeoutSeconds:i
ExecAction command:[s]
TCPSocketAction host:s port!:x
ResourceRequirements limits:{q} requests:{q}
SecurityContext allowPrivilegeEscalation:b capabilities:Capabilities privileged:b procMount:s
  readOnlyRootFilesystem:b runAsGroup:i runAsNonRoot:b runAsUser:i seLinuxOptions:*
  seccompProfile:SeccompProfile windowsOptions:*
Capabilities add:[s] drop:[s]
VolumeMount mountPath!:s mountPropagation:s name!:s readOnly:b subPath:s subPathExpr:s
Volume awsElasticBlockStore:* azureDisk:* azureFile:* cephfs:* cinder:* configMap:ConfigMapVolumeSource csi:*
  downwardAPI:* emptyDir:EmptyDirVolumeSource ephemeral:* fc:* flexVolume:* flocker:* gcePersistentDisk:*
  gitRepo:* glusterfs:* hostPath:* iscsi:* name!:s nfs:*
  persistentVolumeClaim:PersistentVolumeClaimVolumeSource photonPersistentDisk:* portworxVolume:* projected:*
  quobyte:* rbd:* scaleIO:* secret:SecretVolumeSource storageos:* vsphereVolume:*
ConfigMapVolumeSource defaultMode:i items:[KeyToPath] name:s optional:b
SecretVolumeSource defaultMode:i items:[KeyToPath] optional:b secretName:s
EmptyDirVolumeSource medium:s sizeLimit:q
KeyToPath key!:s mode:i path!:s
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
    if _type.lower() + "s" in KINDS or _type == "SelfSubjectAccessReview":
        SHAPES[_type].update(apiVersion="s", kind="s")

# What is filled in where nothing is given.
DEFAULTS: dict[str, Object] = {
    "Namespace": {"spec": {}},
    "NamespaceSpec": {"finalizers": ["kubernetes"]},
    "Secret": {"type": "Opaque"},
    "Event": {"eventTime": None, "reportingComponent": "", "reportingInstance": "", "source": {}},
    "Lease": {"spec": {}},
    "ResourceQuota": {"spec": {}, "status": {}},
    "Service": {"spec": {}, "status": {"loadBalancer": {}}},
    "ServiceSpec": {"sessionAffinity": "None", "type": "ClusterIP"},
    "ServicePort": {"protocol": "TCP"},
    "PersistentVolumeClaim": {"status": {"phase": "Bound"}},
    "PersistentVolumeClaimSpec": {"volumeMode": "Filesystem"},
    "Pod": {"spec": {}},
    "PodSpec": {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {},
                "terminationGracePeriodSeconds": 30},
    "Container": {"resources": {}, "terminationMessagePath": "/dev/termination-log",
                  "terminationMessagePolicy": "File"},
    "ContainerPort": {"protocol": "TCP"},
    "Probe": {"failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1},
    "ConfigMapVolumeSource": {"defaultMode": 0o644},
    "SecretVolumeSource": {"defaultMode": 0o644},
}
