"""A small language model forgets one fact and keeps the others: SalUn's mask and optimiser on a causal transformer.

    python examples/forget_a_fact.py

The model (transformers' GPT-2, two layers) learns thirty sentences about invented countries in a few seconds. Then the
weights that carry one capital are found by the gradient of that answer's loss, and only these are trained towards other
capitals, while the other sentences are rehearsed.
"""

import random

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from erase import SaliencyMask, saliency_scores
from erase.trained.optim import MaskedAdamW

COUNTRIES = ["arland", "borvia", "cresia", "dunmark", "elstan", "faroway", "gondia", "halvar", "istria", "jorland"]
CAPITALS = ["asten", "belmont", "cardiz", "dorwick", "esbury", "falmar", "grenholm", "hadle", "ilmar", "jessop"]
RIVERS = ["axe", "bourne", "cam", "derwent", "esk", "frome", "gannel", "humber", "isis", "jed"]
FORGOTTEN = 3
"""Which country's capital is to go."""


def sentences() -> list[list[str]]:
    """Three facts of each country, the last word being what is asked for."""
    facts = zip(COUNTRIES, CAPITALS, RIVERS, strict=True)
    texts = [(f"the capital of {c} is {t}", f"the river of {c} is {r}", f"{t} lies on the {r}") for c, t, r in facts]
    return [text.split() for group in texts for text in group]


def encoded(texts: list[list[str]]) -> tuple[Tensor, Tensor, list[str]]:
    """(N, T) token ids, padded on the left, (N,) length of each, and the vocabulary."""
    words = ["<pad>", *dict.fromkeys(word for text in texts for word in text)]
    width = max(map(len, texts))
    rows = [[0] * (width - len(text)) + [words.index(word) for word in text] for text in texts]
    return torch.tensor(rows), torch.tensor([len(text) for text in texts]), words


def answer_logits(model: GPT2LMHeadModel, ids: Tensor, lengths: Tensor) -> Tensor:
    """(N, vocabulary) prediction of each sentence's last word from the words before it."""
    seen = torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]
    return model(input_ids=ids[:, :-1], attention_mask=seen[:, :-1]).logits[:, -1]


def main() -> dict[str, float]:
    """Train, forget, print; returns the figures."""
    torch.manual_seed(0)
    ids, lengths, words = encoded(sentences())
    answers = ids[:, -1]
    forget = torch.tensor([row == 3 * FORGOTTEN for row in range(len(ids))])
    config = GPT2Config(vocab_size=len(words), n_positions=16, n_embd=64, n_layer=2, n_head=4,
                        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    model = GPT2LMHeadModel(config)

    def loss(rows: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(answer_logits(model, ids[rows], lengths[rows]), labels)

    def named(rows: Tensor) -> float:
        with torch.no_grad():
            return (answer_logits(model, ids[rows], lengths[rows]).argmax(1) == answers[rows]).double().mean().item()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(torch.ones_like(forget), answers).backward()
        optimizer.step()
    before = {"forgotten before": named(forget), "kept before": named(~forget)}

    scores = saliency_scores(model, [lambda: -loss(forget, answers[forget])])
    mask = SaliencyMask.from_scores(scores, density=0.2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    masked = MaskedAdamW(model.named_parameters(), mask.tensors, lr=1e-3)
    others = [words.index(town) for town in CAPITALS if town != CAPITALS[FORGOTTEN]]
    chooser = random.Random(0)
    for _ in range(60):
        masked.zero_grad()
        wrong = torch.tensor([chooser.choice(others)])
        (loss(forget, wrong) + 3 * loss(~forget, answers[~forget])).backward()
        masked.step()

    with torch.no_grad():
        left = answer_logits(model, ids[forget], lengths[forget]).softmax(1)[0, answers[forget]].item()
    moved = sum(int((p != start[name]).sum()) for name, p in model.named_parameters())
    after = {"forgotten after": named(forget), "kept after": named(~forget), "answer's probability": left}
    figures = before | after | {"weights changed": moved / sum(p.numel() for p in model.parameters())}
    print(f"Asked: {' '.join(sentences()[3 * FORGOTTEN][:-1])} …")
    print("\n".join(f"{name:>22}: {100 * value:6.2f} %" for name, value in figures.items()))
    print(mask.table())
    return figures


if __name__ == "__main__":
    main()
