"""Every settings file that ships loads, and says what its name says."""

from pathlib import Path

import pytest
import yaml

from xrec.config import SECTIONS
from xrec.config_files import load_config, to_yaml

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_the_settings_that_are_promised_are_there():
    assert {f.stem for f in FILES} >= {"demo", "yelp", "amazon", "google", "paper"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_loads_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path)
    assert config.stages()[0] in ("sample", "import", "ingest")
    assert config.stages()[1:] == [s for s in SECTIONS if s in config.stages()[1:]]
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load_config(resolved) == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_section_is_unknown(path):
    assert set(yaml.safe_load(path.read_text())) <= {*SECTIONS, "workspace"}


def test_the_paper_settings_are_the_papers():
    config = load_config(FOLDER / "paper.yaml")
    assert config.embed is not None and config.tune is not None and config.explain is not None
    assert (config.embed.dim, config.embed.batch_size, config.embed.patience) == (64, 1024, 10)
    assert (config.tune.adapter.experts, config.tune.adapter.dropout) == (8, 0.2)
    assert config.tune.backbone == "meta-llama/Llama-2-7b-chat-hf"
    assert config.explain.max_words == 50
    assert config.evaluate is not None
    assert {"gpt_score", "bert_score", "bart_score", "bleurt"} <= set(config.evaluate.metrics)
    assert (config.evaluate.bert_score.model, config.evaluate.bert_score.rescale) == ("roberta-large", True)
    assert config.evaluate.bart_score.model == "facebook/bart-large-cnn"
    assert config.evaluate.bleurt.model == "Elron/bleurt-tiny-128"


@pytest.mark.parametrize("name", ["yelp_raw", "amazon_raw", "google_raw"])
def test_raw_data_with_the_papers_settings(name):
    config, paper = load_config(FOLDER / f"{name}.yaml"), load_config(FOLDER / "paper.yaml")
    assert (config.embed, config.tune, config.explain) == (paper.embed, paper.tune, paper.explain)
    assert config.ingest is not None and config.profile is not None and config.preprocess is not None
    assert (config.ingest.source, config.ingest.min_rating, config.ingest.empty_text) == (name[:-4], 4, "drop")
    assert (config.profile.model, config.profile.max_words, config.preprocess.split) == ("gpt-3.5-turbo", 50, "random")
    assert (config.profile.reviews_per_item > 0) == (name == "yelp_raw")


def test_a_bare_off_is_the_signal_of_that_name():
    config = load_config(None, ["explain.controls=[shuffled, off]"])
    assert config.explain is not None and config.explain.controls == ("shuffled", "off")
