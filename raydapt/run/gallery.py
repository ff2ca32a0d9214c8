"""The thumbnails of the report: few images, read again from the source, since the store keeps none."""

import pyarrow as pa
import torch

from raydapt.data.reread import thumbnails
from raydapt.report.gallery import choose_gallery
from raydapt.run.plan import Plan
from raydapt.stages.features import FeatureTable

_SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("kind", pa.string()), ("path", pa.string())])


def gallery_table(plan: Plan, table: FeatureTable, row_T: torch.Tensor, predictions: pa.Table) -> pa.Table:
    """``gallery.parquet``: thumbnails of the most confident and of the most changed predictions."""
    kind_of = choose_gallery(predictions)
    position_of = {table.id_N[i]: i for i in row_T.tolist() if table.id_N[i] in kind_of}
    id_of_row = {int(table.row_N[i]): id_ for id_, i in position_of.items()}
    images = {id_of_row[row]: image for row, image in thumbnails(plan.source, plan.config.data, id_of_row).items()}
    shown = [id_ for id_ in kind_of if images.get(id_)]
    columns = {
        "id": shown,
        "image": [images[id_] for id_ in shown],
        "kind": [kind_of[id_] for id_ in shown],
        "path": [table.path_N[position_of[id_]] for id_ in shown],
    }
    return pa.table(columns, schema=_SCHEMA)
