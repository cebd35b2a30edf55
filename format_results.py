"""LaTeX and CSV tables: python format_results.py --input_dir outputs/ --output_latex paper_tables.tex --output_csv results.csv"""

from kava.cli import main

if __name__ == "__main__":
    main("format-results")
