"""Both towers as ONNX with a free batch size, checked with onnxruntime against torch on real images and captions.

    image.onnx       normalised pixels, float32 [batch, 3, H, W] -> features, float32 [batch, D]
    text.onnx        token ids, int64 [batch, context length] -> features, float32 [batch, D]
    adapter.onnx     in its place, where a language model reads the texts: its features, float32 [batch, W] -> features
    manifest.json    opset, preprocessing, logit scale, differences from torch, digests, provenance

The tokenizer's files and `open_clip_config.json` lie beside them. Pixels are normalised outside: mean and deviation
stand in the manifest. A language model stays outside as well: the manifest says which it is and how it is pooled, and
`language/` of the hub's folder holds it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline_lib import model
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.export.subject import STAGE, Subject, refuse_to_overwrite

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # largest relative difference of the features of a batch
LARGEST_FILE = 1_500_000_000  # bytes of weights above which they lie beside the .onnx file, which may hold 2 GB
INPUTS = {"image": "pixels", "text": "token_ids", "adapter": "language_features"}


class Tower(nn.Module):
    """One tower, or an adapter: inputs as they come from transform, tokenizer or language model -> features [B, D]."""

    def __init__(self, clip: model.Clip, side: str, *, normalize: bool) -> None:
        super().__init__()
        self.clip, self.side, self.normalize = clip.module, side, normalize

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return raw features, or those of unit length."""
        encode = self.clip.encode_image if self.side == "image" else self.clip.encode_text
        return encode(inputs, normalize=self.normalize)


def require() -> None:
    """Check that the optional packages are there.

    Raises:
        UserError: They are not.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export onnx: {', '.join(missing)} not installed; run `pip install -e '.[onnx]'`")


def write_onnx(subject: Subject, target: Path, *, normalize: bool = False, force: bool = False) -> dict[str, Any]:
    """Write and check both towers; returns the facts of the manifest.

    Raises:
        UserError: A package is missing, or `target` is not to be overwritten.
        RuntimeError: onnxruntime gives other features than torch.
    """
    require()
    refuse_to_overwrite(target, force=force)
    facts: dict[str, Any] = {}
    with artifacts.output_directory(target, STAGE) as place:
        for side, inputs in _inputs(subject).items():
            log.info("exporting %s.onnx (takes ten seconds and more)", side)
            tower = Tower(subject.clip, side, normalize=normalize).eval()
            opset = _export(tower, inputs, place(f"{side}.onnx"))
            difference = check_tower(tower, inputs, place(f"{side}.onnx"))
            shape = ["batch", *inputs.shape[1:]]
            facts[side] = {"input": INPUTS[side], "shape": shape, "type": str(inputs.dtype), "difference": difference}
        shutil.copyfile(subject.clip.directory / model.CONFIG, place(model.CONFIG))
        model.copy_files(subject.clip.directory, place())
        about = {"opset": opset, "normalized": normalize, "towers": facts}
        place(**about, model=dict(subject.facts), origin=subject.origin)
    return about


def check_tower(tower: Tower, inputs: torch.Tensor, path: Path) -> float:
    """Check onnxruntime against torch on the CPU, on one input and on all; return the largest relative difference.

    Raises:
        RuntimeError: It is above TOLERANCE.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for batch in (inputs[:1], inputs):
        with torch.no_grad():
            expected = tower(batch)
        found = torch.from_numpy(session.run(None, {INPUTS[tower.side]: batch.numpy()})[0])
        differences.append(((expected - found).abs().max() / expected.abs().max()).item())
    if not max(differences) <= TOLERANCE:  # also where it is NaN
        raise RuntimeError(f"{path.name}: differs from torch by {max(differences):.2g} (relative, limit {TOLERANCE})")
    return max(differences)


def _inputs(subject: Subject) -> dict[str, torch.Tensor]:
    """Return what the towers take, made from the sample."""
    clip = subject.clip
    images, texts = clip.normalize(subject.pixels(clip)), clip.tokenize(subject.sample.texts)
    if not isinstance(clip, model.JoinedClip):
        return {"image": images, "text": texts}
    with torch.no_grad():
        return {"image": images, "adapter": clip.language().encode(texts)}


def _export(tower: Tower, inputs: torch.Tensor, path: Path) -> int:
    """Trace with torch.export and write, without the traces of this machine's code at each node; returns the opset."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    weights = sum(p.numel() * p.element_size() for p in tower.parameters())
    # A batch of one would be taken for a constant; the exporter prints its progress and warns of its own internals.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            tower,
            (inputs,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUTS[tower.side]],
            output_names=["features"],
            verbose=False,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    program.save(path, external_data=weights > LARGEST_FILE)
    return int(program.model.opset_imports[""])
