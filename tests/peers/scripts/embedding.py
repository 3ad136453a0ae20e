"""Embed images and captions as anyone would with open_clip, webdataset and a DataLoader.

`embedding.py THREADS WEIGHTS BATCH TARGET TAR ...` writes raw features of images and first captions to TARGET, in the
order of the tars, and answers CPU and wall seconds of the whole process.
"""

import sys
import time

BEGAN = time.perf_counter()

import channel  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
import webdataset  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

threads, weights, batch, target, *tars = sys.argv[1:]
channel.use_threads(threads)
model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=weights)
tokenizer = open_clip.get_tokenizer("ViT-B-32")
samples = webdataset.WebDataset(tars, shardshuffle=False).decode("pilrgb").to_tuple("jpg", "txt")
loader = torch.utils.data.DataLoader(samples.map_tuple(preprocess, str).batched(int(batch)), batch_size=None)
model.eval()
images, texts = [], []
with torch.no_grad():
    for pixels, captions in loader:
        images.append(model.encode_image(pixels))
        texts.append(model.encode_text(tokenizer(captions)))
save_file({"image_features": torch.cat(images), "text_features": torch.cat(texts)}, target)
channel.wait()
channel.answer(cpu=time.process_time(), wall=time.perf_counter() - BEGAN - channel.waited)
