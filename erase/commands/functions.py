"""The commands whose flags are the parameters of a function: patch, report, statistics."""

from pathlib import Path
from typing import Annotated

import tyro

from ..models.folder import check_model
from ..output import Claim, adding, find
from ..suggest import need_file, need_folder


def patch(
    patch_file: Annotated[Path, tyro.conf.Positional],
    *,
    pretrained_model_name_or_path: str,
    revision: str | None = None,
    variant: str | None = None,
    output_dir: Path,
    strength: float = 1.0,
) -> None:
    """Apply a patch to its base model and save the result as a diffusers pipeline.

    Args:
        patch_file: an erase-patch.safetensors that a run wrote.
        pretrained_model_name_or_path: the base that the patch was made from.
        revision: hub revision of the base.
        variant: weight variant of the base's files, such as fp16; the result is written under it too.
        output_dir: where the patched pipeline is written: a new or empty folder.
        strength: 1 is the erased model, 0 the base; other values interpolate or extrapolate.
    """
    need_file("patch_file", patch_file)
    output = find(Claim(folder=output_dir, command="patch"))
    if output.state not in ("new", "begun"):
        raise ValueError(f"output_dir {output_dir} holds a result already; choose another.")
    check_model(pretrained_model_name_or_path)
    from ..export.patch import apply_patch, load_patch
    from ..export.pipeline import export_pipeline
    from ..models.loading import load_denoiser, resolve_model

    load_patch(patch_file)
    base = resolve_model(pretrained_model_name_or_path, revision, variant)
    denoiser = load_denoiser(str(base), variant=variant)
    apply_patch(denoiser.pipeline, patch_file, strength)
    with output.writing():
        export_pipeline(denoiser, base, output_dir, variant)
    print(f"The patched pipeline is in {output_dir}.")


def report(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write report.html and report.json into the folder of a run or an evaluation.

    Args:
        folder: output_dir of `erase train` or `erase evaluate`.
    """
    need_folder("folder", folder)
    from ..report import write_report

    with adding(folder):
        print(f"The report: {write_report(folder)}")


def statistics(
    pictures: Annotated[Path, tyro.conf.Positional],
    output_file: Annotated[Path, tyro.conf.Positional],
    *,
    inception_weights: Path | None = None,
    encoder: str | None = None,
    data_cache_dir: Path = Path("~/.cache/diffusers-erase"),
) -> None:
    """Save the mean and covariance of real pictures' features for `erase evaluate --fid_reference FILE.npz`.

    Args:
        pictures: folder of real pictures of any size, including subfolders.
        output_file: the .npz to write: mu, sigma, n, and the network and resize that produced them.
        inception_weights: local weights of the FID network.
        encoder: hub id or folder of a transformers vision model to use instead (the result is then not FID).
        data_cache_dir: folder that caches the features.
    """
    need_folder("pictures", pictures)
    need_file("--inception_weights", inception_weights)
    if output_file.suffix != ".npz" or output_file.exists():
        raise ValueError(f"{output_file} must be a new file that ends in .npz.")
    from ..evaluate.metrics.encoders import EncoderScorer, InceptionScorer
    from ..evaluate.metrics.reference import Reference, write_statistics

    scorer = EncoderScorer(encoder) if encoder else InceptionScorer(inception_weights)
    scorer.fingerprint()
    moments = Reference(pictures, data_cache_dir).moments(scorer)
    write_statistics(output_file, moments, scorer)
    print(f"The statistics of {moments.n} pictures are in {output_file}.")
