"""What evaluations say: measures with intervals, paired tests, the gap and its change. No model, no drawing."""
