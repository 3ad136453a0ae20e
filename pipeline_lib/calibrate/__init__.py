"""How far the verdict can be trusted: its false alarms and its power, by simulation through its own code.

    python -m pipeline_lib.calibrate                         made sets of 50, 500 and 5,000 images, 200 runs each
    python -m pipeline_lib.calibrate --sizes 50 --runs 50    a quick look
    python -m pipeline_lib.calibrate --folder data/eval      which statistic of stored ranks sees most

False alarms are counted where nothing differs: two models of one quality that trade places by lot from image to image;
the two halves of one model; captions and labels that belong to other images; a model that training hardly touched. Of
the two halves an alarm is false where new images say the opposite. Of a training that changes a model and makes it
neither better nor worse one run may differ measurably, by luck; the verdict over seeds should not.

    worlds   made sets, and how a model sees them
    trials   one comparison of two models, as the report makes it
    study    shares over many trials, as tables
"""
