"""What is shown while images are encoded: nothing, unless it is asked for.

`verbose` shows a bar. Where scikit-learn has callbacks (1.9), those that are set on an
estimator or on a pipeline around it, such as its ``ProgressBar``, are told as well.
"""

import logging
import time
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for scikit-learn's; there are no callbacks."""


logger = logging.getLogger("skclip_icm")

# The estimator that is being fitted, and its callback context.
_FITTING: ContextVar = ContextVar("_FITTING", default=None)
# Callbacks keep every step that they are told of, so they are told of few.
_MAX_STEPS = 100


@contextmanager
def progress_bar(name, n_images, *, verbose):
    """Tell how many images are done, how many a second, and the time left.

    Parameters
    ----------
    name : str
        What the bar is labelled with.
    n_images : int
        Number of images and counterparts.
    verbose : bool or int
        Whether to show a bar. The log and callbacks are told in any case.

    Yields
    ------
    bar : object
        Its ``begin()`` shows it: nothing is told before, nor where all is in the cache.
        ``update(m)`` says that `m` more images are done, and ``update(m,
        encoded=False)`` that they needed no encoding.

    Examples
    --------
    >>> from skclip_icm._encoding.progress import progress_bar
    >>> with progress_bar("CLIPFeaturizer", 100, verbose=False) as bar:
    ...     bar.begin()
    ...     bar.update(64)
    """
    with ExitStack() as stack:
        bar = _Bar(name, n_images, verbose, stack)
        yield bar
    if bar.n_encoded:
        seconds = time.perf_counter() - bar.start
        told = name, bar.n_encoded, seconds, bar.n_encoded / max(seconds, 1e-9)
        logger.info("%s: encoded %d images in %.1f s, %.1f a second", *told)


@contextmanager
def tell_callbacks(estimator, X):
    """Tell the callbacks of an estimator when its fit begins and ends.

    What is encoded in between becomes a step of its own in scikit-learn's
    ``ProgressBar``. Without callbacks in scikit-learn, nothing happens.

    Parameters
    ----------
    estimator : estimator with CallbackSupportMixin
        The estimator, within a method that `sklearn.base._fit_context` decorates.
    X : object
        What it is fitted on.
    """
    within = _FITTING.get() is not None
    # An estimator within one of ours is a part of that one's fit.
    part = within and not hasattr(estimator, "_parent_callback_ctx")
    if part or not hasattr(estimator, "_init_callback_context"):
        yield
        return
    # How often it encodes is not known: what is in the cache is not encoded.
    context = estimator._init_callback_context(max_subtasks=None)
    context.call_on_fit_task_begin(estimator=estimator, X=X)
    token = _FITTING.set((estimator, context))
    try:
        yield
    finally:
        _FITTING.reset(token)
    context.call_on_fit_task_end(estimator=estimator, X=X, reconstruction_attributes={})


class _Bar:
    def __init__(self, name, n_images, verbose, stack):
        self._name, self._n_images, self._verbose = name, n_images, verbose
        self._stack, self._listeners, self._n_done = stack, None, 0
        self.start, self.n_encoded = time.perf_counter(), 0

    def begin(self):
        if self._listeners is not None:
            return
        self._listeners = []
        if self._verbose:
            from tqdm.auto import tqdm

            options = {"total": self._n_images, "initial": self._n_done}
            shown = tqdm(unit="img", desc=self._name, **options)
            self._listeners.append(self._stack.enter_context(shown).update)
        if _FITTING.get() is not None:
            update = self._stack.enter_context(_callback_task(self._n_images))
            update(self._n_done)
            self._listeners.append(update)

    def update(self, n_images, encoded=True):
        n_images = min(n_images, self._n_images - self._n_done)
        self._n_done += n_images
        self.n_encoded += n_images if encoded else 0
        for listener in self._listeners or () if n_images else ():
            listener(n_images)


@contextmanager
def _callback_task(n_images):
    """Tell the callbacks of the estimator being fitted about a share at a time."""
    estimator, context = _FITTING.get()
    n_steps = min(n_images, _MAX_STEPS)
    task = context.subcontext(f"encode {n_images} images", max_subtasks=n_steps)
    task.call_on_fit_task_begin(estimator=estimator)
    done = told = 0

    def update(n_more):
        nonlocal done, told
        done += n_more
        while told < min(done * n_steps // n_images, n_steps):
            told += 1
            step = task.subcontext(f"images up to {told * n_images // n_steps}")
            step.call_on_fit_task_begin(estimator=estimator)
            step.call_on_fit_task_end(estimator=estimator)

    yield update
    task.call_on_fit_task_end(estimator=estimator)
