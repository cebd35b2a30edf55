"""Split rows that were made from templates into train.jsonl and validation.jsonl, so that no template is in both.

python scripts/hold_out_templates.py DATA_DIR/gsm8k_perturbed_train.jsonl.gz outputs/perturbed

Rows that differ in their numbers alone are one problem: held out row by row, a validation would ask what was learned by heart.
"""

import argparse
import gzip
import hashlib
import json
from pathlib import Path


def main() -> None:
    """Every template goes where a hash of its number says: a function of the template alone, whatever the order of the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="JSON lines with a field `template`, perhaps gzipped")
    parser.add_argument("directory", type=Path, help="where train.jsonl and validation.jsonl go")
    parser.add_argument("--share", type=float, default=0.02, help="of the templates, for validation (default: 0.02)")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if arguments.rows.suffix == ".gz" else open
    counts = {"train": 0, "validation": 0}
    with (
        opened(arguments.rows, "rt", encoding="utf-8") as lines,
        (arguments.directory / "train.jsonl").open("w", encoding="utf-8") as train,
        (arguments.directory / "validation.jsonl").open("w", encoding="utf-8") as validation,
    ):
        for line in lines:
            held_out = _place(json.loads(line)["template"]) < arguments.share
            (validation if held_out else train).write(line)
            counts["validation" if held_out else "train"] += 1
    print(f"{arguments.directory}: {counts['train']:,} rows for training, {counts['validation']:,} for validation")


def _place(template: object) -> float:
    """A number in [0, 1) that depends on the template alone."""
    return int(hashlib.sha256(str(template).encode()).hexdigest()[:8], 16) / 16**8


if __name__ == "__main__":
    main()
