"""What a classifier sees: unlearning accuracy on the erased class, accuracy on the rest, and MACE's harmonic means."""

import difflib
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
from ..statistics import Interval, bootstrap_means, rate
from .alignment import CLIPScorer, check_prompts, clip_score
from .classes import class_summary, is_right
from .encoder_kinds import need_classifier
from .encoders import EncoderSource, default_device

TOP = 5


class ClassifierScorer(Scorer):
    """Any image classifier of transformers: columns NAME_label, NAME_probability and NAME_top5, NAME the scorer's."""

    name: ClassVar[str] = "classifier"

    def __init__(self, model: str, device: torch.device | None = None):
        """`model`: hub id or folder, with its class names in id2label."""
        self.checkpoint = EncoderSource(model, f"--{self.name}", need_classifier)
        self.device = device or default_device()

    def fingerprint(self) -> dict[str, Any]:
        return {"sha256": self.checkpoint.sha256, "resize": "pil"}

    @cached_property
    def labels(self) -> list[str]:
        """Every class name, in the order of the logits; known without the weights."""
        names = self.checkpoint.config.id2label
        return [names[at] for at in sorted(names)]

    @cached_property
    def network(self) -> Any:
        """The model, loaded when first asked for."""
        return self.checkpoint.load("AutoModelForImageClassification", self.device)

    @torch.no_grad()
    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        logits = self.network(pixel_values=self.checkpoint.pixels(pictures, self.device)).logits
        found = logits.float().softmax(1).topk(min(TOP, logits.shape[1]), dim=1)
        rows = []
        for probabilities, classes in zip(found.values.tolist(), found.indices.tolist()):
            top = [[self.labels[at], round(p, 6)] for at, p in zip(classes, probabilities)]
            rows.append({"label": top[0][0], "probability": top[0][1], "top5": top})
        return Answers([{f"{self.name}_{key}": value for key, value in row.items()} for row in rows])


class ObjectClassifierScorer(ClassifierScorer):
    """The one for objects, where a protocol also has one for styles."""

    name: ClassVar[str] = "object_classifier"


class StyleClassifierScorer(ClassifierScorer):
    """The one for styles."""

    name: ClassVar[str] = "style_classifier"


def matching_classes(name: str, labels: Sequence[str]) -> set[str]:
    """The classifier's labels that mean `name`: equal to it, or to one of the words of a list such as ImageNet's
    "tench, Tinca tinca"; case and underscores do not matter. ValueError with near matches when there is none.
    """
    wanted = _plain(name)
    found = {label for label in labels if wanted in _words(label)}
    if not found:
        near = difflib.get_close_matches(wanted, sorted({word for label in labels for word in _words(label)}), n=5)
        hint = f"near: {', '.join(near)}" if near else f"it knows {', '.join(labels[:5])}, …"
        raise ValueError(f"The classifier has {len(labels)} classes and none is called {name!r} ({hint}). Give the "
                         "class its name there, or another classifier.")  # fmt: skip
    return found


def _words(label: str) -> set[str]:
    return {_plain(label), *map(_plain, label.split(","))}


def _plain(text: str) -> str:
    return text.replace("_", " ").strip().casefold()


