"""The checks of documents and tree find what they are there to find."""

from pathlib import Path

import pytest

from helpers.scripts import load_script

SCRIPTS = Path(__file__).parents[2] / "scripts"


docs = load_script("check_docs")
tree = load_script("check_tree")

MAKEFILE = ".PHONY: demo test\nVENV ?= .venv\nsetup setup-dev:\n\ttrue\ndemo: setup ## run\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for file, text in {
        "train.py": "x = 1\n",
        "run.sh": "",
        "job.slurm": "",
        "Makefile": MAKEFILE,
        "docs/a.md": "# Top\n## Some `code` here\n## Twice\n## Twice\n",
        "configs/mini.yaml": "# python train.py --config configs/mini.yaml\n",
        "src/kava/__init__.py": "",
        "src/kava/config.py": "LIMIT = 1\nclass Box:\n    size: int = 0\n    def lid(self): ...\ndef load(): ...\n",
        "src/kava/data/formats.py": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


def test_links(root: Path) -> None:
    good = "[a](docs/a.md) [b](docs/a.md#some-code-here) [c](docs/a.md#twice-1) [d](https://x.org/y) ![e](train.py) [f](#here)\n# Here\n"
    ignored = "`[x](gone.md)`\n```text\n[x](gone.md)\n```\n"
    assert list(docs.link_problems(root / "README.md", good + ignored, root)) == []
    (root / "README.md").write_text(good)
    bad = "[a](docs/b.md) [b](docs/a.md#missing) [c](docs/a.md#twice-2)"
    assert list(docs.link_problems(root / "README.md", bad, root)) == [
        "link to docs/b.md: no such file",
        "link to docs/a.md#missing: no such heading",
        "link to docs/a.md#twice-2: no such heading",
    ]


def test_references_of_a_paper_map(root: Path) -> None:
    good = "`src/kava/config.py:load` `config.py:Box.lid` `src/kava/config.py:LIMIT` `config.py:Box` `config.py:12` `kava/config.py` `pip`"
    assert list(docs.reference_problems(good, root)) == []
    assert list(docs.reference_problems("`config.py:gone` `src/kava/gone.py:load` `config.py::Box.gone`", root)) == [
        "`config.py:gone`: the file defines no gone",
        "`src/kava/gone.py`: no such file",
        "`config.py:Box.gone`: the file defines no Box.gone",
    ]


def test_paths_from_the_root_are_told_from_others(root: Path) -> None:
    text = "`src/kava/gone.py` `src/kava/config.py:gone` `aggregated_results.yaml` `src/kava/eviction/NAME.py` `outputs/gone.yaml`"
    assert [problem for problem in docs.reference_problems(text, root) if docs.FROM_THE_ROOT.match(problem)] == [
        "`src/kava/gone.py`: no such file",
        "`src/kava/config.py:gone`: the file defines no gone",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("python train.py --config configs/mini.yaml", None),
        ("    python train.py \\\n    --config configs/gone.yaml", "no file configs/gone.yaml"),
        ("for d in a b; do python gone.py $d; done", "no file gone.py"),
        ("sbatch --export=CONFIG=mini --time=1 job.slurm", None),
        ("sbatch --export=CONFIG=mini gone.slurm", "no file gone.slurm"),
        ("./run.sh mini", None),
        ("./gone.sh", "no file gone.sh"),
        (".\\gone.ps1 -Config x", "no file gone.ps1"),
        ("kava train --seed 1", None),
        ("kava trian", "no command kava trian"),
        ("x && python -m kava trian", "no command kava trian"),
        ("conda create -n kava python=3.10", None),
        ("conda activate kava", None),
        ("make -j2 demo WORKERS=3", None),
        ("make gone", "no target gone in the Makefile"),
        ("# python gone.py", None),
        ("python -c 'import torch'", None),
        ("python /elsewhere/gone.py", None),
    ],
)
def test_shell_blocks(root: Path, line: str, problem: str | None) -> None:
    found = list(docs.shell_problems(f"```bash\n{line}\n```\n", root, {"train"}, docs.make_targets(root)))
    assert [text.rpartition("`: ")[2] for text in found] == ([problem] if problem else [])
    assert list(docs.shell_problems(f"```text\n{line}\n```\n", root, {"train"}, set())) == []


@pytest.mark.parametrize(
    "drawing",
    [
        """
train.py run.sh   scripts
configs/          YAML
src/kava/
  config.py       settings
  data/           rows
    formats.py    row formats
""",
        """
kava/
├── train.py  # train
├── docs/
│   └── a.md
└── src/kava/
    ├── config.py
    └── data/
        └── formats.py
""",
    ],
)
def test_file_trees(root: Path, drawing: str) -> None:
    assert list(docs.tree_problems(f"```text\n{drawing}```\n", root)) == []
    gone = drawing.replace("formats.py", "gone.py").replace("config.py", "gone.py")
    assert list(docs.tree_problems(f"```text\n{gone}```\n", root)) == [
        "file tree: no src/kava/data/gone.py",
        "file tree: no src/kava/gone.py",
        "file tree: src/kava/config.py is missing",
        "file tree: src/kava/data/formats.py is missing",
    ]


def test_a_document_without_a_tree_lacks_every_file(root: Path) -> None:
    assert [problem.split()[2] for problem in docs.tree_problems("no tree here", root)] == [
        "src/kava/config.py", "src/kava/data", "src/kava/data/formats.py",
    ]  # fmt: skip


