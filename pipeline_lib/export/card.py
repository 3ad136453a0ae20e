"""The model card: what the model is, how it loads, what was measured, under which licence, and where it came from.

The tables are those of the report, drawn from the same blocks; this module adds what a stranger to the project needs.
The YAML on top is huggingface_hub's own.
"""

from __future__ import annotations

import json
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pipeline_lib.base.kinds import CLIP, Kind, kind_of
from pipeline_lib.export import without_package
from pipeline_lib.export.subject import Subject
from pipeline_lib.model import Clip, JoinedClip, is_described
from pipeline_lib.model.joined import LANGUAGE
from pipeline_lib.report import page, tables
from pipeline_lib.report import run as report
from pipeline_lib.report.page import Cell, Page, Row, Section, Table, Text
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.measure import Measure

TASK = "zero-shot-image-classification"
HUB_TASKS = {  # the hub's names, by kind of headline
    "zero_shot": TASK,
    "log_rank": "image-text-retrieval",
    "recall": "image-text-retrieval",
    "choice": "image-text-matching",
}
METRICS = {"log_rank": "log_rank", "recall": "recall"}  # likewise; others are accuracies
LICENCES = (  # the hub's names, by which many licences already begin
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "openrail", "cc0-1.0"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
)


def render_card(
    subject: Subject, folder: str, repository: str = "", library: str = "open_clip", *, note: str = ""
) -> str:
    """Render the card as Markdown with YAML on top.

    Args:
        subject: What is exported.
        folder: Name of the folder, for the lines that load it.
        repository: `ORG/NAME` on the hub, if it is to go there.
        library: Which loads the folder, open_clip or transformers; neither does so alone where texts go through a
            language model.
        note: What else is to be known of how it loads.
    """
    library = "" if isinstance(subject.clip, JoinedClip) else library
    title = repository.rpartition("/")[2] or folder
    how = _how_to_load(subject, folder, repository, library) + ([Text(note)] if note else [])
    document = Page(title, _lead(subject), tuple(_sections(subject, how)), contents=False)
    text = f"---\n{_front_matter(subject, title, library)}\n---\n{page.to_markdown(document)}"
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def loading(clip: Clip, folder: str) -> str:
    """Return the Python lines that load the folder with nothing but open_clip, from the disk and with no network.

    open_clip asks the hub for the configuration of a Hugging Face text tower, even where it lies in the folder, and
    timm the working directory for that of a described image tower; they are therefore told where to look.
    """
    place, first, more = f'"local-dir:{folder}"', "import open_clip", ""
    settings = clip.config["model_cfg"]
    if is_described(settings["vision_cfg"], clip.directory):
        first = (
            "import json, open_clip\n"
            f'vision_cfg = json.load(open("{folder}/open_clip_config.json"))["model_cfg"]["vision_cfg"]\n'
            f'vision_cfg["timm_model_name"] = "local-dir:{folder}"'
        )
        more = ", vision_cfg=vision_cfg"
    elif settings["text_cfg"].get("hf_model_name"):
        first = (
            "import json, open_clip\n"
            f'text_cfg = json.load(open("{folder}/open_clip_config.json"))["model_cfg"]["text_cfg"]\n'
            f'text_cfg |= {{"hf_model_name": "{folder}", "hf_model_pretrained": False}}'
        )
        more = ", text_cfg=text_cfg"
    return (
        f"{first}\n"
        f"model, _, preprocess = open_clip.create_model_and_transforms({place}{more})\n"
        f"tokenizer = open_clip.get_tokenizer({place})"
    )


def licence(subject: Subject) -> dict[str, Any]:
    """Return the hub's `license` (and name and link where it has no word for it), from what the stages recorded."""
    language = subject.facts.get(LANGUAGE)
    said = [str(facts.get("license", "unknown")) for facts in (subject.facts, language) if facts]
    known = {
        next((name for name in LICENCES if re.match(rf"{re.escape(name)}(?![\w-])", one.lower())), "") for one in said
    }
    if len(known) == 1 and "" not in known:
        return {"license": known.pop()}
    link = re.search(r"https?://[^\s)]+", said[0]) if not language else None
    return {
        "license": "other",
        "license_name": "those-of-the-base-and-the-language-model" if language else "that-of-the-base-model",
        "license_link": link[0] if link else "README.md",
    }


def both_licences(subject: Subject) -> dict[str, str]:
    """Return `license` in words where a language model has one of its own; nothing where there is none."""
    language = subject.facts.get(LANGUAGE)
    if not language:
        return {}
    both = subject.facts.get("license", "unknown"), language.get("license", "unknown")
    return {"license": "{} (base model), {} (language model)".format(*both)}


