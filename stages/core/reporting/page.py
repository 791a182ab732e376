"""Pages from templates: Jinja fills them in, and what goes into HTML is escaped."""

from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

# CommonMark without raw HTML: tags in the text come out as text.
_MARKDOWN = MarkdownIt("js-default")


def render(templates: Path, name: str, **content: Any) -> str:
    """The template `name` of a folder, filled in; one for HTML (`*.html.j2`) escapes all it is given.

    The filter `inline` makes HTML of one paragraph of Markdown, `drawing` lets an SVG of ours through as it is. A name
    that the template uses and `content` lacks raises jinja2.UndefinedError.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=lambda template: template is not None and template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = lambda text: Markup(_MARKDOWN.renderInline(text))
    environment.filters["drawing"] = Markup
    return environment.get_template(name).render(**content)
