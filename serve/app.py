"""`build_app`: the deployments put together, for `serve run serve.app:build_app`, `serve deploy` and `xrec serve`."""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from ray_jobs.demands import bundle
from ray_jobs.resources import actor_options
from serve.explainer import Explainer
from serve.ingress import Ingress
from serve.lookup import EmbeddingLookup
from xrec.config import ConfigError, ServeConfig, ServeReplicas
from xrec.config.serve import ExplainerReplicas

# A rolling update starts new replicas before old ones end; with one replica a smaller share is none.
_SURGE_PERCENT = 100


def build_app(args: ServeConfig) -> Application:
    """The application that answers for some datasets.

    Args:
        args: in `serve run`'s command line or a deployment's YAML under `args`.

    Raises:
        ConfigError: no dataset is named.
    """
    if not args.datasets:
        raise ConfigError("serve.datasets is empty; name at least one, such as {demo: runs/demo}")
    explainer = args.explainer
    first = next(iter(args.datasets.values()))
    bound_lookup = _deployment(EmbeddingLookup, "EmbeddingLookup", args.lookup, args).bind(
        args.datasets, args.lookup.refresh_seconds
    )
    bound_explainer = _deployment(Explainer, "Explainer", explainer, args).bind(
        first, explainer.model_dump(mode="json")
    )
    return _deployment(Ingress, "Ingress", args.ingress, args).bind(
        bound_lookup, bound_explainer, args.model_dump(mode="json")
    )


def _deployment(target: Any, name: str, options: ServeReplicas, args: ServeConfig) -> Any:
    least, most = options.replicas
    number: dict[str, Any] = {"num_replicas": least}
    if least < most:
        number = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least, max_replicas=most, target_ongoing_requests=options.target_ongoing_requests
            )
        }
    # The ingress and the lookup have no GPUs.
    gpus, accelerator = (
        (options.gpus, options.accelerator_type) if isinstance(options, ExplainerReplicas) else (0, None)
    )
    taken = actor_options(bundle(options.cpus, gpus, options.memory, accelerator))
    return serve.deployment(
        target,
        name=name,
        ray_actor_options=taken,
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        backpressure_config=BackpressureConfig(retry_after_s=args.limits.retry_after_seconds),
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        max_surge_percent=_SURGE_PERCENT,
        # The ingress writes its own line a request; Ray's would hold ids of users in its paths.
        logging_config=LoggingConfig(encoding="JSON", enable_access_log=False),
        **number,
    )
