"""`kava serve`: OpenAI's own client against a real server; many users at once, broken requests, a full queue, users who leave, the end."""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

import httpx
import openai

from helpers.forked_python import python
from kava.checkpoint import Trained, open_checkpoint
from kava.data.mini.problems import EXAMPLE, generate
from kava.errors import UserError
from kava.generate import Generation
from kava.tools.serve.app import build_app
from kava.tools.serve.batching import Batcher, ClosedError, PendingRequest, QueueFullError, Settings
from kava.tools.serve.server import Server, listen

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MODEL, WAITING = "mini", 3


@pytest.fixture(scope="module")
def trained() -> Trained:
    return open_checkpoint("builtin:mini", device="cpu")


@pytest.fixture(scope="module")
def questions(trained: Trained) -> list[str]:
    return [example.question for example in generate("test", trained.config.dataset.mini)[:32]]


class Site:
    """A server in a thread of this process, its queue, and clients that do not try again."""

    def __init__(self, trained: Trained, batch_size: int, waiting: int) -> None:
        self.batcher = Batcher(trained.reasoner(), batch_size, waiting)
        listener = listen("127.0.0.1", 0)
        listener.listen()
        self.server = Server(build_app(trained, MODEL, self.batcher), self.batcher, 60)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        self.client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", max_retries=0, timeout=60)

    def chat(self, question: str, **more: Any) -> Any:
        return self.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}], **more)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def site(trained: Trained) -> Iterator[Site]:
    site = Site(trained, batch_size=8, waiting=64)
    yield site
    site.close()


@pytest.fixture
def narrow(trained: Trained) -> Iterator[Site]:
    site = Site(trained, batch_size=1, waiting=WAITING)
    yield site
    site.close()


class Held:
    """A question that keeps the worker busy after its first token, until it is let go."""

    def __init__(self, batcher: Batcher, question: str, limit: int = 40) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.texts: list[str] = []
        self.found: SimpleQueue[Generation | Exception] = SimpleQueue()
        ids = batcher.reasoner.builder.question_ids(question)
        self.asked = PendingRequest(ids, Settings(limit, use_latent=False), self._write, self.found.put)
        batcher.ask(self.asked)
        assert self.began.wait(60)

    def _write(self, text: str) -> None:
        self.texts.append(text)
        self.began.set()
        assert self.go.wait(60)


def test_both_kinds_of_request_give_the_answer_and_its_cost(site: Site, trained: Trained) -> None:
    expected = trained.reasoner().generate([EXAMPLE])[0]
    found = site.chat(EXAMPLE)
    assert (found.choices[0].message.role, found.choices[0].message.content) == ("assistant", expected.text)
    assert (found.choices[0].finish_reason, found.model) == ("stop", MODEL)
    usage, latents = found.usage, trained.config.latent.num_tokens
    assert usage.prompt_tokens == len(trained.builder.question_ids(EXAMPLE))
    assert usage.completion_tokens == latents + expected.generated_tokens
    assert usage.completion_tokens_details.reasoning_tokens == latents
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert found.kava == {
        "answer": expected.answer, "forward_passes": expected.forward_passes, "cache_bytes": expected.cache_bytes, "guess": None
    }  # fmt: skip
    completion = site.client.completions.create(model=MODEL, prompt=[EXAMPLE])
    assert (completion.choices[0].text, completion.usage) == (expected.text, usage)
    parts = [{"type": "text", "text": EXAMPLE[:10]}, {"type": "text", "text": EXAMPLE[10:]}]
    assert site.chat(parts).choices[0].message.content == expected.text  # type: ignore[arg-type]
    assert [model.id for model in site.client.models.list()] == [MODEL]


def test_the_chain_of_thought_is_a_setting(site: Site, trained: Trained) -> None:
    expected = trained.reasoner().generate([EXAMPLE], use_latent=False)[0]
    found = site.chat(EXAMPLE, extra_body={"use_latent": False}, n=1, top_p=1, user="somebody")
    assert found.choices[0].message.content == expected.text
    assert found.usage.completion_tokens_details.reasoning_tokens == 0
    cut = site.chat(EXAMPLE, extra_body={"use_latent": False}, max_completion_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)
    # Nobody takes the server's memory with it.
    assert site.chat(EXAMPLE, max_tokens=10**9).choices[0].finish_reason == "stop"


