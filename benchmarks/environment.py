"""What machine and which versions a run was made with; it stands in the record, not in the hash."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bella.errors import UserError
from benchmarks.onednn import on_amd_avx512

PACKAGES = ("bella-bench", "torch", "torchvision", "timm", "open_clip_torch", "torchmetrics", "numpy", "safetensors")


def pick_device(name: str) -> torch.device:
    """The device of a run: "auto" takes a GPU where there is one.

    Raises:
        UserError: a GPU is asked for and there is none, or the name is none of the three.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu, or install a CUDA build of torch")
    return torch.device(name)


def make_deterministic(device: torch.device) -> None:
    """Have the same run give the same numbers: on a GPU, deterministic algorithms (those that exist; torch warns of others)."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def reuse_freed_memory() -> None:
    """Have glibc keep large blocks that are freed, and give them out again, instead of returning each to the system.

    A training step allocates and frees the same activations again and again; every page that the system hands out anew costs a
    fault. On a virtual machine of two cores low-rank steps of EfficientNet-Lite0 took a fifth less time (docs/performance.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of <malloc.h>
    mallopt(mmap_threshold, 32 * 2**20)  # the most that glibc accepts
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, processor, threads and device."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": "bfloat16 autocast" if device.type == "cuda" else "float32",
        "linear_layers": "oneDNN" if device.type == "cpu" and on_amd_avx512() else "torch's choice",
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Versions of what numbers depend on; absent packages are left out."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
