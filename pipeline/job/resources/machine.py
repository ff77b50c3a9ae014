"""Memory and disk of this machine, and its accelerator."""

from __future__ import annotations

import os
import re
import resource
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from headatlas.store.files.locations import is_url

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_GROUP_FOLDER = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """Bytes that a job can use on this machine. None stands for a size that the system does not report."""

    device: str = "cpu"
    device_name: str = ""
    device_bytes: int | None = None
    """Memory of the device: what is free, and what this process holds."""
    host_bytes: int | None = None
    """Memory of the host: what is available, and what this process holds."""
    disk_bytes: int | None = None
    """Free space on the disk of the store; None in an object store."""


def read_machine(device: torch.device, folder: Path) -> Machine:
    """Read the memory of a device and of the host, and the free space on the disk of a folder that may not exist yet."""
    name, device_bytes = "", None
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        device_bytes = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    disk_bytes = None
    if not is_url(folder):
        existing = folder.absolute()
        while not existing.exists():
            existing = existing.parent
        disk_bytes = shutil.disk_usage(existing).free
    return Machine(str(device), name, device_bytes, _host_bytes(), disk_bytes)


def total_device_bytes(device: torch.device) -> int | None:
    """Return the memory of a GPU, used or not; None for other devices."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def resident_bytes() -> int:
    """Return the resident bytes of this process; on systems without ``/proc``, the peak so far."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def describe_accelerator(device: torch.device) -> dict[str, str | int]:
    """Describe the GPU of a job for the provenance: name, memory, driver, CUDA or ROCm, and Triton. Empty for a CPU.

    Versions that the system does not report are left out.
    """
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    description = {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver_version(),
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "triton": _package_version("triton"),
    }
    return {name: value for name, value in description.items() if value is not None}


def _host_bytes() -> int | None:
    """Return the memory that this process can have in all: limited by the system, and by its control group."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    (available,) = re.findall(r"MemAvailable:\s+(\d+) kB", text)
    n_bytes = int(available) * 1024 + resident_bytes()
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (_GROUP_FOLDER / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdigit():  # "max" if there is none
            n_bytes = min(n_bytes, int(limit))
    return n_bytes


def _driver_version() -> str | None:
    """Return the version of NVIDIA's driver."""
    try:
        text = _DRIVER_FILE.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match and match[1]


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
