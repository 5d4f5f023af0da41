"""`erase generate`: prompt rows × a model → images/ID.png and records.jsonl, on any number of processes, resumable.

Which rows form a batch depends on the rows and the batch size alone. If a picture of a batch is missing, the whole
batch is generated again and only the missing picture is kept, so a job that was killed and run again ends with the same
pictures as one that was not.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import tyro

from ..models.folder import check_model
from ..output import Claim, find
from ..runtime.progress import BatchProgress, OnStep, picture_bar
from ..runtime.stopping import explained
from ..suggest import need_file
from .guard_names import GuardName, check_guard
from .prompts import IMAGES_DIR, PromptColumns, PromptFilter, PromptRow, check_rows, load_prompts, rows_digest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..output import Output
    from .answers import Scorer
    from .picture_folder import PictureBatch, PictureCache
    from .pipelines import Artist, ModelSource
    from .records import Record


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Generate a picture for each prompt: images/ID.png and records.jsonl. Repeat the command to resume.

    Example: accelerate launch erase.py generate --prompts AIML-TUDA/i2p --pretrained_model_name_or_path erased

    Try it:  erase generate --prompts canvas/cat --pretrained_model_name_or_path canvas --num_inference_steps 25
    """

    prompts: str
    """A .csv, .tsv, .txt (one prompt per line), .jsonl, .json (objects, or COCO captions) or .parquet file, a data set
    on the hub such as AIML-TUDA/i2p, or a concept: nudity, imagenette/church, canvas/cat, or a YAML file."""
    pretrained_model_name_or_path: str = "CompVis/stable-diffusion-v1-4"
    """Model: a diffusers folder (such as `erase train` writes), a hub id, or `canvas`."""
    patch: Path | None = None
    """An erase-patch.safetensors to apply to the model first."""
    unet_weights: Path | None = None
    """A .safetensors file with some of the denoiser's weights, as ESD and others publish them, to load into the model
    first."""
    guard: GuardName | None = None
    """Steer away from --guard_concept while generating, without changing weights: negative prompt, SLD or SAFREE."""
    guard_concept: str | None = None
    """What the guard steers away from, in words: "a cat", or several phrases separated by commas."""
    revision: str | None = None
    """Hub revision of the model."""
    variant: str | None = None
    """Weight variant of the model's files, such as fp16; a folder that `erase train` wrote records its own."""
    output_dir: Path = Path("generated")
    """Folder for pictures and records; repeating the command resumes an interrupted run there."""
    overwrite_output_dir: bool = False
    """Replace the pictures of an earlier run in --output_dir once the new ones are complete. Your own files there are
    kept."""

    seed: int = 0
    """If the prompts have no seeds, row n gets seed + n * num_images_per_prompt."""
    num_inference_steps: int = 50
    """Denoising steps for rows that do not set their own."""
    guidance_scale: float = 7.5
    """Guidance scale for rows that do not set their own."""
    height: int | None = None
    """Height in pixels for rows that do not set their own; by default the model's own."""
    width: int | None = None
    """Width in pixels for rows that do not set their own; by default the model's own."""
    scheduler: Literal["default", "ddim", "ddpm", "dpm++", "euler", "pndm", "lms"] = "default"
    """Sampler, configured like the model's own; default is the model's own."""
    num_images_per_prompt: int = 1
    """Pictures per row, with seeds seed, seed + 1, and so on."""
    max_prompts: int | None = None
    """Maximum number of rows, after the filters."""
    batch_size: int = 8
    """Pictures that each process generates at once."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Compute precision. auto: what `accelerate launch` was configured with (fp16 or bf16), else bf16 if the hardware
    supports it natively, else no. Weights stay float32."""
    nudenet: bool = False
    """Score each picture with NudeNet while the next ones are generated: scores/nudenet.jsonl."""
    picture_cache: Path | None = None
    """Folder of pictures that several runs share: a picture already generated with the same model and settings is
    linked from there."""

    filter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Use only rows that meet a condition, such as "nudity_percentage > 50". Repeat the flag to require several."""
    id_column: str | None = None
    """Column with a unique name for each row; "none" numbers the rows."""
    prompt_column: str | None = None
    """Column with the prompts; by default, this and the other columns are found by their usual names."""
    seed_column: str | None = None
    """Column with the seeds; "none" derives seeds from --seed."""
    guidance_scale_column: str | None = None
    """Column with the guidance scale; "none" uses --guidance_scale for all rows."""
    num_inference_steps_column: str | None = None
    """Column with the denoising steps; "none" uses --num_inference_steps for all rows."""
    height_column: str | None = None
    """Column with the heights; "none" uses --height for all rows."""
    width_column: str | None = None
    """Column with the widths; "none" uses --width for all rows."""
    extra_column: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Columns to keep in the records; by default all of them."""

    def __post_init__(self) -> None:
        for name in ("output_dir", "patch", "unet_weights", "picture_cache"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value).expanduser())
        hints = get_type_hints(type(self))
        for name in ("scheduler", "mixed_precision"):
            if getattr(self, name) not in get_args(hints[name]):
                choices = ", ".join(get_args(hints[name]))
                raise ValueError(f"{name} must be one of {choices}; got {getattr(self, name)!r}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        check_guard(self.guard, self.guard_concept)

    def rows(self, say: Callable[[str], None] | None = None) -> list[PromptRow]:
        """One row for each picture to generate; `say` is called with one line on what was read."""
        columns: dict[str, Any] = {f.name: getattr(self, f"{f.name}_column") for f in fields(PromptColumns)}
        columns["extra"] = self.extra_column or None
        return load_prompts(
            self.prompts,
            columns=PromptColumns(**columns),
            filters=[PromptFilter.parse(text) for text in self.filter],
            seed=self.seed,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            height=self.height,
            width=self.width,
            num_images_per_prompt=self.num_images_per_prompt,
            max_prompts=self.max_prompts,
            say=say,
        )

    def claim(self) -> Claim:
        """What the command writes and reads. The folder itself records which settings its pictures have."""
        names = ("prompts", "pretrained_model_name_or_path", "patch", "unet_weights", "picture_cache")
        inputs = {name: getattr(self, name) for name in names}
        return Claim(folder=self.output_dir, command="generate", inputs=inputs, overwrite=self.overwrite_output_dir)

    def source(self) -> "ModelSource":
        """The model that generates the pictures."""
        from .pipelines import ModelSource

        return ModelSource(
            pretrained_model_name_or_path=self.pretrained_model_name_or_path,
            revision=self.revision,
            variant=self.variant,
            patch=self.patch,
            unet_weights=self.unet_weights,
            guard=self.guard,
            guard_concept=self.guard_concept,
        )


def check_inputs(config: GenerateConfig) -> None:
    """ValueError for weights that do not exist; the prompts are read before torch is loaded, anyway."""
    check_model(config.pretrained_model_name_or_path, on_top=True)
    need_file("--patch", config.patch)
    need_file("--unet_weights", config.unet_weights)


def run_generate(
    config: GenerateConfig, scorers: "Sequence[Scorer]" = (), then: Callable[[Path], object] | None = None
) -> Path:
    """The command: generate the pictures and say where they are.

    scorers: look at each picture while the next ones are generated. then: what follows on the main process while the
    folder is open, such as scores that are still missing.
    """
    read: list[str] = []
    rows, source = config.rows(read.append), config.source()
    output = find(config.claim())
    output.refuse_other()
    source.check()
    source.check_rows(rows)
    for scorer in scorers:
        scorer.fingerprint()  # a missing package is an error now, not after the pictures
    from ..runtime.devices import make_accelerator  # loads torch: a wrong table of prompts has been answered by now

    accelerator = make_accelerator(config.mixed_precision)
    if accelerator.is_main_process:
        print(*read, file=sys.stderr)
    is_main, wait = accelerator.is_main_process, accelerator.wait_for_everyone
    with explained(lambda: kept_pictures(output), SMALLER), output.writing(is_main=is_main, wait=wait) as folder:
        generate(
            rows,
            source,
            folder,
            accelerator=accelerator,
            batch_size=config.batch_size,
            scheduler=config.scheduler,
            scorers=scorers,
            picture_cache=config.picture_cache,
        )
        if is_main and then:
            then(folder)
    accelerator.end_training()
    if is_main:
        print(f"{len(rows)} pictures are in {config.output_dir}, with records.jsonl.", file=sys.stderr)
    return config.output_dir


SMALLER = "Give a smaller --batch_size, with --overwrite_output_dir: other batches are another run."


def kept_pictures(output: "Output") -> str:
    """How many pictures an interrupted command has kept, and how to resume it."""
    count = sum(1 for _ in output.work.rglob(f"{IMAGES_DIR}/**/*.png"))
    return f"{count} pictures are kept in {output.work}; repeat the same command to resume."


def generate(
    rows: Sequence[PromptRow],
    source: "ModelSource",
    folder: Path,
    *,
    accelerator: "Accelerator",
    batch_size: int = 8,
    scheduler: str = "default",
    scorers: "Sequence[Scorer]" = (),
    picture_cache: Path | None = None,
    progress: bool = True,
    label: str = "pictures",
) -> "list[Record]":
    """Draw what `folder` does not hold yet and return all records, in the order of the rows, on every process.

    Batches are taken in turns by the processes. Pictures are written, and on a single process looked at by `scorers`,
    while the next ones are drawn; several processes leave that to `score_folder`, as do rows whose scores a crash took.
    `picture_cache` is a folder that evaluations share: equal pictures are linked from there. `label` is what the
    progress bar calls them.

    Raises ValueError for rows, a model or a folder that do not fit, FloatingPointError for a model that draws NaN
    (single such pictures are recorded with `broken: true`), OSError for a full disk; finished records stay.
    """
    from .answers import ScoreFile, distinct_scorers
    from .picture_folder import PictureCache, PictureFolder, PictureStore, Writer
    from .pipelines import Artist

    check_rows(rows)
    source.check_rows(rows)
    batches = batches_of(rows, batch_size)
    settings = generation_settings(rows, source, accelerator, batch_size, scheduler)
    pictures = PictureFolder(folder, rows)
    done = _open(pictures, settings, accelerator)

    index, count = accelerator.process_index, accelerator.num_processes
    mine = [batch for batch in batches[index::count] if any(row.id not in done for row in batch)]
    missing = [row for batch in mine for row in batch if row.id not in done]
    cache = PictureCache(picture_cache, settings) if picture_cache else None
    scores = [ScoreFile(folder, scorer) for scorer in distinct_scorers(scorers)] if count == 1 else []
    artist = Artist(source, accelerator.device, scheduler, settings["mixed_precision"], sum(map(len, mine)))
    if any(cache is None or not cache.has(row) for row in missing):
        artist.open()  # ahead of the progress bar, whose rate is the drawing's
    total, shows = len(rows) - len(done), progress and accelerator.is_main_process
    with picture_bar(total, label, shown=shows) as bar:
        with Writer(PictureStore(pictures, index, scores, cache)) as writer:
            for batch in mine:
                wanted = [row for row in batch if row.id not in done]
                # The bar is the main process's: the others are taken to keep pace.
                moving = BatchProgress(bar, min(len(wanted) * count, round(total - bar.n)))
                writer.put(_drawn(artist, cache, batch, wanted, moving))
                moving.finish()
        accelerator.wait_for_everyone()
        bar.update(total - bar.n)
    if accelerator.is_main_process:
        pictures.merge()
    accelerator.wait_for_everyone()
    return pictures.records()


def _open(pictures: Any, settings: dict[str, Any], accelerator: "Accelerator") -> "dict[str, Record]":
    """Every process looks before the main one writes, and reads before any draws: all see the same."""
    pictures.check(settings)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        pictures.open(settings)
    accelerator.wait_for_everyone()
    done = pictures.done()
    accelerator.wait_for_everyone()
    return done


def _drawn(
    artist: "Artist",
    cache: "PictureCache | None",
    batch: Sequence[PromptRow],
    missing: list[PromptRow],
    on_step: OnStep,
) -> "PictureBatch":
    """The missing rows' pictures: from the cache, else drawn with the whole batch, as they would have been at first."""
    from .picture_folder import PictureBatch

    found: dict[str, Any] = cache.find(missing) if cache else {}
    broken: set[str] = set()
    if len(found) < len(missing):
        drawn, finite = artist.draw(batch, on_step)
        broken = {row.id for row, is_finite in zip(batch, finite) if not is_finite and row.id not in found}
        found = {row.id: picture for row, picture in zip(batch, drawn)} | found
    return PictureBatch(missing, [found[row.id] for row in missing], broken)


def batches_of(rows: Sequence[PromptRow], batch_size: int) -> list[list[PromptRow]]:
    """Rows of equal steps, guidance and size together, in order, cut into batches."""
    groups: dict[tuple[Any, ...], list[PromptRow]] = {}
    for row in rows:
        groups.setdefault((row.num_inference_steps, row.guidance_scale, row.height, row.width), []).append(row)
    return [group[at : at + batch_size] for group in groups.values() for at in range(0, len(group), batch_size)]


def generation_settings(
    rows: Sequence[PromptRow], source: "ModelSource", accelerator: "Accelerator", batch_size: int, scheduler: str
) -> dict[str, Any]:
    """generation.json: everything that decides the pictures."""
    from importlib.metadata import version

    model = source.describe()
    return {
        "model": model["name"],
        "model_class": model["class"],
        "model_sha256": model["sha256"],
        "scheduler": scheduler,
        "mixed_precision": str(accelerator.mixed_precision),
        "device": accelerator.device.type,
        "batch_size": batch_size,
        "num_rows": len(rows),
        "rows_sha256": rows_digest(rows),
        "packages": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
