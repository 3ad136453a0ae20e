"""What evaluations say: measures with intervals, paired tests, the gap and its change. No model, no drawing.

measure      one number that says what it is
folders      the reader of data/eval/<model>/
guards       whether evaluations, models and params.yaml belong together
parameters   the parameters that decide results
recorded     what dvc.lock recorded of the runs that made the outputs
paired       two models on the same items
gap          the modality gap of two models
seeds        a difference over several seeds of one configuration
conclusion   what the headlines say, in a sentence
power        what a set could have shown
rivals       what costs nothing and must be beaten
shifts       zero-shot accuracy on a set and on its shifts
wise_ft      the curve between base and refined weights
statistics   bootstrap, exact tests, correction for many tests
certainty    settings of the intervals
"""
