"""Ask a trained model: python inference.py --checkpoint outputs/run/best_checkpoint --mode interactive"""

from kava.cli import main

if __name__ == "__main__":
    main("inference")