class AccuracyMetric(Metric):
    """UA on target rows, IRA on retained ones (and CRA where another classifier looks at the other domain)."""

    name: ClassVar[str] = "accuracy"

    def __init__(self, classifiers: Mapping[str, ClassifierScorer]):
        """`classifiers`: the record's column with the expected class (label, object, style) → who judges it."""
        self.classifiers = dict(classifiers)

    def scorers(self) -> list[Scorer]:
        return list(self.classifiers.values())

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Whether every row has an expected class that its classifier knows: ask before the pictures are drawn."""
        for column, classifier in self.classifiers.items():
            if lacking := next((record for record in records if column not in record), None):
                raise ValueError(f"Accuracy needs the expected class in the column {column!r}; a row has only "
                                 f"{', '.join(sorted(lacking))}.")  # fmt: skip
            for name in dict.fromkeys(str(record[column]) for record in records):
                matching_classes(name, classifier.labels)
        if unseen := {domain for record in records for domain in record.get("domains", ())} - set(self.classifiers):
            raise ValueError(f"Nobody judges the domain {', '.join(sorted(unseen))} that was erased from: "
                             f"give --{min(unseen)}_classifier.")  # fmt: skip

    def judged(self, records: Sequence[Record]) -> list[Record]:
        """Copies of the records with `judged_COLUMN`, in the rows' own words where the classifier says otherwise."""
        self.check(records)
        judged: list[Record] = [{"domains": list(self.classifiers)} | record for record in records]
        for column, classifier in self.classifiers.items():
            names = dict.fromkeys(str(record[column]) for record in records)
            meant = {name: matching_classes(name, classifier.labels) for name in names}
            called = {label: name for name, labels in meant.items() for label in labels}
            for record in judged:
                said, expected = record[f"{classifier.name}_label"], str(record[column])
                record[f"judged_{column}"] = expected if said in meant[expected] else called.get(said, said)
                record[column] = expected
        return judged

    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        """ua, ira, cra … by role (see classes.py); plain accuracy where rows have no role."""
        records = self.judged(scored.records)
        if all("role" in record for record in records):
            return class_summary(records)
        flags = [is_right(record, record["domains"]) for record in records]
        return Summary({"accuracy": rate(flags)}, {"accuracy": flags})


def harmonic_mean(*shares: np.ndarray | float) -> np.ndarray:
    """n / Σ 1/x, element by element; zero where any share is."""
    with np.errstate(divide="ignore"):
        return len(shares) / np.sum([1 / np.asarray(share, np.float64) for share in shares], axis=0)


def mace_objects(acc_e: np.ndarray | float, acc_s: np.ndarray | float, acc_g: np.ndarray | float) -> np.ndarray:
    """H_o = 3 / ((1 − Acc_e)⁻¹ + Acc_s⁻¹ + (1 − Acc_g)⁻¹): efficacy, specificity, generality (arXiv 2403.06135)."""
    return harmonic_mean(1 - np.asarray(acc_e), acc_s, 1 - np.asarray(acc_g))


def mace_celebrities(acc_e: np.ndarray | float, acc_s: np.ndarray | float) -> np.ndarray:
    """H_c = 2 / ((1 − Acc_e)⁻¹ + Acc_s⁻¹) (arXiv 2403.06135)."""
    return harmonic_mean(1 - np.asarray(acc_e), acc_s)


def mace_artists(clip_e: np.ndarray | float, clip_s: np.ndarray | float) -> np.ndarray:
    """H_a = CLIP_s − CLIP_e, in CLIP score (arXiv 2403.06135)."""
    return np.asarray(clip_s) - np.asarray(clip_e)


