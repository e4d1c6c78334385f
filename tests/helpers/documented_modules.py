"""The modules of a user that docs/extending.md shows."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def documented_modules() -> dict[str, str]:
    """Return the text of each module by the name of its file."""
    return dict(re.findall(r"```python\n(?=# (\w+\.py)\n)(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
