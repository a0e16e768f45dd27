"""The graph half of XRec: LightGCN over user-item interactions, ranking metrics, and fold-in of unseen nodes."""

from xrec.graph.fold_in import FoldIn, fold_in_zero_shot
from xrec.graph.interactions import InteractionSplits
from xrec.graph.lightgcn import LightGCN
from xrec.graph.ranking_metrics import evaluate_ranking
from xrec.graph.training import TrainingResult, train_lightgcn

__all__ = [
    "FoldIn",
    "InteractionSplits",
    "LightGCN",
    "TrainingResult",
    "evaluate_ranking",
    "fold_in_zero_shot",
    "train_lightgcn",
]
