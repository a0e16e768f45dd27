"""What an engine takes of a cluster, and how many blocks its actor holds."""

import pytest

from ray_jobs.explain_actors import blocks_at_once
from ray_jobs.explain_placement import actor_resources, most_engines
from ray_jobs.resources import ClusterShape, demands, refuse_impossible
from ray_jobs.resources import engine_bundles as bundles
from xrec.config import ConfigError, ExplainCompute, ExplainConfig, RunConfig


def test_an_actor_holds_blocks_enough_to_fill_vllms_batch_while_one_ends():
    def at_once(engine, **compute):
        return blocks_at_once(ExplainConfig.model_validate({"engine": engine, "compute": compute}))

    assert at_once("hf", rows_per_block=8) == 1
    assert at_once("vllm", rows_per_block=256) == 2
    assert at_once("vllm", rows_per_block=100) == 4
    assert at_once("vllm", rows_per_block=256, engine_arguments={"max_num_seqs": 1024}) == 5


def test_one_worker_is_its_actor():
    compute = ExplainCompute(cpus_per_actor=0.5, gpus_per_actor=0.5)
    assert bundles(compute) == [{"CPU": 0.5, "GPU": 0.5}]
    assert actor_resources(compute) == {"num_cpus": 0.5, "num_gpus": 0.5}
    assert actor_resources(ExplainCompute()) == {"num_cpus": 1}


def test_workers_on_one_node_share_a_bundle_that_the_actor_fills():
    compute = ExplainCompute(tensor_parallel_size=4, gpus_per_actor=4, cpus_per_actor=8)
    assert bundles(compute) == [{"CPU": 8, "GPU": 4}]
    assert actor_resources(compute) == {"num_cpus": 8, "num_gpus": 4}


def test_workers_that_may_spread_have_a_bundle_each_and_leave_the_actor_nothing():
    compute = ExplainCompute(
        tensor_parallel_size=2, pipeline_parallel_size=2, gpus_per_actor=4, cpus_per_actor=8, placement="PACK"
    )
    assert bundles(compute) == [{"CPU": 2, "GPU": 1}] * 4
    assert actor_resources(compute) == {"num_cpus": 0}


def refuse(compute, nodes):
    refuse_impossible(demands("explain", RunConfig(explain=ExplainConfig(compute=compute))), ClusterShape(nodes))


def test_what_the_cluster_can_never_hold_is_refused():
    compute = ExplainCompute(actors=(2, 4), cpus_per_actor=1.5)
    refuse(compute, [{"CPU": 5.0}])
    assert most_engines(compute, ClusterShape([{"CPU": 5.0}])) == 3
    assert most_engines(compute, ClusterShape([{"CPU": 100.0}])) == 4
    assert most_engines(compute, ClusterShape([{"CPU": 1.0}], open_ended=True)) == 4
    with pytest.raises(ConfigError, match=r"needs \{CPU: 1.5\}, 2 times, but the cluster can hold 1 at most"):
        refuse(compute, [{"CPU": 2.0}])
    with pytest.raises(ConfigError, match="no node has or can get more than GPU: 0"):
        refuse(ExplainCompute(actors=(2, 2), gpus_per_actor=1), [{"CPU": 9.0}])


def test_an_engine_must_fit_on_a_node_unless_it_may_spread():
    compute = ExplainCompute(tensor_parallel_size=4, gpus_per_actor=4)
    nodes = [{"CPU": 8.0, "GPU": 2.0}] * 2
    with pytest.raises(
        ConfigError, match=r"no node has or can get more than GPU: 2 \(the whole cluster: GPU: 4\).*PACK"
    ):
        refuse(compute, nodes)
    spread = compute.model_copy(update={"placement": "PACK"})
    refuse(spread, nodes)
    assert most_engines(spread, ClusterShape(nodes)) == 1
