"""Training loops of the canvas: autoencoder, denoiser with its text encoder, judge and encoder; for build.py.

Each loop draws its batches from (seed, step), so a run that is interrupted and resumed sees what it would have seen.
"""

# diffusers annotates its outputs as tuples and its inputs as FloatTensor, so these two checks only find false alarms.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm, trange
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erase.canvas.nets import GARBAGE, PictureNet, to_unit_range

CHECKPOINT_EVERY = 250


def fit(
    name: str,
    module: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    steps: int,
    learning_rate: float,
    work: Path,
    seed: int,
    ema: bool = False,
) -> Any:
    """Minimise `loss_of` with AdamW on a one-cycle schedule; checkpoint to `work` and resume from there."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.998)) if ema else None
    parts = {"module": module, "optimizer": optimizer, "schedule": schedule} | ({"average": average} if average else {})
    checkpoint, first = work / f"{name}.checkpoint", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(state[key])
        first = state["step"]
    bar = trange(first, steps, initial=first, total=steps, desc=name, mininterval=5)
    for step in bar:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if average:
            average.update_parameters(module)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            states = {key: part.state_dict() for key, part in parts.items()}
            torch.save(states | {"step": step + 1}, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)
    return average.module if average else module


def pick(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(len(pool), (count,), generator=generator)


def train_autoencoder(pictures: Tensor, steps: int, work: Path, seed: int) -> AutoencoderKL:
    """f = 4, four latent channels; L1 + ½·L2 + a small KL term. `pictures` is uint8 (N, 64, 64, 3)."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        mid_block_add_attention=False,
        sample_size=64,
    )

    def loss_of(generator: torch.Generator) -> Tensor:
        x = to_unit_range(pictures[pick(pictures, 32, generator)])
        posterior = vae.encode(x).latent_dist
        out = vae.decode(posterior.sample(generator)).sample.float()
        return F.l1_loss(out, x) + 0.5 * F.mse_loss(out, x) + 1e-6 * posterior.kl().float().mean()

    fit("autoencoder", vae, loss_of, steps, 2e-3, work, seed)
    latents = encode(vae, pictures[::20])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return vae.eval()


def refine_decoder(
    vae: AutoencoderKL, pictures: Tensor, redrawn: Tensor, redrawn_rows: Tensor, steps: int, work: Path, seed: int
) -> AutoencoderKL:
    """Teach the decoder what the denoiser gets wrong: L1 + ½·L2 + L1 of the differences between neighbouring pixels.

    A quarter of each batch are the encoder's latents, a quarter has noise on top, and half are latents that the
    denoiser redrew (unscaled, of the pictures `redrawn_rows`); the picture to be shown is the clean one.
    """
    latents = encode(vae, pictures)
    std = latents.std()

    def edges(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]

    def loss_of(generator: torch.Generator) -> Tensor:
        rows, again = pick(pictures, 16, generator), pick(redrawn, 16, generator)
        z = latents[rows]
        strength = 0.5 * std * torch.rand(8, 1, 1, 1, generator=generator)
        z[:8] += strength * torch.randn(z[:8].shape, generator=generator)
        x = to_unit_range(pictures[torch.cat([rows, redrawn_rows[again]])])
        out = vae.decode(torch.cat([z, redrawn[again]])).sample.float()
        sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(out), edges(x)))
        return F.l1_loss(out, x) + 0.5 * F.mse_loss(out, x) + sharp

    vae.encoder.requires_grad_(False)
    fit("decoder", nn.ModuleList([vae.post_quant_conv, vae.decoder]), loss_of, steps, 1.5e-3, work, seed)
    return vae.eval()


@torch.no_grad()
def redraw(pipe: StableDiffusionPipeline, latents: Tensor, captions: list[str], seed: int) -> Tensor:
    """Noise unscaled latents (N, 4, 16, 16) for 3 to 10 of 25 steps and denoise them again, with guidance 1 to 5.

    What comes back shows the same picture with the denoiser's own roughness.
    """
    generator, scheduler = torch.Generator().manual_seed(seed), pipe.scheduler
    scheduler.set_timesteps(25)
    scaled = latents * pipe.vae.config.scaling_factor
    parts = []
    for rows in tqdm(torch.arange(len(scaled)).split(64), "redraw", mininterval=5):
        hidden, empty = (
            pipe.text_encoder(
                pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
            ).last_hidden_state
            for texts in ([captions[row] for row in rows.tolist()], [""] * len(rows))
        )
        guidance = 1 + 4 * torch.rand(len(rows), 1, 1, 1, generator=generator)
        timesteps = scheduler.timesteps[-int(torch.randint(3, 11, (1,), generator=generator)) :]
        noise = torch.randn(scaled[rows].shape, generator=generator)
        x = scheduler.add_noise(scaled[rows], noise, timesteps[:1])
        for t in timesteps:
            with torch.autocast("cpu", torch.bfloat16):
                both = pipe.unet(torch.cat([x, x]), t, torch.cat([hidden, empty])).sample.float()
            prompted, without = both.chunk(2)
            x = scheduler.step(without + guidance * (prompted - without), t, x).prev_sample
        parts.append(x.contiguous())
    return torch.cat(parts) / pipe.vae.config.scaling_factor


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Unscaled posterior means (N, 4, 16, 16) of uint8 pictures."""
    return torch.cat([vae.encode(to_unit_range(batch)).latent_dist.mean for batch in pictures.split(250)])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """uint8 pictures (N, 64, 64, 3) of unscaled latents."""
    out = torch.cat([vae.decode(batch).sample for batch in latents.split(250)])
    return ((out + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=96,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    # The fused attention's backward is 10× slower than plain matmuls at 24 channels a head on a CPU.
    unet.set_attn_processor(AttnProcessor())
    return unet


def min_snr_weight(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, γ)/SNR for ε-prediction (arXiv 2303.09556)."""
    alpha = scheduler.alphas_cumprod[timesteps]
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / snr


