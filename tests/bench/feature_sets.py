"""Features of labelled image sets by the miniature CLIP, as `bench_guard` takes them.

``python -m tests.bench.feature_sets OUT eurosat pacs_cartoon digits FOLDER/rsscn7.parquet`` writes ``OUT/NAME.pt`` of
every set: up to ``--most`` images, the class embeddings of its first template, and the model's logit scale.
"""

import argparse
from pathlib import Path

import torch

from raydapt.artefacts.features import load_features
from raydapt.methods.configuration import load_config
from raydapt.models.frozen import load_frozen
from raydapt.run.known_labels import read_known_labels
from raydapt.run.making import make_features
from raydapt.run.plan import make_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--most", type=int, default=4000)
    parser.add_argument("--store", default="/tmp/feature-sets-store")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for source in given.sources:
        plan = make_plan(
            load_config(
                None,
                [
                    "method=zero_shot",
                    f"data.source={source}",
                    f"data.limit={given.most}",
                    f"store={given.store}",
                    "ray.cpus=4",
                    "ray.progress=false",
                ],
            )
        )
        features = make_features(plan).artefact
        known, table = read_known_labels(plan, features), load_features(features, plan.source)
        clip = load_frozen(plan.config.data, plan.config.model)
        kept_N = table.valid_N & (known.class_N >= 0)
        torch.save(
            {
                "feature": table.feature_ND[kept_N].float(),
                "label": known.class_N[kept_N],
                "text": clip.class_embeddings(plan.classes.names, plan.classes.templates[:1]).cpu(),
                "scale": clip.logit_scale,
            },
            given.output / f"{Path(source).stem}.pt",
        )


if __name__ == "__main__":
    main()
