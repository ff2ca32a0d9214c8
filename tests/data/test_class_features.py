from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydapt.data.class_features import MEAN, read_class_features
from raydapt.errors import UserError
from tests.data.features import fixed, unit, vectors, write


def grid(path: Path, names: list[str], templates: list[str], value: np.ndarray, **extra: object) -> Path:
    rows = [(name, template) for template in templates for name in names]
    return write(path, value, name=[row[0] for row in rows], template=[row[1] for row in rows], **extra)


def test_the_mean_is_of_normalised_vectors_and_normalised_again(tmp_path: Path) -> None:
    value = vectors(6) * 7
    path = grid(tmp_path / "c.parquet", ["cat", "dog"], ["a photo of a {}.", "a {}", "the {}"], value)
    features = read_class_features(str(path))
    rows = unit(value).reshape(3, 2, 4)
    assert features.templates == (MEAN, "a photo of a {}.", "a {}", "the {}")
    for templates, some in (([MEAN], [0, 1, 2]), (["a {}"], [1]), (["the {}", "a photo of a {}."], [0, 2]),
                            ([MEAN, "a {}", "the {}"], [1, 2])):  # fmt: skip
        found = features.embeddings(["dog", "cat"], templates)
        for c, column in enumerate((1, 0)):
            mean = sum(rows[r, column] for r in some) / len(some)
            np.testing.assert_allclose(found[c], mean / np.sqrt((mean * mean).sum()), atol=1e-6)


def test_given_means_are_taken_as_they_are(tmp_path: Path) -> None:
    value = vectors(6)
    path = grid(tmp_path / "c.parquet", ["cat", "dog"], [MEAN, "a", "the"], value)
    features = read_class_features(str(path))
    np.testing.assert_allclose(features.embeddings(["cat", "dog"], [MEAN]), unit(value)[:2], atol=1e-6)
    rows_MD, class_M = features.all_rows(["dog", "cat"])
    np.testing.assert_allclose(rows_MD, unit(value)[[3, 5, 2, 4]], atol=1e-6)
    assert class_M.tolist() == [0, 0, 1, 1]


def test_one_vector_a_class_in_any_format(tmp_path: Path) -> None:
    value = vectors(3)
    names = ["Storage_Tank", "b", "c"]
    write(tmp_path / "c.parquet", value.astype(np.float16), name=names)
    np.savez(tmp_path / "c.npz", names=names, features=value)
    np.save(tmp_path / "c.npy", value)
    for name in ("c.parquet", "c.npz", "c.npy"):
        features = read_class_features(str(tmp_path / name), names if name.endswith("npy") else None)
        assert features.templates == (MEAN,)
        found = features.embeddings(["c", "storage tank"], [MEAN])
        np.testing.assert_allclose(found, unit(value)[[2, 0]], atol=1e-3)


