"""A tower that computes what is used of its last block gives the same embeddings."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformer = pytest.importorskip("open_clip.transformer")

from skclip_icm._encoding.class_token import drop_unused_tokens  # noqa: E402

SIZES = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "heads": 2}


def tower(**options):
    torch.manual_seed(0)
    sizes = {**SIZES, "mlp_ratio": 4.0, "output_dim": 16, **options}
    visual = transformer.VisionTransformer(**sizes).eval()
    for parameter in visual.parameters():  # also those that begin as zeros or ones
        torch.nn.init.normal_(parameter, 0, 0.2)
    return visual


def images():
    return torch.from_numpy(
        np.random.default_rng(0).normal(size=(5, 3, 32, 32))
    ).float()


def tokens_in_last_mlp(visual):
    """Embed `images`; return the embeddings, and for how many tokens the MLP ran."""
    counts = []
    mlp = visual.transformer.resblocks[-1]
    mlp = getattr(mlp, "block", mlp).mlp
    hook = mlp.register_forward_hook(lambda m, x, y: counts.append(x[0].shape[1]))
    with torch.inference_mode():
        embeddings = visual(images())
    hook.remove()
    return embeddings, counts


@pytest.mark.parametrize(
    "options",
    [{}, {"ls_init_value": 0.5}, {"final_ln_after_pool": True}, {"layers": 1}],
)
def test_the_same_embeddings_from_one_token(options):
    visual = tower(**options)
    before, counts = tokens_in_last_mlp(visual)
    assert counts == [17]
    assert drop_unused_tokens(visual, images()[:1]) is visual
    after, counts = tokens_in_last_mlp(visual)
    assert counts == [1]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"pool_type": "avg"}, {"attentional_pool": True}, {"qk_norm": True}]
)
def test_towers_that_use_other_tokens_or_other_blocks_stay(options):
    visual = tower(**options)
    before, counts = tokens_in_last_mlp(visual)
    after, counts_after = tokens_in_last_mlp(drop_unused_tokens(visual, images()[:1]))
    assert counts == counts_after == [17]
    assert torch.equal(after, before)


def test_other_towers_stay():
    visual = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.Flatten())
    assert drop_unused_tokens(visual, images()[:1]) is visual


def test_a_block_that_computes_something_else_stays(monkeypatch):
    """As another version of open_clip might."""
    forward = transformer.ResidualAttentionBlock.forward
    monkeypatch.setattr(
        transformer.ResidualAttentionBlock,
        "forward",
        lambda self, x, attn_mask=None: forward(self, x) + x.mean(1, keepdim=True),
    )
    visual = tower()
    before, _ = tokens_in_last_mlp(visual)
    after, counts = tokens_in_last_mlp(drop_unused_tokens(visual, images()[:1]))
    assert counts == [17]
    assert torch.equal(after, before)
