"""Whatever people name as a model is used, or refused with what it is and what to do: no blame of the hub, no guess.

Single files, folders with pickles or with a variant alone, damaged or missing model_index.json, parts of a pipeline and
typos are told apart by their own files. A run's folder knows its variant and its base's, revision included.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import HfApi
from safetensors.torch import save_file

from drawing import TinyFolder, contents, prompt_rows
from erase.cli import main
from erase.compare.config import CompareConfig
from erase.compare.jobs import plan
from erase.draw.pipelines import ModelSource, open_pipeline, pipeline_class
from erase.draw.records import Record
from erase.evaluate.config import EvaluateConfig
from erase.export.patch import make_patch, save_patch
from erase.models.folder import check_weight_files, hub_reason, read_index, run_settings
from erase.models.loading import family, find_model, load_denoiser

UNET = "unet/diffusion_pytorch_model"
HUB_BLAMED = ("the hub did not give it", "local_files_only")


def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    assert not any(blame in str(error.value) for blame in HUB_BLAMED)
    return str(error.value)


def save(path: Path, names: Sequence[str], metadata: dict[str, str] | None = None) -> None:
    save_file({name: torch.zeros(1) for name in names}, path, metadata)


# Single files

SINGLE = {
    "sd": (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "StableDiffusionPipeline"),
    "sdxl": (["model.diffusion_model.x", "conditioner.embedders.0.x"], "StableDiffusionXLPipeline"),
    "sd3": (["model.diffusion_model.joint_blocks.0.x", "first_stage_model.x"], "StableDiffusion3Pipeline"),
}


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("on_top", [False, True])
def test_a_whole_model_in_one_file_is_to_be_converted(kind: str, on_top: bool, tmp_path: Path) -> None:
    names, pipeline = SINGLE[kind]
    path = tmp_path / "model.safetensors"
    save(path, names)
    message = refused(find_model, str(path), on_top=on_top)
    assert f"{path} is a whole model in a single file" in message and "--unet_weights" not in message
    assert f"from diffusers import {pipeline} as P; P.from_single_file('{path}').save_pretrained('FOLDER')" in message


@pytest.mark.parametrize(
    ("names", "metadata", "flag", "kind"),
    [
        (["down_blocks.0.attentions.0.x"], {}, "--unet_weights", "holds the weights of a denoiser alone"),
        (["unet.mid_block.x"], {}, "--unet_weights", "holds the weights of a denoiser alone"),
        (["transformer_blocks.0.x"], {}, "--unet_weights", "holds the weights of a denoiser alone"),
        (["values/down_blocks.0.x"], {"format": "erase.patch/1"}, "--patch", "is a patch"),
    ],
)
def test_weights_that_go_on_a_base_name_their_flag(
    names: list[str], metadata: dict[str, str], flag: str, kind: str, tmp_path: Path
) -> None:
    save(tmp_path / "w.safetensors", names, metadata)
    message = refused(ModelSource(pretrained_model_name_or_path=str(tmp_path / "w.safetensors")).check)
    assert kind in message and f"Give its base as the model, and this file with {flag}." in message
    trained = refused(find_model, str(tmp_path / "w.safetensors"))
    assert kind in trained and f"`erase evaluate` put it on its base with {flag}" in trained


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sd.ckpt", b"\x80\x02", "is a single pickled file.*denoiser alone.*--unet_weights.*from_single_file"),
        ("sd.pt", b"\x80\x02", "is a single pickled file"),
        ("cut.safetensors", b"\x10\x00", "is not a whole safetensors file"),
        ("notes.txt", b"a", "is a file, where a diffusers folder"),
    ],
)  # fmt: skip
def test_other_single_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    source = ModelSource(pretrained_model_name_or_path=str(tmp_path / name))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        source.check()


def test_loras_and_other_tensors(tmp_path: Path) -> None:
    save(tmp_path / "l.safetensors", ["unet.down_blocks.0.lora_A.weight"])
    assert "is a LoRA" in refused(find_model, str(tmp_path / "l.safetensors"))
    save(tmp_path / "t.safetensors", ["features.0.weight"])
    assert "is a file of tensors (features.0.weight)" in refused(find_model, str(tmp_path / "t.safetensors"))


# Names


@pytest.mark.parametrize("name", ["cavnas", "./out/dmeo", "out/dmeo/x", "my model", "/no/such/folder"])
def test_a_name_that_the_hub_cannot_have_is_answered_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "demo").mkdir(parents=True)
    message = refused(find_model, name)
    assert message.startswith(f"There is no model '{name}': no folder has that path.") and "OWNER/NAME" in message
    hints = {"cavnas": " Did you mean 'canvas'?", "./out/dmeo": " Did you mean 'out/demo'?"}
    assert hints.get(name, "path. Give") in message


def test_a_typo_is_answered_without_torch_or_diffusers(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom erase.cli import main\n"
        "try: main(['generate', '--prompts', 'canvas/cat', '--pretrained_model_name_or_path', 'cavnas'])\n"
        "except SystemExit as stop: print(stop.code, {'torch', 'diffusers'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout.strip() == "2 set()" and "Did you mean 'canvas'?" in run.stderr


def test_a_hub_id_with_a_typo_names_the_one_that_is_near() -> None:
    with pytest.raises(ValueError) as error:
        find_model("CompVis/stable-difusion-v1-4")
    assert "Did you mean 'CompVis/stable-diffusion-v1-4'?" in str(error.value)
    assert "offline mode is enabled" in str(error.value) and "local_files_only" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", "the hub has no such model"),
        (404, "RevisionNotFound", "the hub has no revision 'v9' of it"),
        (403, "GatedRepo", "its owner asks for consent"),
    ],
)
def test_what_the_hub_answers_is_said_in_words(
    status: int, code: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    try:
        HfApi(endpoint=f"http://127.0.0.1:{server.server_port}").model_info("owner/name", revision="v9")
        pytest.fail("the hub gave something")
    except OSError as error:
        assert said in hub_reason(error, "v9")
    finally:
        server.shutdown()
        server.server_close()


# Folders


@pytest.fixture
def copied(tiny: TinyFolder, tmp_path: Path) -> Path:
    """A pipeline's folder of one's own."""
    shutil.copytree(tiny("sd1"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "model_index.json is empty"),
        ("{", "model_index.json is not JSON"),
        ("[]", "model_index.json holds a list, where an object with `_class_name` was expected"),
        ("{}", "does not say which pipeline it is: `_class_name` is None"),
        ('{"_class_name": 7}', "does not say which pipeline it is: `_class_name` is 7"),
        ('{"_class_name": ["pipeline", "MyPipeline"]}', "names a pipeline with code of its own (pipeline, MyPipeline)"),
        ('{"_class_name": "MyPipeline", "_diffusers_version": "9.1"}', "a 'MyPipeline', which diffusers"),
        ('{"_class_name": "StableDifusionPipeline"}', "It has StableDiffusionPipeline"),
        ('{"_class_name": "UNet2DConditionModel"}', "a 'UNet2DConditionModel', which diffusers"),
    ],
)
@pytest.mark.parametrize("reader", [family, pipeline_class])
def test_a_damaged_index(content: str, message: str, reader: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(content)
    assert message in refused(reader, tmp_path)


def test_a_class_that_diffusers_lacks_names_the_version_that_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "MyPipeline", "_diffusers_version": "9.1"}')
    assert "the folder was written with 9.1" in refused(family, tmp_path)


def test_a_folder_without_an_index_says_what_it_is(copied: Path, tmp_path: Path) -> None:
    assert f"It is a part of the pipeline in {copied}: give that folder." in refused(read_index, copied / "unet")
    assert f"There is one in {copied}: give that." in refused(read_index, tmp_path)
    alone = shutil.copytree(copied / "unet", tmp_path / "elsewhere" / "unet")
    assert "It holds a single model" in refused(read_index, alone)
    snapshot = shutil.copytree(copied, tmp_path / "cache" / "snapshots" / "abc")
    assert f"There is one in {snapshot}" in refused(read_index, tmp_path / "cache")
    (tmp_path / "files").mkdir()
    save(tmp_path / "files" / "sd.safetensors", ["a"])
    assert "If sd.safetensors is a whole model in a single file: Convert it" in refused(read_index, tmp_path / "files")
    stopped = write_run(tmp_path / "stopped", variant=None)
    assert "--resume_from_checkpoint latest" in refused(read_index, stopped)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no model_index.json" in refused(find_model, str(tmp_path / "empty"))


def test_pickled_weights_alone(copied: Path) -> None:
    shutil.move(copied / f"{UNET}.safetensors", copied / f"{UNET}.bin")
    message = refused(find_model, str(copied))
    assert "holds pickled weights alone (unet/diffusion_pytorch_model.bin)" in message
    assert f"P.from_pretrained('{copied}', use_safetensors=False).save_pretrained('FOLDER')" in message


def test_a_pickled_safety_checker_is_nobodys_loss(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (copied / "model_index.json").write_text(json.dumps(index))
    (copied / "safety_checker").mkdir()
    (copied / "safety_checker" / "pytorch_model.bin").write_bytes(b"\x80")
    assert find_model(str(copied)) == copied
    open_pipeline(ModelSource(pretrained_model_name_or_path=str(copied)))


@pytest.mark.parametrize(
    "name", [f"{UNET}.fp16", f"{UNET}.fp16-00001-of-00002", f"{UNET}-00001-of-00002.fp16", f"{UNET}.non_ema"]
)
def test_a_variant_that_was_not_asked_for(name: str, copied: Path) -> None:
    variant = "non_ema" if "non_ema" in name else "fp16"
    shutil.move(copied / f"{UNET}.safetensors", copied / f"{name}.safetensors")
    assert refused(find_model, str(copied)) == (
        f"{copied / 'unet'} holds weights of a variant alone: give --variant {variant}."
    )
    assert find_model(str(copied), variant=variant) == copied


def test_a_variant_that_is_not_there(copied: Path) -> None:
    message = refused(find_model, str(copied), variant="fp16")
    assert message.endswith("variant 'fp16'; it has weights without a variant (leave --variant out).")
    shutil.copy(copied / f"{UNET}.safetensors", copied / f"{UNET}.non_ema.safetensors")
    message = refused(check_weight_files, copied, "fp16")
    assert message.endswith("it has weights without a variant (leave --variant out) and --variant non_ema.")
    check_weight_files(copied, "non_ema")
    shutil.move(
        copied / "vae/diffusion_pytorch_model.safetensors", copied / "vae/diffusion_pytorch_model.bf16.safetensors"
    )
    assert "vae holds weights of a variant alone: give --variant bf16" in refused(check_weight_files, copied, "non_ema")


# Variants of runs


def write_run(folder: Path, base: str = "base", **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run = {"concept": ["cat"], "pretrained_model_name_or_path": base, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(run))
    return folder


@pytest.fixture(scope="module")
def halves(tiny: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline in fp16 files alone."""
    folder = tmp_path_factory.mktemp("halves")
    pipe = StableDiffusionPipeline.from_pretrained(tiny("sd1"), dtype=torch.float16)
    pipe.save_pretrained(folder, variant="fp16")
    return folder


