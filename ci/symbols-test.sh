#!/bin/sh
# ci/symbols.sh must fail on every kind of fault: each is planted in a small tree of its own.
set -u
cd "$(dirname "$0")/.." || exit 2
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
faults=0 planted=0
compiler=${CC:-cc}

# write FILE TEXT: the whole of a file.
write() {
    mkdir -p "$(dirname "$copy/tree/$1")"
    echo "$2" >"$copy/tree/$1"
}
# A tree as good as the real one, but small; built once, then copied.
good() {
    write ref/ref.h 'double ref_sum(double x);'
    write ref/sum.c '#include "ref/ref.h"
        double ref_sum(double x) { return x; }'
    write ref/path.c 'extern const int dsv4_path_ref; const int dsv4_path_ref = 1;'
    write host/path.c 'extern const int dsv4_path_ref;
        int dsv4_paths(void); int dsv4_paths(void) { return dsv4_path_ref; }'
    write host/other.c 'int dsv4_other(void); int dsv4_other(void) { return 1; }'
    write fast/isa.c 'extern const int *const fast_sum_avx2; const int *const *fast_level(void);
        const int *const *fast_level(void) { return &fast_sum_avx2; }'
    write fast/sum.c 'float fast_sum(float x); float fast_sum(float x) { return x * x; }'
    write fast/lanes.h 'typedef float lanes __attribute__((vector_size(32)));
        static float sum(float *x)
        { lanes v; __builtin_memcpy(&v, x, 32); v *= v; return v[0] + v[5]; }'
    write fast/x86/sum_avx2.c '#include "fast/lanes.h"
        typedef float (*table)(float *); extern const table fast_sum_avx2;
        const table fast_sum_avx2 = sum;'
    cp -r ci "$copy/tree/"
    for source in ref/sum.c ref/path.c host/path.c host/other.c fast/isa.c fast/sum.c; do
        compile $source
    done
    [ -z "$x86" ] || compile fast/x86/sum_avx2.c -mavx2
    mv "$copy/tree" "$copy/good"
}
fresh() {
    rm -rf "$copy/tree"
    cp -a "$copy/good" "$copy/tree"
}
# compile SOURCE FLAGS...
compile() {
    source=$1; shift
    object=build/obj/${source%.c}.o
    mkdir -p "$(dirname "$copy/tree/$object")"
    (cd "$copy/tree" && $compiler -O2 -I. "$@" -MMD -MP -c "$source" -o "$object") || exit 2
}
# noticed LABEL EXPECTED-MESSAGE [SOURCE [FLAGS]]: after a fault has been planted in the source.
noticed() {
    label=$1 message=$2; shift 2
    [ $# -gt 0 ] && compile "$@"
    planted=$((planted + 1))
    if "$copy/tree/ci/symbols.sh" build >"$copy/out" 2>&1 || ! grep -q -- "$message" "$copy/out"; then
        echo "$label: not noticed; expected '$message'"; cat "$copy/out"; faults=$((faults + 1))
    fi
    fresh
}
case $($compiler -dumpmachine) in x86_64-*) x86=yes ;; *) x86= ;; esac

good
fresh
"$copy/tree/ci/symbols.sh" build >"$copy/out" 2>&1 || { cat "$copy/out"; exit 1; }

write fast/sum.c 'double ref_sum(double x); float fast_sum(float x);
    float fast_sum(float x) { return ref_sum(x); }'
noticed "fast/ calls ref/" 'fast/sum.o refers to ref_sum of ref/' fast/sum.c
write fast/sum.c '#include "../ref/ref.h"'
noticed "fast/ includes ref/" 'sum.d says that ref/ is included: fast/../ref/ref.h' fast/sum.c
write fast/lanes.h '#include "ref/ref.h"'
write fast/sum.c '#include "lanes.h"'
noticed "fast/ includes ref/ through a header" 'sum.d says that ref/ is included: ref/ref.h' fast/sum.c
write ref/sum.c 'float fast_sum(float x); double ref_sum(double x);
    double ref_sum(double x) { return fast_sum(x); }'
noticed "ref/ calls fast/" 'ref/sum.o refers to fast_sum of fast/' ref/sum.c
write fast/sum.c 'double gsl_hypot(double, double); float fast_sum(float x);
    float fast_sum(float x) { return gsl_hypot(x, x); }'
noticed "fast/ calls GSL" 'fast/sum.o refers to gsl_hypot of GSL' fast/sum.c
write host/other.c 'void cblas_dgemv(void); void dsv4_other(void);
    void dsv4_other(void) { cblas_dgemv(); }'
noticed "host/ calls GSL" 'host/other.o refers to cblas_dgemv of GSL' host/other.c
write host/other.c '
    #include <gsl/gsl_math.h>'
noticed "host/ includes GSL" 'host/other.c:2:.*gsl_math'
write host/other.c 'double ref_sum(double x); double dsv4_other(void);
    double dsv4_other(void) { return ref_sum(1); }'
noticed "host/ calls ref/" 'host/other.o refers to ref_sum of ref/' host/other.c
write host/other.c 'extern const int dsv4_path_ref; int dsv4_other(void);
    int dsv4_other(void) { return dsv4_path_ref; }'
noticed "another file of host/ takes the table" 'host/other.o refers to dsv4_path_ref of ref/' host/other.c
write fast/new.c ''
noticed "no object" 'fast/new.o is not built'
if [ -n "$x86" ]; then
    kernels=fast/x86/sum_avx2.c
    sed -i 's/static float sum/float sum/' "$copy/tree/fast/lanes.h"
    noticed "a kernel is global" 'sum_avx2.o shows more than its table: T sum' $kernels -mavx2
    sed -i 's/static float sum/__attribute__((weak)) float sum/' "$copy/tree/fast/lanes.h"
    noticed "a kernel is weak" 'sum_avx2.o shows more than its table: W sum' $kernels -mavx2
    sed -i 's/fast_sum_avx2/fast_add_avx2/g' "$copy/tree/$kernels"
    noticed "the table has another name" 'sum_avx2.o has no table fast_sum_avx2' $kernels -mavx2
    write fast/sum.c 'extern const int fast_sum_avx2; int fast_sum(void);
        int fast_sum(void) { return fast_sum_avx2; }'
    noticed "a table is used past isa.c" 'sum.o refers to fast_sum_avx2, which only' fast/sum.c
    noticed "a plain object has AVX" 'fast/sum.o has an instruction beyond' fast/sum.c -mavx
    sed -i 's/32/64/g' "$copy/tree/fast/lanes.h"
    noticed "an AVX2 object has AVX-512" 'sum_avx2.o has an instruction beyond' $kernels -mavx512f
fi
[ "$faults" -eq 0 ] && echo "symbols: $planted planted faults, each noticed"
[ "$faults" -eq 0 ]
