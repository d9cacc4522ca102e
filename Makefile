# make rollout — the shipped Square policy in the simulator, six samplers side by side
# make test    — environment, then the tests; make test-slow has those that train, kill, or start clusters and nodes
PYTHON ?= python3
VENV   ?= .venv
# The plain requirement; set TORCH="torch==2.13.0+cpu --index-url ..." or the like to choose a build.
TORCH  ?= torch==2.13.0
EXTRAS ?= dev
ROBOMIMIC ?= robomimic==0.3.0
LEROBOT ?= lerobot[diffusion,dataset,pusht]==0.6.1
LEROBOT_PYTHON ?= python3.12
# a checkout of robomimic 0.5, for make test-robomimic
ROBOMIMIC_SOURCE ?=
SEEDS  ?= 0:12
# processes that run tests
WORKERS ?= 2
SLOW_WORKERS ?= 3
# episodes a seed; one of a sampler that is not named
REPEATS ?= ddpm:3,asd:3,free_block:3
CONTROL_SEEDS ?= 50
OUT    ?= runs/square
# of make headline and make reality. The committed folders under benchmarks/results are of other weights (the same in
# float32) and would be refused.
RESULTS ?= runs/results
BIN    := $(VENV)/bin

# `install` runs when the dependencies have changed
.PHONY: rollout headline reality bench test test-slow test-lerobot test-robomimic lint format typecheck build clean install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): install Python 3.11 or newer, or run make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	touch $@

# A test reads demonstrations with robomimic's own reader. What the reader imports is there already; robomimic's other
# dependencies would compile egl_probe.
$(VENV)/.robomimic: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(ROBOMIMIC)"
	touch $@

rollout: install
	$(BIN)/specpolicy rollout task=square sampler=[ddpm,ddim10,ddim5,asd,free_block,free_block20] seeds=$(SEEDS) threads=1 out=$(OUT)

# The headline of the README: 100 seeds, twelve samplers, three tasks; some hours on two cores. It can be stopped at any time.
headline: install
	$(BIN)/specpolicy evaluate task=[square,transport,tool_hang] seeds=100 repeats=[$(REPEATS)] num_envs=10 out=$(RESULTS) \
	  sampler=[ddpm,ddpm20,ddim10,ddim5,ddim2,asd,frozen_block,free_block,free_block20,recycled,analytic10,analytic10_recycled]

# What latency costs on a robot that does not wait: injected latencies, where ddpm20 stands for its distribution (any
# exact sampler of that chain has it) since it needs the fewest rows; then every sampler at the latency recorded for it.
reality: install
	for task in square transport tool_hang; do \
	  $(BIN)/specpolicy control task=$$task seeds=$(CONTROL_SEEDS) latency=[0,50,100,200,400,800] timeline=false \
	    sampler=ddpm20 executor=[asynchronous,blocking] out=$(RESULTS)/reality/injected/$$task && \
	  $(BIN)/specpolicy control task=$$task seeds=$(CONTROL_SEEDS) latency=[50,100,200,400,800] timeline=false \
	    sampler=ddpm20 executor=asynchronous predictor=learned out=$(RESULTS)/reality/predicted/$$task && \
	  $(BIN)/specpolicy control task=$$task seeds=$(CONTROL_SEEDS) latency=recorded timeline=false \
	    sampler=[ddpm,ddim10,ddim5,free_block,free_block20] executor=[asynchronous,blocking] \
	    out=$(RESULTS)/reality/recorded/$$task && \
	  $(BIN)/specpolicy control task=$$task seeds=$(CONTROL_SEEDS) latency=recorded timeline=false \
	    sampler=free_block20 executor=predrafting out=$(RESULTS)/reality/recorded/$$task || exit 1; \
	done

# Compiled modules are kept: tests start some hundred processes that import the package.
test test-slow: export PYTHONDONTWRITEBYTECODE =

test: install $(VENV)/.robomimic
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

# These wait for each other's processes: one worker more than there are processors.
test-slow: install $(VENV)/.robomimic
	$(BIN)/python -m pytest -n $(SLOW_WORKERS) --dist loadfile -m slow

# Beside the real LeRobot, in an environment of its own: it wants Python 3.12 and an older torch (5 GB, built for CUDA).
test-lerobot: $(VENV)-lerobot/.installed
	PYTHONPATH=. $(VENV)-lerobot/bin/python -m pytest -q -c /dev/null --rootdir=. --noconftest -p no:cacheprovider \
	  tests/interop/real/test_lerobot.py

$(VENV)-lerobot/.installed:
	@command -v $(LEROBOT_PYTHON) >/dev/null || { echo "not run: no $(LEROBOT_PYTHON), which $(LEROBOT) needs"; exit 1; }
	$(LEROBOT_PYTHON) -m venv $(VENV)-lerobot
	$(VENV)-lerobot/bin/python -m pip install --quiet --disable-pip-version-check "$(LEROBOT)" ".[eval]" \
	  ./examples/lerobot_plugin "pytest>=8"
	touch $@

# Beside robomimic 0.5 from a checkout of its sources, with the diffusers that it pins, so that pip must not resolve ours.
test-robomimic: $(VENV)-robomimic/.installed
	PYTHONPATH=.:$(ROBOMIMIC_SOURCE) $(VENV)-robomimic/bin/python -m pytest -q -c /dev/null --rootdir=. --noconftest \
	  -p no:cacheprovider tests/interop/real/test_robomimic.py

$(VENV)-robomimic/.installed:
	@test -d "$(ROBOMIMIC_SOURCE)/robomimic" || { echo "not run: set ROBOMIMIC_SOURCE to a checkout of robomimic 0.5"; exit 1; }
	$(PYTHON) -m venv $(VENV)-robomimic
	$(VENV)-robomimic/bin/python -m pip install --quiet --disable-pip-version-check torch==2.11.0 torchvision \
	  "diffusers==0.11.1" "huggingface_hub==0.23.4" "setuptools<80" imageio tensorboardX psutil h5py termcolor six tqdm \
	  "gymnasium>=1.0" safetensors "jaxtyping>=0.3" rich hydra-core filelock "pytest>=8"
	touch $@

# What this machine can measure of latency in some minutes; benchmarks/gpu.sh is for one with a GPU.
bench: install
	$(BIN)/python benchmarks/profile_rounds.py tool_hang
	$(BIN)/python benchmarks/bench_chunk_latency.py tool_hang --batches
	$(BIN)/python benchmarks/bench_acceptance.py tool_hang
	$(BIN)/python benchmarks/bench_scaling.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# The documentation site, into build/site; every warning is an error.
docs: install
	$(BIN)/python -m mkdocs build --strict --quiet

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

typecheck: install
	$(BIN)/mypy

# A built wheel must work by itself, away from the checkout.
build: install
	rm -rf dist build/smoke
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python -m pip install --quiet --no-deps --target build/smoke dist/specpolicy-*.whl
	cd build && PYTHONPATH=smoke $(abspath $(BIN))/python -c "import specpolicy, specpolicy_envs; from specpolicy.config import \
	  config_dir, compose; assert 'smoke' in str(config_dir()), config_dir(); compose('rollout', ['sampler=asd'])"

clean:
	rm -rf $(VENV) build dist
