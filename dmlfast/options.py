"""Options of data sets and losses in one text, such as "crop=true,subset=1600"."""

import contextlib

from dmlfast.errors import UserError


def parse_name_values(text: str | None, kind: str) -> dict[str, str]:
    """The values in NAME=VALUE,NAME=VALUE by name, whose hyphens become underscores.

    Raises:
        UserError: for a part that is not NAME=VALUE; it begins with `kind`.
    """
    options = {}
    for part in text.split(",") if text else []:
        name, equals, value = part.strip().partition("=")
        if not (name and equals and value):
            raise UserError(f"{kind} must be NAME=VALUE,NAME=VALUE, not '{part}'")
        options[name.replace("-", "_")] = value
    return options


def plain_value(text: str) -> bool | int | float | str:
    """A truth value or a number where the text is one, else the text.

    >>> [plain_value(text) for text in ("true", "3", "1e-3", "mean")]
    [True, 3, 0.001, 'mean']
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
