"""What open_clip's own reader, transform, tokenizer and losses make of tars: `agreement.py FOLDER COUNT TARS`.

Answers how many samples its trainer's reader takes, and of the first COUNT the digests of pixels and token ids, the
contrastive loss, and the distillation loss of a teacher that sees the images mirrored.
"""

import hashlib
import sys

import channel
import open_clip
import torch
from open_clip.loss import ClipLoss, DistillClipLoss
from open_clip_train import data, params

folder, count, tars = sys.argv[1], int(sys.argv[2]), sys.argv[3]
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
model.eval()
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
how = ["--val-data", tars, "--dataset-type", "webdataset", "--batch-size", str(count), "--workers", "0"]
reader = data.get_wds_dataset(params.parse_args(how), preprocess, is_train=False, tokenizer=tokenizer).dataloader
batches = list(reader)
images, token_ids = batches[0]
with torch.no_grad():
    student, teacher = model(images, token_ids), model(images.flip(-1), token_ids)  # features and logit scale
    contrastive = ClipLoss()(*student[:3])
    _, distillation = DistillClipLoss()(*student[:3], *teacher[:3])
channel.wait()
channel.answer(
    samples=sum(len(some) for some, _ in batches),
    pixels=hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest(),
    token_ids=hashlib.sha256(token_ids.contiguous().numpy().tobytes()).hexdigest(),
    contrastive=float(contrastive),
    distillation=float(distillation),
)
