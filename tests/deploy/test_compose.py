"""``docker compose up`` is whole: the file fits the specification, and every path, port, flag and
image in it exists.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from worldloom_dist.metrics.endpoint import read_secret
from worldloom_dist.run.cli import parse
from worldloom_dist.submit import _parser

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def with_defaults(text: str) -> str:
    """``${NAME:-default}`` becomes its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def words(service: str) -> list[str]:
    """The command with every setting at its default."""
    command = [with_defaults(word) for word in SERVICES[service]["command"]]
    if command[:2] != ["sh", "-c"]:
        return command
    environment = {
        name: with_defaults(value) for name, value in SERVICES[service]["environment"].items()
    }
    return shlex.split(
        re.sub(r"\$\$(\w+)", lambda match: environment[match[1]], command[2]).removeprefix("exec ")
    )


@pytest.fixture(scope="module")
def ray_start_options() -> set[str]:
    code = (
        "import json; from ray.scripts.scripts import start; print(json.dumps([o for p "
        "in start.params for o in p.opts]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_files_fit_the_compose_specification():
    files = ["docker-compose.yml", "deploy/compose/gpu.yml"]
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        *files,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_specification_catches_a_misspelt_key(tmp_path):
    (tmp_path / "bad.yml").write_text("services: {a: {image: b, shm_sized: 1gb}}\n")
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(tmp_path / "bad.yml"),
    ]
    assert subprocess.run(command, capture_output=True, timeout=100).returncode == 1


def test_every_file_that_is_mounted_is_in_the_repository():
    mounts = [volume for service in SERVICES.values() for volume in service["volumes"]]
    sources = {mount.split(":")[0] for mount in mounts}
    files = {source for source in sources if source.startswith(".")}
    assert len(files) >= 5
    assert not [source for source in files if not (ROOT / source).exists()]
    assert all(mount.endswith(":ro") for mount in mounts if mount.startswith("."))
    assert sources - files == set(COMPOSE["volumes"])


def test_what_is_published_is_published_on_the_loopback():
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_scrapes_the_port_where_the_run_serves():
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())[
        "scrape_configs"
    ]
    patterns = [
        pattern
        for job in scraped
        for files in job.get("file_sd_configs", ())
        for pattern in files["files"]
    ]
    assert "targets/*.yml" in [pattern.removeprefix("/etc/prometheus/") for pattern in patterns]
    (target,) = yaml.safe_load((ROOT / "deploy/compose/targets/head.yml").read_text())[0]["targets"]
    port = words("train")[words("train").index("--metrics-port") + 1]
    assert target == f"{SERVICES['head']['hostname']}:{port}"
    assert words("train")[words("train").index("--metrics-host") + 1] == "0.0.0.0", (
        "inside the network only: it is not published"
    )


def test_prometheus_has_the_token_that_the_run_asks_for(tmp_path):
    asked = Path(words("train")[words("train").index("--metrics-auth-file") + 1])
    ours = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    alone = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = ours["scrape_configs"]
    shown = job.pop("authorization")["credentials_file"]
    assert ours == alone, "but for the token they are the same"
    volumes = {mount.split(":")[0]: mount.split(":")[1] for mount in mounts("secrets")}
    made = [
        tuple(copy.rsplit(":", 1) for copy in word.split(","))
        for word in SERVICES["secrets"]["command"][2:]
    ]
    ((of_run, run_user), (of_prometheus, prometheus_user)) = next(c for c in made if len(c) == 2)
    assert Path(of_run) == asked
    assert (run_user, prometheus_user) == ("1000", "65534"), "the user of Prometheus in its image"
    for service, path, at_service in (
        ("head", of_run, asked),
        ("prometheus", of_prometheus, Path(shown)),
    ):
        name = next(n for n, place in volumes.items() if Path(path).parent == Path(place))
        seen = next(m for m in mounts(service) if m.startswith(f"{name}:"))
        assert Path(seen.split(":")[1]) / Path(path).name == at_service
        assert seen.endswith(":ro")
    user = os.getuid()
    pair = [f"{tmp_path / name}:{user}" for name in ("a", "b")]
    script = [sys.executable, str(ROOT / "deploy/compose/make_secrets.py"), ",".join(pair)]
    for _ in range(2):
        subprocess.run(script, check=True, timeout=60)
        secrets = {(tmp_path / name).read_text() for name in ("a", "b")}
        assert len(secrets) == 1
        assert len(read_secret(tmp_path / "a")) == 64
        assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
        (tmp_path / "b").unlink()
    (tmp_path / "a").write_text("")  # a start that was cut off
    subprocess.run(script, check=True, timeout=60)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    assert len(read_secret(tmp_path / "a")) == 64