def _front_matter(subject: Subject, title: str, library: str) -> str:
    data = ModelCardData(
        library_name=library or None,
        pipeline_tag=TASK,
        tags=["clip", *filter(None, [library]), TASK, *([] if subject.name == "base" else ["clip-refine"])],
        model_name=title,
        eval_results=_results(subject) or None,
        **licence(subject),
    )
    return data.to_yaml().strip()


def _results(subject: Subject) -> list[EvalResult]:
    """Return the headlines on the evaluation sets, for the hub's own display."""
    measured = subject.measured or {}
    return [
        EvalResult(
            task_type=HUB_TASKS[measure.kind],
            dataset_type=name,
            dataset_name=name,
            metric_type=METRICS.get(measure.kind, "accuracy"),
            metric_name=measure.label,
            metric_value=round(100 * measured[name][measure.key], 2),
        )
        for name in subject.inputs.sets
        for measure in _headlines(subject, name)
        if measure.key in measured.get(name, {})
    ]


def _lead(subject: Subject) -> str:
    source = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in (subject.facts.get("source") or {}).items() if value
    )
    base = f"a base model ({source})" if source else "a base model"
    recipe, count = subject.inputs.parameters["refine"]["recipe"], len(subject.inputs.history)
    refined = f"refined with the recipe `{recipe}` of CLIP-Refine (arXiv 2504.12717) for {count} steps"
    if subject.name == "base":
        return f"The base of a refinement, as it was before: {base}."
    if subject.mix is None:
        return f"A dual encoder for images and text: {base}, {refined}.{_language(subject)}"
    return (
        f"A dual encoder for images and text, between two models: {100 * subject.mix:g} % of the weights of {base}, "
        f"{refined}, and {100 * (1 - subject.mix):g} % of those it had before (WiSE-FT, arXiv 2109.01903)."
    )


def _language(subject: Subject) -> str:
    """Say which language model reads the texts; nothing where none does."""
    facts = subject.facts.get(LANGUAGE)
    if not facts:
        return ""
    source = ", ".join(f"{name} {value}" for name, value in facts.get("source", {}).items()) or "unknown"
    attention = "causal" if facts["causal"] else "bidirectional"
    settings = subject.inputs.parameters.get("language") or {}
    tuned = ", which was tuned on pairs of captions," if settings.get("tune") else ""
    return (
        f" Texts go through no text tower of the base model but through a language model (source: {source}; "
        f"licence: {facts.get('license', 'unknown')}){tuned} and an adapter that was trained with the image tower. It "
        f"reads {facts['max_length']} tokens of a text, special ones included, with {attention} attention and the "
        f"prompt `{json.dumps(facts['prompt'], ensure_ascii=False)}`; pooling: {facts['pooling']}."
    )


def _licence_text(subject: Subject) -> str:
    language = subject.facts.get(LANGUAGE)
    more = f" That of the language model: {language.get('license', 'unknown')}." if language else ""
    return f"That of the base model: {subject.facts.get('license', 'unknown')}.{more}"


def _sections(subject: Subject, how_to_load: list[Text]) -> list[Section]:
    return [
        Section("Load it", tuple(how_to_load)),
        Section("Measured", tuple(_measured(subject))),
        Section("Data", (Text(_training_data(subject)), *tables.data_table(subject.inputs))),
        Section("Licence", (Text(_licence_text(subject)),)),
        Section("Provenance", (Text(_weights(subject)), *tables.provenance_tables(subject.inputs))),
    ]


def _how_to_load(subject: Subject, folder: str, repository: str, library: str) -> list[Text]:
    if isinstance(subject.clip, JoinedClip):
        return _how_to_load_joined(subject.clip, folder, repository)
    if library == "transformers":
        return [Text(_code(use_in_transformers(repository or folder, kind_of(subject.clip))))]
    blocks = []
    if repository:
        place = f'"hf-hub:{repository}"'
        blocks += [
            Text("From the hub:"),
            Text(_code("import open_clip\n"
                       f"model, _, preprocess = open_clip.create_model_and_transforms({place})\n"
                       f"tokenizer = open_clip.get_tokenizer({place})")),
        ]  # fmt: skip
    blocks += [Text(f"From the folder `{folder}`, with no network:"), Text(_code(loading(subject.clip, folder)))]
    blocks.append(Text(
        "`model.encode_image(preprocess(image)[None])` and `model.encode_text(tokenizer([text]))` give raw features; "
        "compare them after dividing each by its length."
    ))  # fmt: skip
    return blocks


