"""Numbers as text, for the tables and sentences of the report."""

from featgan.report.run_files import is_number


def format_number(value: object, digits: int = 3) -> str:
    """Return a cell's text: `digits` decimals (fewer if large, 3 if small), a true minus sign, a dash for no value."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")
    if not is_number(value):
        return "\N{EN DASH}" if isinstance(value, float) else str(value)
    size = abs(value)
    digits = max(digits, 3) if 0 < size < 0.1 else digits
    text = f"{value:.{digits}f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")
