"""The report's section on transduction: accuracy on the images that were fitted, and the class shares found."""

from raydapt.report.run_files import RunRecord, group, number
from raydapt.report.sections import Column, Section, Table

MOST_CLASSES = 40


def sections(run: RunRecord) -> list[Section]:
    """One section; none for runs without the group."""
    told = group(run.metrics, "transduct")
    if not told:
        return []
    accuracies = Table(
        columns=[
            Column("answers", "Which classifier.", "text"),
            Column("right %", "Share of the fitted images with a label that are right.", "percent"),
            Column("mean per class %", "The same, averaged over the classes.", "percent"),
        ],
        rows=[
            (words, number(group(told, key).get("top1")), number(group(told, key).get("mean_per_class")))
            for words, key in (("zero-shot", "zero_shot"), ("mean of the runs", "over"), ("transductive", "adapted"))
            if key in told
        ],
        note=f"Of {int(told.get('images') or 0):,} images that were fitted together (transductive.parquet).",
    )
    shares = sorted(told.get("shares") or [], key=lambda row: -float(row["share"]))[:MOST_CLASSES]
    prior = Table(
        columns=[
            Column("class", "Name of the class.", "text"),
            Column("share %", "Share of the images that the mixture gives to the class.", "percent"),
        ],
        rows=[(str(row["class"]), 100.0 * float(row["share"])) for row in shares],
        note="No label was looked at.",
    )
    return [Section(anchor="transduct", title="Fitted images", blocks=[accuracies, prior])]
