"""The pages of the documentation site that are made from the code, when `make docs` builds it (mkdocs.yml).

1. `reference/commands.md`: every command, as Typer describes it.
2. `reference/parameters.md`: every parameter: value and meaning from params.yaml, what is allowed from
   csdn/params.py.
3. `reference/python/*.md`: signatures and docstrings, by mkdocstrings.
4. `quickstart.md`: the notebook with its outputs.
5. The studies of research/ become pages, and links to files that are no pages become the files' names.

mkdocs calls the functions `on_...`; the rest needs no mkdocs.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from csdn.params import Params

ROOT = Path(__file__).parents[1]
MODULES = {
    "embedder": ("Load a model, embed images", "csdn.search.embedder"),
    "gallery": ("Galleries", "csdn.search.gallery"),
    "network": ("The network", "csdn.model.network"),
    "losses": ("Losses", "csdn.losses"),
    "sampler": ("Batches of P people and K images", "csdn.data.sampler"),
    "metrics": ("CMC, mAP and mINP", "csdn.evaluation.metrics"),
    "protocols": ("Protocols", "csdn.evaluation.protocols"),
    "open_set": ("Open set", "csdn.evaluation.open_set"),
}


# What mkdocs calls.


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site's files."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for study in sorted(ROOT.glob("research/*.md")):
        path = study.relative_to(ROOT).as_posix()
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return with_links_of_the_site(markdown, page.file.src_uri)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Fail where a page loads something from elsewhere: the site is read without a network."""
    from mkdocs.exceptions import PluginError

    if loaded := loaded_from_elsewhere(output):
        raise PluginError(f"{page.file.src_uri} loads {', '.join(loaded)}")
    return output


def loaded_from_elsewhere(page: str) -> list[str]:
    """Addresses outside the site of scripts, styles, pictures and frames in HTML; links do not count."""
    tags = re.findall(r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>", page)
    return [
        found
        for tag in tags
        for found in re.findall(r"(?:src|href|data)=[\"']?((?:https?:)?//[^\"'\s>]+)", tag)
    ]


def with_links_of_the_site(markdown: str, path: str) -> str:
    """The page with links that work in the site; in the repository research/ is beside docs/."""
    if path.startswith("research/"):
        return markdown.replace("](../docs/", "](../")
    markdown = markdown.replace("](../research/", "](research/").replace(
        "](quickstart.ipynb)", "](quickstart.md)"
    )
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2`)", markdown)


def pages() -> dict[str, str]:
    """The text of each generated page, by its path in the site."""
    return {
        "quickstart.md": notebook((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8")),
        "reference/commands.md": commands(),
        "reference/parameters.md": parameters((ROOT / "params.yaml").read_text(encoding="utf-8")),
        **{
            f"reference/python/{name}.md": f"# {title}\n\n::: {module}\n"
            for name, (title, module) in MODULES.items()
        },
    }


# 1. Commands.


def commands() -> str:
    """Every command with its arguments and options, by Typer's own generator."""
    generator = (sys.executable, "-m", "typer", "csdn.cli.main", "utils", "docs")
    done = subprocess.run(
        [*generator, "--name", "csdn", "--title", "Commands"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    # Its lists of commands cut the descriptions off; the sections that follow have them whole.
    return re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n", "", done.stdout)


# 2. Parameters.


_LINE = re.compile(r"( *)(\w+):(?: +([^#\s][^#]*?))?(?: +#\s*(.*))?")


def parameters(text: str) -> str:
    """A table for each section of a params.yaml: key, value, what is allowed, and the comment beside it."""
    schema = Params.model_json_schema()
    parts = [
        "# Parameters\n\nEvery key of `params.yaml`. The values are those of the preset `demo`; "
        "`csdn preset` writes others. `dvc exp run -S embedding.epochs=6` changes one for a single run.\n"
    ]
    for key, value, comment in entries(text):
        section = key.partition(".")[0]
        if value is None and key == section:
            described = comment or schema_of(schema, key).get("description", "")
            parts.append(f"\n## {section}\n\n{described}\n\n{_HEAD}")
        elif key == section:
            parts.append(f"\n## {section}\n\n{_HEAD}{_row(schema, key, value, comment)}")
        elif value is not None:
            parts.append(_row(schema, key, value, comment))
    return "".join(parts)


_HEAD = "| key | value | allowed | meaning |\n|---|---|---|---|\n"


def _row(schema: Mapping[str, Any], key: str, value: str, comment: str) -> str:
    shown = f"`{value}`" if value else "(empty)"
    cells = (f"`{key}`", shown, allowed(schema_of(schema, key)), html.escape(comment, quote=False))
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def entries(text: str) -> Iterator[tuple[str, str | None, str]]:
    """(dotted key, value as written, comment) of each line with a key; the value of a section is None."""
    lines = [match for line in text.splitlines() if (match := _LINE.fullmatch(line))]
    path: list[str] = []
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        depth = len(line[1]) // 2
        path[depth:] = [line[2]]
        opens = following is not None and len(following[1]) > len(line[1])
        yield ".".join(path), None if opens else (line[3] or ""), line[4] or ""


def schema_of(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The part of the JSON schema of `Params` that describes a dotted key; KeyError if there is none."""
    part = schema
    for name in key.split("."):
        part = part["properties"][name]
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return part


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def allowed(part: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in a few words: `a | b`, `integer ≥ 1, or empty`."""
    if "anyOf" in part:
        return ", or ".join("empty" if one == {"type": "null"} else allowed(one) for one in part["anyOf"])
    if "enum" in part:
        return " | ".join(map(str, part["enum"]))
    if "const" in part:
        return str(part["const"])
    bounds = " and ".join(f"{sign} {part[name]}" for name, sign in _BOUNDS.items() if name in part)
    kind = {"boolean": "true | false", "string": "text", "array": "list", "object": "mapping"}
    return " ".join(filter(None, (kind.get(part["type"], part["type"]), bounds)))


# 4. The notebook.


def notebook(text: str) -> str:
    """A notebook as Markdown, with its printed lines, values and pictures."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output["data"] if "data" in output else {"text/plain": output["text"]}
            if "image/png" in data:
                picture = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![output](data:image/png;base64,{picture})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
