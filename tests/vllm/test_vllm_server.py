"""Our client of chat endpoints against vLLM's own server, for the published prompts."""

import asyncio
import json

import pytest

from tests.vllm.served_model import served_model
from xrec.config import TEXT_KINDS, WritingPrompts
from xrec.profiles.prompts import Prompts

pytestmark = pytest.mark.timeout(900)
KEY = "key-of-the-test"


@pytest.fixture(scope="module")
def server(chat_model, tmp_path_factory):
    """The address of a server that speaks for the tiny model."""
    log = tmp_path_factory.mktemp("server") / "log"
    with served_model(chat_model, "tiny", log, "--api-key", KEY) as address:
        yield f"{address}/v1"


def _answers(server, records, **changes):
    from xrec.profiles.client import OpenAIClient
    from xrec.profiles.writer import ChatWriter

    async def write():
        values = {"temperature": 1.0, "max_tokens": 512, "request_timeout": 120.0} | changes
        client = OpenAIClient("tiny", server, KEY, **values)
        writer = ChatWriter(client, Prompts(WritingPrompts(), 400), max_words=400, deadline=300.0)
        try:
            return {kind: await writer.write(kind, records[kind]) for kind in records}
        finally:
            await client.close()

    return asyncio.run(write())


def test_published_prompts_bring_answers_of_the_schema(server, records):
    answers = _answers(server, records)
    assert list(answers) == list(TEXT_KINDS) and all(len(of_kind) == 6 for of_kind in answers.values())
    every = [answer for of_kind in answers.values() for answer in of_kind]
    for answer in every:
        assert answer.status == "ok" or answer.error.partition(":")[0] in ("empty", "cut_off"), answer.error
        assert answer.model == "tiny" and answer.tokens_in > 100 and answer.attempts in (1, 2)
    assert sum(answer.status == "ok" for answer in every) >= 15


def test_any_object_is_asked_for_and_refused_unless_it_is_ours(server, records):
    """`json_object` alone: what comes back is an object, of whatever fields, so nothing of it is taken."""
    few = {"explanation": records["explanation"][:2]}
    for answer in _answers(server, few, structured_output="json_object", max_tokens=64)["explanation"]:
        assert answer.status == "failed" and answer.error.partition(":")[0] in ("not_json", "cut_off")


def test_the_server_counts_the_tokens_that_our_template_makes(server, records, chat_model):
    from transformers import AutoTokenizer

    record = records["item_profile"][0]
    messages = Prompts(WritingPrompts(), 400).messages("item_profile", record)
    tokens = AutoTokenizer.from_pretrained(chat_model).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    answer = _answers(server, {"item_profile": [record]}, max_tokens=512)["item_profile"][0]
    assert json.loads(messages[1]["content"]) == json.loads(record)
    assert answer.tokens_in == len(tokens) or answer.attempts > 1
