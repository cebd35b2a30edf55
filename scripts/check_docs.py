"""Does what the documents name exist?  python scripts/check_docs.py; with --write-tree it first renews the tree of src/kava.

- relative links (and their #anchors in Markdown files);
- every `path/to/file.py` and `path/to/file.py:function` of docs/PAPER_MAPPING.md, and of all others what begins with a folder of the root;
- scripts, `kava` commands, `make` targets and configurations in fenced shell blocks;
- lines of at most 160 characters;
- a blank line before each list and table, which the site's Markdown asks for and GitHub's does not;
- the site's menu (`nav` of mkdocs.yml), which must name every page of docs/;
- the annotated file tree of docs/PROJECT_INVENTORY.md, which must also name all of src/kava: its lines are the modules' first sentences.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAPER_MAPS = ("PAPER_MAPPING.md",)
INVENTORY = ROOT / "docs" / "PROJECT_INVENTORY.md"
GENERATED = ("configuration.md",)
SHELLS = {"bash", "sh", "shell", "console", "powershell"}

LONGEST = 160  # characters of a line

FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]\n]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
CODE_REFERENCE = re.compile(r"`([\w./-]+\.(?:py|yaml|md|slurm|sh))(?:::?([\w.\[\]-]+))?`")
FROM_THE_ROOT = re.compile(r"`(?:src|tests|docs|configs|suites|scripts)/(?!.*\b[A-Z]+\.\w+`)")
# What a line of a shell block names: (pattern, whether the name is a file of the project).
SCRIPT = re.compile(
    r"(?:^|[\s;&|(])(?:python3?|bash|sh|sbatch(?:\s+--?\S+)*|srun(?:\s+--?\S+)*\s+python3?)\s+([\w./-]+\.(?:py|sh|slurm))\b"
)
EXECUTABLE = re.compile(r"(?:^|[\s;&|(])\.[/\\]([\w./-]+\.(?:sh|py|ps1))\b")
COMMAND = re.compile(r"(?:^|[;&|(]\s*|\$ |python3? -m )kava\s+([a-z][\w-]*)")
TARGET = re.compile(r"(?:^|[;&|(]\s*|\$ )make((?:\s+(?:-\S+|[A-Z_]+=\S+|[a-z][\w-]*))+)")
CONFIGURATION = re.compile(r"--config[ =](configs/[\w./-]+)")


def markdown_files(root: Path) -> list[Path]:
    """Markdown of the project: what git would track, or everything where there is no git."""
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "*.md"], capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        return sorted(path for line in set(listing.stdout.splitlines()) if (path := root / line).is_file())
    return sorted(path for path in root.rglob("*.md") if not any(part.startswith(".") for part in path.relative_to(root).parts))


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading's text."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Anchors that GitHub gives the headings of a document."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", FENCE.sub("", text), re.M):
        plain = slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", ""))
        name, number = plain, 0
        while name in found:
            number += 1
            name = f"{plain}-{number}"
        found.add(name)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def link_problems(path: Path, text: str, root: Path) -> Iterator[str]:
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    for target in LINK.findall(prose):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path if not file else (root / file[1:] if file.startswith("/") else path.parent / file)
        if linked != path and not linked.exists():
            yield f"link to {target}: no such file"
        elif anchor and linked.suffix == ".md" and anchor not in anchors(text if linked == path else linked.read_text(encoding="utf-8")):
            yield f"link to {target}: no such heading"


def defined_names(source: str) -> set[str]:
    """Functions, classes, `Class.method`s and module variables of a Python file."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                names.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(prefix + node.target.id)

    visit(ast.parse(source).body, "")
    return names


def reference_problems(text: str, root: Path) -> Iterator[str]:
    for file, name in CODE_REFERENCE.findall(text):
        candidates = [root / file, root / "src" / file, root / "src" / "kava" / file, root / "docs" / file]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            yield f"`{file}`: no such file"
            continue
        wanted = name.partition("[")[0].strip(".")
        names = defined_names(found.read_text(encoding="utf-8")) if found.suffix == ".py" and wanted else set()
        # `file.py::Class::test` arrives as `Class` here; a line number needs no name.
        if names and wanted and not wanted.isdigit() and wanted not in names:
            yield f"`{file}:{name}`: the file defines no {wanted}"


def layout_problems(text: str) -> Iterator[str]:
    """Lines that are too long, and lists and tables that the site would take for part of the paragraph above them."""
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LONGEST:
            yield f"line {number} has {len(line)} characters: {LONGEST} at most"
    blank = FENCE.sub(lambda block: "\n" * block.group().count("\n"), text)
    lines = ["", *re.sub(r"<!--.*?-->", "", blank).splitlines()]
    for number, (above, line) in enumerate(pairwise(lines), 1):
        starts, follows = (re.match(r"\s*(?:[-*] |\d+\. |\|)", text) for text in (line, above))
        if starts and not follows and above.strip() and not above.startswith(("#", " ")) and not line.startswith(" "):
            yield f"line {number}: a blank line is missing above the list or table"


def nav_pages(nav: object) -> Iterator[str]:
    """The files that the menu of mkdocs.yml names, however deep."""
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else []:
        yield from nav_pages(entry)


