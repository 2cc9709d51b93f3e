# dsv4: the DeepSeek-V4-Flash reference and conformance suite.  Bare `make` is help.

BUILD ?= build
OPT   ?= -O2 -g
ifeq ($(origin CC),default)
CC := gcc
endif
# Checkpoints and traces of an independent implementation. The repository carries a part of them (logits
# without traces); the tests that need the whole are skipped without it.
ORACLE ?= $(firstword $(wildcard ../shared/oracle) tests/oracle)

VERSION := 0.1.0
# Asked when first used, which in `make setup build` is after the packages have been installed.
PACKAGES   := hdf5 jansson gsl libcrypto
PKG_CFLAGS  = $(eval PKG_CFLAGS := $$(shell pkg-config --cflags $(PACKAGES) 2>/dev/null))$(PKG_CFLAGS)
PKG_LIBS    = $(eval PKG_LIBS := $$(shell pkg-config --libs $(PACKAGES) 2>/dev/null))$(PKG_LIBS)
# No fast-math, and no fused multiply-add that the writer did not ask for: spec/numerics.md.
FLAGS = -std=c11 -D_GNU_SOURCE -DDSV4_VERSION='"$(VERSION)"' -I. -ffp-contract=off -fno-fast-math \
        -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla \
        $(PKG_CFLAGS)
LIBS  = $(PKG_LIBS) -ldl -lm -pthread

