"""The CPU as the kernel tells of it."""

import pytest

from worldloom.core import cpu

X86 = """processor\t: 0
model name\t: AMD EPYC 9B14
flags\t\t: fpu avx2 avx512_bf16

processor\t: 1
model name\t: another
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.fixture
def told(tmp_path, monkeypatch):
    def tell(text):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")

    return tell


def test_name_and_instructions_are_those_of_the_first_core(told):
    told(X86)
    assert cpu.cpu_name() == "AMD EPYC 9B14"
    assert cpu.cpu_flags() == {"fpu", "avx2", "avx512_bf16"}
    told(ARM)
    assert cpu.cpu_flags() == {"fp", "asimd", "bf16"}


def test_where_the_kernel_does_not_tell_there_are_no_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
    assert cpu.cpu_flags() == frozenset()
    assert cpu.cpu_name()
