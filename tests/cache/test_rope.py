"""`kv_rope: pre`: cached keys, their rotation undone, are what the key projection gave."""

import pytest
import torch
from torch import Tensor, nn

from helpers.tiny import assert_close, make_batch, make_examples, relative, tiny_model
from kava.cache.layers import stack_layers
from kava.cache.rope import rerotate, unrotate
from kava.model.kava import KavaModel

ROTARY = ["llama", "qwen2", "phi", "llama3_rope", "yarn"]


def projected_keys(model: KavaModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of every layer's k_proj, [L, B, H, S, D], and the cached keys of the same pass."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: object, output: Tensor) -> None:
        caught.append(output)

    hooks = [module.register_forward_hook(catch) for name, module in model.named_modules() if name.endswith("k_proj")]
    prefix = model.backbone.read(ids, mask).prefix
    for hook in hooks:
        hook.remove()
    cached, _ = stack_layers(prefix.layers, 0, prefix.length)
    heads, width = cached.shape[2], cached.shape[4]
    return torch.stack([keys.unflatten(-1, (heads, width)).transpose(1, 2) for keys in caught]), cached


@pytest.mark.parametrize("kind", ROTARY)
@torch.no_grad()
def test_unrotated_keys_are_the_projection_s_output(kind: str) -> None:
    model = tiny_model(kind)
    batch = make_batch(model, make_examples())
    expected, cached = projected_keys(model, batch.question_ids, batch.question_mask)
    positions = (batch.question_mask.long().cumsum(1) - 1).clamp(min=0)
    unrotated = unrotate(model.backbone.decoder, cached, positions[None, :, None].expand(cached.shape[:-1]))
    assert_close(unrotated, expected, what=kind)
    assert relative(cached, expected) > 0.1


def test_yarn_scales_what_it_rotates() -> None:
    """Otherwise the case above would not cover `attention_scaling`."""
    assert tiny_model("yarn").backbone.decoder.rotary_emb.attention_scaling > 1.1


def test_phi_rotates_a_part_of_each_head() -> None:
    decoder = tiny_model("phi").backbone.decoder
    cos, _ = decoder.rotary_emb(torch.zeros(1), position_ids=torch.zeros(1, 1, dtype=torch.long))
    assert cos.shape[-1] == 4 < 8 == decoder.config.hidden_size // decoder.config.num_attention_heads


def test_without_rotary_positions_keys_stay_as_they_are() -> None:
    keys = torch.randn(3, 2, 4, 5, 8)
    positions = torch.arange(5).expand(3, 2, 4, 5)
    assert unrotate(tiny_model("gpt2").backbone.decoder, keys, positions) is keys


@pytest.mark.parametrize("kind", ROTARY)
def test_the_gradient_passes_through(kind: str) -> None:
    """Rotation is orthogonal up to its scale: the gradient keeps its norm, divided by the scale."""
    decoder = tiny_model(kind).backbone.decoder
    keys = torch.randn(2, 1, 2, 3, 8, requires_grad=True)
    unrotate(decoder, keys, torch.tensor([4, 9, 2]).expand(2, 1, 2, 3)).square().sum().backward()
    assert keys.grad is not None
    width = decoder.rotary_emb(torch.zeros(1), position_ids=torch.zeros(1, 1, dtype=torch.long))[0].shape[-1]
    scale = decoder.rotary_emb.attention_scaling
    expected = torch.cat([2 * keys[..., :width] / scale**2, 2 * keys[..., width:]], dim=-1)
    assert_close(keys.grad, expected.detach(), what=kind)


def test_slots_and_trace_get_their_own_positions() -> None:
    """With the identity for a rotation both choices agree; with RoPE they do not."""
    for kind, differs in (("gpt2", False), ("llama", True)):
        losses = []
        for choice in ("pre", "post"):
            model = tiny_model(kind, kv_rope=choice)
            losses.append(model(make_batch(model, make_examples()))["terms"]["kv"])
        assert (relative(losses[0], losses[1]) > 1e-3) is differs


@pytest.mark.parametrize("kind", ["llama", "llama3_rope", "yarn", "gpt2"])
def test_moved_keys_are_those_of_the_other_position(kind: str) -> None:
    decoder = tiny_model(kind).backbone.decoder
    keys = torch.randn(2, 1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    source, target = (torch.full((2, 1, 2, 3), position) for position in (7, 3))
    there = rerotate(decoder, keys, source, target)
    assert torch.allclose(unrotate(decoder, there, target), unrotate(decoder, keys, source), atol=1e-5)
    assert torch.allclose(rerotate(decoder, there, target, source), keys, atol=1e-5)
    assert torch.equal(there, keys) == (kind == "gpt2")
