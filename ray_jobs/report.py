"""Stage `report`: whatever stages have finished, as one HTML page."""

from xrec.config import ReportConfig
from xrec.evaluation.report import render_report
from xrec.evaluation.report_content import finished_stages
from xrec.workspace import Workspace

PAGE = "report.html"


def run(workspace: Workspace, config: ReportConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Write `report/report.html`; returns the summary line.

    Raises:
        WorkspaceError: no stage has finished, or the report there was made from other results.
    """
    stages = finished_stages(workspace)
    target = f"{workspace}/report/{PAGE}"
    if dry_run:
        return f"report: would show {', '.join(stages) or 'nothing, no stage has finished'} in {target}"
    stage = workspace.stage("report", config.identity(), inputs=stages, force=force)
    if stage.done:
        return f"report: already finished ({target})"
    page = render_report(workspace, config).encode()
    workspace.write_bytes(page, "report", PAGE)
    stage.finish({"bytes": len(page), "stages": len(stages)})
    return f"report: {', '.join(stages)}; {len(page) / 1000:,.0f} kB -> {target}"


if __name__ == "__main__":
    from ray_jobs.job import main

    main("report", run)
