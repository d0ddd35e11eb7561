"""What a manifest may say: the fields of KubeRay 1.6's RayCluster and RayJob, and of the pods in them.

Own words after KubeRay's API reference (ray.io/v1) and Kubernetes' (v1); of the pods only what deploy/ uses.
An unknown field is a mistake: an API server would drop or refuse it.
"""

from __future__ import annotations

from typing import Any

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
WORDS = {"type": "object", "additionalProperties": TEXT}
NAMES = {"type": "array", "items": TEXT}


def fields(*required: str, **known: Any) -> dict[str, Any]:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": known,
        "required": list(required),
        "additionalProperties": False,
    }


def list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


METADATA = fields(name=TEXT, namespace=TEXT, labels=WORDS, annotations=WORDS)
RESOURCES = fields(requests=WORDS, limits=WORDS)
SECCOMP = fields("type", type=one_of("RuntimeDefault", "Localhost", "Unconfined"))
CONTAINER_SECURITY = fields(allowPrivilegeEscalation=FLAG, capabilities=fields(drop=NAMES), runAsNonRoot=FLAG)
KEY = fields("name", "key", name=TEXT, key=TEXT, optional=FLAG)
ENV = fields("name", name=TEXT, value=TEXT, valueFrom=fields(secretKeyRef=KEY, configMapKeyRef=KEY))
ENV_FROM = fields(secretRef=fields("name", name=TEXT, optional=FLAG))
PORT = fields("name", "containerPort", name=TEXT, containerPort=NUMBER)
MOUNT = fields("name", "mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG)
CONTAINER = fields(
    *("name", "image", "resources", "securityContext"),
    name=TEXT,
    image=TEXT,
    ports=list_of(PORT),
    env=list_of(ENV),
    envFrom=list_of(ENV_FROM),
    resources=RESOURCES,
    securityContext=CONTAINER_SECURITY,
    volumeMounts=list_of(MOUNT),
)
VOLUME = fields(
    "name",
    name=TEXT,
    emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=TEXT),
    persistentVolumeClaim=fields("claimName", claimName=TEXT),
    secret=fields("secretName", secretName=TEXT, defaultMode=NUMBER),
)
TOLERATION = fields(
    key=TEXT,
    operator=one_of("Exists", "Equal"),
    value=TEXT,
    effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
)
POD = fields(
    *("containers", "restartPolicy", "securityContext"),
    containers=list_of(CONTAINER),
    volumes=list_of(VOLUME),
    tolerations=list_of(TOLERATION),
    restartPolicy=one_of("Never", "OnFailure", "Always"),
    terminationGracePeriodSeconds=NUMBER,
    automountServiceAccountToken=FLAG,
    securityContext=fields(
        runAsNonRoot=FLAG,
        runAsUser=NUMBER,
        runAsGroup=NUMBER,
        fsGroup=NUMBER,
        fsGroupChangePolicy=one_of("OnRootMismatch", "Always"),
        seccompProfile=SECCOMP,
    ),
)
TEMPLATE = fields("spec", metadata=METADATA, spec=POD)

AUTOSCALER = fields(
    version=one_of("v1", "v2"),
    idleTimeoutSeconds=NUMBER,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    resources=RESOURCES,
    securityContext=CONTAINER_SECURITY,
    image=TEXT,
    env=list_of(ENV),
    envFrom=list_of(ENV_FROM),
    volumeMounts=list_of(MOUNT),
)
HEAD = fields(
    *("rayStartParams", "template"),
    rayStartParams=WORDS,
    template=TEMPLATE,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    enableIngress=FLAG,
    headService={"type": "object"},
    labels=WORDS,
    resources=WORDS,
)
WORKERS = fields(
    *("groupName", "template", "minReplicas", "maxReplicas"),
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    numOfHosts=NUMBER,
    idleTimeoutSeconds=NUMBER,
    rayStartParams=WORDS,
    template=TEMPLATE,
    labels=WORDS,
    resources=WORDS,
    suspend=FLAG,
    scaleStrategy=fields(workersToDelete=NAMES),
)
CLUSTER_SPEC = fields(
    *("rayVersion", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    authOptions=fields(mode=one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=FLAG),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=HEAD,
    workerGroupSpecs=list_of(WORKERS),
    headServiceAnnotations=WORDS,
    gcsFaultToleranceOptions={"type": "object"},
    managedBy=TEXT,
    suspend=FLAG,
    upgradeStrategy=fields(type=one_of("Recreate", "None")),
)
JOB_SPEC = fields(
    *("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    rayClusterSpec=CLUSTER_SPEC,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterPodTemplate=TEMPLATE,
    submitterConfig=fields(backoffLimit=NUMBER),
    backoffLimit=NUMBER,
    activeDeadlineSeconds=NUMBER,
    preRunningDeadlineSeconds=NUMBER,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NUMBER,
    suspend=FLAG,
    jobId=TEXT,
    managedBy=TEXT,
    metadata=WORDS,
    runtimeEnvYAML=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT,
    clusterSelector=WORDS,
    deletionStrategy={"type": "object"},
)


def manifest(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return fields(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=METADATA,
        spec=spec,
    )


RAY_CLUSTER, RAY_JOB = manifest("RayCluster", CLUSTER_SPEC), manifest("RayJob", JOB_SPEC)
