"""How fast images are encoded on a GPU, beside the bare model and a DataLoader loop.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --model ViT-L-14 --images 4096

It takes about five minutes and writes benchmarks/results/gpu.md. Weights are random,
since speed does not depend on them. Without a GPU it says so and writes nothing.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from machine import cpu, installed
from PIL import Image
from safetensors.torch import save_file

from skclip_icm import CLIPFeaturizer, unload_models

RESULTS = Path(__file__).parent / "results"
DTYPES = ("float32", "bfloat16", "float16")
BATCH = 256


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("There is no CUDA GPU here (torch.cuda.is_available() is False).")
        print("Nothing was measured and nothing written.")
        return
    with tempfile.TemporaryDirectory() as folder:
        text = to_markdown(options, measure(options, Path(folder)))
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "gpu.md").write_text(text, encoding="utf-8")
    print(text)


def measure(options, folder):
    """Return a row (name, images/s, smallest cosine, peak GiB) for each contestant."""
    torch.manual_seed(0)
    model = open_clip.create_model(options.model).eval()
    weights = folder / "random.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    cfg = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    shape = options.images, *cfg.input_size[1:], 3
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rows, exact = [], None
    for dtype in DTYPES:
        featurizer = CLIPFeaturizer(
            options.model,
            str(weights),
            interventions=None,
            device="cuda",
            dtype=dtype,
            cache=_NoCache(),
        )
        contestants = {
            "skclip-icm": lambda images, f=featurizer: f.transform(images),
            "bare model": lambda images, d=dtype: bare(model, images, d),
            "DataLoader": lambda images, d=dtype: loader(model, images, d),
        }
        for name, run in contestants.items():
            run(images[:BATCH])  # to load and to choose kernels
            torch.cuda.reset_peak_memory_stats()
            seconds = []
            for _ in range(options.repeats):
                start = time.perf_counter()
                found = run(images)
                seconds.append(time.perf_counter() - start)
            peak = torch.cuda.max_memory_allocated() / 2**30
            found = found / np.linalg.norm(found, axis=1, keepdims=True)
            exact = found if exact is None else exact
            cosine = float(np.vecdot(found, exact[: len(found)]).min())
            speed = len(images) / min(seconds)
            rows.append((f"{name}, {dtype}", speed, cosine, peak))
            print(rows[-1], flush=True)
        unload_models()
        model.to("cpu", torch.float32)
        torch.cuda.empty_cache()
    return rows


class _NoCache:
    def get_many(self, keys):
        return [None] * len(keys)

    def put_many(self, keys, rows):
        pass


def bare(model, images, dtype):
    """Embed one batch that is on the GPU already, as often as it takes."""
    model.to("cuda", getattr(torch, dtype))
    batch = normalized(torch.from_numpy(images[:BATCH]).permute(0, 3, 1, 2), dtype)
    with torch.inference_mode():
        parts = [model.encode_image(batch) for _ in range(-(-len(images) // BATCH))]
        return torch.cat(parts[:1]).float().cpu().numpy()


def loader(model, images, dtype):
    """Embed with open_clip's transform in a DataLoader, as its README does."""
    model.to("cuda", getattr(torch, dtype))
    cfg = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    transform = open_clip.transform.image_transform_v2(cfg, is_train=False)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, row):
            return transform(Image.fromarray(images[row]))

    batches = torch.utils.data.DataLoader(
        Images(), batch_size=BATCH, num_workers=8, pin_memory=True
    )
    with torch.inference_mode():
        parts = [
            model.encode_image(batch.to("cuda", getattr(torch, dtype)))
            for batch in batches
        ]
        return torch.cat(parts).float().cpu().numpy()


def normalized(pixels, dtype):
    mean, std = (
        torch.tensor(values, device="cuda").view(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    batch = pixels.to("cuda").float().div(255).sub(mean).div(std)
    return batch.to(getattr(torch, dtype))


def to_markdown(options, rows):
    lines = [
        "# Encoding on a GPU",
        "",
        f"{torch.cuda.get_device_name()}, {cpu()}; torch {torch.__version__}, "
        f"open_clip {installed('open_clip_torch')}. {options.model} with random "
        f"weights, {options.images} arrays of the model's input size, best of "
        f"{options.repeats}. The bare model has its batch on the GPU already.",
        "",
        "| contestant | images/s | smallest cosine to float32 | peak memory, GiB |",
        "|---|---|---|---|",
    ]
    lines += [f"| {n} | {s:.0f} | {c:.5f} | {p:.1f} |" for n, s, c, p in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
