"""Text vectors: the mathematics, equal texts, later items, language models, and the folder."""

import json
import math
import re
import sys
import types

import numpy as np
import polars as pl
import pytest
import torch

from plr.errors import DataError
from plr.text import TextVectors, embed_text
from plr.text.sentence import fit_pca
from plr.text.tfidf import TfidfSvd, fit_tfidf, words

TOPICS = ("red apple fruit", "blue sea water ship", "old king castle knight", "fast car race wheel")


def topic_texts(count=40, seed=0):
    random = np.random.Generator(np.random.PCG64(seed))
    texts = []
    for number in range(count):
        topic = TOPICS[number % len(TOPICS)].split()
        texts.append(" ".join(random.choice(topic, 3)) + f" unique{number}")
    return texts


def write_texts(path, texts):
    lines = [f"i{number}\t{text}" for number, text in enumerate(texts)]
    path.write_text("\n".join(["item\ttitle", *lines]) + "\n", encoding="utf-8")
    return path


def weighted_matrix(texts, vocabulary):
    """The TF-IDF matrix written out, float64 [N, words]."""
    matrix = np.zeros((len(texts), len(vocabulary)))
    for column, word in enumerate(vocabulary):
        holding = sum(word in words(text) for text in texts)
        for row, text in enumerate(texts):
            count = words(text).count(word)
            if count:
                matrix[row, column] = (1 + math.log(count)) * (math.log((1 + len(texts)) / (1 + holding)) + 1)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_vectors_span_the_best_approximation_of_the_weighted_matrix():
    """Rank r projections by numpy's full SVD, compared by what does not depend on the basis: cosines."""
    texts = topic_texts()
    fitted = fit_tfidf(texts, 5)
    assert "unique3" not in fitted.vocabulary  # a word of one text
    matrix = weighted_matrix(texts, fitted.vocabulary)
    _, _, directions = np.linalg.svd(matrix, full_matrices=False)
    expected = matrix @ directions[:5].T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors, present = fitted.encode(texts)
    assert present.all()
    # Float32 throughout, and a randomised SVD of a small matrix with more random directions than columns is exact.
    np.testing.assert_allclose(vectors.double() @ vectors.double().T, expected @ expected.T, atol=2e-5)


def test_texts_of_a_topic_are_alike_and_others_are_not():
    fitted = fit_tfidf(topic_texts(), 4)
    vectors, _ = fitted.encode(topic_texts(count=12, seed=9))
    topic = torch.arange(12) % 4
    same = topic[:, None] == topic
    cosines = vectors @ vectors.T
    assert cosines[same].min() > 0.8
    assert cosines[~same].abs().max() < 0.2


