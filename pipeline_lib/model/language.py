"""A frozen language model as an encoder of texts: token ids, hidden states, pooling. Any transformers folder.

The folder says all that decides a feature: `config.json`, safetensors, the tokenizer's files, and `language.json` with
attention, pooling, prompt and length (`Reading`). Nothing is decided by a model's name, and no code of the folder runs.
Texts are padded on the right with −1, never a real id, so that a padding token that is also a real one (as in Llama and
SmolLM2) cannot be mistaken. Whether attention is what it is said to be is tried out at load, see `probe`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.model.files import TOKENIZER_FILES, TOWER_CONFIG, save_weights, weights_digest
from pipeline_lib.model.licence import copy_licences
from pipeline_lib.model.probe import Attention, probe_attention

READING = "language.json"
LANGUAGE_WEIGHTS = "model.safetensors"
PADDING = -1
TRIED = ("a photo of a cat", "Two dogs, naïve & wet:  3 of №7", "house")
INSTALL = "install the extra `language` (transformers >= 5.3, peft, gguf)"
_HEADS = (  # parts on top, which no hidden state passes through; `_` at the end: the beginning of a name
    *("pooler.", "lm_head.", "cls.", "score.", "classifier.", "qa_outputs.", "decoder.", "head."),
    *("predictions.", "discriminator_predictions.", "generator_", "vocab_"),
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How texts are read: what decides their features beside weights and tokenizer."""

    attention: Literal["own", "bidirectional"]
    pooling: Literal["mean", "last", "cls"]
    prompt: str  # the text stands for {}; its own tokens are seen and in no mean
    max_length: int  # tokens, with those of the prompt and the special ones

    @property
    def around(self) -> tuple[str, str]:
        """Return what stands before and after the text; a space before it is read with it, see `lead`."""
        before, _, after = self.prompt.partition("{}")
        return before.rstrip(), after

    @property
    def lead(self) -> str:
        """Return the space at the end of what stands before the text: words of byte pairs begin with theirs."""
        before = self.prompt.partition("{}")[0]
        return before[len(before.rstrip()) :]


class Frame(NamedTuple):
    """The tokens around those of a text: the special ones and the prompt's."""

    before: list[int]
    after: list[int]
    pools_before: list[bool]  # which of them are in the mean with the text's own
    pools_after: list[bool]
    lead: str  # is read with the text