def test_wordings_of_single_classes_are_no_templates(tmp_path: Path) -> None:
    value = vectors(5)
    path = write(tmp_path / "c.parquet", value, name=["cat", "dog", "cat", "dog", "dog"],
                 template=["a {}", "a {}", "with whiskers", "that barks", "man's friend"])  # fmt: skip
    features = read_class_features(str(path))
    assert features.templates == (MEAN, "a {}")
    assert features.all_rows(["cat", "dog"])[1].tolist() == [0, 0, 1, 1, 1]
    mean = unit(value)[[1, 3, 4]].mean(0)
    np.testing.assert_allclose(features.embeddings(["dog"], [MEAN])[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_the_identity_is_of_the_content(tmp_path: Path) -> None:
    names = ["a", "b"]
    one = read_class_features(str(write(tmp_path / "1.parquet", vectors(2), name=names)))
    same = read_class_features(str(write(tmp_path / "2.parquet", vectors(2), name=names, note=["x", "y"])))
    other = read_class_features(str(write(tmp_path / "3.parquet", vectors(2, seed=1), name=names)))
    renamed = read_class_features(str(write(tmp_path / "4.parquet", vectors(2), name=["b", "a"])))
    assert one.identity == same.identity
    assert len({one.identity, other.identity, renamed.identity}) == 3


def _table(**columns: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "c.parquet")
        return folder / "c.parquet"

    return make


def _saved(suffix: str, save: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save(folder / f"c.{suffix}")
        return folder / f"c.{suffix}"

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_table(name=["a", "b"], vectors=fixed(vectors(2))), "it needs 'name' and 'feature'"),
        (_table(feature=fixed(vectors(2))), "it needs 'name' and 'feature'"),
        (_table(name=["a", "b"], feature=["1", "2"]), "must hold lists of floats"),
        (_table(name=["a", "A "], feature=fixed(vectors(2))), "2 rows of class 'a' without a wording"),
        (_table(name=["a", "a"], template=["x {}.", "x"], feature=fixed(vectors(2))), "2 rows of class 'a' under"),
        (_table(name=["a", " "], feature=fixed(vectors(2))), "row 1 has no name"),
        (_table(name=["a", "b"], feature=fixed(vectors(2) * np.array([[1], [0]], np.float32))), "'b'.*zero_vector"),
        (_table(name=["a", "b"], feature=[[1.0, 2.0], [float("nan"), 1.0]]), "'b'.*not_finite"),
        (_table(name=["a", "b"], feature=[[1.0, 2.0], None]), "'b'.*no_vector"),
        (_table(name=["a", "b"], feature=[[1.0, 2.0], [1.0]]), "'b'.*wrong_width"),
        (_table(name=pa.array([], pa.string()), feature=pa.array([], pa.list_(pa.float32()))), "has no rows"),
        (_saved("npy", lambda path: np.save(path, vectors(2))), "has no names"),
        (_saved("npy", lambda path: np.save(path, np.array([None]), allow_pickle=True)), "Python objects"),
        (_saved("npz", lambda path: np.savez(path, name=["a"], feature=vectors(2))), "has 1 rows"),
        (_saved("npz", lambda path: np.savez(path, feature=vectors(2))), "it needs 'name' and 'feature'"),
        (_saved("npz", lambda path: np.savez(path, name=["a"], feature=np.ones((1, 2, 3)))), r"shape \[1, 2, 3\]"),
        (_saved("parquet", lambda path: path.write_bytes(b"no table")), "cannot be read"),
        (lambda folder: folder / "absent.parquet", "does not exist"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_class_features(str(make(tmp_path)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_what_does_not_fit_the_run_is_one_sentence(tmp_path: Path) -> None:
    path = grid(tmp_path / "c.parquet", ["cat", "dog"], ["a", "the"], vectors(4))
    features = read_class_features(str(path))
    with pytest.raises(UserError, match="no vector for 1 of 2 classes \\('cow'\\)"):
        features.embeddings(["cat", "cow"], [MEAN])
    with pytest.raises(UserError, match="no vector of class 'cat' under the wording 'many'"):
        features.embeddings(["cat"], ["many {}"])
    with pytest.raises(UserError, match=r"width 4, and data.source='x.npy' of width 512"):
        features.check_width(512, "x.npy")
    names = ["a", "b"]
    np.save(tmp_path / "c.npy", vectors(3))
    with pytest.raises(UserError, match=r"has 2 rows.*has 3"):
        read_class_features(str(tmp_path / "c.npy"), names)
    opposite = write(tmp_path / "o.parquet", np.array([[1, 0], [-1, 0]], np.float32), name=["a", "a"],
                     template=["x", "y"])  # fmt: skip
    with pytest.raises(UserError, match="cancel out"):
        read_class_features(str(opposite)).embeddings(["a"], [MEAN])


def test_the_logit_scale_is_as_the_file_notes_it(tmp_path: Path) -> None:
    table = pa.table({"name": ["a", "b"], "feature": fixed(vectors(2))})
    identities = set()
    for noted, expected in ((b"27.5", 27.5), (None, None)):
        metadata = {} if noted is None else {"raydapt.logit_scale": noted}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "c.parquet")
        features = read_class_features(str(tmp_path / "c.parquet"))
        assert features.logit_scale == expected
        identities.add(features.identity)
    assert len(identities) == 2
    pq.write_table(table.replace_schema_metadata({"raydapt.logit_scale": "much"}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="logit scale"):
        read_class_features(str(tmp_path / "c.parquet"))