def test_equal_texts_get_equal_vectors_to_the_bit_whatever_stands_beside_them():
    fitted = fit_tfidf(topic_texts(), 6)
    texts = topic_texts(seed=3)
    together, _ = fitted.encode([*texts, texts[0].upper()])
    assert torch.equal(together[0], together[-1])
    for number in (0, 7, 39):
        assert torch.equal(fitted.encode([texts[number]])[0][0], together[number])
    again = fit_tfidf(topic_texts(), 6)
    assert torch.equal(again.components, fitted.components)
    largest = fitted.components.gather(0, fitted.components.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_no_more_components_than_the_texts_have():
    texts = ["red apple", "red apple", "blue sea", "blue sea"]
    assert fit_tfidf(texts, 768).components.shape == (4, 2)
    with pytest.raises(ValueError, match="no word occurs in 2 of the 2 texts"):
        fit_tfidf(["red", "blue"], 2)


def test_marks_are_of_the_word_whose_letters_they_follow():
    assert words("हिन्दी पुस्तक, தமிழ் می\u200cخواهم q\u0303ue") == [
        "हिन्दी", "पुस्तक", "தமிழ்", "می\u200cخواهم", "q\u0303ue",
    ]  # fmt: skip
    assert words("❤\ufe0f \u0301 a") == ["a"]  # none of their own
    # Cut at the marks, as vocabularies of before were, words share their consonants.
    assert words("हिन्दी", marks=False) == ["ह", "न", "द"]


def test_texts_are_cut_as_those_of_the_folder_that_they_are_encoded_like(tmp_path):
    texts = write_texts(tmp_path / "texts.tsv", ["हिन्दी पुस्तक", "हिन्दी पुस्तक"])
    made = embed_text(texts, tmp_path / "made")
    assert made.vocabulary == ["पुस्तक", "हिन्दी"]
    assert made.manifest["marks_in_words"] is True
    assert embed_text(texts, tmp_path / "again", like=tmp_path / "made").manifest["without_known_word"] == 0
    # A folder of before: its vocabulary is of words that end at a mark.
    path = tmp_path / "made" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["marks_in_words"]
    path.write_text(json.dumps(manifest))
    pl.DataFrame({"word": ["क", "ह"]}).write_parquet(tmp_path / "made" / "vocabulary.parquet")
    old = embed_text(texts, tmp_path / "old", like=tmp_path / "made")
    assert old.manifest["without_known_word"] == 0
    assert old.manifest["marks_in_words"] is False


def test_words_are_unified():
    assert words("Pokémon: Part II—ﬁne_Ａ1!") == ["pokémon", "part", "ii", "fine_a1"]
    assert words("Pokémon: Part II—ﬁne_Ａ1!", marks=False) == ["pokémon", "part", "ii", "fine_a1"]
    empty = TfidfSvd(["a"], torch.ones(1), torch.ones(1, 3))
    vectors, present = empty.encode(["b", "a"])
    assert present.tolist() == [False, True]
    assert not vectors[0].any()


def test_the_folder_says_what_is_in_it_and_later_items_get_the_same_vectors(tmp_path):
    texts = topic_texts()
    file = write_texts(tmp_path / "t.tsv", [*texts, "", "neverseenbefore"])
    made = embed_text(file, tmp_path / "vectors", dim=4)
    assert made.present.tolist() == [True] * 40 + [False] * 2
    assert not made.vectors[40:].any()
    manifest = json.loads((tmp_path / "vectors" / "manifest.json").read_text())
    assert manifest["encoder"] == "tfidf"
    assert (manifest["width"], manifest["items"]) == (4, 42)
    assert (manifest["without_text"], manifest["without_known_word"]) == (1, 1)
    assert len(manifest["source"]["sha256"]) == 64
    assert not [path for path in (tmp_path / "vectors").iterdir() if path.suffix in (".pkl", ".pt", ".bin")]

    read = TextVectors.load(tmp_path / "vectors")
    assert read.item_ids == made.item_ids
    assert torch.equal(read.vectors, made.vectors)

    later = write_texts(tmp_path / "later.tsv", ["something else", texts[7], texts[3]])
    second = embed_text(later, tmp_path / "second", like=tmp_path / "vectors")
    assert torch.equal(second.vectors[1:], made.vectors[[7, 3]])
    assert second.present.tolist() == [False, True, True]
    third = embed_text(file, tmp_path / "third", like=tmp_path / "second")  # which is whole in itself
    assert torch.equal(third.vectors, made.vectors)
    assert third.manifest["fitted_on"] == made.manifest["source"]
    again = embed_text(file, tmp_path / "again", dim=4)
    assert torch.equal(again.vectors, made.vectors)


def test_vectors_are_found_by_item_id(tmp_path):
    made = embed_text(write_texts(tmp_path / "t.tsv", [*topic_texts(), ""]), tmp_path / "vectors", dim=4)
    text = made.of_items(["i3", "nobody", "i40", "i0"], tmp_path)
    assert text.present.tolist() == [True, False, False, True]
    assert torch.equal(text.vectors[[0, 3]], made.vectors[[3, 0]])
    assert not text.vectors[[1, 2]].any()
    with pytest.raises(DataError, match="none of the data's 2 items has a text vector; the data have items like 'x', "):
        made.of_items(["x", "y"], tmp_path)


def test_vectors_made_elsewhere_can_be_brought(tmp_path):
    present = torch.tensor([True, False])
    TextVectors(["a", "b"], torch.eye(2), present, {"encoder": "mine"}, {}).save(tmp_path / "vectors")
    text = TextVectors.load(tmp_path / "vectors").of_items(["b", "a"], tmp_path)
    assert torch.equal(text.vectors, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert text.present.tolist() == [False, True]
    with pytest.raises(DataError, match="no more texts can be encoded like these: fitted_on is missing"):
        embed_text(write_texts(tmp_path / "t.tsv", topic_texts()), tmp_path / "new", like=tmp_path / "vectors")


def test_vectors_that_are_a_part_of_others_are_written(tmp_path):
    """As narrowed ones are; it was an error of safetensors."""
    whole = torch.arange(8.0).reshape(2, 4)
    marks = torch.tensor([[True, False], [True, False]])
    TextVectors(["a", "b"], whole[:, :3], marks[:, 0], {"encoder": "mine"}, {}).save(tmp_path / "vectors")
    loaded = TextVectors.load(tmp_path / "vectors")
    assert torch.equal(loaded.vectors, whole[:, :3])
    assert loaded.present.tolist() == [True, True]


@pytest.mark.parametrize("name", ["vectors", "present"])
def test_vectors_that_are_no_tensors_are_named(name, tmp_path):
    """Of NumPy's the message was that float32 was expected and float32 was found."""
    parts = {"vectors": torch.eye(2), "present": torch.tensor([True, False])}
    parts[name] = parts[name].numpy()
    made = TextVectors(["a", "b"], **parts, manifest={"encoder": "mine"}, fitted={})
    with pytest.raises(DataError, match=rf"{name} must be a torch.Tensor .*; found numpy.ndarray"):
        made.save(tmp_path / "bad")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vectors": torch.full((2, 2), torch.nan)}, "a value is not finite"),
        ({"vectors": torch.eye(2).half()}, "vectors must be float32 [N, W], W at least 1; found torch.float16 [2, 2]"),
        ({"vectors": torch.ones(2)}, "vectors must be float32 [N, W], W at least 1; found torch.float32 [2]"),
        ({"vectors": torch.ones(2, 0)}, "vectors must be float32 [N, W], W at least 1; found torch.float32 [2, 0]"),
        ({"vectors": torch.ones(3, 2)}, "2 items, 3 vectors and 2 marks of presence"),
        ({"present": torch.tensor([1, 0])}, "present must be bool [N]; found torch.int64 [2]"),
        ({"item_ids": [], "vectors": torch.ones(0, 2), "present": torch.ones(0, dtype=torch.bool)}, "there is no item"),
        ({"item_ids": ["a", "a"]}, "item 'a' occurs a second time"),
        ({"item_ids": ["a", None]}, "item ids must be strings; found None"),
    ],
)
def test_what_are_no_vectors_is_neither_written_nor_read(changed, message, tmp_path, monkeypatch):
    parts = {"item_ids": ["a", "b"], "vectors": torch.eye(2), "present": torch.tensor([True, False])}
    made = TextVectors(**{**parts, **changed}, manifest={"encoder": "mine"}, fitted={})
    with pytest.raises(DataError, match="bad: cannot be written: " + re.escape(message)):
        made.save(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    with monkeypatch.context() as patch:
        patch.setattr(TextVectors, "_fault", lambda vectors: None)
        made.save(tmp_path / "bad")
    with pytest.raises(DataError, match="bad: damaged text vectors: " + re.escape(message)):
        TextVectors.load(tmp_path / "bad")


def test_nothing_is_encoded_like_a_folder_without_its_encoder(tmp_path):
    file = write_texts(tmp_path / "t.tsv", topic_texts())
    embed_text(file, tmp_path / "vectors", dim=4)
    (tmp_path / "vectors" / "encoder.safetensors").unlink()
    with pytest.raises(DataError, match="no more texts can be encoded like these: idf, components is missing"):
        embed_text(file, tmp_path / "new", like=tmp_path / "vectors")


class FakeSentenceTransformer:
    """Stands in for the library: a vector of letter counts."""

    encoded: list[list[str]] = []  # noqa: RUF012

    def __init__(self, name):
        if name != "a/model":
            raise OSError(f"no model {name}")

    def encode(self, texts, convert_to_numpy, show_progress_bar):
        assert convert_to_numpy
        assert not show_progress_bar
        self.encoded.append(list(texts))
        return np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], dtype=np.float32)


