"""Draw latents that turn into steps, from a run of the shipped model: python scripts/draw_latents.py docs/pictures/latents.svg

A column per latent, a row per pass, in each cell the token that the latent decodes to, the darker the more probable. Results of the
question's steps are framed where they stand at the end.
"""

import sys
from html import escape
from pathlib import Path

import kava
from kava.data.mini.problems import EXAMPLE
from kava.data.mini.recognise import read_question

LEFT, TOP, CELL, ROW, WIDTH = 66, 84, 39, 28, 704
STYLE = """
  .panel { fill: #ffffff; } .ink { fill: #1d2433; } .dim { fill: #667085; } .cell { fill: #3f51b5; } .sure { fill: #ffffff; }
  .result { fill: none; stroke: #d9480f; stroke-width: 2.5; } .step { stroke: #d9480f; stroke-width: 2; }
  text { font: 13px ui-sans-serif, system-ui, "DejaVu Sans", sans-serif; }
  .token { font-family: ui-monospace, "DejaVu Sans Mono", monospace; text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    .panel { fill: #1a1f2b; } .ink { fill: #e6e9f0; } .dim { fill: #98a2b3; } .cell { fill: #7c8cff; } .sure { fill: #10131a; }
    .result { stroke: #ffa94d; } .step { stroke: #ffa94d; }
  }
"""


def wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def steps_at(last: list[str], chain: list[str]) -> list[tuple[int, int, str]]:
    """(first column, last column, step) of each step of the written chain that the last pass spells out, in order."""
    found, start = [], 0
    for step in chain:
        tokens = step.replace("+", " + ").replace("-", " - ").replace("*", " * ").replace("=", " = ").split()
        for column in range(start, len(last)):
            if last[column : column + len(tokens)] == tokens:
                found.append((column, column + len(tokens) - 1, step))
                start = column + len(tokens)
                break
    return found


def box(look: str, x: int, y: int, more: str = "") -> str:
    return f'<rect class="{look}"{more} x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{ROW - 2}" rx="4"/>'


def picture(model: kava.Model, question: str) -> str:
    """The SVG of one question."""
    thoughts = model.think(question)
    tokens = [[latent[0].strip() for latent in iteration] for iteration in thoughts.tokens[0]]
    chances = [[latent[0] for latent in iteration] for iteration in thoughts.probabilities[0]]
    in_latents, in_words = model.answer(question), model.answer(question, use_latent=False, max_new_tokens=64)
    written = [part.partition(">>")[0] for part in in_words.text.split("<<")[1:]]
    steps = steps_at(tokens[-1], written)
    bottom = TOP + ROW * len(tokens)
    parts = [f'<text class="ink" x="12" y="{24 + 18 * row}">{escape(line)}</text>' for row, line in enumerate(wrapped(question, 96))]
    parts += [f'<text class="dim token" x="{LEFT + CELL * (i + 0.5):g}" y="{TOP - 6}">{i + 1}</text>' for i in range(len(tokens[0]))]
    for row, (line, sure) in enumerate(zip(tokens, chances, strict=True)):
        y = TOP + ROW * row
        parts.append(f'<text class="dim" x="12" y="{y + 19}">{"prefill" if not row else f"pass {row}"}</text>')
        for column, (token, chance) in enumerate(zip(line, sure, strict=True)):
            x = LEFT + CELL * column
            shade = round(chance * 5) / 5  # in fifths, so that rounding on another machine draws the same picture
            parts.append(box("cell", x, y, f' opacity="{0.06 + 0.84 * shade:.2f}"'))
            look = "sure" if shade > 0.7 else "ink"
            parts.append(f'<text class="token {look}" x="{x + CELL / 2:g}" y="{y + 19}">{escape(token)}</text>')
    for first, last, step in steps:
        x, wide = LEFT + CELL * first, CELL * (last - first + 1)
        parts.append(box("result", LEFT + CELL * last, bottom - ROW))
        parts.append(f'<line class="step" x1="{x + 3}" x2="{x + wide - 3}" y1="{bottom + 8}" y2="{bottom + 8}"/>')
        parts.append(f'<text class="token ink" x="{x + wide / 2:g}" y="{bottom + 26}">{escape(step)}</text>')
    chain = read_question(question, 5)
    if chain is None:
        raise SystemExit("draw_latents: the question is none of the mini experiment's; take one of `kava demo`'s, or README's")
    gold = str(chain.values(5)[-1])
    answers = [("in latents", in_latents), ("in words", in_words)]
    said = "    ".join(
        f"{how}: {answer.answer}, {'right' if answer.answer == gold else 'wrong'}, {answer.forward_passes} forward passes"
        for how, answer in answers
    )
    parts.append(f'<text class="ink" xml:space="preserve" x="12" y="{bottom + 54}">{escape(said)}</text>')
    height = bottom + 70
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n'
        f"<title>What {len(tokens[0])} latents decode to, pass by pass</title>\n<style>{STYLE}</style>\n"
        f'<rect class="panel" width="{WIDTH}" height="{height}" rx="10"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(kava.load("builtin:mini", device="cpu"), EXAMPLE), encoding="utf-8")
