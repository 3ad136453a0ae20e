"""What lies beside a model about its licence: its card's own word, or a file, which goes along."""

import pytest

from pipeline_lib.model import licence


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("license: apache-2.0", "apache-2.0 (https://huggingface.co/me/x)"),
        ("license: other\nlicense_name: research\nlicense_link: https://a.org/l", "research (https://a.org/l)"),
        ("license: other\nlicense_name: research\nlicense_link: LICENSE", "research"),
        ("license: other", "see https://huggingface.co/me/x"),
        ("tags: [clip]", "see https://huggingface.co/me/x"),
        ("license: [", None),
        ("license: [mit, apache-2.0]", "see https://huggingface.co/me/x"),
    ],
)
def test_the_licence_is_what_the_card_states(card, expected, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n# x\n")
    assert licence.licence_of(tmp_path / "README.md", "https://huggingface.co/me/x") == expected
    assert licence.licence_of(tmp_path / "none.md", "https://huggingface.co/me/x") is None


def test_the_card_s_word_comes_before_a_file_and_files_go_along(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    assert licence.licence_beside(source) is None
    for name in ("LICENSE.txt", "NOTICE", "model.safetensors"):
        (source / name).write_text(name)
    assert licence.licence_beside(source) == "see LICENSE.txt beside the model"
    (source / "README.md").write_text("---\nlicense: llama3.2\n---\n# x\n")
    assert licence.licence_beside(source) == "llama3.2"
    licence.copy_licences(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["LICENSE.txt", "NOTICE"]
