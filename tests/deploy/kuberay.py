"""The KubeRay operator's own schemas (its CustomResourceDefinitions), made strict, and a short one
of ours for when they are away.

The operator's schemas are not copied into this repository: ``WORLDLOOM_KUBERAY_CRDS`` names their
folder, ``helm-chart/kuberay-operator/crds`` in the operator's source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI schema as JSON schema: unknown keys are errors, and quantities may be numbers or
    text.
    """
    made = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key != "description"
    }
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    for key in ("properties",):
        if key in made:
            made[key] = {name: strict(value) for name, value in made[key].items()}
            if not schema.get("x-kubernetes-preserve-unknown-fields"):
                made.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = strict(made[key])
    return made


def official(folder: Path, kind: str) -> dict[str, Any]:
    """The strict schema of ``RayCluster`` or ``RayJob``, version v1."""
    crd = yaml.safe_load((folder / f"ray.io_{kind.lower()}s.yaml").read_text())
    version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
    made = strict(version["schema"]["openAPIV3Schema"])
    made["properties"]["metadata"] = {"type": "object"}
    return made


def closed(required: tuple[str, ...] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    """An object with exactly these keys."""
    names = {name.rstrip("_"): value for name, value in properties.items()}
    return {
        "type": "object",
        "properties": names,
        "additionalProperties": False,
        "required": list(required),
    }


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


TABLE = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}
CONTAINER = closed(
    ("name", "image", "resources"),
    name=TEXT,
    image=TEXT,
    env=many(closed(("name", "value"), name=TEXT, value=TEXT)),
    ports=many(
        closed(("containerPort",), containerPort=COUNT, name={"type": "string", "maxLength": 15})
    ),
    resources=closed(("requests", "limits"), requests=QUANTITIES, limits=QUANTITIES),
    securityContext=closed(allowPrivilegeEscalation=FLAG, capabilities=closed(drop=many(TEXT))),
    volumeMounts=many(closed(("name", "mountPath"), name=TEXT, mountPath=TEXT, readOnly=FLAG)),
)
VOLUME = closed(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=closed(("claimName",), claimName=TEXT),
    emptyDir=closed(medium=TEXT, sizeLimit=TEXT),
    secret=closed(("secretName", "defaultMode"), secretName=TEXT, defaultMode=COUNT),
)
POD = closed(
    ("containers",),
    securityContext=closed(runAsNonRoot=FLAG, runAsUser=COUNT, fsGroup=COUNT),
    tolerations=many(closed(key=TEXT, operator={"enum": ["Exists", "Equal"]})),
    terminationGracePeriodSeconds=COUNT,
    containers=many(CONTAINER),
    volumes=many(VOLUME),
)
TEMPLATE = closed(("spec",), metadata=closed(annotations=TABLE), spec=POD)
CLUSTER = closed(
    ("rayVersion", "headGroupSpec"),
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(
        idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    authOptions=closed(
        ("mode", "secretName"), mode={"enum": ["token", "disabled"]}, secretName=TEXT
    ),
    headGroupSpec=closed(("rayStartParams", "template"), rayStartParams=TABLE, template=TEMPLATE),
    workerGroupSpecs=many(
        closed(
            ("groupName", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TABLE,
            template=TEMPLATE,
        )
    ),
)
JOB = closed(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    runtimeEnvYAML=TEXT,
    rayClusterSpec=CLUSTER,
)
METADATA = closed(("name",), name={"type": "string", "pattern": "^[a-z0-9-]{1,63}$"}, labels=TABLE)


def ours(kind: str) -> dict[str, Any]:
    """The fields that our manifests use, and no others, with their types."""
    spec = {"RayCluster": CLUSTER, "RayJob": JOB}[kind]
    fixed = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}}
    return closed(("apiVersion", "kind", "metadata", "spec"), **fixed, metadata=METADATA, spec=spec)
