"""Print an evaluation document as terminal tables that fit 80 columns."""

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from featgan.config.metric_specs import BASELINES, METRICS, TERMINAL_TABLES
from featgan.evaluation.document_builder import format_interval
from featgan.run.evaluation_document import EvaluationDocument, metric_value
from featgan.system.console import PlainConsole


def print_evaluation(document: EvaluationDocument, console: PlainConsole) -> None:
    """Print the headline, the tables with baselines, and the conclusions."""
    console.print(headline_table(document))
    for name, title in TERMINAL_TABLES.items():
        headings = {metric: spec.heading for metric, spec in METRICS.items() if spec.terminal_table == name}
        table = baseline_table(title, document, headings)
        if table is not None:
            console.print(table)
    for conclusion in document.conclusions:
        console.print(f"* {conclusion.text}")


def headline_table(document: EvaluationDocument) -> Table:
    """Return a table of the headline metrics with their intervals and descriptions."""
    num_images = max((entry.count or 0 for entry in document.headline), default=0)
    title = f"step {document.step}, suite {document.suite}, {num_images} images"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("metric", "value", "95 %", "description"):
        table.add_column(column, justify="right" if column in ("value", "95 %") else "left")
    for entry in document.headline:
        table.add_row(entry.label, format_value(entry.value), format_interval(entry.low, entry.high), entry.note)
    return table


def baseline_table(title: str, document: EvaluationDocument, headings: dict[str, str]) -> Table | None:
    """Return a table with the generator and the baselines as rows and the metrics as columns; None if it is empty."""
    metrics_by_column = {"generator": document.metrics, **document.baselines}
    present = [name for name in headings if any(name in metrics for metrics in metrics_by_column.values())]
    if not present:
        return None
    metric_columns = (Column(headings[name], justify="right", no_wrap=True) for name in present)
    table = Table(Column(title, no_wrap=True), *metric_columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column, metrics in metrics_by_column.items():
        values = [metric_value(metrics, name) for name in present]
        if any(value is not None for value in values):
            label = BASELINES[column].short_label if column in BASELINES else column
            table.add_row(label, *map(format_value, values))
    return table


def format_value(value: float | None) -> str:
    """Format a value so that it fits a narrow column."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10_000 else f"{value:.1e}"
