"""Pooling and layers over it: the numbers of sentence-transformers' modules."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from sparkinfer.exceptions import ModelLoadError
from sparkinfer.models.pooling import SentenceHead, load_layers, pooled
from sparkinfer.models.sentence_files import POOLING_MODES, Layer, read_sentence_files
from tests.sentence_models import NORMALIZE, add_sentence_files, dense, pooling, write_json

torch = pytest.importorskip("torch")

SIDES = ["right", "left"]


def batch(side: str, width: int = 8) -> tuple[Any, Any]:
    """Returns token vectors and places of texts of 5, 1, 3 and 5 tokens."""
    vectors = torch.randn(4, 5, width, generator=torch.Generator().manual_seed(0))
    order = torch.arange(5)
    order = order.flip(0) if side == "left" else order
    mask = (order < torch.tensor([[5], [1], [3], [5]])).long()
    return vectors, mask * mask.cumsum(dim=1)


def theirs(vectors: Any, places: Any, modes: Any, prompt: int | None = None) -> Any:
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    module = modules.Pooling(vectors.shape[-1], modes, include_prompt=prompt is None)
    features = {"token_embeddings": vectors, "attention_mask": (places > 0).long()}
    if prompt is not None:
        features["prompt_length"] = prompt
    return module(features)["sentence_embedding"]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_each_mode_is_the_librarys(mode: str, side: str) -> None:
    vectors, places = batch(side)
    torch.testing.assert_close(pooled(vectors, places, [mode]), theirs(vectors, places, mode))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("skipped", [1, 2, 5])
@pytest.mark.parametrize("mode", [mode for mode in POOLING_MODES if mode != "max"])
def test_each_mode_without_the_prompt_is_the_librarys(mode: str, skipped: int, side: str) -> None:
    vectors, places = batch(side)
    found = pooled(vectors, places, [mode], (places > skipped).long())
    expected = theirs(vectors, places, mode, skipped)
    has_text = places.amax(dim=1) > skipped
    torch.testing.assert_close(found[has_text], expected[has_text])
    if mode != "cls":  # of a text that is all prompt, the first token stands for nothing
        torch.testing.assert_close(found, expected)


def test_the_largest_of_no_tokens_is_no_number() -> None:
    vectors, places = batch("right")
    found = pooled(vectors, places, ["max"], (places > 1).long())
    assert torch.isinf(found[1]).all()
    torch.testing.assert_close(found[[0, 2]], theirs(vectors, places, "max", 1)[[0, 2]])


@pytest.mark.parametrize("modes", list(combinations(POOLING_MODES, 2)))
def test_modes_are_joined_in_their_order(modes: tuple[str, str]) -> None:
    vectors, places = batch("right")
    for order in (modes, modes[::-1]):
        torch.testing.assert_close(pooled(vectors, places, order), theirs(vectors, places, order))


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_padding_changes_nothing(mode: str) -> None:
    vectors, places = batch("right")
    shorter = pooled(vectors[2:3, :3], places[2:3, :3], [mode])
    torch.testing.assert_close(pooled(vectors, places, [mode])[2:3], shorter)


@pytest.mark.parametrize("mode", ["mean", "weightedmean"])
def test_half_precision_is_summed_up_in_float32(mode: str) -> None:
    vectors = torch.rand(1, 500, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    places = torch.arange(1, 501).unsqueeze(0)
    found = pooled(vectors, places, [mode])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pooled(vectors.float(), places, [mode]))


def test_the_vector_is_cut_after_all_layers_and_then_normalised() -> None:
    vectors, places = batch("right")
    cut = SentenceHead(["mean"], truncate_dim=3)(vectors, places)
    torch.testing.assert_close(cut, pooled(vectors, places, ["mean"])[:, :3])
    normal = SentenceHead(["mean"], truncate_dim=3, normalizes=True)(vectors, places)
    torch.testing.assert_close(normal, torch.nn.functional.normalize(cut, dim=-1))


# --- layers --------------------------------------------------------------------------------

TANH = "torch.nn.modules.activation.Tanh"
PRELU = "torch.nn.modules.activation.PReLU"
LAYERS = {
    "tanh": dense(8, 6, activation_function=TANH),
    "no activation": dense(8, 6, activation_function="torch.nn.modules.linear.Identity"),
    "another activation": dense(8, 6, activation_function="torch.nn.modules.activation.GELU"),
    "activation by default": dense(8, 6),
    "no bias": dense(8, 6, bias=False, activation_function=TANH),
    "residual": dense(8, 8, use_residual=True, activation_function=TANH),
    "residual of another size": dense(8, 6, use_residual=True, activation_function=TANH),
    "an activation that draws in training": dense(
        8, 6, activation_function="torch.nn.modules.activation.RReLU"
    ),
    "an activation with weights": (
        "Dense",
        {"in_features": 8, "out_features": 6, "activation_function": PRELU},
        {"linear.weight": (6, 8), "linear.bias": (6,), "activation_function.weight": (1,)},
    ),
    "layer norm": ("LayerNorm", {"dimension": 8}, {"norm.weight": (8,), "norm.bias": (8,)}),
    "normalize": NORMALIZE,
}


def layers_of(folder: Path, *modules: Any) -> Any:
    add_sentence_files(folder, pooling("mean"), *modules)
    files = read_sentence_files(folder)
    assert files is not None
    return load_layers(folder, files.layers, 8)[0]


@pytest.mark.parametrize("case", LAYERS)
def test_each_layer_is_the_librarys(tmp_path: Path, case: str) -> None:
    (layer,) = layers_of(tmp_path, LAYERS[case])
    util = pytest.importorskip("sentence_transformers.util")
    kind = LAYERS[case][0]
    module = util.import_from_string(f"sentence_transformers.sentence_transformer.modules.{kind}")
    reference = module.load(str(tmp_path), subfolder=f"2_{kind}").eval()
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    expected = reference({"sentence_embedding": vectors.clone()})["sentence_embedding"]
    torch.testing.assert_close(layer(vectors), expected)


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_goes_where_its_vectors_are(tmp_path: Path, case: str) -> None:
    (layer,) = layers_of(tmp_path, LAYERS[case])
    with torch.inference_mode():
        for _ in range(2):
            assert layer(torch.zeros(2, 8, device="meta")).device.type == "meta"


def test_pickled_weights_are_read_where_there_are_no_others(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (layer,) = layers_of(tmp_path, dense(8, 6))
    weights = tmp_path / "2_Dense" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "2_Dense" / "pytorch_model.bin")
    weights.unlink()
    [again], _ = load_layers(tmp_path, [Layer("Dense", "2_Dense", dict(dense(8, 6)[1]))], 8)
    vectors = torch.randn(2, 8)
    torch.testing.assert_close(again(vectors), layer(vectors))


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def compressed(archive: bytes) -> bytes:
    made = io.BytesIO()
    before = zipfile.ZipFile(io.BytesIO(archive))
    with before, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    return made.getvalue()


def torch_file(value: object) -> bytes:
    stored = io.BytesIO()
    torch.save(value, stored)
    return stored.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "archive", "bomb", "no mapping", "odd names"])
def test_pickled_weights_run_nothing_and_fill_no_memory(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, expected = {
        "pickle": (pickle.dumps(Payload()), "2_Dense has weights that do not load"),
        "archive": (torch_file({"a": Payload()}), "2_Dense has weights that do not load"),
        "bomb": (compressed(torch_file(torch.zeros(1 << 22))), "would become 16,77"),
        "odd names": (torch_file({1: torch.zeros(3)}), "2_Dense has other weights than it says"),
        "no mapping": (torch_file(torch.zeros(3)), "2_Dense has weights that do not load"),
    }[kind]
    add_sentence_files(tmp_path, pooling("mean"), dense(8, 6))
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelLoadError, match=expected):
        load_layers(tmp_path, [Layer("Dense", "2_Dense", dict(dense(8, 6)[1]))], 8)
    assert not (tmp_path / "ran").exists()


def set_dense(**settings: Any) -> Any:
    return lambda folder: write_json(folder / "config.json", {**dense(8, 6)[1], **settings})


def overwritten(content: bytes) -> Any:
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


DAMAGE = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "2_Dense has no model.safetens"),
    "no safetensors": (overwritten(b"x" * 20), "2_Dense has weights that do not load"),
    "another size": (set_dense(out_features=7), "2_Dense has other weights than it says"),
    "a bias too many": (set_dense(bias=False), "2_Dense has other weights than it says"),
    "a weight too few": (set_dense(use_residual=True), "2_Dense has other weights than it says"),
    "another input": (set_dense(in_features=9), "says in_features=9, expected the 8 that it gets"),
    "size as text": (set_dense(in_features="8"), "says in_features='8', expected 1 to"),
    "size of all memory": (set_dense(in_features=10**15), "in_features=1000000000000000, expected"),
    "a function as activation": (
        set_dense(activation_function="os.system"),
        "names the activation 'os.system', expected one of torch.nn",
    ),
    "another module as activation": (
        set_dense(activation_function="torch.nn.modules.container.Sequential"),
        "expected one of torch.nn",
    ),
    "activation with arguments": (
        set_dense(activation_function="torch.nn.modules.activation.Threshold"),
        "expected one without arguments",
    ),
    "activation without its weights": (
        set_dense(activation_function=PRELU),
        "has other weights than it says",
    ),
    "null as activation": (set_dense(activation_function=None), "names the activation None"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_layer_whose_files_are_wrong_is_refused(tmp_path: Path, case: str) -> None:
    damage, expected = DAMAGE[case]
    add_sentence_files(tmp_path, pooling("mean"), dense(8, 6))
    damage(tmp_path / "2_Dense")
    files = read_sentence_files(tmp_path)
    assert files is not None
    with pytest.raises(ModelLoadError, match=expected) as caught:
        load_layers(tmp_path, files.layers, 8)
    assert repr(str(tmp_path)) in caught.value.message
    assert len(caught.value.message) < 1000
