"""Search images with a sentence, base and refined side by side.

pictures   the images that are searched, with both models' features
server     the page, on this machine's loopback
"""
