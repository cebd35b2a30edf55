"""List, compare and export configurations: python model_configs.py --list --verbose"""

from kava.cli import main

if __name__ == "__main__":
    main("model-configs")
