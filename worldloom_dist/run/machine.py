"""What a machine needs to train, checked one thing at a time, each with the command that repairs
it. ``doctor`` prints it.

Imports torch only inside its check, and never Ray: the same checks run in a task on every node of a
cluster.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.extras import install_line

__all__ = ["Finding", "check_device", "check_machine", "learner_has_gpu"]

MIN_FILES = 4096
MIN_SHM_BYTES = 512 * 2**20
MIN_DISK_SHARE = 0.1
MIN_DISK_BYTES = 5e9
MIN_MEMORY_BYTES = 4e9
GL_PROBE = (
    "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"
)
GL_TIMEOUT_S = 60.0
EXTRAS = {
    "ale_py": "atari",
    "crafter": "crafter",
    "dm_control": "dmc",
    "mujoco": "mujoco",
    "matplotlib": "viz",
    "tensorboardX": "training",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "opentelemetry.exporter.otlp.proto.http": "otel",
}
"""Module -> the extra that brings it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One checked thing.

    Attributes:
        name: What was checked.
        level: ``ok``; ``note`` when something optional is missing; ``problem`` when runs will fail
            or crawl.
        detail: What was found.
        fix: The command or step that helps; empty when nothing has to be done.
    """

    name: str
    level: Literal["ok", "note", "problem"]
    detail: str
    fix: str = ""


def check_machine(folder: Path) -> list[Finding]:
    """All checks of this machine; none of them raises.

    Args:
        folder: Where runs are written.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _torch,
        _ray,
        gl,
        ffmpeg,
        _extras,
        lambda: _disk(folder),
        _limits,
        _memory,
    )
    return [finding for check in checks for finding in _guarded(check)]


def check_device(field: str, device: str) -> None:
    """Refuse a device that torch does not have here.

    Args:
        field: What the user set, for the message.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigurationError: If it is none of these, or there are fewer GPUs.
    """
    kind, colon, index = device.partition(":")
    if device == "cpu":
        return
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise ConfigurationError(f"{field} must be cpu, cuda or cuda:N, got {device!r}")
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= gpus:
        raise ConfigurationError(
            f"{field}: {device!r} is not available on this machine, where torch can "
            f"use {gpus} GPUs; use cpu"
        )


def learner_has_gpu(device: str, *, is_local: bool) -> bool:
    """Whether a learner trains on a GPU, without asking torch: as ``learner.device`` says, and
    ``auto`` takes one on Ray where this machine has one.
    """
    if device != "auto":
        return device.startswith("cuda")
    return not is_local and Path("/dev/nvidia0").exists()


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a check that fails is itself a finding
        yield Finding(
            check.__name__.strip("_"),
            "problem",
            f"could not be checked ({type(error).__name__}: {error})",
        )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    version = _version("worldloom-dist")
    yield Finding(
        "worldloom",
        "ok" if version else "note",
        version or "runs from source",
        "" if version else "pip install -e .",
    )


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "problem", f"cannot be imported ({error})", "pip install torch")
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    has_driver = shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        names = ", ".join(
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        )
        yield Finding("cuda", "ok", f"{torch.version.cuda}: {names}")
    elif has_driver and torch.version.cuda is None:
        yield Finding(
            "cuda",
            "problem",
            "there is a GPU driver, and this torch is built without CUDA",
            "pip install --force-reinstall torch  (from the index of CUDA builds "
            "that PyTorch's page names)",
        )
    elif has_driver:
        yield Finding(
            "cuda",
            "problem",
            f"torch is built for CUDA {torch.version.cuda} and sees no GPU",
            "nvidia-smi  (the driver must be new enough, and CUDA_VISIBLE_DEVICES "
            "must not hide the GPU)",
        )
    else:
        yield Finding("cuda", "note", "no GPU; the learner trains on the CPU")


