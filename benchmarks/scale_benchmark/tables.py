"""The Markdown that scale.py writes."""


def to_markdown(result):
    """Tables of all parts that were measured."""
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    lines = [
        "# Scale",
        "",
        f"{result['date']}, {result['cpu']} ({result['n_cpus']} cores, load average "
        f"{result['load_average'][0]:.1f}), {versions}, seed {result['seed']}.",
    ]
    writers = {"fits": _fits, "cluster": _cluster, "cost": _cost}
    for part, write in writers.items():
        if part in result:
            lines += ["", *write(result[part])]
    return "\n".join([*lines, ""])


def _fits(rows):
    shapes = {(row["n"], row["d"], row["method"]): row for row in rows}
    lines = [
        "## Fitting",
        "",
        "Random float32 embeddings and one counterpart each, in files. Seconds from "
        "the files to the fitted estimator, medians; *ratio* is to the BLAS products "
        "alone: both matrices, from the same files. Peak is the largest resident "
        "memory of the process, Python and its libraries included. The two PCAs see "
        "no pairs, and IncrementalPCA keeps 128 components.",
        "",
        "| rows | features | method | s | ratio | peak, MiB |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    return lines + [
        f"| {n:,} | {d:,} | {method} | {row['seconds']:.2f} | {row['ratio']:.2f} "
        f"| {row['peak_mib']:,.0f} |"
        for (n, d, method), row in shapes.items()
    ]


def _cluster(part):
    lines = [
        "## Ray",
        "",
        f"{part['images']:,} JPEG files of {part['side']} x {part['side']} pixels by "
        "the demo encoder, each with one counterpart, after the models are loaded; "
        f"then `fit_icm` on {part['rows']:,} x {part['width']:,} embeddings with one "
        "counterpart each, from memory. One CPU for each actor or worker.",
        "",
        "| actors | images/s | rows/s of the fit |",
        "|---:|---:|---:|",
    ]
    for row in part["measured"]:
        fit = f"{row['fit_rows_per_s']:,.0f}" if "fit_rows_per_s" in row else ""
        name = row["actors"] or "no Ray"
        lines.append(f"| {name} | {row['images_per_s']:.1f} | {fit} |")
    return lines


def _cost(part):
    lines = ["## Cost model", ""]
    for model in part:
        basis = model["basis"]
        lines += [
            f"{model['name']}: {basis['workers']:,} x {basis['rate']:,.4g} "
            f"images/s, {basis['image_bytes'] / 1000:,.1f} kB an image, "
            f"{basis['width']:,} features, {basis['counterparts']} counterpart, "
            f"{basis['flops'] / 1e9:,.3g} GFLOP/s a worker for fitting, "
            f"{basis['merge_s'] * 1000:,.3g} ms to add the sums of a batch.",
            "",
            "| images | embedding, h | read, TB | written, TB | fitting, h "
            "| sums to the driver, TB | driver, h |",
            "|---:|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['images']:,} "
            + "".join(
                f"| {row[name]:,.3g} "
                for name in (
                    "embed_h",
                    "read_tb",
                    "written_tb",
                    "fit_h",
                    "sums_tb",
                    "driver_h",
                )
            )
            + "|"
            for row in model["rows"]
        ]
        lines.append("")
    return lines[:-1]