def test_a_stream_is_the_answer_in_pieces(site: Site, trained: Trained) -> None:
    expected = trained.reasoner().generate([EXAMPLE], use_latent=False)[0]
    chunks = list(site.chat(EXAMPLE, stream=True, stream_options={"include_usage": True}, extra_body={"use_latent": False}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 5
    assert "".join(pieces) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["stop"]
    assert chunks[-1].usage.completion_tokens == expected.generated_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    texts = [chunk.choices[0].text for chunk in site.client.completions.create(model=MODEL, prompt=EXAMPLE, stream=True)]
    assert "".join(texts) == trained.reasoner().generate([EXAMPLE])[0].text


@pytest.mark.parametrize("use_latent", [True, False])
def test_32_users_at_once_get_their_own_answers(site: Site, trained: Trained, questions: list[str], use_latent: bool) -> None:
    expected = [trained.reasoner().generate([question], use_latent=use_latent)[0].text for question in questions]
    sizes: list[int] = []
    answer = site.batcher._answer
    site.batcher._answer = lambda batch: (sizes.append(len(batch)), answer(batch))[1]  # type: ignore[method-assign]

    def ask(number: int) -> str:
        words = {"stream": number % 2 == 0, "extra_body": {"use_latent": use_latent}}
        found = site.chat(questions[number], **words)
        if number % 2:
            return str(found.choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in found)

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == expected
    assert sum(sizes) == 32
    assert 1 < max(sizes) <= 8  # what waited together was answered together
    del site.batcher._answer


def test_sampling_follows_its_seed(site: Site) -> None:
    words = {"temperature": 2.0, "max_tokens": 30, "extra_body": {"use_latent": False}}
    texts = [site.chat(EXAMPLE, seed=seed, **words).choices[0].message.content for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_sampled_answer_is_its_seed_s_whoever_else_asks_and_a_new_one_without(site: Site) -> None:
    words = {"temperature": 2.0, "max_tokens": 30, "extra_body": {"use_latent": False}}
    alone = site.chat(EXAMPLE, seed=3, **words).choices[0].message.content
    held = Held(site.batcher, EXAMPLE)
    with ThreadPoolExecutor(6) as pool:
        together = [pool.submit(site.chat, EXAMPLE, seed=3, **words) for _ in range(3)]
        fresh = [pool.submit(site.chat, EXAMPLE, **words) for _ in range(3)]
        _until(lambda: len(site.batcher._queue) == 6)
        held.go.set()
        assert {future.result().choices[0].message.content for future in together} == {alone}
        assert len({future.result().choices[0].message.content for future in fresh}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": None, "seed": None, "stream": None, "stream_options": None, "max_tokens": None, "tools": None},
        {"stream_options": {"include_usage": None}},
        {"temperature": 1e-40, "seed": -1},
    ],
)
def test_what_openai_allows_is_answered(site: Site, change: dict[str, Any]) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": EXAMPLE}]} | change
    found: Any = site.client.post("/chat/completions", body=body, cast_to=object)
    assert found["choices"][0]["message"]["content"] == site.chat(EXAMPLE).choices[0].message.content


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"messages": []}, 400, "messages: List should have at least 1 item"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]},
            400,
            "answers single questions without history",
        ),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "the question is empty"),
        ({"messages": [{"role": "user", "content": "one " * 3000}]}, 400, "shorten it"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "accepts only text"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
        ({"temperature": "hot"}, 400, "temperature: Input should be a valid number"),
        ({"temperature": 1, "seed": 2**64}, 400, "seed: Input should be less than 9223372036854775808"),
        ({"n": 2}, 400, "n = 2 is not possible with this model; leave it out"),
        ({"tools": [{"type": "function"}]}, 400, "tools = "),
        ({"best": 1}, 400, "unknown parameter 'best'"),
        ({"model": "gpt"}, 404, "there is no model 'gpt' here; it is 'mini'"),
    ],
)
def test_a_broken_request_is_one_sentence(site: Site, change: dict[str, Any], status: int, message: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": EXAMPLE}]} | change
    with pytest.raises(openai.APIStatusError) as caught:
        site.client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.status_code == status
    assert message in caught.value.body["message"]
    assert site.chat(EXAMPLE).choices  # and the server goes on


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "JSON"),
        (b'{"model": "mini", "prompt": "a\\ud800"}', "half of a character"),
        (b"[]", "valid dictionary"),
        (b"\xff", "parsing the body"),
    ],
)
def test_what_no_client_would_send(site: Site, content: bytes, message: str) -> None:
    found = httpx.post(f"{site.client.base_url}completions", content=content, headers={"Content-Type": "application/json"})
    assert found.status_code == 400
    assert message in found.json()["error"]["message"]
    assert httpx.post(f"{site.client.base_url}embeddings").json()["error"]["message"] == "Not Found"


