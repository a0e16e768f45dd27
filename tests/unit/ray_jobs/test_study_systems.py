"""Which systems a study plans, from what settings, and what each has for itself."""

import pytest

from ray_jobs.resources import demands
from ray_jobs.study_systems import common_stages, plan
from xrec.config import AblateConfig, CompareConfig, ConfigError, StudyConfig
from xrec.config_files import load_config, with_overrides
from xrec.workspace import Workspace


@pytest.fixture(scope="module")
def settings():
    overrides = ["tune.prompt.profiles=true", "backbone.pretrained=smollm2"]
    return load_config(None, [*overrides, "preprocess.k_core=2", "explain.split=val", "explain.limit=7"])


def by_name(runs):
    return {(run.system, run.seed): run for run in runs}


def test_every_system_at_every_seed_with_its_own_settings(settings):
    runs = by_name(plan(settings, AblateConfig(seeds=(0, 3))))
    assert set(runs) == {
        (s, n) for s in ("xrec", "without_profiles", "without_injection", "without_both") for n in (0, 3)
    }
    full, bare = runs["xrec", 3], runs["without_both", 3]
    assert (full.kind, bare.kind) == ("xrec", "ablation")
    assert (full.config.tune.seed, full.config.explain.seed, full.config.explain.limit) == (3, 3, 7)
    assert full.config.tune.injection == "input" and full.config.tune.prompt.profiles
    assert bare.config.tune.injection == "none" and not bare.config.tune.prompt.profiles
    assert full.own == ("tune", "explain", "evaluate")
    # One backbone, whatever the prompt.
    assert {run.shared for run in runs.values()} == {()}


def test_systems_that_ask_for_another_backbone_share_it(settings, tmp_path):
    large = {"backbone.pretrained": "org/large"}
    systems = {"xrec": {}, "large": large, "large_off": large | {"tune.injection": "none"}}
    runs = by_name(plan(settings, StudyConfig(systems=systems)))
    base = Workspace(tmp_path)
    assert runs["large", 0].shared == ("backbone",)
    places = {name: runs[name, 0].workspace(base).path("backbone") for name in systems}
    assert places["large"] == places["large_off"] != base.path("backbone") == places["xrec"]


def test_baselines_are_asked_for_the_pairs_that_xrec_explains(settings):
    runs = by_name(plan(settings, CompareConfig(seeds=(2,))))
    peter, floor = runs["peter", 2], runs["similar_user", 2]
    assert (peter.kind, floor.kind) == ("baseline", "floor")
    assert peter.own == ("baseline", "evaluate")
    asked = peter.config.baseline
    assert (asked.name, asked.seed, asked.split, asked.limit, asked.max_words) == ("peter", 2, "val", 7, 50)


def test_settings_for_baselines_make_no_baseline_of_xrec(settings):
    wider = with_overrides(settings, {"baseline.hidden": 64}, "test")
    runs = by_name(plan(wider, CompareConfig()))
    assert runs["xrec", 0].own == ("tune", "explain", "evaluate")
    assert runs["nrt", 0].config.baseline.hidden == 64


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"preprocess.k_core": 5}, "changes `preprocess`"),
        ({"tune.injektion": "none"}, "tune.injektion is not a setting"),
        ({"tune.injection": "both"}, "tune.injection = 'both'"),
        ({"baseline.name": "gpt"}, "baseline.name = 'gpt'"),
    ],
)
def test_wrong_overrides_are_refused_by_name(settings, overrides, message):
    study = StudyConfig(systems={"xrec": {}, "odd": overrides})
    with pytest.raises(ConfigError, match=message):
        plan(settings, study)


def test_cpus_are_those_of_the_widest_system_times_those_at_work(settings):
    wide = with_overrides(settings, {"tune.compute.workers": 3, "tune.compute.cpus_per_worker": 2}, "test")
    wide = wide.model_copy(update={"compare": CompareConfig(seeds=(0, 1), compute={"parallel": 2})})
    needed = demands("compare", wide)
    assert [(one.name, one.count) for one in needed] == [("compare: a system", 2), ("compare: tune: a worker", 6)]
    assert sum(one.total("CPU") for one in needed) == 2 * (1 + 3 * 2)


def test_common_stages_are_those_of_the_file(settings):
    assert common_stages(settings) == ["preprocess", "backbone"]
