"""What was measured of growth (`kava.tools.bench.scaling`, `kava.tools.bench.data`) as tables, a figure and a verdict."""

from typing import TYPE_CHECKING, Any

from kava.tools.bench.record import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

# By how much a measured exponent may lie above that of its formula.
SECONDS_TOLERANCE, MEMORY_TOLERANCE = 0.25, 0.1
_MIB = 2**20
_PANEL = 2.3


def faster_than_formulas(scaling: dict[str, Any]) -> list[str]:
    """Axes along which seconds or bytes grow faster than their formula."""
    problems = []
    for axis, entry in scaling.items():
        for quantity, tolerance in (("seconds", SECONDS_TOLERANCE), ("bytes", MEMORY_TOLERANCE)):
            measured, formula = entry[quantity]["exponent"], entry[quantity]["formula_exponent"]
            if not measured <= formula + tolerance:
                problems.append(f"{quantity} grow with {axis} to the power {measured:.2f}, the formula's is {formula:.2f}")
    return problems


def over_formula(entry: dict[str, Any]) -> float:
    """How many times less than its formula a quantity grows from the first point to the last."""
    return float(entry["formula_growth"] / entry["growth"])


def scaling_table(scaling: dict[str, Any]) -> "Table":
    """Per axis how seconds and bytes grow, and the exponents of the power laws through them."""
    table = new_table("growth of a training step", "from", "to", "seconds", "power (formula)", "step alone, MiB", "power (formula)")
    for axis, entry in scaling.items():
        cells = []
        for quantity, unit, digits in (("seconds", 1, 2), ("bytes", _MIB, 0)):
            found = entry[quantity]
            first, last = (value / unit for value in (found["measured"][0], found["measured"][-1]))
            cells += [f"{first:.{digits}f} .. {last:.{digits}f}", f"{found['exponent']:.2f} ({found['formula_exponent']:.2f})"]
        table.add_row(axis, str(entry["values"][0]), str(entry["values"][-1]), *cells)
    return table


def long_table(long: dict[str, Any]) -> "Table":
    """One long trace: compressed alone, and in a whole step."""
    table = new_table(f"a trace of {long['cot']} tokens to {long['kept']} entries", "seconds", "peak MiB", "of it the work's own")
    for name, entry in (("compress, 30 layers x 3 heads x 64", long["compress"]), (f"step, {long['step']['shape']}", long["step"])):
        table.add_row(name, f"{entry['seconds']:.2f}", f"{entry['peak'] / _MIB:.0f}", f"{(entry['peak'] - entry['rest']) / _MIB:.0f}")
    return table


def data_table(data: dict[str, Any]) -> "Table":
    """Two starts on the same training data."""
    title = f"{data['rows']:,} training rows ({data['source_bytes'] / _MIB:.0f} MiB; {data['cache_bytes'] / _MIB:.0f} MiB tokenised)"
    table = new_table(title, "seconds", "processor seconds", "peak MiB", "before it")
    for name in ("first", "second"):
        entry = data[name]
        numbers = f"{entry['seconds']:.2f}", f"{entry['cpu_seconds']:.2f}", f"{entry['peak'] / _MIB:.0f}", f"{entry['rest'] / _MIB:.0f}"
        table.add_row(f"{name} start", *numbers)
    table.add_row(f"a batch of {data['batch']}", f"{data['batch_seconds']:.4f}", "", "", "")
    sorted_share, shuffled = (100 * data["padding"][name] for name in ("training", "shuffled"))
    table.caption = (
        f"padding in training's batches of {data['batch']}: {sorted_share:.1f} % of all positions; in shuffled ones {shuffled:.1f} %"
    )
    return table


def scaling_figure(scaling: dict[str, Any]) -> "Figure":
    """Seconds and bytes against each axis, with what the formulas say from the same first point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL * len(scaling), 2 * _PANEL), layout="constrained")
    panels = figure.subplots(2, len(scaling), squeeze=False, sharey="row")
    for row, (quantity, label, unit) in enumerate((("seconds", "seconds", 1.0), ("bytes", "step alone, MiB", float(_MIB)))):
        for axes, (name, entry) in zip(panels[row], scaling.items(), strict=True):
            found = entry[quantity]
            first = found["measured"][0] / found["formula"][0] / unit
            axes.plot(entry["values"], [value / unit for value in found["measured"]], "o-", color="#0072B2", label="measured")
            axes.plot(entry["values"], [value * first for value in found["formula"]], "--", color="#E69F00", label="formula")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlabel(name)
            axes.set_title(f"power {found['exponent']:.2f} (formula's {found['formula_exponent']:.2f})", fontsize=8)
        panels[row][0].set_ylabel(label)
    panels[0][0].legend(fontsize=8)
    return figure
