"""Text in columns."""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 100_000  # characters: no line is wrapped or cut short


def aligned(
    cells: Sequence[Sequence[str]], left: Sequence[int] = (), widths: Sequence[int] = ()
) -> str:
    """Columns, two spaces apart, as plain text of any width.

    Args:
      cells: rows of as many cells each, the headings among them.
      left: the columns that are aligned at their left edges; the others, of numbers, at the right.
      widths: of the first columns at least, where rows are printed before all of them are known.

    Returns:
      A line for each row.
    """
    grid = Table.grid(padding=(0, 2, 0, 0))
    for number in range(len(cells[0])):
        grid.add_column(
            justify="left" if number in left else "right",
            no_wrap=True,
            min_width=widths[number] if number < len(widths) else None,
        )
    for row in cells:
        grid.add_row(*map(Text, row))
    console = Console(
        file=io.StringIO(), width=WIDE, color_system=None, force_jupyter=False, legacy_windows=False
    )
    console.print(grid)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip("\n").split("\n"))
