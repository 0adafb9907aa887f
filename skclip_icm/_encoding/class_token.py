"""The last MLP of a vision transformer, for the one token that is used."""

from open_clip import transformer
from torch import nn

from skclip_icm._encoding.rewriting import rewrite


def drop_unused_tokens(visual, example):
    """Let the last MLP of an open_clip tower compute the class token only.

    The embedding is made of the class token. In the last block, all tokens are needed
    as keys and values, but the MLP of the others leads nowhere: 8 of the 12 d x d
    products per token of a block (query, key, value, output: 4; MLP: 8). With 12 blocks
    that is 5.6 % of all of them. Queries of the others lead nowhere, either, but torch
    is quick in computing attention only where queries and keys are the same tokens.

    Parameters
    ----------
    visual : torch.nn.Module
        A tower, in eval mode; changed in place.
    example : tensor of shape (1, 3, height, width)
        An input the module accepts, for the forward pass.

    Returns
    -------
    visual : torch.nn.Module
        The same object, computing the same function up to rounding. Towers of other
        makes, or that use more than the class token, stay as they are.

    Examples
    --------
    >>> import open_clip
    >>> import torch
    >>> from skclip_icm._encoding.class_token import drop_unused_tokens
    >>> tower = open_clip.create_model("ViT-S-32").visual.eval()
    >>> images = torch.rand(2, 3, 224, 224)
    >>> with torch.inference_mode():
    ...     before = tower(images)
    ...     after = drop_unused_tokens(tower, images[:1])(images)
    >>> torch.allclose(before, after, atol=1e-4)
    True
    """
    if not _uses_class_token_only(visual):
        return visual
    blocks = visual.transformer.resblocks
    whole = blocks[-1]

    def shorten(probe):
        blocks[-1] = _ClassTokenBlock(whole)
        return lambda: blocks.__setitem__(-1, whole)

    # Undone where another version of open_clip computes otherwise.
    return rewrite(visual, example, shorten)


class _ClassTokenBlock(nn.Module):
    """A block that returns its first token."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, attn_mask=None):  # image towers pass no mask
        block = self.block
        token = (x + block.ls_1(block.attention(block.ln_1(x))))[:, :1]
        return token + block.ls_2(block.mlp(block.ln_2(token)))


def _uses_class_token_only(visual):
    return (
        type(visual) is transformer.VisionTransformer
        and type(visual.transformer) is transformer.Transformer
        and visual.transformer.batch_first
        and type(visual.transformer.resblocks[-1]) is transformer.ResidualAttentionBlock
        and visual.pool_type == "tok"
        and visual.attn_pool is None
        and not visual.output_tokens
    )
