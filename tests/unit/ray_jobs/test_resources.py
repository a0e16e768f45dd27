"""What stages ask of a cluster, what fits on one, and what is said of what does not."""

import pytest
from ray.core.generated import autoscaler_pb2

from ray_jobs.cluster_shape import shape_of
from ray_jobs.demands import GIB, bundle
from ray_jobs.resources import (
    ClusterShape,
    Demand,
    NodeType,
    actor_options,
    demands,
    driver_resources,
    how_many_fit,
    refuse_impossible,
)
from ray_jobs.waiting import report
from xrec.config import ConfigError, RunConfig

HEAD = {"memory": 8.0 * GIB, "node:__internal_head__": 1.0}
A100 = {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0}


def config(**sections) -> RunConfig:
    return RunConfig.model_validate(sections)


def gpus(amount, count=1):
    return Demand("explain: an engine", [{"CPU": 1.0, "GPU": amount}], count, "explain.compute.gpus_per_actor")


def test_settings_become_rays_resources():
    compute = {"cpus_per_actor": 2, "gpus_per_actor": 1, "memory_per_actor": 1.5, "accelerator_type": "A100"}
    [demand] = demands("explain", config(explain={"compute": {**compute, "actors": [3, 5]}}))
    expected = {"CPU": 2, "GPU": 1, "memory": 1.5 * 2**30, "accelerator_type:A100": 0.001}
    assert demand.bundles == [expected] and demand.count == 3
    assert actor_options(demand.bundles[0]) == {
        "num_cpus": 2,
        "num_gpus": 1,
        "memory": 1.5 * 2**30,
        "resources": {"accelerator_type:A100": 0.001},
    }
    compute = {"workers": 4, "gpu": False, "cpus_per_worker": 0.5, "memory_per_worker": 2}
    [demand] = demands("tune", config(tune={"compute": compute}))
    assert demand.bundles == [{"CPU": 0.5, "memory": 2 * 2**30}] and demand.count == 4
    [demand] = demands("tune", config(tune={"compute": {"accelerator_type": "H100"}}))
    assert demand.bundles == [{"CPU": 1, "GPU": 1, "accelerator_type:H100": 0.001}]
    assert demands("sample", config()) == []


def test_memory_of_an_engine_is_spread_over_its_workers():
    compute = {"tensor_parallel_size": 2, "gpus_per_actor": 2, "placement": "PACK", "memory_per_actor": 6}
    [demand] = demands("explain", config(explain={"compute": compute}))
    assert demand.bundles == [{"CPU": 0.5, "GPU": 1, "memory": 3 * 2**30}] * 2


def test_stages_that_compute_in_their_own_process_say_what_it_takes():
    assert driver_resources("sample", config()) == {"CPU": 1}
    own = config(backbone={"compute": {"cpus": 4, "gpus": 1, "memory": 2, "accelerator_type": "L4"}})
    assert driver_resources("backbone", own) == {
        "CPU": 4, "GPU": 1, "memory": 2 * 2**30, "accelerator_type:L4": 0.001
    }  # fmt: skip
    assert driver_resources("tune", config()) == driver_resources("explain", config()) == {}
    assert driver_resources("embed", config(embed={"compute": {"workers": 2}})) == {}