def test_a_full_queue_says_so_and_the_rest_is_answered(narrow: Site, questions: list[str]) -> None:
    held = Held(narrow.batcher, EXAMPLE)
    with ThreadPoolExecutor(WAITING) as pool:
        waiting = [pool.submit(narrow.chat, question) for question in questions[:WAITING]]
        _until(lambda: len(narrow.batcher._queue) == WAITING)
        with pytest.raises(openai.InternalServerError) as caught:
            narrow.chat(EXAMPLE)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.body["message"] == "the queue is full; try again in a moment"
        held.go.set()
        assert all(future.result().choices for future in waiting)


def test_who_leaves_a_stream_stops_its_work(narrow: Site) -> None:
    held = Held(narrow.batcher, EXAMPLE)
    stream = narrow.chat(EXAMPLE, stream=True, extra_body={"use_latent": False})
    next(stream)
    _until(lambda: len(narrow.batcher._queue) == 1)
    (asked,) = narrow.batcher._queue
    stream.close()
    _until(asked.left.is_set)
    held.asked.left.set()
    held.go.set()
    found = held.found.get(timeout=60)
    assert isinstance(found, Generation)
    assert (len(held.texts), found.generated_tokens) == (1, 1)
    assert narrow.chat(EXAMPLE).choices


def test_who_gives_up_waiting_is_not_answered(narrow: Site) -> None:
    held = Held(narrow.batcher, EXAMPLE)
    with pytest.raises(openai.APITimeoutError):
        narrow.client.with_options(timeout=0.2).chat.completions.create(model=MODEL, messages=[{"role": "user", "content": EXAMPLE}])
    (asked,) = narrow.batcher._queue
    _until(asked.left.is_set)
    held.go.set()
    assert narrow.chat(EXAMPLE).choices


def test_an_error_of_the_model_is_told_and_survived(narrow: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(narrow.batcher.reasoner, "start", fail)
        with pytest.raises(openai.APIError, match="no memory"):
            list(narrow.chat(EXAMPLE, stream=True))
        with pytest.raises(openai.InternalServerError, match="RuntimeError: no memory"):
            narrow.chat(EXAMPLE)
    assert narrow.chat(EXAMPLE).choices


def test_closing_finishes_what_is_being_answered_and_refuses_the_rest(trained: Trained) -> None:
    batcher = Batcher(trained.reasoner(), 1, 2)
    held, late = Held(batcher, EXAMPLE), SimpleQueue[Generation | Exception]()
    ids = trained.builder.question_ids(EXAMPLE)
    batcher.ask(PendingRequest(ids, Settings(4), None, late.put))
    batcher.close()
    assert isinstance(late.get(timeout=60), ClosedError)
    held.go.set()
    found = held.found.get(timeout=60)
    assert isinstance(found, Generation)
    assert found.complete
    batcher.join()
    with pytest.raises(ClosedError):
        batcher.ask(PendingRequest(ids, Settings(4), None, late.put))


def test_stopping_refuses_what_is_being_answered(trained: Trained) -> None:
    batcher = Batcher(trained.reasoner(), 1, 2)
    held = Held(batcher, EXAMPLE)
    batcher.close()
    batcher.stop()
    assert isinstance(held.found.get(timeout=60), ClosedError)
    held.go.set()
    batcher.join()
    assert len(held.texts) == 1
    assert held.found.empty()


def test_a_short_answer_does_not_wait_for_a_long_one(trained: Trained, questions: list[str]) -> None:
    reasoner, settings = trained.reasoner(), Settings(60, use_latent=False)
    answers = reasoner.generate(questions, max_new_tokens=60, use_latent=False)
    order = sorted(range(len(questions)), key=lambda index: answers[index].generated_tokens)
    batcher, done = Batcher(reasoner, 2, 2), SimpleQueue[tuple[int, Generation | Exception]]()
    texts: dict[int, list[str]] = {order[0]: [], order[-1]: []}
    held = Held(batcher, EXAMPLE)

    def asked(index: int) -> PendingRequest:
        ids = trained.builder.question_ids(questions[index])
        return PendingRequest(ids, settings, texts[index].append, lambda found: done.put((len(texts[order[-1]]), found)))

    batcher.ask(asked(order[-1]))
    batcher.ask(asked(order[0]))
    held.go.set()
    short, long = answers[order[0]], answers[order[-1]]
    assert short.generated_tokens < long.generated_tokens
    # Each with the number of texts of the long one by then; an answer's last token ends it and is no text.
    assert [done.get(timeout=60) for _ in range(2)] == [(short.generated_tokens, short), (long.generated_tokens - 1, long)]
    assert len(texts[order[0]]) == short.generated_tokens - 1
    batcher.close()


def test_only_questions_with_the_same_settings_share_a_batch(trained: Trained) -> None:
    batcher = Batcher(trained.reasoner(), 3, 9)
    held, ids = Held(batcher, EXAMPLE), trained.builder.question_ids(EXAMPLE)
    sizes: list[list[int]] = []
    answer = batcher._answer
    batcher._answer = lambda batch: (sizes.append([asked.settings.max_new_tokens for asked in batch]), answer(batch))[1]  # type: ignore[method-assign]
    done: SimpleQueue[Generation | Exception] = SimpleQueue()
    for limit in (4, 5, 4, 4, 4, 5):
        batcher.ask(PendingRequest(ids, Settings(limit), None, done.put))
    for _ in range(3):
        batcher.ask(PendingRequest(ids, Settings(4), None, done.put))
    with pytest.raises(QueueFullError):
        batcher.ask(PendingRequest(ids, Settings(4), None, done.put))
    held.go.set()
    assert all(isinstance(done.get(timeout=60), Generation) for _ in range(9))
    assert sizes == [[4, 4, 4], [5, 5], [4, 4, 4], [4]]
    batcher.close()


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {port} .*; choose another --port or --host"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen on no.such.host.invalid"):
        listen("no.such.host.invalid", 0)
    with pytest.raises(UserError, match="port 70000"):
        listen("127.0.0.1", 70000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_stream(number: signal.Signals, trained: Trained) -> None:
    command = [python(), "-m", "kava", "serve", "builtin:mini", "--port", "0", "--name", MODEL]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        line = server.stdout.readline()
        url = line.split()[1]
        assert line == f"{MODEL}: {url}   (Ctrl-C ends it)\n"
        client = openai.OpenAI(api_key="none", base_url=url, max_retries=0, timeout=60)
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": EXAMPLE}], stream=True, extra_body={"use_latent": False}
        )
        chunks = [next(iter(stream))]
        server.send_signal(number)
        chunks += stream
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == trained.reasoner().generate([EXAMPLE], use_latent=False)[0].text
        out, errors = server.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
    assert (server.returncode, out, errors) == (0, "", "")


