"""Batch normalisation folded into convolutions: the same function, sooner."""

import functools


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
    >>> from skclip_icm._encoding.folding import fold_batch_norm
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
    undo = _fold_all(module, probe)  # outside: weights made in it cannot be trained
    with torch.inference_mode():
        error = (module(probe) - expected).abs().max()
    # A convolution may do more with its weights than convolve, or its output may be
    # used besides the norm.
    if not error <= 1e-3 * expected.abs().max():
        undo()
    return module


def _fold_all(module, probe):
    import torch

    replaced = [
        (conv, conv.weight, conv.bias, norm_name, module.get_submodule(norm_name))
        for conv, norm_name in _conv_norm_pairs(module, probe)
    ]
    for conv, _, _, norm_name, norm in replaced:
        _fold(conv, norm)
        module.set_submodule(norm_name, getattr(norm, "act", torch.nn.Identity()))

    def undo():
        for conv, weight, bias, norm_name, norm in replaced:
            conv.weight, conv.bias = weight, bias
            module.set_submodule(norm_name, norm)

    return undo


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
