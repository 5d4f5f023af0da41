"""Every method by name: what kind of job it is, where it was published, and which models and flags it can serve."""

from dataclasses import dataclass
from typing import Literal

Scope = Literal[
    "full", "cross-attention", "cross-attention-kv", "self-attention", "all-but-cross-attention",
    "all-but-cross-attention-and-norms", "all-but-cross-attention-and-ends", "text-encoder",
]  # fmt: skip
"""Which weights may change: the denoiser's (all, or some of its layers), or the text encoder's."""
Kind = Literal["trained", "closed-form", "inference"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to erase a concept."""

    kind: Kind
    """trained: steps of gradient descent. closed-form: one edit of the weights. inference: no weight changes."""
    summary: str
    """What it does, in a line."""
    source: str
    """Where it was published: an arXiv id, or the project's name."""
    objective: str = "mismatch"
    """Loss of a trained method: a key of `trained.objectives.OBJECTIVES`."""
    needs_cross_attention: bool = False
    """Works on cross-attention layers, which transformers with joint attention do not have."""
    proximal: bool = False
    """Takes the smallest changes back after every step, single weights, so that it cannot train an adapter."""
    takes_mask: bool = True
    """Whether some of its weights alone may change."""
    guards: tuple[str, ...] = ()
    """Of an inference method: the names of --guard that are this method, each with settings of its own."""


METHODS: dict[str, Method] = {
    "recommended": Method(
        kind="closed-form", source="2310.12508, in closed form",
        summary="solves SalUn's problem (salient weights, mismatched prompts) in closed form",
    ),
    "salun": Method(
        kind="trained", source="2310.12508", summary="trains salient weights on mismatched prompts"
    ),
    "salun-soft": Method(
        kind="trained", source="2310.12508", proximal=True,
        summary="trains on mismatched prompts; sets small weight changes to zero",
    ),
    "salun-anchored": Method(
        kind="trained", source="2310.12508, changed",
        summary="SalUn with the frozen base as teacher, mostly on pictures of the anchor",
    ),
    "random-label": Method(
        kind="trained", source="2310.12508", summary="trains all weights on mismatched prompts: SalUn without its mask"
    ),
    "gradient-ascent": Method(
        kind="trained", source="2109.13398", objective="ascent",
        summary="raises the training loss on the concept's pictures",
    ),
    "esd-x": Method(
        kind="trained", source="2303.07345", objective="negative-guidance",
        summary="guides away from the concept, in the cross-attention layers",
    ),
    "esd-x-strict": Method(
        kind="trained", source="2303.07345", objective="negative-guidance",
        summary="guides away from the concept, in the cross-attention's keys and values",
    ),
    "esd-u": Method(
        kind="trained", source="2303.07345", objective="negative-guidance",
        summary="guides away from the concept, in all layers but the cross-attention",
    ),
    "concept-ablation": Method(
        kind="trained", source="2303.13516", summary="trains the concept's prompt on pictures of the anchor"
    ),
    "forget-me-not": Method(
        kind="trained", source="2303.17591", objective="attention", needs_cross_attention=True,
        summary="suppresses attention to the concept's words",
    ),
    "erasediff": Method(
        kind="trained", source="2401.05779", summary="forgets as far as retention allows"
    ),
    "leco": Method(
        kind="trained", source="LECO", objective="negative-guidance",
        summary="trains a low-rank adapter that guides away from the concept",
    ),
    "uce": Method(
        kind="closed-form", source="2308.14761",
        summary="maps the concept's keys and values to the anchor's by least squares",
    ),
    "rece": Method(
        kind="closed-form", source="2407.12383",
        summary="UCE in rounds, each against the embedding that still brings the concept back",
    ),
    "speed": Method(
        kind="closed-form", takes_mask=False, source="2503.07392",
        summary="UCE's edit in the null space of the retained tokens",
    ),
    "negative-prompt": Method(
        kind="inference", source="diffusers", guards=("negative-prompt",),
        summary="uses the concept's words as negative prompt",
    ),
    "sld": Method(
        kind="inference", source="2211.05105", guards=("sld-medium", "sld-strong", "sld-max"),
        summary="safe latent diffusion: guidance away from the words",
    ),
    "safree": Method(
        kind="inference", source="2410.12761", guards=("safree",),
        summary="removes the concept's direction from the prompt's embedding",
    ),
}  # fmt: skip


def check_method(name: str, scope: str, lora_rank: int, mask: str) -> None:
    """ValueError for combinations that no model can serve; nothing needs to be loaded for that."""
    method = METHODS[name]
    if method.kind == "inference":
        raise ValueError(
            f"{name} changes no weights, so there is nothing to train: it is a setting of `erase generate` and `erase "
            f"evaluate`, for example --guard {method.guards[0]}."
        )
    if method.kind == "closed-form" and (scope not in ("full", "cross-attention-kv") or lora_rank):
        raise ValueError(
            f"{name} edits the cross-attention's keys and values (in a transformer with joint attention, the layer "
            f"that takes the text in) and nothing else: leave out --scope and --lora_rank; got scope {scope!r}, "
            f"lora_rank {lora_rank}. Trained methods, such as salun, take any scope."
        )
    if not method.takes_mask and mask != "none":
        able = [other for other, row in METHODS.items() if row.kind == method.kind and row.takes_mask]
        raise ValueError(
            f"{name} edits inside the null space of what is retained, which an edit of some weights alone would leave; "
            f"got mask {mask!r}. Use --mask none; {', '.join(able)} take masks."
        )
    if method.objective == "attention" and scope == "self-attention":
        raise ValueError(
            f"{name} is a loss on cross-attention maps, which self-attention reaches only by detours: use --scope "
            "cross-attention, cross-attention-kv, full or text-encoder."
        )
    if lora_rank and mask != "none":
        raise ValueError(
            f"A low-rank adapter (--lora_rank {lora_rank}) changes every weight of its layers, so it cannot keep to a "
            f"mask; got mask {mask!r}. Use --mask none, or --lora_rank 0."
        )
    if lora_rank and method.proximal:
        raise ValueError(f"{name} thresholds changes of single weights; it takes no --lora_rank. Use salun.")
