"""Evaluate a checkpoint: python evaluate.py --checkpoint_dir outputs/run/best_checkpoint --eval_dataset gsm8k"""

from kava.cli import main

if __name__ == "__main__":
    main("evaluate")
