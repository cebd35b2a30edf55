"""The page of the playground, built with gradio and served on the loopback address by `serve(player)`."""

import threading
import time
from collections.abc import Iterator
from importlib import resources
from typing import Any, no_type_check

from kava.errors import UserError
from kava.tools.playground.markup import answers_html, grid_html, map_html, problem_html, shown_html
from kava.tools.playground.player import Player, Progress

HOST = "127.0.0.1"
# Maximum number of concurrent runs of each event; further ones wait in the queue.
AT_ONCE = 4
# Seconds for which the accuracy map is measured when the page opens; a button measures the rest.
BUDGET = 20.0
# Number of pages of which the newest question is remembered: more than can wait for an answer.
PAGES = 1000
# Minimum seconds between two updates of the map while it is measured.
REDRAW = 0.2


def serve(player: Player, port: int | None = None, *, block: bool = True) -> tuple[str, Any]:
    """Serve the page; return its address and the gradio app, which the caller can close.

    Args:
        player: the model.
        port: port to listen on; None takes the first free one from 7860.
        block: return only after Ctrl-C.

    Raises:
        UserError: gradio is not installed, or the port is taken.
    """
    gradio = _gradio()
    app = build(player)
    player.warm_up()
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    folder = resources.files("kava.tools.playground")
    css, js = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    try:
        _, url, _ = app.queue(default_concurrency_limit=AT_ONCE, api_open=False).launch(
            server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, theme=theme, css=css,
            head=f"<script>{js}</script>", footer_links=[], ssr_mode=False,
        )  # fmt: skip
    except (OSError, OverflowError) as error:
        raise UserError(f"the playground cannot listen on {HOST}, port {port or 7860} ({error}); choose another --port") from None
    if block:
        print(f"playground: {url}   (Ctrl-C ends it)", flush=True)
        app.block_thread()
    return str(url), app


def build(player: Player) -> Any:
    """Build the page."""
    gradio = _gradio()
    suggestions = player.suggestions
    with gradio.Blocks(title="kava playground", analytics_enabled=False) as app:
        gradio.Markdown(f"# kava playground\n{_about(player)}")
        with gradio.Row():
            with gradio.Column(scale=3):
                first = suggestions[0] if suggestions else ""
                question = gradio.Textbox(first, label="Question", max_lines=8, elem_id="question", placeholder="Ask a question")
                examples = gradio.Examples(suggestions, question, label="Try one of these") if suggestions else None
            with gradio.Column(scale=2):
                latents, iterations = _sliders(player, gradio)
                ask = gradio.Button("Ask", variant="primary", elem_id="ask")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                answers = gradio.HTML(elem_id="answers")
            with gradio.Column(scale=5, min_width=300):
                grid = gradio.HTML(elem_id="grid")
        # The page numbers its requests, because two events sent in short succession may arrive in any order.
        turn = gradio.Textbox(visible="hidden")
        asked = {
            "fn": _asking(player), "inputs": [question, latents, iterations, turn], "outputs": [answers, grid],
            "js": "(question, m, t) => [question, m, t, kavaTurn()]", "show_progress": "hidden",
        }  # fmt: skip
        gradio.on([ask.click, question.submit], trigger_mode="multiple", **asked)
        if examples is not None:
            examples.load_input_event.then(**asked)
        opened = app.load(**asked)
        if player.examples:
            _add_map(player, gradio, opened, latents, iterations)
    return app


def _about(player: Player) -> str:
    method, (num_latents, num_iterations) = player.trained.model.method, player.configured_setting
    if player.parallel:
        return (
            f"`{method.name}` reads the question, thinks in **M** latent tokens in place of written words, revises all of them together "
            f"**T** times, and answers. Configured: M = {num_latents} and T = {num_iterations}."
        )
    return (
        f"`{method.name}` reads the question, thinks in **M** latent tokens in place of written words, one after the other, and answers. "
        f"Configured: M = {num_latents}."
    )


