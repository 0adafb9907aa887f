"""Plots of scale.py: told apart by marker and line as well as by colour."""

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402

# Okabe and Ito's colours, which differ in lightness too.
STYLES = [
    ("#000000", "o", "-"),
    ("#D55E00", "s", "-"),
    ("#0072B2", "^", "--"),
    ("#009E73", "v", "-."),
    ("#E69F00", "D", ":"),
    ("#56B4E9", "P", "--"),
    ("#CC79A7", "X", "-."),
]


def plot_fits(rows, value, label, path, hidden=()):
    """Draw `value` of each method that is not hidden against n, and against d."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    styles = dict(zip(methods, STYLES, strict=False))
    figure, axes = plt.subplots(
        1, 2, figsize=(11, 4), sharey=True, layout="constrained"
    )
    for axis, by, fixed in zip(axes, ("n", "d"), ("d", "n"), strict=True):
        shown = [row for row in rows if row["varies"] == by]
        for method in methods:
            if method in hidden:
                continue
            colour, marker, line = styles[method]
            points = sorted(
                (row[by], row[value]) for row in shown if row["method"] == method
            )
            axis.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                linestyle=line,
                label=method,
            )
        axis.set(xscale="log", yscale="log")
        axis.set_xlabel("rows" if by == "n" else "features")
        axis.set_title(f"{shown[0][fixed]:,} {'features' if by == 'n' else 'rows'}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside right upper")
    _save(figure, path)


def plot_cluster(rows, path):
    """Draw the rates of embedding and fitting against the number of actors."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.5), layout="tight")
    values = {"images_per_s": "images/s", "fit_rows_per_s": "rows/s"}
    titles = ("Embedding, with one counterpart", "Fitting")
    for axis, (value, label), title in zip(axes, values.items(), titles, strict=True):
        shown = [row for row in rows if value in row]
        names = [
            "no Ray" if row["actors"] == 0 else f"Ray, {row['actors']}" for row in shown
        ]
        bars = axis.bar(
            names, [row[value] for row in shown], color="#56B4E9", edgecolor="black"
        )
        axis.bar_label(bars, fmt="{:,.4g}")
        axis.set(title=title, ylabel=label, xlabel="actors, of one CPU each")
        axis.margins(y=0.15)
    _save(figure, path)


def _save(figure, path):
    figure.savefig(path, dpi=110)
    plt.close(figure)
