"""The API against its own OpenAPI document, with generated requests, sound and not."""

import subprocess
import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.schemas import ExplanationsResponse
from tests.tiny_world import ITEMS, USERS

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


USER_IDS = st.integers(0, USERS - 1).map("u{}".format)
ITEM_IDS = st.integers(0, ITEMS - 1).map("i{}".format)
# Any text but halves of surrogate pairs, which are refused.
TEXTS = st.text(max_size=200)
KNOWN = st.fixed_dictionaries({"user_id": USER_IDS, "item_id": ITEM_IDS})
NEW_USER = st.fixed_dictionaries(
    {"interactions": st.lists(ITEM_IDS, min_size=1, max_size=5), "item_id": ITEM_IDS}, optional={"user_profile": TEXTS}
)
NEW_ITEM = st.fixed_dictionaries(
    {
        "user_id": USER_IDS,
        "item": st.fixed_dictionaries(
            {"interactions": st.lists(USER_IDS, min_size=1, max_size=5)}, optional={"title": TEXTS, "profile": TEXTS}
        ),
    }
)
REQUESTS = st.fixed_dictionaries(
    {"pairs": st.lists(KNOWN | NEW_USER | NEW_ITEM, min_size=1, max_size=4)},
    optional={
        "signal": st.sampled_from(["true", "average", "off"]),
        "evidence": st.booleans(),
        "max_words": st.integers(1, 50),
        "max_new_tokens": st.integers(1, 60),
        "temperature": st.floats(0, 10),
        "top_p": st.floats(0, 1, exclude_min=True),
        "seed": st.integers(0, 2**53 - 1),
    },
)


@given(REQUESTS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_sound_request_is_answered(live_server, body):
    status, _, answer = live_server.post("v1/explanations", body)
    assert status == 200, answer
    assert len(ExplanationsResponse.model_validate(answer).explanations) == len(body["pairs"])
