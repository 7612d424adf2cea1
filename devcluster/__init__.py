"""A Kubernetes API in one process, for trying and testing without a cluster; its node runs its pods' MariaDB.

    python -m devcluster [--port N] [--state DIR] [--hollow]

prints `export KUBECONFIG=...` once it serves, and ends on Ctrl-C, SIGTERM or SIGHUP, leaving neither a
process nor a file (but for a --state that was given). It speaks TLS on 127.0.0.1 with any kubectl from 1.20
on, in the words of a Kubernetes 1.20. The kubeconfig has two contexts: `admin` may do anything, `nobody` only
look what kinds there are.

A pod whose image is called after mariadb or mysql is run, if there is a `mariadbd`, with this machine's
programs: its command and arguments, or the image's entry script, whose steps docker-entrypoint.sh takes;
environment, Secret references, volumes, probes and restarts as a kubelet has them. It listens on an address
of its own, on loopback, of a range that no other dev cluster on this machine has; connections to its
Service's are led there. In its commands, and in *.sh files of a ConfigMap, 127.0.0.1 stands for that address,
and a mount path for the folder that is mounted there. Every other pod, and with --hollow or without a
mariadbd every pod, is hollow: nothing runs, it is ready after a second, and a Warning event says why. One
whose image is "never-ready" stays in ImagePullBackOff.

    module         holds
    kinds          what there is, and what it looks like
    errors         the API's Status objects
    objects        decoding, checking, selecting, patching
    store          every object, and every change so far
    printing       tables for kubectl
    openapi        what kubectl validates with
    http           the API's paths, lists and watches; the faults
    controllers    namespaces, quotas
    services       connections to a Service
    addresses      a range of loopback for pods and Services
    node           the pods
    container      a pod's process, and what it finds
    __main__       the command line

    thread             waits for                        bounded by
    one a connection   its client, the store's changes  HANDSHAKE_SECONDS, IDLE_SECONDS, timeoutSeconds
    controllers        the store's changes              nothing
    one a pod          its process, its next probe      the probes' timeoutSeconds, the pod's grace period
    proxy              connections to Services          their clients

The admin orders faults, which hold until others are ordered: what is not named ends, and {} heals all.

    echo '{"latency_seconds": 2, "errors": 5}' | kubectl create --raw /devcluster/faults -f -

    latency_seconds   every answer comes so much later
    errors            so many requests under /api and /apis are answered 500
    drop_connections  true: every connection ends with its next request, which gets no answer
    silence_watches   true: watches stay open and say nothing, no bookmarks either
    end_watches       true, once: every open watch ends
    expire_watches    true, once: the history is lost, and watches from where it was get 410 Gone
    never_ready       a pattern: the pods of these names are not ready
    room              the node takes no more than so many pods, and those that are new wait, Unschedulable
    kill_pods         a pattern, once: the containers of the pods of these names are killed with SIGKILL
    oom_pods          likewise, for want of memory
    evict_pods        a pattern, once: these pods are evicted, and have Failed
    move_pods         a pattern, once: these pods get another address, and their containers start anew

Unlike a real cluster: there are no other kinds than those of KINDS and no subresources but a pod's log; no
service accounts, endpoints, owners, finalizers, managedFields, annotations for seccomp, JSON patch or
server-side apply. Objects end with the process. Only what would be nonsense in a name, a label, a Lease, a
Service or a Pod is Invalid. A claim is bound from the start, to a folder that goes with it at once. Fields
whose shape is * are taken as they come; OpenAPI has no descriptions for `kubectl explain`. A pod has no
token, runs one container and no init containers, and has no limits of memory, CPU or disk, but for that of an
emptyDir in memory, which root alone can mount.
"""
