"""Mean and deviation over seeds: python aggregate_multi_seed.py --seed_dirs A B C --datasets gsm8k --output_yaml F"""

from kava.cli import main

if __name__ == "__main__":
    main("aggregate")
