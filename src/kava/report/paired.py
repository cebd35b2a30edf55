"""Difference in accuracy between two configurations, on the same questions with the same seeds.

test = paired(kava, codi, "gsm8k")
comparison_table([("equation", "KaVa - CODI", "gsm8k", test), ...], reference)
"""

from collections.abc import Sequence

from kava.report.group import Group
from kava.report.reference import Reference
from kava.report.table import NOTHING, Cell, Table, signed
from kava.results.statistics import PairedDifference, paired_difference

DIFFERENCE = "over the seeds that both have (paired t); where that is one, over questions (Bonett and Price) with McNemar's exact p"


def paired(first: Group, second: Group, dataset: str) -> PairedDifference | None:
    """Return `first` - `second` over the seeds that both have; None if they share no seed or did not answer the same questions."""
    if not first.same_questions(second, dataset):
        return None
    a, b = first.marks(dataset), second.marks(dataset)
    seeds = [(a[seed], b[seed]) for seed in a if seed in b and a[seed]]
    if not seeds or any(x.keys() != y.keys() for x, y in seeds):
        return None
    return paired_difference([(list(x.values()), [y[key] for key in x]) for x, y in seeds])


def difference_cells(test: PairedDifference | None) -> list[Cell]:
    """Return the cells of a difference: points with their interval, and p."""
    if test is None:
        return [Cell(NOTHING)] * 2
    low, high = (100 * bound for bound in test.ci95)
    return [signed(100 * test.difference, f"[{low:+.1f}, {high:+.1f}]"), Cell(f"{test.p_value:.2g}", test.p_value)]


def comparison_table(found: Sequence[tuple[str, str, str, PairedDifference]], reference: Reference) -> Table:
    """Return a table of paired comparisons, given as (variant, compared runs, data set, difference)."""
    several = len({variant for variant, *_ in found}) > 1
    rows = [
        [
            Cell(compared, remark=variant if several else ""),
            Cell(reference.dataset_label(dataset)),
            *difference_cells(test),
            Cell(str(test.n), test.n),
            # The sign shows which side is better; McNemar's p does not.
            Cell(", ".join(f"{100 * value:+.1f} (p {p:.2g})" for value, p in zip(test.per_seed, test.mcnemar_p, strict=True))),
        ]
        for variant, compared, dataset, test in found
    ]
    columns = ["Compared", "Test set", "Difference, points", "p", "Seeds", "Each seed (exact McNemar p)"]
    caption = f"Difference of the accuracies in points with its 95 % interval, {DIFFERENCE}"
    return Table("comparisons", "Paired comparisons on the same questions", caption, columns, rows)
