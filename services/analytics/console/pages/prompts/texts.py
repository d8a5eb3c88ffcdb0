"""The texts of two versions of a prompt."""

from nicegui import ui

from libs.llm.types import PromptVersion
from services.analytics.console.layout.parts import code, heading, note, pretty
from services.analytics.console.pages.prompts import words
from services.analytics.console.pages.prompts.queries import Texts


def side_by_side(found: Texts | str) -> None:
    """Two versions below what differs between them; a string says why they are not shown."""
    if isinstance(found, str):
        note(found)
        return
    heading("What differs", level=3)
    with ui.element("div").classes("lexi-card lexi-diff").props('role="group" aria-label="Difference" tabindex="0"'):
        for tone, line in words.marked(found.lines):
            ui.label(line or " ").classes(f"lexi-mono lexi-{tone}")
    with ui.element("div").classes("lexi-pair"):
        for prompt in (found.old, found.new):
            with ui.element("section").classes("lexi-part").props(f'aria-label="{prompt.key} {prompt.version}"'):
                _text(prompt)


def _text(prompt: PromptVersion) -> None:
    name = f"{prompt.key} {prompt.version}"
    constraint = prompt.constraint
    output = None if constraint is None else constraint.schema or {"choice": list(constraint.choice)}
    sampling = {field: getattr(prompt.sampling, field) for field in sorted(prompt.sampling_fields)}
    heading(name, level=3)
    code(prompt.system, name=f"system text of {name}")
    code(prompt.user_template, name=f"user template of {name}")
    schemas = {"inputs": prompt.inputs_schema, "output": output, "sampling": sampling}
    with ui.element("div").classes("lexi-short"):
        code(pretty(schemas), name=f"schemas and sampling of {name}")
