"""The settings: defaults, YAML, overrides, and what an error tells the user."""

import pytest
import yaml

from xrec.config import SECTIONS, STAGES, ConfigError, EmbedConfig, PreprocessConfig, RunConfig, TuneConfig
from xrec.config_files import load_config, section_config, to_yaml


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_every_stage_has_a_section_and_only_those_that_read_files_need_a_value():
    # The server is no stage: it goes on until it is stopped. A baseline is a system, which studies run.
    assert set(SECTIONS) == {*STAGES, "baseline", "serve"}
    assert set(SECTIONS) == {f.alias or n for n, f in RunConfig.model_fields.items()} - {"workspace"}
    for stage in set(STAGES) - {"import", "ingest"}:
        assert section_config(stage, RunConfig()) == SECTIONS[stage]()
    with pytest.raises(ConfigError, match=r"path is not set"):
        section_config("import", RunConfig())
    with pytest.raises(ConfigError, match=r"source is not set"):
        section_config("ingest", RunConfig())


def test_yaml_file_and_overrides(tmp_path):
    path = write(
        tmp_path, "workspace: runs/a\nimport: {path: data}\nembed:\ntune: {epochs: 2, adapter: {experts: 4}}\n"
    )
    run = load_config(path, ["tune.adapter.top_k=2", "tune.learning_rate=1e-4", "preprocess.ratios=[0.6, 0.2, 0.2]"])
    assert run.workspace == "runs/a"
    assert run.section("import").path == "data"
    assert run.embed == EmbedConfig()
    assert (run.tune.epochs, run.tune.adapter.experts, run.tune.adapter.top_k) == (2, 4, 2)
    assert run.tune.learning_rate == 1e-4
    assert run.preprocess.ratios == (0.6, 0.2, 0.2)
    assert run.stages() == ["import", "preprocess", "embed", "tune"]


def test_resolved_yaml_reads_back_to_the_same_settings(tmp_path):
    run = load_config(None, ["import.path=data", "tune.compute.workers=3", "explain.controls=[shuffled]"])
    assert load_config(write(tmp_path, to_yaml(run))) == run
    assert yaml.safe_load(to_yaml(run))["tune"]["adapter"]["experts"] == 8


def test_identity_is_everything_but_compute():
    one, other = TuneConfig(), TuneConfig.model_validate({"compute": {"workers": 4, "zero_stage": 3}})
    assert one.identity() == other.identity()
    assert "compute" not in one.identity()
    assert set(one.identity()) == set(TuneConfig.model_fields) - {"compute"}
    assert one.identity() != TuneConfig(seed=1).identity()


def test_sections_do_not_change_once_built():
    with pytest.raises(ValueError, match="frozen"):
        PreprocessConfig().k_core = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["preprocess.ratios=[0.5, 0.1, 0.1]"],
            r"preprocess: ratios = \(0.5, 0.1, 0.1\) sums to 0.7; .* must sum to 1",
        ),
        (["preprocess.explained_ratios=[1, 1, 0]"], r"preprocess: explained_ratios = .* sums to 2"),
        (["preprocess.split=published", "preprocess.zero_shot_items=0.1"], r"zero_shot_items = 0.1 with split = publ"),
        (["sample.features=2"], r"sample.features = 2: .*greater than or equal to 3"),
        (["sample.users=0"], r"sample.users = 0"),
        (["embed.dim=wide"], r"embed.dim = 'wide': .*integer"),
        (
            ["tune.injection=none", "tune.input_replacement=false"],
            r"tune: injection = 'none' .* nothing to tune; .*'off'",
        ),
        (["compare.seeds=[1, 1]"], r"compare.seeds: seeds = \[1, 1\]: name at least one, each once"),
        (["compare.reference=gpt"], r"compare: reference = 'gpt' is none of the systems \(xrec, att2seq, "),
        (["compare.systems={xrec: {}, a/b: {}}"], r"compare.systems: systems: 'a/b' names a folder"),
        (["evaluate.metrics=[rouge, rouge]"], r"evaluate: metrics = \['rouge', 'rouge'\] names one twice"),
        (["embed.dims=64"], r"embed.dims is not a setting \(known: dim, "),
        (["tune.adapter.expert=64"], r"tune.adapter.expert is not a setting \(known: experts, "),
        (["nothing.x=1"], r"nothing is not a setting \(known: workspace, sample, import, "),
        (["import.paht=x"], r"import.path is not set.*import.paht is not a setting \(known: path, compute\)"),
        (["sample.users=9", "import.path=x"], r"`sample` and `import` are given"),
        (["embed.dim"], r"'embed.dim' is not of the form section.key=value"),
        (["=3"], r"'=3' is not of the form"),
        (["workspace=w", "workspace.x=1"], r"'workspace' is a value, not a section"),
        (["embed.dim=[1"], r"'\[1' is not a YAML value"),
        (["embed=3"], r"embed = 3"),
    ],
)
def test_a_bad_override_is_named_with_its_value(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml' does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"run.yaml' is not valid YAML"):
        load_config(write(tmp_path, "embed: [1"))
    with pytest.raises(ConfigError, match=r"run.yaml' holds a list; it must map stages to settings"):
        load_config(write(tmp_path, "- embed"))
    with pytest.raises(ConfigError, match=r"run.yaml: embed.layers = 0"):
        load_config(write(tmp_path, "embed: {layers: 0}"))


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_config(write(tmp_path, "")) == RunConfig()