def test_the_drawn_tree_is_complete_and_says_what_modules_say(root: Path) -> None:
    (root / "src/kava/__init__.py").write_text('"""A package. More of it."""\n')
    (root / "src/kava/data/formats.py").write_text('"""Row formats,\nnamed.\n\nMore."""\n')
    drawn = docs.drawn_tree(root)
    assert [line.split() for line in drawn.splitlines()] == [
        ["src/kava/", "A", "package"], ["config.py"], ["data/"], ["formats.py", "Row", "formats,", "named"],
    ]  # fmt: skip
    assert list(docs.tree_problems(f"```text\n{drawn}```\n", root)) == []


def test_sizes(root: Path) -> None:
    assert list(tree.source_problems(root)) == []
    body = "\n".join(["    x = 1"] * 49)
    (root / "src/kava/long.py").write_text(f'def fits():\n    """Not\n\n    counted."""\n{body}\n\n\ndef long():\n{body}\n    x = 2\n')
    assert list(tree.source_problems(root)) == ["src/kava/long.py:56: long has 51 lines, at most 50"]
    (root / "src/kava/long.py").write_text("x = 1\n" * 301)
    assert list(tree.source_problems(root)) == ["src/kava/long.py: 301 lines, at most 300"]


def test_a_test_lies_beside_what_it_tests(tmp_path: Path) -> None:
    for folder in ("src/kava/data/mini", "tests/data/mini", "tests/system"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("test_cli.py", "data/mini/test_words.py", "system/test_chain.py"):
        (tmp_path / "tests" / name).touch()
    assert list(tree.test_problems(tmp_path)) == []
    (tmp_path / "tests" / "unit").mkdir()
    (tmp_path / "tests" / "unit" / "test_words.py").touch()
    assert list(tree.test_problems(tmp_path)) == ["tests/unit/test_words.py: there is no src/kava/unit that it could test"]


def test_root_scripts(root: Path) -> None:
    script = '"""Doc\n\nstring."""\n\n# comment\n' + "x = 1\n" * 10
    (root / "train.py").write_text(script)
    assert list(tree.root_script_problems(root)) == []
    (root / "train.py").write_text(script + "x = 1\n")
    assert list(tree.root_script_problems(root)) == ["train.py: 11 lines of code, at most 10; the work belongs in src/kava"]


def test_configurations(root: Path) -> None:
    assert list(tree.configuration_problems(root)) == []
    (root / "configs/own.yaml").write_text("# python train.py --config configs/mini.yaml\nmethod: kva\n")
    comment, value = tree.configuration_problems(root)
    assert comment.startswith("configs/own.yaml: opens with no comment that launches it")
    assert "method: Input should be" in value


def test_the_menu_names_every_page_once(root: Path) -> None:
    (root / "docs/deep").mkdir()
    (root / "docs/deep/b.md").write_text("# B\n")
    (root / "mkdocs.yml").write_text("nav:\n  - a.md\n  - Deep:\n      - B: deep/b.md\n      - made.md\n")
    assert list(docs.nav_problems(root)) == []
    (root / "mkdocs.yml").write_text("nav:\n  - a.md\n  - Again: [a.md]\n")
    assert list(docs.nav_problems(root)) == ["nav: docs/deep/b.md is missing", "nav: a.md is there 2 times"]


def test_links_for_the_site() -> None:
    """From README.md at the root, and from a page of docs/: to a page, a heading, code, code in a block and inline."""
    pytest.importorskip("mkdocs")
    pages = load_script("site_pages")
    met: set[str] = set()
    text = "[a](docs/mini.md#measured) ![b](docs/x.svg) [c](LICENSE) [d](#start) [e](https://x.org)\n`[f](g)`\n```\n[h](i)\n```\n"
    assert pages.turned(text, "README.md", "index.md", met) == (
        "[a](mini.md#measured) ![b](source/docs/x.svg.md) [c](source/LICENSE.md) [d](#start) [e](https://x.org)\n`[f](g)`\n```\n[h](i)\n```\n"
    )
    assert met == {"docs/mini.md", "docs/x.svg", "LICENSE"}
    assert pages.turned("[a](../README.md#start) [b](../src/kava/cli.py)", "docs/api.md", "api.md") == (
        "[a](index.md#start) [b](source/src/kava/cli.py.md)"
    )
    assert pages.turned("[a](../x.json)", "docs/results/t/y.md", "results/t/y.md") == "[a](../../source/docs/results/x.json.md)"


def test_long_lines_and_missing_blank_lines() -> None:
    long = "x" * 161
    good = "# A\n- one\n- two\n  - deep\n\nText:\n\n| a |\n|---|\n| b |\n\n```text\nText\n- no list\n```\n1. one\n"
    assert list(docs.layout_problems(good)) == []
    assert list(docs.layout_problems(f"Text:\n- one\n\n{long}\nText:\n| a |\n")) == [
        "line 4 has 161 characters: 160 at most",
        "line 2: a blank line is missing above the list or table",
        "line 6: a blank line is missing above the list or table",
    ]
    tree = f"{'name.py':<30}  One thing: {'y' * 100}, another {'z' * 60}"
    assert docs.shorten(tree).endswith("y")
    assert docs.shorten(tree[:160]) == tree[:160]


def test_long_names_in_the_site_s_tables_may_break() -> None:
    pytest.importorskip("mkdocs")
    html = "<p><code>a/b_c</code></p><td>a_b <code>a/b_c.py::d</code></td>"
    assert (
        load_script("site_pages").on_page_content(html)
        == "<p><code>a/b_c</code></p><td>a_b <code>a/<wbr>b_<wbr>c.<wbr>py::<wbr>d</code></td>"
    )
