"""Stage `refine`: one epoch of a recipe, from the base model and the teacher cache to the refined model.

recipes      which losses with which weights, one function a recipe
epochs       which samples each step takes, and how they are read
sampling     everything random in an epoch, by seed, epoch and key
gradients    exact gradients of a whole batch: gradient caching, data parallelism
optimiser    what is trained, at which learning rate
step         one optimiser step and its row of the history
loop         the one training loop
state        what a run carries from step to step, and what stays the same
checkpoint   the state and the history on the disk, and when a run may go on
checks       what is checked before the first step, after the last one, and of what was saved
norms        the norms of raw features before the first step
validation   the recipe's loss on part `val`
publish      the refined model's folder
run          the order of it all, and what is written to data/refined/
settings     section `refine` of params.yaml
"""
