"""Stage `cache_teacher`: the frozen teacher's features of every image and caption, computed once."""
