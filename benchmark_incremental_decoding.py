"""Decoding with a cache against without: python benchmark_incremental_decoding.py --model default --max_new_tokens 50"""

from kava.cli import main

if __name__ == "__main__":
    main("benchmark-decoding")
