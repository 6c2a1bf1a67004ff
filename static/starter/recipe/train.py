"""Train the starter model on the closed world, in two parts. Knows nothing of files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from static.starter.recipe.batches import Batch, Batches
from static.starter.recipe.structure import build_model, piece_codes, space_code
from static.starter.recipe.tokenizer import END_OF_TURN, PAD, unspaced


@dataclass(frozen=True)
class Plan:
    """The one plan of the shipped model: learn at a constant rate, then settle: go on from the rounded weights at a falling rate."""

    steps: int = 1398
    settling_steps: int = 420
    rows: int = 8
    seed: int = 0
    copying_steps: int = 336  # at the start, many rows exercise copying
    warmup_steps: int = 20
    matrix_learning_rate: float = 0.012
    vector_learning_rate: float = 2e-3
    weight_decay: float = 0.05

    def learning_factor(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup_steps)

    def settling_factor(self, step: int) -> float:
        return self.learning_factor(step) * (self.settling_steps - step) / self.settling_steps

    def shares(self, step: int) -> tuple[float, float]:
        """Share of rows: repeated random pieces, prose."""
        return (0.2, 0.08) if step < self.copying_steps else (0.03, 0.1)


class Pieces(nn.Module):
    """The embedding while it trains: a vector per piece, and one for "has a leading space" that all pieces share."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        base = torch.tensor(unspaced(tokenizer))
        ids, self_or_base = torch.unique(base, return_inverse=True)
        self.register_buffer("piece", self_or_base)
        self.register_buffer("spaced", (base != torch.arange(len(base))).float()[:, None])
        self.vectors = nn.Parameter(piece_codes(len(ids)))
        self.space = nn.Parameter(space_code())

    def adopt(self, table: torch.Tensor) -> None:
        """Take over a finished embedding (pieces, hidden)."""
        with torch.no_grad():
            plain = self.spaced[:, 0] == 0
            self.vectors[self.piece[plain]] = table[plain]
            spaced = ~plain
            self.space.copy_((table[spaced] - self.vectors[self.piece[spaced]]).mean(0))

    def table(self) -> torch.Tensor:
        return self.vectors[self.piece] + self.spaced * self.space


def learn(tokenizer: PreTrainedTokenizerFast, prose: list[str], plan: Plan) -> LlamaForCausalLM:
    """The first part, from the laid start; float32."""
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(plan.seed)
    special = {name: tokenizer.convert_tokens_to_ids(name) for name in (END_OF_TURN, PAD)}
    model = build_model(len(tokenizer), special[END_OF_TURN], special[PAD])
    pieces = Pieces(tokenizer)
    batches = Batches(tokenizer, prose, plan.seed)
    _run(model, pieces, batches, plan, plan.steps, plan.learning_factor, plan.shares)
    return _publishable(model, pieces)


def settle(tokenizer: PreTrainedTokenizerFast, prose: list[str], plan: Plan, learned: LlamaForCausalLM) -> LlamaForCausalLM:
    """The second part. `learned` comes from the published folder, so its weights are rounded to bfloat16."""
    torch.use_deterministic_algorithms(True)
    model = learned.float()
    pieces = Pieces(tokenizer)
    pieces.adopt(model.model.embed_tokens.weight.detach())
    batches = Batches(tokenizer, prose, plan.seed + 1)
    _run(model, pieces, batches, plan, plan.settling_steps, plan.settling_factor, lambda step: plan.shares(plan.steps + step))
    return _publishable(model, pieces)


def _run(
    model: LlamaForCausalLM,
    pieces: Pieces,
    batches: Batches,
    plan: Plan,
    steps: int,
    factor: Callable[[int], float],
    shares: Callable[[int], tuple[float, float]],
) -> None:
    matrices = [weight for name, weight in model.model.layers.named_parameters() if weight.ndim == 2]
    norms = [weight for weight in model.model.parameters() if weight.ndim == 1]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, plan.matrix_learning_rate, plan.weight_decay),
        torch.optim.AdamW([*pieces.parameters(), *norms], lr=plan.vector_learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    rates = (plan.matrix_learning_rate, plan.vector_learning_rate)
    started, recent = time.monotonic(), 0.0
    for step in range(steps):
        loss = batch_loss(model, pieces.table(), batches.next(plan.rows, *shares(step)))
        loss.backward()
        nn.utils.clip_grad_norm_([*matrices, *norms, *pieces.parameters()], 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor(step)
            optimizer.step()
            optimizer.zero_grad()
        recent = 0.95 * recent + 0.05 * loss.item() if step else loss.item()
        if step % 20 == 0:
            print(f"step {step} loss {recent:.3f} {time.monotonic() - started:.0f} s", flush=True)


def batch_loss(model: LlamaForCausalLM, table: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted mean negative log-likelihood. Only positions that count go through the output layer."""
    same = batch.documents[:, None, :, None] == batch.documents[:, None, None, :]
    mask = torch.zeros(same.shape).masked_fill_(~same.tril(), -1e9)
    hidden = model.model(inputs_embeds=nn.functional.embedding(batch.ids, table), attention_mask=mask, use_cache=False).last_hidden_state
    weights = batch.weights[:, 1:]
    counts = weights > 0
    losses = nn.functional.cross_entropy(hidden[:, :-1][counts] @ table.T, batch.ids[:, 1:][counts], reduction="none")
    return (losses * weights[counts]).sum() / weights.sum()


def _publishable(model: LlamaForCausalLM, pieces: Pieces) -> LlamaForCausalLM:
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(pieces.table())
    return model


class Muon(torch.optim.Optimizer):
    """Momentum whose step has all singular values near one (Jordan et al., Muon, 2024). torch's own computes in bf16, slow on many CPUs."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for shape in dict.fromkeys(weight.shape for weight in group["params"]):
                weights = [weight for weight in group["params"] if weight.shape == shape]
                updates = _orthogonal(torch.stack(list(self._moving(weights, group["momentum"]))))
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5)

    def _moving(self, weights: list[nn.Parameter], momentum: float) -> Iterator[torch.Tensor]:
        for weight in weights:
            assert weight.grad is not None
            buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
            buffer.lerp_(weight.grad, 1 - momentum)
            yield weight.grad.lerp(buffer, momentum)


def _orthogonal(stack: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration on a (n, rows, columns) stack, with Muon's quintic coefficients."""
    is_tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if is_tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if is_tall else x
