"""Train one method with one seed: python train.py --config configs/llama1b_aug.yaml --output_dir outputs/run --seed 42"""

from kava.cli import main

if __name__ == "__main__":
    main("train")