def _ray() -> Iterator[Finding]:
    version = _version("ray")
    if not version:
        yield Finding(
            "ray", "problem", "not installed", "pip install 'ray[default,rllib]>=2.55,<3'"
        )
        return
    major, minor = (int(part) for part in version.split(".")[:2])
    if major != 2 or minor < 55:
        yield Finding(
            "ray",
            "problem",
            f"{version}, not 2.55 or newer",
            "pip install 'ray[default,rllib]>=2.55,<3'",
        )
    else:
        yield Finding("ray", "ok", version)


def gl() -> Iterator[Finding]:
    """Off-screen rendering in a process of its own, because a broken GL library can end a
    process.
    """
    if importlib.util.find_spec("mujoco") is None:
        yield Finding(
            "GL",
            "note",
            "mujoco is not installed, so nothing renders",
            install_line("mujoco"),
        )
        return
    for backend in dict.fromkeys((os.environ.get("MUJOCO_GL", "egl"), "egl", "osmesa")):
        environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        command = [sys.executable, "-c", GL_PROBE]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, timeout=GL_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            wanted = os.environ.get("MUJOCO_GL", "")
            yield Finding(
                "GL",
                "ok",
                f"renders with {backend}",
                "" if wanted == backend else f"export MUJOCO_GL={backend}",
            )
            return
    yield Finding(
        "GL",
        "note",
        "no off-screen rendering: image observations of MuJoCo envs will fail",
        "apt-get install -y libegl1 libgl1, or apt-get install -y libosmesa6 && "
        "export MUJOCO_GL=osmesa",
    )


def ffmpeg() -> Iterator[Finding]:
    found = shutil.which("ffmpeg")
    if found is None and importlib.util.find_spec("imageio_ffmpeg") is not None:
        found = "imageio-ffmpeg"
    if found:
        yield Finding("ffmpeg", "ok", found)
    else:
        yield Finding("ffmpeg", "note", "missing: videos are GIFs", install_line("video"))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it is in
        return False


def _extras() -> Iterator[Finding]:
    missing = [extra for module, extra in EXTRAS.items() if not _is_installed(module)]
    if missing:
        yield Finding(
            "extras",
            "note",
            f"not installed: {', '.join(missing)}",
            install_line(*missing),
        )
    else:
        yield Finding("extras", "ok", "all installed")


def _disk(folder: Path) -> Iterator[Finding]:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(place)
    text = f"{usage.free / 1e9:,.0f} of {usage.total / 1e9:,.0f} GB free at {place}"
    if usage.free < min(MIN_DISK_SHARE * usage.total, MIN_DISK_BYTES):
        yield Finding(
            "disk",
            "problem",
            text,
            f"free some space (du -sh {place}/*), or write elsewhere with --run-dir",
        )
    elif not os.access(place, os.W_OK):
        yield Finding(
            "disk",
            "problem",
            f"{place} cannot be written to",
            "name a folder of yours with --run-dir",
        )
    else:
        yield Finding("disk", "ok", text)


def _limits() -> Iterator[Finding]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < MIN_FILES:
        reach = (
            ""
            if most == resource.RLIM_INFINITY or most >= MIN_FILES
            else "  (as root: raise the hard limit first)"
        )
        yield Finding(
            "open files",
            "problem",
            f"at most {files}; a role takes about 50",
            f"ulimit -n {MIN_FILES}{reach}",
        )
    else:
        yield Finding(
            "open files",
            "ok",
            f"at most {'any number' if files == resource.RLIM_INFINITY else files}",
        )
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return
    free = shutil.disk_usage(shm).free
    text = f"{free / 2**20:,.0f} MiB free"
    if free < MIN_SHM_BYTES:
        yield Finding(
            "/dev/shm",
            "problem",
            f"{text}; Ray's object store would fall back to the disk",
            "mount -o remount,size=2G /dev/shm, or docker run --shm-size=2g",
        )
    else:
        yield Finding("/dev/shm", "ok", text)


def _memory() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{memory / 1e9:,.0f} GB, {os.cpu_count()} cores"
    if memory < MIN_MEMORY_BYTES:
        yield Finding(
            "memory", "problem", text, "use a machine with 4 GB or more, or --runtime local"
        )
    else:
        yield Finding("memory", "ok", text)
