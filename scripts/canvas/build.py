"""Rebuild the bundled canvas model from the emoji font: pictures, autoencoder, denoiser, judge, encoder, reference.

    python scripts/canvas/build.py                                 # about 2 hours on two cores
    python scripts/canvas/build.py --without cat                   # the gold reference: trained without the concept

Deterministic by --seed. Interrupted, it goes on where it stopped; finished stages are kept in --work_dir.
"""

# diffusers annotates configs, components and loaders more narrowly than they are.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportCallIssue=false

import argparse
import json
import multiprocessing
import shutil
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
import training
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from reference import build_reference
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from erase import canvas
from erase.canvas import OBJECTS, STYLES, draw
from erase.canvas.nets import PictureNet
from erase.concepts.concept import load_family
from erase.files import atomic_save, write_json

MODEL_MAX_LENGTH = 24
TRAINING_FILE = "training.json"
PEAK_LEARNING_RATES = (1.2e-3, 6e-4, 1e-3)
"""Of the denoiser's cycles."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, default=Path("canvas_work"), help="pictures, checkpoints, stages")
    parser.add_argument(
        "--without", choices=OBJECTS + STYLES, help="leave this concept out; the pipeline stays in work_dir"
    )
    parser.add_argument("--font_file", type=Path, default=draw.FONT_FILE, help="NotoColorEmoji.ttf")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures_per_class", type=int, default=120, help="for autoencoder and denoiser")
    parser.add_argument("--autoencoder_steps", type=int, default=1400)
    parser.add_argument("--decoder_steps", type=int, default=1200)
    parser.add_argument(
        "--denoiser_steps", type=int, nargs="+", default=[3200, 1200, 3000], help="of up to three cycles"
    )
    parser.add_argument("--judge_steps", type=int, default=700)
    return parser.parse_args()


def _draw_one(job: tuple[str, str, int, Path]) -> np.ndarray:
    obj, style, seed, font_file = job
    return np.asarray(draw.draw(obj, style, np.random.default_rng(seed), font_file))


def pictures(split: int, per_class: int, args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 pictures (N, 64, 64, 3) and labels (N, 2); each `split` has seeds of its own, so splits are disjoint."""
    classes = list(product(range(len(OBJECTS)), range(len(STYLES))))
    labels = torch.tensor([pair for pair in classes for _ in range(per_class)])
    path = args.work_dir / f"pictures-{args.seed}-{split}-{per_class}.safetensors"
    if not path.exists():
        first = (args.seed * 100 + split) * 10_000_000
        jobs = [(OBJECTS[o], STYLES[s], first + row, args.font_file) for row, (o, s) in enumerate(labels.tolist())]
        with multiprocessing.Pool() as pool:
            drawn = list(tqdm(pool.imap(_draw_one, jobs, chunksize=50), "draw", len(jobs), mininterval=5))
        atomic_save({"pictures": torch.from_numpy(np.stack(drawn))}, path)
    return load_file(path)["pictures"], labels


@cache
def captions_of(obj: str, style: str) -> list[str]:
    """Every template of the family, held-out ones last, and the bare object."""
    family = load_family("canvas")
    words = {"object": obj, "style": style}
    texts = [*family.captions(**words), *family.captions(held_out=True, **words), family.domains["object"][obj]]
    return list(dict.fromkeys(texts))


