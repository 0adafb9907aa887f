"""What is written: Markdown for readers, from the same numbers as the JSON file."""


def to_markdown(result):
    setting = result["setting"]
    versions = ", ".join(f"{k} {v}" for k, v in setting["versions"].items() if v)
    lines = [
        "# Speed",
        "",
        f"{setting['model']} with random weights, computed in {setting['dtype']} where "
        f"nothing else is said. {setting['cpu']}, {setting['n_cores']} cores "
        f"({', '.join(setting['cpu_flags']) or 'no AVX2'}), Python "
        f"{setting['python']}, {versions}, seed {setting['seed']}. All contestants of "
        "a section take turns in one process; times are medians. CPU seconds are those "
        "of this process, without a DataLoader's workers.",
        "",
        "| section | aim | measured | |",
        "|---|---|---:|---|",
    ]
    for section in result["sections"].values():
        for aim in section["aims"]:
            met = "met" if aim["met"] else "missed"
            lines.append(
                f"| {section['title']} | {aim['aim']} | {_number(aim['measured'])} "
                f"| {met} |"
            )
    for section in result["sections"].values():
        lines += ["", *_section(section)]
    return "\n".join([*lines, ""])


def _section(section):
    rows = section["contestants"]
    first = next(iter(rows.values()))["seconds"]
    with_cosines = any("min_cosine" in row for row in rows.values())
    head = ["", "seconds", "CPU seconds", "time over the first row's"]
    head += ["smallest cosine to float32"] * with_cosines
    lines = [
        f"## {section['title']}",
        "",
        f"{section['date']}, medians of {section['repeats']}, load average before "
        f"{section['load_average']:.1f}.",
        "",
        _row(head),
        "|---" + "|---:" * (len(head) - 1) + "|",
    ]
    for name, row in rows.items():
        cells = [name, f"{row['seconds']:.3f}", f"{row['cpu_seconds']:.2f}"]
        cells.append(f"{row['seconds'] / first:.2f}")
        if with_cosines:
            cosine = row.get("min_cosine")
            cells.append("" if cosine is None else f"{cosine:.6f}")
        lines.append(_row(cells))
    return [*lines, *(line for note in section["notes"] for line in ("", note))]


def _row(cells):
    return f"| {' | '.join(cells)} |"


def _number(value):
    return f"{value:.5f}" if 0.99 < value < 1 else f"{value:.3g}"
