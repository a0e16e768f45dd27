"""What an engine takes of a cluster, and how many blocks its actor holds."""

import pytest

from ray_jobs.explain_actors import blocks_at_once
from ray_jobs.explain_placement import actor_resources, bundles, cpus_needed, engines_that_fit
from xrec.config import ExplainCompute, ExplainConfig
from xrec.workspace import WorkspaceError


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
    assert actor_resources(ExplainCompute()) == {"num_cpus": 1, "num_gpus": None}


def test_workers_on_one_node_share_a_bundle_that_the_actor_fills():
    compute = ExplainCompute(tensor_parallel_size=4, gpus_per_actor=4, cpus_per_actor=8)
    assert bundles(compute) == [{"CPU": 8, "GPU": 4}]
    assert actor_resources(compute) == {"num_cpus": 8, "num_gpus": 4}


def test_workers_that_may_spread_have_a_bundle_each_and_leave_the_actor_nothing():
    compute = ExplainCompute(
        tensor_parallel_size=2, pipeline_parallel_size=2, gpus_per_actor=4, cpus_per_actor=8, placement="PACK"
    )
    assert bundles(compute) == [{"CPU": 2, "GPU": 1}] * 4
    assert actor_resources(compute) == {"num_cpus": 0, "num_gpus": None}


def test_what_the_cluster_can_never_hold_is_refused():
    compute = ExplainCompute(actors=(2, 4), cpus_per_actor=1.5)
    assert cpus_needed(compute) == 3
    node = {"CPU": 5.0}
    assert engines_that_fit(compute, node, [node]) == 3
    assert engines_that_fit(compute, {"CPU": 100.0}, [node]) == 4
    with pytest.raises(WorkspaceError, match=r"needs CPU 3 \(2 actors\), but Ray has 2"):
        engines_that_fit(compute, {"CPU": 2.0}, [])
    with pytest.raises(WorkspaceError, match="needs GPU 2"):
        engines_that_fit(ExplainCompute(actors=(2, 2), gpus_per_actor=1), {"CPU": 9.0}, [])


def test_an_engine_must_fit_on_a_node_unless_it_may_spread():
    compute = ExplainCompute(tensor_parallel_size=4, gpus_per_actor=4)
    cluster, nodes = {"CPU": 16.0, "GPU": 4.0}, [{"CPU": 8.0, "GPU": 2.0}] * 2
    with pytest.raises(WorkspaceError, match="a node with GPU 4 for an engine"):
        engines_that_fit(compute, cluster, nodes)
    assert engines_that_fit(compute, cluster, []) == 1  # an autoscaler may bring a larger node
    assert engines_that_fit(compute.model_copy(update={"placement": "PACK"}), cluster, nodes) == 1