@pytest.fixture
def sentence_transformers(monkeypatch):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeSentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr("plr.text.embed.version", lambda package: "1.0")
    FakeSentenceTransformer.encoded.clear()


def test_a_language_model_encodes_each_text_once_and_pca_narrows(sentence_transformers, tmp_path):
    texts = topic_texts()
    file = write_texts(tmp_path / "t.tsv", [*texts, texts[0], ""])
    wide = embed_text(file, tmp_path / "wide", encoder="a/model")
    assert wide.vectors.shape == (42, 8)
    assert [len(call) for call in FakeSentenceTransformer.encoded] == [40]
    assert torch.equal(wide.vectors[0], wide.vectors[40])
    assert wide.present.tolist() == [True] * 41 + [False]
    narrow = embed_text(file, tmp_path / "narrow", encoder="a/model", dim=3)
    x = wide.vectors[:41].double().numpy()
    centred = x - x.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:3].T
    got = narrow.vectors[:41].double().numpy()
    np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-5)  # signs are ours
    later = embed_text(write_texts(tmp_path / "l.tsv", texts[5:7]), tmp_path / "later", like=tmp_path / "narrow")
    # One matrix product of 2 rows, one of 41: equal up to the rounding of a float64 sum stored in float32.
    torch.testing.assert_close(later.vectors, narrow.vectors[5:7], rtol=1e-6, atol=1e-6)


