"""The playground's page, with gradio: serve(player) on the loopback address."""

from collections.abc import Iterator
from html import escape
from typing import Any, no_type_check

from kava.errors import UserError
from kava.explain.readout import Readout
from kava.tools.playground.player import Measured, Player, Progress

HOST = "127.0.0.1"
# Threads that compute at once; further users wait in the queue.
AT_ONCE = 4
EXAMPLES = 4
MESSAGE_SECONDS = 20
_CSS = """
.kava-trace { overflow-x: auto } .kava-trace table { border-collapse: collapse; font-size: .9rem }
.kava-trace th, .kava-trace td { padding: .2rem .45rem; border: 1px solid var(--border-color-primary) !important; text-align: center }
.kava-trace td { font-family: ui-monospace, monospace; background: rgba(0, 114, 178, calc(.5 * var(--share))) }
"""


def serve(player: Player, port: int | None = None, *, block: bool = True) -> tuple[str, Any]:
    """Serve the page; returns its address and the gradio app (to close).

    Args:
        player: the model.
        port: None takes the first free one from 7860 on.
        block: stay until Ctrl-C.

    Raises:
        UserError: gradio is not installed, or the port is taken.
    """
    gradio = _gradio()
    app = build(player)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, url, _ = app.queue(default_concurrency_limit=AT_ONCE, api_open=False).launch(
            server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, theme=theme, css=_CSS,
            footer_links=[], ssr_mode=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"the playground cannot listen on {HOST}, port {port or 7860} ({error}); choose another --port") from None
    if block:
        print(f"playground: {url}   (Ctrl-C ends it)", flush=True)
        app.block_thread()
    return str(url), app


def build(player: Player) -> Any:
    """The page."""
    gradio = _gradio()
    (num_latents, num_iterations), method = player.trained_setting, player.trained.model.method
    parallel = method.latents == "parallel"
    with gradio.Blocks(title="kava playground", analytics_enabled=False) as app:
        gradio.Markdown(
            f"# kava playground\n`{method.name}` thinks in M = {num_latents} latents"
            + (f" and T = {num_iterations} iterations." if parallel else ", one after the other.")
        )
        question = gradio.Textbox(label="Question", lines=2, elem_id="question", placeholder=_hint(player))
        with gradio.Row():
            latents = gradio.Slider(1, player.most[0], num_latents, step=1, label="M, latents", elem_id="latents")
            words = {"label": "T, iterations", "elem_id": "iterations", "interactive": parallel}
            iterations = gradio.Slider(0, player.most[1], num_iterations, step=1, **words)
        ask = gradio.Button("Ask", variant="primary", elem_id="ask")
        if player.examples:
            gradio.Examples([example.question for example in player.examples[:EXAMPLES]], question, label="Try one of these")
        with gradio.Row():
            columns = [
                _answer_column(gradio, *words) for words in (("Latent reasoning", "latent"), ("Full CoT of the same model", "written"))
            ]
        trace = gradio.HTML(label="What the latents decode to", elem_id="trace")
        outputs = [*columns[0], *columns[1], trace]
        asked = {"fn": _asking(player, gradio), "inputs": [question, latents, iterations], "outputs": outputs}
        ask.click(**asked)
        question.submit(**asked)
        if player.examples:
            gradio.Markdown(f"## M and T on {len(player.examples)} sample questions\nMove a slider to measure its setting.")
            table, history = gradio.HTML(elem_id="measured"), gradio.State([])
            measuring = {"fn": _measuring(player, gradio), "inputs": [latents, iterations, history], "outputs": [table, history]}
            # Of the many events of a slider that is dragged, the last one counts.
            gradio.on([latents.change, iterations.change, app.load], trigger_mode="always_last", **measuring)
    return app


