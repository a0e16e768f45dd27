"""Training of LightGCN by Bayesian personalised ranking, with early stopping and exact resumption.

XRec (arXiv 2406.02377) Eq. 9 to 11. Files, logs and progress bars are the caller's business: it gets every epoch's
figures and, if it asks, states to resume from. Shapes: N users, M items, D width, L layers, E interactions, B batch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from xrec.embeddings import Embeddings
from xrec.graph.interactions import check_pairs
from xrec.graph.lightgcn import LightGCN, locality_order, normalized_adjacency
from xrec.graph.negatives import NegativeSampler
from xrec.graph.ranking_metrics import evaluate_ranking
from xrec.graph.state import TrainingState

STOPPING_METRIC = "val/recall@20"
STOPPING_CUT_OFF = 20


@dataclass(frozen=True)
class TrainingResult:
    """What training leaves behind.

    Attributes:
        embeddings: all layers of the epoch with the best validation Recall@20.
        history: one dict an epoch: `epoch` (from 0), `loss`, `bpr`, `l2`, `seconds`, and where it was validated
            `val/recall@20`.
        best_epoch: the epoch that the embeddings come from.
        best_recall: its validation Recall@20.
    """

    embeddings: Embeddings
    history: list[dict[str, float]]
    best_epoch: int
    best_recall: float


def train_lightgcn(
    train: torch.Tensor,
    val: torch.Tensor,
    users: int,
    items: int,
    *,
    dim: int = 64,
    layers: int = 3,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    max_epochs: int = 500,
    patience: int = 10,
    evaluate_every: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    resume: TrainingState | None = None,
    on_checkpoint: Callable[[TrainingState], None] | None = None,
    checkpoint_seconds: float = 300.0,
) -> TrainingResult:
    """Train until validation Recall@20 has stopped rising, or `max_epochs`.

    Args:
        train: `[2, E]` int64 distinct (user, item) pairs: the graph's edges, and the positives.
        val: `[2, E']` pairs that decide when to stop; they are neither edges nor positives.
        users, items: N and M; users without an interaction in `train` keep their initial embedding.
        dim, layers: D and L.
        batch_size: positives a step, each with one negative drawn anew every epoch.
        learning_rate: Adam's.
        weight_decay: weight of Eq. 10, half the squared norm of the batch's layer-0 embeddings over the batch size.
        patience: evaluations without a better validation Recall@20 before stopping.
        evaluate_every: epochs between evaluations.
        seed: the same seed gives the same embeddings: on a CPU, with the same number of threads, bit for bit.
        on_epoch: called with each epoch's entry of the history.
        resume: a state from `on_checkpoint` of a run with the same arguments; the result is that of the run
            uninterrupted.
        on_checkpoint: called at the end of an epoch, `checkpoint_seconds` after the last call at the earliest.

    Raises:
        ValueError: a split is empty or has pairs out of range, or a setting is out of range.
    """
    check_training(train, val, users, items, dim, layers, batch_size, max_epochs, patience, evaluate_every, seed)
    order = locality_order(train, users, items)
    train, val = relabel(train, order), relabel(val, order)
    trainer = Trainer(train, users, items, dim, layers, batch_size, learning_rate, weight_decay, seed, device)
    state = run_epochs(
        trainer,
        val,
        resume,
        max_epochs=max_epochs,
        patience=patience,
        evaluate_every=evaluate_every,
        on_epoch=on_epoch,
        on_checkpoint=on_checkpoint,
        checkpoint_seconds=checkpoint_seconds,
    )
    return trainer.result(state, order)


def run_epochs(
    trainer: "Trainer",
    val: torch.Tensor,
    resume: TrainingState | None,
    *,
    max_epochs: int,
    patience: int,
    evaluate_every: int,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    on_checkpoint: Callable[[TrainingState], None] | None = None,
    checkpoint_seconds: float = 300.0,
) -> TrainingState:
    """The epochs of `train_lightgcn`, whose arguments these are; the state after the last one."""
    state = trainer.restore(resume) if resume else trainer.initial_state()
    saved = time.monotonic()
    while state.epoch < max_epochs and state.stale < patience:
        entry = trainer.train_epoch(state.epoch)
        if (state.epoch + 1) % evaluate_every == 0 or state.epoch + 1 == max_epochs:
            entry[STOPPING_METRIC] = trainer.recall(val)
        trainer.advance(state, entry)
        if on_epoch:
            on_epoch(entry)
        if on_checkpoint and trainer.agreed(time.monotonic() - saved >= checkpoint_seconds):
            on_checkpoint(trainer.snapshot(state))
            saved = time.monotonic()
    return state


class Trainer:
    """One epoch after another over a fixed graph; `train_lightgcn` has it in the order that suits propagation.

    Args: as `train_lightgcn`.
    """

    def __init__(
        self,
        train: torch.Tensor,
        users: int,
        items: int,
        dim: int,
        layers: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        seed: int,
        device: str | torch.device,
    ):
        self.train, self.users, self.items, self.seed = train, users, items, seed
        self.batch_size, self.weight_decay, self.device = batch_size, weight_decay, torch.device(device)
        self.sampler = NegativeSampler(train, users, items)
        adjacency = normalized_adjacency(train, users, items)
        # The epochs' generators are seeded with (seed, epoch): nothing but the epoch needs saving to resume exactly.
        self.use_model(LightGCN(adjacency, dim, layers, generator_of(seed, 0)).to(self.device), learning_rate)

    def use_model(self, model: Any, learning_rate: float) -> None:
        """Train `model` from its present state, with a fresh optimiser."""
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training pairs in random order; the mean of each term of the loss (Eq. 11)."""
        started = time.perf_counter()
        generator = generator_of(self.seed, epoch + 1)
        negatives = self.sampler.sample(generator)
        pairs, usable = self.train, negatives >= 0
        triples = torch.stack([pairs[0], pairs[1] + self.users, negatives + self.users])[:, usable]
        triples = triples[:, torch.randperm(triples.shape[1], generator=generator)].to(self.device)
        sums = torch.zeros(2, device=self.device)
        for batch in triples.split(self.batch_size, dim=1):
            sums += self.step(batch) * batch.shape[1]
        return self.entry(epoch, sums / triples.shape[1], time.perf_counter() - started)

    def entry(self, epoch: int, terms: torch.Tensor, seconds: float) -> dict[str, float]:
        """An epoch's entry of the history, from the means of the loss's two terms.

        Raises:
            ValueError: the loss is no number any more.
        """
        bpr, l2 = terms.tolist()
        loss = bpr + self.weight_decay * l2
        if not np.isfinite(loss):
            raise ValueError(
                f"epoch {epoch}: the loss is {loss}; lower learning_rate ({self.optimizer.param_groups[0]['lr']:g})"
            )
        return {"epoch": epoch, "loss": loss, "bpr": bpr, "l2": l2, "seconds": seconds}

    def step(self, batch: torch.Tensor) -> torch.Tensor:
        """One optimisation step on `[3, B]` nodes (user, positive, negative); the two terms of the loss."""
        nodes = batch.reshape(-1)
        user, positive, negative = self.model().index_select(0, nodes).view(3, batch.shape[1], -1)
        bpr = F.softplus((user * (negative - positive)).sum(-1)).mean()
        l2 = self.model.embedding.index_select(0, nodes).square().sum() / (2 * batch.shape[1])
        self.optimizer.zero_grad(set_to_none=True)
        (bpr + self.weight_decay * l2).backward()
        self.optimizer.step()
        return torch.stack([bpr, l2]).detach()

    @torch.no_grad()
    def recall(self, val: torch.Tensor) -> float:
        """Recall@20 of the present embeddings on `[2, E]` pairs, training pairs masked, averaged over users."""
        user, item = self.model().split([self.users, self.items])
        train, val = self.train.to(self.device), val.to(self.device)
        ranking = evaluate_ranking(user, item, val, train, (STOPPING_CUT_OFF,), mrr=False)
        return ranking.mean()[f"recall@{STOPPING_CUT_OFF}"]

    def agreed(self, flag: bool) -> bool:
        """What all processes that train together take for true; here, there is one."""
        return flag

    def initial_state(self) -> TrainingState:
        """Before the first epoch."""
        return TrainingState(tensors={"best": self.model.embedding.detach().clone()})

    def advance(self, state: TrainingState, entry: dict[str, float]) -> None:
        """Take an epoch's outcome into the state."""
        state.history.append(entry)
        state.epoch += 1
        if STOPPING_METRIC not in entry:
            return
        state.stale += 1
        if entry[STOPPING_METRIC] > state.best_recall:
            state.best_recall, state.best_epoch, state.stale = entry[STOPPING_METRIC], int(entry["epoch"]), 0
            state.tensors["best"] = self.model.embedding.detach().clone()

    def snapshot(self, state: TrainingState) -> TrainingState:
        """`state` with all that is needed to go on from it."""
        moments: dict[str, Any] = self.optimizer.state[self.model.embedding]
        tensors = {"embedding": self.model.embedding.detach(), "best": state.tensors["best"], **moments}
        return TrainingState(**{**vars(state), "tensors": {k: v.cpu().clone() for k, v in tensors.items()}})

    def restore(self, state: TrainingState) -> TrainingState:
        """Continue from `state`; returns a copy to go on with."""
        tensors = {name: tensor.to(self.device).clone() for name, tensor in state.tensors.items()}
        embedding, best = tensors.pop("embedding"), tensors.pop("best")
        if embedding.shape != self.model.embedding.shape:
            raise ValueError(
                f"resume: the state holds embeddings {list(embedding.shape)}, the graph and dim ask for "
                f"{list(self.model.embedding.shape)}; resume with the settings of the interrupted run, or start anew"
            )
        with torch.no_grad():
            self.model.embedding.copy_(embedding)
        self.optimizer.state[self.model.embedding] = tensors
        return TrainingState(**{**vars(state), "tensors": {"best": best}, "history": list(state.history)})

    def result(self, state: TrainingState, order: tuple[torch.Tensor, torch.Tensor]) -> TrainingResult:
        """The best epoch's embeddings, nodes in the caller's order again."""
        with torch.no_grad():
            self.model.embedding.copy_(state.tensors["best"])
        user, item = self.model.layer_embeddings().cpu().split([self.users, self.items], dim=1)
        embeddings = Embeddings(user[:, order[0]], item[:, order[1]])
        return TrainingResult(embeddings, state.history, state.best_epoch, state.best_recall)


