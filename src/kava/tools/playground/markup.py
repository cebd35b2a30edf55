"""HTML of the playground: answers side by side, the grid of decoded latents, and the map of accuracy over M and T."""

from collections.abc import Iterable, Sequence
from html import escape

from kava.explain.questions import Solution
from kava.explain.readout import Readout
from kava.tools.playground.player import Measured, Player, Progress

_EARLY_END = "It was trained on chains without the last step (<code>dataset.drop_last_step</code>), so its own chains end one step early."


def answers_html(player: Player, latent: Progress | None, written: Progress | None, gold: Solution | None, note: str | None) -> str:
    """Return both answers of the model with their cost, marked right or wrong, next to the gold answer if there is one."""
    done = written is not None and written.done
    about = f'<p class="kava-soft">{_EARLY_END}</p>' if player.hides_last_step and done else ""
    cards = [_card("In latents", latent, gold), _card("In words, by the same model", written, gold, about)]
    if gold is not None:
        steps = "".join(f"<li>{escape(step)}</li>" for step in gold.steps)
        answer = f'<p class="kava-answer">{escape(gold.answer)}</p>'
        cards.append(f'<section class="kava-card gold"><h3>Gold answer</h3>{answer}<ol>{steps}</ol></section>')
    return f'<div class="kava-cards" data-done="{str(done).lower()}">{"".join(cards)}</div>{note_html(note)}'


def shown_html(kind: str, question: str, setting: tuple[int, int], content: str) -> str:
    """Wrap content that the page shows only while its inputs equal this question, M and T."""
    asked = escape(f"{setting[0]} {setting[1]} {' '.join(question.split())}")
    return f'<div class="kava-shown {kind}" data-asked="{asked}">{content}</div>'


def note_html(reason: str | None) -> str:
    """Return the note under answers that can only be guesses, with the reason; empty if there is none."""
    return f'<p class="kava-note" role="note"><strong>A guess:</strong> {escape(reason)}.</p>' if reason else ""


def problem_html(problem: str) -> str:
    """Return the note that says why there is no answer."""
    return f'<p class="kava-note" role="alert">{escape(problem)}.</p>'


def _card(title: str, progress: Progress | None, gold: Solution | None, about: str = "") -> str:
    if progress is None:
        return f'<section class="kava-card"><h3>{title}</h3><p class="kava-answer">…</p></section>'
    answer = escape(progress.answer or "no answer") if progress.done else "…"
    if progress.done and gold is not None:
        mark = "right" if gold.agrees(progress.answer) else "wrong"
        answer += f' <span class="kava-mark {mark}">{mark}</span>'
    cost = (
        f'<dl class="kava-cost"><div><dd>{progress.forward_passes}</dd><dt>forward passes</dt></div>'
        f"<div><dd>{1000 * progress.seconds:.0f}</dd><dt>ms</dt></div></dl>"
    )
    chain = f'<p class="kava-chain">{escape(progress.chain)}</p>' if progress.chain else ""
    return f'<section class="kava-card"><h3>{title}</h3><p class="kava-answer">{answer}</p>{cost}{chain}{about}</section>'


def grid_html(readout: Readout, marks: Sequence[Sequence[Sequence[int]]], parallel: bool = True) -> str:
    """Return the grid of decoded latents: a row per iteration, a column per latent; colour shows probability, marks show step results.

    Args:
        readout: what the latents decode to.
        marks: step results that each latent decodes to, see `Player.marks`.
        parallel: the latents are updated in parallel; otherwise they are generated sequentially and fill one row.
    """
    rows = []
    for iteration, (latents, chances) in enumerate(zip(readout.tokens, readout.probabilities, strict=True)):
        name, when = (str(iteration), f", iteration {iteration}") if iteration else ("prefill", ", prefill") if parallel else ("token", "")
        cells = "".join(
            _cell(f"latent {latent}{when}", tokens, own, marks[iteration][latent])
            for latent, (tokens, own) in enumerate(zip(latents, chances, strict=True))
        )
        rows.append((name, cells))
    ringed = " A ring marks the result of the step with that number; a number can also be there by accident."
    about = f"The stronger the colour, the more probable.{ringed if any(any(row) for row in marks) else ''}"
    title = "What the latents decode to"
    return _table(
        "latents-grid",
        title,
        about,
        "iteration" if parallel else "latent",
        range(len(readout.tokens[0])),
        rows,
        "each cell shows its most likely tokens",
    )


