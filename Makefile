# Everything starts from a clean checkout: each target makes the environment it needs.
# Python 3.11 or newer; a C compiler makes the entropy coder fast but is not needed.

PYTHON ?= python3
# One process for each of two cores; PYTEST_ARGS= runs one test after the other.
PYTEST_ARGS ?= -n 2 --dist loadscope
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml hatch_build.py codec/lic/codec/entropy/_rans.c codec/lic/codec/entropy/_contexts.h

.PHONY: demo test lint types check check-measuring oracle eval benchmark-entropy benchmark-hpcm benchmark-training benchmark-objectives export-matrix large memory-hpcm npu-check image image-arm64 image-cuda rate-control contexts-saving report-check killed folder-run ray-check round-trips soak contexts-check mutations fuzz fuzz-c sanitize clean

demo: $(VENV)/.runtime
	$(BIN)/lic demo samples/kodim23.png --force

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

# CompressAI replaces torch and pins numpy, so it gets an environment of its own.
oracle:
	tests/oracle/run.sh

# make eval KODAK=/path/to/kodak: the README's tables.
eval: $(VENV)/.dev
	$(BIN)/lic eval $(KODAK) --threads 1 -o runs/eval.json --force

# make check-measuring KODAK=/path/to/kodak: lic bench against published points of WebP and JPEG.
check-measuring: $(VENV)/.dev
	$(BIN)/python -m tests.codec.check_measuring $(KODAK)

# make benchmark-training PHOTOS=DIR: images a second against a plain loop of CompressAI's classes.
benchmark-training: $(VENV)/.dev
	sh tests/oracle/setup.sh
	$(BIN)/python -m tests.oracle.throughput $(PHOTOS)

# make benchmark-objectives PHOTOS=DIR: what the objectives of HPCM cost, against standard training.
# ARGUMENTS="--size base --batch 1 --groups 2 --arms 0,1" measures Base against its floor.
benchmark-objectives: $(VENV)/.dev
	$(BIN)/python -m tests.trainers.costs $(PHOTOS) $(ARGUMENTS)

# make export-matrix PHOTOS=DIR: every model, part, size and precision as ONNX graphs, checked and timed.
export-matrix: $(VENV)/.dev
	$(BIN)/python -m tests.export.matrix $(PHOTOS) $(ARGUMENTS)

# The page of lic bench report in a real browser: Debian's packages chromium and chromium-driver.
report-check: $(VENV)/.dev
	@for program in chromium chromedriver; do command -v $$program > /dev/null || \
	    { echo "report-check: no $$program; apt-get install chromium chromium-driver"; exit 1; }; done
	LIC_CHROMIUM_REQUIRED=1 $(BIN)/python -m pytest tests/codec/report

# make rate-control KODAK=/path/to/kodak: files of wanted sizes, and how good those between rate points are.
rate-control: $(VENV)/.dev
	$(BIN)/python -m tests.codec.rate_control $(KODAK)

# make contexts-saving KODAK=/path/to/kodak: what contexts save of whole files of the embedded models.
contexts-saving: $(VENV)/.dev
	$(BIN)/python -m tests.codec.contexts_saving $(KODAK)

benchmark-entropy: $(VENV)/.runtime
	$(BIN)/python -m lic.codec.benchmark.entropy --repeat 400 --picture samples/kodim23.png

# HPCM Base and Large with the reference run's weights, which stand in for published ones: parts,
# share of everything that is no network, multiply-accumulates per pixel. On a GPU, for instance:
# make benchmark-hpcm PICTURES=/path/to/kodak/*.png SPLIT="--device cuda --decode-on cpu"
PICTURES ?= samples/kodim23.png
benchmark-hpcm: $(VENV)/.dev
	for size in base large; do \
	    $(BIN)/python -m tests.golden.hpcm_reference $$size runs/hpcm-$$size.pth.tar && \
	    $(BIN)/lic models import runs/hpcm-$$size.pth.tar --arch hpcm-$$size --lmbda 0.013 \
	        -o runs/hpcm-$$size --force && \
	    $(BIN)/python -m lic.codec.benchmark.split runs/hpcm-$$size $(PICTURES) $(SPLIT) || exit 1; \
	done