def relabel(pairs: torch.Tensor, order: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """`[2, E]` pairs under the new indices that `locality_order` gives."""
    return torch.stack([order[0][pairs[0]], order[1][pairs[1]]])


def generator_of(seed: int, stream: int) -> torch.Generator:
    """The random numbers of stream 0 (the initial embeddings) or e + 1 (epoch e)."""
    state = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def check_training(
    train, val, users, items, dim, layers, batch_size, max_epochs, patience, evaluate_every, seed
) -> None:
    """Raise ValueError where `train_lightgcn` does."""
    for name, pairs in (("train", train), ("val", val)):
        check_pairs(name, pairs, users, items)
        if pairs.shape[1] == 0:
            raise ValueError(
                f"{name}: the split has no interactions; give it a share in preprocess.ratios, or bring more data"
            )
    if len(torch.unique(train[0] * items + train[1])) < train.shape[1]:
        raise ValueError("train: a (user, item) pair occurs twice; keep one of each")
    positive = {"dim": dim, "batch_size": batch_size, "max_epochs": max_epochs, "patience": patience}
    for name, value in (positive | {"evaluate_every": evaluate_every}).items():
        if value < 1:
            raise ValueError(f"{name} = {value}; it must be 1 or more")
    for name, value in {"layers": layers, "seed": seed}.items():
        if value < 0:
            raise ValueError(f"{name} = {value}; it must not be negative")
