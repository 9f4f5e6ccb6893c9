"""``csv:FILE`` and the tokenizer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data import DataOptions, Tokenizer, load_data, read_texts
from compress.errors import DataError

VOCABULARY = Tokenizer(("good", "bad", ",", "film"), max_tokens=5)
ROWS = [("a good film", 1), ("bad, bad film", 0)] * 10
NUMBERED = DataOptions(text_column="2", label_column="1")


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    (path.parent / "vocab.json").write_bytes(VOCABULARY.to_json())
    return f"csv:{path}"


def reviews(path: Path) -> str:
    return write(path, "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS))


def test_words_and_marks_become_tokens_and_the_rest_unknown() -> None:
    assert VOCABULARY.encode(["A GOOD film, bad film film film", ""]).tolist() == [[1, 2, 5, 4, 3], [0, 0, 0, 0, 0]]
    assert len(VOCABULARY) == 6


def test_the_vocabulary_is_the_most_frequent_words_and_ties_go_by_the_alphabet() -> None:
    built = Tokenizer.build(["c b b a a", "c d"], size=4)
    assert built.vocabulary == ("a", "b")
    assert len(built) == 4
    assert Tokenizer.build(["c b b a a", "c d"]).vocabulary == ("a", "b", "c")


@given(texts=st.lists(st.text()), vocabulary=st.lists(st.text(min_size=1), unique=True), length=st.integers(1, 9))
def test_any_text_is_encoded_in_shape_and_in_range(texts: list[str], vocabulary: list[str], length: int) -> None:
    tokenizer = Tokenizer(tuple(vocabulary), length)
    tokens = tokenizer.encode(texts)
    assert tokens.shape == (len(texts), length)
    assert tokens.dtype == np.int64
    assert ((tokens >= 0) & (tokens < len(tokenizer))).all()


@given(vocabulary=st.lists(st.text(), unique=True), length=st.integers(1, 99))
def test_a_tokenizer_survives_its_file(vocabulary: list[str], length: int) -> None:
    tokenizer = Tokenizer(tuple(vocabulary), length)
    assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"schema": 2, "max_tokens": 4, "vocabulary": []}',
        b'{"schema": 1, "max_tokens": 4, "vocabulary": [1]}',
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    spec = reviews(tmp_path / "r.csv")
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(DataError, match=r"vocab.json: no vocabulary"):
        load_data(spec, beside=tmp_path)


def test_a_file_with_header_is_read_by_its_usual_names(tmp_path: Path) -> None:
    data = load_data(reviews(tmp_path / "r.csv"), beside=tmp_path)
    (tokens,), labels = data.train.fetch(np.arange(2))
    assert tokens.tolist() == [[1, 2, 5, 0, 0], [3, 4, 3, 5, 0]]
    assert labels is not None
    assert labels.tolist() == [1, 0]
    assert (data.inputs[0].name, data.inputs[0].dtype, data.classes) == ("tokens", "int64", 2)


def test_the_vocabulary_travels_with_the_data(tmp_path: Path) -> None:
    data = load_data(reviews(tmp_path / "r.csv"), DataOptions(max_tokens=7), beside=tmp_path)
    assert Tokenizer.from_json(data.files["vocab.json"]) == replace(VOCABULARY, max_tokens=7)
    assert data.inputs[0].shape == (7,)


def test_another_vocabulary_gives_another_sha256(tmp_path: Path) -> None:
    spec = reviews(tmp_path / "r.csv")
    first = load_data(spec, beside=tmp_path).sha256
    # as long, and the unused word changed: the tokens are the same, the meaning of an input is not
    (tmp_path / "vocab.json").write_bytes(Tokenizer(("good", "bad", ",", "film", "x"), 5).to_json())
    assert load_data(spec, beside=tmp_path).sha256 != first


def test_without_a_vocabulary_both_ways_to_give_one_are_told(tmp_path: Path) -> None:
    spec = reviews(tmp_path / "r.csv")
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(DataError, match=r"--vocabulary, or put it beside the model as vocab.json; .*Tokenizer.build"):
        load_data(spec, beside=tmp_path)


def test_columns_by_number_mean_that_there_is_no_header(tmp_path: Path) -> None:
    spec = write(tmp_path / "r.tsv", "".join(f'7\t{label - 0.5}\t"{text}\n' for text, label in ROWS))
    options = replace(NUMBERED, label_threshold=0.0)
    data = load_data(spec, options, beside=tmp_path)
    assert len(data.train) + len(data.validation) + len(data.test) == 20
    (_,), labels = data.train.fetch(np.arange(2))
    assert labels is not None
    assert labels.tolist() == [1, 0]
    assert set(read_texts(tmp_path / "r.tsv", options)) <= {f'"{text}' for text, _ in ROWS}


def test_semicolons_are_recognised(tmp_path: Path) -> None:
    spec = write(tmp_path / "r.csv", "text;label\n" + "".join(f"{text};{label}\n" for text, label in ROWS))
    assert load_data(spec, beside=tmp_path).classes == 2


def test_named_labels_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    spec = write(tmp_path / "r.csv", "text,mood\n" + "good,up\nbad,down\n" * 5)
    data = load_data(spec, DataOptions(label_column="mood"), beside=tmp_path)
    assert data.class_names == ("down", "up")
    labels = data.train.fetch(np.arange(2))[1]
    assert labels is not None
    assert labels.tolist() == [1, 0]


def test_a_file_without_label_column_is_unlabelled(tmp_path: Path) -> None:
    assert load_data(write(tmp_path / "r.csv", "text\n" + "good\n" * 9), beside=tmp_path).classes is None


def test_the_texts_for_the_vocabulary_are_those_of_train_alone(tmp_path: Path) -> None:
    spec = write(tmp_path / "r.csv", "text\n" + "".join(f"film {number}\n" for number in range(50)))
    options = DataOptions(split_seed=3)
    texts = read_texts(tmp_path / "r.csv", options)
    assert texts == tuple(f"film {number}" for number in load_data(spec, options, beside=tmp_path).train.indices)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("", DataOptions(), "no rows"),
        ("text,label\n", DataOptions(), "no rows"),
        ("words,label\na,1\n", DataOptions(), "no column 'text'; it has the columns words, label"),
        ("a,1\n", DataOptions(text_column="5"), "no column '5'; it has 2 columns and no header"),
        ("text,label\na,1\nb\n", DataOptions(), "line 3 has 1 columns"),
        ("text,label\na,1\nb,\n", DataOptions(), "line 3 has no label"),
        ("text,label\na,1\nb,x\n", DataOptions(label_threshold=0.0), "line 3 has the label 'x'"),
        ("text,label\na,-1\nb,1\n", DataOptions(), "no class number"),
        ("text,label\na,0.5\nb,1\n", DataOptions(), "no class number"),
        ("text,label\na,1\nb,1\n", DataOptions(), "Give more samples"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, options: DataOptions, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_data(write(tmp_path / "r.csv", content), options, beside=tmp_path)


def test_a_missing_file_and_one_that_is_not_utf8_are_named(tmp_path: Path) -> None:
    reviews(tmp_path / "r.csv")
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read"):
        load_data(f"csv:{tmp_path / 'absent.csv'}", beside=tmp_path)
    (tmp_path / "latin.csv").write_bytes("text\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.csv: not UTF-8"):
        load_data(f"csv:{tmp_path / 'latin.csv'}", beside=tmp_path)
