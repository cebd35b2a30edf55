"""Train, evaluate and aggregate several seeds: python run_multi_seed.py --config llama1b_aug --seeds 42 123 456"""

from kava.cli import main

if __name__ == "__main__":
    main("run-multi-seed")
