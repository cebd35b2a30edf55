"""`python -m kava COMMAND`: the same as the `kava` program."""

from kava.cli import main

if __name__ == "__main__":
    main()
