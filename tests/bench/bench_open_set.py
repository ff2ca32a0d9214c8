"""Images of no name in whole runs: how well they are told, and what keeping them out changes.

    RAYDAPT_DATA=... python -m tests.bench.bench_open_set WORK

The four encoders' features of WHU-RS19 with 30 % images of classes without a name (as `bench_real` draws them), and
with ``--sets clip-like`` the generated development sets, with ``--sets FOLDER`` the ``NAME.pt`` of `feature_sets`.
Every cell is a whole run; runs are kept in WORK, so that the command, given again, goes on.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raydapt.data.shifts import shifted
from raydapt.methods.configuration import load_config
from raydapt.run import pipeline
from tests.bench.bench_guard import folder_sets
from tests.bench.bench_real import ENCODERS, FOREIGN, METHODS, write_variant
from tests.bench.bench_shifts import generated
from tests.clip_like import FeatureSet

REJECTS = ("auto", "true", "0.3")
_MOST = 1500


def write_set(features: FeatureSet, variant: str, folder: Path) -> tuple[Path, Path]:
    """One draw of a development set, as `write_variant`."""
    row_N = torch.linspace(0, len(features.label_N) - 1, min(_MOST, len(features.label_N))).round().long()
    chosen = shifted(variant, features.label_N[row_N].numpy(), 0)
    names = [f"class {c}" for c in chosen.class_K]
    labels = [names[k] if k >= 0 else FOREIGN for k in chosen.target_M.tolist()]
    folder.mkdir(parents=True, exist_ok=True)
    feature_MD = features.feature_ND[row_N][torch.from_numpy(chosen.row_M)]
    _write(folder / "x.parquet", feature_MD, id=[str(i) for i in range(len(labels))], label=labels)
    _write(folder / "x.classes.parquet", features.text_CD[torch.from_numpy(chosen.class_K)], name=names)
    return folder / "x.parquet", folder / "x.classes.parquet"


def _write(path: Path, feature_MD: torch.Tensor, **columns: list[str]) -> None:
    flat = pa.array(feature_MD.numpy().reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, feature_MD.shape[1])
    pq.write_table(pa.table({**columns, "feature": vectors}), path)


def sets(which: str, variant: str, work: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder for the runs of each set, and what a run of it is given."""
    if which == "whurs19":
        for encoder in ENCODERS:
            folder = work / f"{encoder}-{variant}".replace("/", "").replace(" ", "-")
            features, classes = write_variant(encoder, variant, 0, folder)
            yield folder, [f"data.source={features}", f"data.class_features={classes}"]
        return
    for name, drawn in generated() if which == "clip-like" else folder_sets(Path(which)):
        folder = work / f"{name}-{variant}".replace(" ", "-").replace("%", "").replace(",", "")
        features, classes = write_set(drawn, variant, folder)
        given = [f"data.source={features}", f"data.class_features={classes}", f"model.logit_scale={drawn.scale}"]
        yield folder, given


def rows(
    which: str, variant: str, work: Path, methods: Sequence[str], rejects: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The figures of one run after the other."""
    for folder, given in sets(which, variant, work):
        for method in methods:
            for reject in rejects:
                name = f"{method}-{reject}"
                metrics = folder / "runs" / name / "metrics.json"
                if not metrics.exists():
                    places = [f"runs={folder}/runs", f"store={folder}/store", f"name={name}", "ray.progress=false"]
                    own = [f"data.reject={reject}", f"data.other_labels=[{FOREIGN}]", *METHODS[method]]
                    pipeline.run(load_config(None, [f"method={method}", *given, *places, *own]))
                found = json.loads(metrics.read_text())
                yield {"method": method, "reject": reject, **found["open_set"], "unguarded": found["unguarded"]["top1"],
                       "before": found["zero_shot"]["top1"], "after": found["adapted"]["top1"]}  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: means over the sets, and the worst change."""
    lines = [
        "| method | reject | sets | AUROC, mean / worst | zero-shot | adapted, mean / worst change | guarded | "
        "others / classes' images rejected, % | right with none, % | warned |",
        "|---" * 10 + "|",
    ]
    groups = defaultdict(list)
    for row in found:
        groups[row["method"], row["reject"]].append(row)
    for (method, reject), group in groups.items():
        auroc = [row["auroc"] for row in group if row["auroc"] is not None]
        change = [row["unguarded"] - row["before"] for row in group]
        guarded = [row["after"] - row["before"] for row in group]
        both = "| ".join(f"{np.mean(one):+.1f} / {min(one):+.1f} " for one in (change, guarded))
        told = f"{np.mean(auroc):.2f} / {min(auroc):.2f}" if auroc else "–"
        shown = [_mean(group, name) for name in ("others_rejected", "classes_rejected", "top1_with_none")]
        lines.append(
            f"| `{method}` | {reject} | {len(group)} | {told} | {_mean(group, 'before')} | {both}| "
            f"{shown[0]} / {shown[1]} | {shown[2]} | {sum(row['suspected'] for row in group)} |"
        )
    return "\n".join(lines)


def _mean(group: Sequence[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in group if row[name] is not None]
    return f"{np.mean(values):.1f}" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sets", default="whurs19")
    parser.add_argument("--variant", default="30 % open set")
    parser.add_argument("--methods", nargs="*", default=["transduct", "cpl", "fair"])
    parser.add_argument("--rejects", nargs="*", default=list(REJECTS))
    given = parser.parse_args()
    found = []
    for row in rows(given.sets, given.variant, given.work, given.methods, given.rejects):
        found.append(row)
        print(json.dumps(row), flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
