"""What people write behind options of the command line, as values."""

import click


def names(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(filter(None, (name.strip() for name in (text or "").split(","))))


def regions(
    ctx: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each NAME=CLASS,… as the name and the classes."""
    found = []
    for text in texts:
        name, _, classes = text.partition("=")
        if not name.strip() or not classes.strip(" ,"):
            raise click.BadParameter(f"{text!r} is not NAME=CLASS,…", ctx, parameter)
        found.append((name.strip(), names(ctx, parameter, classes)))
    return tuple(found)


def patterns(
    ctx: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    """Each NAME=PATTERN as the name and the pattern."""
    pairs = [text.partition("=") for text in texts]
    wrong = [
        text
        for text, (name, _, pattern) in zip(texts, pairs, strict=True)
        if not name.strip() or not pattern.strip()
    ]
    if wrong or len({name.strip() for name, _, _ in pairs}) < len(pairs):
        raise click.BadParameter(f"not NAME=PATTERN, each name once: {wrong}", ctx, parameter)
    return {name.strip(): pattern.strip() for name, _, pattern in pairs}
