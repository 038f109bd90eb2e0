"""``auto`` is what there is, and a role that needs no GPU does without one."""

import pytest
import torch

from worldloom.core import devices
from worldloom.core.devices import has_gpu_driver, resolve_device, usable_device


@pytest.mark.parametrize(
    ("wanted", "there", "resolved", "usable"),
    [
        ("auto", True, "cuda", "cuda"),
        ("auto", False, "cpu", "cpu"),
        ("cuda:1", True, "cuda:1", "cuda:1"),
        ("cuda:1", False, "cuda:1", "cpu"),
        ("cpu", True, "cpu", "cpu"),
    ],
)
def test_devices_by_what_this_process_sees(monkeypatch, wanted, there, resolved, usable):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device(wanted) == resolved
    assert usable_device(wanted) == usable


def test_a_driver_is_found_by_its_file(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "DRIVER_FILES", (str(tmp_path / "driver"),))
    assert not has_gpu_driver()
    (tmp_path / "driver").touch()
    assert has_gpu_driver()
