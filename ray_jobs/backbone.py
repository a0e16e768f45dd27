"""The stage `backbone`: writes a pretrained language model into the workspace, in this process."""

from ray_jobs.job import main
from xrec.config import BackboneConfig
from xrec.explainer.backbone import find_source, prepare_backbone
from xrec.workspace import Workspace

STAGE, MODEL = "backbone", "model"


def run(workspace: Workspace, config: BackboneConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Write `backbone/model/`, a Hugging Face folder; what is finished is only looked at.

    Args:
        workspace: no other stage is needed.
        config: which model, and the type of its weights.
        force: write it anew.
        dry_run: say what would be done; write nothing.

    Returns:
        A one-line summary.

    Raises:
        ConfigError: there is no such model, or it is none that can explain; see `prepare_backbone`.
        WorkspaceError: the workspace's backbone was written from something else.
    """
    source, target = find_source(config.pretrained), workspace.path(STAGE, MODEL)
    if dry_run:
        return f"backbone: would write {source} -> {target}"
    stage = workspace.stage(STAGE, config.identity(), external=source.identity(), force=force)
    if stage.done:
        return f"backbone: already finished ({target})"
    workspace.remove_unfinished(STAGE)
    with workspace.new_folder(STAGE, MODEL) as folder:
        figures = prepare_backbone(config.pretrained, folder, config.dtype)
    stage.finish(figures)
    return (
        f"backbone: {source}, {figures['parameters']:,.0f} parameters, {figures['layers']:.0f} layers of width "
        f"{figures['hidden']:.0f} -> {target}"
    )


if __name__ == "__main__":
    main(STAGE, run)
