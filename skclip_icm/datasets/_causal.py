"""Embeddings from a linear causal model whose factors are known."""

from numbers import Integral, Real

import numpy as np
from sklearn.utils import Bunch, check_random_state

from skclip_icm._estimators import Interval, validate_params
from skclip_icm.pairs import PairedEmbeddings

SHIFT = 0.75

DESCR = """\
Embeddings of a known linear causal model
-----------------------------------------
f(x) = A_inv z_inv + A_var z_var + noise. The class shifts the mean of each invariant
factor by 0.75 standard deviations up or down, in both domains. It shifts each variant
factor as much in the training domain, and the opposite way in the test domain. Each
row has a counterpart with the same invariant factors, other variant factors (drawn
afresh and independently of the class, or moved a little), and noise of its own. The
columns of A = [A_inv, A_var] are orthonormal.
"""


@validate_params(
    {
        "n_samples": [Interval(Integral, 2, None, closed="left")],
        "n_invariant": [Interval(Integral, 1, None, closed="left")],
        "n_variant": [Interval(Integral, 1, None, closed="left")],
        "n_features": [Interval(Integral, 2, None, closed="left")],
        "noise": [Interval(Real, 0, None, closed="left")],
        "intervention_scale": [Interval(Real, 0, None, closed="neither"), None],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_causal_embeddings(
    n_samples=2000,
    *,
    n_invariant=16,
    n_variant=16,
    n_features=64,
    noise=0.02,
    intervention_scale=None,
    random_state=None,
):
    r"""Draw paired embeddings :math:`f(x) = A z` with known factors.

    Parameters
    ----------
    n_samples : int, default=2000
        Rows in each of the two domains.
    n_invariant, n_variant : int, default=16
        Numbers of invariant and variant factors.
    n_features : int, default=64
        Width of the embeddings, at least ``n_invariant + n_variant``.
    noise : float, default=0.02
        Standard deviation of the noise on each feature.
    intervention_scale : float or None, default=None
        How far the intervention moves each variant factor, as a standard deviation.
        None: it sets them to anything that the two domains hold. To train on the
        counterparts as well then solves the task, too. With a small number, such as
        0.3, counterparts come nowhere near the test domain: which directions move is
        still seen, but training on them does not help.
    random_state : int, RandomState instance or None, default=None
        Determines the draw.

    Returns
    -------
    data : Bunch
        ``embeddings``: `PairedEmbeddings` of shape (2 * n_samples, n_features),
        float32; ``target``: int array, 0 or 1; ``domains``: int array, 0 in the
        training domain and 1 in the shifted test domain; ``target_names`` and
        ``domain_names``: lists of str; ``A_inv`` and ``A_var``: ndarrays of shape
        (n_features, n_invariant) and (n_features, n_variant); ``DESCR``: str.

    Raises
    ------
    ValueError
        If there are more factors than features.

    Examples
    --------
    >>> from skclip_icm.datasets import make_causal_embeddings
    >>> data = make_causal_embeddings(100, random_state=0)
    >>> data.embeddings.shape, data.embeddings.counterparts.shape
    ((200, 64), (200, 1, 64))
    """
    if n_invariant + n_variant > n_features:
        raise ValueError(
            f"n_invariant + n_variant = {n_invariant + n_variant} factors do not fit "
            f"into n_features = {n_features}: raise n_features."
        )
    rng = check_random_state(random_state)
    A = np.linalg.qr(rng.normal(size=(n_features, n_invariant + n_variant)))[0]
    A_inv, A_var = A[:, :n_invariant], A[:, n_invariant:]

    n = 2 * n_samples
    domains = np.repeat([0, 1], n_samples)
    target = rng.randint(2, size=n)
    shift = SHIFT * (2 * target - 1)[:, None]
    z_inv = rng.normal(size=(n, n_invariant)) + shift
    tie = np.where(domains == 0, 1, -1)[:, None]
    z_var = rng.normal(size=(n, n_variant)) + tie * shift
    moved = rng.normal(size=(n, n_variant))
    if intervention_scale is None:
        z_do = moved + SHIFT * rng.choice([-1, 1], (n, 1))
    else:
        z_do = z_var + intervention_scale * moved

    def embed(variant):
        clean = z_inv @ A_inv.T + variant @ A_var.T
        return (clean + noise * rng.normal(size=clean.shape)).astype(np.float32)

    return Bunch(
        embeddings=PairedEmbeddings(embed(z_var), embed(z_do)),
        target=target,
        domains=domains,
        target_names=["negative", "positive"],
        domain_names=["train", "test"],
        A_inv=A_inv,
        A_var=A_var,
        DESCR=DESCR,
    )
