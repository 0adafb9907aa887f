"""How well methods do in each domain."""

import textwrap

import numpy as np
from sklearn.metrics import check_scoring
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from skclip_icm._labels import check_labels
from skclip_icm.plotting._axes import (
    COLORS,
    add_legend,
    check_names,
    line_color,
    make_axes,
    name_metric,
    short_names,
    verbatim,
)

# As many as are coprime with the colours, so that the combinations do not repeat soon.
_HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "--")
_MEAN = "mean of\ndomains"
_NARROWEST = 8  # characters in a line of a domain's name; with less room it stands


class DomainAccuracyDisplay:
    """Scores by domain, methods side by side.

    It is recommended to use `from_scores` or `from_estimator`. Bars have the mean
    over repeats; error bars reach one standard deviation up and down. The last group
    has the mean over domains; its error bars are the deviation of that mean, and are
    there if every domain has the same number of repeats.

    Parameters
    ----------
    scores : dict of str to dict of str to array-like of shape (n_repeats,)
        For each method, for each domain, one score or one of each repeat.
    score_name : str, default="accuracy"
        What is scored, for the label.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure.
    ax_ : matplotlib Axes
        Its only panel.
    bars_ : dict of str to matplotlib BarContainer
        The bars of each method, in the order of the domains; the mean last.

    See Also
    --------
    skclip_icm.interventional_scorer : Scores without labels of the target domain.

    Examples
    --------
    >>> from skclip_icm.plotting import DomainAccuracyDisplay
    >>> display = DomainAccuracyDisplay.from_scores(
    ...     {
    ...         "raw": {"photo": [0.9, 0.8], "sketch": [0.5, 0.4]},
    ...         "ICM": {"photo": [0.9, 0.9], "sketch": [0.6, 0.8]},
    ...     }
    ... )
    >>> print(*(f"{bar.get_height():.2f}" for bar in display.bars_["ICM"]))
    0.90 0.70 0.80
    """

    def __init__(self, *, scores, score_name="accuracy"):
        self.scores = scores
        self.score_name = score_name

    @classmethod
    def from_scores(cls, scores, *, score_name="accuracy", ax=None):
        """Draw scores that are known already.

        Parameters
        ----------
        scores : dict of str to dict of str to array-like of shape (n_repeats,)
            For each method, for each domain, one score or one of each repeat.
        score_name : str, default="accuracy"
            What is scored, for the label.
        ax : matplotlib Axes or None, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        display : DomainAccuracyDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If methods have different domains, or a score is not finite.
        """
        return cls(scores=scores, score_name=score_name).plot(ax)

    @classmethod
    def from_estimator(
        cls,
        estimators,
        X,
        y,
        domains,
        *,
        scoring=None,
        score_name=None,
        domain_names=None,
        ax=None,
    ):
        """Score fitted estimators domain by domain, and draw.

        An estimator that saw a domain while fitting does well there: to judge how it
        does in a new one, leave the rows it was fitted on out of `X`.

        Parameters
        ----------
        estimators : estimator, or dict of str to estimator or list of estimators
            Fitted. A dict names the methods; a list holds the repeats of one, such as
            fits by several seeds.
        X : sequence of length n
            What the estimators predict from.
        y : array-like of shape (n,)
            Classes.
        domains : array-like of shape (n,)
            Domain of each row.
        scoring : str, callable or None, default=None
            What to measure, as in `sklearn.model_selection.cross_val_score`. None
            takes the estimator's own score.
        score_name : str or None, default=None
            What is scored, for the label. None takes the name of `scoring`.
        domain_names : list of str or None, default=None
            Names of the domains where `domains` counts them from 0, such as
            `load_domain_folder` returns.
        ax : matplotlib Axes or None, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        display : DomainAccuracyDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the lengths differ, a score is not finite, or there is no estimator.
        TypeError
            If `estimators` is a list without names.
        """
        if isinstance(estimators, list | tuple):
            raise TypeError(
                "estimators is a list, expected one estimator, or a dict that names "
                "them: {'raw': ..., 'ICM': ...}."
            )
        if not isinstance(estimators, dict):
            estimators = {type(estimators).__name__: estimators}
        n = _num_samples(X)
        y, domains = check_labels(y, "y", n), check_labels(domains, "domains", n)
        domains = check_names(domains, domain_names, "domain_names")
        repeats = {
            method: fitted if isinstance(fitted, list | tuple) else [fitted]
            for method, fitted in estimators.items()
        }
        if not repeats or not all(repeats.values()):
            raise ValueError(
                f"estimators is {estimators!r}, expected one method and one fitted "
                "estimator of each at least."
            )
        scores = {method: {} for method in repeats}
        for domain in np.unique(domains):
            rows = np.flatnonzero(domains == domain)
            X_domain, y_domain = _safe_indexing(X, rows), y[rows]
            for method, fitted in repeats.items():
                scores[method][str(domain)] = [
                    check_scoring(estimator, scoring)(estimator, X_domain, y_domain)
                    for estimator in fitted
                ]
        if score_name is None:
            score_name = name_metric(scoring, next(iter(repeats.values()))[0])
        return cls(scores=scores, score_name=score_name).plot(ax)

    def plot(self, ax=None):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        display : DomainAccuracyDisplay
            The display itself.
        """
        domains, columns = _columns(self.scores)
        n_groups, n_methods = len(next(iter(columns.values()))), len(columns)
        width = 1.5 + 0.45 * n_groups * (n_methods + 1)
        height = 4.2 if n_groups <= 15 else 6  # of names that stand upright
        self.figure_, axes = make_axes(ax, 1, 1, (np.clip(width, 5, 14), height))
        self.ax_ = axes[0, 0]
        self.bars_ = {}
        for i, (method, groups) in enumerate(columns.items()):
            self.bars_[method] = self._draw_method(i, n_methods, method, groups)
        self._label(domains, n_groups, n_methods)
        return self

    def _draw_method(self, i, n_methods, method, groups):
        width = 0.84 / n_methods
        means, deviations = np.array([_mean_and_deviation(g) for g in groups]).T
        bars = self.ax_.bar(
            np.arange(len(groups)) + (i - (n_methods - 1) / 2) * width,
            means,
            width,
            yerr=None if np.isnan(deviations).all() else deviations,
            capsize=3,
            color=COLORS[i % len(COLORS)],
            edgecolor=line_color(self.ax_),
            ecolor=line_color(self.ax_),
            hatch=_HATCHES[i % len(_HATCHES)],
        )
        room = self._inches() / (len(groups) + 0.2) * width
        if room > 0.13:  # the height of a line: narrower bars have no numbers
            rotation = 0 if room > 0.36 else 90
            self.ax_.bar_label(
                bars, fmt="%.2f", padding=3, fontsize=9, rotation=rotation
            )
        return bars

    def _label(self, domains, n_groups, n_methods):
        ax = self.ax_
        # The width of a character at the usual font size is 0.085 inches.
        room = int(self._inches() / (n_groups + 0.2) / 0.085)
        upright = room < _NARROWEST
        names = short_names(domains, 28 if upright else 56)
        if not upright:
            names = [textwrap.fill(name, min(room, 14)) for name in names]
        names = list(map(verbatim, names))
        if n_groups > len(domains):
            names.append(_MEAN)
            ax.axvline(n_groups - 1.5, color=line_color(ax), linestyle=":")
        ax.set_xticks(range(n_groups), names, rotation=90 if upright else 0)
        ax.set_xlim(-0.6, n_groups - 0.4)
        ax.margins(y=0.15)
        ax.set_ylabel(verbatim(self.score_name))
        ax.axhline(0, color=line_color(ax), linewidth=0.8)
        methods = short_names(self.bars_, 56)
        add_legend(
            ax,
            list(self.bars_.values()),
            methods,
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            ncols=_legend_columns(methods, self._inches()),
        )

    def _inches(self):
        return self.ax_.bbox.width / self.figure_.dpi


def _legend_columns(names, inches):
    """As many as fit, and evenly filled."""
    # The width of a character and of the patch with its gaps, at the usual font size.
    fitting = max(1, int(inches / (0.085 * max(len(str(n)) for n in names) + 0.6)))
    n_rows = -(-len(names) // fitting)
    return -(-len(names) // n_rows)


def _columns(scores):
    """Return the domains, and by method a list of repeats for each group of bars."""
    nested = isinstance(scores, dict) and scores
    if not nested or not all(isinstance(s, dict) and s for s in scores.values()):
        raise ValueError(
            f"scores is {scores!r}, expected {{method: {{domain: score or scores}}}}, "
            "with one method and one domain at least."
        )
    first, domains = next((m, list(by_domain)) for m, by_domain in scores.items())
    columns = {}
    for method, by_domain in scores.items():
        if set(by_domain) != set(domains):
            raise ValueError(
                f"{method!r} has scores of the domains {sorted(map(str, by_domain))}, "
                f"expected those of {first!r}, {sorted(map(str, domains))}."
            )
        groups = [_repeats(by_domain[d], method, d) for d in domains]
        if len(domains) > 1:
            groups.append(_mean_over_domains(groups))
        columns[method] = groups
    return [str(domain) for domain in domains], columns


def _repeats(values, method, domain):
    if isinstance(values, dict):
        raise ValueError(
            f"the score of {method!r} in domain {domain!r} is a dict of the measures "
            f"{list(values)}, expected numbers of one of them: take, of the scores of "
            "a report, {m: {d: s['accuracy'] for d, s in by_domain.items()} for m, "
            "by_domain in scores.items()}."
        )
    repeats = np.asarray(values, dtype=float).reshape(-1)
    if not repeats.size or not np.isfinite(repeats).all():
        raise ValueError(
            f"the score of {method!r} in domain {domain!r} is {values}, expected "
            "finite numbers. Some scores need all classes in each domain."
        )
    return repeats


def _mean_over_domains(groups):
    if len({len(repeats) for repeats in groups}) == 1:
        return np.mean(groups, axis=0)
    return np.array([np.mean([repeats.mean() for repeats in groups])])


def _mean_and_deviation(repeats):
    deviation = repeats.std(ddof=1) if len(repeats) > 1 else np.nan
    return repeats.mean(), deviation
