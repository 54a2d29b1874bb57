"""What mkdocs asks while it builds the site: the front page from README.md, generated parts, links where a document is named.

Pages are written for GitHub and stay readable there; nothing here writes into docs/.
"""

import dataclasses
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import config_keys  # noqa: E402
import public_api  # noqa: E402

FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
# A document named in running text, as docs/gates.md or `docs/gates.md`: neither a link's target nor a part of a longer path.
NAMED = re.compile(r"(?<!\]\()(?<![\w/.])`?docs/([\w/]+\.md)`?(?!\])")
MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def on_files(files, config):
    """The front page is README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Generated parts in place of their markers, and a link where a document is named."""
    markdown = MARKER.sub(lambda found: GENERATED[found[1]](), markdown)
    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else linked(part, page.file.src_uri) for part in parts)


def linked(text: str, page: str) -> str:
    """The text with every docs/x.md outside of a link made one, relative to the page."""
    here = posixpath.dirname(page) or "."
    return NAMED.sub(lambda found: f"[{title_of(found[1])}]({posixpath.relpath(found[1], here)})", text)


def title_of(document: str) -> str:
    """What a link to a document is called: its name, or that of its folder."""
    return document.removesuffix(".md").removesuffix("/index").rsplit("/", 1)[-1]


def configuration() -> str:
    """All keys of a cascade's file, then those of `nemo-cascade scale`."""
    from nemo_cascade.cascade.config import CascadeConfig, ClusterConfig
    from nemo_cascade.scaling.config import ScaleConfig
    from nemo_cascade.stages.context import LoopConfig

    of_loop = tuple(f"cascade.stages.<name>.{field.name}" for field in dataclasses.fields(LoopConfig))
    resolved = tuple(f"cascade.stages.<name>.{name}" for name in ("cluster", "name", "judge", "judge_endpoint"))  # never said there
    parts = [
        "## The cascade",
        config_keys.page(CascadeConfig, "cascade", of_loop + resolved),
        "## The blocks of a stage",
        config_keys.page(LoopConfig),
        config_keys.page(ClusterConfig, "cluster"),
        "## `nemo-cascade scale`",
        config_keys.page(ScaleConfig, "", ("policy",)),
    ]
    return "\n\n".join(parts)


GENERATED = {"api": public_api.page, "configuration": configuration}
