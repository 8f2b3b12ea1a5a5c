"""mmcv's compiled operators, computed by torch and torchvision: nothing is compiled, and halves work on a CPU."""
