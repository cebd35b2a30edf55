"""One file per command: a dataclass that tyro parses, whose `run` makes one call into the package.

Modules here import nothing heavy at the top, so that `kava --help` and `kava train --help` answer at once.
"""
