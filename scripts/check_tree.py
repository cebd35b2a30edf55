"""Do files and functions keep to their sizes, and does every configuration load?  python scripts/check_tree.py

Files of src/ have at most 300 lines and their functions 50 (docstrings apart); scripts at the root have at most 10 lines of code.
Tests lie in the folder of tests/ that is called like their package.
Every YAML under configs/ opens with a comment that holds the command to launch it, and validates.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
MAX_ROOT_SCRIPT_LINES = 10
# The other folders of tests/ are those of src/kava/.
TEST_FOLDERS = {"fuzz", "invariant", "scripts", "system"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


def _docstring_lines(node: Definition) -> set[int]:
    if ast.get_docstring(node, clean=False) is None:
        return set()
    first = node.body[0]
    return set(range(first.lineno, (first.end_lineno or first.lineno) + 1))


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    return (node.end_lineno or node.lineno) - node.lineno + 1 - len(_docstring_lines(node))


def code_lines(text: str) -> int:
    """Lines that are neither blank, comment nor docstring."""
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Definition):
            documentation |= _docstring_lines(node)
    lines = enumerate(text.splitlines(), start=1)
    return sum(1 for number, line in lines if number not in documentation and line.strip() and not line.lstrip().startswith("#"))


def source_problems(root: Path) -> Iterator[str]:
    for path in sorted((root / "src").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(root)
        if (count := len(text.splitlines())) > MAX_FILE_LINES:
            yield f"{name}: {count} lines, at most {MAX_FILE_LINES}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (count := function_lines(node)) > MAX_FUNCTION_LINES:
                yield f"{name}:{node.lineno}: {node.name} has {count} lines, at most {MAX_FUNCTION_LINES}"


def test_problems(root: Path) -> Iterator[str]:
    """Tests lie where the package has what they test."""
    for path in sorted((root / "tests").rglob("test_*.py")):
        folder = path.relative_to(root / "tests").parent
        if folder.parts and folder.parts[0] not in TEST_FOLDERS and not (root / "src" / "kava" / folder).is_dir():
            yield f"{path.relative_to(root)}: there is no src/kava/{folder.as_posix()} that it could test"


def root_script_problems(root: Path) -> Iterator[str]:
    for path in sorted(root.glob("*.py")):
        if (count := code_lines(path.read_text(encoding="utf-8"))) > MAX_ROOT_SCRIPT_LINES:
            yield f"{path.name}: {count} lines of code, at most {MAX_ROOT_SCRIPT_LINES}; the work belongs in src/kava"


def opening_comment(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return "\n".join(lines)


def configuration_problems(root: Path) -> Iterator[str]:
    from kava.config import load_config
    from kava.errors import UserError

    for path in sorted([*(root / "configs").rglob("*.yaml"), *(root / "configs").rglob("*.yml")]):
        name = path.relative_to(root)
        if path.parent.name == "accelerate":
            continue  # accelerate's own format: tests/invariant/test_shipped_configs.py reads them with accelerate
        comment = opening_comment(path.read_text(encoding="utf-8"))
        launches = f"--config {name.as_posix()}" in comment or f"--config {path.stem}" in comment
        if not launches or not ("python " in comment or "kava " in comment):
            yield f"{name}: opens with no comment that launches it (# python train.py --config {name.as_posix()} ...)"
        try:
            load_config(path)
        except UserError as error:
            yield str(error)


def main() -> int:
    sys.path.insert(0, str(ROOT / "src"))
    problems = [*source_problems(ROOT), *test_problems(ROOT), *root_script_problems(ROOT), *configuration_problems(ROOT)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"check_tree: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
