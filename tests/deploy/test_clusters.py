"""``ray up`` and KubeRay: the files fit their schemas, and every command, flag, file and resource
in them is known.
"""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.deploy import kuberay
from worldloom_dist.job import job_words
from worldloom_dist.run.cli import parse

ROOT = Path(__file__).parents[2]
UP = sorted((ROOT / "deploy/ray").glob("*.yml"))
MANIFESTS = [ROOT / "deploy/kuberay/raycluster.yml", ROOT / "deploy/kuberay/rayjob.yml"]
MARKS = {"worldloom_learner", "worldloom_replay", "worldloom_worker"}


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def ask_ray(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )


@pytest.fixture(scope="module")
def ray_start_options() -> set[str]:
    done = ask_ray(
        "import json; from ray.scripts.scripts import start as s; "
        "print(json.dumps([o for p in s.params for o in p.opts]))"
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


VALIDATE = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
for path in sys.argv[1:]:
    validate_config(prepare_config(yaml.safe_load(open(path))))
"""


def test_there_is_one_file_for_each_place():
    assert [path.stem for path in UP] == ["aws", "gcp", "local"]


def test_ray_takes_the_files_and_refuses_a_misspelt_key(tmp_path):
    done = ask_ray(VALIDATE, *map(str, UP))
    assert done.returncode == 0, done.stderr
    bad = tmp_path / "bad.yml"
    bad.write_text(
        (ROOT / "deploy/ray/aws.yml").read_text().replace("setup_commands:", "setup_comands:")
    )
    assert "setup_comands" in ask_ray(VALIDATE, str(bad)).stderr


@pytest.mark.parametrize("path", UP, ids=lambda path: path.stem)
def test_ray_is_started_with_options_that_it_has_and_with_the_token(path, ray_start_options):
    config = load(path)
    starts = [
        line
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for line in config[key]
        if "ray start" in line
    ]
    assert len(starts) == 2
    for line in starts:
        assert {
            word.partition("=")[0] for word in shlex.split(line) if word.startswith("--")
        } <= ray_start_options
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert any("RAY_AUTH_MODE=token" in line for line in config["setup_commands"])


@pytest.mark.parametrize("path", UP[:2], ids=lambda path: path.stem)
def test_what_must_last_is_on_demand_and_workers_are_on_spot(path):
    config = load(path)
    head, workers = (config["available_node_types"][name] for name in ("head", "workers"))
    assert set(head["resources"]) - {"CPU", "GPU"} == {"worldloom_learner", "worldloom_replay"}
    assert set(workers["resources"]) - {"CPU"} == {"worldloom_worker"}
    assert workers["min_workers"] >= 1, (
        "the run learns from a living node that workers have nodes of their own"
    )
    assert "spot" in json.dumps(workers["node_config"]).lower()
    assert "spot" not in json.dumps(head["node_config"]).lower()


@pytest.mark.parametrize("path", UP, ids=lambda path: path.stem)
def test_what_is_installed_exists(path):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    text = path.read_text()
    (named,) = re.findall(r"worldloom-dist\[([\w,]+)\]", text)
    assert set(named.split(",")) <= set(extras)
    assert load(path)["file_mounts"]["~/worldloom"] == "."
    assert "~/worldloom/constraints.txt" in text
    assert (ROOT / "constraints.txt").exists()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_have_known_fields_of_the_right_type_only(path):
    manifest = load(path)
    schema = kuberay.ours(manifest["kind"])
    jsonschema.validate(manifest, schema)
    wrong = copy.deepcopy(manifest)
    cluster = wrong["spec"].get("rayClusterSpec", wrong["spec"])
    cluster["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_the_operators_own_schema(path):
    folder = os.environ.get("WORLDLOOM_KUBERAY_CRDS")
    if folder is None:
        pytest.skip(
            "set WORLDLOOM_KUBERAY_CRDS to the operator's CRDs: "
            "helm-chart/kuberay-operator/crds of ray-project/kuberay"
        )
    manifest = load(path)
    schema = kuberay.official(Path(folder), manifest["kind"])
    jsonschema.validate(manifest, schema)
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["rayClusterSpecs"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_are_not_root_mount_what_they_have_and_mark_their_nodes(path, ray_start_options):
    spec = load(path)["spec"]
    spec = spec.get("rayClusterSpec", spec)
    assert spec["authOptions"]["mode"] == "token"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    found = set()
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {
            mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]
        } == volumes
        assert {"--" + name for name in group["rayStartParams"]} <= ray_start_options
        found |= set(json.loads(json.loads(group["rayStartParams"]["resources"])))
    assert found == MARKS
    claim = load(ROOT / "deploy/kuberay/runs.yml")["metadata"]["name"]
    assert {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in groups[0]["template"]["spec"]["volumes"]
        if len(volume) > 1 and "persistentVolumeClaim" in volume
    } == {claim}


def test_the_ray_job_is_a_command_line_that_the_launcher_takes(monkeypatch):
    monkeypatch.setenv("WORLDLOOM_RUNS", "/nowhere/runs")
    words = shlex.split(load(MANIFESTS[1])["spec"]["entrypoint"])
    assert words[:5] == ["python", "-m", "worldloom_dist.job", "--job-id", "run-1"]
    config = parse(job_words(words[6:], words[4]))
    assert config.if_exists == "resume"
    assert config.address == "auto"
    assert config.metrics_port == 9464
    pod = load(MANIFESTS[1])["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (secret,) = [volume for volume in pod["volumes"] if "secret" in volume]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == secret["name"]]
    assert config.metrics_auth_file == Path(mount["mountPath"]) / "token"
    assert not secret["secret"]["defaultMode"] & 0o007, "read_secret refuses what all users read"
    assert config.placement.wait_s > 0, "the cluster grows"


def test_both_manifests_describe_the_same_cluster():
    cluster, job = (load(path) for path in MANIFESTS)
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]
