"""The command line: `xrec <verb>`. Thin: every verb hands its settings to the module of that stage in `ray_jobs`.

Exit code 0 means done, 1 a failure whose last line on stderr says what and what to do, 2 wrong usage.
"""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from xrec import __version__, submit_cli

if TYPE_CHECKING:
    from xrec.config import RunConfig
    from xrec.workspace import Workspace

_EXAMPLES_SHOWN = 4

app = typer.Typer(
    help="Explanations for recommendations: a graph neural network joined to a frozen language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", "-w", help="The run's folder or URI; default: the config's.")
]
ConfigOption = Annotated[str | None, typer.Option("--config", help="YAML file of settings; default: all defaults.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Discard what is there and build it anew.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")]


def main() -> None:
    """The console script `xrec`."""
    from ray_jobs.job import errors_for_users

    with errors_for_users():
        app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xrec {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit.")] = (
        False
    ),
) -> None:
    pass


def _stage(
    stage: str,
    workspace: str | None,
    config: str | None,
    overrides: list[str] | None,
    force: bool,
    dry_run: bool,
    **flags: bool,
) -> None:
    from ray_jobs.job import run_stage, stage_function

    typer.echo(run_stage(stage, stage_function(stage), workspace, config, overrides, force, dry_run, **flags))


def _plain_verb(stage: str, what: str, example: str) -> None:
    """Add the verb of a stage that takes the common options and no other."""

    @app.command(stage, help=what, epilog=f"Example: {example}")
    def verb(
        workspace: WorkspaceOption = None,
        config: ConfigOption = None,
        overrides: SetOption = None,
        force: ForceOption = False,
        dry_run: DryRunOption = False,
    ) -> None:
        _stage(stage, workspace, config, overrides, force, dry_run)


