"""params.yaml as a whole: every section, what they say of one another, and what is generated from them.

    python -m pipeline_lib.params           write ablations/<name>.yaml, docs/params.md and docs/params.schema.json
    python -m pipeline_lib.params --check   name those that are out of date, and exit with 1 if there are any

Nothing here decides a result.

    sections      every section with the dataclass that declares it
    check         refuses, before any work, a params.yaml that does not fit together
    ablations     reads what each ablation changes: ablations/changes.yaml, and one for every recipe
    whole_file    writes params.yaml with an ablation's changes, its comments kept
    fields        reads what the docstring under each field says
    reference     lists every key in Markdown
    json_schema   describes params.yaml for editors
    generate      writes what is generated, and finds what is out of date
"""
