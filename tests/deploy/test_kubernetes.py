"""The Kubernetes objects: schemas of what Kubernetes, KubeRay and Ray Serve know, and what refers to what."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from actors.cluster.cluster import Node, check_application
from serving.ray_serve import settings_of
from tests.kit.deploy_files import DEPLOY, documents, run_tool

_KUBERNETES = DEPLOY / "kubernetes"
_BASE = _KUBERNETES / "base"
_OBJECTS: list[dict[str, Any]] = [
    document
    for path in sorted(_BASE.glob("*.yaml"))
    for document in documents(path)
    if path.name != "kustomization.yaml"
]
_BY_KIND = {document["kind"]: document for document in _OBJECTS}
_RAY_SERVICE = _BY_KIND["RayService"]
_HEAD = _RAY_SERVICE["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
_PATCHES: dict[str, list[dict[str, Any]]] = {
    name: documents(_KUBERNETES / "overlays" / name / "rayservice.yaml")[0] for name in ("gpu", "fleet")
}


def _patched(overlay: str, path: str) -> Any:
    """What an overlay puts at a path."""
    (value,) = (operation["value"] for operation in _PATCHES[overlay] if operation["path"] == path)
    return value


(_WORKERS,) = _patched("fleet", "/spec/rayClusterConfig/workerGroupSpecs")
_SERVE_CONFIGS = {
    "RayService": yaml.safe_load(_RAY_SERVICE["spec"]["serveConfigV2"]),
    "fleet": yaml.safe_load(_patched("fleet", "/spec/serveConfigV2")),
    "serve.yaml": documents(DEPLOY / "ray" / "serve.yaml")[0],
}


@pytest.mark.parametrize(
    "document", _OBJECTS, ids=lambda document: f"{document['kind']}/{document['metadata']['name']}"
)
def test_an_object_has_kubernetes_schema(document: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not installed (osd[deploy])")
    if document["apiVersion"].startswith("ray.io/"):  # its pod is one of Kubernetes' own kinds
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "head"}, "spec": _HEAD["spec"]}
    kubernetes_validate.validate(document, "1.33", strict=True)


def test_a_worker_has_kubernetes_schema() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not installed (osd[deploy])")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, "spec": _WORKERS["template"]["spec"]}
    kubernetes_validate.validate(pod, "1.33", strict=True)


def _closed(schema: Any) -> Any:
    """A CRD's schema as the API server reads it: fields that it does not name are refused."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(one) for name, one in schema.items()}
    if closed.get("x-kubernetes-int-or-string"):
        closed = {"type": ["integer", "string"]}
    if "properties" in closed and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def _ray_service_schema(crd: str) -> Any:
    """The JSON schema in KubeRay's definition of a RayService."""
    (definition,) = documents(Path(crd))
    (schema,) = (one["schema"]["openAPIV3Schema"] for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = _closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def test_the_ray_service_has_kuberays_schema() -> None:
    crd = os.environ.get("KUBERAY_RAYSERVICE_CRD", "")
    if not crd:
        pytest.skip("KUBERAY_RAYSERVICE_CRD names no file (KubeRay's ray.io_rayservices.yaml)")
    jsonschema.Draft7Validator(_ray_service_schema(crd)).validate(_RAY_SERVICE)


@pytest.mark.parametrize("name", _SERVE_CONFIGS)
def test_ray_serve_takes_the_configuration(name: str) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="not installed (osd[serve])", exc_type=ImportError)
    (application,) = schema.ServeDeploySchema.model_validate(_SERVE_CONFIGS[name]).applications
    assert application.import_path == "serving.ray_serve:build"


@pytest.mark.parametrize("name", _SERVE_CONFIGS)
def test_osd_takes_the_arguments(name: str) -> None:
    (application,) = _SERVE_CONFIGS[name]["applications"]
    config = settings_of(application["args"])
    assert config.target.model == "smollm2"
    assert config.cluster.max_engines == (3 if name == "fleet" else 1)