def test_settings_of_a_run_and_of_what_is_none(tmp_path: Path) -> None:
    assert run_settings(write_run(tmp_path / "run", variant="fp16"))["variant"] == "fp16"
    assert run_settings(tmp_path) == run_settings("canvas") == run_settings("owner/name") == {}
    (tmp_path / "config.yaml").write_text("model: {target: ldm.models.diffusion.ddpm.LatentDiffusion}")
    assert run_settings(tmp_path) == {}
    (tmp_path / "config.yaml").write_text("concept: [")
    assert "is not YAML" in refused(run_settings, tmp_path)


def test_a_model_on_top_of_a_run_knows_the_runs_variant(halves: Path, tmp_path: Path) -> None:
    run = write_run(shutil.copytree(halves, tmp_path / "run"), variant="fp16")
    assert ModelSource(pretrained_model_name_or_path=str(run)).variant == "fp16"
    assert ModelSource(pretrained_model_name_or_path=str(run), variant="bf16").variant == "bf16"
    name, weight = next(iter(load_denoiser(str(run), variant="fp16").module.named_parameters()))
    save_file({name: torch.zeros_like(weight)}, tmp_path / "esd.safetensors")
    source = ModelSource(pretrained_model_name_or_path=str(run), unet_weights=tmp_path / "esd.safetensors")
    assert not open_pipeline(source).unet.get_parameter(name).any()
    assert "--variant fp16" in refused(ModelSource(pretrained_model_name_or_path=str(halves)).check)