def nav_problems(root: Path) -> Iterator[str]:
    """Pages of docs/ that the site's menu lacks, or names twice; pages that scripts/site_pages.py makes are its own affair."""
    named = list(nav_pages(yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    present = {path.relative_to(root / "docs").as_posix() for path in markdown_files(root) if path.is_relative_to(root / "docs")}
    yield from (f"nav: docs/{page} is missing" for page in sorted(present - set(named)))
    yield from (f"nav: {page} is there {named.count(page)} times" for page in sorted(set(named)) if named.count(page) > 1)


def make_targets(root: Path) -> set[str]:
    makefile = root / "Makefile"
    text = makefile.read_text(encoding="utf-8") if makefile.is_file() else ""
    return {name for line in re.findall(r"^([a-z][\w -]*):(?!=)", text, re.M) for name in line.split()}


def shell_problems(text: str, root: Path, commands: set[str], targets: set[str]) -> Iterator[str]:
    for _, language, body in FENCE.findall(text):
        if language.lower() not in SHELLS:
            continue
        for line in re.sub(r"\\\n\s*", " ", body).splitlines():
            line = re.sub(r"(^|\s)#.*", "", line)
            for file in [*SCRIPT.findall(line), *EXECUTABLE.findall(line), *CONFIGURATION.findall(line)]:
                if not Path(file).is_absolute() and not (root / file).exists():
                    yield f"`{line.strip()}`: no file {file}"
            for command in COMMAND.findall(line.strip()):
                if command not in commands:
                    yield f"`{line.strip()}`: no command kava {command}"
            for words in TARGET.findall(line.strip()):
                for word in words.split():
                    if word[0].islower() and "=" not in word and word not in targets:
                        yield f"`{line.strip()}`: no target {word} in the Makefile"


def tree_paths(block: str) -> list[str]:
    """Paths of a drawn tree: indented or with box-drawing lines, several names on a line allowed, two spaces before the remark."""
    paths: list[str] = []
    stack: list[tuple[int, str]] = []
    for line in block.splitlines():
        plain = re.sub(r"[│├└─┬|`]", " ", line)
        if not plain.strip():
            continue
        indent = len(plain) - len(plain.lstrip())
        entries = re.split(r"\s{2,}|\s+#|\t", plain.strip(), maxsplit=1)[0].split()
        while stack and stack[-1][0] >= indent:
            stack.pop()
        parent = stack[-1][1] if stack else ""
        named = [entry.rstrip(",") for entry in entries if entry not in ("...", "…")]
        paths += [parent + entry for entry in named]
        if len(named) == 1 and named[0].endswith("/"):
            stack.append((indent, "" if not stack and named[0] in ("kava/", "./") else parent + named[0]))
    return [path for path in paths if path not in ("kava/", "./")]


def tree_blocks(text: str) -> list[str]:
    """The fenced blocks that draw a tree of the sources."""
    return [block for _, language, block in FENCE.findall(text) if language in ("", "text", "tree") and re.search(r"^\W*src/", block, re.M)]


def source_paths(package: Path) -> Iterator[Path]:
    """Every directory and module below a package, in the order of a drawn tree: modules, then directories."""
    for path in sorted(package.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and not path.name.startswith((".", "__")):
            yield path
            yield from source_paths(path)
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield path


def tree_problems(text: str, root: Path) -> Iterator[str]:
    paths = {path.rstrip("/") for block in tree_blocks(text) for path in tree_paths(block)}
    for path in sorted(paths):
        if not any(root.glob(path)):
            yield f"file tree: no {path}"
    matched = {match for path in paths for match in root.glob(path)}
    present = source_paths(root / "src" / "kava")
    yield from (f"file tree: {path.relative_to(root).as_posix()} is missing" for path in present if path not in matched)


def first_sentence(path: Path) -> str:
    """What a module or a directory says of itself: its docstring, or a README's heading where there is no module."""
    module = path / "__init__.py" if path.is_dir() else path
    if module.is_file():
        said = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    else:
        page = (path / "README.md").read_text(encoding="utf-8") if (path / "README.md").is_file() else ""
        said = next(iter(re.findall(r"^# (.+)", page, re.M)), "")
    return re.split(r"(?<=\.)\s", " ".join(said.split("\n\n")[0].split()), maxsplit=1)[0].rstrip(".")


def shorten(line: str) -> str:
    """A line of the tree that is too long ends at its last stop that fits."""
    return line if len(line) <= LONGEST else re.sub(r"[:;,] [^:;,]*$", "", line[:LONGEST])


def drawn_tree(root: Path) -> str:
    """The tree of src/kava, a line for each directory and module, beside it what that says of itself."""
    package = root / "src" / "kava"
    lines = [f"src/kava/  {first_sentence(package)}".rstrip()]
    for path in source_paths(package):
        depth = len(path.relative_to(package).parts)
        name = "  " * depth + path.name + ("/" if path.is_dir() else "")
        lines.append(shorten(f"{name:<30}  {first_sentence(path)}".rstrip()))
    return "\n".join(lines) + "\n"


def main() -> int:
    sys.path.insert(0, str(ROOT / "src"))
    from kava.cli import COMMANDS

    if "--write-tree" in sys.argv[1:]:
        text = INVENTORY.read_text(encoding="utf-8")
        drawn = "".join(f"```text\n{block}```" for block in tree_blocks(text))
        INVENTORY.write_text(text.replace(drawn, f"```text\n{drawn_tree(ROOT)}```"), encoding="utf-8")
    problems = [f"mkdocs.yml: {problem}" for problem in nav_problems(ROOT)]
    for path in markdown_files(ROOT):
        text = path.read_text(encoding="utf-8")
        found = [*link_problems(path, text, ROOT), *shell_problems(text, ROOT, set(COMMANDS), make_targets(ROOT))]
        if path.parent in (ROOT, ROOT / "docs") and path.name not in GENERATED:
            found += layout_problems(text)
        found += [problem for problem in reference_problems(text, ROOT) if path.name in PAPER_MAPS or FROM_THE_ROOT.match(problem)]
        if path == INVENTORY:
            found += tree_problems(text, ROOT)
        problems += [f"{path.relative_to(ROOT)}: {problem}" for problem in found]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"check_docs: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
