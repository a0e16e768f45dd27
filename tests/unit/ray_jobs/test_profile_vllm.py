"""What surrounds the vLLM engines: their settings, the prompts they get, and the way from their rows to files."""

import json

import pyarrow as pa
import pytest
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ray_jobs import profile_engine, profile_vllm
from ray_jobs.resources import ClusterShape, refuse_impossible, section_demands
from tests.random_models import train_tokenizer
from xrec.config import ConfigError, ProfileConfig
from xrec.explainer.vllm_failures import VARIABLE
from xrec.profiles import parts
from xrec.profiles.answers import FatalError
from xrec.profiles.prompts import SCHEMAS
from xrec.workspace import Workspace

KIND = "item_profile"
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}!{% endif %}"
)


@pytest.fixture
def tokenizer(tmp_path) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(["a warm place with fresh bread"], 300)
    tokenizer.save_pretrained(tmp_path / "model")
    return tokenizer


def _config(tmp_path, **changes) -> ProfileConfig:
    compute = {"actors": (1, 3), "rows_per_block": 2} | changes.pop("compute", {})
    values = {"backend": "vllm", "model": str(tmp_path / "model"), "max_tokens": 20}
    return ProfileConfig.model_validate(values | changes | {"compute": compute})


def _workspace(tmp_path) -> Workspace:
    workspace = Workspace(tmp_path / "w")
    records = [json.dumps({"title": f"place {n}"}) for n in range(5)]
    table = pa.table({"item": pa.array(range(5), pa.int32()), "record": records})
    parts.write_requests(workspace, KIND, [table.slice(0, 2), table.slice(2, 2), table.slice(4)])
    return workspace


def _result(row, text, block=0, of=2, tokens=5, error=""):
    counts = {"tokens_in": 0 if error else 30, "tokens_out": tokens, "seconds": 1.5, "error": error}
    return {"block": block, "row": row, "of": of, "text": text} | counts


# The engine --------------------------------------------------------------------------------------------------------


