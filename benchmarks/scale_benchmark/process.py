"""A measurement in a process of its own, so that its peak memory is its own too."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve()


def measure(module, *arguments, **environment):
    """Run a module of this package and return what it prints, a JSON object."""
    paths = [str(HERE.parents[1]), str(HERE.parents[2]), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    run = subprocess.run(
        [sys.executable, "-m", f"scale_benchmark.{module}", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def peak_mib():
    """Largest resident memory of this process so far, files it has mapped included.

    The figure of `getrusage` would do on other systems, but on Linux a process inherits
    that of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
