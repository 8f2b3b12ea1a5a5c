# Set-up, demo, its page and tests in one command each: `make demo`, `make web`, `make test`. They set up what they need.
REQUIREMENTS ?= requirements/openmmlab.txt
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
DEMO := work_dirs/demo
CONFIG := configs/mask_rcnn_r50_adn_shapes.py
POINTS := --skip FFFF,TTFF,TTTT --sizes 96,64 --proposals 50,20
TESTS ?=

.PHONY: setup demo web test gpu-check lint clean
.DELETE_ON_ERROR:

# The operators are put in place each time: mmcv may have been installed again since, or a checkout updated.
setup: $(READY)
	@$(PYTHON) adn_mmdet/ops/place.py
	@$(PYTHON) -W ignore -c 'from adn_mmdet.versions import prove; print(prove())'

$(READY): $(REQUIREMENTS) setup.py
	@bash requirements/install.sh $(VENV) $(REQUIREMENTS)
	@touch $@

# Layers this narrow run no faster on two threads, and much slower where another process wants the core.
demo: export OMP_NUM_THREADS = 1
demo: $(READY)
	$(PYTHON) tools/make_shapes.py data/shapes
	$(PYTHON) tools/train.py $(CONFIG) --work-dir $(DEMO)
	$(PYTHON) tools/test.py $(CONFIG) "$$(cat $(DEMO)/last_checkpoint)" $(POINTS) --work-dir $(DEMO)/look --show-dir $(DEMO)/pictures \
		--cfg-options test_dataloader.dataset.indices=4
	$(PYTHON) tools/test.py $(CONFIG) "$$(cat $(DEMO)/last_checkpoint)" --skip all --work-dir $(DEMO)
	$(PYTHON) tools/test.py $(CONFIG) "$$(cat $(DEMO)/last_checkpoint)" $(POINTS) --work-dir $(DEMO)
	$(PYTHON) tools/benchmark.py latency $(CONFIG) "$$(cat $(DEMO)/last_checkpoint)" $(POINTS) --rounds 10 --json $(DEMO)/latency.json
	$(PYTHON) tools/report.py $(DEMO) --pictures $(DEMO)/pictures --latency $(DEMO)/latency.json
	$(PYTHON) tools/compare.py $(DEMO) --pictures $(DEMO)/pictures --latency $(DEMO)/latency.json --out $(DEMO)

# The demo's checkpoint on a page of this machine, with a depth slider.
web: export OMP_NUM_THREADS = 1
web: $(READY)
	@[ -f $(DEMO)/last_checkpoint ] || { echo 'there is no checkpoint of the demo yet: run make demo first' >&2; exit 2; }
	$(PYTHON) tools/web_demo.py $(CONFIG) "$$(cat $(DEMO)/last_checkpoint)" --sub-nets $(DEMO)

test: $(READY)
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

# On a machine with a GPU, in under 10 minutes: tests, times and peak memory. ADN_GPU_TESTS=cpu tries the tests without.
gpu-check: export ADN_GPU_TESTS ?= cuda
gpu-check: $(READY)
	$(PYTHON) -m pytest -m gpu
	$(PYTHON) tools/benchmark.py backbone --shape 224 224 --batch-size 1
	$(PYTHON) tools/benchmark.py backbone --shape 224 224 --batch-size 64
	$(PYTHON) tools/benchmark.py train --config faster_rcnn
	$(PYTHON) tools/benchmark.py latency configs/faster_rcnn_r50_adn_1x_coco.py
	$(PYTHON) tools/benchmark.py one-pass configs/faster_rcnn_r50_adn_1x_coco.py --rounds 5

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

clean:
	rm -rf $(VENV)
