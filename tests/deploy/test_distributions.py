"""Three distributions are built from one repository; a checkout installs as one."""

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import worldloom
import worldloom_client

ROOT = Path(__file__).parents[2]
PARTS = ("worldloom", "worldloom_client")


def project(part: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"]


def test_one_version() -> None:
    assert worldloom.__version__ == worldloom_client.__version__


def test_extras_of_one_name_are_equal() -> None:
    root = project(".")["optional-dependencies"]
    library = project("worldloom")["optional-dependencies"]
    assert library.items() <= root.items()


def test_no_package_is_asked_for_by_two_extras_that_people_name_together() -> None:
    lists = project(".")["optional-dependencies"]
    wanted = [line for extra, lines in lists.items() if extra != "dev" for line in lines]
    packages = [line for line in wanted if not line.startswith("worldloom-dist[")]
    doubled = {line for line in packages if packages.count(line) > 1}
    assert doubled <= {"pillow>=10.4"}  # atari images and pictures both need it


@pytest.mark.parametrize("part", PARTS)
def test_each_part_carries_the_license(part: str) -> None:
    assert (ROOT / part / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_image_is_built_from_every_package() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    sent = (ROOT / ".dockerignore").read_text().split()
    for name in (*PARTS, "worldloom_dist"):
        assert f"COPY {name} {name}\n" in dockerfile
        assert f"!{name}" in sent
    assert "hatch_build.py" in dockerfile
    assert "!hatch_build.py" in sent


def test_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == worldloom.__version__
    assert citation["license"] == "MIT"


def built(source: Path, folder: Path) -> tuple[set[str], list[str], str]:
    """Top-level names of a wheel, what it requires without extras, and its console scripts."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--quiet", "--wheel-dir", str(folder), str(source)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        required = email.message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist") or []
        scripts = [name for name in names if name.endswith("entry_points.txt")]
        text = wheel.read(scripts[0]).decode() if scripts else ""
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert not any("__pycache__" in name for name in names)
    return tops, [line for line in required if "extra ==" not in line], text


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of a release: what an sdist holds is marked by PKG-INFO."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install hatchling")
    folder = tmp_path_factory.mktemp("release")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (packed,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", packed.name], cwd=folder, check=True, timeout=60)
    return next(path for path in folder.iterdir() if path.is_dir())


def test_a_checkout_is_one_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install hatchling")
    tops, required, scripts = built(ROOT, tmp_path)
    assert tops == {*PARTS, "worldloom_dist"}
    assert not any(line.startswith("worldloom") for line in required)
    assert any(line.startswith("torch") for line in required)
    assert "worldloom = worldloom.commands:main" in scripts


@pytest.mark.parametrize("address", ["", "https://example.org/we/worldloom/"])
def test_links_of_the_readme_are_absolute_where_an_address_is_given(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("WORLDLOOM_URL", address)
    built(release, tmp_path)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        text = wheel.read(name).decode()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20
    relative = [link for link in links if not link.startswith(("http", "#"))]
    assert bool(relative) == (not address)
    if address:
        assert "https://example.org/we/worldloom/blob/main/docs/guide/first-run.md" in links
        assert "https://example.org/we/worldloom/raw/main/docs/cup-catch.gif" in links
        for link in links:
            place = link.partition("/main/")[2]
            assert not place or (ROOT / place).exists(), link
    assert ("(https://img.shields.io/pypi/v/worldloom-dist)" in text) == bool(address)
    assert ("Project-URL: Homepage, https://example.org/we/worldloom\n" in text) == bool(address)


def test_a_release_is_three_wheels(release: Path, tmp_path: Path) -> None:
    version = worldloom.__version__
    tops, required, scripts = built(release, tmp_path / "dist")
    assert tops == {"worldloom_dist"}
    assert {f"worldloom=={version}", f"worldloom-client=={version}"} < set(required)
    assert scripts == ""
    tops, required, scripts = built(release / "worldloom", tmp_path / "library")
    assert tops == {"worldloom"}
    assert not any(line.startswith(("ray", "grpcio")) for line in required)
    assert "worldloom = worldloom.commands:main" in scripts
    tops, required, _ = built(release / "worldloom_client", tmp_path / "client")
    assert tops == {"worldloom_client"}
    assert {line.split(">")[0] for line in required} == {"grpcio", "protobuf", "numpy"}


def test_a_release_has_its_tests_and_documents(release: Path) -> None:
    for name in ("tests/docs/test_docs.py", "docs/index.md", "examples", "benchmarks", "Makefile"):
        assert (release / name).exists(), name
    assert not (release / "runs").exists()