class MaceMetric(Metric):
    """MACE's summary figures, of whichever parts there are.

    Erased: target rows; generality: those of them in a wording that was never trained on, where there are both kinds;
    specificity: retained rows. CLIP's part only with a `clip` scorer.
    """

    name: ClassVar[str] = "mace"

    def __init__(self, classifiers: Mapping[str, ClassifierScorer] | None = None, clip: CLIPScorer | None = None):
        if not classifiers and clip is None:
            raise ValueError("MACE's harmonic means need a classifier (--classifier) or a CLIP (--clip_model).")
        self.accuracy, self.clip = AccuracyMetric(classifiers or {}), clip

    def scorers(self) -> list[Scorer]:
        return [*self.accuracy.scorers(), *([self.clip] if self.clip else [])]

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """As AccuracyMetric's; with CLIP, whether every picture has a prompt; and whether there are both roles."""
        if self.accuracy.classifiers:
            self.accuracy.check(records)
        if self.clip:
            check_prompts(records, self.name)
        if records and (lacking := {"target", "retain"} - {str(record.get("role")) for record in records}):
            raise ValueError(
                f"mace compares prompts of what was erased (role target) with others (role retain), and no picture has "
                f"the role {' or '.join(sorted(lacking))}; give rows with a column `role`, or leave mace out."
            )

    def summarize(self, scored: Scored, base: Scored | None = None) -> Summary:
        """mace_h_o, mace_h_c in 0–1, mace_h_a in CLIP score, each where its parts exist; intervals over prompts."""
        parts = split_by_part(scored.records)
        figures: dict[str, Interval] = {}
        if parts.get("e") and parts.get("s"):
            if self.accuracy.classifiers:
                figures |= self._of_accuracies(parts)
            if self.clip:
                figures["mace_h_a"] = self._of_clip(parts)
        return Summary(figures)

    def _of_clip(self, parts: Mapping[str, list[Record]]) -> Interval:
        target, retain = [*parts["e"], *parts.get("g", [])], parts["s"]  # whatever the wording
        means = [
            _resampled([clip_score(record["clip_cosine"]) for record in rows], rows, seed)
            for seed, rows in enumerate((target, retain))
        ]
        return _interval(mace_artists(*means), len(target) + len(retain))

    def _of_accuracies(self, parts: Mapping[str, list[Record]]) -> dict[str, Interval]:
        shares = {}
        for seed, (part, rows) in enumerate(parts.items()):
            right = [float(is_right(r, r["domains"])) for r in self.accuracy.judged(rows)]
            shares[part] = _resampled(right, rows, seed)
        n = sum(map(len, parts.values()))
        figures = {"mace_h_c": _interval(mace_celebrities(shares["e"], shares["s"]), n)}
        if "g" in shares:
            figures["mace_h_o"] = _interval(mace_objects(shares["e"], shares["s"], shares["g"]), n)
        return figures


def split_by_part(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Rows of efficacy (e), generality (g) and specificity (s); a part without rows is left out."""
    target = [record for record in records if record.get("role") == "target"]
    held_out = [record for record in target if record.get("held_out_template")]
    trained = [record for record in target if not record.get("held_out_template")]
    both = bool(held_out and trained)
    parts = {
        "e": trained if both else target,
        "s": [record for record in records if record.get("role") == "retain"],
        "g": held_out if both else [],
    }
    return {name: rows for name, rows in parts.items() if rows}


def _resampled(values: Sequence[float], records: Sequence[Record], seed: int) -> np.ndarray:
    """The mean, then its bootstrap replicates over prompts."""
    return np.append(np.mean(values), bootstrap_means(values, by_column(records, "prompt"), seed))


def _interval(values: np.ndarray, n: int) -> Interval:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high), n)


def build(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """Accuracy, with the classifiers that the flags give. ValueError without any."""
    if not (classifiers := _classifiers(config, protocol)):
        raise ValueError(
            f"{protocol.name} needs a classifier: --classifier, or --object_classifier and --style_classifier, a "
            "transformers image classifier by hub id or folder (such as microsoft/resnet-50 for ImageNet's classes)."
        )
    return AccuracyMetric(classifiers)


def build_mace(config: EvaluateConfig, protocol: Protocol) -> Metric:
    """MACE's figures, with the classifiers that the flags give and --clip_model. ValueError without any of them."""
    return MaceMetric(_classifiers(config, protocol), CLIPScorer(config.clip_model) if config.clip_model else None)


def _classifiers(config: EvaluateConfig, protocol: Protocol) -> dict[str, ClassifierScorer]:
    """Column with the expected class → who judges it."""
    found: dict[str, ClassifierScorer] = {}
    if config.classifier:
        found["object" if protocol.family else "label"] = ClassifierScorer(config.classifier)
    if config.object_classifier:
        found["object"] = ObjectClassifierScorer(config.object_classifier)
    if config.style_classifier:
        found["style"] = StyleClassifierScorer(config.style_classifier)
    return found
