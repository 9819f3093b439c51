"""Random changes that make two views of one example.

`image.py` has the photometric half of the paper's policy (colours, blur, solarization), `crops.py`
the geometric half (boxes, flips, resizing) for images of one size. What the paper does not have is
in `geometry.py` (vertical flips, turns, pad-and-crop) and `corrupt.py` (noise, erased blocks,
masked patches). Another kind of data gets a file of its own, with a function
`augment(key, example) -> (view1, view2)` for `byol.make_learner`.
Pure functions of arrays and keys only: no config, no files, no TensorFlow.
"""
