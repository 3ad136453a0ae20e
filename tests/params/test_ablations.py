"""What an ablation changes: a recipe's by its block, others as written; a malformed entry is refused by name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.params.ablations import CHANGES, read_ablations, read_changes

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


def by_name(params_file=PARAMS, changes_file=ROOT / CHANGES):
    return {one.name: one for one in read_ablations(params_file, changes_file)}


def test_there_is_an_ablation_for_every_recipe_but_the_one_that_params_choose():
    """A written one that chooses a recipe and has its name stands for it."""
    found = by_name()
    blocks = config.raw_section(PARAMS, "recipes")
    assert {name for name in found if name in blocks} == {name for name in blocks if name != "clip_refine"}
    assert found["llm2clip"].changes["refine.recipe"] == "llm2clip"
    assert found["llm2clip"].origin == str(ROOT / CHANGES)
    plain = [name for name in blocks if name not in ("clip_refine", "llm2clip")]
    assert all(found[name].changes == {"refine.recipe": name} for name in plain)
    assert [*found][-len(read_changes(ROOT / CHANGES)) :] == [one.name for one in read_changes(ROOT / CHANGES)]


def test_a_recipes_sentence_is_the_first_line_of_its_functions_docstring():
    from pipeline_lib.refine.recipes import RECIPES

    found = by_name()
    for name, function in RECIPES.items():
        if name in found and found[name].origin != str(ROOT / CHANGES):
            assert found[name].sentence == f"Recipe `{name}`: {function.__doc__.splitlines()[0]}"


def test_a_block_without_a_function_has_an_ablation_too(tmp_path):
    """The stage says that there is no such recipe; the list of ablations can be read all the same."""
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS.read_text().replace("  hycd: {", "  mine: {}\n  hycd: {"))
    assert by_name(params)["mine"].changes == {"refine.recipe": "mine"}


def test_the_recipe_that_params_choose_has_none(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS.read_text().replace("recipe: clip_refine\n", "recipe: hycd\n"))
    assert "hycd" not in by_name(params)
    assert by_name(params)["clip_refine"].changes == {"refine.recipe": "clip_refine"}


def test_reading_them_does_not_import_torch():
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline_lib.params import generate\n"
        f"generate.generate(Path({str(ROOT)!r}))\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]", ": expected a block for each ablation, found a list"),
        ("a: [", ": not valid YAML"),
        (b"\xa3", ": not UTF-8 text (invalid start byte at byte 0)"),
        ("a: 1", ": a: expected a block of the keys `sentence` and `changes`"),
        ("a: {sentence: Mine.}", ": a: expected a block of the keys `sentence` and `changes`"),
        ("a: {sentence: Mine., changes: {b.c: 1}, d: 2}", ": a: expected a block of the keys"),
        ("a: {sentence: 1, changes: {b.c: 1}}", ": a.sentence: expected text, found int 1"),
        ("a: {sentence: Mine., changes: {}}", ": a.changes: names no key; write dotted keys and values, like `refine.recipe: hycd`"),  # noqa: E501
        ("a/b: {sentence: Mine., changes: {b.c: 1}}", ": a/b: cannot be the name of an ablation"),
        ("changes: {sentence: Mine., changes: {b.c: 1}}", ": changes: cannot be the name of an ablation"),
        ("hycd: {sentence: Mine., changes: {b.c: 1}}", ": hycd: has the name of a recipe in"),
    ],
)  # fmt: skip
def test_a_malformed_entry_is_refused(tmp_path, text, message):
    path = tmp_path / "changes.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}{message}')}"):
        read_ablations(PARAMS, path)


def test_a_missing_file_is_refused_and_an_empty_one_is_not(tmp_path):
    path = tmp_path / "changes.yaml"
    with pytest.raises(UserError, match=r"changes\.yaml: No such file or directory; run from the project's folder"):
        read_changes(path)
    path.touch()
    assert read_changes(path) == []


def test_a_sentence_of_several_lines_is_one_line(tmp_path):
    path = tmp_path / "changes.yaml"
    path.write_text("a:\n  sentence: >\n    One:\n    two.\n  changes: {refine.epochs: 2}\n")
    assert [(one.sentence, one.changes) for one in read_changes(path)] == [("One: two.", {"refine.epochs": 2})]


def test_an_empty_section_is_one_sentence(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("recipes: {hycd: {}}\nrefine:\n")
    (tmp_path / "changes.yaml").write_text("{}\n")
    with pytest.raises(UserError, match=r"params.yaml: refine: is empty; write its keys below it"):
        read_ablations(params, tmp_path / "changes.yaml")