def _sliders(player: Player, gradio: Any) -> tuple[Any, Any]:
    num_latents, num_iterations = player.configured_setting
    latents = gradio.Slider(
        1, player.most[0], num_latents, step=1, label="M, latents", info="How many tokens it thinks in.", elem_id="latents"
    )
    # Hidden instead of absent: the page compares the settings of an answer with the values of both sliders.
    iterations = gradio.Slider(
        0, player.most[1], num_iterations, step=1, label="T, iterations", elem_id="iterations",
        visible=True if player.parallel else "hidden",
        info="How often it revises them; 0 takes them as the first pass (prefill) leaves them.",
    )  # fmt: skip
    return latents, iterations


def _add_map(player: Player, gradio: Any, opened: Any, latents: Any, iterations: Any) -> None:
    shown = gradio.HTML(elem_id="map")
    every = gradio.Button("Measure the whole map", size="sm", elem_id="measure")
    measuring = {"inputs": [latents, iterations], "outputs": shown, "show_progress": "hidden"}
    # Dragging a slider sends many events; only the last one is needed.
    gradio.on([latents.change, iterations.change], _measuring(player), trigger_mode="always_last", **measuring)
    # Starts after the first answer, so that it does not slow that answer down.
    opened.then(_filling(player, BUDGET), outputs=shown, show_progress="hidden")
    every.click(_filling(player), outputs=shown, show_progress="hidden")


class Turns:
    """Which question of each page is its newest; the pages that asked longest ago are forgotten.

    Args:
        pages: number of pages to remember.
    """

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._newest: dict[str, int] = {}
        # Questions are answered in several threads.
        self._lock = threading.Lock()

    def take(self, page: str, number: int) -> None:
        """Note that a page asks its question of this number; questions may arrive in any order."""
        with self._lock:
            self._newest[page] = max(self._newest.pop(page, 0), number)
            if len(self._newest) > self._pages:
                del self._newest[next(iter(self._newest))]

    def is_newest(self, page: str, number: int) -> bool:
        """Whether no later question of this page is known; true of a page that was forgotten."""
        return self._newest.get(page, number) == number

    def __len__(self) -> int:
        return len(self._newest)


def _asking(player: Player) -> Any:
    # gradio streams the output of generator functions; the run-time type checker would hide that `ask` is one, hence no_type_check.
    turns = Turns(PAGES)
    skip = _gradio().skip

    @no_type_check
    def ask(question: str, num_latents: float | int, num_iterations: float | int, turn: str) -> Iterator[tuple[Any, Any]]:
        """Stream an answer; stop when the same page asks again, so that an old answer cannot overwrite a newer one."""
        page, _, number = turn.partition(" ")
        turns.take(page, int(number))
        for shown in _answered(player, question, (int(num_latents), int(num_iterations))):
            if not turns.is_newest(page, int(number)):
                # gradio sends the last output of an event again when it ends; `skip` leaves the page unchanged.
                yield skip(), skip()
                return
            yield shown

    return ask


@no_type_check
def _answered(player: Player, question: str, setting: tuple[int, int]) -> Iterator[tuple[str, str]]:
    gold, note = player.solution(question), player.guess_reason(question)

    def shown(latent: Progress | None, written: Progress | None = None) -> str:
        return shown_html("answers", question, setting, answers_html(player, latent, written, gold, note))

    try:
        for latent in player.ask(question, *setting):
            yield shown(latent), ""
        readout = player.trace(question, *setting)
        grid = shown_html("latents", question, setting, grid_html(readout, player.marks(readout, gold), player.parallel))
        for written in player.ask(question, *setting, use_latent=False):
            yield shown(latent, written), grid
    except UserError as error:
        yield shown_html("answers", question, setting, problem_html(str(error))), ""


def _measuring(player: Player) -> Any:
    def measure(num_latents: float | int, num_iterations: float | int) -> str:
        setting = int(num_latents), int(num_iterations)
        try:
            player.measure(*setting)
        except UserError as error:
            return problem_html(str(error))
        return map_html(player)

    return measure


def _filling(player: Player, budget: float = float("inf")) -> Any:
    @no_type_check
    def fill() -> Iterator[str]:
        started = shown = time.perf_counter()
        for _ in player.measure_all():
            now = time.perf_counter()
            if now - started > budget:
                break
            if now - shown > REDRAW:
                yield map_html(player)
                shown = now
        yield map_html(player)

    return fill


def _gradio() -> Any:
    try:
        import gradio
    except ImportError:
        raise UserError("the playground needs gradio: pip install 'kava-latent[play]'") from None
    return gradio
