"""Files and batches of OpenAI's Batch API, for the local chat server. A batch's state follows from its age alone."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from tests.chat_faults import BATCH, CONTENT, Settings, completion, error_body, error_response, hash_of_prompt

DAY = 24 * 3600
# Of the delay, how much a batch is being validated.
_VALIDATING = 0.25


@dataclass
class _File:
    id: str
    content: bytes
    filename: str
    purpose: str
    created_at: int = field(default_factory=lambda: int(time.time()))

    def describe(self) -> dict:
        fields = {"id": self.id, "bytes": len(self.content), "filename": self.filename, "purpose": self.purpose}
        return {**fields, "object": "file", "created_at": self.created_at, "status": "processed"}


@dataclass
class _Batch:
    fields: dict
    born: float
    rows: list[dict]
    finished: bool = False


class BatchApi:
    """The routes and what was uploaded, asked for and answered."""

    def __init__(self, settings: Settings, authorized: Callable[[web.Request], bool]):
        self.settings, self._authorized = settings, authorized
        self.files: dict[str, _File] = {}
        self.batches: dict[str, _Batch] = {}
        self.sendings: Counter[str] = Counter()

    def routes(self) -> list[web.RouteDef]:
        guarded = [
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files", self._list_files),
            ("GET", "/v1/files/{id}", self._file),
            ("GET", "/v1/files/{id}/content", self._content),
            ("DELETE", "/v1/files/{id}", self._delete),
            ("POST", "/v1/batches", self._create),
            ("GET", "/v1/batches", self._list_batches),
            ("GET", "/v1/batches/{id}", self._retrieve),
            ("POST", "/v1/batches/{id}/cancel", self._cancel),
        ]
        return [web.route(method, path, self._guard(handler)) for method, path, handler in guarded]

    def _guard(self, handler):
        async def guarded(request: web.Request) -> web.StreamResponse:
            if not self._authorized(request):
                return error_response(401, "invalid_api_key", "Incorrect API key provided")
            try:
                return await handler(request)
            except KeyError as missing:
                return error_response(404, "not_found", f"No such object: {missing}")

        return guarded

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        sent = form["file"]
        assert isinstance(sent, web.FileField)
        file = self._store(sent.file.read(), sent.filename, str(form["purpose"]))
        return web.json_response(file.describe())

    def _store(self, content: bytes, filename: str, purpose: str) -> _File:
        file = _File(f"file-{len(self.files):06d}", content, filename, purpose)
        self.files[file.id] = file
        return file

    async def _list_files(self, request: web.Request) -> web.Response:
        return self._page([file.describe() for file in self.files.values()], request)

    async def _file(self, request: web.Request) -> web.Response:
        return web.json_response(self.files[request.match_info["id"]].describe())

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]].content)

    async def _delete(self, request: web.Request) -> web.Response:
        file = self.files.pop(request.match_info["id"])
        return web.json_response({"id": file.id, "object": "file", "deleted": True})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        content = self.files[body["input_file_id"]].content
        now = int(time.time())
        names = ["endpoint", "input_file_id", "completion_window", "metadata"]
        fields = {
            "id": f"batch_{len(self.batches):06d}",
            "object": "batch",
            **{name: body.get(name) for name in names},
            "status": "validating",
            "created_at": now,
            "expires_at": now + DAY,
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        batch = _Batch(fields, time.monotonic(), [])
        self.batches[fields["id"]] = batch
        if mistakes := self._read(batch, content):
            fields.update(status="failed", failed_at=now, errors={"object": "list", "data": mistakes})
            batch.finished = True
        return web.json_response(fields)

    @staticmethod
    def _read(batch: _Batch, content: bytes) -> list[dict]:
        """Take over the rows of an input file; what is wrong with it."""
        seen: set[str] = set()
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError:
                return [{"code": "invalid_json_line", "line": number, "message": "This line is not parseable as JSON."}]
            if not {"custom_id", "method", "url", "body"} <= set(row) or row["url"] != batch.fields["endpoint"]:
                return [
                    {"code": "invalid_request", "line": number, "message": "A field is missing, or the url differs."}
                ]
            if row["custom_id"] in seen:
                return [{"code": "duplicate_custom_id", "line": number, "message": "The custom_id is not unique."}]
            seen.add(row["custom_id"])
            batch.rows.append(row)
        return [] if batch.rows else [{"code": "empty_file", "line": None, "message": "The file is empty."}]

    async def _retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(self._progress(self.batches[request.match_info["id"]]))

    async def _list_batches(self, request: web.Request) -> web.Response:
        return self._page([self._progress(batch) for batch in reversed(self.batches.values())], request)

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        if not batch.finished:
            batch.finished = True
            batch.fields.update(status="cancelled", cancelled_at=int(time.time()))
        return web.json_response(batch.fields)

    @staticmethod
    def _page(objects: list[dict], request: web.Request) -> web.Response:
        limit, after = int(request.query.get("limit", 20)), request.query.get("after")
        start = next((i + 1 for i, o in enumerate(objects) if o["id"] == after), 0)
        page = objects[start : start + limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return web.json_response({"object": "list", "data": page, **ends, "has_more": start + limit < len(objects)})

    def _progress(self, batch: _Batch) -> dict:
        age, delay = time.monotonic() - batch.born, self.settings.batch_delay
        if not batch.finished and age >= delay:
            self._finish(batch)
        elif not batch.finished and age >= delay * _VALIDATING:
            total = {"total": len(batch.rows), "completed": 0, "failed": 0}
            batch.fields.update(status="in_progress", in_progress_at=int(time.time()), request_counts=total)
        return batch.fields

    def _finish(self, batch: _Batch) -> None:
        """Answer every row, in another order than asked, as the Batch API promises none."""
        good: list[dict] = []
        bad: list[dict] = []
        order = random.Random(len(batch.rows)).sample(batch.rows, len(batch.rows))
        for row in order:
            self._answer(row, batch.fields["id"], good, bad)
        expired = any(row["error"] for row in bad)
        counts = {"total": len(order), "completed": len(good), "failed": len(bad)}
        status = "expired" if expired else "completed"
        batch.fields.update({"status": status, f"{status}_at": int(time.time()), "request_counts": counts})
        for name, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                content = "".join(json.dumps(row) + "\n" for row in rows).encode()
                batch.fields[name] = self._store(content, f"{batch.fields['id']}_{name}.jsonl", "batch_output").id
        batch.finished = True

    def _answer(self, row: dict, batch_id: str, good: list[dict], bad: list[dict]) -> None:
        digest = hash_of_prompt(row["body"]["messages"])
        self.sendings[digest] += 1
        sending = self.sendings[digest]
        fault = self.settings.fault_of(digest, sending, (*BATCH, *CONTENT))
        result = {"id": f"{batch_id}_{digest}", "custom_id": row["custom_id"], "response": None, "error": None}
        response = {"status_code": 200, "request_id": f"request-{digest}"}
        if fault == "expired":
            message = "This request could not be executed before the completion window expired."
            bad.append({**result, "error": {"code": "batch_expired", "message": message}})
        elif fault == "row-error":
            body = error_body("server_error", "The server had an error")
            bad.append({**result, "response": {**response, "status_code": 500, "body": body}})
        else:
            body = completion(self.settings, row["body"], digest, sending, fault)
            good.append({**result, "response": {**response, "body": body}})
