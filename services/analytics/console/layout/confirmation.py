"""Asking why, and asking a second time."""

from nicegui import ui

LONGEST_REASON = 200


class Confirmation:
    """A dialog that asks a second time. It stays on the page, so that the focus finds its way back to the button."""

    def __init__(self) -> None:
        with ui.dialog() as self._dialog, ui.card().classes("lexi-card"):
            self._question = ui.label().classes("lexi-h2").props('role="heading" aria-level="2"')
            self._words = ui.label().classes("lexi-text")
            with ui.row().classes("gap-x-4"):
                no = ui.button("Leave it as it is", on_click=lambda: self._dialog.submit(False))
                no.props("outline no-caps autofocus")
                yes = ui.button("Yes, do it", on_click=lambda: self._dialog.submit(True))
                yes.props("outline no-caps color=negative")

    async def given(self, question: str, words: str) -> bool:
        """Ask; the answer is no until the second button is pressed."""
        self._dialog.props["aria-label"] = question
        self._dialog.update()
        self._question.set_text(question)
        self._words.set_text(words)
        return bool(await self._dialog)
