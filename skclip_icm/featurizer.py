"""The estimator that turns images into CLIP embeddings."""

from functools import partial
from numbers import Integral

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_random_state

from skclip_icm._encoding.encode_loop import embed
from skclip_icm._encoding.encoder import load_encoder
from skclip_icm._encoding.places import cache_place, copied, model_place
from skclip_icm._encoding.progress import (
    CallbackSupportMixin,
    progress_bar,
    tell_callbacks,
)
from skclip_icm._encoding.stores import open_cache
from skclip_icm._encoding.views import AS_IS, views_of
from skclip_icm._estimators import Interval, StrOptions, VersionedEstimator
from skclip_icm._images.inputs import as_items
from skclip_icm.interventions import resolve_interventions
from skclip_icm.pairs import LazyCounterparts, PairedEmbeddings, in_container


class CLIPFeaturizer(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    VersionedEstimator,
):
    """Encode images, and their interventions, with a CLIP model.

    `transform` gives the embeddings of images. `fit_transform` gives the same values
    and carries the embeddings of their counterparts under intervention along, for the
    `ICMTransformer` behind it; these are encoded only if they are asked for. Nothing
    is learnt, so fitting is needed for `get_feature_names_out` only.

    Parameters
    ----------
    model_name : str, default="ViT-B-16"
        What `open_clip.create_model` accepts: a built-in name, "hf-hub:org/model",
        "local-dir:path"; or "demo", the small encoder of the extra ``demo``, which
        needs no download.
    pretrained : str or None, default="openai"
        For a built-in name, the tag or the file of its weights; else ignored. A tag's
        own entry says the activation function; for a file, the name must, such as
        "ViT-B-16-quickgelu". A file's preprocessing is that of all tags of the name,
        where these agree.
    interventions : str, callable, list or None, default="photometric"
        What to do to the images that should not matter: names (see
        `skclip_icm.interventions`) or callables. Each entry of a list makes
        counterparts of its own. None makes none.
    n_interventions : int, default=1
        Random draws of each intervention.
    batch_size : int or "auto", default="auto"
        Images per forward pass, fewer where memory is short. "auto" suits the model.
    device : str, default="auto"
        Such as "cpu" or "cuda:1". "auto": the first of cuda, mps and cpu that is there.
    dtype : {"auto", "float32", "bfloat16", "float16", "int8"}, default="auto"
        Precision of the model. "auto" is bfloat16 for transformers where the processor
        computes it natively, else float32. "int8" needs OpenVINO and `calibration`.
        Embeddings are float32.
    calibration : sequence of images or None, default=None
        For int8: some hundred typical images, by which the model is quantised; an error
        if one's cosine falls below 0.999.
    backend : {"auto", "torch", "openvino"}, default="auto"
        What encodes images. "auto" is OpenVINO (extra ``openvino``) on a CPU, where it
        is installed and can convert the model, else torch.
    compile : bool, default=False
        Whether `torch.compile` rewrites torch's image tower: it takes minutes and a C++
        compiler, and changes embeddings by rounding only.
    preprocessing : dict or None, default=None
        "mean", "std", "interpolation" ("bicubic", "bilinear"), "resize_mode"
        ("shortest", "longest", "squash"), in place of what the weights say.
    jpeg_decoding : {"exact", "reduced"}, default="exact"
        "reduced" decodes large JPEG files at 1/2, 1/4 or 1/8 of their size, never
        below twice what the model sees: sooner, and a little different.
    normalize : bool, default=True
        Whether embeddings have unit Euclidean norm.
    on_error : {"raise", "nan"}, default="raise"
        For an image that cannot be read: an error that names the row, or a row of NaN
        and its index in `failed_`.
    cache : None, "memory", path or object, default=None
        Where embeddings are kept, by the content of the image, the model and the
        intervention. None: in the memory of this process, the least recently used
        dropped beyond 512 MiB. "memory": the same without a bound. A path: a directory
        that other processes and later runs use too.
    n_jobs : int or None, default=None
        Threads, or processes if `joblib.parallel_config` has set such a backend. None:
        as it says, or one for each processor.
    random_state : int, RandomState instance or None, default=0
        Seed of the interventions. With an int, a counterpart depends on the seed and
        the pixels only, not on the order or number of images.
    verbose : bool, default=False
        Whether to show a progress bar.

    Attributes
    ----------
    failed_ : list of int
        Rows of the latest call, and of counterparts made of it later, that could not be
        read, with ``on_error="nan"``.

    See Also
    --------
    ICMTransformer : Uses the counterparts.
    skclip_icm.EmbeddingCache : A cache on disk, of bounded size.
    skclip_icm.unload_models : Free the memory of models.

    Notes
    -----
    Images are paths, bytes, PIL images, uint8 arrays or tensors (red, green, blue, so
    OpenCV's turned by ``image[..., ::-1]``), in a sequence, an array, a Series or a
    frame of one column. Interventions act on the image as the model sees it. Pickles
    are without the model.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip_icm import CLIPFeaturizer
    >>> images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    >>> Z = CLIPFeaturizer("demo").fit_transform(images)
    >>> Z.shape, Z.counterparts.shape
    ((3, 1280), (3, 1, 1280))
    >>> CLIPFeaturizer("demo").encode_text(["a photo of a cat."]).shape
    (1, 1280)
    """

    _parameter_constraints: dict = {
        "model_name": [str],
        "pretrained": [str, None],
        "interventions": [str, callable, list, tuple, None],
        "n_interventions": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "device": [str],
        "dtype": [StrOptions({"auto", "float32", "bfloat16", "float16", "int8"})],
        "calibration": "no_validation",
        "backend": [StrOptions({"auto", "torch", "openvino"})],
        "compile": ["boolean"],
        "preprocessing": [dict, None],
        "jpeg_decoding": [StrOptions({"exact", "reduced"})],
        "normalize": ["boolean"],
        "on_error": [StrOptions({"raise", "nan"})],
        "cache": "no_validation",
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model_name="ViT-B-16",
        pretrained="openai",
        *,
        interventions="photometric",
        n_interventions=1,
        batch_size="auto",
        device="auto",
        dtype="auto",
        calibration=None,
        backend="auto",
        compile=False,
        preprocessing=None,
        jpeg_decoding="exact",
        normalize=True,
        on_error="raise",
        cache=None,
        n_jobs=None,
        random_state=0,
        verbose=False,
    ):
        self.model_name = model_name
        self.pretrained = pretrained
        self.interventions = interventions
        self.n_interventions = n_interventions
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.calibration = calibration
        self.backend = backend
        self.compile = compile
        self.preprocessing = preprocessing
        self.jpeg_decoding = jpeg_decoding
        self.normalize = normalize
        self.on_error = on_error
        self.cache = cache
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the parameters and the kind of input; nothing is learnt.

        Parameters
        ----------
        X : sequence of images
            Images, see the notes of the class.
        y : None
            Ignored.

        Returns
        -------
        self : CLIPFeaturizer
            Itself.
        """
        with tell_callbacks(self, X):
            self._check_images(X)
            self._n_features_out = self._encoder().n_features
        return self

    def transform(self, X):
        """Embed images.

        Parameters
        ----------
        X : sequence of length n
            Images, see the notes of the class.

        Returns
        -------
        Z : ndarray of shape (n, d), float32
            Embeddings.

        Raises
        ------
        ImageError
            If an image cannot be read, unless ``on_error="nan"``.
        WeightsNotFoundError
            If the model's weights are not found.
        """
        Z, self.failed_, _ = self._embed(as_items(X), [AS_IS])
        return Z[:, 0]

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(self, X, y=None):
        """Embed images and prepare their counterparts.

        Parameters
        ----------
        X : sequence of length n
            Images, see the notes of the class.
        y : None
            Ignored.

        Returns
        -------
        Z : PairedEmbeddings of shape (n, d), float32
            The values that `transform` gives. Counterparts, (n, k, d) for k = number of
            interventions times `n_interventions`, are encoded when first asked for.

        Raises
        ------
        ImageError, WeightsNotFoundError
            As `transform` does.
        """
        with tell_callbacks(self, X):
            self._check_images(X)
            return self._pair(X, self.interventions)

    def intervene(self, X, interventions=None):
        """Embed images together with their counterparts.

        Parameters
        ----------
        X : sequence of length n
            Images, see the notes of the class.
        interventions : str, callable, list or None, default=None
            Interventions to use instead of those of the featurizer.

        Returns
        -------
        Z : PairedEmbeddings of shape (n, d), float32
            Embeddings; ``Z.counterparts`` has shape (n, k, d).

        Raises
        ------
        ValueError
            If none is named.
        """
        chosen = self.interventions if interventions is None else interventions
        if chosen is None:
            raise ValueError(
                "There is no intervention: set CLIPFeaturizer(interventions=...) or "
                "pass interventions, such as 'photometric'."
            )
        return self._pair(X, chosen)

    def encode_text(self, texts):
        """Embed texts with the model's text tower.

        Parameters
        ----------
        texts : sequence of str
            Texts; the model cuts them at its context length, with a warning.

        Returns
        -------
        T : ndarray of shape (m, d), float32
            In the space of the image embeddings.
        """
        self._validate_params()
        return self._normalized(self._encoder().encode_text(texts))

    def preview(self, X):
        """Draw images beside their interventions.

        Parameters
        ----------
        X : sequence of length n
            A few images.

        Returns
        -------
        display : skclip_icm.plotting.InterventionDisplay
            A row for each image: as the model sees it, then its counterparts.
        """
        from skclip_icm.plotting import InterventionDisplay

        return InterventionDisplay.from_estimator(self, X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __sklearn_is_fitted__(self):
        return True

    def _check_images(self, X):
        as_items(X)
        if self.interventions is not None:
            resolve_interventions(self.interventions)
        self.failed_ = []

    def _pair(self, X, interventions):
        self._validate_params()
        items, views = as_items(X), self._views(interventions)
        Z, failed, contents = self._embed(items, [AS_IS])
        Z, self.failed_ = Z[:, 0], failed
        if not views:
            return Z

        # Counterparts are made later, by the parameters of now.
        maker = copied(self)

        def compute(rows):
            embeddings, lost, _ = maker._embed(items, views, rows, contents)
            failed[:] = sorted({*failed, *lost})
            return embeddings

        later = LazyCounterparts(compute, (len(Z), len(views), Z.shape[1]))
        return in_container(PairedEmbeddings(Z, later), Z, X, self)

    def _embed(self, items, views, rows=None, expected=None):
        self._validate_params()
        encoder, size = self._encoder(), self.batch_size
        label = type(self).__name__ if AS_IS in views else "interventions"
        # Kept, so that a notebook can show the estimator without loading the model.
        self._n_features_out = encoder.n_features
        embeddings, failed, contents = embed(
            items,
            encoder,
            views,
            open_cache(cache_place(self)),
            batch_size=encoder.batch_size if size == "auto" else size,
            n_jobs=self.n_jobs,
            on_error=self.on_error,
            progress=partial(progress_bar, label, verbose=self.verbose),
            jpeg_decoding=self.jpeg_decoding,
            rows=rows,
            expected=expected,
        )
        return self._normalized(embeddings), failed, contents

    def _encoder(self):
        names = "device dtype calibration backend compile preprocessing"
        options = {name: getattr(self, name) for name in names.split()}
        return load_encoder(*model_place(self), **options)

    def _normalized(self, embeddings):
        if self.normalize:
            # Unlike numpy.linalg.norm, this makes no array of their size.
            norms = np.sqrt(np.vecdot(embeddings, embeddings))[..., None]
            embeddings /= np.maximum(norms, np.finfo(np.float32).tiny)
        return embeddings

    def _views(self, interventions):
        if interventions is None:
            return []
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
        return views_of(interventions, self.n_interventions, int(seed))
