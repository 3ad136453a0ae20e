"""A language model as an encoder: features as transformers gives one text alone, and loud where they cannot be."""

import json

import pytest
import torch
import transformers

from pipeline_lib.core.errors import UserError
from pipeline_lib.model import language
from pipeline_lib.model.language import LanguageModel, Reading, load_language, pool, read_transformers, save_language
from tests.tiny_model import write_tiny_language, write_word_tokenizer

TEXTS = ["a red cat", "two birds near the green hill and the river", "house", "the photo of a blue dog in a house"]
READING = Reading(attention="own", pooling="mean", prompt="{}", max_length=24)


def opened(folder, **changes):
    reading = Reading(**{**READING.__dict__, **changes})
    return LanguageModel(*read_transformers(folder), reading, folder)


@pytest.fixture(params=["llama", "gpt2", "bert", "roberta"])
def folder(request, tmp_path):
    return write_tiny_language(tmp_path / request.param, request.param)


def alone(folder, text, specials_too):
    """The reference: transformers on one unpadded text, the mean of the hidden states of its tokens."""
    module, tokenizer = (
        transformers.AutoModel.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    hidden = module.eval()(input_ids=ids).last_hidden_state[0]
    own = torch.tensor([specials_too or int(i) not in (tokenizer.bos_token_id, tokenizer.eos_token_id) for i in ids[0]])
    return hidden[own].mean(0)


@torch.no_grad()
def test_features_of_a_padded_batch_are_those_of_each_text_alone(folder):
    """An encoder pools its special tokens as sentence-transformers does; a decoder's first token is a sink."""
    found = opened(folder)
    features = found.encode(found.tokenize(TEXTS))
    encoder = folder.name in ("bert", "roberta")
    expected = torch.stack([alone(folder, text, specials_too=encoder) for text in TEXTS])
    assert found.attention.causal_by_itself is not encoder
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_cutting_behind_the_longest_text_and_the_room_behind_it_change_nothing(folder):
    found = opened(folder)
    found.module.double()
    ids = found.tokenize(TEXTS)
    longest = int((ids >= 0).sum(1).max())
    assert longest < ids.shape[1]
    torch.testing.assert_close(found.encode(ids), found.encode(ids[:, :longest]), atol=1e-13, rtol=0)


def test_a_written_folder_gives_the_same_features_and_facts_that_change_with_each_choice(folder, tmp_path):
    found = opened(folder)
    save_language(found, tmp_path / "written")
    again = load_language(tmp_path / "written")
    with torch.no_grad():
        assert torch.equal(again.encode(again.tokenize(TEXTS)), found.encode(found.tokenize(TEXTS)))
    facts = again.facts()
    assert facts == load_language(tmp_path / "written").facts()
    assert str(tmp_path) not in (tmp_path / "written/config.json").read_text()
    for key, value in {"pooling": "last", "prompt": "say {}", "max_length": 20}.items():
        (tmp_path / "written/language.json").write_text(json.dumps({**READING.__dict__, key: value}))
        assert load_language(tmp_path / "written").facts() == {**facts, key: value}


@torch.no_grad()
def test_a_decoder_is_made_bidirectional_and_stays_so_when_loaded_again(tmp_path):
    """Changing the last word changes the first position's hidden state, or not at all; padded and alone."""
    folder = write_tiny_language(tmp_path / "llama")
    first = []
    for attention in ("own", "bidirectional"):
        found = opened(folder, attention=attention, pooling="cls", prompt="{}")
        save_language(found, tmp_path / attention)
        again = load_language(tmp_path / attention)
        assert again.attention.causal_by_itself
        assert again.attention.causal is (attention == "own")
        ids = again.tokenize(["a red cat", "a red dog", TEXTS[1]])
        a, b, _ = again.encode(ids)
        torch.testing.assert_close(again.encode(ids[:1, :4])[0], a, atol=1e-6, rtol=1e-5)
        assert torch.equal(a, b) is (attention == "own")
        first.append(a)
    assert not torch.allclose(first[0], first[1])


def test_a_model_whose_switch_does_nothing_is_refused(tmp_path, monkeypatch):
    folder = write_tiny_language(tmp_path / "llama")
    module, tokenizer = read_transformers(folder)
    monkeypatch.setattr(type(module.config), "is_causal", property(lambda self: True, lambda self, value: None), False)
    with pytest.raises(UserError, match=r"`bidirectional` has no effect on `llama` in transformers \d"):
        LanguageModel(module, tokenizer, Reading("bidirectional", "mean", "{}", 24), folder)


def test_equal_sources_give_equal_bytes_wherever_they_lie(tmp_path):
    written = []
    for place in ("here", "there"):
        found = opened(write_tiny_language(tmp_path / place))
        save_language(found, tmp_path / f"of-{place}")
        written.append({path.name: path.read_bytes() for path in (tmp_path / f"of-{place}").iterdir()})
    assert written[0] == written[1]


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "RobertaForMaskedLM", "LlamaForCausalLM", "ElectraForPreTraining"])
def test_a_folder_with_a_head_on_top_gives_the_features_of_the_model_below(tmp_path, kind):
    """As most are published: names with a prefix, and weights that no hidden state passes through."""
    plain = write_tiny_language(tmp_path / "plain", kind.split("For")[0].lower())
    module = transformers.AutoModel.from_pretrained(plain)
    whole = getattr(transformers, kind)(module.config)
    setattr(whole, whole.base_model_prefix, module)
    headed = write_tiny_language(tmp_path / "headed", kind.split("For")[0].lower())
    whole.save_pretrained(headed)
    with torch.no_grad():
        first, second = (m.encode(m.tokenize(TEXTS)) for m in (opened(plain), opened(headed)))
    assert torch.equal(first, second)