def build_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE in CLIP's form whose merges make one token of each word of the captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = {word for pair in product(OBJECTS, STYLES) for text in captions_of(*pair) for word in text.split()}
    words = sorted({word.strip(",") for word in words})
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    model.train_from_iterator([" ".join(words)] * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {token: row for row, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MODEL_MAX_LENGTH)


def autoencoder(args: argparse.Namespace) -> AutoencoderKL:
    """Encoder and decoder, trained together; the encoder is final."""
    path = args.work_dir / "autoencoder"
    if not path.exists():
        pool = pictures(0, args.pictures_per_class, args)[0]
        save_whole(training.train_autoencoder(pool, args.autoencoder_steps, args.work_dir, args.seed), path)
    return AutoencoderKL.from_pretrained(path)


def with_refined_decoder(pipe: StableDiffusionPipeline, args: argparse.Namespace) -> StableDiffusionPipeline:
    """The pipeline with a decoder that was trained further, on what its denoiser makes of known pictures."""
    path = args.work_dir / "vae"
    if not path.exists():
        pool, labels = pictures(0, args.pictures_per_class, args)
        rows = torch.randperm(len(pool), generator=torch.Generator().manual_seed(args.seed))[: len(pool) // 3]
        redrawn_path = args.work_dir / "redrawn.safetensors"
        if not redrawn_path.exists():
            captions = [captions_of(OBJECTS[o], STYLES[s])[0] for o, s in labels[rows].tolist()]
            latents = training.encode(pipe.vae, pool[rows])
            atomic_save({"latents": training.redraw(pipe, latents, captions, args.seed)}, redrawn_path)
        redrawn = load_file(redrawn_path)["latents"]
        vae = training.refine_decoder(pipe.vae, pool, redrawn, rows, args.decoder_steps, args.work_dir, args.seed)
        save_whole(vae.to(dtype=torch.float16), path)
    pipe.vae = AutoencoderKL.from_pretrained(path, dtype=torch.float32)
    return pipe


def save_whole(model: AutoencoderKL, path: Path) -> None:
    partial = path.with_suffix(".partial")
    model.register_to_config(_name_or_path="")  # diffusers would write where it was loaded from
    model.save_pretrained(partial)
    partial.rename(path)


def pipeline_dir(args: argparse.Namespace) -> Path:
    name = f"pipeline-without-{args.without.replace(' ', '-')}" if args.without else "pipeline"
    return args.work_dir / name


def pipeline(args: argparse.Namespace, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """Train (or load) the text-to-image pipeline, without the concept `args.without` where that is given."""
    path = pipeline_dir(args)
    if not path.exists():
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        pool, labels = pictures(0, args.pictures_per_class, args)
        names = [(OBJECTS[o], STYLES[s]) for o, s in labels.tolist()]
        keep = [row for row, pair in enumerate(names) if args.without not in pair]
        latents = training.encode(vae, pool[keep]) * vae.config.scaling_factor
        scratch = args.work_dir / f"{path.name}-training"
        scratch.mkdir(exist_ok=True)
        tokenizer = build_tokenizer()
        cycles = list(zip(args.denoiser_steps, PEAK_LEARNING_RATES))
        captions = [captions_of(*names[row]) for row in keep]
        both = training.train_denoiser(latents, captions, tokenizer, DDPMScheduler(**betas), cycles, scratch, args.seed)
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=both["text_encoder"],
            tokenizer=tokenizer,
            unet=both["unet"],
            scheduler=DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        partial = path.with_suffix(".partial")
        pipe.to(dtype=torch.float16).save_pretrained(partial)
        # transformers loads in the dtype that the config names, diffusers in float32: a plain load would mix the two.
        config = partial / "text_encoder" / "config.json"
        text = config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"')
        config.write_text(text, encoding="utf-8")
        write_json(partial / TRAINING_FILE, {"denoiser_steps": args.denoiser_steps, "without": args.without})
        partial.rename(path)
    return StableDiffusionPipeline.from_pretrained(path, dtype=torch.float32)


def picture_net(name: str, split: int, channels: tuple[int, ...], args: argparse.Namespace, vae: AutoencoderKL) -> Path:
    path = args.work_dir / name
    if not path.exists():
        pool, labels = pictures(split, 50, args)
        net = PictureNet(channels)
        training.train_picture_net(name, net, pool, labels, vae, args.judge_steps, args.work_dir, args.seed + split)
        net.to(dtype=torch.float16).save_pretrained(path)
    return path


def main() -> None:
    args = parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.without:
        # Gold differs from the base in what its denoiser saw, not in its autoencoder.
        pipeline(args, AutoencoderKL.from_pretrained(canvas.PIPELINE_DIR / "vae", dtype=torch.float32))
        print(f"The pipeline that never saw {args.without!r} is in {pipeline_dir(args)}")
        return
    pipe = with_refined_decoder(pipeline(args, autoencoder(args)), args)
    judge = picture_net("judge", 1, (32, 64, 96, 128), args, pipe.vae)
    encoder = picture_net("encoder", 2, (24, 48, 96, 128), args, pipe.vae)
    for source, target in (
        (args.work_dir / "pipeline", canvas.PIPELINE_DIR),
        (args.work_dir / "vae", canvas.PIPELINE_DIR / "vae"),
        (judge, canvas.JUDGE_DIR),
        (encoder, canvas.ENCODER_DIR),
    ):
        shutil.copytree(source, target, dirs_exist_ok=True)
    settings = {name: value for name, value in vars(args).items() if isinstance(value, int | list)}
    bank, (held_out, labels) = pictures(3, 20, args)[0], pictures(4, 20, args)
    captions = [captions_of(OBJECTS[o], STYLES[s])[0] for o, s in labels.tolist()]
    build_reference(pipe, bank, held_out, labels, captions, args.work_dir, settings)


if __name__ == "__main__":
    main()
