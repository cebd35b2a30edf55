"""Tables that only the HTML page has: the effects of disturbed latents, and the provenance of the numbers."""

from collections.abc import Sequence

from kava.explain.record import Interventions
from kava.report.group import Group
from kava.report.table import NOTHING, Cell, Table, share, signed
from kava.report.tables import interval_text


def interventions_table(found: Interventions, name: str) -> Table:
    """Return a table with the effect of every disturbance of the latents, with intervals."""
    rows = [
        [
            Cell("all", -1) if effect.latent is None else Cell(str(effect.latent), effect.latent),
            Cell(effect.kind),
            share(effect.changed, interval_text(effect.changed_ci95)),
            share(effect.accuracy),
            Cell(NOTHING) if effect.difference is None else signed(100 * effect.difference, interval_text(effect.difference_ci95 or [])),
            share(effect.took_donor),
        ]
        for effect in found.effects
    ]
    columns = ["Latent", "Disturbance", "Changed answers, %", "Accuracy, %", "Difference, points", "Took the donor's answer, %"]
    caption = f"Disturbed latents on the same {found.questions} questions, with 95 % intervals"
    return Table(name, "", caption, columns, rows)


def provenance_table(groups: Sequence[Group]) -> Table:
    """Return a table with the provenance of every seed, one row each."""
    rows = []
    for group in groups:
        for run in group.aggregate.runs:
            source = run.provenance
            packages = source.get("packages") or {}
            commit = f"{str(source.get('commit') or 'unknown')[:10]}{' (changed)' if source.get('dirty') else ''}"
            machine = ", ".join(source.get("gpus") or []) or str(source.get("cpu", NOTHING))
            versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft") if packages.get(name))
            cells = (group.path, commit, versions, machine, source.get("time_utc", NOTHING), group.aggregate.config_fingerprint)
            rows.append([Cell(cells[0]), Cell(str(run.seed), run.seed), *(Cell(str(cell)) for cell in cells[1:])])
    columns = ["Run", "Seed", "Commit", "Packages", "Machine", "Time (UTC)", "Configuration"]
    return Table("provenance", "", "Where the numbers come from", columns, rows)
