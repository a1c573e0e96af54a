# make setup   virtual environment in .venv, native build, install; quick when nothing changed
# make demo    draw pictures, convert a Caffe model, train, evaluate and look: on a CPU, in minutes
# make test    everything set up, all tests
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Without a GPU in sight the CUDA sources are left out; `make setup A2S_CUDA=ON` (or AUTO) builds them all the same.
export A2S_CUDA ?= $(if $(wildcard /dev/nvidia0),AUTO,OFF)

PY := .venv/bin/python
INSTALLED := .venv/.installed-$(A2S_CUDA)

.PHONY: setup demo test lint clean
setup: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	@test -x $(PY) || $(PYTHON) -m venv .venv || \
	  { echo "make setup: '$(PYTHON) -m venv' failed: install Python's venv module (Debian: apt install python3-venv)."; exit 1; }
	$(PY) -m pip install --quiet "$(TORCH)" "setuptools>=77" cmake ninja pybind11
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@rm -f .venv/.installed-* && touch $@
	@$(PY) -m a2s_repro.info

test: setup
	A2S_REQUIRE_NATIVE=1 $(PY) -m pytest

lint: setup
	$(PY) -m ruff check .

clean:
	rm -rf build a2s_repro/lib a2s_repro.egg-info

# A thin net learns drawn shapes: every step that a real run takes, in minutes on a CPU.
DEMO := demo
DEMO_LIST := $(DEMO)/data/ImageSets/Segmentation
demo: setup
	@rm -rf $(DEMO)
	$(PY) tools/make_demo_data.py $(DEMO)/data
	$(PY) tools/make_init.py $(DEMO)/init.caffemodel --width 0.125
	$(PY) tools/convert_caffe.py $(DEMO)/init.caffemodel $(DEMO)/init.pth
	$(PY) tools/train_voc.py --init $(DEMO)/init.pth --out $(DEMO)/run --data-root $(DEMO)/data \
	  --train-list $(DEMO_LIST)/train.txt --classes $(DEMO)/data/classes.txt \
	  --scales 1 0.5 --width 0.125 --crop 129 --batch-size 8 --iter-size 1 --lr-policy poly --base-lr 4e-3 --max-iter 2300
	$(PY) tools/evaluate.py --model $(DEMO)/run/final.pth --data-root $(DEMO)/data --list $(DEMO_LIST)/val.txt \
	  --crop 257 --out $(DEMO) --json $(DEMO)/val.json
	$(PY) tools/show_attention.py --model $(DEMO)/run/final.pth --data-root $(DEMO)/data --list $(DEMO_LIST)/val.txt \
	  --crop 257 --out $(DEMO)/attention.png
