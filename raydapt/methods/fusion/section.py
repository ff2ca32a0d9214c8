"""The report's section on fusion: every classifier, how much of it counts, and what the answer would be without it."""

from raydapt.methods.transduct import section as transduct
from raydapt.report.run_files import RunRecord, group, number
from raydapt.report.sections import Column, Section, Table


def sections(run: RunRecord) -> list[Section]:
    """The classifiers, and transduction's own section."""
    told = group(run.metrics, "fusion").get("classifiers")
    if not told:
        return []
    classifiers = Table(
        columns=[
            Column("run", "The classifier's own run.", "text"),
            Column("fused", "What of it is fused: all that it learned, or as much as its guard keeps.", "text"),
            Column("weight", "Share of the mean that is its own answer and not zero-shot's.", "number"),
            Column("agrees %", "Images that it gives the class of the mean.", "percent"),
            Column("moves %", "Images that the mean would give another class without it.", "percent"),
            Column("right %", "Share of the images with a label that it has right.", "percent"),
        ],
        rows=[
            (
                str(row["run"]),
                str(row["answer"]),
                number(row.get("weight")),
                number(row.get("agrees")),
                number(row.get("moves")),
                number(row.get("top1")),
            )
            for row in told
        ],
        note="Of the images that were fitted. The weight follows from the evidence of its guard, which reads no label.",
    )
    return [Section(anchor="fusion", title="Classifiers", blocks=[classifiers]), *transduct.sections(run)]