def _how_to_load_joined(clip: JoinedClip, folder: str, repository: str) -> list[Text]:
    place = f'folder = "{folder}"'
    if repository:
        place = f'import huggingface_hub\n\nfolder = huggingface_hub.snapshot_download("{repository}")'
    return [
        Text(
            "Where the project that made it is installed, `pipeline_lib.model.open_folder(folder)` reads the folder. "
            "Anywhere else these lines give the same raw features; compare them after dividing each by its length:"
        ),
        Text(_code(without_package.lines(clip, place))),
    ]


def use_in_transformers(place: str, kind: Kind) -> str:
    """Return the Python lines that load a folder of that kind, or a repository of the hub, and use it."""
    model, processor = kind.model, kind.processor
    probabilities = "softmax(dim=-1)" if kind is CLIP else "sigmoid()"
    return (
        f"from transformers import {model}, {processor}\n"
        f'model, processor = {model}.from_pretrained("{place}"), {processor}.from_pretrained("{place}")\n'
        'how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}\n'
        f"probabilities = model(**processor(images=[image], text=texts, **how)).logits_per_image.{probabilities}"
    )


def _code(lines: str) -> str:
    return f"```python\n{lines}\n```"


def _measured(subject: Subject) -> list[Any]:
    inputs = subject.inputs
    if subject.name == "base":
        return [Text("Before refinement, with intervals in brackets."), _base_table(subject)]
    if subject.mix is None:
        return [Text(report.sentence(inputs), lead=True), tables.before_after_table(inputs)]
    if subject.measured is None:
        seen = ", ".join(f"{row['mix']:g}" for row in inputs.refined.results.get("wise_ft") or []) or "none"
        return [
            Text("The numbers of this mix were not measured.", lead=True),
            Text(f"Mixes that were: {seen}. The models at both ends:"),
            tables.before_after_table(inputs),
        ]
    return [
        Text(
            "The headlines of this mix, measured in the sweep between base and refined model; they carry no intervals "
            "and no test. The part on which a mix may be chosen is marked; the other sets are to be looked at once."
        ),
        _mix_table(subject),
        Text("The models at both ends, with intervals:"),
        tables.before_after_table(inputs),
    ]


def _headlines(subject: Subject, set_name: str) -> list[Measure]:
    return Variant(subject.inputs.refined).headlines(set_name)


def _base_table(subject: Subject) -> Table:
    rows: list[Row] = []
    for name in subject.inputs.sets:
        rows.append(page.group(name))
        rows += [
            Row((Cell(m.label), tables.share(m.interval)), "strong" if m.is_headline else "plain")
            for m in Variant(subject.inputs.base).measures(name)
            if m.has_interval
        ]
    return Table(("percent", "base"), tuple(rows))


def _mix_table(subject: Subject) -> Table:
    rows: list[Row] = []
    selection = subject.inputs.refined.selection
    for name, values in (subject.measured or {}).items():
        ends = [{m.key: m for m in Variant(e).headlines(name)} for e in (subject.inputs.base, subject.inputs.refined)]
        rows.append(page.group(f"{name} (mixes may be chosen here)" if name in selection else name))
        for key, measure in ends[1].items():
            cells = (ends[0][key].value, values[key], measure.value)
            rows.append(Row((Cell(measure.label), *(Cell(page.percent(value)) for value in cells))))
    return Table(("percent", "base", f"this mix, {subject.mix:g}", "refined"), tuple(rows))


def _training_data(subject: Subject) -> str:
    numbers = subject.inputs.manifests["shard"].get("numbers", {}).get("refine", {})
    seen = (
        f"{numbers['num_samples']:,} images with {numbers['num_captions']:,} captions" if numbers else "part `refine`"
    )
    learned = "Nothing was learned from these data yet" if subject.name == "base" else f"Refined on {seen}"
    return f"{learned}; measured on:"


def _weights(subject: Subject) -> str:
    refined_from = subject.inputs.base.results["weights_digest"]
    after = "" if subject.name == "base" else f"; those of the base model: `{refined_from}`"
    facts = subject.facts.get(LANGUAGE)
    language = f"; those of the language model: `{facts['weights_digest']}`" if facts else ""
    return (
        f"SHA-256 of the weights (names, types, shapes and bytes of all tensors): `{subject.facts['weights_digest']}`"
        f"{after}{language}. `manifest.json` lists that of every file. Code of the stage that refines: "
        f"`{subject.origin['code_of_refine']}`."
    )
