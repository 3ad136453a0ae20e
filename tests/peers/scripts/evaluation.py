"""Evaluate with clip-benchmark: `evaluation.py THREADS WEIGHTS BATCH TASK FOLDER`, TASK of retrieval, classification.

Each line evaluates once: answers its numbers with CPU and wall seconds.
"""

import sys

import channel
import open_clip
import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

threads, weights, batch, task, folder = sys.argv[1:]
channel.use_threads(threads)
model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=weights)
tokenizer = open_clip.get_tokenizer("ViT-B-32")
model.eval()
while True:
    channel.wait()
    with channel.measured() as used:
        dataset = build_dataset("wds/bench", root=folder, transform=preprocess, split="test", task=f"zeroshot_{task}")
        loader = torch.utils.data.DataLoader(dataset.batched(int(batch)), batch_size=None)
        if task == "retrieval":
            numbers = zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
        else:
            loader.dataset.classes = dataset.classes
            how = {"device": "cpu", "amp": False}
            numbers = zeroshot_classification.evaluate(
                model, loader, tokenizer, dataset.classes, dataset.templates, **how
            )
    channel.answer(**used, numbers=numbers)
