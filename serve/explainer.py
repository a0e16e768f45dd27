"""The deployment that holds the language model: tasks in, explanations out."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import torch
from transformers import AutoConfig

from serve.metrics import ExplainerMetrics
from xrec.config.serve import ExplainerReplicas
from xrec.explainer.continuous_batching import BatchedEngine
from xrec.explainer.engine import LiveEngine
from xrec.explainer.engine_choice import open_hugging_face, open_vllm, resolve_engine
from xrec.serving.live import Explanation, ExplanationTask, LiveExplainer
from xrec.serving.queries import RequestError
from xrec.serving.snapshot import Snapshot
from xrec.workspace import Workspace

_FIGURES_EVERY_SECONDS = 2.0


class Explainer:
    """One engine on one backbone: the one that the first dataset's snapshot was made for.

    Args:
        workspace: of the first dataset.
        settings: which engine, and how.
    """

    def __init__(self, workspace: str, settings: dict[str, Any]):
        options = ExplainerReplicas.model_validate(settings)
        # Before anything reads them: vLLM does when it is imported.
        os.environ.update(options.engine_environment)
        self.metrics = ExplainerMetrics()
        self.live = open_live_explainer(workspace, options)
        self.reporting = asyncio.get_running_loop().create_task(self._report())

    async def explain(self, tasks: Sequence[ExplanationTask]) -> list[Explanation] | RequestError:
        """Explanations in order. A refusal is returned, since it is no fault of this process."""
        try:
            answers = await self.live.explain(tasks)
        except RequestError as error:
            return error
        self.metrics.explanations.inc(len(answers))
        return answers

    async def stream(
        self, tasks: Sequence[ExplanationTask]
    ) -> AsyncIterator[tuple[int, str | Explanation] | RequestError]:
        """See `LiveExplainer.stream`."""
        try:
            async for index, update in self.live.stream(tasks):
                if isinstance(update, Explanation):
                    self.metrics.explanations.inc()
                yield index, update
        except RequestError as error:
            yield error

    def check_health(self) -> None:
        """Ray Serve asks this now and then, and replaces a replica that raises."""
        failure = self.live.engine.failure
        if failure is not None:
            raise RuntimeError(failure)

    async def ready(self) -> bool:
        """Whether the engine is loaded: where it is not, there is no replica to answer."""
        return True

    async def _report(self) -> None:
        while True:
            self.metrics.unfinished.set(self.live.engine.unfinished)
            await asyncio.sleep(_FIGURES_EVERY_SECONDS)

    def __del__(self) -> None:
        live = getattr(self, "live", None)
        if live is not None:
            live.engine.close()


def open_live_explainer(workspace: str, options: ExplainerReplicas) -> LiveExplainer:
    """Load the engine for the snapshot of a workspace.

    Raises:
        WorkspaceError: there is no sound snapshot, or the backbone is another one.
        ConfigError: the engine is vllm, and vLLM is not installed.
        ValueError: the backbone cannot be loaded, or vLLM does not run it.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    snapshot, config = Snapshot.open(Workspace(workspace)), options.explain_config()
    path, spec = snapshot.backbone_path, snapshot.adapter.spec
    device = "auto" if options.gpus else "cpu"
    if resolve_engine(config, AutoConfig.from_pretrained(path), spec) == "vllm":
        engine: LiveEngine = open_vllm(path, config, spec, device)
    else:
        engine = BatchedEngine(open_hugging_face(path, config, spec, device), options.batch_size)
    return LiveExplainer(engine, snapshot.backbone_key)