def test_pca_has_no_more_components_than_there_can_be():
    with pytest.raises(DataError, match=re.escape("dim must be in 1..3 for 3 texts of width 8; found 4")):
        fit_pca(torch.randn(3, 8), 4)


def test_what_a_language_model_lacks_is_said(tmp_path, monkeypatch, request):
    file = write_texts(tmp_path / "t.tsv", topic_texts())
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DataError, match=re.escape("encoder 'a/model' needs the package sentence-transformers: pip")):
        embed_text(file, tmp_path / "out", encoder="a/model")
    request.getfixturevalue("sentence_transformers")
    with pytest.raises(DataError, match="encoder 'other' cannot be loaded: no model other"):
        embed_text(file, tmp_path / "out", encoder="other")
    assert not (tmp_path / "out").exists()


def test_of_two_at_once_the_second_does_not_replace_what_the_first_has_said_is_saved(tmp_path, monkeypatch):
    file, out = write_texts(tmp_path / "t.tsv", topic_texts()), tmp_path / "out"
    out.mkdir()  # empty: as good as none
    fault = TextVectors._fault

    def first(vectors):  # between the look at the folder and the renaming
        monkeypatch.setattr(TextVectors, "_fault", fault)
        embed_text(file, out, dim=2)
        return None

    monkeypatch.setattr(TextVectors, "_fault", first)
    with pytest.raises(DataError, match="there is something here already"):
        embed_text(file, out, dim=3)
    assert TextVectors.load(out).vectors.shape[1] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t.tsv"]


def test_mistakes_are_named_before_anything_is_written(tmp_path):
    file = write_texts(tmp_path / "t.tsv", topic_texts())
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("mine")
    with pytest.raises(DataError, match="there is something here already"):
        embed_text(file, full)
    assert (full / "precious").read_text() == "mine"
    with pytest.raises(DataError, match=r"no folder can be made here: .*precious is a file"):
        embed_text(file, full / "precious" / "deeper")
    with pytest.raises(DataError, match="--out is missing"):
        embed_text(file, None)
    with pytest.raises(DataError, match="dim must be at least 1; found 0"):
        embed_text(file, tmp_path / "out", dim=0)
    with pytest.raises(DataError, match="like takes encoder and dim from its folder"):
        embed_text(file, tmp_path / "out", like=full, dim=3)
    with pytest.raises(DataError, match="not a folder of text vectors"):
        embed_text(file, tmp_path / "out", like=full)
    with pytest.raises(DataError, match="no item has a text in title"):
        embed_text(write_texts(tmp_path / "e.tsv", ["", " "]), tmp_path / "out")
    with pytest.raises(DataError, match="no word occurs in 2 of the 2 texts"):
        embed_text(write_texts(tmp_path / "u.tsv", ["a", "b"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("manifest.json", "{"), ("manifest.json", '{"format": "other"}'), ("vectors.safetensors", "x"),
     ("items.parquet", "x")],
)  # fmt: skip
def test_a_damaged_folder_is_named(name, content, tmp_path):
    embed_text(write_texts(tmp_path / "t.tsv", topic_texts()), tmp_path / "vectors", dim=4)
    (tmp_path / "vectors" / name).write_text(content)
    with pytest.raises(DataError, match="vectors: damaged text vectors"):
        TextVectors.load(tmp_path / "vectors")
