"""Time `import skclip_icm` against `import sklearn`, each in fresh interpreters.

Run from the root of the repository: python benchmarks/import_time.py
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

STATEMENTS = {
    "sklearn": "import sklearn",
    "skclip_icm": "import skclip_icm",
    "all public names": "from skclip_icm import *",
    "sklearn.pipeline": "import sklearn.pipeline",
}
REPEATS = 15
RESULTS = Path(__file__).parent / "results"

TIMED = """\
from time import perf_counter
start = perf_counter()
{statement}
print(perf_counter() - start)
"""


def main():
    seconds = {label: [] for label in STATEMENTS}
    # In turns, so that a busy moment of the machine meets all of them; the first
    # round only fills the disk cache.
    for round_ in range(REPEATS + 1):
        for label, statement in STATEMENTS.items():
            elapsed = time_import(statement)
            if round_ > 0:
                seconds[label].append(elapsed)
    write(seconds)


def time_import(statement):
    command = [sys.executable, "-c", TIMED.format(statement=statement)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def write(seconds):
    median = {label: statistics.median(times) for label, times in seconds.items()}
    rows = [
        {
            "statement": STATEMENTS[label],
            "median_ms": round(1000 * median[label], 2),
            "min_ms": round(1000 * min(times), 2),
            "ratio_to_sklearn": round(median[label] / median["sklearn"], 3),
        }
        for label, times in seconds.items()
    ]
    results = {"repeats": REPEATS, "python": sys.version.split()[0], "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(results, indent=2) + "\n"
    (RESULTS / "import_time.json").write_text(text, encoding="utf-8")
    table = markdown(rows)
    (RESULTS / "import_time.md").write_text(table, encoding="utf-8")
    print(table)


def markdown(rows):
    lines = [
        f"Import times, median and minimum of {REPEATS} fresh interpreters.",
        "",
        "| statement | median (ms) | minimum (ms) | median / `import sklearn` |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = (row["median_ms"], row["min_ms"], row["ratio_to_sklearn"])
        lines.append(f"| `{row['statement']}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    # No options, but --help and a mistaken word do not write results.
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
