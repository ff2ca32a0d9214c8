"""The thumbnails of the report: few images, read again from the source, since the store keeps none."""

import pyarrow as pa

from raydapt.data.reread import thumbnails
from raydapt.methods.spec import FinishedRun
from raydapt.report.gallery import choose_gallery

_SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("kind", pa.string()), ("path", pa.string())])


def gallery_table(finished: FinishedRun, predictions: pa.Table) -> pa.Table:
    """``gallery.parquet``: thumbnails of the most confident and of the most changed predictions."""
    if finished.source.width:  # there are no images, and a note says so
        return pa.table({name: [] for name in _SCHEMA.names}, schema=_SCHEMA)
    kind_of, table = choose_gallery(predictions), finished.table
    position_of = {table.id_N[i]: i for i in finished.row_T.tolist() if table.id_N[i] in kind_of}
    ids = list(position_of)
    rows = table.row_N[list(position_of.values())].tolist()
    images = {ids[at]: image for at, image in thumbnails(finished.source, rows, finished.config.data, ids).items()}
    shown = [id_ for id_ in kind_of if images.get(id_)]
    columns = {
        "id": shown,
        "image": [images[id_] for id_ in shown],
        "kind": [kind_of[id_] for id_ in shown],
        "path": [table.path_N[position_of[id_]] for id_ in shown],
    }
    return pa.table(columns, schema=_SCHEMA)
