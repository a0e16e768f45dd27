"""What judges answered, kept in files that several processes add to."""

import uuid

import pytest

from xrec.evaluation.judge_cache import FOLDER, AnswerCache, KeptAnswer, key_of
from xrec.workspace import Workspace

CHAT = [{"role": "user", "content": "Is “crème brûlée” sweet?"}]
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}}


def kept(number, judge="m"):
    return KeptAnswer(str(number), judge, f"{judge}-1", f'{{"score": {number}}}', 5, 2)


@pytest.fixture(params=["local", "memory"])
def uri(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_two_writers_at_once_lose_nothing(uri):
    one, two = AnswerCache(Workspace(uri), "m"), AnswerCache(Workspace(uri), "m")
    one.add([kept(1), kept(2)])
    two.add([kept(2), kept(3)])
    assert (one.get("3"), two.get("1")) == (None, None), "what is there is read once"
    third = AnswerCache(Workspace(uri), "m")
    assert {key: third.get(key) for key in "123"} == {key: f'{{"score": {key}}}' for key in "123"}
    assert len(third) == 3


def test_judges_do_not_see_each_others_answers(uri):
    AnswerCache(Workspace(uri), "a").add([kept(1, "a")])
    assert (len(AnswerCache(Workspace(uri), "b")), len(AnswerCache(Workspace(uri), "a"))) == (0, 1)


def test_nothing_new_writes_no_file_and_other_files_are_left_alone(uri):
    workspace = Workspace(uri)
    AnswerCache(workspace, "m").add([])
    assert workspace.files(FOLDER) == []
    workspace.write_bytes(b"a note", FOLDER, "README")
    assert len(AnswerCache(workspace, "m")) == 0


def test_without_a_workspace_answers_stay_in_memory():
    cache = AnswerCache(None, "m")
    cache.add([kept(1)])
    assert cache.get("1") == '{"score": 1}'


def test_the_key_is_of_all_that_is_asked_and_of_nothing_else():
    key = key_of("m", CHAT, SCHEMA)
    assert key == key_of("m", [{"content": CHAT[0]["content"], "role": "user"}], dict(reversed(SCHEMA.items())))
    others = [
        key_of("other", CHAT, SCHEMA),
        key_of("m", [*CHAT, *CHAT], SCHEMA),
        key_of("m", [{"role": "system", "content": CHAT[0]["content"]}], SCHEMA),
        key_of("m", CHAT, {"type": "object"}),
        key_of("m", [{"role": "user", "content": "\ud800"}], SCHEMA),
    ]
    assert len({key, *others}) == 6
