"""The stage `profile` on a local Ray session, against a real endpoint of a local server, and without one."""

import shutil

import pytest

from ray_jobs.profile import run
from tests.chat_server import server_process
from tests.raw_world import as_overrides, expected_keys, keys, make_raw_workspace, profile_config
from xrec.config import ConfigError, ProfileConfig
from xrec.workspace import Workspace, WorkspaceError

KEY = "sk-secret-of-this-test"
TABLES = ("item_profiles", "user_profiles", "explanations")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return make_raw_workspace(tmp_path_factory.mktemp("raw") / "w")


@pytest.fixture
def workspace(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    shutil.copytree(raw.path(), tmp_path / "w")
    return Workspace(tmp_path / "w")


@pytest.fixture(scope="module")
def server():
    with server_process("--key", KEY) as running:
        yield running


@pytest.fixture
def endpoint(server):
    server.post("config", latency=0.0, faults={}, key=KEY)
    server.post("reset")
    return server


def rows_of(workspace):
    return {table: workspace.read_table("profile", table).to_pylist() for table in TABLES}


def assert_every_row_once(workspace):
    expected = expected_keys(workspace)
    for table, rows in rows_of(workspace).items():
        assert keys(rows, table) == expected[table], table


def test_extractive_texts_without_any_endpoint(workspace, ray_session):
    summary = run(workspace, ProfileConfig())
    assert_every_row_once(workspace)
    for table, rows in rows_of(workspace).items():
        texts = [row["explanation" if table == "explanations" else "profile"] for row in rows]
        assert all(text and len(text.split()) <= 50 for text in texts)
        assert {row["status"] for row in rows} == {"ok"}
        assert all(row["model"].startswith("extractive-") for row in rows), "rows do not say what wrote them"
        assert {row["tokens_in"] for row in rows} == {0}
    truth = workspace.read_table("preprocess", "explanations").to_pylist()
    written = rows_of(workspace)["explanations"]
    assert {(r["user"], r["item"]): r["feature"] for r in written} == {
        (r["user"], r["item"]): r["feature"] for r in truth if r["split"] != "fold_in"
    }
    assert "profile:" in summary
    figures = workspace.read_json("profile", "metrics.json")
    assert {v for name, v in figures.items() if name.startswith("leak/")} == {0}
    assert "already finished" in run(workspace, ProfileConfig())
    assert workspace.text_stage("explanations") == "profile"


def test_an_endpoint_is_asked_once_a_row_and_never_again(workspace, endpoint, ray_session):
    config = profile_config(endpoint.url)
    run(workspace, config)
    assert_every_row_once(workspace)
    total = sum(len(rows) for rows in rows_of(workspace).values())
    assert endpoint.get("stats")["requests"] == total
    for rows in rows_of(workspace).values():
        assert {(row["status"], row["attempts"]) for row in rows} == {("ok", 1)}
        assert all(row["tokens_in"] > 0 and row["tokens_out"] > 0 and row["latency"] > 0 for row in rows)
    figures = workspace.read_json("profile", "metrics.json")
    assert sum(figures[f"{table}/tokens_in"] for table in TABLES) == sum(
        row["tokens_in"] for rows in rows_of(workspace).values() for row in rows
    )
    assert "already finished" in run(workspace, config)
    assert endpoint.get("stats")["requests"] == total
    changed = config.model_copy(update={"prompts": config.prompts.model_copy(update={"item_profile": "Say who."})})
    with pytest.raises(WorkspaceError, match=r"config\.prompts\.item_profile \(None, now 'Say who\.'\)"):
        run(workspace, changed)
    assert endpoint.get("stats")["requests"] == total
    wider = profile_config(endpoint.url, compute={"concurrency": 2, "rows_per_block": 5})
    assert "already finished" in run(workspace, wider), "how wide a run was is no part of its result"


def test_the_users_prompts_quote_the_item_profiles_that_were_written(workspace, endpoint, ray_session):
    endpoint.post("config", keep_prompts=True)
    run(workspace, profile_config(endpoint.url))
    profiles = {row["profile"] for row in rows_of(workspace)["item_profiles"]}
    prompts = endpoint.get("prompts")
    endpoint.post("config", keep_prompts=False)
    quoting = [prompt for prompt in prompts if prompt.startswith('{"items"')]
    assert len(quoting) == len(rows_of(workspace)["user_profiles"])
    assert all(any(profile in prompt for profile in profiles) for prompt in quoting)


def test_repair_asks_for_the_failed_rows_alone(workspace, endpoint, ray_session):
    endpoint.post("config", faults={"refusal": 0.25, "empty": 0.1})
    config = profile_config(endpoint.url)
    summary = run(workspace, config)
    assert "--repair" in summary
    before = rows_of(workspace)
    failed = {table: [r for r in rows if r["status"] == "failed"] for table, rows in before.items()}
    count = sum(map(len, failed.values()))
    assert count > 5
    assert {r["error"].partition(":")[0] for rows in failed.values() for r in rows} == {"refused", "empty"}
    assert {r["attempts"] for rows in failed.values() for r in rows} == {2}, "a bad answer is asked for once again"
    endpoint.post("config", faults={})
    endpoint.post("reset")
    run(workspace, config, repair=True)
    assert endpoint.get("stats")["requests"] == count
    assert_every_row_once(workspace)
    for table, rows in rows_of(workspace).items():
        assert {row["status"] for row in rows} == {"ok"}
        kept = {tuple(keys([r], table)): r for r in before[table] if r["status"] == "ok"}
        assert all(kept.get(tuple(keys([r], table)), r) == r for r in rows), "a row that was good has changed"
    assert "already finished" in run(workspace, config)


def cost_of_all(workspace):
    tables = [table for table in TABLES if workspace.has_table("profile", table)]
    return sum(row["cost"] for table in tables for row in workspace.read_table("profile", table).to_pylist())


def test_a_spend_cap_stops_and_a_higher_one_goes_on(workspace, endpoint, ray_session, tmp_path):
    compute = {"prices": {"test-model": {"input": 1000.0, "output": 2000.0}}, "rows_per_block": 4}
    twin = Workspace(shutil.copytree(workspace.path(), tmp_path / "twin"))
    estimate = run(twin, profile_config(endpoint.url, compute=compute), dry_run=True)
    assert endpoint.get("stats")["requests"] == 0
    summary = run(twin, profile_config(endpoint.url, compute=compute))
    full, total = cost_of_all(twin), endpoint.get("stats")["requests"]
    assert f"cost {full:,.4g}" in summary
    assert full <= float(estimate.partition("cost at most ")[2].split(" ")[0].replace(",", ""))

    endpoint.post("reset")
    cap = full / 2
    with pytest.raises(WorkspaceError, match=r"spend_cap = .* is spent and no further block"):
        run(workspace, profile_config(endpoint.url, compute=compute | {"spend_cap": cap}))
    assert 0.5 * cap < cost_of_all(workspace) <= cap
    run(workspace, profile_config(endpoint.url, compute=compute | {"spend_cap": 10 * full}))
    assert_every_row_once(workspace)
    assert endpoint.get("stats")["requests"] == total, "what was paid for was asked for again"
    assert cost_of_all(workspace) == pytest.approx(full)


def test_a_wrong_key_ends_the_job_with_one_message_that_does_not_show_it(workspace, endpoint, ray_session, capfd):
    endpoint.post("config", key="another")
    with pytest.raises(WorkspaceError, match=r"401") as error:
        run(workspace, profile_config(endpoint.url))
    assert endpoint.get("stats")["unauthorized"] <= 16, "it went on asking"
    assert "profile.compute.api_key_variable" in str(error.value)
    shown = str(error.value) + "".join(capfd.readouterr())
    assert KEY not in shown
    for file in workspace.files():
        assert KEY.encode() not in workspace.read_bytes(*file.split("/")), file


def test_the_key_is_in_no_log_of_ray(workspace, endpoint, ray_session):
    import ray

    run(workspace, profile_config(endpoint.url))
    from pathlib import Path

    session = Path(ray._private.worker._global_node.get_session_dir_path())  # pyright: ignore
    logs = [path for path in session.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(logs) > 5
    assert [path for path in logs if KEY.encode() in path.read_bytes()] == []


def test_no_key_no_text_no_model_are_said_plainly(workspace, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    config = ProfileConfig.model_validate({"backend": "openai", "model": "m"})
    with pytest.raises(ConfigError, match=r"the environment variable OPENAI_API_KEY is not set"):
        run(workspace, config)
    assert not workspace.exists("profile"), "a run that cannot begin has left something"
    with pytest.raises(ValueError, match=r"model is not set, and backend = openai needs one"):
        ProfileConfig.model_validate({"backend": "openai"})
    with pytest.raises(ValueError, match=r"no price for 'm'"):
        ProfileConfig.model_validate({"backend": "openai", "model": "m", "compute": {"spend_cap": 1}})


def test_more_actors_than_the_cluster_can_hold_are_refused(workspace, endpoint, ray_session):
    config = profile_config(endpoint.url, compute={"actors": (100, 100), "cpus_per_actor": 2})
    with pytest.raises(ConfigError, match=r"needs \{CPU: 2\}, 100 times, but the cluster can hold 2 at most"):
        run(workspace, config)


def test_the_command_line_takes_the_same_settings(workspace, endpoint):
    from xrec.config_files import load_config

    config = profile_config(endpoint.url, seed=4)
    assert load_config(None, as_overrides(config)).profile == config