def _table(name: str, title: str, about: str, corner: str, columns: Iterable[int], rows: Iterable[tuple[str, str]], tip: str) -> str:
    """Return a table with a line below it that shows details of the cell under the pointer."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(f'<tr><th scope="row">{row}</th>{cells}</tr>' for row, cells in rows)
    return (
        f'<div class="kava-table {name}"><h2 id="{name}-title">{title}</h2><p class="kava-soft" id="{name}-about">{about}</p>'
        f'<div class="kava-scroll"><table role="grid" aria-labelledby="{name}-title" aria-describedby="{name}-about">'
        f'<tr><th scope="col">{corner}</th>{head}</tr>{body}</table></div>'
        f'<output class="kava-tip">Point at a cell, tap it, or move with the arrow keys: {tip}.</output></div>'
    )


def _cell(place: str, tokens: Sequence[str], chances: Sequence[float], steps: Sequence[int]) -> str:
    every = ", ".join(f"'{token}' {100 * chance:.0f} %" for token, chance in zip(tokens, chances, strict=True))
    numbers = ", ".join(map(str, steps))
    result = f" (the result of step {numbers})" if steps else ""
    kind, mark = (' class="result"', f"<sup>{numbers}</sup>") if steps else ("", "")
    tip = escape(f"{place}: {every}{result}")
    return f'<td{kind} tabindex="-1" style="--share:{chances[0]:.3f}" data-tip="{tip}"><span>{escape(tokens[0])}</span>{mark}</td>'


def map_html(player: Player) -> str:
    """Return the map of accuracy on the sample over M (columns) and T (rows). Unmeasured cells show a dot; the page marks its setting."""
    several, iterations = player.axes()
    what, corner, axes = ("M and T", "T \\ M", "M across, T down") if player.parallel else ("M", "M", "by M")
    found = {(item.num_latents, item.num_iterations): item for item in player.measured()}
    rows = (
        (str(t) if player.parallel else "", "".join(_setting(found.get((m, t)), (m, t), player.configured_setting) for m in several))
        for t in iterations
    )
    about = (
        f"Percent of {len(player.examples)} sample questions answered correctly: {axes}. Thick border: as configured; dashed: the "
        f"sliders. Always giving the most common answer: {100 * player.chance:.0f} %."
    )
    return _table("map", f"Accuracy over {what}", about, corner, several, rows, f"a click or Enter sets the sliders to its {what}")


def _setting(found: Measured | None, setting: tuple[int, int], trained: tuple[int, int]) -> str:
    m, t = setting
    opening = f'<td class="{"trained" if setting == trained else ""}" tabindex="-1" data-m="{m}" data-t="{t}"'
    if found is None:
        return f'{opening} data-tip="M = {m}, T = {t}: not measured yet">·</td>'
    low, high = (100 * bound for bound in found.interval)
    tip = (
        f"M = {m}, T = {t}: {100 * found.accuracy:.1f} % right (95 % interval {low:.1f} to {high:.1f}), "
        f"{found.forward_passes:.1f} forward passes; {100 * found.same_as_configured:.0f} % answered as with the configured M and T, "
        f"{100 * found.same_as_written:.0f} % as in words"
    )
    return f'{opening} style="--share:{found.accuracy:.3f}" data-tip="{tip}">{100 * found.accuracy:.0f}</td>'
