"""What processes and machines use is measured, children included."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worldloom.core.metrics import Last
from worldloom_dist.metrics.process import NodeMeter, ProcessMeter, gpu_metrics


def test_memory_and_cpu_of_a_process_are_measured_with_its_children():
    meter = ProcessMeter()
    alone = meter.drain()
    assert alone["process_resident_memory_bytes"].value > 10e6
    assert alone["process_open_fds"].value > 2
    child = subprocess.Popen(
        [sys.executable, "-c", "x = sum(range(3_000_000)); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        child.stdout.readline()
        both = meter.drain()
    finally:
        child.communicate(b"\n")
    assert (
        both["process_resident_memory_bytes"].value
        > alone["process_resident_memory_bytes"].value + 5e6
    )
    assert both["process_cpu_seconds_total"].value > 0
    assert meter.drain()["process_cpu_seconds_total"].value >= 0, (
        "a child that ended takes nothing back"
    )


def test_a_machine_reports_its_disk_its_memory_and_its_cores(tmp_path):
    values = NodeMeter(tmp_path).drain()
    assert 0 < values["disk_free_bytes"].value <= values["disk_size_bytes"].value
    assert values["node_memory_available_bytes"].value > 0
    assert 0 <= values["node_cpu_busy_ratio"].value <= 1
    assert "disk_free_bytes" not in NodeMeter(Path("/nowhere")).drain()


class NVMLError(Exception):
    """As the bindings have it: no RuntimeError."""


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("pynvml"), NVMLError("Insufficient Permissions"), RuntimeError()]
)
def test_a_gpu_whose_driver_tells_nothing_still_reports_its_memory(monkeypatch, caplog, error):
    def refuse(device):
        raise error

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert gpu_metrics("cuda:1") == {"gpu_memory_used_bytes{gpu=1}": Last(70.0)}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert type(error).__name__ in said[0]
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 85)
    assert gpu_metrics("cuda")["gpu_utilization_ratio{gpu=0}"] == Last(0.85)
    assert gpu_metrics("cpu") == {}
