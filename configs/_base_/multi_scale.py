# Training at several sizes, so that one checkpoint serves input sizes of 480 to 800 pixels: the short side of each
# image is drawn anew, the long one is at most 1333.
multi_scale_resize = dict(
    type='RandomChoiceResize', scales=[(1333, size) for size in range(480, 801, 32)], keep_ratio=True
)
