# make install: a virtual environment with everything, at .venv   (make test, make lint and make demo call it)
# make test: every test, with a part of each long sweep   make test-all: with the whole of each
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SPEED := benchmarks/results/speed
MEASURED := runs/speed
AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder
GRID := --literal-megabytes 256 --rounds 3

.PHONY: install demo test test-all lint pages tutorials docs bench bench-avx2 format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up .venv (a few minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
	@echo "Done: the command is .venv/bin/radargate."

demo: install
	$(BIN)/radargate quickstart --out quickstart

test: install
	$(BIN)/python -m pytest $(AT_ONCE)

test-all: install
	$(BIN)/python -m pytest $(AT_ONCE) --all

lint: install
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet --clean

# every page that holds numbers, from the records in benchmarks/results and the sentences in docs/templates
pages: install
	$(BIN)/python benchmarks/pages/make_pages.py

# the tutorials, by running the scripts of examples/ (some minutes)
tutorials: install
	$(BIN)/python benchmarks/pages/tutorials.py

# the documentation at http://127.0.0.1:8000
docs: install
	$(BIN)/mkdocs serve --strict

# speed and memory on this machine, into benchmarks/results/speed (half an hour on 2 cores)
bench: install
	rm -rf $(MEASURED) && mkdir -p $(MEASURED) $(SPEED)
	$(BIN)/radargate bench ops --quick --out $(MEASURED)/ops.jsonl
	$(BIN)/radargate bench ops $(GRID) --widths 2048 --tokens 512 --top-k 2 0 --out $(MEASURED)/ops.jsonl
	$(BIN)/radargate bench ops $(GRID) --widths 2048 --tokens 1 16 --top-k 2 0 --experts 8 40 320 --out $(MEASURED)/ops.jsonl
	$(BIN)/radargate bench ops $(GRID) --widths 2048 --tokens 4096 --top-k 2 --experts 8 40 320 --out $(MEASURED)/ops.jsonl
	$(BIN)/radargate bench ops $(GRID) --widths 576 4096 --tokens 1 512 --top-k 2 --experts 8 40 --out $(MEASURED)/ops.jsonl
	$(BIN)/radargate bench step --rounds 3 --out $(MEASURED)/step.jsonl
	$(BIN)/radargate bench decode --rounds 3 --out $(MEASURED)/decode.jsonl
	$(BIN)/radargate bench serve --experts 8 --out $(MEASURED)/serve.jsonl
	$(BIN)/radargate bench footprint --out $(MEASURED)/footprint.jsonl
	mv $(MEASURED)/*.jsonl $(SPEED)/
	$(MAKE) pages

# the same with the instructions of a processor that has AVX2 at most, into benchmarks/results/speed-avx2 (a quarter of an hour)
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 CXX="g++ -mno-avx512f" RADARGATE_CACHE=$(CURDIR)/$(MEASURED)/cache
bench-avx2: install
	rm -rf $(MEASURED) && mkdir -p $(MEASURED) $(SPEED)-avx2
	$(AVX2) $(BIN)/radargate bench ops --quick --out $(MEASURED)/ops.jsonl
	$(AVX2) $(BIN)/radargate bench step --rounds 3 --out $(MEASURED)/step.jsonl
	$(AVX2) $(BIN)/radargate bench decode --rounds 3 --batch 1 --out $(MEASURED)/decode.jsonl
	$(AVX2) $(BIN)/radargate bench serve --experts 8 --out $(MEASURED)/serve.jsonl
	mv $(MEASURED)/*.jsonl $(SPEED)-avx2/
	$(MAKE) pages

format: install
	$(BIN)/ruff check --fix src tests benchmarks examples
	$(BIN)/ruff format src tests benchmarks examples

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
