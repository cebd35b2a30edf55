"""The pages that the documentation site has beside docs/: a hook of mkdocs (mkdocs.yml).

- the Markdown files of the root (README.md is the site's first page);
- the API reference: a heading per name of `kava.__all__`, which mkdocstrings fills from the docstrings;
- every file outside docs/ that a page links to, so that links to the code work without a repository's address.

Links are written for a reader of the repository; here they are turned to the site's pages.
"""

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_docs import FENCE, LINK, ROOT, slug

ROOT_PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh-CN.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
API_PAGE = "api-reference.md"
# What belongs together on the page of the API; a public name that is missing here stops the build.
API = {
    "Load and ask": ["load", "Model", "Generation", "Thoughts"],
    "Compress a cache": ["compress", "Trace", "SCORERS"],
    "Train and evaluate": ["train", "evaluate", "Config", "METHODS"],
    "Errors": ["UserError"],
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "bash", ".slurm": "bash", ".example": "bash"}
SKIPPED = re.compile(rf"{FENCE.pattern}|`[^`\n]*`|{LINK.pattern}", FENCE.flags)


def repository_path(page: str) -> str | None:
    """Where the text of a page lies in the repository; None: it is made here."""
    for source, name in ROOT_PAGES.items():
        if name == page:
            return source
    return f"docs/{page}" if (ROOT / "docs" / page).is_file() else None


def page_of(path: str) -> str:
    """The site's page or file for a file of the repository."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    inside = path.removeprefix("docs/")
    return inside if inside != path and (ROOT / path).is_file() else f"source/{path}.md"


def turned(markdown: str, source: str, page: str, met: set[str] | None = None) -> str:
    """Relative links of the text of `source` as links from `page`; the files that they lead to go into `met`."""

    def turn(match: re.Match[str]) -> str:
        target = match.group(match.re.groups)
        if target is None or re.match(r"[a-z][a-z0-9+.-]*:|#", target):
            return match.group()
        file, _, anchor = target.partition("#")
        path = os.path.normpath(PurePosixPath(source).parent / file)
        if met is not None:
            met.add(path)
        relative = os.path.relpath(page_of(path), PurePosixPath(page).parent)
        return match.group().replace(f"({target}", f"({relative}#{anchor}" if anchor else f"({relative}")

    return SKIPPED.sub(turn, markdown)


def source_page(path: str) -> str:
    """A page that shows a file of the repository, or lists a directory."""
    place = ROOT / path
    if place.is_dir():
        return f"# `{path}`\n\n" + "".join(f"- `{entry.name}`\n" for entry in sorted(place.iterdir()) if entry.name != "__pycache__")
    text = place.read_text(encoding="utf-8")
    if place.suffix == ".md":
        return turned(text.removeprefix("---\n").partition("\n---\n")[2] if text.startswith("---\n") else text, path, f"source/{path}.md")
    return f"# `{path}`\n\n````{LANGUAGES.get(place.suffix, 'text')}\n{text}\n````\n"


def api_page() -> str:
    sys.path.insert(0, str(ROOT / "src"))
    import kava

    shown = [name for names in API.values() for name in names]
    if set(shown) != set(kava.__all__) - {"__version__"}:
        raise SystemExit(f"site_pages: the API page must show what kava.__all__ names: {set(shown) ^ set(kava.__all__)}")
    parts = ["# API reference\n\nWhat the docstrings say. Examples: [`import kava`](api.md); symbols: [notation](notation.md).\n"]
    for heading, names in API.items():
        parts += [f"## {heading}\n", *(f"::: kava.api.{name}\n    options: {{ heading: kava.{name} }}\n" for name in names)]
    return "\n".join(parts)


def on_config(config: Any) -> None:
    """Headings get the anchors that GitHub gives them."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = lambda heading, _: slug(heading)


def on_files(files: Files, config: Any) -> Files:
    made = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in ROOT_PAGES.items()}
    for page, text in [*made.items(), (API_PAGE, api_page())]:
        files.append(File.generated(config, page, content=text))
    met: set[str] = set()
    for file in files.documentation_pages():
        source = repository_path(file.src_uri)
        if source:
            turned(file.content_string, source, file.src_uri, met)
    for path in sorted(met):
        if page_of(path).startswith("source/") and (ROOT / path).exists():
            files.append(File.generated(config, page_of(path), content=source_page(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source = repository_path(page.file.src_uri)
    if not source:
        return markdown
    # A line's end is a space in a paragraph, and Chinese has none between its characters.
    return re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u4e00-\u9fff])", "", turned(markdown, source, page.file.src_uri))


def on_page_content(html: str, **_: Any) -> str:
    """Long names in tables may break behind their separators, so that columns share the width."""

    def breakable(code: re.Match[str]) -> str:
        return re.sub(r"(::?|[/_.])(?=\w)", r"\1<wbr>", code.group())

    return re.sub(r"<td.*?</td>", lambda cell: re.sub(r"(?<=<code>)[^<]*", breakable, cell.group()), html, flags=re.S)