def test_engine_settings_on_cpus_and_gpus(tmp_path):
    made = profile_engine.engine_config(_config(tmp_path, compute={"engine": {"dtype": "float32"}}), 2, "/failures")
    assert made.engine_kwargs["dtype"] == "float32" and made.batch_size == 2 and made.concurrency == (1, 2)
    assert [(b["CPU"], b["GPU"]) for b in made.placement_group_config["bundles"]] == [(1.0, 0.0)]
    assert made.runtime_env["env_vars"]["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert made.should_continue_on_error
    compute = {"gpus_per_actor": 2, "cpus_per_actor": 4, "engine_environment": {"A": "b"}}
    made = profile_engine.engine_config(_config(tmp_path, compute=compute), 9, "/failures")
    assert made.engine_kwargs["tensor_parallel_size"] == 2 and made.concurrency == (1, 3)
    assert [(b["CPU"], b["GPU"]) for b in made.placement_group_config["bundles"]] == [(2.0, 1.0)] * 2
    assert made.runtime_env["env_vars"] == {"VLLM_NO_USAGE_STATS": "1", "A": "b", VARIABLE: "/failures"}
    assert "kv_cache_memory_bytes" not in made.engine_kwargs
    half = profile_engine.engine_config(_config(tmp_path, compute={"gpus_per_actor": 0.5}), 9, "/failures")
    assert [b["GPU"] for b in half.placement_group_config["bundles"]] == [0.5]


def test_the_schema_goes_along_as_text(tmp_path):
    made = profile_engine.sampling_parameters(_config(tmp_path), "explanation")
    assert json.loads(made["structured_outputs"]["json"]) == SCHEMAS["explanation"]
    assert made["max_tokens"] == 20 and made["temperature"] == 0.0
    assert "structured_outputs" not in profile_engine.sampling_parameters(
        _config(tmp_path, structured_output="none"), KIND
    )


def test_a_cluster_too_small_is_refused(tmp_path):
    def refuse(**compute):
        refuse_impossible(section_demands("profile", _config(tmp_path, compute=compute)), ClusterShape([{"CPU": 2.0}]))

    refuse()
    with pytest.raises(ConfigError, match="more than GPU: 0"):
        refuse(gpus_per_actor=1)
    # One CPU is for the tasks that read the requests.
    with pytest.raises(ConfigError, match="together CPU: 3, but the cluster can have CPU: 2 at most"):
        refuse(actors=(2, 2))


def test_a_model_without_a_chat_template_needs_one(tmp_path, tokenizer):
    with pytest.raises(FatalError, match=r"no chat template.*profile\.compute\.engine\.chat_template"):
        profile_engine.load_chat_tokenizer(_config(tmp_path))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    for template in (TEMPLATE, str(tmp_path / "template.jinja")):
        config = _config(tmp_path, compute={"engine": {"chat_template": template}})
        assert profile_engine.load_chat_tokenizer(config).chat_template == TEMPLATE
        assert "chat_template" not in profile_engine.engine_config(config, 1, "/failures").engine_kwargs


def test_a_template_that_takes_no_system_message_is_refused(tmp_path, tokenizer):
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    with pytest.raises(FatalError, match=r"does not take a system and a user message \(System role not supported\)"):
        profile_engine.load_chat_tokenizer(_config(tmp_path, compute={"engine": {"chat_template": strict}}))


def test_the_innermost_error_of_an_engine_is_shown(tmp_path):
    traceback = "\x1b[36mray::Map()\x1b[39m\n  line 3\nOuterError: no\n\nInnerError: 1 mistake\n  dtype: float7\n"
    error = profile_engine.start_error(_config(tmp_path), ValueError(traceback))
    # What follows, where a Ray session is there, says where its logs are.
    assert "failed: InnerError: 1 mistake dtype: float7; set what it starts with by profile.compute.eng" in str(error)


def test_what_failed_in_a_process_of_the_engine_replaces_an_error_that_points_to_it(tmp_path):
    config, cause = _config(tmp_path), "ValueError: 1 GiB of 2"
    vague = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert f"failed: {cause}; set" in str(profile_engine.start_error(config, RuntimeError(vague), cause))
    # One from an earlier engine, say, which has been started again.
    assert "failed: ValueError: other; set" in str(
        profile_engine.start_error(config, ValueError("ValueError: other"), cause)
    )
    assert "See root cause above" in str(profile_engine.start_error(config, RuntimeError(vague), None))


def test_the_cache_of_an_engine_on_a_cpu_has_a_size_unless_the_settings_have_one(tmp_path):
    LlamaConfig(max_position_embeddings=8192).save_pretrained(tmp_path / "model")

    def size(**compute):
        return profile_engine.engine_config(_config(tmp_path, compute=compute), 1, "").engine_kwargs.get(
            "kv_cache_memory_bytes"
        )

    # 32 layers of 4096 numbers, twice, of 4 bytes, are 1 MiB a token: one sequence takes more than the usual 4 GiB.
    assert size() == (8192 + 128) * 2**20
    assert size(engine={"max_model_len": 1024}) == 4 * 2**30
    assert size(engine={"gpu_memory_utilization": 0.5}) is None
    assert size(engine_environment={"VLLM_CPU_KVCACHE_SPACE": "2"}) is None


def test_an_absent_vllm_is_named(tmp_path):
    error = profile_engine.start_error(_config(tmp_path), ValueError("ImportError: vLLM is not installed or failed"))
    assert "pip install 'xrec[vllm-gpu]'" in str(error)


def test_an_unknown_model_is_named(tmp_path):
    with pytest.raises(FatalError, match=r"tokenizer of profile\.model = .*nowhere"):
        profile_engine.load_chat_tokenizer(_config(tmp_path, model=str(tmp_path / "nowhere")))


# Rows and blocks ---------------------------------------------------------------------------------------------------


def test_rows_that_come_in_any_order_make_whole_blocks():
    rows = [_result(1, "b", 7), _result(0, "c", 8, of=1), _result(0, "a", 7), _result(0, "a", 9, of=1)]
    blocks = list(profile_vllm._complete(rows))
    assert [block for block, _ in blocks] == [8, 7, 9]
    assert {number: row["text"] for number, row in blocks[1][1].items()} == {0: "a", 1: "b"}
    with pytest.raises(FatalError, match="1 of 2 rows of block 7"):
        list(profile_vllm._complete(rows[:1]))
    with pytest.raises(FatalError, match="row 1 of block 7 twice"):
        list(profile_vllm._complete([rows[0], rows[0]]))


def test_prompts_are_token_ids_of_the_chat(tmp_path, tokenizer):
    workspace = _workspace(tmp_path)
    config = _config(tmp_path, compute={"engine": {"chat_template": TEMPLATE}})
    requests = profile_vllm._requests({"block": 1, "rows": None}, workspace, config, KIND, False)
    assert [(r["block"], r["row"], r["of"]) for r in requests] == [(1, 0, 2), (1, 1, 2)]
    text = tokenizer.decode(requests[1]["tokenized_prompt"])
    assert text.startswith("[system]You describe") and text.endswith('[user]{"title": "place 3"}!')
    some = profile_vllm._requests({"block": 1, "rows": [1]}, workspace, config, KIND, False)
    assert [(r["row"], r["of"]) for r in some] == [(1, 1)]
    assert some[0]["tokenized_prompt"] == requests[1]["tokenized_prompt"]


def test_what_the_engine_says_is_checked_twice(tmp_path):
    config = _config(tmp_path)
    good = profile_vllm._outcome(config, KIND, _result(0, '{"profile": "warm"}'), None)
    assert good.rejected is None and (good.answer.text, good.answer.status, good.answer.attempts) == ("warm", "ok", 1)
    refused = profile_vllm._outcome(config, KIND, _result(0, "", error="ValueError: too long", tokens=0), None)
    assert refused.rejected is None and refused.answer.error == "engine: ValueError: too long"
    cut = profile_vllm._outcome(config, KIND, _result(0, '{"profile": "wa', tokens=20), None)
    assert cut.rejected == '{"profile": "wa' and cut.reason == "cut_off" and cut.answer.status == "failed"
    mended = profile_vllm._outcome(config, KIND, _result(0, '{"profile": "warm"}'), cut)
    assert (mended.answer.status, mended.answer.attempts, mended.answer.tokens_out) == ("ok", 2, 25)
    assert (mended.answer.tokens_in, mended.answer.latency) == (60, 3.0)
    given_up = profile_vllm._outcome(config, KIND, _result(0, "no"), cut)
    assert given_up.rejected is None and given_up.answer.error.startswith("not_json: ")


def test_a_killed_run_goes_on_with_the_second_pass(tmp_path, tokenizer, monkeypatch):
    """The engines are replaced by a list of what they say; everything around them is real."""
    workspace = _workspace(tmp_path)
    config = _config(tmp_path, compute={"engine": {"chat_template": TEMPLATE}})
    asked: list[tuple[int, int, bool]] = []

    def engines(workspace, config, kind, work, again):
        for block, rows in work.items():
            requests = profile_vllm._requests({"block": block, "rows": rows}, workspace, config, kind, again)
            said = {r["row"]: '{"profile": "warm"}' if again or r["row"] == 0 else "no" for r in requests}
            asked.extend((block, row, again) for row in said)
            yield block, {row: _result(row, text, block, len(said)) for row, text in said.items()}

    monkeypatch.setattr(profile_vllm, "_pass", engines)
    run = profile_vllm.write_blocks(workspace, config, KIND, {0: None, 1: None, 2: None})
    first = next(run)  # block 2 has one row, which is good: the only block written in the first pass
    assert (first["block"], first["rows"], first["failed"]) == (2, 1, 0)
    run.close()
    assert parts.done_blocks(workspace, KIND) == {2}
    first_pass = [(0, 0, False), (0, 1, False), (1, 0, False), (1, 1, False), (2, 0, False)]
    assert asked == first_pass
    asked.clear()
    results = list(profile_vllm.write_blocks(workspace, config, KIND, {0: None, 1: None}))
    assert asked == [(0, 1, True), (1, 1, True)]
    assert [(r["block"], r["rows"], r["failed"], r["attempts"]) for r in results] == [(0, 2, 0, 3), (1, 2, 0, 3)]
    table = [row for block in range(3) for row in parts.read_part(workspace, KIND, block).to_pylist()]
    assert [(row["item"], row["attempts"]) for row in table] == [(0, 1), (1, 2), (2, 1), (3, 2), (4, 1)]
    assert not workspace.files("profile", "work", f"{KIND}_first_answers")