def test_the_fleets_parts_have_nodes() -> None:
    """Ray's resources as KubeRay gives them to the head and to workers."""
    (application,) = _SERVE_CONFIGS["fleet"]["applications"]
    front = json.loads(json.loads(_patched("fleet", "/spec/rayClusterConfig/headGroupSpec/rayStartParams/resources")))
    nodes = [
        Node("10.0.0.1", 0, 2, {"CPU": 2, **front}),
        Node(
            "10.0.0.2",
            1,
            2,
            {
                "CPU": 2,
                "GPU": int(_WORKERS["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]),
            },
        ),
    ]
    redis = {"outcomes": {"redis_url": "redis://redis:6379/0"}}
    check_application(settings_of({**application["args"], **redis}), nodes)
    assert _WORKERS["maxReplicas"] == application["args"]["cluster"]["max_engines"]


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_a_kustomization_names_what_is_there(path: Path) -> None:
    (kustomization,) = documents(path)
    named = [
        *kustomization.get("resources", []),
        *(patch["path"] for patch in kustomization.get("patches", [])),
        *(file for generator in kustomization.get("configMapGenerator", []) for file in generator["files"]),
    ]
    assert named
    for name in named:
        there = path.parent / name
        assert (there / "kustomization.yaml").is_file() if there.is_dir() else there.is_file(), name


def test_every_file_of_the_base_is_named() -> None:
    (kustomization,) = documents(_BASE / "kustomization.yaml")
    files = {path.name for path in _BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == {name for name in kustomization["resources"] if "/" not in name}


def _follow(document: Any, pointer: str) -> Any:
    """The parent of what a JSON pointer names, and its last step."""
    *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    for step in steps:
        document = document[int(step) if isinstance(document, list) else step]
    return document, last


@pytest.mark.parametrize("overlay", _PATCHES)
def test_an_overlay_patches_what_the_base_has(overlay: str) -> None:
    for operation in _PATCHES[overlay]:
        parent, last = _follow(_RAY_SERVICE, operation["path"])
        assert last == "-" if isinstance(parent, list) else isinstance(parent, dict)


@pytest.fixture(scope="module", params=["cpu", "gpu", "fleet"])
def built(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    """An overlay's name, and the objects that `kubectl apply -k` would send."""
    overlay: str = request.param
    text = run_tool("kubectl", "kustomize", _KUBERNETES / "overlays" / overlay, had_from="Kubernetes")
    return overlay, list(yaml.safe_load_all(text))


def test_kubectl_builds_an_overlay(built: tuple[str, list[dict[str, Any]]]) -> None:
    overlay, objects = built
    kinds = ["ConfigMap", "Namespace", "PersistentVolumeClaim", "RayService", "Service", "StatefulSet"]
    assert sorted(one["kind"] for one in objects) == kinds
    by_kind = {one["kind"]: one for one in objects}
    assert {one["metadata"].get("namespace") for kind, one in by_kind.items() if kind != "Namespace"} == {"osd"}
    cluster = by_kind["RayService"]["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    assert len(groups) == (2 if overlay == "fleet" else 1)
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert images == {"registry.example/osd:cpu" if overlay == "cpu" else "registry.example/osd:cuda"}
    volumes = by_kind["StatefulSet"]["spec"]["template"]["spec"]["volumes"]
    assert by_kind["ConfigMap"]["metadata"]["name"] in {one.get("configMap", {}).get("name") for one in volumes}


def test_what_kubectl_builds_has_the_schemas(built: tuple[str, list[dict[str, Any]]]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not installed (osd[deploy])")
    for one in built[1]:
        if one["kind"] != "RayService":
            kubernetes_validate.validate(one, "1.33", strict=True)
        elif crd := os.environ.get("KUBERAY_RAYSERVICE_CRD", ""):
            jsonschema.Draft7Validator(_ray_service_schema(crd)).validate(one)


def test_secrets_volumes_and_services_fit_together() -> None:
    text = "\n".join(path.read_text() for path in _BASE.glob("*.yaml"))
    claim = _BY_KIND["PersistentVolumeClaim"]["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in _HEAD["spec"]["volumes"]}
    assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == claim
    (container,) = _HEAD["spec"]["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    redis = _BY_KIND["Service"]
    assert redis["spec"]["selector"] == _BY_KIND["StatefulSet"]["spec"]["selector"]["matchLabels"]
    assert f"{redis['metadata']['name']}:6379" in text
    guide = (DEPLOY.parent / "docs" / "deployment.md").read_text()
    for secret in ("osd-redis", "osd-admin"):
        assert f"name: {secret}" in text and f"create secret generic {secret}" in guide