def test_generate_draws_a_run_in_its_own_variant(
    halves: Path, drawn: Callable[..., list[Record]], tmp_path: Path
) -> None:
    run = write_run(shutil.copytree(halves, tmp_path / "run"), variant="fp16")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    main(["generate", "--prompts", str(tmp_path / "prompts.txt"), "--pretrained_model_name_or_path", str(run),
          "--num_inference_steps", "2", "--guidance_scale", "4", "--mixed_precision", "no", "--batch_size", "4",
          "--output_dir", str(tmp_path / "out")])  # fmt: skip
    rows = [replace(row, id="000000", prompt="a cat", seed=0, guidance_scale=4.0, extra={}) for row in prompt_rows(1)]
    source = ModelSource(pretrained_model_name_or_path=str(halves), variant="fp16")
    drawn(rows, out="same", source=source)
    assert contents(tmp_path / "out")["images/000000.png"] == contents(tmp_path / "same")["images/000000.png"]


def variants(**options: Any) -> list[tuple[str, str | None, str | None]]:
    sources = EvaluateConfig(protocol="canvas", **options).sources().values()
    return [(s.pretrained_model_name_or_path, s.revision, s.variant) for s in sources if s is not None]


def test_evaluate_knows_the_variant_and_revision_of_a_run_and_of_its_base(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", variant="fp16", revision="v9"))
    assert variants(model=run) == [("base", "v9", "fp16"), (run, None, "fp16")]
    assert variants(model=run, base="base") == [("base", "v9", "fp16"), (run, None, "fp16")]
    assert variants(model=run, base="other") == [("other", None, None), (run, None, "fp16")]
    assert variants(model=run, variant="bf16", revision="v8") == [("base", "v8", "bf16"), (run, None, "fp16")]
    plain = str(write_run(tmp_path / "plain", variant=None))
    assert variants(model=plain, variant="fp16") == [("base", None, "fp16"), (plain, None, None)]
    assert variants(model="erased", base=run, variant="bf16") == [(run, None, "bf16"), ("erased", None, "bf16")]
    assert variants(base=run, guard="sld-max", guard_concept="a cat") == [(run, None, "fp16")] * 2
    assert variants(base="base", unet_weights=tmp_path / "w", variant="fp16", revision="v9") == [
        ("base", "v9", "fp16"), ("base", "v9", "fp16"),
    ]  # fmt: skip


def test_patch_reads_and_writes_a_variant(halves: Path, tmp_path: Path) -> None:
    weights = {n: p.detach().clone() for n, p in load_denoiser(str(halves), variant="fp16").module.named_parameters()}
    erased = weights | {name: (-2 * weights[name]).half().float() for name in weights if "attn2" in name}
    save_patch(make_patch(weights, erased, "unet", {}), tmp_path / "erase-patch.safetensors")
    flags = ["patch", str(tmp_path / "erase-patch.safetensors"), f"--pretrained_model_name_or_path={halves}"]
    with pytest.raises(SystemExit):
        main([*flags, f"--output_dir={tmp_path / 'refused'}"])
    assert not (tmp_path / "refused").exists()
    main([*flags, "--variant=fp16", f"--output_dir={tmp_path / 'out'}"])
    assert [path.name for path in (tmp_path / "out/unet").glob("*.safetensors")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out", variant="fp16", use_safetensors=True)
    assert all(torch.equal(p.float(), erased[n]) for n, p in pipe.unet.named_parameters())


def test_compare_draws_the_base_that_its_runs_are_made_from(tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text("variant: fp16\nrevision: v9\n")
    config = CompareConfig(
        concept="cat", methods=("uce,sld-max",), pretrained_model_name_or_path="canvas",
        config=str(tmp_path / "common.yaml"), output_dir=tmp_path / "out",
    )  # fmt: skip
    untrained = [step for job in plan(config) for step in job.steps if step.name == "evaluate"]
    assert len(untrained) == 2
    for step in untrained:
        assert {"--variant", "--revision"} <= set(step.arguments)
        assert (step.settings["variant"], step.settings["revision"]) == ("fp16", "v9")
