"""The doctor names what is wrong with a machine, and the command that helps."""

import importlib.util
import json
import shutil
import subprocess
import types

import pytest

from worldloom_dist import doctor
from worldloom_dist.run import machine
from worldloom_dist.run.machine import Finding, check_machine


@pytest.fixture(autouse=True)
def no_rendering(monkeypatch):
    """The GL probe starts a process; only one test looks at it."""
    monkeypatch.setattr(machine, "gl", lambda: iter([Finding("GL", "ok", "")]))


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_everything_is_checked_and_every_problem_has_a_fix(tmp_path):
    found = by_name(check_machine(tmp_path / "runs"))
    assert {
        "python",
        "worldloom",
        "torch",
        "cuda",
        "ray",
        "GL",
        "ffmpeg",
        "extras",
        "disk",
        "open files",
        "memory",
    } <= set(found)
    assert found["python"].level == found["torch"].level == found["ray"].level == "ok"
    assert all(finding.fix for finding in found.values() if finding.level == "problem")
    assert str(tmp_path) in found["disk"].detail


def test_an_exporter_that_is_missing_is_told_though_a_part_of_it_is_there(tmp_path, monkeypatch):
    real = importlib.util.find_spec

    def find(name, package=None):
        if name == "opentelemetry.exporter.otlp.proto.http":
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr("importlib.util.find_spec", find)
    found = by_name(check_machine(tmp_path / "runs"))["extras"]
    assert found.level == "note"
    assert "otel" in found.detail
    assert "otel" in found.fix


@pytest.mark.parametrize(
    ("patch", "name", "fix"),
    [
        (
            (shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10, total=10**12)),
            "disk",
            "--run-dir",
        ),
        (
            (shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10, total=10**12)),
            "/dev/shm",
            "shm-size",
        ),
        ((machine.resource, "getrlimit", lambda kind: (256, 512)), "open files", "ulimit -n 4096"),
        ((machine.metadata, "version", lambda name: "2.40.0"), "ray", "ray[default,rllib]"),
        ((machine.os, "sysconf", lambda name: 4096), "memory", "4 GB"),
    ],
)
def test_a_sick_machine_is_told_what_helps(tmp_path, monkeypatch, patch, name, fix):
    monkeypatch.setattr(*patch)
    finding = by_name(check_machine(tmp_path))[name]
    assert finding.level == "problem"
    assert fix in finding.fix


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("no such counter")

    monkeypatch.setattr(machine, "ffmpeg", broken)
    found = by_name(check_machine(tmp_path))
    assert "no such counter" in found["broken"].detail
    assert "memory" in found


def test_rendering_is_tried_with_each_backend_in_a_process_of_its_own(monkeypatch):
    monkeypatch.undo()
    tried = []

    def run(command, env, **_):
        tried.append(env["MUJOCO_GL"])
        return types.SimpleNamespace(returncode=0 if env["MUJOCO_GL"] == "osmesa" else 1)

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(subprocess, "run", run)
    (finding,) = machine.gl()
    assert tried == ["egl", "osmesa"]
    assert finding.fix == "export MUJOCO_GL=osmesa"


def test_the_exit_status_says_whether_there_are_problems(monkeypatch, capsys):
    findings = [
        Finding("python", "ok", "3.11"),
        Finding("ffmpeg", "note", "missing", "pip install x"),
    ]
    monkeypatch.setattr(doctor, "check_machine", lambda folder: findings)
    assert doctor.main([]) == 0
    assert "-> pip install x" in capsys.readouterr().out
    findings.append(Finding("disk", "problem", "full", "rm"))
    assert doctor.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["this machine"][2]["fix"] == "rm"


def test_an_address_where_nothing_listens_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_machine", lambda folder: [])
    assert doctor.main(["--address", "127.0.0.1:1"]) == 2
    assert "nothing answers at 127.0.0.1:1" in capsys.readouterr().err


def test_versions_that_differ_between_nodes_are_a_problem():
    from worldloom_dist.runtime.nodes import _compared

    found = _compared(
        {
            "a": [Finding("ray", "ok", "2.60.0")],
            "b": [Finding("ray", "ok", "2.55.0"), Finding("disk", "ok", "9 GB")],
        }
    )
    assert found["a"][0].level == "ok"
    assert found["b"][0].level == "problem"
    assert "install ray 2.60.0 here, as on a" in found["b"][0].fix
    assert found["b"][1].level == "ok"
