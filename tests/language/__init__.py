"""What a language model as text side gives on captioned photographs, and what it costs.

    python -m tests.language data/flickr8k --labelled data/clothing10/test

Flickr8k's layout (images, captions.txt, val.txt), and perhaps a folder of classes to be named. A demo base is trained;
then each language model's captions are cached once, and adapters are trained from it: linear and with four blocks,
image tower locked and trained, over three seeds, beside `clip_refine` and `contrastive` on the base's own text tower.
Prints R@1, 5 and 10 both ways, the gain over the base with its interval, retrieval of captions by captions, zero-shot
accuracy, CPU seconds and memory of each phase, and of a step that runs the language model instead of reading the cache.
"""
