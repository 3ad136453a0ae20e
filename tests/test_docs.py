"""README.md, docs/ and CONTRIBUTING.md against the project: snippets load when pasted, tables say what files say."""

import ast
import re
import tomllib
from typing import get_args, get_type_hints

import pytest

from pipeline_lib.base.settings import BaseSettings
from pipeline_lib.core import artifacts, config
from pipeline_lib.params.sections import load_all
from pipeline_lib.sources.settings import DataSettings, EvaluationSet
from tests.conftest import run_stage
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import ROOT, make_project

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))


def snippets():
    """Each section of params.yaml that README.md and docs/data.md print; a block may offer several of one name."""
    text = README + (ROOT / "docs/data.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [snippet for block in blocks for snippet in re.findall(r"^\w+:.*\n(?: .*\n)*", block, re.MULTILINE)]


def paste(snippet, params):
    """The text `params` with the section that `snippet` names replaced."""
    section = rf"^{snippet.partition(':')[0]}:.*\n(?: .*\n|\n)*"
    text, count = re.subn(section, lambda _: snippet + "\n", params, flags=re.MULTILINE)
    assert count == 1
    return text


@pytest.mark.parametrize("snippet", snippets())
def test_snippets_load_when_pasted(snippet, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(paste(snippet, (ROOT / "params.yaml").read_text()))
    load_all(path)


def test_every_source_of_a_model_but_the_default_has_its_snippet():
    sources = re.findall(r"^base: {source: (\w+)", "".join(snippets()), re.MULTILINE)
    assert {"demo", *sources} == set(get_args(get_type_hints(BaseSettings)["source"]))


def test_every_format_of_data_stands_in_the_table():
    rows = (ROOT / "docs/data.md").read_text().split("| `format` | on disk |")[1].split("\n\n")[0]
    formats = {*get_args(get_type_hints(DataSettings)["format"]), *get_args(get_type_hints(EvaluationSet)["format"])}
    assert formats == set(re.findall(r"^\| `(\w+)` \| ", rows, re.MULTILINE))


def test_every_format_of_data_has_its_snippet():
    sections = [config.parse_yaml(snippet, "data.md")["data"] for snippet in snippets() if snippet.startswith("data:")]
    assert {one["format"] for one in sections} == set(get_args(get_type_hints(DataSettings)["format"]))
    evaluated = {chosen["format"] for one in sections for chosen in one["evaluation"].values()}
    assert evaluated >= set(get_args(get_type_hints(EvaluationSet)["format"])) - {"flickr", "jsonl", "webdataset"}


def test_a_pasted_base_is_made(tmp_path):
    """No `demo` block, since a user replaces the whole section."""
    project = make_project(tmp_path / "project")
    write_tiny_clip(project / "my/open_clip_folder")
    [snippet] = [text for text in snippets() if "my/open_clip_folder" in text]
    params = project / "params.yaml"
    params.write_text(paste(snippet, params.read_text()))
    run_stage("base", project)
    assert (project / "data/base" / artifacts.TRAINED_ON).is_file()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^":]+)"', text):
        assert (page.parent / target).exists(), target


def test_the_readme_leads_to_every_page():
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT).as_posix()})" in README


def test_every_room_stands_in_the_table_with_the_first_line_of_its_docstring():
    expected = {}
    for path in (*ROOT.glob("pipeline_lib/*.py"), *ROOT.glob("pipeline_lib/*/__init__.py")):
        name = path.relative_to(ROOT).as_posix().removesuffix("__init__.py")
        expected[name] = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].removesuffix(".")
    del expected["pipeline_lib/"]
    rows = dict(re.findall(r"^\| `(pipeline_lib/[^`]+)` \| (.+) \|$", CONTRIBUTING, re.MULTILINE))
    assert {name: re.sub(r"\\([|<])", r"\1", text) for name, text in rows.items()} == expected


def test_the_dependencies_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"": project["dependencies"], **project["optional-dependencies"]}
    table = CONTRIBUTING.split("## Dependencies, and why each")[1].split("\n## ")[0]
    found = {extra: set() for extra in wanted}
    for extra, names in re.findall(r"^\| (?:extra `(\w+)`: )?([\w., -]+) \| ", table, re.MULTILINE)[1:]:
        found[extra] |= set(names.split(", "))
    names = {extra: {re.match(r"[\w.-]+", each)[0] for each in wanted[extra]} for extra in wanted}
    assert found == {extra: those - {project["name"]} for extra, those in names.items()}


def plain(name):
    return re.match(r"[\w.-]+", name)[0].lower().replace("_", "-").replace(".", "-")


def test_the_lock_pins_every_dependency_with_hashes_and_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    pins = re.split(r"\n(?! )", text.strip())
    assert "://" not in text
    assert [pin for pin in pins if not re.match(r"[\w.-]+==\S+ [^\n]*\\\n    --hash=sha256:[0-9a-f]{64}", pin)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        plain(each)
        for each in (*project["dependencies"], *extras["demo"], *extras["dev"], *extras["onnx"], *extras["language"])
    }
    assert wanted - {plain(pin) for pin in pins} == {project["name"]}
