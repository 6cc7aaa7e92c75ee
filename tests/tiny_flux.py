"""A tiny FLUX.1 pipeline with random weights, built offline."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tiny_pipelines import tiny_text, tiny_tokenizer
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 32
LETTERS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), *((c, -2.0) for c in "abcdefghijklmnopqrstuvwxyz▁")]


def tiny_flux(seed: int = 0) -> FluxPipeline:
    """FluxPipeline in eval mode; pictures of 16 pixels and more."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    vae = AutoencoderKL(
        sample_size=32,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    t5 = T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=tiny_text(tokenizer, WIDTH).eval(),
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer=tokenizer,
        tokenizer_2=T5Tokenizer(vocab=LETTERS, extra_ids=0, model_max_length=16),
        transformer=transformer.eval(),
        vae=vae.eval(),
    )