_SLOW = """
import sys
import time

import kava.generate
from kava.cli import main

tokens = kava.generate.Reasoner.tokens

def slow(*given, **named):
    for token in tokens(*given, **named):
        time.sleep(0.4)
        yield token

kava.generate.Reasoner.tokens = slow
main("serve", sys.argv[1:])
"""


@pytest.mark.parametrize("seconds", ["1", "60"])
def test_a_signal_ends_answers_that_take_too_long(seconds: str, tmp_path: Path) -> None:
    """After one second; or, of a minute, at a second Ctrl-C. The queued question is refused at once."""
    (tmp_path / "slow.py").write_text(_SLOW)
    command = [python(), str(tmp_path / "slow.py"), "builtin:mini", "--port", "0", "--name", MODEL, "--waiting", "1"]
    command += ["--batch_size", "1", "--shutdown_seconds", seconds]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        client = openai.OpenAI(api_key="none", base_url=server.stdout.readline().split()[1], max_retries=0, timeout=60)
        words: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": EXAMPLE}], "extra_body": {"use_latent": False}}
        stream = iter(client.chat.completions.create(**words, stream=True))
        chunks = [next(stream), next(stream)]
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(client.chat.completions.create, **words) for _ in range(2)]
            # The one that finds the queue full shows that the other is in it.
            ((full,), (queued,)) = wait(both, return_when=FIRST_COMPLETED)
            assert "the queue is full" in str(full.exception())
            server.send_signal(signal.SIGINT)
            with pytest.raises(openai.InternalServerError, match="shutting down; try again") as refused:
                queued.result()
        assert refused.value.status_code == 503
        chunks.append(next(stream))  # still being written
        if seconds == "60":
            server.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down; try again"):
            list(stream)
        out, errors = server.communicate(timeout=20)
    finally:
        server.kill()
        server.wait()
    assert (server.returncode, out, errors) == (0, "", "")


def _until(true: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(2000):
        if true():
            return
        event.wait(0.01)
    raise AssertionError("it did not happen within 20 seconds")
