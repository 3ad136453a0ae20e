"""Image-text sets as they are published: one file a format, each with a function that turns a place into a `Source`.

samples         what a set is made of: a `Source`, its samples, each with texts and a reference to its image
formats         the formats by name, and the two ways to open a set
place           where a set lies, and how messages name it
tables          text files that describe a set, and the rows of them that cannot be used
unnamed         images in the folder of a set that no row of its file names
parts           which part a sample belongs to, by its key
classes         class names and prompt templates beside a set; which class folder is which label
choices         what the sets of choices between texts and images share
arrow           parquet files and those of Arrow: texts by group, images by row
imagenet        ImageNet's classes: the WordNet id and the name of each
known_answers   what models are known to score on a set, beside it
tars            tars that others wrote, listed where they lie
openmoji_*      the default's pictures and what they show, from installed packages
scene_*         the default's scenes: what a scene holds and where, and its texts
settings        section `data` of params.yaml

The other files are a format each, by its name: caption_choice, clip_benchmark, coco, docci, flickr, hugging_face,
image_folder, image_pairs, jsonl, openmoji, scenes, sharegpt4v, urban1k, webdataset, xm3600.

To add a format, say `my_format`:

1. Write `my_format.py` here. Its docstring shows the layout on disk and a `data:` block of params.yaml to paste, and
   `open_set(place: Place) -> Source` opens the set (`flickr.py` is a good one to copy; `place.py` finds the files).
2. Add a line to `FORMATS` in `formats.py`.
3. Add the name to the `Literal` of `data.format` or of `data.evaluation.<name>.format`, or to both, in `settings.py`.
4. Add a set of the format to `tests/small_sets.py` and name it in `tests/sources/test_formats.py`, which holds these
   lists together and opens the set with the block of your docstring.

Stages ask `formats.open_source` and `formats.open_evaluation_set`, and see of a format nothing but its `Source`.
"""