# Memory and time of pictures of 1, 10 and 100 megapixels, made of the photos in a folder, and of a region:
# make large PHOTOS=DIR ARGUMENTS="--megapixels 1 10 100 400 --format ppm"
large: $(VENV)/.dev
	@test -n "$(PHOTOS)" || { echo "set PHOTOS to a folder of photos"; exit 2; }
	$(BIN)/python -m tests.codec.large "$(PHOTOS)" $(ARGUMENTS)

# Peak memory of HPCM Base on pictures of 3 and 13 megapixels, minutes; SIZES=--large for 50, too.
memory-hpcm: $(VENV)/.dev
	$(BIN)/python -m tests.codec.hpcm_memory $(SIZES)

# What NPUs run of the embedded models, by the vendors' compilers, each in an environment of its own:
# minutes, about 2.5 GB. TOOLKITS="vela qnn rknn" also installs Rockchip's, 1.5 GB more.
TOOLKITS ?= vela qnn
npu-check: $(VENV)/.dev
	sh tests/npu/setup.sh $(TOOLKITS)
	$(BIN)/python -m tests.npu.check runs/npu

# The image of the Dockerfile, made from nothing but Debian's archive and the package index, and what
# the README says of it: as root, with Debian's buildah and debootstrap; minutes, about 2 GB. For
# arm64 elsewhere also qemu-user-static and binfmt-support, twenty minutes. CUDA takes 25 GB.
image: $(VENV)/.runtime
	$(BIN)/python -m tests.images.prove

image-arm64: $(VENV)/.runtime
	$(BIN)/python -m tests.images.prove --arch arm64

image-cuda: $(VENV)/.runtime
	$(BIN)/python -m tests.images.prove --target cuda --arch amd64

# Folder runs that are killed (kill -9) at random moments: minutes, so the tests do so three times.
killed: COUNT ?= 200
killed: $(VENV)/.dev
	$(BIN)/python -m tests.cli.killed --count $(COUNT) $(ARGUMENTS)

# make folder-run PHOTOS=DIR: 10,000 crops in one run, photos a second and memory; minutes.
folder-run: $(VENV)/.dev
	$(BIN)/python -m tests.cli.folder_run $(PHOTOS) $(ARGUMENTS)

# Folders on a Ray cluster of two local machines, one of which is lost: about a minute, 250 MB.
ray-check: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,ray]'
	LIC_RAY_REQUIRED=1 $(BIN)/python -m pytest tests/cli/test_ray.py

# Every size of HPCM at every awkward size of picture; minutes, so not part of the tests.
round-trips: $(VENV)/.dev
	$(BIN)/python -m tests.codec.hpcm_round_trips

# Two million damaged streams, half of them with contexts; minutes, so not part of the tests.
soak: $(VENV)/.dev
	$(BIN)/python -m tests.codec.entropy.soak

# make contexts-check KODAK=/path/to/kodak: coding with contexts is exact on every machine, arm64
# under emulation included (apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross
# qemu-user-static), and hardly longer than the symbols cost; minutes. Of the bundles that have
# contexts all are tried, or ARGUMENTS="--bundle DIR".
contexts-check: $(VENV)/.dev
	$(BIN)/python -m tests.codec.entropy.contexts_check $(KODAK) $(ARGUMENTS)

# A million damaged and forged files of every kind, 8 minutes; ARGUMENTS=--network decodes to
# pixels by real networks, which is slower: take COUNT=20000.
mutations: COUNT ?= 1000000
mutations: $(VENV)/.dev
	$(BIN)/python -m tests.hostile.mutations $(COUNT) $(ARGUMENTS)

# Container and entropy decoder under Atheris, and the kernel under libFuzzer (apt-get install clang;
# gcc does, too) and sanitizers.
SECONDS ?= 300
fuzz:
	PYTHON=$(PYTHON) tests/hostile/fuzz.sh $(SECONDS)

fuzz-c:
	tests/hostile/fuzz_rans.sh $(SECONDS)

# The entropy coder's tests with a kernel that gcc's sanitizers watch, with SSE2 and without.
sanitize: $(VENV)/.dev
	PYTHON=$(BIN)/python tests/hostile/sanitize.sh

clean:
	rm -rf $(VENV) .oracle .npu .fuzz demo build dist runs

# A stamp, not bin/python: where the venv module is incomplete that file appears all the same.
$(VENV)/.made:
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.runtime: $(SOURCES) | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(SOURCES) | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.runtime
