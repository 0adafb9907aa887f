"""What a result was measured on: processor, its load, and versions of packages."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def cpu():
    """Name of the processor."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(field):
    """Return a field of the first processor, "" where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith(field)]
    return found[0] if found else ""


def load_average():
    """Return the mean load of the last minute, NaN where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def installed(package):
    """Return the version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
