"""Image towers in int8, quantised by NNCF on a sample of images."""

import hashlib
import importlib.util
import os
from contextlib import contextmanager
from importlib.metadata import version

import numpy as np

from skclip_icm._encoding.openvino_tower import MIN_COSINE, min_cosine
from skclip_icm._images.decoding import decode, digest
from skclip_icm._images.inputs import as_items, read_content

_BATCH = 8


class Calibration:
    """A sample of images that says what values to expect inside a model.

    Parameters
    ----------
    images : sequence of images
        As `CLIPFeaturizer` takes them.

    Raises
    ------
    ImportError
        If NNCF is not installed.
    ValueError, TypeError
        If there are no images, or what is given is none.
    """

    def __init__(self, images):
        if images is None:
            raise ValueError(
                "dtype='int8' needs calibration, found none. Give some hundred images "
                "that are typical of yours, as paths: CLIPFeaturizer(dtype='int8', "
                "calibration=paths)."
            )
        if importlib.util.find_spec("nncf") is None:
            raise ImportError(
                "dtype='int8' needs the package nncf, which is not installed. Run: "
                'pip install "skclip-icm[openvino]"'
            )
        self._names, self.contents, found = [], [], hashlib.sha256()
        with _told_of_calibration():
            for row, item in enumerate(as_items(images)):
                self._names.append(
                    os.fsdecode(item) if isinstance(item, str | os.PathLike) else ""
                )
                self.contents.append(read_content(item, row))
                found.update(digest(self.contents[-1], row))
        self.key = found.hexdigest()

    def quantizer(self, resize, is_transformer):
        """Return a `Quantizer` on the images as a model sees them."""
        rows = enumerate(zip(self.contents, self._names, strict=True))
        with _told_of_calibration():
            images = [
                np.asarray(decode(content, row, name, None, resize))
                for row, (content, name) in rows
            ]
        return Quantizer(np.stack(images), is_transformer)


@contextmanager
def _told_of_calibration():
    """Let errors say that it is not X whose rows they name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"calibration: {error}") from error


class Quantizer:
    """Turn a converted model into one that computes in int8.

    Parameters
    ----------
    pixels : ndarray of shape (n, height, width, 3), uint8
        Images to calibrate on.
    is_transformer : bool
        Whether the tower is one.

    Attributes
    ----------
    identity : list of str
        What decides the result beside the model: the pixels and the version of NNCF.
    """

    def __init__(self, pixels, is_transformer):
        self.pixels, self._is_transformer = pixels, is_transformer
        self.identity = [hashlib.sha256(pixels).hexdigest(), version("nncf")]

    def __call__(self, model, run):
        """Return the quantised model.

        Parameters
        ----------
        model : openvino.Model
            In float32.
        run : callable
            ``run(model)`` returns a callable from pixels to embeddings.

        Returns
        -------
        quantized : openvino.Model
            Another one.

        Raises
        ------
        ValueError
            If the cosine of its embeddings with those in float32 is below 0.999 for an
            image of the sample.
        """
        import nncf

        expected = self._embed(run(model))
        quantized = nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in self.pixels]),
            subset_size=len(self.pixels),
            model_type=nncf.ModelType.TRANSFORMER if self._is_transformer else None,
        )
        found = min_cosine(self._embed(run(quantized)), expected)
        if not found >= MIN_COSINE:
            raise ValueError(
                "dtype='int8' changes the embeddings too much: the smallest cosine to "
                f"those in float32 is {found:.4f} on the {len(self.pixels)} images of "
                f"calibration, expected at least {MIN_COSINE}. Use dtype='auto'; "
                "models other than vision transformers seldom bear int8."
            )
        return quantized

    def _embed(self, encode):
        parts = range(0, len(self.pixels), _BATCH)
        return np.concatenate([encode(self.pixels[i : i + _BATCH]) for i in parts])
