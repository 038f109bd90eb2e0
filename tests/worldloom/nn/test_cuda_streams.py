"""What names no device belongs to the right one, in every thread."""

import threading

import pytest
import torch

from tests import fake_cuda
from worldloom.nn.cuda_graphs import CudaRecorder
from worldloom.nn.cuda_streams import recorded_event, use_device


@pytest.mark.parametrize(("name", "index"), [("cuda:1", 1), ("cuda", 0), ("cpu", 0)])
def test_a_thread_uses_the_device_that_it_was_given_and_no_other_thread_does(
    monkeypatch, name, index
):
    runtime = fake_cuda.install(monkeypatch)
    seen = []
    thread = threading.Thread(target=lambda: (use_device(name), seen.append(runtime.device)))
    thread.start()
    thread.join()
    assert seen == [index]
    assert runtime.device == 0


def test_an_event_is_of_the_tensors_device_whatever_the_current_one_is(monkeypatch):
    fake_cuda.install(monkeypatch)
    assert recorded_event(torch.device("cuda:1")).stream.device.index == 1


def test_work_is_warmed_up_between_streams_of_its_own_device(monkeypatch):
    runtime = fake_cuda.install(monkeypatch)
    recorder = CudaRecorder(torch.device("cuda:1"))
    seen = []
    recorder.warm(lambda: seen.append(runtime.stream()))
    assert seen == [recorder.stream]
    assert [one.device.index for one in recorder.stream.waits] == [1]
    assert runtime.stream("cuda:1").waits == [recorder.stream]


def test_a_capture_that_fails_leaves_the_thread_on_its_own_stream(monkeypatch):
    runtime = fake_cuda.install(monkeypatch)
    runtime.set_device(1)
    recorder = CudaRecorder(torch.device("cuda:1"))
    runtime.graph_fails = RuntimeError("operation failed due to a previous error during capture")
    with pytest.raises(RuntimeError, match="previous error"):
        recorder.capture(lambda: None)
    assert runtime.stream().is_default