# Kernels of an instruction set are in files of their own; which of them run is decided when the program
# starts. Other processors have the portable ones only.
# (Before `setup` there may be no compiler to ask.)
TARGET := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine 2>/dev/null || uname -m)))
FAST   := $(wildcard fast/*.c) $(if $(filter x86_64,$(TARGET)),$(wildcard fast/x86/*.c))
AVX512 := -DFAST_AVX512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c
%_avx2.o:       ISA = -DFAST_AVX2 -mavx2 -mfma -mf16c
%_avx512.o:     ISA = $(AVX512)
%_avx512vnni.o: ISA = $(AVX512) -mavx512vnni
%_avx512bf16.o %_avx512vbmi.o: ISA = $(AVX512) -mavx512vbmi -mavx512bf16
%/limits_avx512bf16.o: ISA = -mavx512f -mavx512bf16
# make EMULATE_AMX=1 BUILD=..: the level amx in plain C, on any machine that has AVX-512.
$(BUILD)/obj/fast/x86/%_amx.o $(BUILD)/obj/tests/emulated%amx.o: \
    ISA = $(AVX512) -mamx-tile -mamx-bf16 -mamx-int8
ifneq ($(EMULATE_AMX),)
FLAGS += -DDSV4_EMULATE_AMX
endif

MAIN  := host/dsv4.c
LIB   := $(filter-out $(MAIN),$(wildcard host/*.c)) $(wildcard ref/*.c vectors/museum/*.c) \
         $(FAST)
GEN   := $(wildcard vectors/gen/*.c)
AIDS  := $(filter-out tests/test_%.c tests/tool_%.c $(if $(filter x86_64,$(TARGET)),,tests/%_amx.c), \
                      $(wildcard tests/*.c))
ONLY  ?= test_*
TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(filter tests/test_%,$(wildcard tests/$(ONLY).c)))
TOOLS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/tool_*.c))
obj    = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

# make COUNTED=--coverage: which lines of ref/, host/ and fast/ run, and of the kernels that tests include.
# Those of the tests would cost time at every exit of a program, and nobody asks for them. Threads may lose
# a count, which is no matter here; exact counts would take several times as long.
COUNTED ?=
$(BUILD)/obj/ref/%.o $(BUILD)/obj/host/%.o $(BUILD)/obj/fast/%.o $(BUILD)/obj/tests/emulated%.o: \
    COUNT = $(COUNTED)

# Sanitizers make programs large, and where it exists this linker takes a third of the time.
LINKER = $(if $(shell command -v ld.gold 2>/dev/null),-fuse-ld=gold)

# make V=1 shows whole commands.
ifeq ($(V),)
Q   := @
say := @printf '  %s %s\n'
else
Q   :=
say := @true
endif

.DEFAULT_GOAL := help
.SECONDARY:

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 20
	@echo
	@echo 'Variables: BUILD=$(BUILD)  CC=$(CC)  OPT="$(OPT)"  ORACLE=$(ORACLE)  ONLY=$(ONLY)  V=1'

demo: setup ## install what is needed, build, and run the model on a small checkpoint
	$(Q)$(MAKE) --no-print-directory build tools
	$(Q)BUILD=$(BUILD) ci/demo.sh

check: setup ## install what is needed, build, and run all tests
	$(Q)ORACLE=$(abspath $(ORACLE)) ci/check.sh

setup: ## install the packages that are missing (Debian)
	$(Q)ci/setup.sh

build: $(BUILD)/dsv4 ## compile build/dsv4

tests: $(BUILD)/dsv4 $(TESTS) $(TOOLS) ## compile the tests

tools: $(TOOLS) ## compile build/tests/tool_make_checkpoint and other aids

test: tests ## compile and run the tests of this build only; ONLY='test_m*' for some
	$(Q)DSV4_ORACLE=$(abspath $(ORACLE)) ci/run-tests.sh $(BUILD) '$(ONLY)'

asan: ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer, with coverage counted
	$(Q)find $(BUILD)/asan -name '*.gcda' -delete 2>/dev/null || true
	$(Q)$(MAKE) --no-print-directory test BUILD=$(BUILD)/asan COUNTED=--coverage LDFLAGS="$(LDFLAGS) $(LINKER)" \
	    OPT="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
	$(Q)ci/coverage.sh $(BUILD)/asan

tsan: ## the tests of fast/ under ThreadSanitizer
	$(Q)ci/tsan.sh $(BUILD)

aarch64: ## the tests of fast/ and the vectors on another processor, emulated
	$(Q)ci/aarch64.sh $(BUILD)

coverage: ## line and branch coverage of ref/, host/ and fast/ alone; fails under 95 % of lines
	$(Q)find $(BUILD)/coverage -name '*.gcda' -delete 2>/dev/null || true
	$(Q)$(MAKE) --no-print-directory test BUILD=$(BUILD)/coverage COUNTED=--coverage OPT="-O1 -g"
	$(Q)ci/coverage.sh $(BUILD)/coverage

spec-check: ## compare the rules of spec/ with code and tests
	$(Q)ci/spec-check.sh

symbols: build ## what the objects of fast/, host/ and each instruction set may call
	$(Q)ci/symbols.sh $(BUILD)

spec-sync: ## rewrite the rule comments in the code with the text of spec/
	$(Q)ci/spec-check.sh --sync

status: ## rewrite the status table of README.md from the last test run
	$(Q)ci/status.sh $(BUILD)

vectors: $(BUILD)/generate-vectors $(BUILD)/dsv4 ## rebuild vectors/v1; the same bytes on Debian 12, x86-64
	$(Q)ci/vectors.sh $(BUILD)

vectors-check: $(BUILD)/generate-vectors $(BUILD)/dsv4 ## rebuild the vectors elsewhere and compare
	$(Q)ci/vectors.sh --check $(BUILD)

mutants: $(BUILD)/tests/tool_museum ## every exhibit of the museum against the vectors; 2 seeds of correct engines
	$(Q)$(BUILD)/tests/tool_museum mutants vectors/v1
	$(Q)$(BUILD)/tests/tool_museum alarms vectors/v1 2

errata: $(BUILD)/tests/tool_museum ## rewrite docs/errata.md from the museum
	$(Q)ci/errata.sh $(BUILD)

third-party: build ## other people's packages against the vectors; rewrites docs/conformance.md (needs Python)
	$(Q)ci/third-party.sh $(BUILD)

peers: build ## other people's programs in turn with ours, on the same slice (needs Python, 27 GB of disk)
	$(Q)ci/peers.sh $(BUILD) $(PEERS)

performance: ## rewrite the tables and the picture of docs/performance.md from what `make peers` has measured
	$(Q)python3 ci/peers/performance.py $(or $(RESULTS),$(BUILD)/peers/results.json) docs/performance.md \
	    docs/roofline.svg

transformers-check: build ## compare with the transformers package (needs Python; installs into build/venv)
	$(Q)ORACLE=$(abspath $(ORACLE)) ci/transformers-check.sh $(BUILD)

clean: ## remove what was built
	rm -rf $(BUILD)

$(BUILD)/obj/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(say) CC $<
	$(Q)$(CC) $(CPPFLAGS) $(FLAGS) $(ISA) $(OPT) $(COUNT) $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libdsv4.a: $(call obj,$(LIB))
	$(say) AR $@
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/dsv4: $(call obj,$(MAIN)) $(BUILD)/libdsv4.a
	$(say) LD $@
	$(Q)$(CC) $(OPT) $(COUNTED) $(CFLAGS) $(LDFLAGS) $^ $(LIBS) -o $@

$(BUILD)/generate-vectors: $(call obj,$(GEN) tests/make_checkpoint.c) $(BUILD)/libdsv4.a
	$(say) LD $@
	$(Q)$(CC) $(OPT) $(COUNTED) $(CFLAGS) $(LDFLAGS) $^ $(LIBS) -o $@

$(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(call obj,$(AIDS)) $(BUILD)/libdsv4.a
	@mkdir -p $(@D)
	$(say) LD $@
	$(Q)$(CC) $(OPT) $(COUNTED) $(CFLAGS) $(LDFLAGS) $^ -lcmocka $(LIBS) -o $@

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

.PHONY: help demo check setup build tests tools test asan tsan aarch64 coverage spec-check symbols \
        spec-sync status vectors vectors-check mutants errata third-party peers performance \
        transformers-check clean
