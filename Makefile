# Thin: every target calls a script. `make help` lists them.
.PHONY: help setup demo test lint sanitize bench gpu-check protos

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup:  ## virtual environment, dependencies, extension
	@scripts/setup

demo: setup  ## the whole of it on real pictures: make demo [DATA=folder with one sub-folder per class]
	@.venv/bin/python examples/demo.py $(if $(DATA),--data "$(DATA)")

test: setup  ## all tests, with coverage
	@scripts/test

lint: setup  ## ruff, mypy, clang-format
	@scripts/lint

sanitize: setup  ## the CPU kernels under the address and undefined behaviour sanitizers (minutes)
	@scripts/sanitize

bench: setup  ## the benchmarks of the README
	@scripts/bench

gpu-check:  ## build, test and compare on a machine with a GPU (no virtual environment, no network)
	@scripts/gpu-check

protos: setup  ## regenerate the code made from protos/
	@scripts/protos
