"""`run_multi_seed.ps1`: its grammar everywhere, and the real program where PowerShell is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest
import tree_sitter_powershell
from tree_sitter import Language, Node, Parser

SCRIPT = Path(__file__).parents[2] / "run_multi_seed.ps1"


def parse(source: bytes) -> Node:
    return Parser(Language(tree_sitter_powershell.language())).parse(source).root_node


def commands(node: Node) -> list[str]:
    own = [node.text.decode()] if node.type == "command" and node.text else []
    return own + [text for child in node.children for text in commands(child)]


def test_it_is_powershell_and_calls_the_python_script_with_what_was_typed() -> None:
    tree = parse(SCRIPT.read_bytes())
    assert not tree.has_error
    assert "python run_multi_seed.py --config $Config --seeds @List" in commands(tree)


def test_a_broken_script_would_be_seen() -> None:
    assert parse(SCRIPT.read_bytes().replace(b"[string[]]$Seeds =", b"[string[]$Seeds =")).has_error


@pytest.mark.skipif(shutil.which("pwsh") is None, reason="PowerShell (pwsh) is not installed")
def test_the_guides_spelling_reaches_the_command(tmp_path: Path) -> None:
    """A configuration that does not exist ends in our sentence and our exit code, through PowerShell."""
    words = ["pwsh", "-NoProfile", "-File", str(SCRIPT), "-Config", "no_such_config", "-Seeds", "42,123"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "no_such_config" in done.stderr
