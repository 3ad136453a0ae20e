"""Values of params.yaml for a tiny project whose captions a language model reads."""

ADAPTER = {"depth": 0, "expansion": 2, "dropout": 0.0, "learning_rate": 1e-2}
ASKED = {
    "paths__text": "data/language",
    "language__stages": {"make": {}},
    "language__source": "folder",
    "language__path": "llama",
    "language__max_length": 20,
    "refine__adapter": ADAPTER,
    "refine__recipe": "llm2clip",
    "refine__logit_scale": 14.3,
    "refine__train_logit_scale": True,
}

TUNE = {
    "pairs": None,
    "epochs": 2,
    "batch_size": 8,
    "micro_batch": None,
    "scale": 50.0,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "rank": 4,
    "alpha": 8.0,
    "dropout": 0.0,
    "precision": "fp32",
    "seed": 0,
}