@torch.no_grad()
def test_the_last_position_is_the_end_of_text_token_where_there_is_one(tmp_path):
    for template, place in (("<s> $A", 3), ("<s> $A </s>", 4)):
        folder = write_tiny_language(tmp_path / str(place))
        write_word_tokenizer(folder, template)
        found = opened(folder, pooling="last")
        ids = found.tokenize(["a red cat"])
        hidden = found.module(input_ids=ids[:, : place + 1]).last_hidden_state[0]
        torch.testing.assert_close(found.encode(ids)[0], hidden[place], atol=1e-6, rtol=1e-5)


def write_byte_pairs(folder):
    """A tokenizer in whose tokens a word has its space before it, as GPT-2's and Llama 3's have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {sign: row for row, sign in enumerate(sorted(alphabet))} | {"Ġa": 256, "ca": 257, "Ġca": 258}
    inner = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("c", "a"), ("Ġ", "ca")]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(folder)


def test_words_behind_a_prompt_are_those_of_the_whole_sentence(tmp_path):
    """A space at the prompt's end is read with the text; a prompt that merges with it is refused."""
    folder = write_tiny_language(tmp_path / "llama", vocab_size=300)
    write_byte_pairs(folder)
    found = opened(folder, prompt="say: {}", max_length=24)
    [ids] = found.tokenize(["a cat"])
    whole = found.tokenizer("say: a cat", add_special_tokens=False)["input_ids"]
    assert ids[: len(whole)].tolist() == whole
    assert 256 in whole
    with pytest.raises(UserError, match=r"language.prompt: 'say c\{\}': its tokens merge with those of a text"):
        opened(folder, prompt="say c{}", max_length=24)


@torch.no_grad()
def test_the_prompt_is_seen_and_not_pooled(tmp_path):
    folder = write_tiny_language(tmp_path / "llama")
    plain, asked = opened(folder), opened(folder, prompt="the photo of {} in the house")
    ids, with_prompt = plain.tokenize(TEXTS[:1]), asked.tokenize(TEXTS[:1])
    assert (with_prompt >= 0).sum() == (ids >= 0).sum() + 6
    assert not torch.allclose(plain.encode(ids), asked.encode(with_prompt))
    hidden = asked.module(input_ids=with_prompt[:, :10]).last_hidden_state[
        0
    ]  # <s> the photo of | a red cat | in the house
    torch.testing.assert_close(asked.encode(with_prompt)[0], hidden[4:7].mean(0), atol=1e-6, rtol=1e-5)


