"""The web application: OpenAI's chat and completions API for one model.

POST /v1/chat/completions     the question is the only user message
POST /v1/completions          the question is the prompt
GET  /v1/models, /health
"""

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from kava.api.stable_text import StableText
from kava.checkpoint import Trained
from kava.errors import UserError
from kava.explain.questions import checked_question, guess_reason
from kava.generate import Generation
from kava.tools.serve.batching import Batcher, ClosedError, PendingRequest, QueueFullError, Settings
from kava.tools.serve.requests import BaseRequest, ChatRequest, CompletionRequest, refuse_other_parameters

ENDING = "the server is shutting down; try again after it has restarted"
RETRY_SECONDS = 1
"""Value of the Retry-After header when the queue is full."""
LOOK_SECONDS = 0.5
"""Seconds between two checks whether the client is still connected."""


def build_app(trained: Trained, name: str, batcher: Batcher, max_new_tokens: int | None = None) -> FastAPI:
    """Build the application.

    Args:
        trained: the model.
        name: the model name that requests must give.
        batcher: answers the questions.
        max_new_tokens: upper limit for the tokens of any answer; default: evaluation.max_new_tokens.
    """

    app = FastAPI(title=f"kava: {name}", docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UserError, lambda _, error: _error(400, str(error)))
    app.add_exception_handler(QueueFullError, lambda _, __: _error(503, "the queue is full; try again in a moment", retry=True))
    app.add_exception_handler(ClosedError, lambda _, __: _error(503, ENDING))
    app.add_exception_handler(HTTPException, _other)
    service = _Service(trained, name, batcher, max_new_tokens or trained.config.evaluation.max_new_tokens)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(wanted: ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        return await service.respond(wanted, "chat.completion", request)

    @app.post("/v1/completions", response_model=None)
    async def completions(wanted: CompletionRequest, request: Request) -> JSONResponse | StreamingResponse:
        return await service.respond(wanted, "text_completion", request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": service.created, "owned_by": "kava"}]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


Kind = Literal["chat.completion", "text_completion"]
Event = str | Generation | Exception
"""The text so far; at the end, the answer or what went wrong."""


class _Service:
    def __init__(self, trained: Trained, name: str, batcher: Batcher, max_new_tokens: int) -> None:
        self.trained = trained
        self.name = name
        self.batcher = batcher
        self.max_new_tokens = max_new_tokens
        self.created = int(time.time())

    async def respond(self, wanted: BaseRequest, kind: Kind, request: Request) -> JSONResponse | StreamingResponse:
        refuse_other_parameters(wanted)
        if wanted.model != self.name:
            return _error(404, f"there is no model {wanted.model!r} here; it is {self.name!r}", code="model_not_found")
        reasoner = self.batcher.reasoner
        question = checked_question(reasoner, wanted.question, self.trained.config)
        ids = reasoner.builder.question_ids(question)
        limit = min(wanted.max_completion_tokens or wanted.max_tokens or self.max_new_tokens, self.max_new_tokens)
        # Greedy decoding ignores the seed; a constant one lets such requests share a batch.
        temperature = wanted.temperature or 0.0
        seed = (secrets.randbits(63) if wanted.seed is None else wanted.seed) if temperature else 0
        settings = Settings(limit, temperature, seed, wanted.use_latent)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def hand_over(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        asked = PendingRequest(ids, settings, hand_over if wanted.stream else None, hand_over)
        self.batcher.ask(asked)
        answer = _Answer(kind, self.name, len(ids), self._latents(wanted), guess_reason(reasoner.builder, self.trained.config, question))
        if wanted.stream:
            lines = self._stream(asked, events, answer, bool(wanted.stream_options and wanted.stream_options.include_usage))
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        try:
            result = await _while_connected(request, events)
        finally:
            asked.left.set()
        if isinstance(result, (UserError, ClosedError)):
            raise result
        if isinstance(result, Exception):
            return _error(500, _reason(result))
        assert isinstance(result, Generation)
        return JSONResponse(answer.whole(result))

    def _latents(self, wanted: BaseRequest) -> int:
        return self.batcher.reasoner.num_latents if self.trained.model.method.uses_latents and wanted.use_latent else 0

    async def _stream(self, asked: PendingRequest, events: "asyncio.Queue[Event]", answer: "_Answer", usage: bool) -> AsyncIterator[str]:
        pieces = StableText()
        try:
            yield _line(answer.chunk("", first=True))
            while isinstance(event := await events.get(), str):
                if piece := pieces.of(event):
                    yield _line(answer.chunk(piece))
            if isinstance(event, Exception):
                yield _line({"error": _body(_reason(event), "server_error")})
                return
            if rest := pieces.rest(event.text):
                yield _line(answer.chunk(rest))
            yield _line(answer.chunk("", last=event))
            if usage:
                yield _line(answer.costs(event))
            yield "data: [DONE]\n\n"
        finally:
            # Also reached when the client disconnects during the stream.
            asked.left.set()


class _Answer:
    """Builds the response bodies of one answer, as a whole or in chunks."""

    def __init__(self, kind: Kind, model: str, prompt_tokens: int, latents: int, guess: str | None) -> None:
        self.kind = kind
        self.head = {"id": f"kava-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.prompt_tokens = prompt_tokens
        self.latents = latents
        self.guess = guess

    def whole(self, found: Generation) -> dict[str, Any]:
        message = {"message": {"role": "assistant", "content": found.text}} if self.kind == "chat.completion" else {"text": found.text}
        choice = {"index": 0, **message, "logprobs": None, "finish_reason": _finish(found)}
        return {**self.head, "object": self.kind, "choices": [choice], **self._cost(found)}

    def chunk(self, text: str, first: bool = False, last: Generation | None = None) -> dict[str, Any]:
        reason = None if last is None else _finish(last)
        if self.kind == "chat.completion":
            delta = {"role": "assistant", "content": ""} if first else {} if last else {"content": text}
            return {**self.head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        return {**self.head, "object": self.kind, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]}

    def costs(self, found: Generation) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        return {**self.head, "object": kind, "choices": [], **self._cost(found)}

    def _cost(self, found: Generation) -> dict[str, Any]:
        completion = self.latents + found.generated_tokens
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "completion_tokens_details": {"reasoning_tokens": self.latents},
        }
        ours = {"answer": found.answer, "forward_passes": found.forward_passes, "cache_bytes": found.cache_bytes, "guess": self.guess}
        return {"usage": usage, "kava": ours}


async def _while_connected(request: Request, events: "asyncio.Queue[Event]") -> Event:
    """Return the next event, or `ClosedError` when the client has disconnected; without a stream, this has to be polled."""
    coming = asyncio.ensure_future(events.get())
    while not (await asyncio.wait([coming], timeout=LOOK_SECONDS))[0]:
        if await request.is_disconnected():
            coming.cancel()
            return ClosedError()
    return coming.result()


def _finish(found: Generation) -> str:
    return "stop" if found.complete else "length"


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": None, "code": code}


def _reason(error: Exception) -> str:
    return ENDING if isinstance(error, ClosedError) else f"{type(error).__name__}: {error}"


def _error(status: int, message: str, code: str | None = None, retry: bool = False) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"Retry-After": str(RETRY_SECONDS)} if retry else None
    return JSONResponse({"error": _body(message, kind, code)}, status, headers)


async def _other(_: Request, error: Exception) -> JSONResponse:
    """Respond to an unknown path, a wrong method, or a body that cannot be read."""
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _error(400, f"{where}: {first['msg']}" if where else first["msg"])
