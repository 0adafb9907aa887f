"""Results that have a row for each model, so that a short run measures some again."""

import argparse
import json
import os
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def run(name, description, models, measure, markdown, arguments=None, every_model=None):
    """Measure models, replace their rows in the results, and write the table anew.

    Parameters
    ----------
    name : str
        Of the files in the folder of results, without .json and .md.
    description : str
        For the help.
    models : sequence of str
        What is measured unless --models says otherwise.
    measure : callable
        ``measure(model, folder)`` returns a row; the folder is empty and goes after.
    markdown : callable
        From the rows by model to the table.
    arguments : list of str or None
        Those of the command line, unless given.
    every_model : callable or None
        Returns the models that --all stands for, if there is such an option.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", nargs="+", default=models)
    parser.add_argument("--results", type=Path, default=RESULTS)
    if every_model is not None:
        parser.add_argument("--all", action="store_true", help="every model there is")
    options = parser.parse_args(arguments)
    if every_model is not None and options.all:
        options.models = every_model()
    path = options.results / f"{name}.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SKCLIP_ICM_MODELS"] = str(Path(folder, "converted"))
            rows[model] = measure(model, Path(folder))
        options.results.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    table = markdown(rows)
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)


def settings(rows):
    """Return what the rows were measured with: a text for each setting that differs."""
    told = (
        ", ".join(
            f"{key} {value}"
            for key, value in row["measured"].items()
            if key != "load"  # which differs from row to row
        )
        for row in rows.values()
    )
    return "; ".join(dict.fromkeys(told))