class LanguageModel:
    """A loaded language model. N texts, L = `reading.max_length` tokens, W = `width` of its hidden states."""

    def __init__(self, module: torch.nn.Module, tokenizer: Any, reading: Reading, directory: Path) -> None:
        """Wrap `module` and try out its attention; use `load_language`."""
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.reading = reading
        self.directory = directory
        self._special = _special_tokens(tokenizer)
        self._prompt = tuple(self._ids([text])[0] if text else [] for text in reading.around)
        try:
            config: Any = module.config
            self.width: int = config.hidden_size
            self.padding: int = config.pad_token_id or 0
            self.attention: Attention = probe_attention(module, reading.attention, reading.max_length)
            self._check_prompt()
        except UserError as error:
            raise UserError(f"{directory}: {error}") from error
        except (RuntimeError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise UserError(f"{directory}: cannot be run as a language model: {first_lines(error)}") from error
        if self.room < 1:
            raise UserError(f"language.max_length: {reading.max_length} leaves no token for a text; raise it")

    def _check_prompt(self) -> None:
        """Refuse a prompt that is read with other tokens in one piece than beside the text: they would merge."""
        for text in TRIED:
            apart = [*self._prompt[0], *self._ids([self.reading.lead + text])[0], *self._prompt[1]]
            if self._ids([self.reading.prompt.replace("{}", text)])[0] != apart:
                raise UserError(
                    f"language.prompt: {self.reading.prompt!r}: its tokens merge with those of a text ({text!r}); end "
                    "it before {} with a sign, or with a space behind one"
                )

    def with_module(self, module: torch.nn.Module) -> LanguageModel:
        """Read texts in the same way with other weights; the attention is tried out anew."""
        config: Any = module.config
        if self.attention.causal_by_itself and not self.attention.causal:
            del config.is_causal  # which was set here
        return LanguageModel(module, self.tokenizer, self.reading, self.directory)

    @property
    def room(self) -> int:
        """Return how many tokens of a text itself are read."""
        return self.reading.max_length - sum(map(len, (*self._special, *self._prompt)))

    @property
    def frame(self) -> Frame:
        """Return what stands around the tokens of a text."""
        (first, last), (before, after), special = self._special, self._prompt, self._pools_special
        return Frame(
            [*first, *before],
            [*after, *last],
            [special] * len(first) + [False] * len(before),
            [False] * len(after) + [special] * len(last),
            self.reading.lead,
        )

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def _text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._ids([self.reading.lead + text for text in texts]) if texts else []

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the token ids of N texts, int64 [N, L], padded on the right with −1, too long ones truncated.

        Raises:
            UserError: Nothing is left to be pooled of a text.
        """
        found = torch.full((len(texts), self.reading.max_length), PADDING, dtype=torch.int64)
        (first, last), (before, after) = self._special, self._prompt
        for row, ids in enumerate(self._text_ids(texts)):
            if not ids and not self._pools_special:
                raise UserError(f"the text {texts[row]!r} gives no token of {self.directory}; leave it out")
            whole = [*first, *before, *ids[: self.room], *after, *last]
            found[row, : len(whole)] = torch.tensor(whole)
        return found

    def truncated(self, texts: Sequence[str], token_ids: torch.Tensor) -> torch.Tensor:
        """Return which texts have more tokens than are read, bool [N]; `token_ids` [N, L] are those that are."""
        found = token_ids[:, -1] != PADDING
        rows = found.nonzero()[:, 0].tolist()
        for row, ids in zip(rows, self._text_ids([texts[row] for row in rows]), strict=True):
            found[row] = len(ids) > self.room
        return found

    @property
    def _pools_special(self) -> bool:
        """Tell whether special tokens are pooled: as encoders are made; the first of a causal model is a sink."""
        return not self.attention.causal_by_itself and bool(sum(map(len, self._special)))

    def encode(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the features [n, W], at least float32, of token ids [n, L'], cut anywhere behind the longest text."""
        mask = token_ids != PADDING
        ids = token_ids.masked_fill(~mask, self.padding)
        hidden = self.module(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        hidden = hidden.float() if hidden.dtype in (torch.bfloat16, torch.float16) else hidden
        return pool(hidden, mask if self.reading.pooling == "last" else self._pooled(mask), self.reading.pooling)

    def _pooled(self, mask: torch.Tensor) -> torch.Tensor:
        """Return which positions a mean is of, bool [n, L']: the text's own and, see `_pools_special`, special ones."""
        (first, last), (before, after) = self._special, self._prompt
        place, end = torch.arange(mask.shape[1], device=mask.device), mask.sum(1, keepdim=True)
        text = (place >= len(first) + len(before)) & (place < end - len(last) - len(after))
        special = (place < len(first)) | ((place >= end - len(last)) & (place < end))
        return text | special if self._pools_special else text

    def facts(self) -> dict[str, Any]:
        """Compute from weights and files what decides a feature, as JSON values."""
        config = artifacts.read_json(self.directory / TOWER_CONFIG)
        files = [self.directory / name for name in TOKENIZER_FILES]
        return {
            "weights_digest": weights_digest(self.module.state_dict()),
            "config_digest": artifacts.digest({key: config[key] for key in config if key != "transformers_version"}),
            "tokenizer_digest": artifacts.digest({p.name: artifacts.sha256_file(p) for p in files if p.is_file()}),
            "width": self.width,
            "causal": self.attention.causal,
            **asdict(self.reading),
        }


def text_lengths(token_ids: torch.Tensor) -> torch.Tensor:
    """Count the tokens of each text, int64 [N], of token ids [N, L]."""
    return (token_ids != PADDING).sum(1)


def pool(hidden: torch.Tensor, pooled: torch.Tensor, pooling: str) -> torch.Tensor:
    """Reduce hidden states [n, L, W] to features [n, W] over the positions `pooled`, bool [n, L].

    `mean` of them, `last` of them, or `cls`, the very first position. The last of a whole text is its end-of-text
    token, where the tokenizer writes one, or the last of what a prompt says behind the text.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = (pooled * torch.arange(1, pooled.shape[1] + 1, device=pooled.device)).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = pooled.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text."""
    bare = tokenizer(["a"], add_special_tokens=False)["input_ids"][0]
    whole = tokenizer(["a"], add_special_tokens=True)["input_ids"][0]
    starts = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
    if not bare or not starts:
        raise UserError("language: the tokenizer writes no text between its special tokens; take another model")
    return whole[: starts[0]], whole[starts[0] + len(bare) :]


# ---- folders ----


def load_language(directory: Path, *, device: torch.device | str = "cpu") -> LanguageModel:
    """Load a folder that `save_language` wrote, from anywhere and with no network, in float32.

    Raises:
        UserError: A file is missing or does not fit, or attention is not what the folder says.
    """
    if not (directory / READING).is_file():
        raise UserError(f"{directory}: no {READING} in it; run `dvc repro`, or check paths.text")
    reading = Reading(**artifacts.read_json(directory / READING))
    language = LanguageModel(*read_transformers(directory), reading, directory)
    language.module.to(device)
    return language


def read_transformers(folder: Path, gguf_file: str | None = None) -> tuple[torch.nn.Module, Any]:
    """Load the model and tokenizer of a transformers folder in float32, without its heads and its code.

    Raises:
        UserError: It brings code of its own, is no single encoder or decoder, has weights that are no safetensors, that
            do not fit or are not finite, or a tokenizer with more tokens than the model knows.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"language: transformers is not there; {INSTALL}") from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would warn of is checked below
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    source |= {"gguf_file": gguf_file} if gguf_file else {}
    try:
        if not gguf_file:
            _check_folder(folder)
        config = transformers.AutoConfig.from_pretrained(folder, **source)
        module, loaded = _read_module(transformers.AutoModel, folder, config, source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
    except UserError:
        raise
    except Exception as error:  # transformers raises nearly every type on a broken folder
        raise UserError(f"{folder}: does not load as a language model: {first_lines(error)}") from error
    _check_loaded(folder, module, loaded, tokenizer)
    read: Any = module.config
    read.use_cache = False
    return module, tokenizer


def _check_folder(folder: Path) -> None:
    config = folder / TOWER_CONFIG
    if not config.is_file():
        raise UserError(f"{folder}: no {TOWER_CONFIG}; give the folder of a transformers model")
    found = artifacts.read_json(config)
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: adapter_config.json: LoRA beside a model; merge it first")
    if found.get("auto_map"):
        raise UserError(
            f"{config}: `auto_map` asks for code of its own, which is not run here: transformers' class of that name "
            "may be another model; save it with a class of transformers"
        )
    if found.get("is_encoder_decoder"):
        raise UserError(f"{config}: an encoder with a decoder; only models of one stack are read")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors; load it and `save_pretrained` it again with safetensors")


def _read_module(
    kind: Any, folder: Path, config: Any, source: Mapping[str, Any]
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Load the weights, without the pooling layer that some kinds of encoder add and no feature passes through."""
    options = {**source, "config": config, "dtype": torch.float32, "output_loading_info": True}
    if "gguf_file" not in source:
        options["use_safetensors"] = True
    try:
        return kind.from_pretrained(folder, add_pooling_layer=False, **options)
    except TypeError:
        return kind.from_pretrained(folder, **options)


def _check_loaded(folder: Path, module: torch.nn.Module, loaded: Mapping[str, Any], tokenizer: Any) -> None:
    prefix = f"{module.base_model_prefix}."
    named = {name: str(name).removeprefix(prefix) for name in loaded.get("unexpected_keys", ())}
    unexpected = [name for name, own in named.items() if not own.startswith(_HEADS)]
    groups = {
        "missing": loaded.get("missing_keys", ()),
        "unexpected": unexpected,
        "of another shape": loaded.get("mismatched_keys", ()),
        "not finite": [name for name, tensor in module.state_dict().items() if not tensor.isfinite().all()],
    }
    problems = [f"{len(names)} {kind} (first {min(map(str, names))})" for kind, names in groups.items() if names]
    if problems:
        raise UserError(
            f"{folder}: weights do not fit the configuration: {'; '.join(problems)}; load it with AutoModel of "
            "transformers and `save_pretrained` it again"
        )
    _check_tokenizer(folder, tokenizer)
    rows: int = module.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if len(tokenizer) > rows:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model knows {rows}; take the model's tokenizer"
        )


def _check_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Compare with tokenizer.json itself: transformers rebuilds some tokenizers by the kind of model beside them."""
    if not (folder / "tokenizer.json").is_file():
        return
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    for text in TRIED:
        if plain.encode(text, add_special_tokens=False).ids != tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise UserError(
                f"{folder}: transformers makes other tokens of {text!r} than tokenizer.json says; see to "
                "`tokenizer_class` in tokenizer_config.json"
            )


def save_language(language: LanguageModel, directory: Path) -> None:
    """Write a folder that `load_language` reads; plain transformers read it too, with the model's own attention."""
    directory.mkdir(parents=True, exist_ok=True)
    config: Any = language.module.config
    written = config.to_dict()
    written.pop("quantization_config", None)  # of a GGUF file, whose weights are plain numbers by now
    written.pop("_name_or_path", None)  # of a machine
    if language.attention.causal_by_itself:
        written.pop("is_causal", None)  # `reading` says it
    written |= {"architectures": [type(language.module).__name__], "dtype": "float32"}
    artifacts.write_json(directory / TOWER_CONFIG, written)
    save_weights(language.module.state_dict(), directory / LANGUAGE_WEIGHTS)
    language.tokenizer.save_pretrained(directory)
    artifacts.write_json(directory / READING, asdict(language.reading))


def copy_language(source: Path, target: Path) -> None:
    """Copy the files of a language model's folder and its licence, whatever else lies beside them."""
    target.mkdir(parents=True, exist_ok=True)
    names = [TOWER_CONFIG, READING, "tokenizer.model", "chat_template.jinja", *TOKENIZER_FILES]
    names += [path.name for path in source.glob("*.safetensors*")]
    for name in dict.fromkeys(names):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    copy_licences(source, target)
