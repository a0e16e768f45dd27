"""Batches by length, and models that cannot be loaded."""

import pytest
from transformers import AutoTokenizer, BertModel, RobertaConfig

from tests.scoring_models import save_bart, save_bert
from xrec.evaluation.pretrained import by_length, limit_length, load_config, load_model


def test_batches_hold_each_place_once_the_longest_first():
    texts = ["x" * n for n in (3, 1, 4, 1, 5, 9, 2)]
    batches = by_length(texts, texts, 3)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    order = [place for batch in batches for place in batch]
    assert sorted(order) == list(range(7))
    assert [len(texts[place]) for place in order] == [9, 5, 4, 3, 2, 1, 1]
    assert by_length([], [], 3) == []


def test_the_limit_is_where_positions_end(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_bart(tmp_path))
    limit_length(tokenizer, RobertaConfig(max_position_embeddings=514, pad_token_id=1))
    assert tokenizer.model_max_length == 512
    limit_length(tokenizer, RobertaConfig(max_position_embeddings=1026, pad_token_id=1))
    assert tokenizer.model_max_length == 512, "a tokenizer's own shorter limit stays"


def test_models_that_cannot_be_loaded_name_the_setting(tmp_path):
    with pytest.raises(ValueError, match="evaluate.x.model = .*none' cannot be loaded"):
        load_model(BertModel, str(tmp_path / "none"), "evaluate.x.model")
    folder = tmp_path / "broken"
    save_bert(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="evaluate.x.model = .*broken' cannot be loaded"):
        load_model(BertModel, str(folder), "evaluate.x.model")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="evaluate.x.model = .*broken' cannot be loaded"):
        load_config(str(folder), "evaluate.x.model")