def mounts(service: str) -> list[str]:
    return [mount for mount in SERVICES[service]["volumes"] if ":" in mount]


def test_the_training_job_is_a_command_line_that_both_programs_take():
    command = words("train")
    cut = command.index("--")
    assert command[:3] == ["python", "-m", "worldloom_dist.submit"]
    options = _parser().parse_args(command[3:cut])
    assert options.address == f"http://head:{SERVICES['head']['ports'][0].rsplit(':', 1)[1]}"
    assert options.foreground
    assert options.job_id
    config = parse(command[cut + 1 :])
    cpus = sum(int(with_defaults("${X:-4}")) for _ in range(3))
    assert config.workers * config.placement.worker_cpus + 2.25 <= cpus, (
        "the default run fits on the default cluster"
    )


@pytest.mark.parametrize("service", ["head", "node"])
def test_ray_knows_the_options_that_it_is_started_with(service, ray_start_options):
    command = words(service)
    assert command[:2] == ["ray", "start"]
    assert {word.partition("=")[0] for word in command[2:]} <= ray_start_options


def test_images_have_versions_and_ours_are_targets_of_the_dockerfile():
    stages = re.findall(r"^FROM (\S+) AS (\w+)", DOCKERFILE, re.MULTILINE)
    images = {service["image"] for service in SERVICES.values()}
    assert not [image for image in images if re.search(r":latest$|^[^:]+$", image)]
    assert {stage for base, stage in stages if base == "base"} >= {"cpu", "cuda"}
    assert all(re.search(r":\d", base) for base, _ in stages if base != "base")
    built = {name for name, service in SERVICES.items() if "build" in service}
    assert built == {"secrets"}, "two that build one image at once may fail"
    build = SERVICES["secrets"]["build"]
    assert (ROOT / build["dockerfile"]).exists()
    ours = {service["image"] for service in SERVICES.values() if "worldloom" in service["image"]}
    assert ours == {f"worldloom:{build['target']}"}


def test_with_a_gpu_every_process_has_the_image_that_is_built_for_it():
    overlay = yaml.safe_load((ROOT / "deploy/compose/gpu.yml").read_text())["services"]
    ours = {name for name, one in SERVICES.items() if one["image"] == "worldloom:cpu"}
    assert set(overlay) == ours
    assert {one["image"] for one in overlay.values()} == {"worldloom:cuda"}
    assert {name for name, one in overlay.items() if "build" in one} == {"secrets"}
    assert overlay["secrets"]["build"]["target"] == "cuda"


def test_what_the_dockerfile_copies_exists_and_is_not_ignored():
    shown = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [
        line.split()
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY") and "--from" not in line
    ]
    sources = [word for line in copied for word in line[1:-1] if not word.startswith("--")]
    assert len(sources) >= 6
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in shown, f"{source} is hidden by .dockerignore"


def test_nothing_runs_as_root_but_the_maker_of_secrets_and_no_secret_is_written_down():
    for stage in ("cpu", "cuda"):
        body = re.search(rf" AS {stage}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE)[
            1
        ]
        assert re.findall(r"^USER (\S+)", body, re.MULTILINE) == ["worldloom"]
    assert [name for name, service in SERVICES.items() if "user" in service] == ["secrets"]
    environments = [service.get("environment", {}) for service in SERVICES.values()]
    secret = [
        name
        for environment in environments
        for name in environment
        if re.search("TOKEN|PASSWORD|KEY", name)
    ]
    assert secret
    assert all(name.endswith(("_PATH", "__FILE")) for name in secret)
    assert SERVICES["head"]["environment"]["RAY_AUTH_MODE"] == "token"


def test_secrets_are_made_once_and_are_private(tmp_path):
    script = ROOT / "deploy/compose/make_secrets.py"
    path = tmp_path / "token"
    for _ in range(2):
        subprocess.run(
            [sys.executable, str(script), f"{path}:{os.getuid()}"], check=True, timeout=60
        )
        first = (
            path.read_text()
            if not (tmp_path / "copy").exists()
            else (tmp_path / "copy").read_text()
        )
        (tmp_path / "copy").write_text(first)
    assert path.read_text() == first
    assert len(first) == 64
    assert path.stat().st_mode & 0o777 == 0o600
