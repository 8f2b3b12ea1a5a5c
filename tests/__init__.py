"""A package, since model-index, which mmpretrain needs, installs one of this name that would be taken for ours."""
