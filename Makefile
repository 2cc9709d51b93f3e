# dsv4: the DeepSeek-V4-Flash reference and conformance suite.  Bare `make` is help.

BUILD    ?= build
ifeq ($(origin CC),default)
CC       := gcc
endif
OPT      ?= -O2 -g
# No fast-math and no fused multiply-add behind the writer's back: spec/numerics.md.
STRICT   := -std=c11 -D_GNU_SOURCE -ffp-contract=off -fno-fast-math -Wall -Wextra -Wpedantic \
            -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror=implicit
PACKAGES := hdf5 jansson
CFLAGS   += $(STRICT) $(OPT) -I. $(shell pkg-config --cflags $(PACKAGES) gsl 2>/dev/null)
LDLIBS   += $(shell pkg-config --libs $(PACKAGES) gsl 2>/dev/null) -lm

VERSION  := 0.1.0
CFLAGS   += -DDSV4_VERSION='"$(VERSION)"'

MAIN  := host/dsv4.c
LIB   := $(filter-out $(MAIN),$(wildcard host/*.c)) $(wildcard ref/*.c)
TESTS := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
AIDS  := $(filter-out tests/test_%.c tests/tool_%.c,$(wildcard tests/*.c))
TOOLS := $(patsubst tests/%.c,%,$(wildcard tests/tool_*.c))
obj    = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

.DEFAULT_GOAL := help
.SECONDARY:

build: $(BUILD)/dsv4 ## compile build/dsv4

$(BUILD)/obj/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libdsv4.a: $(call obj,$(LIB))
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/dsv4: $(call obj,$(MAIN)) $(BUILD)/libdsv4.a
	$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@

$(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(call obj,$(AIDS)) $(BUILD)/libdsv4.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) $^ -lcmocka $(LDLIBS) -o $@

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

tests: $(BUILD)/dsv4 $(TESTS:%=$(BUILD)/tests/%) $(TOOLS:%=$(BUILD)/tests/%) ## compile the tests

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

clean: ## remove what was built
	rm -rf $(BUILD)

.PHONY: build tests help clean
