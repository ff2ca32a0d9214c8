"""Numbers as a reader says them; None is a dash."""

from raydapt.report.sections import Kind

DASH = "–"


def format_cell(value: float | None, kind: Kind, digits: int = 1) -> str:
    """A number in the form of its column; see `raydapt.report.sections.Kind`."""
    if kind == "count":
        return format_count(value)
    if kind == "points":
        return format_points(value)
    if kind == "rate":
        return format_rate(value)
    return format_duration(value) if kind == "duration" else format_number(value, digits)


def format_number(value: float | None, digits: int = 1) -> str:
    """With a fixed number of digits after the point; what rounds to nothing has no sign."""
    return DASH if value is None else f"{value:z.{digits}f}".replace("-", "−")


def format_points(value: float | None) -> str:
    """Points with their sign; a difference that rounds to nothing has none."""
    if value is None:
        return DASH
    text = f"{value:+.1f}"
    return "±0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def format_count(value: float | None) -> str:
    """A whole number with thousands apart."""
    return DASH if value is None else f"{value:,.0f}"


def format_rate(value: float | None) -> str:
    """Whole from 10 on, below with two digits that count."""
    return DASH if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def format_duration(seconds: float | None) -> str:
    """Seconds as ``0.4 s``, ``38 s``, ``2 min 05 s``, ``3 h 10 min``."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