def train_denoiser(
    latents: Tensor,
    captions: list[list[str]],
    tokenizer: CLIPTokenizer,
    scheduler: DDPMScheduler,
    cycles: Sequence[tuple[int, float]],
    work: Path,
    seed: int,
) -> nn.Module:
    """Train UNet and text encoder together on scaled latents (N, 4, 16, 16); row i is drawn one of `captions[i]`.

    `cycles` are (steps, peak learning rate), each a one-cycle schedule that starts from the average of the one before.
    """
    torch.manual_seed(seed)
    both: Any = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(tokenizer)})
    texts = sorted({caption for row in captions for caption in row} | {""})
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    row_of = {text: row for row, text in enumerate(texts)}
    weights = torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15])

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = pick(latents, 64, generator)
        choice = torch.multinomial(weights, 64, replacement=True, generator=generator).tolist()
        drop = (torch.rand(64, generator=generator) < 0.1).tolist()
        chosen = ["" if d else captions[r][c] for r, c, d in zip(rows.tolist(), choice, drop)]
        noise = torch.randn(latents[rows].shape, generator=generator)
        timesteps = torch.randint(1000, (64,), generator=generator)
        hidden = both["text_encoder"](ids[[row_of[text] for text in chosen]]).last_hidden_state
        noisy = scheduler.add_noise(latents[rows], noise, timesteps)
        predicted = both["unet"](noisy, timesteps, hidden).sample.float()
        per_row = (predicted - noise).square().mean((1, 2, 3))
        return (min_snr_weight(scheduler, timesteps) * per_row).mean()

    for number, (steps, rate) in enumerate(cycles):
        both = fit(f"denoiser-{number}", both, loss_of, steps, rate, work, seed + 1000 * number, ema=True)
    return both.eval()


def train_picture_net(
    name: str, net: PictureNet, pictures: Tensor, labels: Tensor, vae: AutoencoderKL, steps: int, work: Path, seed: int
) -> PictureNet:
    """Classify pictures and their round trip through the autoencoder; blurred, noisy, rough; a fifth is garbage.

    `pictures` is uint8 (N, 64, 64, 3), `labels` is (N, 2): object and style.
    """
    torch.manual_seed(seed)
    latents = encode(vae, pictures)
    round_trip = decode(vae, latents)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = pick(pictures, 96, generator)
        x = to_unit_range(
            torch.where(torch.rand(96, 1, 1, 1, generator=generator) < 0.6, round_trip[rows], pictures[rows])
        )
        x[:24] = blur(x[:24], 0.4 + 0.8 * torch.rand(1, generator=generator).item())
        x[48:76] = shaken(latents[rows[48:76]], vae, generator)
        x[24:48] += (
            0.15 * torch.rand(24, 1, 1, 1, generator=generator) * torch.randn(24, *x.shape[1:], generator=generator)
        )
        targets = labels[rows].clone()
        x[-20:] = garbage(x[-20:], latents, vae, generator)
        targets[-20:, 0] = GARBAGE
        objects, styles, _ = net(x.clamp(-1, 1))
        return F.cross_entropy(objects.float(), targets[:, 0]) + F.cross_entropy(styles[:-20].float(), targets[:-20, 1])

    return fit(name, net, loss_of, steps, 2e-3, work, seed).eval()


@torch.no_grad()
def shaken(latents: Tensor, vae: AutoencoderKL, generator: torch.Generator) -> Tensor:
    """Pictures of latents with a little noise: the roughness of a generated picture, on known labels."""
    scale = 0.4 * latents.std() * torch.rand(len(latents), 1, 1, 1, generator=generator)
    return vae.decode(latents + scale * torch.randn(latents.shape, generator=generator)).sample.float()


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, 3, H, W), standard deviation in pixels."""
    radius = int(3 * sigma) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="reflect"), kernel.transpose(2, 3), groups=3)


@torch.no_grad()
def garbage(x: Tensor, latents: Tensor, vae: AutoencoderKL, generator: torch.Generator) -> Tensor:
    """Twenty pictures of nothing: pixel noise, heavy blur, decoded noise, and decoded half-noised latents."""
    std = latents.std()
    noise = torch.randn(4, *x.shape[1:], generator=generator) * torch.rand(4, 1, 1, 1, generator=generator)
    heavy = blur(x[4:8], 5 + 5 * torch.rand(1, generator=generator).item())
    pure = torch.randn(6, *latents.shape[1:], generator=generator) * std
    alpha = 0.02 + 0.28 * torch.rand(6, 1, 1, 1, generator=generator)
    half = latents[pick(latents, 6, generator)] * alpha.sqrt()
    half = half + torch.randn(half.shape, generator=generator) * std * (1 - alpha).sqrt()
    decoded = vae.decode(torch.cat([pure, half])).sample.float()
    return torch.cat([noise, heavy, decoded])
