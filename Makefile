# make setup        create .venv, build the native libraries, install; quick if nothing changed
# make demo         draw a data set, convert a Caffe model, train, evaluate and plot: minutes on a CPU
# make test         run the tests
# make long         run the tests that take several seconds each
# make sanitize     run the tests of the operators and of the dense CRF with AddressSanitizer and UBSan
# make dist-check   build the sdist and the wheel, and use the wheel in a fresh environment
# make ptxas        check that no CUDA kernel spills registers or has a stack frame
# make gpu-report   on a GPU machine: tests, compute-sanitizer, benchmarks and kernel figures, in nine minutes
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Without a GPU the CUDA sources are not built by default; `make setup A2S_CUDA=ON` (or AUTO) builds them anyway.
export A2S_CUDA ?= $(if $(wildcard /dev/nvidia0),AUTO,OFF)

PY := .venv/bin/python
INSTALLED := .venv/.installed-$(A2S_CUDA)

.PHONY: setup demo test smoke lint sanitize long dist-check ptxas cuda-torch-check gpu-report clean
setup: $(INSTALLED)

# --no-compile: most modules of the packages are never imported. Python compiles the others when they are, and keeps them.
unexport PYTHONDONTWRITEBYTECODE
$(INSTALLED): pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	@test -x $(PY) || $(PYTHON) -m venv .venv || \
	  { echo "make setup: '$(PYTHON) -m venv' failed: install Python's venv module (Debian: apt install python3-venv)."; exit 1; }
	$(PY) -m pip install --quiet --no-compile "$(TORCH)" "setuptools>=77" cmake ninja
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m pip install --quiet --no-compile --no-build-isolation --editable ".[dev]" "$(TORCH)"
	@rm -f .venv/.installed-* && touch $@
	@$(PY) -m a2s_repro.info

# Tests with several threads share the cores with other processes: a thread that waits for another sleeps, instead of
# spinning on the core that the other needs.
test long sanitize: export OMP_WAIT_POLICY = PASSIVE

test: setup
	A2S_REQUIRE_NATIVE=1 $(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Style, and the types of the public interface as a user's program sees them.
lint: setup
	$(PY) -m ruff check .
	$(PY) -m mypy

# Trains a thin net of every recipe for two iterations on drawn pictures, and evaluates it.
smoke: setup
	@rm -rf build/smoke
	$(PY) tools/reproduce.py --smoke --out build/smoke

CMAKE := PATH="$(CURDIR)/.venv/bin:$$PATH" MAKEFLAGS= cmake
CONFIGURE = $(CMAKE) -S . -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(PY)

# Tests the CPU operators in a copy of the Python sources with instrumented libraries. Python and torch are not
# instrumented, so libasan is preloaded (with libstdc++, whose exceptions it intercepts) and leak detection is off. Any
# report aborts the run, but a failed allocation does not; --capture=sys lets it through. Left out are tests that run no
# native code, those of the references, and tests of the graph around the operators: its compilation and transforms.
SANITIZED := build/sanitize
PRELOAD = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)
sanitize: setup
	@rm -rf $(SANITIZED)/source && mkdir -p $(SANITIZED)/source
	@tar -c --exclude=lib --exclude=__pycache__ a2s_repro caffe_weights tests pyproject.toml | tar -x -C $(SANITIZED)/source
	$(CONFIGURE) -B $(SANITIZED)/build -DA2S_OUTPUT_DIR=$(CURDIR)/$(SANITIZED)/source/a2s_repro/lib \
	  -DA2S_CUDA=OFF -DA2S_SANITIZE=address,undefined,float-cast-overflow
	$(CMAKE) --build $(SANITIZED)/build --target a2s_ops --target a2s_crf
	cd $(SANITIZED)/source && A2S_REQUIRE_NATIVE=1 LD_PRELOAD="$(PRELOAD)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	  $(CURDIR)/$(PY) -m pytest --capture=sys -k "not [reference and not the_reference_can and not compil" \
	  --ignore tests/ops/test_transforms.py tests/ops tests/inference/test_crf.py tests/inference/test_golden_crf.py

# Runs the tests that take several seconds each.
long: setup
	A2S_REQUIRE_NATIVE=1 $(PY) -m pytest -m "long and not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Builds the sdist, and the wheel from it with the libraries of the checkout, and uses the wheel in a folder elsewhere.
DIST := build/dist
dist-check: setup
	@rm -rf $(DIST)
	A2S_PREBUILT=$(CURDIR)/a2s_repro/lib $(PY) -m build --no-isolation --outdir $(DIST) .
	$(PY) tools/dev/check_dist.py $(DIST)

# Checks that no CUDA kernel spills registers, on both shipped architectures.
ptxas:
	$(MAKE) setup A2S_CUDA=ON
	$(PY) tools/dev/check_ptxas.py $$(find build/CMakeFiles/a2s_ops_cuda.dir -name "*.ptxas") --arch sm_80 sm_90

# Checks that the libraries load and register in a torch with CUDA; docs/contributing.md has the commands that install it.
CUDA_TORCH ?= build/cuda-torch/bin/python
cuda-torch-check:
	$(MAKE) setup A2S_CUDA=ON
	PYTHONPATH=$(CURDIR) $(CUDA_TORCH) tools/dev/check_cuda_torch.py

# Works without installing: `make gpu-report PYTHON=python3` builds in the checkout with that torch, without downloads.
gpu-report:
	PYTHONPATH=$(CURDIR) $(if $(wildcard $(PY)),$(PY),$(PYTHON)) tools/dev/gpu_report.py

clean:
	rm -rf build a2s_repro/lib a2s_repro.egg-info

# Fine-tunes a thin VGG-16 on drawn shapes with all steps of a real run, in minutes on a CPU: docs/demo.md.
DEMO := demo
DEMO_LISTS = $(DEMO)/data/ImageSets/Segmentation
DEMO_VAL = --data-root $(DEMO)/data --list $(DEMO_LISTS)/val.txt --pad-to 257
# On a CPU two processes of one thread each share the passes of an update, so that the results are the same on any
# number of cores.
DEMO_TRAIN = $(if $(wildcard /dev/nvidia0),$(PY),OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone \
	  --log-dir /dev/null --nproc-per-node 2) tools/train_voc.py
demo: setup
	@rm -rf $(DEMO)
	$(PY) tools/make_demo_data.py $(DEMO)/data --num-train 200
	$(PY) tools/convert_caffe.py tools/vgg16_shapes.caffemodel $(DEMO)/init.pth
	$(DEMO_TRAIN) --recipe voc12/attention3_esupv --init $(DEMO)/init.pth --out $(DEMO)/run \
	  --data-root $(DEMO)/data --train-list $(DEMO_LISTS)/train.txt --val-list $(DEMO_LISTS)/val.txt --validate-every 1500 \
	  --scales 1 0.5 --width 0.125 --crop 129 --batch-size 2 --iter-size 2 --base-lr 2e-3 --stepsize 2400 --max-iter 3000 \
	  --test-crop 257 --cache
	$(PY) tools/evaluate.py --model $(DEMO)/run/final.pth $(DEMO_VAL) --attention-by-size --out $(DEMO)
	$(PY) tools/show_attention.py --model $(DEMO)/run/final.pth $(DEMO_VAL) --out $(DEMO)/attention.png
	$(PY) tools/report.py $(DEMO)/run --pad-to 257
