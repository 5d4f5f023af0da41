"""CLIP score (arXiv 2104.08718): does a picture show what its prompt says?

Written here because torchmetrics' CLIPScore breaks with transformers 5, where CLIP's feature methods return more than a
tensor (its issue 3407).
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from ...draw.answers import Answers, Scorer
from ...draw.records import Record
from ..config import EvaluateConfig
from ..protocols import Protocol
from ..scoring import Metric, Scored, Summary, by_column
from ..statistics import clustered_mean
from .encoder_kinds import need_clip
from .encoders import EncoderSource, default_device

CLIP_SCORE_CLIP = "openai/clip-vit-base-patch32"
"""What the field's tables use (MACE, AdvUnlearn)."""


class CLIPScorer(Scorer):
    """Column `clip_cosine`: cosine of the picture's and its prompt's embeddings, in [−1, 1]."""

    name: ClassVar[str] = "clip_score"

    def __init__(self, model: str = CLIP_SCORE_CLIP, device: torch.device | None = None):
        """`model`: a CLIPModel with its tokenizer, by hub id or folder. Longer prompts are cut to its 77 tokens."""
        self.checkpoint, self.device = EncoderSource(model, "--clip_model", need_clip), device or default_device()

    def fingerprint(self) -> dict[str, Any]:
        return {"sha256": self.checkpoint.sha256, "resize": "pil"}

    def question(self, record: Record) -> Record:
        return super().question(record) | {"prompt": record["prompt"]}

    @cached_property
    def network(self) -> Any:
        """The model, loaded when first asked for."""
        return self.checkpoint.load("CLIPModel", self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer beside the model."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.checkpoint.folder)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.checkpoint.folder} holds no tokenizer ({error}); --clip_model needs a CLIP with "
                             "both halves.") from error  # fmt: skip

    @torch.no_grad()
    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        pixels = self.checkpoint.pixels(pictures, self.device)
        prompts = [record["prompt"] for record in records]
        longest = self.checkpoint.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        answer = self.network(**tokens.to(self.device), pixel_values=pixels)  # its embeddings are of unit length
        cosines = (answer.image_embeds * answer.text_embeds).sum(1)
        return Answers([{"clip_cosine": cosine} for cosine in cosines.tolist()])


class ClipScoreMetric(Metric):
    """Mean CLIP score, and that of target and retained prompts apart."""

    name: ClassVar[str] = "clip_score"

    def __init__(self, scorer: CLIPScorer | None = None):
        self.scorer = scorer or CLIPScorer()

    def scorers(self) -> list[Scorer]:
        return [self.scorer]

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Whether every picture has a prompt to be compared with."""
        check_prompts(records, self.name)

    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        """clip_score: mean of 100 · max(cos, 0), in 0–100, with an interval over prompts; _target and _retain apart."""
        figures = {}
        for key, role in (("clip_score", None), ("clip_score_target", "target"), ("clip_score_retain", "retain")):
            records = [r for r in scored.records if role is None or r.get("role") == role]
            if records:
                values = [clip_score(record["clip_cosine"]) for record in records]
                figures[key] = clustered_mean(values, by_column(records, "prompt"))
        return Summary(figures, details={"model": self.scorer.checkpoint.name})


def clip_score(cosine: float) -> float:
    """100 · max(cos, 0)."""
    return 100 * max(cosine, 0.0)


def check_prompts(records: Sequence[Mapping[str, Any]], metric: str) -> None:
    """ValueError where a picture has no prompt: it would be compared with the empty one."""
    if lacking := [record for record in records if not str(record.get("prompt") or "").strip()]:
        raise ValueError(
            f"{metric} compares pictures with their prompts, and {len(lacking)} of {len(records)} pictures have none "
            f"({lacking[0]['file']}). Give --prompts, a table whose id or file_name names the pictures; a caption for "
            f"each (0.txt beside 0.png, or metadata.jsonl); a folder of `erase generate`; or leave {metric} out."
        )


def build(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """The CLIP score, with --clip_model."""
    return ClipScoreMetric(CLIPScorer(config.clip_model) if config.clip_model else CLIPScorer())