def test_where_a_job_computes_is_not_part_of_what_it_computes():
    plain, placed = config(sample={}), config(sample={"compute": {"cpus": 8}})
    assert plain.section("sample").identity() == placed.section("sample").identity()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (ClusterShape([HEAD]), 0),
        (ClusterShape([{"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0, "GPU": 5.0}]), 3),
        (ClusterShape([HEAD], [NodeType("gpu", A100, 3)]), 6),
        (ClusterShape([HEAD], [NodeType("gpu", A100, 3)], most_added=2), 4),
        (ClusterShape([HEAD], [NodeType("cpu", {"CPU": 64.0}, 9), NodeType("gpu", A100, 3)], most_added=1), 2),
        (ClusterShape([HEAD], open_ended=True), None),
    ],
)
def test_bundles_are_counted_over_the_nodes_that_there_can_be(shape, expected):
    assert how_many_fit(gpus(2.0), shape) == expected


def test_what_is_refused_names_setting_need_and_what_there_can_be():
    shape = ClusterShape([HEAD, {"CPU": 4.0, "GPU": 1.0}], [NodeType("gpu", {"CPU": 4.0, "GPU": 1.0}, 3)])
    refuse_impossible([gpus(1.0, 4)], shape)
    with pytest.raises(ConfigError) as refused:
        refuse_impossible([gpus(4.0)], shape)
    assert str(refused.value) == (
        "explain: an engine needs {CPU: 1, GPU: 4}, but no node has or can get more than GPU: 1 (the whole cluster: "
        "GPU: 4); lower explain.compute.gpus_per_actor, or give Ray more"
    )
    with pytest.raises(ConfigError, match=r"5 times, but the cluster can hold 4 at most"):
        refuse_impossible([gpus(1.0, 5)], shape)
    other = Demand("x", [bundle(1, 1, None, "A100")], 1, "tune.compute.accelerator_type")
    with pytest.raises(ConfigError, match=r"can get that accelerator \(there can be: none\)"):
        refuse_impossible([other], shape)
    refuse_impossible([other], ClusterShape([HEAD], [NodeType("gpu", A100, 1)]))
    with pytest.raises(ConfigError, match=r"memory: 16 GiB.* more than memory: 8 GiB"):
        refuse_impossible([Demand("x", [bundle(memory=16)], 1, "s")], ClusterShape([HEAD]))


def test_demands_that_fit_alone_but_not_together_are_refused():
    shape = ClusterShape([{"CPU": 4.0}])
    one, other = (Demand(name, [{"CPU": 3.0}], 1, f"{name}.actors") for name in ("a", "b"))
    refuse_impossible([one], shape)
    with pytest.raises(
        ConfigError, match=r"together CPU: 6, but the cluster can have CPU: 4.*lower a.actors, or b.actors"
    ):
        refuse_impossible([one, other], shape)


def test_an_autoscalers_settings_count_what_may_still_come():
    settings = {
        "max_workers": 4,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "max_workers": 0},
            "gpu": {"resources": A100, "max_workers": 3},
        },
    }
    there = {"Resources": {"CPU": 8.0, "GPU": 4.0}, "Labels": {}}
    shape = shape_of(settings, [{"Resources": HEAD, "Labels": {}}, there])
    assert [(kind.name, kind.count) for kind in shape.types] == [("gpu", 2)] and shape.most_added == 3
    assert shape.total("GPU") == 12 and not shape.open_ended
    settings["available_node_types"]["gpu"]["resources"] = {}
    assert shape_of(settings, [{"Resources": HEAD}]).open_ended


def test_what_is_pending_is_said_with_what_is_free_and_what_is_coming():
    status = autoscaler_pb2.GetClusterStatusReply()
    assert report([gpus(1.0)], status) is None
    pending = status.cluster_resource_state.pending_resource_requests.add(count=2)
    pending.request.resources_bundle.update({"CPU": 1.0, "GPU": 1.0})
    strange = status.cluster_resource_state.pending_resource_requests.add(count=7)
    strange.request.resources_bundle["CPU"] = 1.0
    node = status.cluster_resource_state.node_states.add()
    node.available_resources["CPU"] = 3.0
    status.autoscaling_state.pending_instance_requests.add(ray_node_type_name="gpu_spot", count=1)
    assert report([gpus(1.0)], status) == (
        "explain: waiting for 2 x {CPU: 1, GPU: 1}; free in the cluster's 1 node: {CPU: 3, GPU: 0}; autoscaler: 1 node "
        "gpu_spot starting"
    )
    status.autoscaling_state.infeasible_resource_requests.add().resources_bundle.update({"CPU": 1.0, "GPU": 1.0})
    assert "no node that it may add has room" in (report([gpus(1.0)], status) or "")
