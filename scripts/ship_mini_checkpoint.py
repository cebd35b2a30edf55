"""Put a trained mini model into the package, where it is called `builtin:mini`:

    python train.py --config configs/mini.yaml --output_dir outputs/mini/seed_42 --seed 42
    python evaluate.py --checkpoint_dir outputs/mini/seed_42/best_checkpoint --eval_dataset test   # and the others of evaluation.datasets
    python scripts/ship_mini_checkpoint.py outputs/mini/seed_42

The weights stay as they are (fp32); what goes is this machine's name for the base, and the results go into the card.
"""

import sys
from pathlib import Path

from kava.api import Model
from kava.checkpoint.shipped import SHIPPED
from kava.results import BEST_CHECKPOINT

NAME = "builtin:mini"
MOST_BYTES = 1_000_000


def main(run: str) -> None:
    model = Model.from_pretrained(Path(run) / BEST_CHECKPOINT)
    model.save_pretrained(SHIPPED[NAME], base=NAME, name=NAME)
    size = sum(path.stat().st_size for path in SHIPPED[NAME].iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"{SHIPPED[NAME]} has {size} bytes, more than {MOST_BYTES}")
    print(f"written: {SHIPPED[NAME]} ({size / 1000:.0f} kB), {len(model.results)} results in its card")


if __name__ == "__main__":
    main(*sys.argv[1:])
