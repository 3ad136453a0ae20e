"""Stage `report`: what refinement changed and how sure that is. Two evaluations in, a page out (HTML, Markdown, PNG).

The verdict stands first and is computed, not written: headlines that rose, fell or did not move after Holm's
correction, then the question whether refinement was worth it, since mean-centring closes the gap for free. Everything
shown comes from files of earlier stages; the output holds no time, host or path, so that equal inputs give equal bytes.

    run               the page as a whole, and the files it is written to
    inputs            what is read, and the checks that it belongs together
    near_duplicates   evaluated images that are nearly one that was trained on
    use               what comes after a run: the lines that use the model
    header            what was run, in a few lines below the title
    verdict           the conclusion in sentences
    tables            before and after, gap, data, provenance
    choices           choices between texts and images, with their chance and by group
    drawings          figures of features, recall and training
    examples          images whose rank changed most, as the models got them
    few_shot          the curves from a few images of each class
    wise_ft           the curve between base and refined
    figures           every figure but one, from arrays
    trade_off         that one: configurations by what they gain and lose
    labels            names beside marks, none on another
    canvas            what a figure is, rendered as SVG and PNG
    page              a page as data, rendered as HTML and as Markdown
"""