@app.command(epilog="Example: xrec sample --workspace runs/demo --users 600 --items 300 --seed 0")
def sample(
    workspace: WorkspaceOption = None,
    users: Annotated[int | None, typer.Option(help="Number of users.")] = None,
    items: Annotated[int | None, typer.Option(help="Number of items.")] = None,
    interactions_per_user: Annotated[int | None, typer.Option(help="Items that each user has reviewed.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same world.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Make a synthetic world with known truth: reviews, items, profiles, explanations."""
    given = {"users": users, "items": items, "interactions_per_user": interactions_per_user, "seed": seed}
    flags = [f"sample.{name}={value}" for name, value in given.items() if value is not None]
    _stage("sample", workspace, config, [*(overrides or []), *flags], force, dry_run)


@app.command("import", epilog="Example: xrec import data/xrec-release/yelp --workspace runs/yelp")
def import_release(
    release_dir: Annotated[str, typer.Argument(help="The folder with total*.csv or para_dict.pickle, and *.pkl.")],
    workspace: WorkspaceOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Import a published XRec data folder."""
    # JSON text is YAML, so a path with any character survives.
    path = f"import.path={json.dumps(release_dir, ensure_ascii=False)}"
    _stage("import", workspace, config, [*(overrides or []), path], force, dry_run)


@app.command(epilog="Example: xrec ingest yelp review.json business.json --workspace runs/yelp")
def ingest(
    source: Annotated[str, typer.Argument(help="Whose layout: yelp, amazon, google or generic.")],
    files: Annotated[
        list[str] | None, typer.Argument(help="Reviews and item metadata; paths, globs or URIs; default: the config's.")
    ] = None,
    workspace: WorkspaceOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Read raw dumps of reviews and item metadata, of any size, on Ray Data."""
    given = [f"ingest.source={source}"]
    if files:
        given.append(f"ingest.files={json.dumps(files, ensure_ascii=False)}")
    _stage("ingest", workspace, config, [*(overrides or []), *given], force, dry_run)


_plain_verb(
    "preprocess",
    "Filter reviews, give contiguous ids, and make the one split.",
    "xrec preprocess --workspace runs/demo --set preprocess.k_core=5",
)


@app.command(
    epilog="Example: xrec profile --workspace runs/demo --set profile.backend=openai --set profile.model=gpt-4o-mini"
)
def profile(
    workspace: WorkspaceOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write the rows that failed again, and nothing else.")
    ] = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write profiles of users and items, and ground-truth explanations, from the reviews, on Ray Data."""
    _stage("profile", workspace, config, overrides, force, dry_run, repair=repair)


_plain_verb(
    "embed",
    "Train LightGCN and write the embeddings of users and items.",
    "xrec embed --workspace runs/demo --set embed.layers=3",
)
_plain_verb(
    "backbone",
    "Write the pretrained language model that is to explain: SmolLM2, a Hugging Face model or a GGUF file.",
    "xrec backbone --workspace runs/demo --set backbone.pretrained=smollm2",
)
_plain_verb(
    "tune",
    "Tune the adapter against the frozen backbone, on Ray Train with DeepSpeed.",
    "xrec tune --workspace runs/demo --set tune.compute.workers=2",
)


@app.command(epilog="Examples: xrec explain --workspace runs/demo; xrec explain -w runs/demo --user u12 --item i7")
def explain(
    workspace: WorkspaceOption = None,
    user: Annotated[str | None, typer.Option(help="Explain one pair, on the screen: the user's id.")] = None,
    item: Annotated[str | None, typer.Option(help="Explain one pair, on the screen: the item's id.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Explain pairs of users and items in a batch, on Ray Data; or one pair, given by its ids."""
    if (user is None) != (item is None):
        raise typer.BadParameter("a pair needs both --user and --item")
    if user is None or item is None:
        _stage("explain", workspace, config, overrides, force, dry_run)
    else:
        _explain_one(workspace, config, overrides, user, item)


@app.command(
    epilog="Examples: xrec evaluate -w runs/demo; xrec evaluate -w runs/yelp --predictions tst_pred.pkl "
    "--references tst_ref.pkl --name published"
)
def evaluate(
    workspace: WorkspaceOption = None,
    predictions: Annotated[
        str | None, typer.Option(help="Score explanations made elsewhere instead: parquet, CSV, JSON, text or pickle.")
    ] = None,
    references: Annotated[
        str | None, typer.Option(help="Their references, where the file of predictions names no pairs.")
    ] = None,
    name: Annotated[str, typer.Option(help="What these predictions are called in tables.")] = "published",
    config: ConfigOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Score the explanations, check that the embeddings cause them, and probe what the embeddings know."""
    if predictions is None:
        if references is not None:
            raise typer.BadParameter("--references belongs to --predictions; name that file, too")
        _stage("evaluate", workspace, config, overrides, force, dry_run)
    else:
        _evaluate_file(workspace, config, overrides, force, dry_run, predictions, references, name)


def _evaluate_file(
    workspace: str | None,
    config: str | None,
    overrides: list[str] | None,
    force: bool,
    dry_run: bool,
    predictions: str,
    references: str | None,
    name: str,
) -> None:
    from ray_jobs import evaluate as stage
    from ray_jobs.import_predictions import run as import_predictions
    from ray_jobs.job import open_workspace
    from xrec.config_files import load_config, section_config

    settings = load_config(config, overrides)
    opened = open_workspace(workspace, settings)
    if dry_run:
        typer.echo(f"evaluate: would score {predictions} as {name!r} in {opened}/variants/{name}/0")
        return
    variant, summary = import_predictions(opened, predictions, name, references, force=force)
    typer.echo(summary)
    typer.echo(stage.run(variant, section_config("evaluate", settings), force=force))


@app.command(epilog="Example: xrec baseline peter --workspace runs/demo --seed 1; then xrec compare")
def baseline(
    system: Annotated[
        str, typer.Argument(help="att2seq, nrt, peter, peter_plus, pepler, item_profile or similar_user.")
    ],
    workspace: WorkspaceOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of its training.")] = 0,
    config: ConfigOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train another system on the same data, and have it explain the same pairs."""
    from ray_jobs.baseline import run_beside
    from ray_jobs.job import run_stage

    given = [*(overrides or []), f"baseline.name={json.dumps(system)}", f"baseline.seed={seed}"]
    typer.echo(run_stage("baseline", run_beside, workspace, config, given, force, dry_run))


_plain_verb(
    "compare",
    "XRec beside baselines and floors, at several seeds: tables, significance, examples.",
    "xrec compare --workspace runs/demo --set compare.seeds=[0,1,2]",
)
_plain_verb(
    "ablate",
    "XRec without its parts: profiles, injection, both.",
    "xrec ablate --workspace runs/demo --set ablate.compute.parallel=2",
)
_plain_verb(
    "sparsity",
    "Explanations by how much is known of a user, zero-shot users among them.",
    "xrec sparsity --workspace runs/demo --set sparsity.groups=5",
)
_plain_verb(
    "report",
    "Write report.html: tables, curves and examples on one self-contained page.",
    "xrec report --workspace runs/demo",
)


@app.command(epilog="Example: xrec snapshot --workspace runs/demo")
def snapshot(workspace: WorkspaceOption = None, config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Publish what is finished for serving; a running server takes it over by itself."""
    from ray_jobs.job import open_workspace
    from ray_jobs.snapshot import run as publish
    from xrec.config_files import load_config

    typer.echo(publish(open_workspace(workspace, load_config(config, overrides))))


@app.command(epilog="Example: xrec serve runs/demo --port 8000")
def serve(
    given: Annotated[str | None, typer.Argument(metavar="WORKSPACE", help="The run's folder or URI.")] = None,
    workspace: WorkspaceOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need an API key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the figures for Prometheus; default: a free one.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the YAML for `serve deploy` on a cluster instead.")
    ] = False,
) -> None:
    """Serve live explanations on this machine: an HTTP API and a web page, on Ray Serve."""
    from serve.local import completed, deployment_yaml, run_server
    from xrec.config import ServeConfig
    from xrec.config_files import load_config

    settings = load_config(config, overrides)
    chosen = given or workspace or settings.workspace
    own = {} if chosen is None else {_dataset_name(chosen): chosen}

    def server() -> ServeConfig:
        return load_config(config, overrides).serve or ServeConfig()

    if dry_run:
        typer.echo(deployment_yaml(completed(own, server(), host), host, port), nl=False)
    else:
        run_server(own, server, host, port, metrics_port, typer.echo)


def _dataset_name(workspace: str) -> str:
    """What a workspace is called in the API: the last part of its path."""
    import re

    last = workspace.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "default"


app.command(epilog=submit_cli.EXAMPLES)(submit_cli.submit)


@app.command(epilog="Example: xrec run configs/demo.yaml --workspace runs/demo")
def run(
    config: Annotated[str, typer.Argument(help="YAML file; the stages whose sections it has are run.")],
    workspace: WorkspaceOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run every stage that a config names, in order, skipping what is done."""
    from ray_jobs.job import open_workspace, run_stages, stages_of
    from xrec.config_files import load_config

    settings = load_config(config, overrides)
    stages_of(settings)
    opened = open_workspace(workspace, settings)
    for line in run_stages(opened, settings, force, dry_run):
        typer.echo(line)
    if not dry_run:
        _show_results(opened, settings)


def _show_results(workspace: "Workspace", settings: "RunConfig") -> None:
    """A few explanations, where the report is, and how to go on."""
    if settings.explain is not None:
        _show_examples(workspace, settings.explain.split)
    if settings.report is not None:
        typer.echo(f"report: {workspace}/report/report.html")
    if settings.tune is not None:
        # As this command was called: it need not be on the path.
        program = sys.argv[0] if sys.argv[0].endswith("xrec") else "xrec"
        typer.echo(f"live, on a web page and an API: {program} serve {workspace}")


def _show_examples(workspace: "Workspace", split: str) -> None:
    from rich.console import Console
    from rich.table import Table

    titles = workspace.read_table("preprocess", "items_index", columns=["item", "title"]).to_pylist()
    title = {row["item"]: row["title"] for row in titles}
    reference: dict[tuple[int, int], str] = {}
    if workspace.has_table(workspace.text_stage("explanations"), "explanations"):
        rows = workspace.read_text_table("explanations").to_pylist()
        reference = {(row["user"], row["item"]): row["explanation"] for row in rows if row["split"] == split}
    table = Table(title="A few explanations", show_lines=True)
    for heading in ("Item", "Explanation", "Reference"):
        table.add_column(heading, ratio=1 if heading == "Item" else 3)
    for row in _first_explanations(workspace):
        table.add_row(title[row["item"]], row["explanation"], reference.get((row["user"], row["item"]), ""))
    Console().print(table)


def _first_explanations(workspace: "Workspace") -> list[dict]:
    """The explanations of the first few users that have one."""
    rows = workspace.read_table("explain", "predictions").to_pylist()
    good = [row for row in rows if row["signal"] == "true" and row["status"] == "ok"]
    by_user = {row["user"]: row for row in sorted(good, key=lambda r: (-r["user"], -r["item"]))}
    return [by_user[user] for user in sorted(by_user)[:_EXAMPLES_SHOWN]]


def _explain_one(
    workspace: str | None, config: str | None, overrides: list[str] | None, user_id: str, item_id: str
) -> None:
    from ray_jobs.job import open_workspace
    from xrec.config_files import load_config, section_config
    from xrec.explainer.explain import Explainer

    settings = load_config(config, overrides)
    opened = open_workspace(workspace, settings)
    pair = _index(opened, "users", "user", user_id), _index(opened, "items_index", "item", item_id)
    explainer = Explainer.from_workspace(opened, section_config("explain", settings))
    try:
        row = explainer.explain([pair])[0]
    finally:
        explainer.close()
    if row["status"] != "ok":
        raise ValueError(f"user {user_id!r}, item {item_id!r}: {row['error']}")
    typer.echo(row["explanation"])


def _index(workspace: "Workspace", table: str, column: str, wanted: str) -> int:
    """The index of a source id."""
    rows = workspace.read_table("preprocess", table, columns=[column, f"{column}_id"]).to_pylist()
    for row in rows:
        if row[f"{column}_id"] == wanted:
            return row[column]
    example = f", such as {rows[0][f'{column}_id']!r}" if rows else ""
    raise ValueError(f"--{column} {wanted!r} is not in {workspace}; use an id of preprocess/{table}{example}")


if __name__ == "__main__":
    main()
