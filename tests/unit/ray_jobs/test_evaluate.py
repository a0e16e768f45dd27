"""The stage evaluate: which signals the references are scored under, and its line of figures."""

import pytest
from rich.progress import Progress

from ray_jobs import evaluate
from xrec.config import EvaluateConfig, ExplainConfig
from xrec.workspace import Workspace


@pytest.mark.parametrize(
    ("controls", "signals"),
    [
        ((), ["true", "shuffled"]),
        (("off",), ["true", "shuffled", "off"]),
        (("other_user", "shuffled"), ["true", "shuffled", "other_user"]),
        (("off", "other_user", "shuffled"), ["true", "shuffled", "other_user", "off"]),
    ],
)
def test_references_are_scored_under_the_controls_of_the_predictions_and_shuffled(tmp_path, controls, signals):
    predicted = {"config": ExplainConfig(controls=controls).identity(), "inputs": {}}
    job = evaluate._Job(Workspace(tmp_path), EvaluateConfig(), predicted, Progress(), "cpu")
    assert job.likelihood_signals == signals


def test_the_line_says_what_chance_and_the_prompt_allow():
    figures = {"val/predictions": 9, "val/feature/accuracy": 0.5, "val/feature/chance": 0.1}
    assert evaluate._headline(figures) == "9 predictions, feature accuracy 50.0% (chance 10.0%)"
    figures |= {"val/feature/prompt_chance": 0.4, "val/prompt_copy": 0.125}
    assert evaluate._headline(figures).endswith(
        "(chance 10.0%, 40.0% from the prompt's texts), copies of the prompt 12.5%"
    )
