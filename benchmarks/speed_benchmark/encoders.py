"""What turns images into embeddings: this package, and what people use instead."""

import copy
import functools
import json
import os
import warnings

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.utils.data import DataLoader

from skclip_icm import CLIPFeaturizer
from skclip_icm._encoding.encoder import load_encoder


class NoCache:
    """A cache that keeps nothing, so that every call encodes."""

    def get_many(self, keys):
        return [None] * len(keys)

    def put_many(self, keys, rows):
        pass


def featurizer(model, **options):
    options = {"interventions": None, "cache": NoCache(), "device": "cpu", **options}
    return CLIPFeaturizer(*model, **options)


def bare_model(model, images, batch_size=32):
    """(a): forward passes on tensors that are ready, in our dtype, and nothing else."""
    encoder = load_encoder(*model, device="cpu")
    dtype = getattr(torch, encoder.dtype)
    tower, preprocess = _open_clip(model)
    tower = copy.deepcopy(tower).to(dtype)
    ready = torch.stack([preprocess(Image.fromarray(i)) for i in images]).to(dtype)

    def run():
        with torch.inference_mode():
            parts = [
                tower.encode_image(batch).float() for batch in ready.split(batch_size)
            ]
        return torch.cat(parts).numpy()

    return run


def bare_openvino(model, images, batch_size=16):
    """(e): OpenVINO's own queue of requests on pixels that are ready, in our dtype."""
    import openvino

    tower, preprocess = _open_clip(model)
    ready = torch.stack([preprocess(Image.fromarray(i)) for i in images]).numpy()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it cannot be traced
    try:
        with torch.no_grad():
            example = torch.from_numpy(ready[:2])
            traced = torch.jit.trace(tower.visual, example, check_trace=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    size = openvino.PartialShape([-1, *ready.shape[1:]])
    converted = openvino.convert_model(traced, input=[(size, openvino.Type.f32)])
    precision = "bf16" if load_encoder(*model).dtype == "bfloat16" else "f32"
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.compile_model(converted, "CPU", settings)

    def run():
        parts, queue = {}, openvino.AsyncInferQueue(compiled)
        queue.set_callback(
            lambda request, start: parts.update(
                {start: request.get_output_tensor(0).data.copy()}
            )
        )
        for start in range(0, len(ready), batch_size):
            queue.start_async([ready[start : start + batch_size]], start)
        queue.wait_all()
        return np.concatenate([parts[start] for start in sorted(parts)])

    return run


def open_clip_loop(model, items, batch_size=32):
    """(b): open_clip's preprocessing image by image, then float32 batches."""
    tower, preprocess = _open_clip(model)

    def run():
        parts = []
        for start in range(0, len(items), batch_size):
            images = [preprocess(_open(i)) for i in items[start : start + batch_size]]
            with torch.no_grad():
                parts.append(tower.encode_image(torch.stack(images), normalize=True))
        return torch.cat(parts).numpy()

    return run


def sentence_transformers_clip(folder, items, quick):
    """(c): images opened one by one, then SentenceTransformer.encode, as embetter does.

    The architecture is that of its "clip-ViT-B-32"; the weights are random and are not
    those of the others.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    clip = SentenceTransformer(
        modules=[Transformer(_transformers_clip(folder, quick))], device="cpu"
    )

    def run():
        images = [_open(item).convert("RGB") for item in items]
        return clip.encode(images, batch_size=32, show_progress_bar=False)

    return run


def dataloader_loop(model, items):
    """(d): a DataLoader with workers, and features in batches of 64.

    CLIP_benchmark's autocast is for CUDA; on a CPU it computes in float32.
    """
    tower, preprocess = _open_clip(model)
    loader = DataLoader(
        _Preprocessed(items, preprocess), batch_size=64, num_workers=os.cpu_count()
    )

    def run():
        parts = []
        with torch.no_grad():
            for images in loader:
                features = tower.encode_image(images)
                parts.append(torch.nn.functional.normalize(features, dim=-1))
        return torch.cat(parts).numpy()

    return run


class _Preprocessed(torch.utils.data.Dataset):
    def __init__(self, items, preprocess):
        self.items, self.preprocess = items, preprocess

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.preprocess(_open(self.items[index]))


def _open(item):
    return Image.fromarray(item) if isinstance(item, np.ndarray) else Image.open(item)


@functools.cache
def _open_clip(model):
    name, weights = model
    tower = open_clip.create_model(name, weights).eval()
    preprocess = PreprocessCfg(**tower.visual.preprocess_cfg)
    return tower, image_transform_v2(preprocess, is_train=False)


def _transformers_clip(folder, quick):
    """Save a CLIP model of transformers with random weights; return its folder."""
    import transformers as tf

    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    small = {**small, "num_attention_heads": 2} if quick else {}
    path = folder / "transformers-clip"
    path.mkdir(exist_ok=True)
    config = tf.CLIPConfig(text_config=dict(small), vision_config=dict(small))
    letters = ["<|startoftext|>", "<|endoftext|>", "a</w>"]
    (path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(letters)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf.CLIPModel(config).save_pretrained(path)
        tokenizer = tf.CLIPTokenizer.from_pretrained(path)
        processor = tf.CLIPProcessor(tf.CLIPImageProcessor(), tokenizer)
        processor.save_pretrained(path)
    return str(path)
