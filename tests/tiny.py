"""Real diffusers pipelines at toy size, built offline from a seed: test doubles that are the thing itself.

Each folder is under 1 MB, loads with `DiffusionPipeline.from_pretrained` and draws 16×16 pictures from 8×8 latents.
Text widths are multiples of 16, latents have four channels, and every text encoder has two layers.
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

PredictionType = Literal["epsilon", "v_prediction"]
RESOLUTION = 16
TEXT_WIDTH = 16
TOKENS = 40  # one token a letter: enough for a short prompt


def build_sd1(path: Path) -> None:
    """Stable Diffusion 1: ε-prediction."""
    _save(lambda: _stable_diffusion("epsilon"), path)


def build_sd2(path: Path) -> None:
    """Stable Diffusion 2: v-prediction."""
    _save(lambda: _stable_diffusion("v_prediction"), path)


def build_sdxl(path: Path) -> None:
    """Stable Diffusion XL: two text encoders, pooled embedding and time ids."""
    _save(_stable_diffusion_xl, path)


def build_sd3(path: Path) -> None:
    """Stable Diffusion 3: rectified flow, a two-layer MMDiT, two CLIP encoders and T5."""
    _save(_stable_diffusion_3, path)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "sd1": build_sd1,
    "sd2": build_sd2,
    "sdxl": build_sdxl,
    "sd3": build_sd3,
}

each_family = pytest.mark.parametrize("family", list(FAMILIES))
"""Runs a test with `family` on every family: `@each_family def test_…(tiny, family): folder = tiny(family)`."""


def _save(build: Callable[[], DiffusionPipeline], path: Path) -> None:
    """Save the pipeline of seed 0; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build().save_pretrained(path, safe_serialization=True)


def _stable_diffusion(prediction_type: PredictionType) -> StableDiffusionPipeline:
    tokenizer = _clip_tokenizer()
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=TEXT_WIDTH),
        scheduler=_ddim(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl() -> StableDiffusionXLPipeline:
    tokenizer = _clip_tokenizer()
    time_ids, time_width = 6, 4
    unet = _unet(
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=time_ids * time_width + TEXT_WIDTH,
        use_linear_projection=True,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config(tokenizer)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=_ddim("epsilon"),
        add_watermarker=False,
    )


def _stable_diffusion_3() -> StableDiffusion3Pipeline:
    tokenizer, letters = _clip_tokenizer(), _t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=RESOLUTION // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT_WIDTH,  # T5's width; the two CLIP embeddings, side by side, are padded to it
        caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=RESOLUTION // 2,
    )
    t5 = T5Config(
        vocab_size=len(letters), d_model=2 * TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(_clip_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(tokenizer)).eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5).eval(),
        tokenizer_3=letters,
    )


def _unet(**options) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    ).eval()


def _vae(**options) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        **options,
    ).eval()


def _ddim(prediction_type: PredictionType) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: row for row, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TOKENS)


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,  # the default, 49407, would pool the wrong token
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=10.0,  # so that another prompt is another picture, even before training
    )


def _t5_tokenizer() -> T5Tokenizer:
    letters = [(letter, -3.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=TOKENS)