def trace_html(readout: Readout) -> str:
    """A row per iteration, a column per latent; the stronger the colour, the more probable the token."""
    head = "".join(f'<th scope="col">{latent}</th>' for latent in range(len(readout.tokens[0])))
    rows = []
    for iteration, (latents, chances) in enumerate(zip(readout.tokens, readout.probabilities, strict=True)):
        name = "prefill" if iteration == 0 and len(readout.tokens) > 1 else str(iteration)
        cells = "".join(_trace_cell(tokens, own) for tokens, own in zip(latents, chances, strict=True))
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    caption = "<caption>What the latents decode to: top token by iteration and latent</caption>"
    return f'<div class="kava-trace"><table>{caption}<tr><th scope="col">iteration</th>{head}</tr>{"".join(rows)}</table></div>'


def note_html(reason: str | None) -> str:
    """A line under the answers, where they can only be a guess."""
    return f'<p class="kava-note" role="note"><strong>A guess:</strong> {escape(reason)}.</p>' if reason else ""


def measured_html(history: list[Measured]) -> str:
    """A row per measured setting, the newest first."""
    names = ("M", "T", "accuracy, %", "95 %", "same answer as trained, %", "same answer as its full CoT, %", "forward passes")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(
        f"<tr><td>{m.num_latents}</td><td>{m.num_iterations}</td><td>{100 * m.accuracy:.1f}</td>"
        f"<td>{100 * m.interval[0]:.1f} to {100 * m.interval[1]:.1f}</td><td>{100 * m.same_as_trained:.1f}</td>"
        f"<td>{100 * m.same_as_written:.1f}</td><td>{m.forward_passes:.1f}</td></tr>"
        for m in reversed(history)
    )
    return f'<div class="kava-trace" style="--share:0"><table><tr>{head}</tr>{rows}</table></div>'


def _asking(player: Player, gradio: Any) -> Any:
    # gradio streams what is a generator function; the wrapper that checks types at run time hides that it is one.
    @no_type_check
    def ask(question: str, num_latents: float | int, num_iterations: float | int) -> Iterator[tuple[str, str, str, str, str]]:
        setting = int(num_latents), int(num_iterations)
        latent = written = trace = None
        try:
            note = note_html(player.why_unknowable(question))
            for latent in player.ask(question, *setting):
                yield latent.text, _cost(latent), "", "", note
            trace = note + trace_html(player.trace(question, *setting))
            for written in player.ask(question, *setting, use_latent=False):
                yield latent.text, _cost(latent), written.text, _cost(written), trace
        except UserError as error:
            # gradio.Error would write "Error" over every field and leave the last question's trace beside it.
            gradio.Warning(str(error), duration=MESSAGE_SECONDS)
            yield "", "", "", "", ""

    return ask


def _measuring(player: Player, gradio: Any) -> Any:
    def measure(num_latents: float | int, num_iterations: float | int, history: list[Measured]) -> tuple[str, list[Measured]]:
        try:
            found = player.measure(int(num_latents), int(num_iterations))
        except UserError as error:
            gradio.Warning(str(error), duration=MESSAGE_SECONDS)
            return measured_html(history), history
        history = [*(item for item in history if item != found), found]
        return measured_html(history), history

    return measure


def _answer_column(gradio: Any, title: str, name: str) -> tuple[Any, Any]:
    with gradio.Column():
        answer = gradio.Textbox(label=title, elem_id=name, interactive=False, lines=2)
        cost = gradio.Textbox(label=f"Cost: {title}", elem_id=f"{name}-cost", interactive=False)
    return answer, cost


def _cost(progress: Progress) -> str:
    dots = "" if progress.done else " ..."
    return f"{progress.forward_passes} forward passes, {1000 * progress.seconds:.0f} ms{dots}"


def _trace_cell(tokens: list[str], chances: list[float]) -> str:
    every = ", ".join(f"{token} {chance:.2f}" for token, chance in zip(tokens, chances, strict=True))
    return f'<td style="--share:{chances[0]:.3f}" title="{escape(every)}">{escape(tokens[0])}</td>'


def _hint(player: Player) -> str:
    return player.examples[0].question if player.examples else "Ask a question that ends in a number"


def _gradio() -> Any:
    try:
        import gradio
    except ImportError:
        raise UserError("the playground needs gradio: pip install -e '.[play]'") from None
    return gradio
