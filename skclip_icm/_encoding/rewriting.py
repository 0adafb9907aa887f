"""Changes to a model that must not change what it computes."""


def rewrite(module, example, change):
    """Change a module, and undo that if its output is another than before.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode; changed in place.
    example : tensor
        An input the module accepts; its shape, dtype and device count.
    change : callable
        ``change(probe)`` changes the module and returns a callable that undoes it.
        `probe` is an input of varied values, for forward passes of its own.

    Returns
    -------
    module : torch.nn.Module
        The same object, computing the same function up to rounding.

    Examples
    --------
    >>> import torch
    >>> from skclip_icm._encoding.rewriting import rewrite
    >>> module = torch.nn.Sequential(torch.nn.Identity())
    >>> def spoil(probe):
    ...     module[0] = torch.nn.Linear(2, 2)
    ...     return lambda: module.__setitem__(0, torch.nn.Identity())
    >>> rewrite(module, torch.zeros(1, 2), spoil)[0]
    Identity()
    """
    import torch

    probe = torch.linspace(-2, 2, example.numel()).view_as(example).to(example)
    with torch.inference_mode():
        expected = module(probe)
    undo = change(probe)  # outside: weights made in inference mode cannot be trained
    with torch.inference_mode():
        error = (module(probe) - expected).abs().max()
    if not error <= 1e-3 * expected.abs().max():
        undo()
    return module
