"""Which scorer each family of metrics in the settings is, opened for one workspace."""

from collections.abc import Callable

from xrec.config import EvaluateConfig
from xrec.evaluation.feature_matching import FeatureMatcher, FeatureScorer
from xrec.evaluation.length import LengthScorer
from xrec.evaluation.prompt_copies import PromptCopyScorer
from xrec.evaluation.prompt_texts import PromptTexts
from xrec.evaluation.scorers import Scorer
from xrec.evaluation.support import SupportChecker
from xrec.workspace import Workspace

# Those that compare with a reference have nothing to do where the data has none.
REFERENCED = ("rouge", "bleu", "feature", "bert_score", "bart_score", "bleurt", "gpt_score", "factuality")


def open_scorers(workspace: Workspace, config: EvaluateConfig, device: str, referenced: bool) -> dict[str, Scorer]:
    """The scorers of the settings' metrics, models loaded.

    Args:
        workspace: whose texts are scored.
        config: the stage's settings.
        device: torch device.
        referenced: whether the data has references at all.

    Returns:
        Family -> scorer; families that have nothing to compare with are left out, as are copies of the prompt where the
        prompt is not known (predictions of another system).

    Raises:
        ValueError: a model cannot be loaded, or is of the wrong kind.
        FatalError: a judge's key is missing.
    """
    makers: dict[str, Callable[[], Scorer | None]] = {
        "length": LengthScorer,
        "prompt_copies": lambda: _prompt_copies(workspace),
        "rouge": _rouge,
        "bleu": _bleu,
        "feature": lambda: _feature(workspace),
        "bert_score": lambda: _bert_score(config, device),
        "bart_score": lambda: _bart_score(config, device),
        "bleurt": lambda: _bleurt(config, device),
        "gpt_score": lambda: _gpt_score(workspace, config),
        "factuality": lambda: _factuality(workspace, config, device),
        "grounding": lambda: _grounding(workspace, config, device),
    }
    wanted = [name for name in config.metrics if referenced or name not in REFERENCED]
    opened = {name: makers[name]() for name in wanted}
    return {name: scorer for name, scorer in opened.items() if scorer is not None}


def feature_matcher(workspace: Workspace) -> FeatureMatcher | None:
    """Finds the features of the explanations table; None where the data has none."""
    if not workspace.has_table(workspace.text_stage("explanations"), "explanations"):
        return None
    features = workspace.read_text_table("explanations", columns=["feature"])["feature"]
    vocabulary = [f for f in features.unique().to_pylist() if f and f.strip()]
    return FeatureMatcher(vocabulary) if vocabulary else None


def _prompt_copies(workspace: Workspace) -> Scorer | None:
    prompts = PromptTexts.load(workspace)
    return PromptCopyScorer(prompts) if prompts else None


# Imported where they are asked for: each brings a library that the others do without.
def _rouge() -> Scorer:
    from xrec.evaluation.rouge import RougeScorer

    return RougeScorer()


def _bleu() -> Scorer:
    from xrec.evaluation.bleu import BleuScorer

    return BleuScorer()


def _feature(workspace: Workspace) -> Scorer | None:
    matcher = feature_matcher(workspace)
    return FeatureScorer(matcher.vocabulary) if matcher else None


def _bert_score(config: EvaluateConfig, device: str) -> Scorer:
    from xrec.evaluation.bert_score import BertScoreScorer

    own = config.bert_score
    return BertScoreScorer(own.model, own.layers, device, config.batch_size, own.rescale)


def _bart_score(config: EvaluateConfig, device: str) -> Scorer:
    from xrec.evaluation.bart_score import BartScoreScorer

    return BartScoreScorer(config.bart_score.model, config.bart_score.checkpoint, device, config.batch_size)


def _bleurt(config: EvaluateConfig, device: str) -> Scorer:
    from xrec.evaluation.bleurt import BleurtScorer

    return BleurtScorer(config.bleurt.model, device, config.batch_size)


def _gpt_score(workspace: Workspace, config: EvaluateConfig) -> Scorer:
    from xrec.evaluation.gpt_score import GptScorer

    return GptScorer(config.judge, _run_of(workspace))


def _factuality(workspace: Workspace, config: EvaluateConfig, device: str) -> Scorer:
    from xrec.evaluation.factuality import FactualityScorer

    titles = workspace.read_table("preprocess", "items_index", ["item", "title"]).sort_by("item")["title"].to_pylist()
    return FactualityScorer(_checker(workspace, config, device), config.factuality.threshold, titles)


def _grounding(workspace: Workspace, config: EvaluateConfig, device: str) -> Scorer:
    from xrec.evaluation.grounding import GroundingScorer
    from xrec.evaluation.sources import Sources

    asked = workspace.read_table("explain", "predictions", ["user", "item"])
    sources = Sources.load(workspace, config.factuality.source_reviews, asked)
    return GroundingScorer(_checker(workspace, config, device), sources, config.factuality.threshold)


def _run_of(workspace: Workspace) -> Workspace:
    """The run that a variant belongs to: systems share what judges have answered."""
    return workspace if workspace.base is None else _run_of(workspace.base)


def _checker(workspace: Workspace, config: EvaluateConfig, device: str) -> SupportChecker:
    own = config.factuality
    if own.checker == "nli":
        from xrec.evaluation.entailment import NliChecker

        return NliChecker(own.nli_model, device, config.batch_size)
    if own.checker == "judge":
        from xrec.evaluation.entailment import JudgeChecker
        from xrec.evaluation.judge import Judge

        return JudgeChecker(Judge(config.judge.models[0], config.judge, _run_of(workspace)))
    from xrec.evaluation.support import LexicalChecker

    return LexicalChecker()
