"""The sections of a report, each as (heading, markup), or None if it has no place."""

import inspect
import platform
import re
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from sklearn.pipeline import Pipeline

from skclip_icm._estimators import find_step, is_icm
from skclip_icm._version import __version__
from skclip_icm.plotting import (
    DomainAccuracyDisplay,
    InterventionDisplay,
    InvarianceMapDisplay,
    SpectrumDisplay,
)
from skclip_icm.reporting._html import (
    Markup,
    Number,
    code,
    details,
    figure,
    paragraph,
    table,
)
from skclip_icm.reporting._scores import ACCURACY, wilson_interval

_MAX_CANDIDATES = 10
# The folders of a path in quotes: they say of a machine what others need not know.
_FOLDER = re.compile(
    r"""(['"](?:local-dir:)?)(?:/|[A-Za-z]:[\\/])(?:[^'"]*[\\/])?(?=[^'"])"""
)
_PACKAGES = (
    "scikit-learn",
    "numpy",
    "scipy",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "Pillow",
)


def scores(result):
    """Scores by domain, as a table and as bars."""
    methods, domains = list(result.by_method), list(result.counts)
    first = methods[0]
    accuracy = result.over_all(first)
    said = [f"{first} has an accuracy of {accuracy:.3f} on {_rows(result)}."]
    if len(domains) > 1:
        worst = result.worst(first)
        share = result.by_method[first][worst][ACCURACY]
        said.append(
            f"The mean of the {len(domains)} domains is "
            f"{result.mean(first, ACCURACY):.3f}. The worst is {share:.3f}, in the "
            f"domain {worst}."
        )
    said.append(
        "Scores on rows that an estimator was fitted on are too good: they do not say "
        "how it does in a new domain."
    )
    content = [paragraph(*said), _score_table(result), _score_bars(result)]
    return "Scores by domain", Markup("\n".join(content))


def search(estimator):
    """Best candidates of a search, by what it chose by."""
    results = getattr(estimator, "cv_results_", None)
    metric = estimator.refit if getattr(estimator, "multimetric_", False) else "score"
    if results is None or f"rank_test_{metric}" not in results:
        return None
    # Of halving, which scores the best ones again on more rows, the last round counts.
    rounds = np.asarray(results.get("iter", np.zeros(len(results["params"]))))
    last = np.flatnonzero(rounds == rounds.max())
    ranks = np.asarray(results[f"rank_test_{metric}"])[last]
    order = last[np.argsort(ranks, kind="stable")]
    n_candidates = np.count_nonzero(rounds == rounds.min())
    halved = (
        f"It halved them in {len(np.unique(rounds))} rounds; ranked here is the last "
        f"round, of {len(last)}."
        if rounds.any()
        else ""
    )
    # The grids of a list may have parameters of their own.
    names = list(dict.fromkeys(name for p in results["params"] for name in p))
    candidates = [
        [
            Number(np.count_nonzero(ranks < results[f"rank_test_{metric}"][i]) + 1),
            Number(f"{results[f'mean_test_{metric}'][i]:.3f}"),
            Number(f"{results[f'std_test_{metric}'][i]:.3f}"),
            *(_value(results["params"][i], name) for name in names),
        ]
        for i in order[:_MAX_CANDIDATES]
    ]
    said = paragraph(
        f"{type(estimator).__name__} tried {n_candidates} candidates by "
        "cross-validation of its training rows. It scored them by",
        code(_short(estimator.scoring)) if estimator.scoring else "their own score",
        f"and took the first. {halved}",
    )
    columns = ["rank", "mean score", "deviation", *names]
    shown = table("Best candidates of the search", columns, candidates)
    return "Search", Markup(f"{said}\n{shown}")


def spectrum(estimator):
    """Directions that ICM keeps."""
    if find_step(estimator, is_icm) is None:
        said = "There is no ICMTransformer in this estimator."
        return "Invariant directions", paragraph(said)
    drawn = _figure(7, 5.5)
    display = SpectrumDisplay.from_estimator(estimator, ax=drawn.subplots())
    kept, d = display.n_components, len(display.eigenvalues)
    invariance = np.asarray(display.invariance)
    caption = (
        f"ICM keeps {kept} of {d} directions. Their invariance is "
        f"{invariance.mean():.2f} "
        f"on average and {invariance.min():.2f} at least: 1 where the pairs do not "
        "differ, 0 where they differ as two images drawn at random."
    )
    alt = f"Eigenvalues in descending order, cut after {kept} of {d}; invariance below."
    return "Invariant directions", figure(drawn, alt, caption)


def interventions(images, domains):
    """Images of several domains beside their counterparts, with their domains."""
    if images is None or images.featurizer.interventions is None:
        return None
    rows = np.unique(domains, return_index=True)[1][:4]
    shown = [images.items[row] for row in rows]
    made = images.featurizer.interventions
    count = len(made) if isinstance(made, list | tuple) else 1
    columns = 1 + count * images.featurizer.n_interventions
    drawn = _figure(1.9 * max(columns, 2), 0.4 + 2.2 * len(rows))
    display = InterventionDisplay.from_estimator(
        images.featurizer,
        shown,
        image_names=[f"domain {domains[row]}" for row in rows],
        ax=drawn.subplots(),
    )
    caption = (
        "The first image of each domain as the model sees it, beside its counterparts. "
        "A cosine of 1 says that the model sees no difference; what should not matter "
        "should stay well above the cosine of two images."
    )
    cosines = np.asarray(display.cosines)
    alt = (
        f"{len(rows)} images with {cosines.shape[1]} counterparts each; cosines from "
        f"{cosines.min():.2f} to {cosines.max():.2f}."
    )
    return "Interventions", figure(drawn, alt, caption, form="png")


