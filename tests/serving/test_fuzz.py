"""The API against its own OpenAPI document, with generated requests, sound and not."""

import subprocess
import sys

CHECKS = (
    # A 500 is no documented status. A 504 is one: requests with deadlines too short for any answer are generated, too.
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


def test_answers_are_as_documented(live_server, tmp_path):
    command = [sys.executable, "-m", "schemathesis.cli", "run", live_server.url + "openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", "20"]
    command += ["--generation-deterministic", "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 10" in done.stdout, done.stdout
