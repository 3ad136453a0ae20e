"""The model where people use it: a folder for open_clip or transformers, an MLflow model, ONNX of both towers.

    python -m pipeline_lib.export hub --to out/my-clip              the refined model, with a model card
    python -m pipeline_lib.export hub --to out/my-mix --mix 0.5     half the weights refined, half base (WiSE-FT)
    python -m pipeline_lib.export transformers --to out/my-clip-hf  transformers' model, its processor and tokenizer
    python -m pipeline_lib.export mlflow --name my-clip --alias candidate
    python -m pipeline_lib.export onnx --to out/my-clip-onnx

What is exported is what was evaluated: the same guards as in `evaluate` apply, and the card carries the measured table.
Everything that is written is loaded back and compared on real images and captions before the command ends well.

    subject         which model, what was measured about it, where it came from
    card            the model card
    hub             the open_clip folder
    without_package   lines and numbers that read texts through a language model elsewhere
    transformers_folder   that of transformers
    mlflow_model    the MLflow model, its run and its registration; the only importer of mlflow outside `tracking`
    served_model    the script inside the MLflow model; runs elsewhere, without this package
    onnx_towers     the ONNX files
"""

from pipeline_lib.export.subject import Subject, open_subject

__all__ = ["Subject", "open_subject"]
