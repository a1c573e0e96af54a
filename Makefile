# make setup   virtual environment in .venv, native build, install; quick when nothing changed
# make demo    draw pictures, convert a Caffe model, train, evaluate and look: on a CPU, in minutes
# make test    everything set up, all tests
# make sanitize     the operators' and the dense CRF's tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make ptxas        no CUDA kernel spills registers or has a stack frame
# make gpu-report   on a machine with a GPU: tests, compute-sanitizer, benchmarks and kernel figures, in nine minutes
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Without a GPU in sight the CUDA sources are left out; `make setup A2S_CUDA=ON` (or AUTO) builds them all the same.
export A2S_CUDA ?= $(if $(wildcard /dev/nvidia0),AUTO,OFF)

PY := .venv/bin/python
INSTALLED := .venv/.installed-$(A2S_CUDA)

.PHONY: setup demo test smoke lint sanitize ptxas gpu-report clean
setup: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	@test -x $(PY) || $(PYTHON) -m venv .venv || \
	  { echo "make setup: '$(PYTHON) -m venv' failed: install Python's venv module (Debian: apt install python3-venv)."; exit 1; }
	$(PY) -m pip install --quiet "$(TORCH)" "setuptools>=77" cmake ninja pybind11
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@rm -f .venv/.installed-* && touch $@
	@$(PY) -m a2s_repro.info

test: setup
	A2S_REQUIRE_NATIVE=1 $(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# Style, and the types of the public interface as a user's program sees them.
lint: setup
	$(PY) -m ruff check .
	$(PY) -m mypy

# Every recipe: two iterations of a thin net on drawn pictures, and their evaluation.
smoke: setup
	@rm -rf build/smoke
	$(PY) tools/reproduce.py --smoke --out build/smoke

CMAKE := PATH="$(CURDIR)/.venv/bin:$$PATH" cmake
CONFIGURE = $(CMAKE) -S . -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(PY)

# The CPU operators, and the CUDA ones looped on the CPU, in a copy of the Python sources with libraries of its own.
# Only those are instrumented: Python and torch are not, so libasan is loaded first (with the libstdc++ whose exceptions
# it intercepts) and their leaks are not looked for. Every report ends the run; --capture=sys lets it through.
SANITIZED := build/sanitize
PRELOAD = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)
sanitize: setup
	@rm -rf $(SANITIZED)/source && mkdir -p $(SANITIZED)/source
	@tar -c --exclude=lib --exclude=__pycache__ a2s_repro caffe_weights tests pyproject.toml | tar -x -C $(SANITIZED)/source
	$(CONFIGURE) -B $(SANITIZED)/build -DA2S_OUTPUT_DIR=$(CURDIR)/$(SANITIZED)/source/a2s_repro/lib \
	  -DA2S_CUDA=OFF -DA2S_SANITIZE=address,undefined,float-cast-overflow
	$(CMAKE) --build $(SANITIZED)/build --target a2s_ops --target _crf
	cd $(SANITIZED)/source && A2S_REQUIRE_NATIVE=1 LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 \
	  $(CURDIR)/$(PY) -m pytest --capture=sys tests/ops tests/inference/test_crf.py tests/inference/test_golden_crf.py

# Every CUDA kernel keeps what it has in registers, on both architectures that are shipped.
ptxas:
	$(MAKE) setup A2S_CUDA=ON
	$(PY) tools/check_ptxas.py build/CMakeFiles/a2s_ops_cuda.dir/csrc/*/*.ptxas --arch sm_80 sm_90

# Wherever torch has a GPU, installed or not: `make gpu-report PYTHON=python3` builds in the checkout and downloads nothing.
gpu-report:
	PYTHONPATH=$(CURDIR) $(if $(wildcard $(PY)),$(PY),$(PYTHON)) tools/gpu_report.py

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
