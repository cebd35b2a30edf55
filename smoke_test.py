"""Check the environment and every component in under two minutes: python smoke_test.py"""

from kava.cli import main

if __name__ == "__main__":
    main("smoke-test")
