"""The fields that the files for KubeRay may have: those of KubeRay 1.7's resources, and the used parts of a pod.

A misspelt field is no error to a Kubernetes server that prunes: it is dropped. So each is compared with these names.
"""

from typing import Any

# A pod's fields as far as the files use them; a new one is added here with its type, from Kubernetes' reference.
_LABELS = {"*": str}
_RESOURCES = {"requests": {"*": str}, "limits": {"*": str}}
_CONTAINER_SECURITY = {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}}
_PROBE = {
    "httpGet": {"path": str, "port": int},
    "periodSeconds": int,
    "timeoutSeconds": int,
    "failureThreshold": int,
}
_SECRET = {"secretKeyRef": {"name": str, "key": str, "optional": bool}}
_CONTAINER = {
    "name": str,
    "image": str,
    "ports": [{"name": str, "containerPort": int}],
    "env": [{"name": str, "value": str, "valueFrom": _SECRET}],
    "resources": _RESOURCES,
    "securityContext": _CONTAINER_SECURITY,
    "startupProbe": _PROBE,
    "readinessProbe": _PROBE,
    "livenessProbe": _PROBE,
    "volumeMounts": [{"name": str, "mountPath": str}],
}
_POD = {
    "restartPolicy": str,
    "serviceAccountName": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": _LABELS,
    "tolerations": [{"key": str, "operator": str, "effect": str}],
    "securityContext": {
        "runAsNonRoot": bool,
        "runAsUser": int,
        "runAsGroup": int,
        "fsGroup": int,
        "seccompProfile": {"type": str},
    },
    "containers": [_CONTAINER],
    "volumes": [{"name": str, "emptyDir": {"sizeLimit": str, "medium": str}}],
}
_TEMPLATE = {"metadata": {"labels": _LABELS, "annotations": _LABELS}, "spec": _POD}

_HEAD = {
    "template": _TEMPLATE,
    "headService": dict,
    "enableIngress": bool,
    "resources": {"*": str},
    "labels": _LABELS,
    "rayStartParams": {"*": str},
    "serviceType": str,
}
_WORKERS = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "idleTimeoutSeconds": int,
    "priority": int,
    "resources": {"*": str},
    "labels": _LABELS,
    "rayStartParams": {"*": str},
    "template": _TEMPLATE,
    "numOfHosts": int,
}
RAY_CLUSTER = {
    "upgradeStrategy": {"type": str},
    "authOptions": {"mode": str, "secretName": str, "enableK8sTokenAuth": bool},
    "suspend": bool,
    "managedBy": str,
    "autoscalerOptions": {
        "resources": _RESOURCES,
        "image": str,
        "imagePullPolicy": str,
        "securityContext": _CONTAINER_SECURITY,
        "idleTimeoutSeconds": int,
        "upscalingMode": str,
        "version": str,
        "env": _CONTAINER["env"],
    },
    "headServiceAnnotations": _LABELS,
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": {
        "redisAddress": str,
        "redisUsername": {"valueFrom": _SECRET},
        "redisPassword": {"valueFrom": _SECRET},
        "externalStorageNamespace": str,
    },
    "headGroupSpec": _HEAD,
    "rayVersion": str,
    "workerGroupSpecs": [_WORKERS],
}
RAY_JOB = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "rayClusterSpec": RAY_CLUSTER,
    "submitterPodTemplate": _TEMPLATE,
    "metadata": {"*": str},
    "clusterSelector": _LABELS,
    "submitterConfig": {"backoffLimit": int},
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "jobId": str,
    "submissionMode": str,
    "entrypointResources": str,
    "entrypointNumCpus": (int, float),
    "entrypointNumGpus": (int, float),
    "ttlSecondsAfterFinished": int,
    "shutdownAfterJobFinishes": bool,
    "suspend": bool,
}
RAY_SERVICE = {
    "rayClusterDeletionDelaySeconds": int,
    "serveService": dict,
    "upgradeStrategy": {"type": str},
    "serveConfigV2": str,
    "rayClusterConfig": RAY_CLUSTER,
    "excludeHeadPodFromServeSvc": bool,
}
SPECS: dict[str, Any] = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB, "RayService": RAY_SERVICE}


def wrong_fields(value: Any, fields: Any, path: str) -> list[str]:
    """What in a value is not in the fields, or not of their type; empty where all is well."""
    if isinstance(fields, dict):
        if not isinstance(value, dict):
            return [f"{path} is {value!r}, not an object"]
        found = []
        for name, inner in value.items():
            known = fields.get(name, fields.get("*"))
            found += wrong_fields(inner, known, f"{path}.{name}") if known else [f"{path}.{name} is unknown"]
        return found
    if isinstance(fields, list):
        if not isinstance(value, list):
            return [f"{path} is {value!r}, not a list"]
        return [wrong for n, inner in enumerate(value) for wrong in wrong_fields(inner, fields[0], f"{path}[{n}]")]
    fits = isinstance(value, fields) and not (isinstance(value, bool) and fields is not bool)
    return [] if fits else [f"{path} is {value!r}, of another type"]
