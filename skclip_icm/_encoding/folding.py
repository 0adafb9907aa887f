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
    output : tensor
        What the module gives for `example`; afterwards, it gives that up to rounding.
        Norms stay that no convolution feeds, or one whose output or weights are used
        besides, or that does more than convolve.

    Examples
    --------
    >>> import torch
    >>> from skclip_icm._encoding.folding import fold_batch_norm
    >>> tower = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    ... ).eval()
    >>> fold_batch_norm(tower, torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 8, 6, 6])
    >>> tower[1]
    Identity()
    """
    import torch

    pairs, output = _conv_norm_pairs(module, example)
    for conv, norm_name in pairs:
        norm = module.get_submodule(norm_name)
        if _fold(conv, norm):
            activation = getattr(norm, "act", torch.nn.Identity())
            module.set_submodule(norm_name, activation)
    return output


def _fold(conv, norm):
    """Fold if that changes nothing but rounding; return whether it was done."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    weight, bias = conv.weight, conv.bias
    fused = fuse_conv_bn_weights(
        weight,
        bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    if type(conv) is torch.nn.Conv2d and not conv._forward_pre_hooks:
        conv.weight, conv.bias = fused
        return True
    # One of another class may do more with its weights than convolve.
    spread = zip(conv.dilation, conv.kernel_size, strict=True)
    sides = [1 + step * (size - 1) for step, size in spread]
    numbers = torch.linspace(-2, 2, conv.in_channels * sides[0] * sides[1])
    patch = numbers.view(1, conv.in_channels, *sides).to(weight)
    with torch.inference_mode():
        expected = norm(conv(patch))
        conv.weight, conv.bias = fused
        found = getattr(norm, "act", torch.nn.Identity())(conv(patch))
        same = (found - expected).abs().max() <= 1e-3 * expected.abs().max()
    if not same:
        conv.weight, conv.bias = weight, bias
    return same


def _conv_norm_pairs(module, example):
    """List the (convolution, name of the batch norm it alone feeds); and the output."""
    import torch
    from torch.overrides import TorchFunctionMode

    # Tensors are held as long as their ids are keys, so that no id is used again.
    outputs, calls, pairs, handles = {}, {}, [], []
    uses = {id(weight): 0 for weight in module.parameters()}

    class Uses(TorchFunctionMode):
        """Counts what is computed of a tensor; its shape and the like are not."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if any(isinstance(part, torch.Tensor) for part in _parts([result])):
                for part in _parts([*args, *(kwargs or {}).values()]):
                    if id(part) in uses:
                        uses[id(part)] += 1
            return result

    def after_conv(conv, inputs, output):
        calls[conv] = calls.get(conv, 0) + 1
        outputs[id(output)] = conv, output
        uses[id(output)] = 0

    def before_norm(name, norm, inputs):
        if id(inputs[0]) in outputs:
            pairs.append((*outputs[id(inputs[0])], name))

    for name, child in module.named_modules():
        if isinstance(child, torch.nn.Conv2d):
            handles.append(child.register_forward_hook(after_conv))
        elif isinstance(child, torch.nn.BatchNorm2d) and child.track_running_stats:
            hook = functools.partial(before_norm, name)
            handles.append(child.register_forward_pre_hook(hook))
    try:
        with torch.inference_mode(), Uses():
            result = module(example)
    finally:
        for handle in handles:
            handle.remove()
    norms = [name for *_, name in pairs]
    alone = [
        (conv, name)
        for conv, output, name in pairs
        if calls[conv] == norms.count(name) == 1
        and uses[id(output)] == uses.get(id(conv.weight)) == 1
    ]
    return alone, result


def _parts(values):
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from value
        else:
            yield value
