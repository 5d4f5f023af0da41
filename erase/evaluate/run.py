"""`erase evaluate` as a command: from its flags to pictures, scores, figures and report."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..draw.generate import SMALLER, kept_pictures
from ..draw.prompts import first_of_each_role
from ..output import find
from ..runtime.devices import make_accelerator
from ..runtime.stopping import explained
from .adopted import at_hand, given_pictures, refuse_inside
from .config import EvaluateConfig
from .evaluation import Evaluation
from .metrics.registry import build_metric
from .protocols import load_protocol, protocol_rows


def run_evaluate(config: EvaluateConfig, then: Callable[[Path], Path] | None = None) -> Path:
    """The command: everything from pictures to figures; returns output_dir.

    then: what follows on the main process while the folder is open, such as `write_report`; returns the file it made.
    """
    output = find(config.claim())
    output.refuse_other()
    accelerator = make_accelerator(config.mixed_precision)
    evaluation = planned(replace(config, output_dir=output.work), accelerator)
    is_main, wait = accelerator.is_main_process, accelerator.wait_for_everyone
    with explained(lambda: kept_pictures(output), SMALLER), output.writing(is_main=is_main, wait=wait) as work:
        table = evaluation.run()
        made = then(work) if then and is_main else None
    if is_main:
        print(f"{table}\n\nEverything is in {config.output_dir}.")
        if made:
            print(f"The report: {config.output_dir / made.relative_to(work)}")
    return config.output_dir


def planned(config: EvaluateConfig, accelerator: Accelerator) -> Evaluation:
    """The evaluation that the flags ask for; whatever cannot work is an error here, before anything is drawn."""
    refuse_inside(config.fid_reference, config.output_dir)
    protocol, subset = load_protocol(config.protocol)
    changes: dict[str, Any] = {"metrics": config.metrics or protocol.metrics}
    if config.num_inference_steps:
        changes["num_inference_steps"] = config.num_inference_steps
    protocol = replace(protocol, **changes)
    concepts, sources = config.concepts(), config.sources()
    drawn = any(source is not None for source in sources.values())
    known = drawn or at_hand(protocol, concepts, config.prompts)
    rows = protocol_rows(protocol, subset, concepts, config.prompts) if known else []
    folders = {"base": config.base_images, "erased": config.images}
    given = {
        name: given_pictures(folder, config.output_dir / name, rows, config.prompts, config.max_images)
        for name, folder in folders.items()
        if folder is not None
    }
    rows = rows if drawn else []
    for source in sources.values():
        if source is not None and source.guard:
            source.check()
            source.check_rows(rows)
    evaluation = Evaluation(
        protocol=protocol if subset is None else replace(protocol, name=f"{protocol.name}/{subset}"),
        rows=first_of_each_role(rows, config.max_images, lambda row: row.extra),
        given=given,
        metrics=[build_metric(name, config, protocol) for name in protocol.metrics],
        models=sources,
        folder=config.output_dir,
        accelerator=accelerator,
        batch_size=config.batch_size,
        picture_cache=config.data_cache_dir / "pictures",
        concepts=[concept.name for concept in concepts],
    )
    evaluation.check()
    return evaluation