def test_pooling_by_hand():
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    pooled = torch.tensor([[False, True, True, False], [False, True, False, False]])
    assert torch.equal(pool(hidden, pooled, "mean"), torch.stack([hidden[0, 1:3].mean(0), hidden[1, 1]]))
    assert torch.equal(pool(hidden, pooled, "last"), torch.stack([hidden[0, 2], hidden[1, 1]]))
    assert torch.equal(pool(hidden, pooled, "cls"), hidden[:, 0])


def test_truncated_texts_are_those_with_more_tokens_than_there_is_room(folder):
    found = opened(folder, max_length=9)
    exact, longer = " ".join(["cat"] * found.room), " ".join(["cat"] * (found.room + 1))
    ids = found.tokenize([exact, longer, "cat"])
    assert torch.equal(ids[0], ids[1])
    assert found.truncated([exact, longer, "cat"], ids).tolist() == [False, True, False]


def test_a_text_of_which_nothing_is_pooled_is_refused(tmp_path):
    decoder = opened(write_tiny_language(tmp_path / "llama"))
    with pytest.raises(UserError, match=r"the text ' ' gives no token of .*llama; leave it out"):
        decoder.tokenize(["a cat", " "])
    encoder = opened(write_tiny_language(tmp_path / "bert", "bert"))
    assert (encoder.tokenize([" "]) >= 0).sum() == 2


def _edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _other_weights(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if "layers.1." not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def _not_finite(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: _edit_config(f, auto_map={"AutoModel": "evil.Model"}),
            r"`auto_map` asks for code of its own.*not run",
        ),
        (lambda f: _edit_config(f, is_encoder_decoder=True), "only models of one stack"),
        (
            lambda f: (f / "adapter_config.json").write_text("{}"),
            "LoRA beside a model; merge it first",
        ),
        (lambda f: (f / "config.json").unlink(), r"no config.json; give the folder of a transformers model"),
        (_pickle, r"no \*.safetensors; load it and `save_pretrained` it again"),
        (_other_weights, r"weights do not fit the configuration: \d+ missing \(first .*layers.1"),
        (_not_finite, r"do not fit the configuration: 1 not finite"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 9), "does not load as a language model"),
    ],
)
def test_folders_that_cannot_be_read_get_one_sentence(tmp_path, damage, message):
    folder = write_tiny_language(tmp_path / "llama")
    damage(folder)
    with pytest.raises(UserError, match=message):
        read_transformers(folder)


def test_a_tokenizer_that_transformers_rebuilds_otherwise_is_refused(tmp_path):
    """A model of type `qwen2` gets a tokenizer of byte pairs, whatever tokenizer.json says: words vanish."""
    with pytest.raises(UserError, match=r"transformers makes other tokens of .* than tokenizer.json says"):
        read_transformers(write_tiny_language(tmp_path / "qwen2", "qwen2"))


def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(tmp_path):
    folder = write_tiny_language(tmp_path / "llama", vocab_size=9)
    with pytest.raises(UserError, match=r"the tokenizer has 24 tokens, the model knows 9"):
        read_transformers(folder)


def test_a_model_that_gives_padding_no_position_is_tried_with_real_tokens(tmp_path):
    """RoBERTa's first position is behind its padding's: of 64 positions 62 can be read."""
    folder = write_tiny_language(tmp_path / "roberta", "roberta")
    assert opened(folder, max_length=62).reading.max_length == 62
    with pytest.raises(UserError, match=r"language.max_length: 63 tokens cannot be read .*; lower it"):
        opened(folder, max_length=63)


@pytest.mark.parametrize(("length", "message"), [(99, "99, but the model reads 64"), (1, "leaves no token for a text")])
def test_lengths_that_cannot_be_read_are_refused(tmp_path, length, message):
    with pytest.raises(UserError, match=rf"language.max_length: .*{message}"):
        opened(write_tiny_language(tmp_path / "llama"), max_length=length)


def test_a_missing_reading_says_where_to_look(tmp_path):
    with pytest.raises(UserError, match=r"no language.json in it; run `dvc repro`, or check paths.text"):
        load_language(write_tiny_language(tmp_path / "llama"))
    assert language.PADDING == -1