def invariance_map(estimator, X, y, domains):
    """Embeddings before and after ICM."""
    if find_step(estimator, is_icm) is None:
        return None
    drawn = _figure(9.5, 8)
    InvarianceMapDisplay.from_estimator(
        estimator, X, y, domains, max_samples=1000, ax=drawn.subplots()
    )
    caption = (
        "Embeddings in two dimensions before and after ICM, by class and by domain. "
        "Where ICM does its work, classes stay apart and domains mix. Two dimensions "
        "show little of all: classes that overlap here may still be separable."
    )
    alt = "Scatter plots before and after ICM, coloured by class and by domain."
    return "Before and after", figure(drawn, alt, caption, form="png", wide=True)


def parameters(estimator):
    """Parameters of each step, those that were changed first."""
    content = []
    while hasattr(estimator, "best_estimator_"):
        estimator = estimator.best_estimator_
    for name, step in _steps(estimator):
        content.append(f"<h3>{code(name)}</h3>")
        values = step.get_params(deep=False)
        defaults = inspect.signature(type(step)).parameters
        changed = {
            key: value
            for key, value in values.items()
            if key not in defaults or repr(value) != repr(defaults[key].default)
        }
        rest = {key: value for key, value in values.items() if key not in changed}
        said = f"Changed parameters of {name}"
        content.append(
            _parameter_table(said, changed)
            if changed
            else paragraph("All parameters have their defaults.")
        )
        if rest:
            shown = _parameter_table(f"Other parameters of {name}", rest)
            content.append(details(f"{len(rest)} with defaults", shown))
    return "Parameters", Markup("\n".join(content))


def versions():
    """Versions of what it was made with."""
    rows = [["skclip-icm", __version__], ["Python", platform.python_version()]]
    for package in _PACKAGES:
        try:
            rows.append([package, version(package)])
        except PackageNotFoundError:
            continue
    return "Versions", table("Versions of packages", ["package", "version"], rows)


def _score_table(result):
    first, *others = result.measures
    columns = ["domain", "method", first, "interval of 95 %", *others, "rows"]
    rows, means = [], []
    for domain, count in result.counts.items():
        for method, by_domain in result.by_method.items():
            score, *rest = by_domain[domain].values()
            low, high = wilson_interval(score, count)
            cells = [_score(score), Number(f"{low:.3f} to {high:.3f}")]
            cells += [*map(_score, rest), Number(count)]
            rows.append([domain, method, *cells])
    total = Number(sum(result.counts.values()))
    for method in result.by_method if len(result.counts) > 1 else ():
        score, *rest = (_score(result.mean(method, m)) for m in result.measures)
        means.append(["mean of domains", method, score, Number(""), *rest, total])
    rows += means
    if len(result.by_method) == 1:
        columns.remove("method")
        rows = [[row[0], *row[2:]] for row in rows]
    return table("Scores by domain", columns, rows, n_totals=len(means))


def _score(value):
    return Number("–" if np.isnan(value) else f"{value:.3f}")


def _score_bars(result):
    methods, domains = list(result.by_method), list(result.counts)
    drawn = _figure(np.clip(1.5 + 0.5 * len(domains) * (len(methods) + 1), 5, 10), 4.2)
    by_method = {
        m: {domain: result.by_method[m][domain][ACCURACY] for domain in domains}
        for m in methods
    }
    DomainAccuracyDisplay.from_scores(by_method, ax=drawn.subplots())
    alt = "Accuracy by domain: " + "; ".join(
        f"{m}: "
        + ", ".join(f"{domain} {by_method[m][domain]:.2f}" for domain in domains)
        for m in methods
    )
    return figure(drawn, alt, "Accuracy by domain; the mean of domains to the right.")


def _rows(result):
    n = sum(result.counts.values())
    return f"{n} row{'s' if n != 1 else ''}"


def _steps(estimator):
    """Name and estimator of each step, the steps of inner pipelines too."""
    if not isinstance(estimator, Pipeline):
        return [(type(estimator).__name__, estimator)]
    return [
        (f"{name} ({type(inner).__name__})", inner)
        for name, step in estimator.steps
        if step not in (None, "passthrough")
        for _, inner in _steps(step)
    ]


def _parameter_table(caption, values):
    rows = [[code(name), code(_short(value))] for name, value in values.items()]
    return table(caption, ["parameter", "value"], rows)


def _value(parameters, name):
    return _short(parameters[name]) if name in parameters else "–"


def _short(value):
    text = _FOLDER.sub(r"\1…/", repr(value))
    if inspect.isroutine(value) or inspect.isclass(value):
        text = value.__qualname__
    return text if len(text) <= 300 else f"{text[:200]} … {text[-80:]}"


def _figure(width, height):
    # Not made by pyplot: a notebook would show it once more, and it would stay open.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
