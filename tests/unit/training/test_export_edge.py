"""The edge artifact computes what the model does: against transformers, in chunks, and by its own features."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import LlamaForCausalLM

from tiermesh.common.errors import ModelDirError
from tiermesh.common.model_dir import digests, read_eos_ids
from tiermesh.edge.artifact import read_artifact
from tiermesh.edge.model import EdgeModel
from tiermesh.edge.sequence import SequenceState
from tiermesh.training.export_edge import export_edge
from tiermesh.training.onnx_graph import block_size, pack, quantize
from tiermesh.training.random_model import write_random_model

IDS = np.random.default_rng(3).integers(3, 320, 40).tolist()


def soften(directory: Path) -> Path:
    """Scale the layers of a random model down: at full gain it amplifies int8 rounding as no trained model does."""
    model = LlamaForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.mul_(0.4)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(write_random_model(tmp_path_factory.mktemp("model"), tie=request.param, layers=3))


@pytest.fixture(scope="module")
def edge_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edge")
    export_edge(model_dir, out, 8)
    return out


def sequence(directory: Path) -> SequenceState:
    return EdgeModel.load(read_artifact(directory)).sequence()


def reference(directory: Path) -> npt.NDArray[np.float32]:
    """Logits [40, vocab] of transformers in float32."""
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = (
            LlamaForCausalLM.from_pretrained(directory)(torch.tensor([IDS])).logits[0].numpy()
        )
    return logits


def test_logits_follow_transformers_at_every_position(model_dir: Path, edge_dir: Path) -> None:
    expected, state = reference(model_dir), sequence(edge_dir)
    state.catch_up(IDS[:1])
    for position, row in enumerate(expected):
        if position:
            state.step(IDS[position])
        assert np.linalg.norm(state.logits[0, 0] - row) < 0.08 * np.linalg.norm(row), position


@pytest.mark.parametrize("cuts", [[40], [1, 40], [20, 40], [1, 2, 3, 20, 21, 39, 40]])
def test_chunks_on_a_filled_cache_give_the_logits_of_one_pass(edge_dir: Path, cuts: list[int]) -> None:
    whole, chunked = sequence(edge_dir), sequence(edge_dir)
    whole.catch_up(IDS)
    for cut in cuts:
        chunked.catch_up(IDS[:cut])
    np.testing.assert_allclose(chunked.logits, whole.logits, atol=1e-2)


def test_rolled_back_cache_equals_a_fresh_one(edge_dir: Path) -> None:
    rolled, fresh = sequence(edge_dir), sequence(edge_dir)
    rolled.catch_up(IDS)
    rolled.catch_up(IDS[:17])
    fresh.catch_up(IDS[:17])
    np.testing.assert_allclose(rolled.logits, fresh.logits, atol=1e-2)


def test_token_and_features_are_those_of_the_logits(edge_dir: Path) -> None:
    state = sequence(edge_dir)
    state.catch_up(IDS[:1])
    for token in IDS[1:12]:
        state.step(token)
        logits = state.logits[0, 0].astype(np.float64)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        top = np.sort(p)[::-1]
        assert state.token[0] == logits.argmax()
        np.testing.assert_allclose(state.features[0], [top[0], top[0] - top[1], -(p * np.log(p)).sum()], rtol=1e-3)


def test_four_bits_are_smaller_and_still_near(model_dir: Path, edge_dir: Path, tmp_path: Path) -> None:
    export_edge(model_dir, tmp_path, 4)
    assert (tmp_path / "edge.onnx").stat().st_size < (edge_dir / "edge.onnx").stat().st_size
    state, expected = sequence(tmp_path), reference(model_dir)[-1]
    state.catch_up(IDS)
    assert np.corrcoef(state.logits[0, 0], expected)[0, 1] > 0.95


def test_edge_json_states_shapes_ids_and_digests(model_dir: Path, edge_dir: Path) -> None:
    facts = json.loads((edge_dir / "edge.json").read_text())
    assert facts["architecture"] == {
        "layers": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 320, "max_length": 512,
        "rope_theta": 10000.0,
    }  # fmt: skip
    assert facts["eos_ids"] == [1] == list(read_eos_ids(edge_dir)) == list(read_eos_ids(model_dir))
    assert read_artifact(edge_dir).calibration is None, "not measured: nothing is trusted"
    both = digests(edge_dir), digests(model_dir)
    assert both[0].tokenizer == both[1].tokenizer == facts["digests"]["tokenizer"]
    assert both[0].template == both[1].template
    assert both[0].model == facts["digests"]["model"] != both[1].model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "only the Llama architecture"),
        ({"intermediate_size": 100}, "multiples of 32"),
        ({"head_dim": 8}, "multiples of 16"),
        ({"hidden_size": None}, "missing or no number"),
    ],
)
def test_what_the_graph_does_not_do_is_refused_by_name(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_random_model(tmp_path / "model") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelDirError, match=message):
        export_edge(path.parent, tmp_path / "edge")


def test_missing_files_and_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"config\.json is missing"):
        export_edge(tmp_path, tmp_path / "edge")
    with pytest.raises(ValueError, match="4 or 8"):
        export_edge(tmp_path, tmp_path / "edge", 3)


@pytest.mark.parametrize(("bits", "columns"), [(4, 128), (8, 96), (8, 128)])
def test_quantization_error_is_at_most_half_a_step(bits: int, columns: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, columns)).astype(np.float32)
    weight[0, :64] = 0
    block = block_size(columns, bits)
    codes, scales = quantize(weight, bits)
    steps = np.repeat(scales, block, axis=1)
    values = (codes.astype(np.float32) - (1 << (bits - 1))) * steps
    inside = codes < (1 << bits) - 1  # the far end may be clipped: it has one code less
    assert (np.abs(values - weight) <= np.abs(steps) * 0.5001)[inside].all()
    assert (np.abs(values - weight) <= np.abs(steps) * 1.0001).all()
    packed = pack(codes, bits)
    assert packed.shape == (6, columns // block, block * bits // 8)
    if bits == 4:
        assert (packed[..., 0] & 15 == codes.reshape(6, -1, block)[..., 0]).all()
